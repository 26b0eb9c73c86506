//! `tidegate plan`, from outside.

use serde_json::Value;

use crate::process::{Place, Running};

#[test]
fn a_trace_is_planned_in_text_json_and_a_page() {
    let place = Place::new();
    place.file("trace.csv", "timestamp,input_tokens,output_tokens\n0,100,10\n0,100,10\n0,100,10\n");
    let limit = "[limit.account]\nper = [\"account\"]\nrequests_per_minute = 60\nburst_allowance = 1\n";
    place.file("tidegate.toml", limit);
    let ended = place.run(&["plan", "trace.csv"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("requests_per_minute made 2 calls wait"), "{}", ended.stdout);
    let ended = place.run(&["plan", "trace.csv", "--json", "--html", "plan.html"]);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&said["plan"]["calls"], &said["plan"]["all"]["max_seconds"]), (&3.into(), &2.0.into()));
    assert!(std::fs::read_to_string(place.path().join("plan.html")).unwrap().contains("<svg"));
    place.file("bad.csv", "timestamp,input_tokens,output_tokens\n0,many,10\n");
    let ended = place.run(&["plan", "bad.csv"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("bad.csv:2: input_tokens must be a number"), "{ended:?}");
    place.file("tiers.toml", "[[tier]]\nname = \"a\"\nmodel.m = { rpm = 60 }\n");
    let args = ["plan", "trace.csv", "--tiers", "tiers.toml", "--model", "m"];
    let ended = place.run(&args);
    assert!(ended.code == Some(2) && ended.stderr.contains("--target-p95-wait"), "{ended:?}");
    let ended = place.run(&[&args[..], &["--target-p95-wait", "1s", "--html", "plan.html"]].concat());
    assert!(ended.code == Some(0) && ended.stdout.contains("a is enough"), "{ended:?}");
    let page = std::fs::read_to_string(place.path().join("plan.html")).unwrap();
    assert!(page.contains("Which limits are enough") && page.contains("<strong>yes</strong>"), "{page}");
}

#[test]
fn a_trace_is_recognised_on_a_pipe_too() {
    let place = Place::new();
    let csv = place.file("trace.csv", "timestamp,input_tokens,output_tokens\n0,100,10\n0,100,10\n");
    let lines =
        place.file("in.jsonl", "\n{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n");
    for (path, calls) in [(csv, 2), (lines, 1)] {
        let mut command = place.command(&["plan", "-", "--json"]);
        command.stdin(std::fs::File::open(path).unwrap());
        let ended = Running::spawn(command).end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let said: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(said["plan"]["calls"], calls);
    }
    let help = place.run(&["plan", "--help"]).stdout;
    assert!(help.contains("- is standard input"), "{help}");
}
