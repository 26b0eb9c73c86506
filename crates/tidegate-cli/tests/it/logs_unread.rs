//! Standard error as a pipe that nobody reads: only log lines suffer from it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::gateway::{SIM, stop};
use crate::process::{Place, Running, chat, http, in_time};

/// So much a pipe holds, where nobody asks for more.
#[cfg(target_os = "linux")]
const PIPE_BYTES: usize = 64 << 10;

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

#[cfg(target_os = "linux")]
#[test]
fn a_reader_of_standard_error_who_stalls_does_not_stop_a_run() {
    let place = Place::new();
    place.file(
        "tidegate.toml",
        "[limit.all]\nrequests_per_minute = 60\nburst_allowance = 1\nalgorithm = \"token_bucket\"\n",
    );
    // It takes longer than until progress is shown for the first time.
    let line = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}],"max_tokens":16}"#;
    place.file("in.jsonl", &[line; 8].join("\n"));
    let (_unread, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'.'; PIPE_BYTES]).unwrap();
    let mut command = place.command(&["run", "in.jsonl", "-o", "out.jsonl", "--sim"]);
    let mut child = command.stdout(Stdio::piped()).stderr(full).spawn().unwrap();
    // It closes when the process ends.
    let mut stdout = child.stdout.take().unwrap();
    in_time(move || stdout.read_to_string(&mut String::new()).unwrap());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let answers = std::fs::read_to_string(place.path().join("out.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 8);
}
