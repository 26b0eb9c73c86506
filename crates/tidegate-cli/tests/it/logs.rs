use std::io::{Read, Write};
use std::net::TcpListener;
use std::{fmt, thread};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::gateway::{SIM, stop};
use crate::process::{Place, Running, chat, http};

/// An upstream that answers with these statuses, one after the other, and with the last one from then on.
fn upstream(statuses: &'static [u16]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    thread::spawn(move || {
        let all = statuses.iter().chain(statuses.last().into_iter().cycle());
        for (stream, status) in listener.incoming().zip(all) {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            let mut buffer = [0; 4096];
            while !request.ends_with("\"max_tokens\":16}") {
                let read = stream.read(&mut buffer).unwrap();
                assert!(read > 0, "closed after {request:?}");
                request += &String::from_utf8_lossy(&buffer[..read]);
            }
            let head = format!("HTTP/1.1 {status} Any\r\ncontent-type: application/json\r\nconnection: close");
            write!(stream, "{head}\r\ncontent-length: 2\r\n\r\n{{}}").unwrap();
        }
    });
    url
}

/// A gateway in front of `upstream`.
fn gateway(place: &Place, upstream: &str, config: &str) -> Running {
    place.file("tidegate.toml", config);
    place.start(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", upstream])
}

fn call(gateway: &Running, id: &str) -> u16 {
    chat(&gateway.announced("api"), &["authorization: Bearer any", &format!("x-tidegate-id: {id}")]).0
}

/// The number behind `name=`.
fn number(line: &str, name: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let place = Place::new();
    let ended = stop(place.start(&[&SIM[..], &["--log-format", "json"]].concat()));
    let first = ended.stderr.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!(line["level"], "INFO");
}

/// The keys of an object, each as often as it is there.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Vec<String>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = object.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_map(Each).map(Self)
    }
}

#[test]
fn in_json_each_key_is_there_once_and_the_target_is_that_of_the_call() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nrequests_per_minute = 1\n");
    let mut command = place.command(&[&SIM[..], &["--log-format", "json"]].concat());
    command.env("RUST_LOG", "debug");
    let gateway = Running::start(command);
    let headers = ["authorization: Bearer tidegate", "x-tidegate-max-wait: 0ms"];
    assert_eq!([(); 2].map(|()| chat(&gateway.announced("api"), &headers).0), [200, 429]);
    let log = stop(gateway).stderr;
    for line in log.lines() {
        let Keys(mut keys) = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{line}");
    }
    let refused = log.lines().find(|line| line.contains("\"call refused\"")).unwrap_or_else(|| panic!("{log}"));
    let refused: serde_json::Value = serde_json::from_str(refused).unwrap();
    assert_eq!(refused["target"], "sim/gpt-4o-mini");
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
    (0..50).for_each(|_| assert_eq!(chat(&api, &headers).0, 429));
    let ended = stop(gateway);
    let told = ended.stderr.matches("call refused").count();
    assert!((10..150).contains(&told), "{told}");
    let summed_up = ended.stderr.lines().filter_map(|line| line.split_once(" more calls were held or refused"));
    let left_out: usize = summed_up.map(|(line, _)| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(told + left_out, 150, "also those of the last second: {}", ended.stderr);
    assert!(ended.stderr.contains("limit=\"team/requests_per_minute\""), "{}", ended.stderr);
}

#[test]
fn the_overhead_of_each_call_is_logged_at_debug() {
    let place = Place::new();
    place.file("tidegate.toml", "[limit.team]\nrequests_per_minute = 2\n");
    let mut command = place.command(&SIM);
    command.env("RUST_LOG", "debug");
    let mut gateway = Running::start(command);
    for (id, status) in [("one", 200), ("two", 200), ("refused", 429)] {
        let headers = ["authorization: Bearer any", "x-tidegate-max-wait: 0ms", &format!("x-tidegate-id: {id}")];
        assert_eq!(chat(&gateway.announced("api"), &headers).0, status);
        gateway.logs(&format!("DEBUG time in tidegate call={id} overhead_us="));
    }
    assert!(!stop(gateway).stderr.contains("Hello"), "prompts are never logged");
}

