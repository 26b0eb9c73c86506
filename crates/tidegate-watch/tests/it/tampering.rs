//! Whatever is changed behind the trail's back is found, and which record it was.

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};
use tidegate_watch::audit::{Fault, Hash, Verified};

use crate::support::{Place, refusal};

/// A trail of ten records, nobody writing it.
fn ten() -> Place {
    let place = Place::new();
    add(&place, 0..10);
    place
}

/// Writes records as the gateway does, from its start to its end.
fn add(place: &Place, numbers: std::ops::Range<u64>) {
    let trail = place.trail();
    numbers.for_each(|n| trail.append(refusal(n)));
    trail.flush().unwrap();
}

fn tamper(place: &Place, statement: &str) {
    Connection::open(place.path()).unwrap().execute_batch(statement).unwrap();
}

fn verify(place: &Place) -> Verified {
    place.verify()
}

fn faults(place: &Place) -> Vec<Fault> {
    verify(place).faults
}

/// Gives every record from `first` on the hash that its text and the record before it call for.
fn hash_anew(place: &Place, first: u64) {
    let connection = Connection::open(place.path()).unwrap();
    let entries = place.entries();
    let mut before = if first == 1 { Hash::ORIGIN } else { entries[first as usize - 2].hash };
    for entry in &entries[first as usize - 1..] {
        before = before.after(&entry.text);
        let change = params![before.as_bytes(), entry.sequence as i64];
        connection.execute("UPDATE records SET hash = ?1 WHERE sequence = ?2", change).unwrap();
    }
}

#[test]
fn what_nobody_touched_holds_together() {
    let place = ten();
    let verified = verify(&place);
    assert_eq!((verified.records, verified.first, verified.fault_count), (10, 1, 0), "{verified:?}");
    assert_eq!((verified.end.sequence, verified.end.hash), (10, place.entries()[9].hash));
    assert_eq!((verified.uncovered, verified.lost), (0, 0));
    add(&place, 10..20);
    assert_eq!((verify(&place).records, verify(&place).fault_count), (20, 0));
    assert_eq!(verify(&empty()).fault_count, 0);
}

fn empty() -> Place {
    let place = Place::new();
    add(&place, 0..0);
    place
}

#[test]
fn the_chain_can_be_followed_without_tidegate() {
    let mut hash = [0; 32];
    for entry in ten().entries() {
        hash = Sha256::digest([&hash[..], entry.text.as_bytes()].concat()).into();
        assert_eq!(&hash, entry.hash.as_bytes());
    }
}

#[test]
fn an_edited_record_is_found() {
    let place = ten();
    tamper(&place, "UPDATE records SET record = replace(record, 'refused', 'granted') WHERE sequence = 5");
    assert_eq!(faults(&place), [Fault::Altered { sequence: 5 }]);
    let place = ten();
    tamper(&place, "UPDATE records SET hash = zeroblob(32) WHERE sequence = 5");
    assert_eq!(faults(&place), [Fault::Altered { sequence: 5 }]);
    let place = ten();
    tamper(&place, "UPDATE records SET hash = x'00' WHERE sequence = 10");
    assert!(faults(&place).contains(&Fault::Altered { sequence: 10 }), "{:?}", faults(&place));
}

#[test]
fn an_edited_record_with_a_new_hash_is_found_at_the_one_after_it_or_at_the_head() {
    let place = ten();
    let edit = |n| format!("UPDATE records SET record = replace(record, 'refused', 'granted') WHERE sequence = {n}");
    tamper(&place, &edit(5));
    let (before, text) = (place.entries()[3].hash, place.entries()[4].text.clone());
    let connection = Connection::open(place.path()).unwrap();
    connection
        .execute("UPDATE records SET hash = ?1 WHERE sequence = 5", params![before.after(&text).as_bytes()])
        .unwrap();
    assert_eq!(faults(&place), [Fault::Altered { sequence: 6 }]);
    let said = faults(&place)[0].to_string();
    assert!(said.contains("or record 5 was and got a new hash"), "{said}");

    let place = ten();
    tamper(&place, &edit(5));
    hash_anew(&place, 5);
    assert_eq!(faults(&place), [Fault::HeadElsewhere { sequence: 10 }]);
}

