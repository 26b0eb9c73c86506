//! Records go when they have had their time, and what is left holds together.

use std::time::Duration;

use rusqlite::Connection;
use tidegate_watch::audit::{Fault, Kind, Record, Trail, TrailOptions};

use crate::support::{Place, number, refusal, until};

/// How old records are that have had their time.
const OLD: u64 = 10 * 86_400 * 1_000_000;

fn start(place: &Place) -> Trail {
    Trail::start(TrailOptions { retention: Duration::from_secs(86_400), ..place.options() }).unwrap()
}

/// A trail with old records and newer ones.
fn aged(old: u64, new: u64) -> Place {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { retention: Duration::ZERO, ..place.options() }).unwrap();
    for n in 0..old + new {
        let record = refusal(n);
        trail.append(Record { at: if n < old { record.at - OLD } else { record.at }, ..record });
        if n % 1000 == 0 {
            trail.flush().unwrap();
        }
    }
    place
}

#[test]
fn what_has_had_its_time_is_removed_and_the_rest_holds_together() {
    let place = aged(5000, 10);
    drop(start(&place));
    until("the old ones are gone", || {
        let trail = start(&place);
        trail.flush().unwrap();
        place.entries().first().and_then(number) == Some(5000)
    });
    let verified = place.verify();
    assert_eq!((verified.faults, verified.first, verified.fault_count), (vec![], 5001, 0));
    let entries = place.entries();
    let removed: Vec<&Record> = entries.iter().map(|e| &e.record).filter(|r| r.kind == Kind::Retention).collect();
    assert_eq!(removed.iter().map(|record| record.numbers["records"]).sum::<u64>(), 5000);
    assert_eq!(removed.last().unwrap().numbers["through"], 5000);
    let trail = start(&place);
    trail.append(refusal(5010));
    trail.flush().unwrap();
    assert_eq!(place.verify().faults, []);
}

#[test]
fn records_that_are_removed_by_hand_are_found_after_a_removal_too() {
    let place = aged(10, 10);
    until("the old ones are gone", || {
        drop(start(&place));
        place.entries().first().and_then(number) == Some(10)
    });
    let connection = Connection::open(place.path()).unwrap();
    connection.execute_batch("DELETE FROM records WHERE sequence <= 13").unwrap();
    assert_eq!(place.verify().faults, [Fault::Missing { first: 11, last: 13 }]);
}

#[test]
fn what_was_put_among_the_records_that_had_their_time_is_found_and_stays() {
    let place = aged(10, 10);
    until("the old ones are gone", || {
        drop(start(&place));
        place.entries().first().and_then(number) == Some(10)
    });
    let connection = Connection::open(place.path()).unwrap();
    let put = "INSERT INTO records SELECT 7, 0, kind, user, call, record, hash FROM records WHERE sequence = 12";
    connection.execute_batch(put).unwrap();
    let stray = Fault::Stray { sequence: 7, after: 10 };
    assert_eq!(place.verify().faults, std::slice::from_ref(&stray));
    drop(start(&place));
    assert_eq!(place.verify().faults, [stray]);
}

#[test]
fn a_trail_of_nothing_but_old_records_goes_down_to_its_anchor_and_stays_there() {
    let place = aged(10, 0);
    until("the old ones are gone", || {
        drop(start(&place));
        place.entries().iter().all(|entry| entry.record.kind == Kind::Retention)
    });
    let entries = place.entries();
    drop(start(&place));
    assert_eq!(place.entries(), entries);
    assert_eq!(place.verify().faults, []);
}

#[test]
fn a_break_is_told_until_its_record_has_had_its_time() {
    let place = Place::new();
    place.trail().append_durable(refusal(0)).unwrap();
    std::fs::remove_file(place.head_path()).unwrap();
    for _ in 0..2 {
        place.trail().append_durable(refusal(1)).unwrap();
        assert!(!place.verify().is_proven());
    }
    until("its record is gone", || {
        let options = TrailOptions { retention: Duration::from_millis(1), ..place.options() };
        Trail::start(options).unwrap().flush().unwrap();
        place.verify().is_proven()
    });
    assert!(place.entries().iter().all(|entry| entry.record.what != "broken"));
}

/// The file beside the database as it was before a removal, but for what it vouches for.
fn as_before_the_removal(place: &Place, before: &[u8]) -> Vec<u8> {
    let parsed = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    let mut old = parsed(before);
    old["anchor"] = parsed(&std::fs::read(place.head_path()).unwrap())["anchor"].take();
    assert!(old["anchor"].is_object());
    old.to_string().into_bytes()
}

#[test]
fn a_crash_between_a_removal_and_its_head_is_no_fault() {
    let place = aged(10, 0);
    let before = std::fs::read(place.head_path()).unwrap();
    until("the old ones are gone", || {
        drop(start(&place));
        place.entries().iter().all(|entry| entry.record.kind == Kind::Retention)
    });
    let head = as_before_the_removal(&place, &before);
    std::fs::write(place.head_path(), head).unwrap();
    assert_eq!(place.verify().faults, []);
    start(&place).flush().unwrap();
    assert_eq!(place.verify().faults, []);
    let is_expected = |record: &Record| record.kind == Kind::Retention || record.what == "uncovered";
    assert!(place.entries().iter().all(|entry| is_expected(&entry.record)), "{:?}", place.entries());
}

#[test]
fn a_removal_that_only_the_database_tells_of_is_found_and_stays_so() {
    let place = aged(0, 10);
    let removed = place.entries()[6].clone();
    let last = place.entries()[9].clone();
    let record = Record { anchor: Some(removed.hash.to_string().into()), ..Record::new(Kind::Retention, "removed") }
        .with("records", 7)
        .with("through", 7);
    let text = serde_json::to_string(&record).unwrap();
    let connection = Connection::open(place.path()).unwrap();
    connection.execute_batch("DELETE FROM records WHERE sequence <= 7").unwrap();
    let hash = last.hash.after(&text);
    connection
        .execute(
            "INSERT INTO records (sequence, at, kind, record, hash) VALUES (11, ?1, 'retention', ?2, ?3)",
            rusqlite::params![record.at as i64, text, hash.as_bytes()],
        )
        .unwrap();
    let missing = Fault::Missing { first: 1, last: 7 };
    assert_eq!(place.verify().faults, std::slice::from_ref(&missing));
    let trail = place.trail();
    trail.append(refusal(20));
    trail.flush().unwrap();
    assert_eq!(place.verify().faults.first(), Some(&missing));
}
