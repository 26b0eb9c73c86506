//! A record that is there but would not be found by who looks for it is a fault.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};

use rusqlite::Connection;
use tidegate_watch::audit::{Fault, Filter, Kind, Record};

use crate::support::{Place, number, refusal};

/// A trail of ten records and an override, nobody writing it.
fn eleven() -> Place {
    let place = Place::new();
    let trail = place.trail();
    (0..10).for_each(|n| trail.append(Record { user: Some("ada".into()), ..refusal(n) }));
    trail.append(Record::new(Kind::Override, "reset"));
    trail.flush().unwrap();
    place
}

fn tamper(place: &Place, statement: &str) {
    Connection::open(place.path()).unwrap().execute_batch(statement).unwrap();
}

/// Changes what the database says of itself; what is written anew is written so.
fn rewrite(place: &Place, change: &str, then: &str) {
    tamper(place, &format!("PRAGMA writable_schema = ON; {change}"));
    tamper(place, then);
}

fn faults(place: &Place) -> Vec<Fault> {
    place.verify().faults
}

/// How many of these records are found by their call.
fn found(place: &Place, numbers: std::ops::Range<u64>) -> usize {
    let reader = place.reader();
    let by_call = |n| Filter { call: Some(format!("c-{n}")), ..Filter::default() };
    let is_found = |n: &u64| {
        let page = reader.page(&by_call(*n), None);
        page.is_ok_and(|(page, _)| page.iter().filter_map(number).eq([*n]))
    };
    numbers.filter(is_found).count()
}

fn what(what: &str) -> String {
    what.to_owned()
}

#[test]
fn an_index_that_leaves_records_out_is_found() {
    let place = eleven();
    let condition = |from, to| format!("UPDATE sqlite_schema SET sql = replace(sql, '{from}', '{to}')");
    let (all, some) = ("call IS NOT NULL", "call IS NOT NULL AND call <> ''c-4''");
    rewrite(&place, &condition(all, some), "REINDEX by_call");
    assert_eq!(found(&place, 0..10), 0, "the index is not used");
    assert_eq!(faults(&place), [Fault::LayoutChanged { what: what("index \"by_call\"") }]);
    assert!(faults(&place)[0].to_string().contains("may hide records"), "{}", faults(&place)[0]);
    // As if nothing had happened, but for what is in it.
    rewrite(&place, &condition(some, all), "");
    assert_eq!(found(&place, 0..10), 9);
    let told: Vec<String> = faults(&place).iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|fault| fault.ends_with("row 5 missing from index by_call")), "{told:?}");
}

#[test]
fn an_index_of_other_columns_or_none_is_found() {
    for (name, columns) in [("by_time", "sequence"), ("by_user", "sequence >> 16, call"), ("by_rare_kind", "kind")] {
        let place = eleven();
        tamper(&place, &format!("DROP INDEX {name}"));
        let index = format!("index \"{name}\"");
        assert_eq!(faults(&place), [Fault::LayoutMissing { what: index.clone() }]);
        tamper(&place, &format!("CREATE INDEX {name} ON records ({columns})"));
        assert_eq!(faults(&place), [Fault::LayoutChanged { what: index }]);
    }
}

#[test]
fn what_was_put_beside_or_in_place_of_the_table_is_found() {
    for (statement, added) in [
        ("CREATE INDEX more ON records (hash)", "index \"more\""),
        ("CREATE TABLE more (n)", "table \"more\""),
        ("CREATE VIEW more AS SELECT 1", "view \"more\""),
        ("CREATE TRIGGER \"more\n\" BEFORE INSERT ON records BEGIN SELECT RAISE(IGNORE); END", "trigger \"more\\n\""),
    ] {
        let place = eleven();
        tamper(&place, statement);
        assert_eq!(faults(&place), [Fault::LayoutAdded { what: what(added) }]);
    }
    let place = eleven();
    tamper(
        &place,
        "ALTER TABLE records RENAME TO hidden; CREATE VIEW records AS SELECT * FROM hidden WHERE sequence <> 4",
    );
    let found = faults(&place);
    assert!(found.contains(&Fault::LayoutAdded { what: what("view \"records\"") }), "{found:?}");
    assert!(found.contains(&Fault::LayoutMissing { what: what("table \"records\"") }), "{found:?}");
}

