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
    let verified = place.reader().verify().unwrap();
    assert_eq!((verified.faults, verified.first, verified.fault_count), (vec![], 5001, 0));
    let entries = place.entries();
    let removed: Vec<&Record> = entries.iter().map(|e| &e.record).filter(|r| r.kind == Kind::Retention).collect();
    assert_eq!(removed.iter().map(|record| record.numbers["records"]).sum::<u64>(), 5000);
    assert_eq!(removed.last().unwrap().numbers["through"], 5000);
    let trail = start(&place);
    trail.append(refusal(5010));
    trail.flush().unwrap();
    assert_eq!(place.reader().verify().unwrap().faults, []);
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
    assert_eq!(place.reader().verify().unwrap().faults, [Fault::Missing { first: 11, last: 13 }]);
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
    assert_eq!(place.reader().verify().unwrap().faults, []);
}

#[test]
fn a_crash_between_a_removal_and_its_head_is_no_fault() {
    let place = aged(10, 0);
    let head_before = std::fs::read(place.head_path()).unwrap();
    until("the old ones are gone", || {
        drop(start(&place));
        place.entries().iter().all(|entry| entry.record.kind == Kind::Retention)
    });
    std::fs::write(place.head_path(), head_before).unwrap();
    assert_eq!(place.reader().verify().unwrap().faults, []);
    start(&place).flush().unwrap();
    assert_eq!(place.reader().verify().unwrap().faults, []);
    assert!(place.entries().iter().all(|entry| entry.record.kind == Kind::Retention), "{:?}", place.entries());
}
