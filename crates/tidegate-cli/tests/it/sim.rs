use std::net::TcpListener;

use crate::process::{Place, chat, http};

#[test]
fn it_announces_the_port_it_picked_and_answers_there() {
    let place = Place::new();
    let mut sim = place.start(&["sim", "--listen", "127.0.0.1:0", "--speed", "1000", "--request-log", "log.jsonl"]);
    assert!(sim.ready.starts_with("tidegate sim ready api=http://127.0.0.1:"), "{}", sim.ready);
    let api = sim.announced("api");
    let (status, models) = http("GET", &format!("{api}/models"), &["authorization: Bearer any"], "");
    assert!(status == 200 && models.contains("gpt-4o"), "{models}");
    let (status, reply) = chat(&api, &["authorization: Bearer any"]);
    assert!(status == 200 && reply.contains("chat.completion"), "{reply}");

    sim.signal("TERM");
    assert_eq!(sim.end().code, Some(0));
    let log = std::fs::read_to_string(place.path().join("log.jsonl")).unwrap();
    assert!(log.lines().any(|line| line.contains("chat/completions")), "{log}");
}

#[test]
fn a_taken_port_says_which_to_try() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let place = Place::new();
    let ended = place.run(&["sim", "--listen", &addr.to_string()]);
    assert_eq!(ended.code, Some(1));
    let expected = format!("{addr} is in use; try --listen 127.0.0.1:");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
}

#[test]
fn a_scenario_that_is_none_says_where() {
    let place = Place::new();
    place.file("bad.toml", "\nnonsense = [");
    let ended = place.run(&["sim", "--scenario", "bad.toml", "--listen", "127.0.0.1:0"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("bad.toml:2:"), "{}", ended.stderr);
}

#[test]
fn a_request_log_that_cannot_be_written_is_told_as_such() {
    let place = Place::new();
    let ended = place.run(&["sim", "--request-log", "no/such/dir.jsonl", "--listen", "127.0.0.1:0"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("cannot write no/such/dir.jsonl"), "{}", ended.stderr);
}
