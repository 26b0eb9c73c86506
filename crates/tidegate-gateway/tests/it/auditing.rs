//! What gets into the audit trail, what never does, and whether calls go on without it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_core::config::{AlertSignal, Config, KeyConfig, OnAuditFailure, RecordedUsers};
use tidegate_core::event::Event;
use tidegate_gateway::{Gateway, GatewayOptions};
use tidegate_watch::audit::{Reader, verify};

use crate::alerting::{alert, told};
use crate::support::*;

/// A gateway that keeps its trail in a directory of its own.
async fn kept(change: impl FnOnce(&mut Config)) -> (Gateway, Script, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.db");
    let (gateway, upstream) = scripted_with(|config| {
        config.audit.path = path;
        change(config);
    })
    .await;
    (gateway, upstream, dir)
}

/// One answer of the admin listener about the trail.
async fn ask(gateway: &Gateway, query: &str) -> Message {
    let head = "host: localhost\r\nauthorization: Bearer operator\r\nconnection: close";
    call_admin(gateway, &format!("GET /admin/v1/audit?{query} HTTP/1.1\r\n{head}\r\n\r\n")).await
}

/// How the trail stands, as the status has it.
async fn standing(gateway: &Gateway) -> Value {
    let reply = crate::admin::ask(gateway, "operator", "GET /admin/v1/status", "").await;
    serde_json::from_slice::<Value>(&reply.body).unwrap()["audit"].take()
}

/// The records that `query` asks for, once there are as many.
pub(crate) async fn records(gateway: &Gateway, query: &str, count: usize) -> Vec<Value> {
    within(async {
        loop {
            let reply = ask(gateway, query).await;
            let told: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let records = told["records"].as_array().cloned().unwrap_or_default();
            if records.len() >= count {
                return records.into_iter().map(|mut entry| entry["record"].take()).collect();
            }
        }
    })
    .await
}

/// Whether any file there has `secret` in it.
fn has(dir: &Path, secret: &str) -> bool {
    let mut files = std::fs::read_dir(dir).unwrap().filter_map(|file| match std::fs::read(file.unwrap().path()) {
        // What is being saved has a name of its own until it is whole.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.unwrap()),
    });
    files.any(|bytes| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
}

/// Two calls of which the second is refused for `[limit.team]`.
async fn refused(gateway: &Gateway, upstream: &Script, headers: &str) -> (Peer, Peer) {
    let all = CHAT.replace("}]}", "}],\"max_tokens\":96}");
    let mut first = client(gateway).await;
    first.post("/v1/chat/completions", "", &all).await;
    let (peer, _) = upstream.request().await;
    let mut second = client(gateway).await;
    second.post("/v1/chat/completions", &format!("x-tidegate-max-wait: 10ms\r\n{headers}"), &all).await;
    assert_eq!(second.message(false).await.status(), 429);
    (first, peer)
}

#[tokio::test]
async fn a_refusal_is_found_by_its_call_and_says_whose_and_by_which_limit() {
    let (gateway, upstream, dir) = kept(|config| config.policy.limits.push(team_limit(100))).await;
    let secret = "authorization: Bearer sk-planted\r\n";
    let headers = format!("x-tidegate-id: c-1\r\nx-tidegate-user: ada\r\n{secret}");
    let _under_way = refused(&gateway, &upstream, &headers).await;
    let found = records(&gateway, "call=c-1&kind=throttle&user=ada&since=1h", 1).await;
    assert_eq!((&found[0]["what"], &found[0]["limit"]), (&"refused".into(), &"team/tokens_per_minute".into()));
    assert_eq!((&found[0]["user"], &found[0]["target"]), (&"ada".into(), &"openai/gpt-4o".into()));
    assert!(found[0]["numbers"]["allowed"] == 100 && found[0]["tenant"].is_string(), "{found:?}");
    for secret in ["sk-planted", "hello"] {
        assert!(!has(dir.path(), secret), "{secret}");
    }
    let series = metrics(&gateway).await;
    assert!(series.contains("tidegate_audit_up 1") && series.contains("tidegate_audit_lost_total 0"), "{series}");
    // A record can be read a moment before it is counted.
    within(async { while metrics(&gateway).await.contains("tidegate_audit_records_total 0") {} }).await;
}

#[tokio::test]
async fn what_happened_before_the_end_is_in_the_trail_after_it() {
    let (gateway, upstream, dir) = kept(|config| config.policy.limits.push(team_limit(100))).await;
    let (mut first, mut peer) = refused(&gateway, &upstream, "x-tidegate-id: last\r\n").await;
    peer.reply("200 OK", "", "{}").await;
    first.message(false).await;
    within(gateway.drain()).await;
    let reader = Reader::open(&dir.path().join("audit.db")).unwrap();
    let latest = reader.latest(&Default::default(), 1).unwrap();
    assert_eq!(latest[0].record.call.as_deref(), Some("last"));
    assert_eq!(verify(&dir.path().join("audit.db")).unwrap().faults, []);
}

#[tokio::test]
async fn a_retry_is_a_record_and_so_is_how_it_ended() {
    let (gateway, upstream, _dir) = kept(|_| {}).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "x-tidegate-id: again\r\n", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("503 Service Unavailable", "", "{}").await;
    peer.again(&upstream).await.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    let found = records(&gateway, "call=again", 2).await;
    let told: Vec<_> = found.iter().map(|record| (record["kind"].as_str(), record["what"].as_str())).collect();
    assert_eq!(told, [(Some("retry"), Some("scheduled")), (Some("retry"), Some("succeeded"))]);
    assert!(found[0]["numbers"]["delay_us"].is_number() && found[0]["why"].is_string(), "{found:?}");
}

#[tokio::test]
async fn each_call_is_a_record_where_the_configuration_says_so() {
    let (gateway, upstream, _dir) = kept(|config| config.audit.calls = true).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "x-tidegate-id: c-1\r\n", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "", "{}").await;
    client.message(false).await;
    assert_eq!(records(&gateway, "call=c-1&kind=call", 1).await[0]["what"], "granted");
}

