//! `tidegate run` that is stopped by something other than its limits: a full disk, a reader that leaves, a person, the bill.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::process::{Place, Running, http};
use crate::run::{FREE, go, lines, results, simulator, summary};

/// Lines that were noted as sent, so far.
fn sent(place: &Place) -> usize {
    let journal = fs::read_to_string(place.path().join("out.jsonl.journal")).unwrap_or_default();
    journal.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).count()
}

pub(crate) fn becomes(upstream: &str, scenario: &str) {
    let url = format!("{}/sim/scenario", upstream.strip_suffix("/v1").unwrap());
    assert_eq!(http("POST", &url, &[], scenario).0, 200);
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_ends_the_run_and_once_there_is_room_it_goes_on() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(200));
    // 40 blocks of 512 bytes. The signal is ignored, so that writing fails as it does on a full disk.
    let limited = "trap '' XFSZ; ulimit -f 40; exec \"$0\" run in.jsonl -o out.jsonl --upstream \"$1\" --json";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_tidegate"), &upstream]).current_dir(place.path());
    let ended = Running::spawn(command).end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = summary(&ended);
    let why = said["ending"]["why"].as_str().unwrap();
    assert!(why.starts_with("cannot write out.jsonl: ") && why.ends_with("the same command goes on"), "{why}");
    // What is torn is gone, and what was said to be done is there.
    let whole = results(&place.path().join("out.jsonl")).len();
    assert!(said["done"] == whole && (1..200).contains(&whole), "{whole}: {said}");
    let ended = go(&place, &upstream, &[]);
    assert_eq!((ended.code, &summary(&ended)["attempts"]), (Some(0), &(200 - whole).into()));
    let found = results(&place.path().join("out.jsonl"));
    assert_eq!((found.len(), found.values().max()), (200, Some(&1)));
}

#[test]
fn a_reader_that_leaves_ends_the_run() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(5000));
    let mut command = place.command(&["run", "in.jsonl", "-o", "-", "--upstream", &upstream]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\"status_code\":200"), "{first}");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write standard output: ") && said.contains("lines are left"), "{said}");
    let log = fs::read_to_string(place.path().join("log")).unwrap();
    assert!(log.lines().count() < 5000, "it went on for nobody");
}

#[cfg(unix)]
#[test]
fn a_second_signal_stops_at_once_and_what_was_in_flight_is_sent_again_and_counted() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, &FREE.replace("2ms", "10m"));
    place.file("in.jsonl", &lines(20));
    let mut run = Running::spawn(place.command(&["run", "in.jsonl", "-o", "out.jsonl", "--upstream", &upstream]));
    while sent(&place) < 4 {
        thread::yield_now();
    }
    run.signal("INT");
    run.logs("a second signal stops at once");
    run.signal("INT");
    assert_eq!(run.end().code, Some(130));
    let in_flight = sent(&place);
    becomes(&upstream, FREE);
    let ended = go(&place, &upstream, &[]);
    assert_eq!((ended.code, &summary(&ended)["cut_off"]), (Some(0), &in_flight.into()), "{ended:?}");
    assert_eq!(results(&place.path().join("out.jsonl")).len(), 20);
}

#[test]
fn a_quota_that_ends_stops_the_run_and_once_it_is_paid_for_the_same_command_goes_on() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, &FREE.replace("2ms", "50ms"));
    place.file("in.jsonl", &lines(300));
    let args = ["run", "in.jsonl", "-o", "out.jsonl", "--upstream", &upstream, "--max-in-flight", "8"];
    let mut run = Running::spawn(place.command(&args));
    while results_so_far(&place) < 8 {
        thread::yield_now();
    }
    becomes(&upstream, &format!("{FREE}[[fault]]\nkind = \"insufficient_quota\"\n"));
    let ended = run.end();
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stdout.contains("the quota is exhausted") && ended.stdout.contains(" 0 failed"), "{ended:?}");
    let log = fs::read_to_string(place.path().join("log")).unwrap();
    let burnt = log.lines().filter(|line| line.contains("insufficient_quota")).count();
    assert!((1..=9).contains(&burnt), "{burnt} sent without quota");
    becomes(&upstream, FREE);
    let ended = go(&place, &upstream, &["--max-in-flight", "8"]);
    // What was refused for want of quota is known to have cost nothing: it was not cut off.
    assert_eq!((ended.code, &summary(&ended)["failed"], &summary(&ended)["cut_off"]), (Some(0), &0.into(), &0.into()));
    let found = results(&place.path().join("out.jsonl"));
    assert_eq!((found.len(), found.values().max()), (300, Some(&1)));
}

#[test]
fn a_pause_for_want_of_quota_burns_what_was_in_flight_and_one_call_each_time_it_looks() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, &FREE.replace("2ms", "50ms"));
    place.file("in.jsonl", &lines(300));
    let args = ["run", "in.jsonl", "-o", "out.jsonl", "--upstream", &upstream, "--max-in-flight", "8"];
    let mut run = Running::spawn(place.command(&[&args[..], &["--on-quota", "pause", "--json"]].concat()));
    while results_so_far(&place) < 8 {
        thread::yield_now();
    }
    becomes(&upstream, &format!("{FREE}[[fault]]\nkind = \"insufficient_quota\"\n"));
    // Two calls have found out that there is still none.
    while burnt(&place).last().is_none_or(|last| last - burnt(&place)[0] < 3.0) {
        thread::yield_now();
    }
    becomes(&upstream, FREE);
    let ended = run.end();
    assert_eq!((ended.code, &summary(&ended)["done"]), (Some(0), &300.into()), "{ended:?}");
    let burnt = burnt(&place);
    // It looks after 1 s, 3 s, 7 s, …; both clocks run alike to a hundredth.
    let looks = (1.0 + 1.01 * (burnt[burnt.len() - 1] - burnt[0])).log2() as usize;
    assert!(burnt.len() <= 8 + looks, "{burnt:?}");
}

/// When calls were refused for want of quota.
fn burnt(place: &Place) -> Vec<f64> {
    let log = fs::read_to_string(place.path().join("log")).unwrap_or_default();
    let refused = log.lines().filter(|line| line.contains("insufficient_quota"));
    // The last line may be half written.
    refused.filter_map(|line| serde_json::from_str::<Value>(line).ok()?["received_s"].as_f64()).collect()
}

fn results_so_far(place: &Place) -> usize {
    fs::read_to_string(place.path().join("out.jsonl")).unwrap_or_default().lines().count()
}

#[test]
fn off_a_terminal_a_line_now_and_then_says_how_far_it_is() {
    let place = Place::new();
    let scenario = FREE.replace("1000000\n", "120\ninitial_fill = 0.05\n");
    let (_simulator, upstream) = simulator(&place, &scenario);
    place.file("in.jsonl", &lines(14));
    let args = ["run", "in.jsonl", "--upstream", &upstream, "-o"];
    let mut plain = Running::spawn(place.command(&[&args[..], &["a.jsonl"]].concat()));
    let mut child = place.command(&[&args[..], &["b.jsonl", "--json"]].concat());
    let mut json = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    plain.logs("/14 done, 0 failed, ");
    let mut said = String::new();
    json.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    json.wait().unwrap();
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{said}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["total"], &line["requests_per_minute_limit"]), (&14.into(), &120.into()), "{line}");
    for key in
        ["done", "failed", "in_flight", "requests_per_minute", "tokens_per_minute", "rate_limited", "eta_seconds"]
    {
        assert!(line[key].is_u64(), "{key}: {line}");
    }
    plain.end();
}
