//! What the description of the admin listener says is so where its own check cannot look: for a viewer, for the page, and for what is
//! told for as long as somebody listens.

use std::collections::BTreeSet;

use serde_json::Value;
use tidegate_core::config::AlertSignal;
use tidegate_gateway::Gateway;

use crate::admin::{ask, with_viewer};
use crate::alerting::alert;
use crate::support::*;
use crate::telling::{Reader, retried};

async fn description(gateway: &Gateway) -> Value {
    let request = "GET /admin/v1/openapi.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    serde_json::from_slice(&call_admin(gateway, request).await.body).unwrap()
}

/// Each operation: its method, its path with a name in it, and what is said of it.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let path = path.replace("{name}", "some");
        let methods = item.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters");
        methods.map(|(method, said)| (method.to_uppercase(), path.clone(), said.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

#[tokio::test]
async fn a_viewer_may_ask_for_all_that_is_read_and_for_nothing_that_changes_anything() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, _upstream) = scripted_with(|config| {
        with_viewer(config);
        config.audit.path = dir.path().join("audit.db");
    })
    .await;
    let (mut read, mut refused) = (0, 0);
    for (method, path, said) in operations(&description(&gateway).await) {
        if path == "/admin/v1/events" {
            // It goes on for ever.
            Reader::open_as(&gateway, "viewer", "", "").await;
            continue;
        }
        let reply = ask(&gateway, "viewer", &format!("{method} {path}"), "").await;
        let status = reply.status();
        let described = &said["responses"][status.to_string()];
        assert!(described.is_object(), "{method} {path}: {status} is not described");
        if method == "GET" {
            assert!(status == 200 || status == 404 && path.ends_with("/some"), "{method} {path}: {status}");
            read += 1;
        } else {
            assert_eq!(status, 403, "{method} {path}");
            assert!(reply.error("message").contains("this wants operator"), "{}", reply.text());
            refused += 1;
        }
        if let Some(kinds) = described["content"].as_object() {
            let kind = reply.header("content-type").unwrap_or_default();
            let kind = kind.split(';').next().unwrap_or_default();
            assert!(kinds.contains_key(kind), "{method} {path}: {kind} is none of {kinds:?}");
        }
    }
    assert!(read >= 10 && refused >= 12, "{read} are read, {refused} refused");
}

#[tokio::test]
async fn what_is_told_as_it_happens_is_named_in_the_description() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, upstream) = scripted_with(|config| {
        config.alerts = vec![alert(AlertSignal::BreakerOpen)];
        config.audit.path = dir.path().join("audit.db");
    })
    .await;
    let events = &description(&gateway).await["paths"]["/admin/v1/events"]["get"]["responses"]["200"];
    // `Reader` insists on this type.
    let stream = &events["content"]["text/event-stream"];
    let named: BTreeSet<String> = serde_json::from_value(stream["x-event-names"].clone()).unwrap();
    let mut reader = Reader::open(&gateway, "", "").await;
    let mut status = Reader::open(&gateway, "?kind=status", "").await;
    retried(&gateway, &upstream, "").await;
    let breaker = "POST /admin/v1/breakers/openai%2Fgpt-4o";
    ask(&gateway, "operator", &format!("{breaker}/force-open"), "").await;
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "", CHAT).await;
    assert_eq!(caller.message(false).await.status(), 503);
    ask(&gateway, "operator", "POST /admin/v1/keys", r#"{"name":"some"}"#).await;
    gateway.reload(config(upstream.addr)).unwrap();
    ask(&gateway, "operator", "POST /admin/v1/pause", "").await;
    let mut heard = BTreeSet::from([status.next().await.unwrap().event]);
    let expected =
        ["attempt_failed", "retry_scheduled", "state_changed", "override_applied", "config_updated", "refused"];
    while !expected.iter().all(|event| heard.contains(*event)) {
        heard.insert(reader.next().await.unwrap().event);
    }
    let unnamed: Vec<_> = heard.difference(&named).collect();
    assert!(unnamed.is_empty(), "{unnamed:?} are not in {named:?}");
}

#[tokio::test]
async fn what_is_told_of_how_everything_stands_is_described_by_name() {
    let (gateway, _upstream) = scripted_with(with_viewer).await;
    let schemas = description(&gateway).await["components"]["schemas"].clone();
    let told = Reader::open(&gateway, "?kind=status", "").await.next().await.unwrap().data;
    let of_page = schemas["Overview"]["properties"].as_object().unwrap();
    let missing: Vec<_> = of_page.keys().filter(|name| told.get(name).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?} are not in {told}");
    let of_status = schemas["Status"]["properties"].as_object().unwrap();
    let names = told.as_object().unwrap().keys();
    let unnamed: Vec<_> = names.filter(|name| !of_page.contains_key(*name) && !of_status.contains_key(*name)).collect();
    assert!(unnamed.is_empty(), "{unnamed:?} are not described");
    let queue: BTreeSet<_> = told["queue"].as_object().unwrap().keys().collect();
    let described = of_status["queue"]["properties"].as_object().unwrap().keys().collect();
    assert_eq!(queue, described);
}
