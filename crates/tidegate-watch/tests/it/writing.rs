//! What is handed over is on disk, in order, and can be found.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tidegate_watch::audit::{Filter, Kind, PAGE, Reader, Record, Trail, TrailOptions};

use crate::support::{Place, number, refusal, until};

#[test]
fn what_was_handed_over_is_there_in_order_after_a_restart_too() {
    let place = Place::new();
    for run in 0..3 {
        let trail = place.trail();
        (0..2500).for_each(|n| trail.append(refusal(run * 2500 + n)));
    }
    let entries = place.entries();
    let numbers: Vec<u64> = entries.iter().map(|entry| number(entry).unwrap()).collect();
    assert_eq!(numbers, (0..7500).collect::<Vec<_>>());
    assert!(entries.iter().zip(1..).all(|(entry, sequence)| entry.sequence == sequence));
}

#[test]
fn what_is_written_durably_is_on_disk_when_it_returns_with_all_before_it() {
    let place = Place::new();
    let trail = place.trail();
    (0..10).for_each(|n| trail.append(refusal(n)));
    trail.append_durable(Record::new(Kind::Override, "force-open")).unwrap();
    assert_eq!(place.entries().len(), 11);
    trail.append(refusal(10));
    trail.flush().unwrap();
    assert_eq!(place.entries().len(), 12);
    let status = trail.status();
    assert_eq!((status.written, status.lost, status.failing_since, trail.is_down()), (12, 0, None, false));
}

#[test]
fn a_record_that_comes_alone_is_not_held_back_for_others() {
    let place = Place::new();
    let trail = place.trail();
    let times = (0..20).map(|n| {
        let (before, started) = (trail.status().written, Instant::now());
        trail.append(refusal(n));
        until("it is on disk", || trail.status().written > before);
        started.elapsed()
    });
    // The least of them: others may have to wait for a disk or a core that is busy elsewhere.
    let least = times.min().unwrap();
    assert!(least < Duration::from_millis(25), "{least:?}");
}

#[test]
fn records_are_found_by_time_kind_user_and_call() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { retention: Duration::ZERO, ..place.options() }).unwrap();
    for n in 0..2 * PAGE as u64 + 10 {
        let user = if n % 2 == 0 { "ada" } else { "bob" };
        trail.append(Record { at: 1_000_000 * (n + 1), user: Some(user.into()), ..refusal(n) });
    }
    trail.append(Record { at: 5_500_000, ..Record::new(Kind::Override, "reset") });
    trail.flush().unwrap();
    let reader = place.reader();
    let all = |filter: &Filter| {
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let (page, end) = reader.page(filter, from).unwrap();
            if page.is_empty() {
                return found;
            }
            found.extend(page);
            from = end;
        }
    };
    let everything = all(&Filter::default());
    assert_eq!(everything.len(), 2 * PAGE + 11);
    assert!(everything.is_sorted_by_key(|entry| entry.record.at), "by time, also where it was written later");
    let since = Filter { since: Some(1_000_000 * 2000), ..Filter::default() };
    assert_eq!(all(&since).first().and_then(number), Some(1999));
    let kind = Filter { kind: Some(Kind::Override), ..Filter::default() };
    assert_eq!(all(&kind).len(), 1);
    let user = Filter { users: vec!["bob".to_owned(), "bill".to_owned()], ..Filter::default() };
    assert_eq!(all(&user).len(), PAGE + 5);
    let call = Filter { call: Some("c-7".to_owned()), kind: Some(Kind::Throttle), ..Filter::default() };
    assert_eq!(all(&call).iter().map(number).collect::<Vec<_>>(), [Some(7)]);
    let latest = reader.latest(&user, 2).unwrap();
    assert_eq!(latest.iter().map(number).collect::<Vec<_>>(), [Some(2007), Some(2009)]);
}