#[test]
fn a_record_that_is_filed_under_something_else_is_found() {
    for column in ["user", "call", "kind"] {
        let place = ten();
        tamper(&place, &format!("UPDATE records SET {column} = 'other' WHERE sequence = 4"));
        assert_eq!(faults(&place), [Fault::Relabelled { sequence: 4 }], "{column}");
    }
    let place = ten();
    tamper(&place, "UPDATE records SET at = at + 1 WHERE sequence = 4");
    assert_eq!(faults(&place), [Fault::Relabelled { sequence: 4 }]);
}

#[test]
fn a_removed_record_is_found() {
    let place = ten();
    tamper(&place, "DELETE FROM records WHERE sequence = 5");
    assert_eq!(faults(&place), [Fault::Missing { first: 5, last: 5 }]);
    let place = ten();
    tamper(&place, "DELETE FROM records WHERE sequence <= 3");
    assert_eq!(faults(&place), [Fault::Missing { first: 1, last: 3 }]);
    let place = ten();
    tamper(
        &place,
        "DELETE FROM records WHERE sequence = 5; UPDATE records SET sequence = sequence - 1 WHERE sequence > 5",
    );
    let found = faults(&place);
    assert_eq!(found, [Fault::Altered { sequence: 5 }, Fault::Missing { first: 10, last: 10 }]);
}

#[test]
fn a_record_that_was_put_before_the_beginning_of_the_chain_is_found() {
    let place = ten();
    for sequence in [0, -3] {
        tamper(
            &place,
            &format!(
                "INSERT INTO records SELECT {sequence}, at, kind, user, call, record, hash FROM records WHERE sequence = 4"
            ),
        );
    }
    let found = faults(&place);
    assert_eq!(found, [Fault::Stray { sequence: -3, after: 0 }, Fault::Stray { sequence: 0, after: 0 }]);
    assert_eq!(found[0].to_string(), "record -3 was put there: the chain begins after record 0");
    add(&place, 10..12);
    assert_eq!(faults(&place), found, "what is written later covers nothing up");
}

#[test]
fn records_in_another_order_are_found() {
    let place = ten();
    tamper(
        &place,
        "UPDATE records SET sequence = -3 WHERE sequence = 3; UPDATE records SET sequence = 3 WHERE sequence = 4;
         UPDATE records SET sequence = 4 WHERE sequence = -3",
    );
    let found = faults(&place);
    assert_eq!(
        found,
        [
            Fault::Misplaced { sequence: 3, after: 4 },
            Fault::Misplaced { sequence: 4, after: 2 },
            Fault::Misplaced { sequence: 5, after: 3 },
        ]
    );
}

#[test]
fn a_chain_that_was_cut_short_is_found_also_once_it_has_gone_on() {
    let place = ten();
    tamper(&place, "DELETE FROM records WHERE sequence > 7");
    assert_eq!(faults(&place), [Fault::Missing { first: 8, last: 10 }]);
    add(&place, 10..12);
    assert_eq!(faults(&place), [Fault::Missing { first: 8, last: 10 }], "what is written later covers nothing up");
    let told = place.entries()[7].record.why.clone().unwrap();
    assert!(told.contains("records were removed"), "{told}");

    let place = ten();
    tamper(&place, "DELETE FROM records");
    assert_eq!(faults(&place), [Fault::Missing { first: 1, last: 10 }]);
    add(&place, 10..12);
    assert_eq!(faults(&place), [Fault::Missing { first: 1, last: 10 }]);
}

