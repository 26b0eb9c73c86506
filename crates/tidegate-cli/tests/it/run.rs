//! `tidegate run`, from outside: what goes in, what comes out, and what is left when it is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::process::{Ended, Place, Running};

/// A quick upstream whose limits bind nobody.
pub(crate) const FREE: &str = "[latency]\nfirst_token = \"2ms\"\ntokens_per_second = 1000000.0\n\
                    [model.m]\nrpm = 1000000\ntpm = 100000000\n";

pub(crate) fn simulator(place: &Place, scenario: &str) -> (Running, String) {
    place.file("scenario.toml", scenario);
    let running =
        place.start(&["sim", "--listen", "127.0.0.1:0", "--scenario", "scenario.toml", "--request-log", "log"]);
    let upstream = running.announced("api");
    (running, upstream)
}

pub(crate) fn lines(count: usize) -> String {
    let line = |number| {
        format!(
            "{{\"custom_id\":\"id-{number}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
                 \"body\":{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"number {number}\"}}]}}}}\n"
        )
    };
    (0..count).map(line).collect()
}

pub(crate) fn go(place: &Place, upstream: &str, more: &[&str]) -> Ended {
    let args = [&["run", "in.jsonl", "-o", "out.jsonl", "--upstream", upstream, "--json"], more].concat();
    place.run(&args)
}

pub(crate) fn summary(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("no summary: {ended:?}"))
}

/// The text of a file, unpacked as its name says.
fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let mut text = String::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => flate2::read::MultiGzDecoder::new(&*bytes).read_to_string(&mut text),
        Some("zst") => zstd::Decoder::new(&*bytes).unwrap().read_to_string(&mut text),
        _ => (&*bytes).read_to_string(&mut text),
    }
    .unwrap();
    text
}

/// How often each line has a result.
pub(crate) fn results(path: &Path) -> BTreeMap<String, usize> {
    let mut results = BTreeMap::new();
    for line in text(path).lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("torn: {line}"));
        *results.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    results
}

#[test]
fn each_line_gets_one_result_in_the_batch_apis_form_and_a_second_run_sends_nothing() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(40));
    let ended = go(&place, &upstream, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let found = results(&place.path().join("out.jsonl"));
    assert_eq!((found.len(), found.values().all(|count| *count == 1)), (40, true));
    let text = fs::read_to_string(place.path().join("out.jsonl")).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&first["response"]["status_code"], &first["error"]), (&200.into(), &Value::Null));
    assert!(first["response"]["body"]["choices"].is_array() && first["response"]["request_id"].is_string());
    let again = summary(&go(&place, &upstream, &[]));
    assert_eq!((&again["attempts"], &again["done"], &again["resumed"]), (&0.into(), &40.into(), &40.into()));
}

#[test]
fn bad_lines_are_told_by_number_and_reason_before_anything_is_sent() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &format!("{}nonsense\n{}", lines(2), lines(1)));
    let ended = go(&place, &upstream, &[]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("in.jsonl:3: it is no JSON object"), "{}", ended.stderr);
    assert!(ended.stderr.contains("in.jsonl:4: custom_id \"id-0\" is that of line 1 too"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(place.path().join("log")).unwrap_or_default(), "");
    let ended = go(&place, &upstream, &["--skip-bad"]);
    assert_eq!(ended.code, Some(3));
    assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&2.into(), &2.into()));
    assert_eq!(results(&place.path().join("out.jsonl")).len(), 4);
}

#[test]
fn an_output_of_another_run_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(3));
    assert_eq!(go(&place, &upstream, &[]).code, Some(0));
    let before = fs::read(place.path().join("out.jsonl")).unwrap();
    let ended = go(&place, &upstream, &["--model", "n"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("another --model"), "{ended:?}");
    place.file("in.jsonl", &lines(4));
    let ended = go(&place, &upstream, &[]);
    assert!(ended.code == Some(2) && ended.stderr.contains("another input"), "{ended:?}");
    assert_eq!(fs::read(place.path().join("out.jsonl")).unwrap(), before);
}