#[test]
fn a_locked_file_is_waited_for_and_what_found_no_room_is_counted_in_the_trail() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { waiting_max: 100, ..place.options() }).unwrap();
    trail.flush().unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    (0..10).for_each(|n| trail.append(refusal(n)));
    let refused = trail.append_durable(Record::new(Kind::Override, "not done")).unwrap_err().to_string();
    assert!(refused.contains("database is locked"), "{refused}");
    assert!(trail.is_down() && trail.status().failing_since.is_some());
    let mut handed_over = 10;
    while trail.status().lost < 50 {
        trail.append(refusal(handed_over));
        handed_over += 1;
    }
    lock.execute_batch("ROLLBACK").unwrap();
    until("the trail is up again", || !trail.is_down());
    let lost = trail.status().lost;
    drop(trail);

    let entries = place.entries();
    let gaps: Vec<&Record> = entries.iter().map(|entry| &entry.record).filter(|r| r.kind == Kind::Gap).collect();
    let told: u64 = gaps.iter().map(|gap| gap.numbers["lost"]).sum();
    assert_eq!(told, lost);
    assert!(gaps[0].why.as_ref().unwrap().contains("database is locked"), "{gaps:?}");
    let kept = entries.iter().filter_map(number).collect::<Vec<_>>();
    assert_eq!(kept.len() as u64, handed_over - lost);
    assert!(kept.is_sorted() && kept.starts_with(&(0..100).collect::<Vec<_>>()));
    assert!(entries.iter().all(|entry| entry.record.what != "not done"), "who was told no must not find it later");
}

#[test]
fn what_is_committed_is_written_also_where_its_head_cannot_be_and_the_head_follows() {
    let place = Place::new();
    // Where a head is made before it takes its name.
    let in_the_way = place.path().with_extension("db.head.new");
    let trail = place.trail();
    trail.append_durable(refusal(0)).unwrap();
    std::fs::create_dir(&in_the_way).unwrap();
    trail.append_durable(refusal(1)).unwrap();
    trail.append_durable_or_later(refusal(2)).unwrap();
    assert!(!trail.is_down());
    drop(trail);
    let trail = place.trail();
    trail.append_durable(refusal(3)).unwrap();
    let verified = place.verify();
    // With the record of how many the head did not cover at the start.
    assert_eq!((verified.records, verified.uncovered, verified.faults), (5, 4, Vec::new()));
    std::fs::remove_dir(&in_the_way).unwrap();
    until("the head is written without another record", || place.verify().uncovered == 0);
    assert_eq!(place.entries().iter().filter_map(number).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn what_happens_in_any_case_is_written_once_when_the_file_can_be() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { waiting_max: 3, ..place.options() }).unwrap();
    trail.flush().unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let told: Vec<bool> = (0..5).map(|n| trail.append_durable_or_later(refusal(n)).is_ok()).collect();
    assert_eq!(told, [false; 5]);
    assert_eq!(trail.status().lost, 2, "what finds no room is counted");
    lock.execute_batch("ROLLBACK").unwrap();
    until("the trail is up again", || !trail.is_down());
    trail.append_durable_or_later(refusal(5)).unwrap();
    let entries = place.entries();
    assert_eq!(entries.iter().filter_map(number).collect::<Vec<_>>(), [0, 1, 2, 5]);
    let told: u64 = entries.iter().filter_map(|entry| entry.record.numbers.get("lost")).sum();
    assert_eq!((told, place.verify().faults), (2, Vec::new()));
}

#[test]
fn a_trail_is_up_again_once_something_was_written_and_says_how_long_nothing_was() {
    let place = Place::new();
    let trail = place.trail();
    trail.append_durable(refusal(0)).unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    trail.append_durable(refusal(1)).unwrap_err();
    // Nothing waits, and still nothing can be written.
    for _ in 0..3 {
        trail.flush().unwrap_err();
        assert!(trail.is_down() && trail.status().failing_since.is_some());
    }
    lock.execute_batch("ROLLBACK").unwrap();
    until("the trail is up again", || !trail.is_down());
    let told = place.entries().pop().unwrap().record;
    assert_eq!((told.kind, &*told.what, told.numbers["lost"]), (Kind::Gap, "interrupted", 0));
    assert!(told.why.as_ref().unwrap().contains("nothing could be written from "), "{told:?}");
    assert_eq!(place.entries().len(), 2);
}

