use std::net::TcpListener;

use crate::held_stream::HeldStream;
use crate::process::{Ended, Place, Running, chat, http};

/// Free ports for both listeners, and the simulator as the upstream.
pub(crate) const SIM: [&str; 6] = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

/// SHA-256 of "foo".
const FOO: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SIM.iter().copied().chain(more.iter().copied()).collect()
}

pub(crate) fn stop(mut running: Running) -> Ended {
    running.signal("TERM");
    running.end()
}

#[test]
fn with_the_simulator_behind_it_one_line_says_ready_and_a_call_goes_through() {
    let place = Place::new();
    let gateway = place.start(&SIM);
    assert!(gateway.ready.starts_with("tidegate ready api=http://127.0.0.1:"), "{}", gateway.ready);
    assert_eq!(gateway.announced("auth"), "upstream");
    let (status, reply) = chat(&gateway.announced("api"), &["authorization: Bearer tidegate"]);
    assert!(status == 200 && reply.contains("chat.completion"), "{reply}");
    assert!(reply.to_lowercase().contains("x-tidegate-id: "), "{reply}");
    let (status, _) = http("GET", &format!("{}/healthz", gateway.announced("admin")), &[], "");
    assert_eq!(status, 200);
    let ended = stop(gateway);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "results alone go to standard output");
}

#[test]
fn a_taken_port_says_which_to_try() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let place = Place::new();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let ended = place.run(&["serve", "--sim", flag, &addr.to_string(), other, "127.0.0.1:0"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{addr} is in use; try {flag} 127.0.0.1:")), "{}", ended.stderr);
    }
}

#[test]
fn the_configuration_in_the_working_directory_goes_before_the_users() {
    let place = Place::new();
    place.file(".config/tidegate/tidegate.toml", "[queue]\nmax_wait = \"1s\"\n");
    let ended = stop(place.start(&SIM));
    assert!(
        ended.stderr.contains("configuration read from") && ended.stderr.contains(".config/tidegate/tidegate.toml")
    );

    place.file("tidegate.toml", "");
    let mut command = place.command(&SIM);
    let ended = stop(Running::start({
        command.env("TIDEGATE__QUEUE__MAX_WAIT", "2s");
        command
    }));
    let expected = "configuration read from tidegate.toml, then the environment: TIDEGATE__QUEUE__MAX_WAIT";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
}

#[test]
fn an_operator_may_open_the_listener_to_everybody() {
    let place = Place::new();
    let args = ["serve", "--sim", "--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0"];
    let allowed: Vec<_> = args.into_iter().chain(["--allow-anonymous"]).collect();
    assert_eq!(stop(place.start(&allowed)).code, Some(0));
}

#[test]
fn only_a_configured_key_is_let_in() {
    let place = Place::new();
    place.file("tidegate.toml", &format!("[[key]]\nname = \"k\"\nsha256 = \"{FOO}\"\n"));
    let gateway = place.start(&SIM);
    assert_eq!(gateway.announced("auth"), "keys");
    let api = gateway.announced("api");
    assert_eq!(chat(&api, &["authorization: Bearer bar"]).0, 401);
    assert_eq!(chat(&api, &["authorization: Bearer foo"]).0, 200);
}

#[test]
fn a_second_process_on_the_same_state_directory_is_refused_if_it_was_named() {
    let place = Place::new();
    let first = place.start(&with(&["--state-dir", "state"]));
    let ended = place.run(&with(&["--state-dir", "state"]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("state is in use by another tidegate"), "{}", ended.stderr);
    assert_eq!(stop(first).code, Some(0));
}

#[test]
fn a_reload_with_a_wrong_file_changes_nothing_and_says_why() {
    let place = Place::new();
    place.file("tidegate.toml", "");
    let mut gateway = place.start(&SIM);
    place.file("tidegate.toml", "[queue]\nreserve = 2\n");
    gateway.signal("HUP");
    gateway.logs("configuration not reloaded, the one before stays in force: tidegate.toml:2:1: reserve must be");
    let (status, _) = chat(&gateway.announced("api"), &["authorization: Bearer tidegate"]);
    assert_eq!(status, 200);
    let metrics = format!("{}/metrics", gateway.announced("admin"));
    assert!(http("GET", &metrics, &[], "").1.contains("tidegate_config_last_reload_successful 0"));
    place.file("tidegate.toml", "");
    gateway.signal("HUP");
    gateway.logs("configuration reloaded");
    assert!(http("GET", &metrics, &[], "").1.contains("tidegate_config_last_reload_successful 1"));
    assert_eq!(stop(gateway).code, Some(0));
}

#[test]
fn a_reload_takes_over_a_file_that_was_made_since() {
    let place = Place::new();
    let mut gateway = place.start(&SIM);
    let models = format!("{}/models", gateway.announced("api"));
    assert_eq!(http("GET", &models, &["authorization: Bearer bar"], "").0, 200);
    place.file("tidegate.toml", &format!("[[key]]\nname = \"k\"\nsha256 = \"{FOO}\"\n"));
    gateway.signal("HUP");
    gateway.logs("configuration reloaded");
    assert_eq!(http("GET", &models, &["authorization: Bearer bar"], "").0, 401);
    assert_eq!(http("GET", &models, &["authorization: Bearer foo"], "").0, 200);
}

#[test]
fn a_stop_lets_a_stream_finish() {
    let upstream = HeldStream::listen();
    let place = Place::new();
    let mut gateway = place.start(&upstream.behind_a_gateway());
    let stream = upstream.open(&gateway.announced("api"));
    gateway.signal("TERM");
    gateway.logs("stopping");
    assert!(stream.finish().ends_with("0\r\n\r\n"), "the whole stream has come");
    assert_eq!(gateway.end().code, Some(0));
}

#[test]
fn a_second_stop_ends_it_at_once() {
    let upstream = HeldStream::listen();
    let place = Place::new();
    let mut gateway = place.start(&upstream.behind_a_gateway());
    let _stream = upstream.open(&gateway.announced("api"));
    gateway.signal("TERM");
    gateway.logs("stopping");
    gateway.signal("INT");
    assert_eq!(gateway.end().code, Some(130));
}

#[test]
fn a_state_directory_that_cannot_be_written_has_a_trail_that_fails_and_is_seen() {
    let place = Place::new();
    place.file("file", "");
    // Relative, as people type it.
    let gateway = place.start(&with(&["--state-dir", "file/below"]));
    let metrics = || http("GET", &format!("{}/metrics", gateway.announced("admin")), &[], "").1;
    while !metrics().contains("tidegate_audit_up 0") {}
    assert_eq!(chat(&gateway.announced("api"), &["authorization: Bearer tidegate"]).0, 200, "calls go on");
    let log = stop(gateway).stderr;
    assert!(log.contains("cannot write file/below") && log.contains("the audit trail cannot be written"), "{log}");
}
