//! The series of `/metrics`: all that are promised, each with its help and type, and none that is not written down.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_core::limit::{Limit, Mode};
use tidegate_gateway::{Gateway, GatewayOptions};

use crate::support::*;

const DOCUMENTED: &str = include_str!("../../../../docs/watching.md");

/// What is shipped for Prometheus and Grafana.
const DEPLOYED: [(&str, &str); 2] = [
    ("the dashboard", include_str!("../../../../deploy/grafana/tidegate.json")),
    ("the rules", include_str!("../../../../deploy/prometheus/tidegate.rules.yml")),
];

/// What dashboards and alert rules elsewhere go by: name and labels.
const PROMISED: &[(&str, &[&str])] = &[
    ("tidegate_calls_total", &["upstream", "model", "priority", "outcome"]),
    ("tidegate_rate_limited_total", &["limit", "dimension", "model", "action"]),
    ("tidegate_calls_by_tenant_total", &["tenant", "outcome"]),
    ("tidegate_queue_depth", &["priority"]),
    ("tidegate_queue_wait_seconds", &["priority"]),
    ("tidegate_in_flight", &["upstream"]),
    ("tidegate_attempts_total", &["upstream", "model", "status"]),
    ("tidegate_retries_total", &["reason", "result"]),
    ("tidegate_retry_budget_remaining", &[]),
    ("tidegate_breaker_state", &["breaker", "state"]),
    ("tidegate_breaker_transitions_total", &["breaker", "from", "to"]),
    ("tidegate_upstream_duration_seconds", &["upstream", "model"]),
    ("tidegate_time_to_first_byte_seconds", &["upstream", "model"]),
    ("tidegate_overhead_seconds", &[]),
    ("tidegate_tokens_total", &["upstream", "model", "kind"]),
    ("tidegate_limit_used_ratio", &["limit"]),
    ("tidegate_learned_limit", &["upstream", "model", "dimension"]),
    ("tidegate_upstream_429_total", &["upstream", "model"]),
    ("tidegate_audit_records_total", &[]),
    ("tidegate_store_up", &[]),
    ("tidegate_build_info", &["version"]),
    ("tidegate_config_last_reload_successful", &[]),
];

const TOLD: &str = "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 499\r\n";
const USED: &str = r#"{"id":"c","object":"chat.completion","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#;

/// A gateway that has been through everything that makes a series.
async fn seasoned() -> (Gateway, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, upstream) = scripted_with(|config| {
        config.telemetry.tenant_metrics = true;
        config.audit.path = dir.path().join("audit.db");
        config.policy.breaker.failure_threshold = 2;
        config.policy.retry.max_attempts = 2;
        config.policy.limits.push(team_limit(1000));
        config.policy.limits.push(Limit { name: "trial".into(), mode: Mode::Shadow, ..team_limit(1) });
        let webhook = tidegate_core::config::SecretUrl::new("http://127.0.0.1:1/");
        config.alerts = vec![tidegate_core::config::AlertConfig {
            webhook: Some(tidegate_core::config::Webhook::Url(webhook)),
            ..crate::alerting::alert(tidegate_core::config::AlertSignal::BreakerOpen)
        }];
    })
    .await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", TOLD, USED).await;
    assert_eq!(client.message(false).await.status(), 200);
    // More than the limit has.
    client.post("/v1/chat/completions", "", &CHAT.replace("}]}", "}],\"max_tokens\":2000}")).await;
    assert_eq!(client.message(false).await.status(), 429);
    client.post("/v1/chat/completions", "", CHAT).await;
    peer.message(false).await;
    peer.reply("429 Too Many Requests", "retry-after-ms: 1\r\n", "{}").await;
    peer.message(false).await;
    peer.reply("500 Internal Server Error", "", "{}").await;
    peer.message(false).await;
    peer.reply("500 Internal Server Error", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 500);
    within(async { while !metrics(&gateway).await.contains("to=\"open\"") {} }).await;
    (gateway, dir)
}

/// Families by name, as `# TYPE` has them, with the names of the labels that their series have.
fn families(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut families: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut last = "";
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            last = typed.split(' ').next().unwrap();
            assert!(text.contains(&format!("# HELP {last} ")), "{last} has no help");
            families.entry(last).or_default();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with(last), "{name} is not one of {last}");
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name);
            families.entry(last).or_default().extend(names.filter(|name| *name != "le"));
        }
    }
    families
}