#[tokio::test]
async fn users_that_appear_as_hashes_are_still_found_by_name() {
    let (gateway, upstream, dir) = kept(|config| {
        config.policy.limits.push(team_limit(100));
        config.audit.users = RecordedUsers::Hash;
    })
    .await;
    let _under_way = refused(&gateway, &upstream, "x-tidegate-user: ada-lovelace\r\n").await;
    let found = records(&gateway, "user=ada-lovelace", 1).await;
    assert!(found[0]["user"].as_str().unwrap().starts_with('~'), "{found:?}");
    assert!(!has(dir.path(), "ada-lovelace"));
}

#[tokio::test]
async fn a_configuration_that_was_taken_over_or_turned_down_is_a_record() {
    let (gateway, upstream, _dir) = kept(|_| {}).await;
    let mut config = config(upstream.addr);
    config.policy.limits.push(team_limit(100));
    config.keys.push(KeyConfig { name: "billing".into(), ..KeyConfig::default() });
    gateway.reload(config).unwrap();
    assert!(gateway.reread().is_err(), "there is nothing to read");
    let found = records(&gateway, "kind=config", 3).await;
    let told: Vec<_> = found.iter().map(|record| record["what"].as_str().unwrap()).collect();
    assert_eq!(told, ["started", "reloaded", "turned down"]);
    let changed = found[1]["after"].as_str().unwrap();
    assert!(changed.contains("[[key]] [limit]"), "{changed}");
    assert_eq!(found[2]["why"], "this process reads no configuration");
    let keys = records(&gateway, "kind=key", 1).await;
    assert_eq!((&keys[0]["what"], &keys[0]["after"]), (&"added".into(), &"billing".into()));
}

#[tokio::test]
async fn calls_go_on_without_a_trail_unless_the_operator_wants_otherwise() {
    for on_failure in [OnAuditFailure::Continue, OnAuditFailure::Refuse] {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let (gateway, upstream) = scripted_with(|config| {
            config.audit.path = missing.join("audit.db");
            config.audit.on_failure = on_failure;
        })
        .await;
        within(async { while !metrics(&gateway).await.contains("tidegate_audit_up 0") {} }).await;
        let untold = ask(&gateway, "").await;
        assert_eq!((untold.status(), untold.error("code")), (503, "audit_unavailable".to_owned()));
        assert!(untold.error("message").contains("cannot be read: there is no audit trail at"), "{}", untold.text());
        let trail = standing(&gateway).await;
        let wanted = if on_failure == OnAuditFailure::Refuse { "refuse" } else { "continue" };
        assert_eq!((&trail["state"], &trail["on_failure"]), (&json!("failing"), &json!(wanted)));
        assert!(trail["why"].is_string() && trail["since"].is_string(), "{trail}");
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", CHAT).await;
        if on_failure == OnAuditFailure::Refuse {
            let reply = client.message(false).await;
            assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (503, Some("audit")));
            assert!(reply.error("message").contains("audit trail cannot be written"), "{}", reply.text());
            let series = metrics(&gateway).await;
            assert!(series.contains("tidegate_refusals_total{reason=\"audit\"} 1"), "{series}");
            let refused = "model=\"gpt-4o\",priority=\"normal\",outcome=\"refused\"} 1";
            assert!(series.contains(refused), "{series}");
            std::fs::create_dir(&missing).unwrap();
            within(async { while !metrics(&gateway).await.contains("tidegate_audit_up 1") {} }).await;
            assert_eq!(standing(&gateway).await, json!({"state": "well", "lost": 0, "on_failure": "refuse"}));
            client.post("/v1/chat/completions", "", CHAT).await;
        }
        let (mut peer, _) = upstream.request().await;
        peer.reply("200 OK", "", "{}").await;
        assert_eq!(client.message(false).await.status(), 200);
    }
}

