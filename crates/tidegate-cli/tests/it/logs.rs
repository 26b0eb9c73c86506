use crate::gateway::{SIM, stop};
use crate::process::{Place, Running, chat};

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let place = Place::new();
    let ended = stop(place.start(&[&SIM[..], &["--log-format", "json"]].concat()));
    let first = ended.stderr.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!(line["level"], "INFO");
}

#[test]
fn refusals_are_logged_and_of_a_flood_only_some_and_how_many_followed() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nrequests_per_minute = 1\n");
    let mut gateway = place.start(&SIM);
    let api = gateway.announced("api");
    let headers = ["authorization: Bearer tidegate", "x-tidegate-max-wait: 0ms"];
    assert_eq!(chat(&api, &headers).0, 200);
    (0..100).for_each(|_| assert_eq!(chat(&api, &headers).0, 429));
    gateway.logs("more calls were held or refused; of such only 10 a second are logged one by one");
    let ended = stop(gateway);
    let told = ended.stderr.matches("call refused").count();
    assert!((10..100).contains(&told), "{told}");
    assert!(ended.stderr.contains("limit=\"team/requests_per_minute\""), "{}", ended.stderr);
}

#[test]
fn the_overhead_of_each_call_is_logged_at_debug() {
    let place = Place::new();
    let mut command = place.command(&SIM);
    command.env("RUST_LOG", "debug");
    let mut gateway = Running::start(command);
    assert_eq!(chat(&gateway.announced("api"), &["authorization: Bearer tidegate"]).0, 200);
    gateway.logs("overhead_us=");
    assert!(!stop(gateway).stderr.contains("Hello"), "prompts are never logged");
}