#[test]
fn a_database_that_was_taken_away_emptied_or_replaced_is_found_by_the_head_that_is_left() {
    let missing = Fault::Missing { first: 1, last: 10 };
    let gone = |found: &str| format!("{found}; the head beside it tells of 10 records");
    let said = |place: &Place| {
        let found = faults(place);
        assert_eq!((found.len(), found.last()), (2, Some(&missing)), "{found:?}");
        found[0].to_string()
    };
    let place = ten();
    std::fs::remove_file(place.path()).unwrap();
    assert_eq!(said(&place), gone("the database is not there"));
    std::fs::write(place.path(), "").unwrap();
    assert_eq!(said(&place), gone("the database is empty: it was cut off"));
    let replaced = gone("the database is no audit trail: it was replaced, or its beginning was overwritten");
    std::fs::write(place.path(), [0x5a; 8192]).unwrap();
    assert_eq!(said(&place), replaced);
    std::fs::remove_file(place.path()).unwrap();
    tamper(&place, "CREATE TABLE accounts (id INTEGER)");
    assert_eq!(said(&place), replaced);
    std::fs::remove_file(place.path()).unwrap();
    add(&place, 0..3);
    assert_eq!(faults(&place), [missing], "what is written later covers nothing up");

    let place = ten();
    std::fs::remove_file(place.path()).unwrap();
    std::fs::write(place.head_path(), "{}").unwrap();
    let found = faults(&place);
    let gone = Fault::DatabaseGone { found: "the database is not there", told: None };
    assert_eq!(found, [gone, Fault::HeadUnreadable]);
    let place = empty();
    std::fs::remove_file(place.path()).unwrap();
    assert_eq!(faults(&place), [Fault::DatabaseGone { found: "the database is not there", told: Some(0) }]);
}

#[test]
fn a_table_that_was_dropped_or_renamed_is_found_with_its_records() {
    for statement in ["DROP TABLE records", "ALTER TABLE records RENAME TO others"] {
        let place = ten();
        tamper(&place, statement);
        let found = faults(&place);
        assert!(found.contains(&Fault::LayoutMissing { what: "table \"records\"".to_owned() }), "{found:?}");
        assert!(matches!(found.last(), Some(Fault::Unreadable { first: 1, last: Some(10), .. })), "{found:?}");
    }
}

/// A database of which only the beginning is left; the log beside it is not there any more.
#[test]
fn a_database_that_was_cut_off_is_found_with_the_records_that_cannot_be_read() {
    let place = Place::new();
    add(&place, 0..5000);
    let length = std::fs::metadata(place.path()).unwrap().len();
    for left in [length * 9 / 10, length / 2, 4096, 100] {
        std::fs::OpenOptions::new().write(true).open(place.path()).unwrap().set_len(left).unwrap();
        let found = faults(&place);
        let (first, last) = match found.last() {
            Some(Fault::Unreadable { first, last: Some(last), .. } | Fault::Missing { first, last }) => (*first, *last),
            _ => panic!("{left}: {found:?}"),
        };
        assert!(last == 5000 && first <= 5000, "{left}: {found:?}");
        assert!(left < length / 2 || first > 1000, "{left}: what can be read is: {found:?}");
    }
}

#[test]
fn a_head_that_was_replaced_or_removed_is_found_also_once_the_chain_has_gone_on() {
    let place = ten();
    let head = place.head_path();
    std::fs::copy(ten().head_path(), &head).unwrap();
    assert_eq!(faults(&place), [Fault::HeadElsewhere { sequence: 10 }]);
    add(&place, 10..12);
    assert_eq!(faults(&place), [Fault::Altered { sequence: 11 }]);

    let place = ten();
    let head = place.head_path();
    std::fs::write(&head, "{}").unwrap();
    assert_eq!(faults(&place), [Fault::HeadUnreadable]);
    std::fs::remove_file(&head).unwrap();
    assert_eq!(faults(&place), [Fault::HeadAbsent]);
    add(&place, 10..12);
    let told = place.entries()[10].record.why.clone().unwrap();
    assert_eq!(&*told, "the head beside the database was missing at the start");
    let found = verify(&place);
    assert!(found.faults.is_empty() && !found.is_proven(), "its new head covers what was left: {found:?}");
    assert_eq!(found.breaks, [(11, told)]);
}

#[test]
fn a_chain_that_was_edited_and_hashed_anew_stays_found_once_it_has_gone_on() {
    let place = ten();
    tamper(&place, "UPDATE records SET record = replace(record, 'refused', 'granted') WHERE sequence = 5");
    hash_anew(&place, 5);
    add(&place, 10..12);
    assert_eq!(faults(&place), [Fault::Altered { sequence: 11 }]);
}