#[tokio::test]
async fn while_the_file_is_locked_calls_are_held_to_on_failure_the_alert_fires_and_what_is_lost_is_told() {
    for on_failure in [OnAuditFailure::Continue, OnAuditFailure::Refuse] {
        let (gateway, upstream, dir) = kept(|config| {
            config.audit.on_failure = on_failure;
            config.alerts = vec![alert(AlertSignal::AuditFailed)];
        })
        .await;
        records(&gateway, "kind=config", 1).await;
        let lock = rusqlite::Connection::open(dir.path().join("audit.db")).unwrap();
        lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let recorded = || gateway.driver().tell(Event::BoostEnded { limit: "team".into() });
        recorded();
        let fired = told(&gateway, |alert| alert["state"] == "firing").await;
        assert_eq!(fired["value"], 1.0, "nothing is lost yet");
        let mut caller = client(&gateway).await;
        caller.post("/v1/chat/completions", "", CHAT).await;
        if on_failure == OnAuditFailure::Continue {
            let (mut peer, _) = upstream.request().await;
            peer.reply("200 OK", "", "{}").await;
            assert_eq!(caller.message(false).await.status(), 200);
        } else {
            assert_eq!(caller.message(false).await.header("x-tidegate-reason"), Some("audit"));
        }
        // More than finds room to wait.
        while metrics(&gateway).await.contains("tidegate_audit_lost_total 0") {
            (0..10_000).for_each(|_| recorded());
        }
        let lossy = told(&gateway, |alert| alert["value"].as_f64() > Some(1.0)).await;
        assert_eq!(lossy["state"], "firing");
        let trail = standing(&gateway).await;
        assert!(trail["state"] == "failing" && trail["lost"].as_u64() >= Some(1), "{trail}");
        lock.execute_batch("ROLLBACK").unwrap();
        let gaps = records(&gateway, "kind=gap", 1).await;
        assert!(gaps[0]["numbers"]["lost"].as_u64() >= Some(1), "{gaps:?}");
        let fired = records(&gateway, "kind=alert", 1).await;
        assert_eq!(fired[0]["what"], "fired");
        within(async { while !metrics(&gateway).await.contains("tidegate_audit_up 1") {} }).await;
        caller.post("/v1/chat/completions", "", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("200 OK", "", "{}").await;
        assert_eq!(caller.message(false).await.status(), 200);
    }
}

#[tokio::test]
async fn a_trail_that_must_be_kept_needs_a_place() {
    let mut config = Config::default();
    config.audit.on_failure = OnAuditFailure::Refuse;
    let admin_token = Some("operator".to_owned());
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: None,
        admin_token,
        own_threads: false,
        source: None,
    };
    let error = Gateway::start(options).await.unwrap_err().to_string();
    assert!(error.contains("needs a state directory, or an absolute path"), "{error}");
}

#[tokio::test]
async fn the_trail_is_for_those_with_the_token_and_says_what_may_be_asked() {
    let (gateway, _upstream, _dir) = kept(|_| {}).await;
    let open = "GET /admin/v1/audit HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(call_admin(&gateway, open).await.status(), 401);
    let reply = ask(&gateway, "kind=throttles").await;
    assert!(reply.status() == 400 && reply.error("message").contains("write one of throttle"), "{}", reply.text());
    let (without, _upstream) = scripted().await;
    let reply = ask(&without, "").await;
    assert!(reply.error("message").contains("there is no audit trail"), "{}", reply.text());
}

#[tokio::test]
async fn a_wait_of_a_second_is_a_record() {
    let (gateway, upstream, _dir) = kept(|config| config.policy.limits.push(team_limit(60_000))).await;
    // Takes the whole minute's worth.
    let all = CHAT.replace("}]}", "}],\"max_tokens\":59900}");
    let mut first = client(&gateway).await;
    first.post("/v1/chat/completions", "", &all).await;
    let (_held, _) = upstream.request().await;
    let more = CHAT.replace("}]}", "}],\"max_tokens\":1900}");
    let mut second = client(&gateway).await;
    second.post("/v1/chat/completions", "x-tidegate-id: waits\r\n", &more).await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    let_pass(Duration::from_secs(61)).await;
    let (_other, _) = upstream.request().await;
    let found = records(&gateway, "call=waits", 1).await;
    assert_eq!((&found[0]["what"], &found[0]["limit"]), (&"waited".into(), &"team/tokens_per_minute".into()));
    assert!(found[0]["numbers"]["waited_us"].as_u64().unwrap() >= 1_000_000, "{found:?}");
}
