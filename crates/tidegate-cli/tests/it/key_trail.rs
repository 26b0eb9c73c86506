//! A key that is made or revoked while no gateway runs and somebody has locked the audit trail.

use rusqlite::Connection;

use crate::process::{Ended, Place, Running};

/// Where a key's changes are recorded, with a first one.
fn place(on_failure: &str) -> (Place, Connection) {
    let place = Place::new();
    place.file("tidegate.toml", &format!("[audit]\non_failure = \"{on_failure}\"\n"));
    assert_eq!(place.run(&["key", "new", "first"]).code, Some(0));
    let lock = Connection::open(place.path().join(".local/state/tidegate/audit.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    (place, lock)
}

fn recorded(place: &Place) -> Vec<String> {
    let told = place.run(&["audit", "query", "--kind", "key"]).stdout;
    told.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn late(place: &Place) -> bool {
    place.path().join(".local/state/tidegate/audit.db.late").exists()
}

const FIRST: &str = "key created who=local after=first";
const SECOND: &str = "key created who=local why=\"a test\" after=second";

#[test]
fn a_key_that_is_made_while_the_trail_is_locked_is_told_of_and_recorded_at_the_next_start() {
    let (place, lock) = place("continue");
    let Ended { code, stdout, stderr } = place.run(&["key", "new", "second", "--reason", "a test"]);
    assert!(code == Some(0) && stdout.starts_with("tg-"), "{stdout}{stderr}");
    assert!(stderr.contains("takes effect before it is in the audit trail: "), "{stderr}");
    assert!(stderr.contains("audit.db.late, and whoever writes it next adds them: 1"), "{stderr}");
    let revoked = place.run(&["key", "revoke", "first"]);
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    assert_eq!((recorded(&place), late(&place)), (vec![FIRST.to_owned()], true));
    lock.execute_batch("ROLLBACK").unwrap();
    for _ in 0..2 {
        let serve = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut gateway = place.start(&serve);
        gateway.signal("TERM");
        assert_eq!(gateway.end().code, Some(0));
        assert_eq!(recorded(&place), [FIRST, SECOND, "key revoked who=local before=first"]);
        assert!(!late(&place));
    }
    assert_eq!(place.run(&["audit", "verify"]).code, Some(0));
}

#[test]
fn a_locked_trail_is_waited_for() {
    let (place, lock) = place("continue");
    let mut made = Running::spawn(place.command(&["key", "new", "second", "--reason", "a test"]));
    made.logs("trying on");
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(made.end().code, Some(0));
    assert_eq!((recorded(&place), late(&place)), (vec![FIRST.to_owned(), SECOND.to_owned()], false));
}

#[test]
fn where_nothing_may_happen_without_a_record_no_key_is_made() {
    let (place, lock) = place("refuse");
    let refused = place.run(&["key", "new", "second"]);
    assert_eq!((refused.code, &*refused.stdout), (Some(1), ""), "{refused:?}");
    assert!(refused.stderr.contains("nothing has changed"), "{}", refused.stderr);
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!((recorded(&place), late(&place)), (vec![FIRST.to_owned()], false));
    assert!(!place.run(&["key", "list"]).stdout.contains("second"));
}