/// Overwrites part of the page on which an index begins.
fn overwrite(place: &Place, index: &str, change: impl FnOnce(&mut [u8; 4096])) {
    let connection = Connection::open(place.path()).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let root: u64 = connection.query_row(root, [index], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap();
    drop(connection);
    let mut file = OpenOptions::new().read(true).write(true).open(place.path()).unwrap();
    let mut page = [0; 4096];
    file.seek(SeekFrom::Start((root - 1) * 4096)).unwrap();
    file.read_exact(&mut page).unwrap();
    change(&mut page);
    file.seek(SeekFrom::Start((root - 1) * 4096)).unwrap();
    file.write_all(&page).unwrap();
}

#[test]
fn an_index_that_was_overwritten_is_found_and_what_it_hides_is_named() {
    // How many entries are on the page. Source: the SQLite file format, 1.6, bytes 3 and 4 of a page.
    let place = eleven();
    overwrite(&place, "by_call", |page| page[3..5].copy_from_slice(&9_u16.to_be_bytes()));
    assert_eq!(found(&place, 0..10), 9);
    let told: Vec<String> = faults(&place).iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|fault| fault.ends_with("row 10 missing from index by_call")), "{told:?}");

    // Two entries in each other's place: all are there, and not all are found.
    let place = eleven();
    overwrite(&place, "by_call", |page| {
        let (first, last) = (8, 8 + 2 * 9);
        (0..2).for_each(|byte| page.swap(first + byte, last + byte));
    });
    assert!(found(&place, 0..10) < 10);
    assert!(matches!(faults(&place)[0], Fault::Disagreement { .. }), "{:?}", faults(&place));
}

#[test]
fn an_index_that_is_read_from_elsewhere_is_found() {
    let place = eleven();
    let root = |name| format!("(SELECT rootpage FROM before WHERE name = '{name}')");
    let exchanged = format!("iif(name = 'by_call', {}, {})", root("by_time"), root("by_call"));
    let change = format!(
        "CREATE TEMP TABLE before AS SELECT name, rootpage FROM sqlite_schema; UPDATE sqlite_schema SET rootpage = {exchanged} WHERE name IN ('by_call', 'by_time')"
    );
    rewrite(&place, &change, "");
    assert_eq!(found(&place, 0..10), 0);
    assert!(faults(&place).iter().any(|fault| matches!(fault, Fault::Disagreement { .. })), "{:?}", faults(&place));

    // From where another one is: SQLite reads nothing of it any more.
    let place = eleven();
    let root = "(SELECT rootpage FROM sqlite_schema WHERE name = 'by_time')";
    tamper(
        &place,
        &format!("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = {root} WHERE name = 'by_call'"),
    );
    let told = faults(&place)[0].to_string();
    assert!(told.contains("malformed database schema (by_call)"), "{told}");
}

#[test]
fn a_record_that_is_no_text_any_more_is_found_like_any_other() {
    let place = eleven();
    tamper(
        &place,
        "UPDATE records SET record = CAST(x'ff' || record AS TEXT), user = CAST(x'ff' AS TEXT) WHERE sequence = 5",
    );
    assert_eq!(faults(&place), [Fault::Relabelled { sequence: 5 }, Fault::Altered { sequence: 5 }]);
}

#[test]
fn records_that_cannot_be_read_are_told_with_those_that_can() {
    let place = Place::new();
    let trail = place.trail();
    (0..5000).for_each(|n| trail.append(refusal(n)));
    trail.flush().unwrap();
    drop(trail);
    // One page of the table in its last tenth: no page at all.
    let connection = Connection::open(place.path()).unwrap();
    let page = "SELECT max(pageno) FROM dbstat WHERE name = 'records' AND pagetype = 'leaf'";
    let page = connection.query_row(page, [], |row| row.get::<_, i64>(0));
    drop(connection);
    let page: u64 = page.unwrap().try_into().unwrap();
    let mut file = OpenOptions::new().write(true).open(place.path()).unwrap();
    file.seek(SeekFrom::Start((page - 1) * 4096)).unwrap();
    file.write_all(&[0xff; 4096]).unwrap();
    let verified = place.verify();
    let Some(Fault::Unreadable { first, last: Some(5000), .. }) = verified.faults.last() else {
        panic!("{:?}", verified.faults);
    };
    assert!(*first > 4000 && verified.records + 1 == *first, "{first} after {}", verified.records);
}

#[test]
fn a_trail_with_the_indexes_of_earlier_versions_is_whole_and_gets_those_of_this_one() {
    for (by_call, by_user) in [("call", "user, at"), ("sequence >> 16, call", "sequence >> 16, user, at")] {
        let place = eleven();
        let former = format!(
            "DROP INDEX by_call; CREATE INDEX by_call ON records ({by_call}) WHERE call IS NOT NULL;
             DROP INDEX by_user; CREATE INDEX by_user ON records ({by_user}) WHERE user IS NOT NULL"
        );
        tamper(&place, &former);
        assert_eq!((faults(&place), found(&place, 0..10)), (vec![], 10), "{by_call}");
        place.trail().flush().unwrap();
        let (connection, mut made) = (Connection::open(place.path()).unwrap(), Vec::new());
        let mut indexes =
            connection.prepare("SELECT sql FROM sqlite_schema WHERE name IN ('by_call', 'by_user')").unwrap();
        made.extend(indexes.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
        assert!(made.len() == 2 && made.iter().all(|index| index.contains("(sequence >> 12, ")), "{made:?}");
        assert_eq!((faults(&place), found(&place, 0..10)), (vec![], 10), "{by_call}");
    }
}
