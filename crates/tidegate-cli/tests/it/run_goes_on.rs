//! `tidegate run` that was killed in the middle of something: the same command goes on with it.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::process::Place;
use crate::run::{FREE, go, lines, results, simulator, summary};
use crate::run_breaks::becomes;

/// Calls under way at once, and so what a kill may cut off.
const IN_FLIGHT: usize = 16;

/// Starts it again and again and kills it at random instants, `kills` times or until it ends by itself. Returns how often it
/// was killed.
fn killed_often(place: &Place, args: &[&str], kills: usize) -> usize {
    let random = RandomState::new();
    for killed in 0..kills {
        let mut child = place.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The instant is what is random here; nothing is waited for.
        thread::sleep(Duration::from_micros(random.hash_one(killed) % 60_000));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_some() {
            return killed;
        }
    }
    kills
}

fn args<'a>(out: &'a str, upstream: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "in.jsonl", "-o", out, "--upstream", upstream, "--max-in-flight", "16", "--json"], more].concat()
}

/// Requests that the simulator has seen.
fn log(place: &Place) -> Vec<Value> {
    let log = fs::read_to_string(place.path().join("log")).unwrap_or_default();
    // The last line may be half written.
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn killed_at_any_instant_it_goes_on_and_every_line_has_one_result() {
    const LINES: usize = 1500;
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("in.jsonl", &lines(LINES));
    let mut kills = 0;
    for out in ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"] {
        let args = args(out, &upstream, &[]);
        let killed = killed_often(&place, &args, 100);
        assert!(killed >= 20, "{out}: only {killed} kills before it was done");
        kills += killed;
        let ended = place.run(&args);
        assert_eq!(
            (ended.code, &summary(&ended)["done"]),
            (Some(0), &LINES.into()),
            "{out}, {killed} kills: {ended:?}"
        );
        let found = results(&place.path().join(out));
        assert_eq!((found.len(), found.values().max()), (LINES, Some(&1)), "{out}, {killed} kills");
    }
    // In flight at a kill were never more than are allowed at once.
    let sent = log(&place).len();
    assert!(sent <= 3 * LINES + kills * IN_FLIGHT, "{sent} requests for {LINES} lines and {kills} kills");
}

#[test]
fn killed_with_bad_lines_in_it_each_line_has_one_result_and_no_good_one_is_lost() {
    const LINES: usize = 600;
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    // Bad ones have no name, that of a good one, or one that a good one wants.
    let bad = |number| match number % 30 {
        0 => "nonsense\n".to_owned(),
        1 => format!("{{\"custom_id\":\"id-{}\",\"url\":\"/v1/nothing\",\"body\":{{}}}}\n", number - 1),
        _ => String::new(),
    };
    let text: String =
        (0..).zip(lines(LINES).split_inclusive('\n')).map(|(number, line)| line.to_owned() + &bad(number)).collect();
    place.file("in.jsonl", &text);
    let args = args("out.jsonl", &upstream, &["--skip-bad"]);
    let kills = killed_often(&place, &args, 40);
    assert!(kills >= 10, "only {kills} kills before it was done");
    let ended = place.run(&args);
    assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&LINES.into(), &40.into()), "{ended:?}");
    let found = results(&place.path().join("out.jsonl"));
    assert_eq!((found.len(), found.values().max()), (LINES + 40, Some(&1)), "{kills} kills");
}

#[test]
fn killed_while_failures_are_sent_again_it_goes_on_and_what_had_failed_was_not_cut_off() {
    const LINES: usize = 1200;
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, &format!("{FREE}[[fault]]\nkind = \"context_length\"\n"));
    place.file("in.jsonl", &lines(LINES));
    for out in ["out.jsonl", "out.jsonl.zst"] {
        let ended = place.run(&args(out, &upstream, &[]));
        assert_eq!((ended.code, &summary(&ended)["failed"]), (Some(3), &LINES.into()), "{ended:?}");
    }
    becomes(&upstream, FREE);
    for out in ["out.jsonl", "out.jsonl.zst"] {
        let again = args(out, &upstream, &["--retry-failed"]);
        let file = place.path().join(out);
        let before = fs::metadata(&file).unwrap().len();
        let mut child = place.command(&again).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Until it has given up what failed.
        while fs::metadata(&file).unwrap().len() == before {
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let kills = 1 + killed_often(&place, &again, 20);
        assert!(kills >= 10, "{out}: only {kills} kills before it was done");
        let ended = place.run(&args(out, &upstream, &[]));
        assert_eq!((ended.code, &summary(&ended)["done"]), (Some(0), &LINES.into()), "{out}, {kills} kills: {ended:?}");
        let cut_off = summary(&ended)["cut_off"].as_u64().unwrap();
        assert!(cut_off <= (kills * IN_FLIGHT) as u64, "{out}: {cut_off} cut off by {kills} kills");
        let found = results(&file);
        assert_eq!((found.len(), found.values().max()), (LINES, Some(&1)), "{out}, {kills} kills");
    }
}

#[test]
fn a_ceiling_on_tokens_holds_however_often_it_is_killed() {
    const CEILING: u64 = 40_000;
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, &FREE.replace("2ms", "20ms"));
    let text = lines(3000).replace("\"messages\"", "\"max_completion_tokens\":50,\"messages\"");
    place.file("in.jsonl", &text);
    let ceiling = CEILING.to_string();
    let args = args("out.jsonl", &upstream, &["--max-total-tokens", &ceiling]);
    let kills = killed_often(&place, &args, 40);
    assert!(kills >= 10, "only {kills} kills before it was done");
    let ended = place.run(&args);
    assert_eq!(summary(&ended)["ending"]["kind"], "ceiling", "{ended:?}");
    let tokens = |entry: &Value| entry["input_tokens"].as_u64().unwrap() + entry["output_tokens"].as_u64().unwrap();
    // What was cut off is billed whole.
    let used: u64 = log(&place).iter().map(tokens).sum();
    assert!(used <= CEILING, "{used} of {CEILING} after {kills} kills");
    let again = summary(&place.run(&args));
    assert_eq!((&again["attempts"], &again["ending"]["kind"]), (&0.into(), &"ceiling".into()), "{again}");
}

#[test]
fn bad_lines_that_share_a_name_with_good_ones_lose_none_of_them_when_it_is_killed() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    let good = |id: &str| {
        format!("{{\"custom_id\":\"{id}\",\"body\":{{\"model\":\"m\",\"messages\":[{{\"content\":\"hi\"}}]}}}}\n")
    };
    let bad = "{\"custom_id\":\"x\",\"url\":\"/v1/nothing\",\"body\":{\"model\":\"m\"}}\n";
    place.file("in.jsonl", &format!("{bad}{}{}nonsense\n{}", good("x"), good("line 4"), good("y")));
    let ended = go(&place, &upstream, &["--skip-bad"]);
    assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&2.into(), &3.into()), "{ended:?}");
    let names = |text: &str| {
        let names = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        names.map(|line| line["custom_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let out = place.path().join("out.jsonl");
    let whole = fs::read_to_string(&out).unwrap();
    assert_eq!(names(&whole)[..3], ["x", "line 2", "line 4 (2)"]);
    // As a kill leaves it at each of its lines.
    for kept in 0..5 {
        fs::write(&out, whole.split_inclusive('\n').take(kept).collect::<String>()).unwrap();
        let ended = go(&place, &upstream, &["--skip-bad"]);
        assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&2.into(), &3.into()), "{ended:?}");
        let found = results(&out);
        assert_eq!((found.len(), found.values().max()), (5, Some(&1)), "{kept} kept: {found:?}");
    }
}
