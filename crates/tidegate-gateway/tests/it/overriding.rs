//! Overrides of what is there no longer, or not yet, and those that cannot be kept.

use serde_json::Value;
use tidegate_core::limit::{Dimension, Limit, Rates, Scope};
use tidegate_gateway::Gateway;

use crate::admin::ask;
use crate::auditing::records;
use crate::operating::{done, start_in};
use crate::support::*;

/// `[limit.each]`, ten calls a day for each user.
fn ten_each() -> Limit {
    Limit {
        name: "each".into(),
        per: vec![Scope::User],
        base: Rates::default().with(Dimension::RequestsPerDay, 10),
        ..team_limit(1)
    }
}

async fn boost(gateway: &Gateway, body: &str) -> Message {
    ask(gateway, "operator", "POST /admin/v1/limits/each/boost", body).await
}

async fn status(gateway: &Gateway) -> Value {
    done(gateway, "GET /admin/v1/status", "").await
}

#[tokio::test]
async fn a_boost_is_ended_by_its_match_and_all_of_a_limit_without_one() {
    let (gateway, _upstream) = scripted_with(|config| config.policy.limits.push(ten_each())).await;
    for user in ["ada", "bob", "cy"] {
        let body = format!(r#"{{"factor":2,"for":"1h","match":{{"user":"{user}"}}}}"#);
        assert_eq!(boost(&gateway, &body).await.status(), 200);
    }
    let other = boost(&gateway, r#"{"factor":1,"match":{"user":"eve"}}"#).await;
    let why = other.error("message");
    assert!(other.status() == 409 && why.contains("none was ended; in force: × 2 for user ada until "), "{why}");
    assert_eq!(boost(&gateway, r#"{"factor":1,"match":{"user":"ada"}}"#).await.status(), 200);
    assert_eq!(status(&gateway).await["overrides"]["boosts"].as_array().unwrap().len(), 2);
    let ended = done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":1}"#).await;
    let before = ended["before"].as_str().unwrap();
    assert!(before.contains("for user bob until ") && before.contains("; × 2 for user cy until "), "{ended}");
    assert_eq!(status(&gateway).await["overrides"]["boosts"], Value::Array(Vec::new()));
    let again = done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":1}"#).await;
    assert_eq!(again["before"], "× 1", "there is nothing to end");
}

#[tokio::test]
async fn a_boost_that_fits_nobody_yet_says_so() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(ten_each())).await;
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "x-tidegate-user: ada\r\n", CHAT).await;
    let _under_way = upstream.request().await;
    for (user, fits) in [("ada", true), ("a*", true), ("adam", false)] {
        let body = format!(r#"{{"factor":2,"for":"1h","match":{{"user":"{user}"}}}}"#);
        let told = done(&gateway, "POST /admin/v1/limits/each/boost", &body).await;
        let says_so = told["warnings"].to_string().contains("no level of \\\"each\\\" that is in use fits this match");
        assert_eq!(says_so, !fits, "{user}: {told}");
    }
}

#[tokio::test]
async fn a_limit_that_is_no_longer_configured_is_shown_no_more_and_its_boost_can_be_ended() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(ten_each())).await;
    assert_eq!(boost(&gateway, r#"{"factor":2,"for":"1h"}"#).await.status(), 200);
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "x-tidegate-user: ada\r\n", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    assert_eq!(status(&gateway).await["limits"][0]["meters"][0]["limit"], 20);
    gateway.reload(config(upstream.addr)).unwrap();
    // Its call is still under way.
    assert_eq!(status(&gateway).await["limits"], Value::Array(Vec::new()));
    assert!(!metrics(&gateway).await.contains("limit=\"each\""), "no series of it either");
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(caller.message(false).await.status(), 200);
    let ended = done(&gateway, "POST /admin/v1/limits/each/boost", r#"{"factor":1}"#).await;
    assert!(ended["before"].as_str().unwrap().starts_with("× 2 until "), "{ended}");
    assert_eq!(boost(&gateway, r#"{"factor":1}"#).await.status(), 404, "neither is there any more");
}

#[tokio::test]
async fn a_breaker_can_be_held_before_the_first_call_to_it() {
    let (gateway, _upstream) = scripted().await;
    let held = done(&gateway, "POST /admin/v1/breakers/openai/gpt-4o/force-open", "").await;
    assert!(held["warnings"].to_string().contains("no call has gone to openai/gpt-4o since the start"), "{held}");
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "", CHAT).await;
    assert_eq!(caller.message(false).await.header("x-tidegate-reason"), Some("breaker"));
    for (name, to) in [("elsewhere/gpt-4o", "force-open"), ("openai", "force-open"), ("openai/", "force-open")] {
        let reply = ask(&gateway, "operator", &format!("POST /admin/v1/breakers/{name}/{to}"), "").await;
        assert_eq!(reply.status(), 404, "{name}: {}", reply.text());
    }
    let reply = ask(&gateway, "operator", "POST /admin/v1/breakers/openai/gpt-4.1/force-half-open", "").await;
    assert_eq!(reply.status(), 404, "there is nothing to be tried");
}

#[tokio::test]
async fn what_cannot_be_kept_is_recorded_and_kept_as_soon_as_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    let file = dir.path().join("overrides.json");
    // Nothing can be put in its place.
    std::fs::create_dir_all(file.join("in the way")).unwrap();
    let told = done(&gateway, "POST /admin/v1/pause", r#"{"reason":"the bill"}"#).await;
    let warning = told["warnings"][0].as_str().unwrap();
    assert!(warning.contains("cannot be written") && warning.contains("until it can"), "{told}");
    assert_eq!(status(&gateway).await["paused"], "the bill", "it is in force all the same");
    let all = records(&gateway, "kind=override", 2).await;
    assert_eq!((&all[0]["what"], &all[1]["what"]), (&"pause".into(), &"pause not kept".into()));
    assert_eq!((&all[1]["who"], &all[1]["after"]), (&"local".into(), &"paused".into()));
    std::fs::remove_dir_all(&file).unwrap();
    within(async {
        while !file.is_file() {
            tokio::task::yield_now().await
        }
    })
    .await;
    // As if it had been killed.
    drop(gateway);
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    assert_eq!(status(&gateway).await["paused"], "the bill");
}