#[test]
fn a_wait_and_a_refusal_are_logged_with_how_long_and_by_which_limit() {
    let place = Place::new();
    let limit = "[limit.team]\nrequests_per_minute = 40\nburst_allowance = 1\nalgorithm = \"token_bucket\"\n";
    let gateway = gateway(&place, &upstream(&[200]), limit);
    assert_eq!((call(&gateway, "goes"), call(&gateway, "waits")), (200, 200));
    let headers = ["authorization: Bearer any", "x-tidegate-id: refused", "x-tidegate-max-wait: 0ms"];
    assert_eq!(chat(&gateway.announced("api"), &headers).0, 429);
    let log = stop(gateway).stderr;
    let line = |start: &str| log.lines().find(|line| line.contains(start)).unwrap_or_else(|| panic!("{log}"));
    let waited = line("INFO call waited call=\"waits\" tenant=");
    assert!(waited.contains("limit=\"team/requests_per_minute\""), "{waited}");
    assert!(number(waited, "waited_ms") >= 1000.0, "{waited}");
    let refused = line("INFO call refused call=\"refused\" tenant=");
    assert!(refused.contains("limit=\"team/requests_per_minute\" reason=\"limit\""), "{refused}");
    assert_eq!((number(refused, "waited_ms"), number(refused, "requested")), (0.0, 1.0), "{refused}");
    assert!(number(refused, "retry_after_ms") > 0.0, "{refused}");
    assert!(!log.contains("call=\"goes\""), "{log}");
}

#[test]
fn a_retry_is_logged_with_its_delay_and_how_it_ended() {
    let place = Place::new();
    let config = "[retry]\nbase_delay = \"10ms\"\njitter = \"none\"\n[breaker]\nfailure_threshold = 100\n";
    let gateway = gateway(&place, &upstream(&[503, 200, 503, 503, 503, 404]), config);
    assert_eq!(call(&gateway, "mended"), 200);
    assert_eq!(call(&gateway, "hopeless"), 503);
    assert_eq!(call(&gateway, "unknown"), 404);
    let log = stop(gateway).stderr;
    let told = |id: &str| -> Vec<String> {
        let call = format!("call=\"{id}\"");
        let lines = log.lines().filter_map(|line| line.split_once("INFO ")?.1.split_once(&call));
        lines.map(|(what, rest)| what.to_owned() + rest.rsplit_once(" fault=").unwrap().1).collect()
    };
    assert_eq!(
        told("mended"),
        [
            "retry scheduled \"temporary_error\" attempt=1 delay_ms=10.0",
            "retry succeeded \"temporary_error\" attempt=2"
        ]
    );
    assert_eq!(
        told("hopeless"),
        [
            "retry scheduled \"temporary_error\" attempt=1 delay_ms=10.0",
            "retry scheduled \"temporary_error\" attempt=2 delay_ms=20.0",
            "retry gave up \"temporary_error\" attempt=3 reason=\"attempts_exhausted\""
        ]
    );
    assert!(told("unknown").is_empty(), "nothing was tried again: {log}");
}

#[test]
fn a_flood_of_retries_is_logged_by_its_first_lines_and_by_how_many_followed() {
    let place = Place::new();
    let config = "[retry]\nbase_delay = \"1ms\"\nbudget = { ratio = 1.0, min_per_second = 1000 }\n\
                  [breaker]\nfailure_threshold = 1000\nminimum_calls = 1000\n";
    let mut gateway = gateway(&place, &upstream(&[503]), config);
    (0..30).for_each(|n| assert_eq!(call(&gateway, &format!("c-{n}")), 503));
    gateway.logs("more retries were scheduled, succeeded or gave up; of such only 10 a second are logged one by one");
    let log = stop(gateway).stderr;
    let left_out =
        |line: &str| -> Option<usize> { line.split_once("INFO ")?.1.split_once(" more retries")?.0.parse().ok() };
    let told = log.matches(" retry ").count();
    assert_eq!(told + log.lines().filter_map(left_out).sum::<usize>(), 3 * 30, "{log}");
}

