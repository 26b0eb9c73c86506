//! Alerts: who hears of them, and what happens while nobody takes them.

use std::time::Duration;

use serde_json::Value;
use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{AlertConfig, AlertSignal, Config, SecretSource, SecretUrl, Webhook, WebhookFormat};
use tidegate_core::limit::{Dimension, Limit, Rates, Scope};
use tidegate_gateway::{Gateway, GatewayOptions};

use crate::support::*;

/// Whoever knows it could post there too.
const SECRET: &str = "T0P-SECRET";

pub(crate) fn alert(when: AlertSignal) -> AlertConfig {
    AlertConfig {
        name: when.name().into(),
        when,
        above: 0.0,
        lasting: Duration::ZERO,
        every: Duration::from_secs(600),
        webhook: None,
        format: WebhookFormat::Generic,
    }
}

fn posted_to(webhook: &Script, alert: AlertConfig) -> AlertConfig {
    let url = format!("http://{}/hooks/{SECRET}", webhook.addr);
    AlertConfig { webhook: Some(Webhook::Url(SecretUrl::new(url))), ..alert }
}

/// Opens its breaker with the first failure, and tries nothing again.
fn brittle(config: &mut Config) {
    config.policy.breaker.failure_threshold = 1;
    config.policy.retry.max_attempts = 1;
}