/// The series that the documentation names.
fn documented() -> BTreeSet<&'static str> {
    let rows = DOCUMENTED.lines().filter(|line| line.starts_with("| `tidegate_"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells
        .flat_map(|cell| cell.split('`').filter(|word| word.starts_with("tidegate_")))
        .map(|name| name.split('{').next().unwrap())
        .collect()
}

#[tokio::test]
async fn every_series_that_is_promised_is_there_with_its_labels_and_every_one_there_is_documented() {
    let (gateway, _dir) = seasoned().await;
    let text = metrics(&gateway).await;
    let families = families(&text);
    for (name, labels) in PROMISED {
        let found = families.get(name).unwrap_or_else(|| panic!("{name} is missing from\n{text}"));
        assert_eq!(found, &labels.iter().copied().collect(), "{name}");
    }
    let names: BTreeSet<&str> = families.keys().copied().collect();
    assert_eq!(names, documented());
    for (name, labels) in &families {
        assert!(!labels.contains("user") && !labels.contains("call") && !labels.contains("key"), "{name}: unbounded");
    }
}

#[tokio::test]
async fn every_series_says_what_it_is_before_anything_has_happened() {
    let (gateway, _upstream) = scripted().await;
    let text = metrics(&gateway).await;
    let families = families(&text);
    let names: BTreeSet<&str> = families.keys().copied().collect();
    assert_eq!(names, documented());
    for (name, _) in PROMISED {
        assert!(names.contains(name), "{name} is missing from\n{text}");
    }
}

/// What dashboard and rules ask for: names of series, and of the labels in the braces behind them.
fn asked(text: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let found = text.match_indices("tidegate_").filter(|(at, _)| !text[..*at].ends_with(is_name));
    found
        .map(|(at, _)| {
            let name: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
            let rest = &text[at + name.len()..];
            let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
            let label = |part: &str| part.chars().take_while(|c| is_name(*c)).collect::<String>();
            (name, braces.replace('\\', "").split(',').map(label).filter(|label| !label.is_empty()).collect())
        })
        .collect()
}

#[tokio::test]
async fn dashboard_and_alert_rules_ask_for_nothing_that_is_not_there() {
    let (gateway, _dir) = seasoned().await;
    let text = metrics(&gateway).await;
    let families = families(&text);
    let mut shown = BTreeSet::new();
    for (file, text) in DEPLOYED {
        for (name, labels) in asked(text) {
            let parts = ["_bucket", "_sum", "_count"];
            let family = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(&name);
            let known = families.get(family).unwrap_or_else(|| panic!("{file} asks for {name}"));
            for label in &labels {
                let is_prometheus = ["job", "instance", "le"].contains(&label.as_str());
                assert!(is_prometheus || known.contains(label.as_str()), "{file} asks for {name}{{{label}}}");
            }
            shown.insert(family.to_owned());
        }
    }
    let missing: Vec<&&str> = families.keys().filter(|name| !shown.contains(**name)).collect();
    assert!(missing.is_empty(), "nobody shows {missing:?}");
}

#[tokio::test]
async fn how_far_reservations_were_off_and_what_a_shadow_would_have_held_is_counted() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.limits.push(Limit { name: "trial".into(), mode: Mode::Shadow, ..team_limit(20) });
        config.policy.limits.push(team_limit(100_000));
    })
    .await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", &CHAT.replace("}]}", "}],\"max_tokens\":100}")).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", TOLD, USED).await;
    client.message(false).await;
    idle(&gateway).await;
    let text = metrics(&gateway).await;
    let of = |series: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series}\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let target = "{upstream=\"openai\",model=\"gpt-4o\"";
    let reserved = of(&format!("tidegate_reserved_tokens_total{target}}}"));
    assert!(reserved > 100.0, "input and max_tokens: {reserved}");
    assert_eq!(of(&format!("tidegate_reservation_error_tokens_total{target}}}")), reserved - 12.0);
    assert_eq!(of("tidegate_shadow_held_total{limit=\"trial\"}"), 1.0);
    let age = format!("tidegate_learned_limit_age_seconds{target},dimension=\"requests_per_minute\"}}");
    assert!((0.0..30.0).contains(&of(&age)));
    let_pass(std::time::Duration::from_secs(90)).await;
    let later = metrics(&gateway).await;
    let line = later.lines().find(|line| line.starts_with(&age)).unwrap();
    assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() >= 90.0, "{line}");
}

#[tokio::test]
async fn what_was_learned_before_a_restart_is_shown_by_its_name_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let start = async || {
        let (config, admin_token) = (config(upstream.addr), Some("operator".to_owned()));
        let state_dir = Some(dir.path().to_owned());
        let options =
            GatewayOptions { config, allow_anonymous: false, state_dir, admin_token, own_threads: false, source: None };
        Gateway::start(options).await.unwrap()
    };
    let gateway = start().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", TOLD, USED).await;
    client.message(false).await;
    drop(client);
    gateway.drain().await;
    let text = metrics(&start().await).await;
    let series = "tidegate_learned_limit{upstream=\"openai\",model=\"gpt-4o\",dimension=\"requests_per_minute\"} 500";
    assert!(text.contains(series) && !text.contains("model=\"other\""), "{text}");
}

#[tokio::test]
async fn what_a_caller_or_an_upstream_takes_its_time_for_is_no_overhead() {
    let (gateway, upstream) = scripted().await;
    let late = std::time::Duration::from_secs(3);
    let mut caller = client(&gateway).await;
    let (first, rest) = CHAT.split_at(CHAT.len() / 2);
    let length = CHAT.len();
    caller
        .write(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             authorization: Bearer any\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    // It asks for the body now.
    assert_eq!(caller.head().await.0, "HTTP/1.1 100 Continue");
    caller.write(first).await;
    let_pass(late).await;
    caller.write(rest).await;
    let (mut peer, _) = upstream.request().await;
    let_pass(late).await;
    peer.begin_stream().await;
    // A whole exchange later it has seen the head.
    metrics(&gateway).await;
    let_pass(late).await;
    peer.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n").await;
    assert_eq!(caller.head().await.0, "HTTP/1.1 200 OK");
    let series = metrics(&gateway).await;
    let sum = series.lines().find_map(|line| line.strip_prefix("tidegate_overhead_seconds_sum ")).unwrap();
    assert!(sum.parse::<f64>().unwrap() < 1.0, "{sum}");
    assert!(series.contains("tidegate_overhead_seconds_count 1"), "{series}");
}