#[test]
fn what_failed_is_sent_again_when_that_is_asked_for() {
    let place = Place::new();
    let fault = "[[fault]]\nkind = \"context_length\"\nfirst = 2\n";
    let (_simulator, upstream) = simulator(&place, &format!("{FREE}{fault}"));
    place.file("in.jsonl", &lines(10));
    let ended = go(&place, &upstream, &[]);
    assert_eq!((ended.code, &summary(&ended)["failed"]), (Some(3), &2.into()));
    assert_eq!(summary(&ended)["failures"]["400 context_length_exceeded"], 2, "{ended:?}");
    let ended = go(&place, &upstream, &[]);
    assert_eq!((ended.code, &summary(&ended)["attempts"]), (Some(3), &0.into()));
    let ended = go(&place, &upstream, &["--retry-failed"]);
    assert_eq!((ended.code, &summary(&ended)["attempts"], &summary(&ended)["done"]), (Some(0), &2.into(), &10.into()));
    // They had their answers: nothing was cut off.
    assert_eq!(summary(&ended)["cut_off"], 0);
    assert!(results(&place.path().join("out.jsonl")).values().all(|count| *count == 1));
}

#[test]
fn a_dry_run_counts_and_predicts_and_sends_nothing() {
    let place = Place::new();
    place.file("in.jsonl", &lines(30));
    let ended = place.run(&["run", "in.jsonl", "--dry-run", "--json"]);
    assert_eq!((ended.code, &summary(&ended)["plan"]), (Some(0), &Value::Null), "{ended:?}");
    let ended = place.run(&["run", "in.jsonl", "-o", "out.jsonl", "--dry-run", "--json", "--rpm", "10"]);
    let said = summary(&ended);
    assert_eq!(said["lines"], 30);
    // Ten at once, then one each six seconds.
    let seconds = said["plan"]["makespan_seconds"].as_f64().unwrap();
    assert!((120.0..125.0).contains(&seconds), "{seconds}");
    assert!(!place.path().join("out.jsonl").exists());
}

#[test]
fn pipes_are_read_and_written_and_packed_files_too() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    let mut command = place.command(&["run", "-", "-o", "-", "--upstream", &upstream]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines(5).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 5);
    assert!(String::from_utf8(output.stderr).unwrap().contains("5 done, 0 failed of 5 lines"));
    place.file("in.jsonl", &lines(5));
    for (from, to) in [("in.jsonl", "a.gz"), ("a.gz", "b.zst"), ("b.zst", "c.jsonl")] {
        // What came out goes in again: results as prompts.
        let key = if from == "in.jsonl" { vec![] } else { vec!["--prompt-key", "custom_id", "--model", "m"] };
        let args = [vec!["run", from, "-o", to, "--upstream", &upstream], key].concat();
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(0), "{from} to {to}: {ended:?}");
    }
    assert_eq!(results(&place.path().join("c.jsonl")).len(), 5);
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_cannot_be_written_is_told_of() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(5));
    let ended = place.run(&["run", "in.jsonl", "-o", "/dev/full", "--upstream", &upstream]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("cannot write /dev/full: No space left on device"), "{ended:?}");
    let ended = place.run(&["run", "in.jsonl", "-o", "no/such/out", "--upstream", &upstream]);
    assert!(ended.code == Some(1) && ended.stderr.contains("no/such/out"), "{ended:?}");
}

#[cfg(unix)]
#[test]
fn a_first_signal_lets_what_is_in_flight_end_and_the_same_command_goes_on() {
    let place = Place::new();
    let slow = FREE.replace("2ms", "300ms");
    let (_simulator, upstream) = simulator(&place, &slow);
    place.file("in.jsonl", &lines(60));
    let args = ["run", "in.jsonl", "-o", "out.jsonl", "--upstream", &upstream, "--max-in-flight", "4", "--json"];
    let mut command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let journal = place.path().join("out.jsonl.journal");
    while fs::read_to_string(&journal).unwrap_or_default().matches(';').count() < 4 {
        std::thread::yield_now();
        assert!(child.try_wait().unwrap().is_none());
    }
    let sent = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let first: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Nothing that was sent is lost.
    assert_eq!((&first["attempts"], &first["cut_off"]), (&first["done"], &0.into()));
    let ended = place.run(&args);
    assert_eq!((ended.code, &summary(&ended)["cut_off"]), (Some(0), &0.into()));
    assert_eq!(results(&place.path().join("out.jsonl")).len(), 60);
}