async fn page(gateway: &Gateway) -> Value {
    let head = "host: localhost\r\nconnection: close\r\nauthorization: Bearer operator";
    let reply = call_admin(gateway, &format!("GET /admin/v1/alerts HTTP/1.1\r\n{head}\r\n\r\n")).await;
    assert_eq!(reply.status(), 200, "{}", reply.text());
    assert!(!reply.text().contains(SECRET), "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

/// Waits until what is told of the first alert is so.
pub(crate) async fn told(gateway: &Gateway, is_so: impl Fn(&Value) -> bool) -> Value {
    within(async {
        loop {
            let page = page(gateway).await;
            if is_so(&page["alerts"][0]) {
                return page["alerts"][0].clone();
            }
        }
    })
    .await
}

/// One call, to which the upstream says `status`.
async fn answered(gateway: &Gateway, upstream: &Script, status: &str) {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply(status, "connection: close\r\n", "{}").await;
    client.message(false).await;
}

#[tokio::test]
async fn a_breaker_that_opens_is_posted_and_so_is_its_end() {
    let webhook = Script::listen().await;
    let (gateway, upstream) = scripted_with(|config| {
        brittle(config);
        config.alerts = vec![posted_to(&webhook, alert(AlertSignal::BreakerOpen))];
    })
    .await;
    answered(&gateway, &upstream, "503 Service Unavailable").await;
    let (mut receiver, request) = webhook.request().await;
    assert_eq!(request.start, format!("POST /hooks/{SECRET} HTTP/1.1"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&body["state"], &body["value"]), (&"firing".into(), &1.0.into()));
    assert_eq!(body["about"][0], "openai/gpt-4o");
    receiver.reply("204 No Content", "", "").await;
    let fired = told(&gateway, |alert| alert["webhook"]["last"][0]["state"] == "delivered").await;
    assert_eq!((&fired["state"], &fired["webhook"]["failures"]), (&"firing".into(), &0.into()), "{fired}");
    let series = metrics(&gateway).await;
    assert!(series.contains("tidegate_alert_firing{alert=\"breaker_open\"} 1"), "{series}");

    gateway.driver().with(|gate, now| gate.force_breaker("openai/gpt-4o", BreakerState::Closed, now));
    told(&gateway, |alert| alert["value"] == 0.0).await;
    let_pass(Duration::from_secs(31)).await;
    let over = receiver.message(false).await;
    let over: Value = serde_json::from_slice(&over.body).unwrap();
    assert!(over["state"] == "over" && over["id"] != body["id"], "{over}");
    receiver.reply("200 OK", "", "ok").await;
    told(&gateway, |alert| alert["state"] == "quiet" && alert["webhook"]["waiting"] == 0).await;
}

#[tokio::test]
async fn a_webhook_that_cannot_take_a_notice_is_asked_again_before_the_next_and_that_is_seen() {
    let webhook = Script::listen().await;
    let (gateway, upstream) = scripted_with(|config| {
        brittle(config);
        let slack = AlertConfig { format: WebhookFormat::Slack, ..alert(AlertSignal::BreakerOpen) };
        config.alerts = vec![posted_to(&webhook, slack)];
    })
    .await;
    answered(&gateway, &upstream, "503 Service Unavailable").await;
    let (mut receiver, first) = webhook.request().await;
    receiver.reply("503 Service Unavailable", "connection: close\r\n", "").await;
    drop(receiver);
    let trying = told(&gateway, |alert| alert["webhook"]["failures"] == 1).await;
    let delivery = &trying["webhook"]["last"][0];
    assert_eq!(delivery["state"], "retrying");
    assert_eq!(delivery["error"], "it answered 503 Service Unavailable");
    let series = "tidegate_alert_delivery_failures_total{alert=\"breaker_open\"} 1";
    assert!(metrics(&gateway).await.contains(series));
    gateway.driver().with(|gate, now| gate.force_breaker("openai/gpt-4o", BreakerState::Closed, now));
    told(&gateway, |alert| alert["value"] == 0.0).await;
    let_pass(Duration::from_secs(31)).await;
    // One more attempt may have been under way, and have lasted too long.
    let over = loop {
        let (mut receiver, posted) = webhook.request().await;
        receiver.reply("200 OK", "connection: close\r\n", "ok").await;
        if posted.body != first.body {
            break posted.text();
        }
    };
    assert!(first.text().starts_with(r#"{"text":":rotating_light: tidegate"#), "{}", first.text());
    assert!(over.starts_with(r#"{"text":":white_check_mark: tidegate"#), "{over}");
    let taken = told(&gateway, |alert| alert["webhook"]["waiting"] == 0).await;
    let last: Vec<_> =
        taken["webhook"]["last"].as_array().unwrap().iter().map(|one| (&one["turn"], &one["state"])).collect();
    assert_eq!(last, [(&"over".into(), &"delivered".into()), (&"fires".into(), &"delivered".into())]);
}

#[tokio::test]
async fn a_webhook_that_turns_a_notice_down_is_not_asked_again() {
    let webhook = Script::listen().await;
    let (gateway, upstream) = scripted_with(|config| {
        brittle(config);
        config.alerts = vec![posted_to(&webhook, alert(AlertSignal::BreakerOpen))];
    })
    .await;
    answered(&gateway, &upstream, "503 Service Unavailable").await;
    let (mut receiver, _) = webhook.request().await;
    receiver.reply("302 Found", "location: http://127.0.0.1:1/\r\n", "").await;
    let failed = told(&gateway, |alert| alert["webhook"]["last"][0]["state"] == "failed").await;
    assert_eq!((&failed["webhook"]["waiting"], &failed["webhook"]["failures"]), (&0.into(), &1.into()));
}

#[tokio::test]
async fn calls_are_what_shares_and_percentiles_are_taken_of() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.breaker.failure_threshold = 1000;
        config.policy.breaker.minimum_calls = 1000;
        config.policy.retry.max_attempts = 2;
        config
            .policy
            .limits
            .push(Limit { base: Rates::default().with(Dimension::RequestsPerMinute, 20), ..team_limit(1) });
        config.alerts = AlertSignal::ALL.map(alert).to_vec();
    })
    .await;
    for _ in 0..20 {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", CHAT).await;
        for _ in 0..2 {
            let (mut peer, _) = upstream.request().await;
            peer.reply("500 Internal Server Error", "connection: close\r\n", "{}").await;
        }
        assert_eq!(client.message(false).await.status(), 500);
    }
    for _ in 0..20 {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "x-tidegate-max-wait: 1ms\r\n", CHAT).await;
        assert_eq!(client.message(false).await.status(), 429);
    }
    let of = |page: &Value, when: AlertSignal| {
        let alerts = page["alerts"].as_array().unwrap();
        alerts.iter().find(|alert| alert["when"] == when.name()).unwrap().clone()
    };
    let page = within(async {
        loop {
            let page = page(&gateway).await;
            if of(&page, AlertSignal::RateLimited)["value"] == 0.5 {
                return page;
            }
        }
    })
    .await;
    for when in [AlertSignal::ErrorRate, AlertSignal::Retries] {
        assert_eq!(of(&page, when)["value"], 0.5, "{page}");
    }
    assert_eq!(of(&page, AlertSignal::RateLimited)["about"], serde_json::json!(["team"]));
    assert_eq!(of(&page, AlertSignal::ErrorRate)["about"], serde_json::json!(["openai/gpt-4o"]));
    for when in AlertSignal::ALL {
        let has_happened = when.is_share() || matches!(when, AlertSignal::UpstreamLatency | AlertSignal::QueueWait);
        let state = if has_happened { "firing" } else { "quiet" };
        assert_eq!(of(&page, when)["state"], state, "{page}");
    }
}

#[tokio::test]
async fn a_gateway_does_not_start_while_the_secret_of_a_webhook_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("127.0.0.1:1".parse().unwrap());
    let source = SecretSource::File(dir.path().join("hook"));
    config.alerts = vec![AlertConfig { webhook: Some(Webhook::Source(source)), ..alert(AlertSignal::Retries) }];
    let start = || {
        let (config, admin_token) = (config.clone(), Some("operator".to_owned()));
        let options = GatewayOptions {
            config,
            allow_anonymous: false,
            state_dir: None,
            admin_token,
            own_threads: false,
            source: None,
        };
        Gateway::start(options)
    };
    let error = start().await.unwrap_err().to_string();
    assert!(error.contains("alert \"retries\": webhook: cannot read"), "{error}");
    for (url, is_right) in [("ftp://x/", false), ("https://user:word@x/", false), ("https://hooks.example/1", true)] {
        std::fs::write(dir.path().join("hook"), url).unwrap();
        let started = start().await;
        let error = started.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(started.is_ok() == is_right && !error.contains("word@"), "{error}");
    }
}

#[tokio::test]
async fn a_reload_keeps_what_fires_and_changes_where_it_is_posted() {
    let (webhook, upstream) = (Script::listen().await, Script::listen().await);
    let mut config = config(upstream.addr);
    brittle(&mut config);
    config.alerts = vec![alert(AlertSignal::BreakerOpen)];
    let gateway = start(config.clone()).await;
    answered(&gateway, &upstream, "503 Service Unavailable").await;
    let before = told(&gateway, |alert| alert["state"] == "firing").await;
    assert_eq!(before["webhook"], Value::Null);
    let more_often = AlertConfig { every: Duration::from_secs(60), ..alert(AlertSignal::BreakerOpen) };
    config.alerts = vec![posted_to(&webhook, more_often)];
    gateway.reload(config).unwrap();
    let after = told(&gateway, |alert| alert["webhook"] != Value::Null).await;
    assert_eq!((&after["state"], &after["since"]), (&"firing".into(), &before["since"]));
    let_pass(Duration::from_secs(60)).await;
    let (_receiver, request) = webhook.request().await;
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&body["reminder"], &body["since"]), (&true.into(), &before["since"]));
}

