//! A configuration that is read again: while the audit trail is locked, and where not all of it can take effect.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use tidegate_core::config::OnAuditFailure;
use tidegate_core::limit::{Dimension, Limit, Rates};
use tidegate_gateway::{ConfigSource, Gateway, GatewayOptions};
use tidegate_watch::audit::{Filter, Reader};

use crate::admin::ask;
use crate::auditing::records;
use crate::operating::done;
use crate::support::*;

/// A gateway whose configuration has a limit of one call a day from the second reading on; how often it was read; its trail, locked.
struct Locked {
    gateway: Gateway,
    upstream: Script,
    read: Arc<AtomicUsize>,
    lock: rusqlite::Connection,
    dir: TempDir,
}

async fn locked(on_failure: OnAuditFailure) -> Locked {
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.audit.on_failure = on_failure;
    let read = Arc::<AtomicUsize>::default();
    let source = {
        let (config, read) = (config.clone(), read.clone());
        move || {
            read.fetch_add(1, Ordering::Relaxed);
            let mut config = config.clone();
            let base = Rates::default().with(Dimension::RequestsPerDay, 1);
            config.policy.limits.push(Limit { base, ..team_limit(1) });
            Ok(config)
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: Some(dir.path().to_owned()),
        admin_token: Some("operator".to_owned()),
        own_threads: false,
        source: Some(ConfigSource::new(source)),
    };
    let gateway = Gateway::start(options).await.unwrap();
    records(&gateway, "kind=config", 1).await;
    let lock = rusqlite::Connection::open(dir.path().join("audit.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    Locked { gateway, upstream, read, lock, dir }
}

impl Locked {
    /// How a call is answered, by an upstream that answers every call well; why, where tidegate refuses it.
    async fn call(&self) -> (u16, Option<String>) {
        let mut client = client(&self.gateway).await;
        client.post("/v1/chat/completions", "x-tidegate-max-wait: 10ms\r\n", CHAT).await;
        let answer = tokio::select! {
            answer = client.message(false) => answer,
            (mut peer, _) = self.upstream.request() => {
                peer.reply("200 OK", "connection: close\r\n", "{}").await;
                client.message(false).await
            }
        };
        idle(&self.gateway).await;
        (answer.status(), answer.header("x-tidegate-reason").map(str::to_owned))
    }

    /// What is said of configurations and overrides in the trail, once the lock is gone and the gateway has ended.
    async fn recorded(self) -> Vec<[String; 4]> {
        within(self.gateway.drain()).await;
        let reader = Reader::open(&self.dir.path().join("audit.db")).unwrap();
        let all = reader.after(&Filter::default(), 0).unwrap();
        let said =
            all.iter().map(|entry| &entry.record).filter(|record| ["config", "override"].contains(&record.kind.name()));
        said.map(|record| {
            let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
            [record.kind.name().to_owned(), record.what.to_string(), text(&record.who), text(&record.why)]
        })
        .collect()
    }

    fn unlock(&self) {
        self.lock.execute_batch("ROLLBACK").unwrap();
    }
}

fn said(told: &[[&str; 4]]) -> Vec<[String; 4]> {
    told.iter().map(|record| record.map(str::to_owned)).collect()
}

#[tokio::test]
async fn it_takes_effect_and_is_recorded_once_the_trail_can_be_written() {
    let locked = locked(OnAuditFailure::Continue).await;
    let reply = ask(&locked.gateway, "operator", "POST /admin/v1/reload", r#"{"reason":"a test"}"#).await;
    assert_eq!(reply.status(), 200, "{}", reply.text());
    let told: Value = serde_json::from_slice(&reply.body).unwrap();
    assert!(told["warnings"][0].as_str().unwrap().contains("recorded once that is over"), "{told}");
    assert_eq!((locked.call().await.0, locked.call().await.0), (200, 429), "it is in force");
    // As with SIGHUP: nobody is asked.
    locked.gateway.reread().unwrap();
    locked.unlock();
    let recorded = locked.recorded().await;
    let (started, reloaded) = (["config", "started", "", ""], ["config", "reloaded", "local", ""]);
    let by_signal = ["config", "reloaded", "", ""];
    assert_eq!(recorded, said(&[started, ["override", "reload", "local", "a test"], reloaded, by_signal]));
}

#[tokio::test]
async fn where_nothing_may_happen_without_a_record_it_is_not_even_read() {
    let locked = locked(OnAuditFailure::Refuse).await;
    let reply = ask(&locked.gateway, "operator", "POST /admin/v1/reload", r#"{"reason":"a test"}"#).await;
    assert!(reply.status() == 503 && reply.error("message").ends_with("nothing has changed"), "{}", reply.text());
    assert_eq!(locked.read.load(Ordering::Relaxed), 0);
    assert_eq!(locked.call().await, (503, Some("audit".to_owned())));
    locked.unlock();
    within(async { while !metrics(&locked.gateway).await.contains("tidegate_audit_up 1") {} }).await;
    assert_eq!((locked.call().await.0, locked.call().await.0), (200, 200), "the limit is not in force");
    assert_eq!(locked.recorded().await, said(&[["config", "started", "", ""]]), "what was refused is not found later");
}

#[tokio::test]
async fn by_a_signal_it_takes_effect_and_no_call_goes_before_it_is_recorded() {
    let locked = locked(OnAuditFailure::Refuse).await;
    locked.gateway.reread().unwrap();
    // Known to be locked once something was to be written.
    within(async { while !metrics(&locked.gateway).await.contains("tidegate_audit_up 0") {} }).await;
    assert_eq!(locked.call().await, (503, Some("audit".to_owned())));
    locked.unlock();
    within(async { while !metrics(&locked.gateway).await.contains("tidegate_audit_up 1") {} }).await;
    assert_eq!((locked.call().await.0, locked.call().await.0), (200, 429), "the limit is in force");
    let recorded = locked.recorded().await;
    assert_eq!(recorded, said(&[["config", "started", "", ""], ["config", "reloaded", "", ""]]));
}

#[tokio::test]
async fn what_waits_for_a_restart_is_told_for_as_long_as_it_waits() {
    let upstream = Script::listen().await;
    let started = config(upstream.addr);
    let configured = Arc::new(Mutex::new(started.clone()));
    let source = {
        let configured = configured.clone();
        move || Ok(configured.lock().unwrap().clone())
    };
    let options = GatewayOptions {
        config: started.clone(),
        allow_anonymous: false,
        state_dir: None,
        admin_token: Some("operator".to_owned()),
        own_threads: false,
        source: Some(ConfigSource::new(source)),
    };
    let gateway = Gateway::start(options).await.unwrap();
    let warnings = async || {
        let told = done(&gateway, "POST /admin/v1/reload", "").await;
        let warnings: Vec<String> = serde_json::from_value(told["warnings"].clone()).unwrap();
        warnings.into_iter().filter(|warning| !warning.contains("there is no audit trail")).collect::<Vec<_>>()
    };
    assert_eq!(warnings().await, [""; 0]);
    {
        let mut config = configured.lock().unwrap();
        config.server.admin_listen.set_port(1);
        config.audit.calls = !config.audit.calls;
        config.server.max_body += 1;
        config.audit.on_failure = OnAuditFailure::Continue;
    }
    for _ in 0..2 {
        assert_eq!(warnings().await, ["not in force before a restart: server.admin_listen, audit.calls"]);
    }
    configured.lock().unwrap().server.listen = vec!["127.0.0.1:1".parse().unwrap()];
    assert!(warnings().await[0].contains("server.listen, server.admin_listen, audit.calls"));
    *configured.lock().unwrap() = started;
    assert_eq!(warnings().await, [""; 0]);
}
