//! `tidegate run` through a gateway that others call too.

use std::fs;
use std::thread;

use crate::process::{Place, Running, http};
use crate::run::{FREE, lines, results, simulator, summary};

/// 20 calls a second, and 20 at once; half of those are kept for calls that are more urgent than the run's.
const LIMIT: &str =
    "[limit.account]\nper = [\"account\", \"model\"]\nrequests_per_minute = 1200\nburst_allowance = 20\n";
const CALL: &str = r#"{"model":"m","messages":[{"role":"user","content":"Hello"}],"max_tokens":16}"#;

/// How long a call waited there, as its reply says.
fn queued(api: &str) -> String {
    let (status, reply) = http("POST", &format!("{api}/chat/completions"), &["authorization: Bearer tidegate"], CALL);
    assert_eq!(status, 200, "{reply}");
    let line = reply.lines().find_map(|line| line.strip_prefix("x-tidegate-queued-ms: "));
    line.unwrap_or_else(|| panic!("{reply}")).to_owned()
}

#[test]
fn a_run_through_a_gateway_is_low_there_and_interactive_calls_do_not_wait_for_it() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    place.file("gateway.toml", LIMIT);
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", "gateway.toml"];
    let gateway = place.start(&[&args[..], &["--upstream", &upstream]].concat());
    let (api, admin) = (gateway.announced("api"), gateway.announced("admin"));
    let mut waited = vec![queued(&api)];
    place.file("in.jsonl", &lines(100));
    let mut run = Running::spawn(place.command(&["run", "in.jsonl", "-o", "out.jsonl", "--upstream", &api, "--json"]));
    for goes_on in (5..100).step_by(5) {
        // Another one whenever the run has got on by five.
        while fs::read_to_string(place.path().join("out.jsonl")).unwrap_or_default().lines().count() < goes_on {
            thread::yield_now();
        }
        waited.push(queued(&api));
    }
    let ended = run.end();
    assert_eq!(
        (ended.code, &summary(&ended)["done"], &summary(&ended)["rate_limited"]),
        (Some(0), &100.into(), &0.into())
    );
    assert_eq!(results(&place.path().join("out.jsonl")).len(), 100);
    assert!(waited.iter().all(|millis| millis == "0"), "{waited:?}");
    let (_, metrics) = http("GET", &format!("{admin}/metrics"), &[], "");
    let waits = |what: &str| {
        let name = format!("tidegate_queue_wait_seconds_{what} ");
        let value =
            metrics.lines().find_map(|line| line.strip_prefix(&name)).and_then(|value| value.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
    };
    assert_eq!((waits("count{priority=\"low\"}"), waits("count{priority=\"normal\"}")), (100.0, 20.0));
    assert!(waits("sum{priority=\"low\"}") > 0.0, "{metrics}");
}
