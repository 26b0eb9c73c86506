//! What operators can change while the gateway runs: that it takes effect, is recorded first, and survives.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tidegate_core::config::{Config, OnAuditFailure};
use tidegate_core::limit::{Dimension, Limit, Rates, Scope};
use tidegate_gateway::{ConfigSource, Gateway, GatewayOptions};
use tidegate_watch::audit::{Filter, Kind, Reader, Record};

use crate::admin::{ask, with_viewer};
use crate::auditing::records;
use crate::support::*;

/// A gateway that keeps its state in `dir`.
pub(crate) async fn start_in(dir: &Path, config: Config) -> Gateway {
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: Some(dir.to_owned()),
        admin_token: Some("operator".to_owned()),
        own_threads: false,
        source: None,
    };
    Gateway::start(options).await.unwrap()
}

/// What an operator's request came to.
pub(crate) async fn done(gateway: &Gateway, method_and_path: &str, body: &str) -> Value {
    let reply = ask(gateway, "operator", method_and_path, body).await;
    assert_eq!(reply.status(), 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

async fn status(gateway: &Gateway) -> Value {
    done(gateway, "GET /admin/v1/status", "").await
}

/// The records of operators in the trail.
async fn overrides(gateway: &Gateway) -> Vec<Value> {
    let told = done(gateway, "GET /admin/v1/audit?kind=override", "").await;
    told["records"].as_array().unwrap().iter().map(|entry| entry["record"].clone()).collect()
}

/// A call that goes well; the upstream's connection with it.
async fn succeed(gateway: &Gateway, upstream: &Script) {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    upstream.request().await.0.reply("200 OK", "connection: close\r\n", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    idle(gateway).await;
}

/// A call that does not get as far as the upstream.
async fn refused(gateway: &Gateway, headers: &str) -> Message {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", headers, CHAT).await;
    client.message(false).await
}

#[tokio::test]
async fn a_breaker_that_is_forced_open_lets_nothing_through_until_it_is_reset() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    succeed(&gateway, &upstream).await;
    let path = "POST /admin/v1/breakers/openai/gpt-4o/force-open";
    let told = done(&gateway, path, r#"{"reason":"the upstream's maintenance"}"#).await;
    assert_eq!(
        (&told["before"], &told["after"], &told["recorded"]),
        (&"closed".into(), &"forced_open".into(), &true.into())
    );
    let reply = refused(&gateway, "x-tidegate-id: c-1\r\n").await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (503, Some("breaker")));
    assert_eq!(status(&gateway).await["breakers"][0]["state"], "forced_open");
    assert_eq!(done(&gateway, "GET /admin/v1/explain/c-1", "").await["breaker"], "forced_open");
    let record = overrides(&gateway).await.remove(0);
    assert_eq!(
        (&record["what"], &record["who"], &record["target"], &record["why"]),
        (&"force-open".into(), &"local".into(), &"openai/gpt-4o".into(), &"the upstream's maintenance".into())
    );
    // A name may be encoded, as programs do it.
    done(&gateway, "POST /admin/v1/breakers/openai%2Fgpt-4o/reset", "").await;
    succeed(&gateway, &upstream).await;
    assert_eq!(status(&gateway).await["overrides"]["breakers"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_breaker_can_be_tried_and_held_closed() {
    let (gateway, upstream) = scripted().await;
    succeed(&gateway, &upstream).await;
    for (what, state) in [
        ("force-open", "forced_open"),
        ("force-half-open", "half_open"),
        ("force-closed", "forced_closed"),
        ("reset", "closed"),
    ] {
        done(&gateway, &format!("POST /admin/v1/breakers/openai/gpt-4o/{what}"), "").await;
        assert_eq!(status(&gateway).await["breakers"][0]["state"], state);
    }
}

#[tokio::test]
async fn who_may_look_may_not_change_anything() {
    let (gateway, _upstream) = scripted_with(with_viewer).await;
    let reply = ask(&gateway, "viewer", "POST /admin/v1/pause", "").await;
    assert_eq!(reply.status(), 403);
    assert!(reply.error("message").contains("has the role viewer; this wants operator"), "{}", reply.text());
    assert!(status(&gateway).await["paused"].is_null());
}

#[tokio::test]
async fn what_is_not_there_is_told_what_is_and_what_cannot_be_read_what_may_be_sent() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(team_limit(100_000))).await;
    for (path, body, status, why) in [
        ("breakers/openai/gpt-4o/reset", "", 404, "there is none yet"),
        ("limits/teams/reset", "", 404, "no limit \"teams\"; there are: team"),
        ("limits/teams/boost", r#"{"factor":2,"for":"1m"}"#, 404, "there are: team"),
        ("limits/team/boost", "", 400, "missing field `factor`; send"),
        ("limits/team/boost", r#"{"factor":2}"#, 400, "for is missing"),
        ("limits/team/boost", r#"{"factor":0.5,"for":"1m"}"#, 400, "factor must be from 1 to 1000, not 0.5"),
        (
            "limits/team/boost",
            r#"{"factor":2,"for":"soon"}"#,
            400,
            "for must be a duration from 1s to 30d, not \"soon\"",
        ),
        ("limits/team/boost", r#"{"factor":2,"for":"31d"}"#, 400, "for must be a duration"),
        ("limits/team/boost", r#"{"factor":2,"for":"1m","match":{"user":"a"}}"#, 400, "has one level for all"),
        ("limits/team/boost", r#"{"factor":null}"#, 400, "factor must be a number from 1 to 1000, not null; send {"),
        ("limits/team/boost", r#"{"for":10,"factor":2}"#, 400, "for must be a duration from 1s to 30d, not 10; send {"),
        (
            "limits/team/boost",
            r#"{"factor":2,"for":"1m","match":{"user":1}}"#,
            400,
            "as {\"user\":\"ada\"}, not {\"user\":1}; send",
        ),
        ("limits/team/boost", r#"{"factr":2}"#, 400, "unknown field `factr`"),
        ("pause", "{", 400, "send {\"reason\""),
        ("pause", "[null]", 400, "the body is no JSON object; send {\"reason\""),
        ("pause", r#"{"reason":"a\nb"}"#, 400, "reason must be one line of at most 500 characters, not \"a\\nb\""),
        ("pause", r#"{"reason":["a"]}"#, 400, "reason must be one line of at most 500 characters, not [\"a\"]; send"),
    ] {
        let reply = ask(&gateway, "operator", &format!("POST /admin/v1/{path}"), body).await;
        assert_eq!(reply.status(), status, "{path} {body}: {}", reply.text());
        assert!(reply.error("message").contains(why), "{path} {body}: {}", reply.text());
    }
    succeed(&gateway, &upstream).await;
    let reply = ask(&gateway, "operator", "POST /admin/v1/breakers/other/reset", "").await;
    assert!(reply.error("message").contains("no breaker \"other\"; there are: openai/gpt-4o"), "{}", reply.text());
}

#[tokio::test]
async fn a_paused_gateway_tells_callers_why_until_it_is_resumed() {
    let (gateway, upstream) = scripted().await;
    done(&gateway, "POST /admin/v1/pause", r#"{"reason":"the bill is being paid"}"#).await;
    let reply = refused(&gateway, "").await;
    assert_eq!(reply.status(), 503);
    assert_eq!(reply.error("message"), "tidegate: paused by an operator: the bill is being paid");
    let told = done(&gateway, "POST /admin/v1/resume", "").await;
    assert_eq!((&told["before"], &told["after"]), (&"paused".into(), &"running".into()));
    assert_eq!(told["recorded"], false, "there is nowhere to");
    succeed(&gateway, &upstream).await;
}

/// `[limit.each]`, one call a day for each user.
fn one_each() -> Limit {
    Limit {
        name: "each".into(),
        per: vec![Scope::User],
        base: Rates::default().with(Dimension::RequestsPerDay, 1),
        ..team_limit(1)
    }
}

#[tokio::test]
async fn a_boost_lets_those_go_that_it_selects_and_shows_for_how_long() {
    let by_minute = Rates::default().with(Dimension::RequestsPerMinute, 1);
    let (gateway, upstream) =
        scripted_with(|config| config.policy.limits.push(Limit { base: by_minute, ..one_each() })).await;
    let mut held = Vec::new();
    for user in ["ada", "bob"] {
        for _ in 0..2 {
            let mut client = client(&gateway).await;
            client.post("/v1/chat/completions", &format!("x-tidegate-user: {user}\r\n"), CHAT).await;
            held.push(client);
        }
    }
    let mut went = vec![upstream.request().await, upstream.request().await];
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 2)).await;
    done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":2,"for":"10m","match":{"user":"ad*"}}"#).await;
    went.push(upstream.request().await);
    assert_eq!(gateway.driver().with(|gate, _| gate.waiting()), 1);
    let told = status(&gateway).await;
    let level = |user: &str| {
        let mut levels = told["limits"].as_array().unwrap().iter();
        levels.find(|level| level["key"] == user).cloned().unwrap()
    };
    assert_eq!((&level("ada")["boost"]["factor"], &level("ada")["meters"][0]["limit"]), (&2.0.into(), &2.into()));
    let left = level("ada")["boost"]["ends_in_seconds"].as_f64().unwrap();
    assert!(left > 0.0 && left <= 600.0, "{left}");
    assert!(level("bob")["boost"].is_null());
    assert_eq!(told["overrides"]["boosts"][0]["by"], "local");
    let ended = done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":1,"match":{"user":"ad*"}}"#).await;
    assert!(ended["before"].as_str().unwrap().starts_with("× 2 for user ad* until "), "{ended}");
    assert_eq!(status(&gateway).await["overrides"]["boosts"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_reset_gives_back_what_was_used() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(one_each())).await;
    for path in ["limits/each/reset", "limits/reset"] {
        succeed(&gateway, &upstream).await;
        assert_eq!(refused(&gateway, "x-tidegate-max-wait: 10ms\r\n").await.status(), 429);
        done(&gateway, &format!("POST /admin/v1/{path}"), "").await;
    }
    succeed(&gateway, &upstream).await;
}

#[tokio::test]
async fn what_operators_said_is_in_force_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.policy.limits.push(one_each());
    let gateway = start_in(dir.path(), config.clone()).await;
    succeed(&gateway, &upstream).await;
    gateway.driver().save_state(dir.path(), false).unwrap();
    done(&gateway, "POST /admin/v1/limits/reset", "").await;
    done(&gateway, "POST /admin/v1/breakers/openai/gpt-4o/force-open", "").await;
    done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":3,"for":"1h"}"#).await;
    done(&gateway, "POST /admin/v1/pause", r#"{"reason":"a test"}"#).await;
    // Nothing is saved in order: the same as if it had been killed.
    drop(gateway);
    let gateway = start_in(dir.path(), config.clone()).await;
    let told = status(&gateway).await;
    assert_eq!((&told["paused"], &told["breakers"][0]["state"]), (&"a test".into(), &"forced_open".into()));
    assert_eq!(told["overrides"]["boosts"][0]["factor"], 3.0);
    done(&gateway, "POST /admin/v1/resume", "").await;
    assert_eq!(refused(&gateway, "").await.header("x-tidegate-reason"), Some("breaker"));
    done(&gateway, "POST /admin/v1/breakers/openai/gpt-4o/reset", "").await;
    // Three: of the day's one call nothing is left of the time before the reset.
    for _ in 0..3 {
        succeed(&gateway, &upstream).await;
    }
    assert_eq!(refused(&gateway, "x-tidegate-max-wait: 10ms\r\n").await.status(), 429);
    drop(gateway);
    let gateway = start_in(dir.path(), config).await;
    let told = status(&gateway).await;
    assert!(told["paused"].is_null() && told["breakers"] == Value::Array(Vec::new()), "{told}");
}

#[tokio::test]
async fn what_an_operator_does_is_one_record_that_says_who_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.policy.limits.push(one_each());
    let gateway = start_in(dir.path(), config).await;
    succeed(&gateway, &upstream).await;
    let asked = [
        ("limits/reset", "reset of all limits"),
        ("limits/each/reset", "reset of a limit"),
        ("limits/each/boost", "boost"),
        ("breakers/openai/gpt-4o/force-open", "force-open"),
        ("breakers/openai/gpt-4o/reset", "reset"),
        ("pause", "pause"),
        ("resume", "resume"),
    ];
    for (path, _) in asked {
        let more = if path.ends_with("boost") { r#""factor":2,"for":"1h","# } else { "" };
        done(&gateway, &format!("POST /admin/v1/{path}"), &format!(r#"{{{more}"reason":"a test"}}"#)).await;
    }
    // What the core had to say of it all is in the trail, too, by then.
    within(gateway.drain()).await;
    let reader = Reader::open(&dir.path().join("audit.db")).unwrap();
    let told = reader.latest(&Filter { kind: Some(Kind::Override), ..Filter::default() }, 100).unwrap();
    let what: Vec<&str> = told.iter().map(|entry| &*entry.record.what).collect();
    assert_eq!(what, asked.map(|(_, what)| what));
    for Record { who, why, .. } in told.iter().map(|entry| &entry.record) {
        assert_eq!((who.as_deref(), why.as_deref()), (Some("local"), Some("a test")));
    }
}

#[tokio::test]
async fn without_a_trail_an_override_takes_effect_with_a_warning_or_not_at_all() {
    for on_failure in [OnAuditFailure::Continue, OnAuditFailure::Refuse] {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Script::listen().await;
        let mut config = config(upstream.addr);
        config.audit.path = "missing/audit.db".into();
        config.audit.on_failure = on_failure;
        let gateway = start_in(dir.path(), config).await;
        let reply = ask(&gateway, "operator", "POST /admin/v1/pause", "").await;
        let is_paused = !status(&gateway).await["paused"].is_null();
        match on_failure {
            OnAuditFailure::Continue => {
                let told: Value = serde_json::from_slice(&reply.body).unwrap();
                assert!(is_paused && told["recorded"] == false, "{told}");
                assert!(told["warnings"][0].as_str().unwrap().contains("cannot be written"), "{told}");
            }
            OnAuditFailure::Refuse => {
                assert!(reply.status() == 503 && !is_paused, "{}", reply.text());
                assert!(reply.error("message").ends_with("nothing has changed"), "{}", reply.text());
                assert!(!dir.path().join("overrides.json").exists());
            }
        }
    }
}

#[tokio::test]
async fn what_takes_effect_while_the_trail_is_locked_is_recorded_once_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.policy.limits.push(one_each());
    let gateway = start_in(dir.path(), config).await;
    records(&gateway, "kind=config", 1).await;
    let lock = rusqlite::Connection::open(dir.path().join("audit.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    for (path, body) in [
        ("keys", r#"{"name":"ghost","reason":"a test"}"#),
        ("limits/each/boost", r#"{"factor":2,"for":"1h","reason":"a test"}"#),
        ("pause", r#"{"reason":"a test"}"#),
        ("resume", r#"{"reason":"a test"}"#),
    ] {
        let reply = ask(&gateway, "operator", &format!("POST /admin/v1/{path}"), body).await;
        let told: Value = serde_json::from_slice(&reply.body).unwrap();
        let warning = told["warnings"][0].as_str().unwrap_or_default();
        assert!(warning.contains("recorded once that is over"), "{path}: {told}");
    }
    lock.execute_batch("ROLLBACK").unwrap();
    records(&gateway, "kind=override", 3).await;
    within(gateway.drain()).await;
    let reader = Reader::open(&dir.path().join("audit.db")).unwrap();
    let all = reader.after(&Filter::default(), 0).unwrap();
    let said: Vec<&Record> = all.iter().map(|entry| &entry.record).filter(|record| record.who.is_some()).collect();
    let what: Vec<&str> = said.iter().map(|record| &*record.what).collect();
    assert_eq!(what, ["created", "boost", "pause", "resume"]);
    assert!(said.iter().all(|record| record.why.as_deref() == Some("a test")), "{said:?}");
}

#[tokio::test]
async fn a_reload_takes_over_what_is_written_now_or_says_what_is_wrong_with_it() {
    let upstream = Script::listen().await;
    let is_broken = Arc::new(AtomicBool::new(false));
    let read = {
        let (config, is_broken) = (config(upstream.addr), is_broken.clone());
        move || {
            let mut config = config.clone();
            config.policy.limits.push(one_each());
            if is_broken.load(Ordering::Relaxed) {
                Err("tidegate.toml:1:1: no such key".to_owned())
            } else {
                Ok(config)
            }
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let options = GatewayOptions {
        config: config(upstream.addr),
        allow_anonymous: false,
        state_dir: Some(dir.path().to_owned()),
        admin_token: Some("operator".to_owned()),
        own_threads: false,
        source: Some(ConfigSource::new(read)),
    };
    let gateway = Gateway::start(options).await.unwrap();
    succeed(&gateway, &upstream).await;
    done(&gateway, "POST /admin/v1/reload", "").await;
    succeed(&gateway, &upstream).await;
    assert_eq!(refused(&gateway, "x-tidegate-max-wait: 10ms\r\n").await.status(), 429);
    is_broken.store(true, Ordering::Relaxed);
    let reply = ask(&gateway, "operator", "POST /admin/v1/reload", r#"{"reason":"a test"}"#).await;
    assert_eq!(reply.status(), 409);
    assert!(reply.error("message").ends_with("stays in force: tidegate.toml:1:1: no such key"), "{}", reply.text());
    assert!(metrics(&gateway).await.contains("tidegate_config_last_reload_successful 0"));
    let told = [records(&gateway, "kind=override", 2).await, records(&gateway, "kind=config", 3).await].concat();
    let said: Vec<[&str; 3]> = told
        .iter()
        .map(|record| ["what", "who", "why"].map(|field| record[field].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(
        said,
        [
            ["reload", "local", ""],
            ["reload", "local", "a test"],
            ["started", "", ""],
            ["reloaded", "local", ""],
            ["turned down", "local", "tidegate.toml:1:1: no such key"]
        ]
    );
}