/// The records of `kind`, once there are `count`, the newest first.
async fn records(gateway: &Gateway, kind: &str, count: usize) -> Vec<Value> {
    let head = "host: localhost\r\nconnection: close\r\nauthorization: Bearer operator";
    let request = format!("GET /admin/v1/audit?kind={kind} HTTP/1.1\r\n{head}\r\n\r\n");
    within(async {
        loop {
            let records: Value = serde_json::from_slice(&call_admin(gateway, &request).await.body).unwrap();
            let records = records["records"].as_array().unwrap();
            if records.len() >= count {
                return records.iter().map(|entry| entry["record"].clone()).collect();
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_alert_that_fires_and_is_no_longer_configured_is_over_for_its_webhook_and_the_trail() {
    let (webhook, upstream) = (Script::listen().await, Script::listen().await);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(upstream.addr);
    brittle(&mut config);
    config.audit.path = dir.path().join("audit.db");
    config.alerts = vec![posted_to(&webhook, alert(AlertSignal::BreakerOpen))];
    let gateway = start(config.clone()).await;
    answered(&gateway, &upstream, "503 Service Unavailable").await;
    let (mut receiver, fired) = webhook.request().await;
    receiver.reply("200 OK", "", "ok").await;
    let fired: Value = serde_json::from_slice(&fired.body).unwrap();
    config.alerts.clear();
    gateway.reload(config).unwrap();
    let over: Value = serde_json::from_slice(&receiver.message(false).await.body).unwrap();
    assert_eq!((&over["state"], &over["since"]), (&"over".into(), &fired["since"]), "{over}");
    let text = over["text"].as_str().unwrap();
    assert!(text.contains(": no longer configured; 1 breaker open (openai/gpt-4o)"), "{text}");
    let records = records(&gateway, "alert", 2).await;
    let told: Vec<_> = records.iter().map(|it| (&it["what"], &it["before"], &it["after"])).collect();
    let (name, none) = (Value::from("breaker_open"), Value::Null);
    let expected = [(&"over".into(), &name, &none), (&"fired".into(), &none, &name)];
    assert!(told == expected || told.iter().rev().eq(&expected), "{told:?}");
    for record in &records {
        let numbers = &record["numbers"];
        assert_eq!((&numbers["value"], &numbers["above"]), (&1.into(), &0.into()), "{record}");
        assert!(numbers["lasted_us"].is_u64(), "{record}");
    }
}

#[tokio::test]
async fn a_key_that_brings_ever_new_users_is_suspected_told_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.limits.push(Limit { per: vec![Scope::User], ..team_limit(1) });
        config.audit.path = dir.path().join("audit.db");
        config.alerts = vec![alert(AlertSignal::BypassSuspected)];
    })
    .await;
    let mut caller = client(&gateway).await;
    // The limit is too small for any call, which a way round it would not know yet.
    let call = async |caller: &mut Peer, user: &str| {
        caller.post("/v1/chat/completions", &format!("x-tidegate-user: {user}\r\n"), CHAT).await;
        caller.message(false).await.status()
    };
    assert_eq!(call(&mut caller, "ada").await, 429);
    // Once it has been looked at the first stretch begins, from which is learned what is usual.
    for seconds in [2, 601] {
        let_pass(Duration::from_secs(seconds)).await;
        told(&gateway, |alert| alert["value"] == 0.0 && alert["state"] == "quiet").await;
    }
    let mut caller = client(&gateway).await;
    for number in 0..60 {
        call(&mut caller, &format!("invented-{number}")).await;
    }
    let fired = told(&gateway, |alert| alert["state"] == "firing").await;
    assert_eq!(fired["value"], 1.0);
    let record = &records(&gateway, "anomaly", 1).await[0];
    assert_eq!((&record["tenant"], &record["why"]), (&"anonymous".into(), &"new_users".into()), "{record}");
    drop(upstream);
}

#[tokio::test]
async fn a_key_whose_users_leave_once_their_own_limit_refuses_them_is_suspected_from_its_first_call_on() {
    let (gateway, _upstream) = scripted_with(|config| {
        let blocked = Rates::default().with(Dimension::RequestsPerDay, 0);
        config.policy.limits.push(Limit { per: vec![Scope::User], base: blocked, ..team_limit(1) });
        config.alerts = vec![alert(AlertSignal::BypassSuspected)];
    })
    .await;
    let mut caller = client(&gateway).await;
    for number in 0..180 {
        let user = format!("x-tidegate-user: invented-{}\r\n", number / 3);
        caller.post("/v1/chat/completions", &user, CHAT).await;
        let reply = caller.message(false).await;
        assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("too_large")));
    }
    // The look that sees the calls begins the silence.
    for seconds in [2, 301] {
        told(&gateway, |alert| alert["value"] == 0.0).await;
        let_pass(Duration::from_secs(seconds)).await;
    }
    let fired = told(&gateway, |alert| alert["state"] == "firing").await;
    assert_eq!(fired["about"], serde_json::json!(["anonymous (new_users)"]), "{fired}");
}

#[tokio::test]
async fn a_caller_that_comes_back_before_its_time_is_suspected() {
    let (gateway, _upstream) = scripted_with(|config| {
        config.policy.limits.push(team_limit(1));
        config.alerts = vec![alert(AlertSignal::BypassSuspected)];
    })
    .await;
    let mut caller = client(&gateway).await;
    for _ in 0..40 {
        caller.post("/v1/chat/completions", "", CHAT).await;
        assert_eq!(caller.message(false).await.status(), 429);
    }
    let fired = told(&gateway, |alert| alert["state"] == "firing").await;
    assert_eq!(fired["value"], 1.0);
}

#[tokio::test]
async fn alerts_are_for_those_with_the_token() {
    let (gateway, _upstream) = scripted().await;
    let open = "GET /admin/v1/alerts HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(call_admin(&gateway, open).await.status(), 401);
    assert_eq!(page(&gateway).await["alerts"], serde_json::json!([]));
}