#[test]
fn a_trail_is_down_until_it_has_written_something() {
    let place = Place::new();
    place.trail().append_durable(refusal(0)).unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let trail = place.trail();
    assert!(trail.is_down() && trail.flush().is_ok() && trail.is_down());
    lock.execute_batch("ROLLBACK").unwrap();
    trail.append_durable(refusal(1)).unwrap();
    assert!(!trail.is_down());
}

#[test]
fn what_was_decided_finds_room_where_records_of_calls_find_none() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { waiting_max: 3, ..place.options() }).unwrap();
    trail.append_durable(refusal(0)).unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let lost = |record| trail.append_durable_or_later(record).unwrap_err().is_lost;
    let told: Vec<bool> = (1..6).map(|n| lost(refusal(n))).collect();
    assert_eq!(told, [false, false, false, true, true]);
    assert!(lost(Record::new(Kind::Override, "denied")), "of these there could be any number");
    let decided = |what: &'static str| Record::new(Kind::Override, what);
    assert!(!lost(decided("force-open")));
    trail.append(Record::new(Kind::Config, "reloaded"));
    assert!(!lost(decided("reset")));
    lock.execute_batch("ROLLBACK").unwrap();
    until("the trail is up again", || !trail.is_down());
    let entries = place.entries();
    let what: Vec<&str> = entries.iter().map(|entry| &*entry.record.what).collect();
    assert_eq!(what, ["refused", "refused", "refused", "refused", "force-open", "reloaded", "reset", "lost"]);
    assert_eq!(trail.status().lost, 3);
}

#[test]
fn what_could_not_be_written_until_the_end_is_written_by_the_next_start_and_once() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { waiting_max: 3, ..place.options() }).unwrap();
    trail.flush().unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 0..5 {
        trail.append_durable_or_later(refusal(n)).unwrap_err();
    }
    trail.append_durable(refusal(9)).unwrap_err();
    drop(trail);
    // A second one that cannot either.
    let trail = place.trail();
    trail.append_durable_or_later(refusal(5)).unwrap_err();
    drop(trail);
    lock.execute_batch("ROLLBACK").unwrap();
    let late = place.path().with_extension("db.late");
    let left = std::fs::read(&late).unwrap();
    for _ in 0..2 {
        place.trail().flush().unwrap();
        let entries = place.entries();
        assert_eq!(entries.iter().filter_map(number).collect::<Vec<_>>(), [0, 1, 2, 5]);
        let told: u64 = entries.iter().filter_map(|entry| entry.record.numbers.get("lost")).sum();
        assert_eq!((told, late.exists(), place.verify().faults), (2, false, Vec::new()));
        // As if its process had died before it could remove the file.
        std::fs::write(&late, &left).unwrap();
    }
    let entries = place.entries().len();
    assert_eq!(entries, 6, "and one of each outage");
    std::fs::write(&late, "nonsense").unwrap();
    place.trail().flush().unwrap();
    assert!(late.exists() && place.entries().len() == entries);
}