#[test]
fn a_breaker_that_opens_is_a_warning_and_each_change_is_logged() {
    let place = Place::new();
    let config = "[retry]\nmax_attempts = 1\n\
                  [breaker]\nfailure_threshold = 2\nrecovery_timeout = \"1ms\"\nhalf_open_max_calls = 1\n";
    let gateway = gateway(&place, &upstream(&[503, 503, 200]), config);
    assert_eq!((call(&gateway, "a"), call(&gateway, "b")), (503, 503));
    while call(&gateway, "probe") != 200 {}
    let log = stop(gateway).stderr;
    let changes = log.lines().filter(|line| line.contains("circuit breaker"));
    let changes: Vec<&str> = changes.map(|line| line.split_once("Z ").unwrap().1.trim_start()).collect();
    let breaker = "breaker=\"openai/gpt-4o-mini\"";
    assert_eq!(
        changes,
        [
            format!(
                "WARN circuit breaker opened {breaker} from=\"closed\" to=\"open\" why=\"2 failures in a row, last 503\""
            ),
            format!("INFO circuit breaker changed its state {breaker} from=\"open\" to=\"half_open\""),
            format!("INFO circuit breaker changed its state {breaker} from=\"half_open\" to=\"closed\""),
        ]
    );
}

#[test]
fn a_flood_of_breaker_changes_is_logged_by_its_first_lines_and_by_how_many_followed() {
    let place = Place::new();
    let config = "[retry]\nmax_attempts = 1\n\
                  [breaker]\nfailure_threshold = 1\nrecovery_timeout = \"1ms\"\nhalf_open_max_calls = 1\n";
    let mut gateway = gateway(&place, &upstream(&[503]), config);
    let api = gateway.announced("api");
    let replies: Vec<_> = (0..200).map(|_| chat(&api, &["authorization: Bearer any"])).collect();
    assert!(replies.iter().all(|(status, _)| *status == 503), "{replies:?}");
    // One by one, each that was sent opened it.
    let opened = replies.iter().filter(|(_, body)| !body.contains("circuit_open")).count();
    gateway.logs("more times a circuit breaker opened; of such only 10 a second are logged one by one");
    let log = stop(gateway).stderr;
    let left_out =
        |line: &str| -> Option<usize> { line.split_once("WARN ")?.1.split_once(" more times")?.0.parse().ok() };
    let told = log.matches("circuit breaker opened breaker=").count();
    assert!(told < opened, "{told} of {opened}");
    assert_eq!(told + log.lines().filter_map(left_out).sum::<usize>(), opened, "{log}");
}

#[test]
fn a_flood_of_calls_is_logged_at_debug_by_its_first_lines_and_by_how_many_followed() {
    let place = Place::new();
    let mut command = place.command(&SIM);
    command.env("RUST_LOG", "debug");
    let mut gateway = Running::start(command);
    let api = gateway.announced("api");
    (0..100).for_each(|_| assert_eq!(http("GET", &format!("{api}/models"), &[], "").0, 200));
    gateway.logs("more calls were measured; of such only 10 a second are logged one by one");
    let log = stop(gateway).stderr;
    let left_out =
        |line: &str| -> Option<usize> { line.split_once("DEBUG ")?.1.split_once(" more calls were m")?.0.parse().ok() };
    let told = log.matches("time in tidegate").count();
    assert!(told < 100, "{log}");
    assert_eq!(told + log.lines().filter_map(left_out).sum::<usize>(), 100, "{log}");
    assert!(!log.contains("idle connection"), "a bare level is for tidegate's own lines: {log}");
}

#[test]
fn lines_of_what_tidegate_is_made_of_are_for_those_who_name_it() {
    let place = Place::new();
    let mut command = place.command(&SIM);
    command.env("RUST_LOG", "hyper_util=debug");
    let gateway = Running::start(command);
    assert_eq!(http("GET", &format!("{}/models", gateway.announced("api")), &[], "").0, 200);
    let log = stop(gateway).stderr;
    assert!(log.contains("idle connection") && !log.contains("time in tidegate"), "{log}");
}

#[test]
fn an_alert_on_the_store_is_accepted_and_said_to_stay_quiet() {
    let place = Place::new();
    let alert = "[[alert]]\nname = \"apart\"\nwhen = \"store_degraded\"\nabove = 0\n";
    let mut gateway = gateway(&place, &upstream(&[200]), alert);
    gateway.logs("WARN alert \"apart\" watches [store], which has no effect in this version: it stays quiet");
    let alerts = format!("{}/admin/v1/alerts", gateway.announced("admin"));
    let token = std::fs::read_to_string(place.path().join(".local/state/tidegate/admin-token")).unwrap();
    let (status, told) = http("GET", &alerts, &[&format!("authorization: Bearer {}", token.trim())], "");
    assert!(status == 200 && told.contains("\"state\":\"quiet\""), "{told}");
}
