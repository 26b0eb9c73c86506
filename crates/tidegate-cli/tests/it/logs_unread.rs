//! Standard error as a pipe that nobody reads: only log lines suffer from it.

use std::process::Command;

use crate::gateway::{SIM, stop};
use crate::process::{Place, Running, chat, http};

/// A gateway that says of every call that an SDK sent it before; nobody reads its log yet.
fn unread(place: &Place) -> Running {
    place.file("tidegate.toml", "[limit.team]\nrequests_per_minute = 1\n");
    let mut command: Command = place.command(&SIM);
    command.env("RUST_LOG", "debug");
    Running::spawn_unread(command).when_ready()
}

/// So many calls, all answered, and the other listener too.
fn calls(gateway: &Running, count: u32) {
    let (api, admin) = (gateway.announced("api"), gateway.announced("admin"));
    for number in 0..count {
        let id = format!("x-tidegate-id: {number:064}");
        let headers = ["authorization: Bearer any", "x-tidegate-max-wait: 0ms", "x-stainless-retry-count: 1", &id];
        let status = chat(&api, &headers).0;
        assert!(matches!(status, 200 | 429), "{status}");
        if number % 100 == 0 {
            assert_eq!(http("GET", &format!("{admin}/healthz"), &[], "").0, 200);
            assert_eq!(http("GET", &format!("{admin}/metrics"), &[], "").0, 200);
        }
    }
    let metrics = http("GET", &format!("{admin}/metrics"), &[], "").1;
    let series = |line: &&str| line.starts_with("tidegate_refusals_total{reason=\"limit\"}");
    let refused = metrics.lines().find(series).and_then(|line| line.rsplit(' ').next()?.parse().ok());
    assert!(refused.is_some_and(|refused: u32| refused >= count - 10), "{metrics}");
}

#[test]
fn a_reader_of_the_log_who_stalls_stops_no_call_and_is_told_how_many_lines_are_missing() {
    let place = Place::new();
    let mut gateway = unread(&place);
    calls(&gateway, 8000);
    gateway.read_logs();
    gateway.logs(" lines are missing here: they came faster than they were read");
    assert_eq!(
        chat(
            &gateway.announced("api"),
            &["authorization: Bearer any", "x-tidegate-id: after", "x-tidegate-max-wait: 0ms"]
        )
        .0,
        429
    );
    let ended = stop(gateway);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains("after"), "lines go on after the gap");
    assert!(ended.stderr.lines().all(|line| line.contains("Z ")), "each line is whole");
}

#[test]
fn a_reader_of_the_log_who_stalls_does_not_keep_the_process_from_ending() {
    let place = Place::new();
    let gateway = unread(&place);
    calls(&gateway, 1000);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn what_is_logged_last_is_written_before_the_process_ends() {
    let place = Place::new();
    let ended = place.run(&["serve", "--sim", "--config", "none.toml"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("error: "), "{ended:?}");
    let gateway = place.start(&SIM);
    let ended = stop(gateway);
    assert!(ended.stderr.contains("stopping: calls under way may finish"), "{ended:?}");
}
