//! Operating a gateway from the command line of the same machine.

use serde_json::Value;

use crate::process::{Ended, Place, Running, chat};

const SIM: [&str; 6] = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

fn ok(place: &Place, args: &[&str]) -> String {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended.stdout.trim_end().to_owned()
}

fn fails(place: &Place, args: &[&str], code: i32, why: &str) -> Ended {
    let ended = place.run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    assert!(ended.stderr.contains(why), "{args:?}: {}", ended.stderr);
    ended
}

fn call(gateway: &Running) -> u16 {
    chat(&gateway.announced("api"), &["authorization: Bearer tidegate", "x-tidegate-max-wait: 10ms"]).0
}

#[test]
fn the_running_gateway_and_its_token_are_found_and_what_is_said_takes_effect() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nper = [\"model\"]\nrequests_per_day = 2\n");
    let gateway = place.start(&SIM);
    assert_eq!((call(&gateway), call(&gateway), call(&gateway)), (200, 200, 429));
    let status = ok(&place, &["admin", "status"]);
    assert!(status.contains("LIMIT  WHOSE        OF WHAT           USED   LEFT"), "{status}");
    assert!(status.contains("team   gpt-4o-mini  requests_per_day  100 %  0 of 2"), "{status}");
    assert!(status.contains("sim/gpt-4o-mini  closed"), "{status}");
    assert!(status.contains("waiting 0, in flight 0"), "{status}");
    ok(&place, &["admin", "limits", "boost", "team", "--factor", "1.5", "--for", "10m", "--match", "model=gpt*"]);
    assert_eq!((call(&gateway), call(&gateway)), (200, 429));
    assert!(ok(&place, &["admin", "limits"]).contains("× 1.5 for "), "it says for how long yet");
    assert_eq!(ok(&place, &["admin", "limits", "reset", "team", "--reason", "a new day"]), "reset of a limit: done");
    assert_eq!(call(&gateway), 200);
    let forced = ok(&place, &["admin", "breaker", "force-open", "sim/gpt-4o-mini", "--reason", "maintenance"]);
    assert_eq!(forced, "force-open: forced_open (before: closed)");
    assert_eq!(call(&gateway), 503);
    let listed = ok(&place, &["admin", "breaker"]);
    assert!(
        listed.contains("forced_open") && listed.contains("by local at ") && listed.ends_with(": maintenance"),
        "{listed}"
    );
    ok(&place, &["admin", "breaker", "sim/gpt-4o-mini", "reset"]);
    assert_eq!(ok(&place, &["admin", "pause"]), "pause: paused (before: running)");
    assert_eq!(call(&gateway), 503);
    ok(&place, &["admin", "resume"]);
    let told: Value = serde_json::from_str(&ok(&place, &["admin", "status", "--json"])).unwrap();
    assert!(told["paused"].is_null() && told["breakers"][0]["state"] == "closed", "{told}");
    place.file("tidegate.toml", "");
    ok(&place, &["admin", "reload"]);
    assert_eq!((call(&gateway), call(&gateway)), (200, 200));
    let trail = ok(&place, &["audit", "query", "--kind", "override"]);
    assert!(trail.contains("override force-open") && trail.contains("who=local why=maintenance"), "{trail}");
}

#[test]
fn it_is_said_that_no_gateway_runs_that_a_token_is_wrong_and_that_a_role_is_too_little() {
    let place = Place::new();
    fails(&place, &["admin", "status"], 1, "no gateway is running with its state in");
    for one in ["http://127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1/", "http://127.0.0.1:1/"] {
        fails(&place, &["admin", "status", "--admin", one], 1, "no token for http://127.0.0.1:1: ");
    }
    let nobody = ["admin", "status", "--admin", "http://127.0.0.1:1", "--token", "x"];
    fails(&place, &nobody, 1, "http://127.0.0.1:1 does not answer");
    // SHA-256 of "foo".
    let foo = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    place.file("tidegate.toml", &format!("[[admin]]\nname = \"anna\"\nsha256 = \"{foo}\"\n"));
    let _gateway = place.start(&SIM);
    fails(&place, &["admin", "status", "--token", "bar"], 1, "does not know this token");
    ok(&place, &["admin", "status", "--token", "foo"]);
    fails(&place, &["admin", "pause", "--token", "foo"], 1, "\"anna\" has the role viewer; this wants operator");
    fails(&place, &["admin", "breaker", "close", "x"], 2, "write one of force-open, force-half-open");
    fails(&place, &["admin", "breaker", "reset", "x"], 1, "no breaker \"x\"; there is none yet");
}

