//! Standard output that nobody reads any more, as behind `| head`.

use std::io;

use crate::gateway::SIM;
use crate::process::{Ended, Place};

/// What it says and how it ends where the other end of its standard output is closed.
fn unread(place: &Place, args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let ended = place.command(args).stdout(writer).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn what_looks_at_something_ends_as_if_it_had_been_read() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nrequests_per_minute = 1\n");
    place.file("wrong.toml", "[limit.team]\nrequests = 1\n");
    place.file("in.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}\n");
    assert_eq!(place.run(&["key", "new", "first"]).code, Some(0));
    let offline = [
        (&["key", "list"][..], 0),
        (&["key", "revoke", "first"], 0),
        (&["check", "tidegate.toml"], 0),
        (&["check", "wrong.toml"], 2),
        (&["audit", "verify"], 0),
        (&["audit", "query"], 0),
        (&["run", "--dry-run", "--model", "gpt-4o-mini", "in.jsonl"], 0),
        (&["plan", "--model", "gpt-4o-mini", "in.jsonl"], 0),
    ];
    for (args, code) in offline {
        let (ended, said) = unread(&place, args);
        assert!(ended == Some(code) && !said.contains("standard output"), "{args:?}: {ended:?} {said}");
    }
    let _gateway = place.start(&SIM);
    for args in [&["admin", "status"][..], &["admin", "limits", "--json"], &["admin", "pause"], &["key", "list"]] {
        assert_eq!(unread(&place, args), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn what_is_told_only_once_has_to_be_read() {
    let place = Place::new();
    for args in [&["key", "new", "first"][..], &SIM] {
        let (code, said) = unread(&place, args);
        assert!(code == Some(1) && said.contains("cannot write to standard output"), "{args:?}: {code:?} {said}");
    }
    let Ended { stdout, .. } = place.run(&["key", "list"]);
    assert!(stdout.starts_with("first  "), "it is there, to be revoked: {stdout}");
}