#[test]
fn a_process_that_ends_while_nothing_can_be_written_leaves_its_decisions_and_how_many_records_are_lost() {
    let place = Place::new();
    let trail = Trail::start(TrailOptions { waiting_max: 3, ..place.options() }).unwrap();
    trail.append_durable(refusal(0)).unwrap();
    let lock = Connection::open(place.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    trail.append_durable(Record::new(Kind::Override, "not done")).unwrap_err();
    for n in 1..6 {
        trail.append_durable_or_later(refusal(n)).unwrap_err();
    }
    trail.append_durable_or_later(Record::new(Kind::Override, "reset")).unwrap_err();
    let killed = place.copy();
    place.leave_no_room();
    drop(trail);
    // A second one that cannot write either.
    drop(place.trail());
    lock.execute_batch("ROLLBACK").unwrap();
    for (place, outages) in [(killed, &["lost"][..]), (place, &["lost", "interrupted"][..])] {
        let verified = place.verify();
        assert_eq!((verified.lost, verified.left, verified.left_lost), (0, 1 + outages.len() as u64, 5));
        let reserve = place.path().with_extension("db.reserve");
        let left = std::fs::read(&reserve).unwrap();
        for n in 1..3 {
            place.trail().append_durable(refusal(9)).unwrap();
            let mut entries = place.entries();
            let again = entries.split_off(entries.len() - n);
            assert!(again.iter().all(|entry| number(entry) == Some(9)), "{again:?}");
            let what: Vec<&str> = entries.iter().map(|entry| &*entry.record.what).collect();
            assert_eq!(what, [&["refused", "reset"], outages].concat());
            let verified = place.verify();
            assert_eq!((verified.lost, verified.left, verified.faults), (5, 0, Vec::new()));
            // As if its process had died before it could clear it.
            std::fs::write(&reserve, &left).unwrap();
        }
    }
}

#[test]
fn a_trail_that_cannot_be_opened_is_down_until_it_can() {
    let place = Place::new();
    let missing = place.path().with_file_name("missing").join("audit.db");
    let trail = Trail::start(TrailOptions::new(&missing)).unwrap();
    trail.append(refusal(1));
    assert!(trail.flush().is_err() && trail.is_down());
    std::fs::create_dir(missing.parent().unwrap()).unwrap();
    until("the trail is up", || !trail.is_down());
    let entries = Reader::open(&missing).unwrap().after(&Filter::default(), 0).unwrap();
    let what: Vec<&str> = entries.iter().map(|entry| &*entry.record.what).collect();
    assert_eq!(what, ["refused", "interrupted"]);
}

#[test]
fn a_database_of_somebody_else_is_left_alone() {
    let place = Place::new();
    let other = Connection::open(place.path()).unwrap();
    other.execute_batch("CREATE TABLE accounts (id INTEGER)").unwrap();
    drop(other);
    let before = std::fs::read(place.path()).unwrap();
    let error = place.trail().flush().unwrap_err().to_string();
    assert!(error.contains("is no audit trail that this version knows"), "{error}");
    assert!(Reader::open(&place.path()).is_err());
    assert!(std::fs::read(place.path()).unwrap() == before, "it was changed");
    let absent = Reader::open(Path::new("/nowhere/audit.db")).unwrap_err().to_string();
    assert_eq!(absent, "there is no audit trail at /nowhere/audit.db");
}

#[test]
fn a_trail_that_is_only_being_made_is_none_yet() {
    let place = Place::new();
    std::fs::write(place.path(), "").unwrap();
    let being_made = Reader::open(&place.path()).unwrap_err().to_string();
    assert!(being_made.starts_with("there is no audit trail at "), "{being_made}");
}

#[test]
fn one_process_writes_a_trail_and_another_waits_for_its_end() {
    let place = Place::new();
    let first = place.trail();
    first.append(refusal(0));
    first.flush().unwrap();
    let second = place.trail();
    let error = second.append_durable(refusal(1)).unwrap_err().to_string();
    assert!(error.contains("is written by another tidegate"), "{error}");
    second.append(refusal(2));
    drop(first);
    until("the second may write", || !second.is_down());
    second.flush().unwrap();
    assert_eq!(place.entries().iter().filter_map(number).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(place.verify().faults, []);
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let trail = place.trail();
    trail.append(refusal(1));
    trail.flush().unwrap();
    for file in std::fs::read_dir(place.path().parent().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}