#[test]
fn a_key_is_made_listed_and_revoked_while_a_gateway_runs_and_while_none_does() {
    let place = Place::new();
    let made = ok(&place, &["key", "new", "first", "--organization", "acme"]);
    assert!(made.starts_with("tg-") && made.lines().count() == 1, "{made}");
    fails(&place, &["key", "new", "first"], 1, "there is a key \"first\" already");
    fails(&place, &["key", "revoke", "other"], 1, "no key \"other\"");
    let gateway = place.start(&SIM);
    assert_eq!(gateway.announced("auth"), "keys");
    let let_in =
        |gateway: &Running, key: &str| chat(&gateway.announced("api"), &[&format!("authorization: Bearer {key}")]).0;
    assert_eq!((let_in(&gateway, &made), let_in(&gateway, "tidegate")), (200, 401));
    let second = ok(&place, &["key", "new", "second", "--reason", "they asked"]);
    assert_eq!(let_in(&gateway, &second), 200);
    let listed = ok(&place, &["key", "list"]);
    assert!(listed.contains("first  organization=acme") && listed.contains("second  "), "{listed}");
    assert!(!listed.contains("tg-"), "{listed}");
    ok(&place, &["key", "revoke", "first"]);
    assert_eq!((let_in(&gateway, &made), let_in(&gateway, &second)), (401, 200));
    drop(gateway);
    ok(&place, &["key", "revoke", "second", "--reason", "it leaked"]);
    assert_eq!(ok(&place, &["key", "list"]), "");
    let trail = ok(&place, &["audit", "query", "--kind", "key"]);
    let told: Vec<&str> = trail.lines().map(|line| line.split_once(" key ").unwrap().1).collect();
    assert_eq!(told.len(), 4, "{trail}");
    assert!(told[3].contains("revoked") && told[3].contains("it leaked"), "{trail}");
    assert!(ok(&place, &["audit", "verify"]).contains("ok: "));
    let gateway = place.start(&SIM);
    assert_eq!(
        (let_in(&gateway, &second), let_in(&gateway, "tidegate")),
        (401, 401),
        "without a key left nobody is let in"
    );
}

#[test]
fn what_was_said_is_in_force_and_in_the_trail_after_a_kill_at_once() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nrequests_per_day = 1\n");
    let gateway = place.start(&SIM);
    assert_eq!((call(&gateway), call(&gateway)), (200, 429));
    ok(&place, &["admin", "limits", "reset"]);
    ok(&place, &["admin", "limits", "boost", "team", "--factor", "3", "--for", "1h"]);
    ok(&place, &["admin", "pause", "--reason", "a test"]);
    drop(gateway);
    let gateway = place.start(&SIM);
    assert_eq!(call(&gateway), 503);
    ok(&place, &["admin", "resume"]);
    // What had gone by the minute at the simulator nobody knows after a kill: it flows in first.
    let patient = ["authorization: Bearer tidegate", "x-tidegate-max-wait: 20s"];
    assert_eq!([(); 4].map(|()| chat(&gateway.announced("api"), &patient).0), [200, 200, 200, 429]);
    let trail = ok(&place, &["audit", "query", "--kind", "override"]);
    for said in ["reset of all limits", "boost limit=team", "pause who=local", "resume who=local"] {
        assert!(trail.contains(said), "{said}: {trail}");
    }
    assert!(ok(&place, &["audit", "verify"]).contains("ok: "));
}

#[test]
fn a_boost_that_ends_while_no_gateway_runs_is_told_of_once_at_the_next_start() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nper = [\"model\"]\nrequests_per_day = 2\n");
    let gateway = place.start(&SIM);
    ok(&place, &["admin", "limits", "boost", "team", "--factor", "2", "--for", "1h", "--match", "model=gpt-4o"]);
    ok(&place, &["admin", "limits", "boost", "team", "--factor", "3", "--for", "2h"]);
    drop(gateway);
    // Its hour has passed.
    let kept = place.path().join(".local/state/tidegate/overrides.json");
    let boosts = || serde_json::from_slice::<Value>(&std::fs::read(&kept).unwrap()).unwrap();
    let mut past = boosts();
    past["boosts"][0]["until_micros"] = 1_700_000_000_000_000_u64.into();
    past["boosts"][0]["until"] = "2023-11-14T22:13:20.000Z".into();
    std::fs::write(&kept, past.to_string()).unwrap();
    let mut gateway = place.start(&SIM);
    gateway.logs("boost ended at 2023-11-14T22:13:20.000Z, while no gateway ran");
    let status: Value = serde_json::from_str(&ok(&place, &["admin", "status", "--json"])).unwrap();
    let in_force = &status["overrides"]["boosts"];
    assert!(in_force.as_array().unwrap().len() == 1 && in_force[0]["factor"] == 3.0, "{in_force}");
    // It is written once it has been told of; a change afterwards waits for that.
    ok(&place, &["admin", "pause"]);
    assert_eq!(boosts()["boosts"].as_array().unwrap().len(), 1);
    drop(gateway);
    let gateway = place.start(&SIM);
    ok(&place, &["admin", "resume"]);
    let trail = ok(&place, &["audit", "query", "--kind", "override"]);
    let ends: Vec<&str> = trail.lines().filter(|line| line.contains("boost ended")).collect();
    assert_eq!(ends.len(), 1, "{trail}");
    for said in ["limit=team", "× 2 for model gpt-4o until 2023-11-14T22:13:20.000Z", "while no gateway ran"] {
        assert!(ends[0].contains(said), "{}", ends[0]);
    }
    drop(gateway);
}

#[cfg(unix)]
#[test]
fn what_is_kept_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    ok(&place, &["key", "new", "first"]);
    let gateway = place.start(&SIM);
    ok(&place, &["admin", "pause"]);
    drop(gateway);
    let dir = place.path().join(".local/state/tidegate");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let mut names = Vec::new();
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    for name in ["admin-token", "admin-address", "keys.json", "overrides.json", "audit.db"] {
        assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
    }
}
