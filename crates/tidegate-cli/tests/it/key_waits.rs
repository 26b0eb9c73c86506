//! A key that is made while somebody else has the state directory, who cannot be asked.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;

use crate::process::{Place, Running};

const STATE: &str = ".local/state/tidegate";

/// A state directory that this process has, as another tidegate would.
fn held() -> (Place, PathBuf, File) {
    let place = Place::new();
    let dir = place.path().join(STATE);
    let lock = File::create(place.file(&format!("{STATE}/lock"), "")).unwrap();
    lock.try_lock().unwrap();
    (place, dir, lock)
}

#[test]
fn of_many_at_once_each_makes_its_key() {
    let place = Place::new();
    // What a gateway that was killed left behind, and nobody listens there any more.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.file(&format!("{STATE}/admin-address"), &nobody.to_string());
    let names: Vec<String> = (0..10).map(|number| format!("key-{number}")).collect();
    let runs: Vec<Running> = names.iter().map(|name| Running::spawn(place.command(&["key", "new", name]))).collect();
    for mut run in runs {
        let ended = run.end();
        assert!(ended.code == Some(0) && ended.stdout.starts_with("tg-"), "{ended:?}");
    }
    let listed = place.run(&["key", "list"]).stdout;
    let mut made: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    made.sort_unstable();
    assert_eq!(made, names);
    assert_eq!(place.run(&["audit", "verify"]).code, Some(0));
}

#[test]
fn it_is_made_once_the_other_is_done() {
    let (place, _, lock) = held();
    let mut run = Running::spawn(place.command(&["key", "new", "first"]));
    run.logs("is in use by another tidegate; waiting for it");
    drop(lock);
    let ended = run.end();
    assert!(ended.code == Some(0) && ended.stdout.starts_with("tg-"), "{ended:?}");
}

#[test]
fn it_is_made_through_a_gateway_that_has_started_meanwhile() {
    let (place, dir, _lock) = held();
    let elsewhere = Place::new();
    let gateway = elsewhere.start(&["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut run = Running::spawn(place.command(&["key", "new", "first"]));
    run.logs("waiting for it");
    fs::copy(elsewhere.path().join(STATE).join("admin-token"), dir.join("admin-token")).unwrap();
    fs::write(dir.join("admin-address"), gateway.announced("admin").trim_start_matches("http://")).unwrap();
    assert_eq!(run.end().code, Some(0));
    assert!(elsewhere.run(&["key", "list"]).stdout.starts_with("first  "));
}

#[test]
fn who_may_have_it_is_said_once_it_has_taken_too_long() {
    let (place, _, _lock) = held();
    let runs = [&["key", "list"][..], &["admin", "status"]].map(|args| Running::spawn(place.command(args)));
    for mut run in runs {
        let ended = run.end();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(!ended.stderr.contains("chmod"), "that is whose it is to be told: {ended:?}");
        for hint in ["a tidegate key or run at work, or a gateway that is still starting", "--admin URL"] {
            assert!(ended.stderr.contains(hint), "{ended:?}");
        }
    }
}
