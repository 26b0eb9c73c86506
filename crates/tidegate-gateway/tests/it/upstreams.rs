//! Several upstreams: who takes a call, who takes it over, and what never leaves the one it went to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{Config, ModelMap, SecretSource, TokenCharge, UpstreamConfig, UpstreamKind};
use tidegate_core::limit::{Dimension, Limit, Rates, Scope};
use tidegate_gateway::Gateway;

use crate::support::*;
use crate::telling::Reader;

const QUOTA: &str = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
const SERVER_ERROR: &str = r#"{"error":{"message":"The server had an error","type":"server_error","code":null}}"#;
const NEVER_WAITS: &str = "x-tidegate-max-wait: 1ms\r\n";

fn upstream(name: &str, addr: SocketAddr, fallback: bool) -> UpstreamConfig {
    UpstreamConfig {
        name: name.into(),
        base_url: format!("http://{addr}/v1"),
        api_key: Some(SecretSource::Placeholder),
        fallback,
        ..UpstreamConfig::default()
    }
}

/// A gateway in front of `first`, and `second` as its fallback.
async fn two() -> (Gateway, Script, Script) {
    two_with(|_| {}).await
}

async fn two_with(change: impl FnOnce(&mut Config)) -> (Gateway, Script, Script) {
    let (first, second) = (Script::listen().await, Script::listen().await);
    let mut config = config(first.addr);
    config.set_upstreams(vec![upstream("first", first.addr, false), upstream("second", second.addr, true)]);
    change(&mut config);
    // What the core knows of upstreams follows from them.
    config.set_upstreams(config.upstreams.clone());
    (start(config).await, first, second)
}

/// One request a minute for each `per`.
fn once_a_minute(name: &str, per: Vec<Scope>) -> Limit {
    let base = Rates::default().with(Dimension::RequestsPerMinute, 1);
    Limit { name: name.into(), per, base, ..team_limit(1) }
}

/// Where nobody listens.
async fn nowhere() -> SocketAddr {
    Script::listen().await.addr
}

async fn chat(gateway: &Gateway, headers: &str) -> Peer {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", headers, CHAT).await;
    client
}

/// Answers the next call with a reply that names who made it.
async fn serve(upstream: &Script, name: &str) -> Message {
    let (mut peer, request) = upstream.request().await;
    peer.reply("200 OK", "connection: close\r\n", &format!("{{\"by\":\"{name}\"}}")).await;
    request
}

/// Fails the next call.
async fn fail(upstream: &Script, status: &str, body: &str) {
    let (mut peer, _) = upstream.request().await;
    peer.reply(status, "connection: close\r\n", body).await;
}

async fn metrics(gateway: &Gateway) -> String {
    call_admin(gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text()
}

/// Fails if anything was sent to the upstream.
async fn nothing_was_sent_to(gateway: &Gateway, name: &str) {
    let metrics = metrics(gateway).await;
    let sent: Vec<&str> = metrics
        .lines()
        .filter(|line| {
            line.starts_with(&format!("tidegate_attempts_total{{upstream=\"{name}\"")) && !line.ends_with(" 0")
        })
        .collect();
    assert!(sent.is_empty(), "{sent:?}");
}

fn by(name: &str) -> String {
    format!("{{\"by\":\"{name}\"}}")
}

#[tokio::test]
async fn what_one_account_cannot_let_go_in_time_goes_to_the_fallback_at_once() {
    let (gateway, first, second) =
        two_with(|config| config.policy.limits.push(once_a_minute("account", vec![Scope::Account]))).await;
    let mut client = chat(&gateway, "").await;
    serve(&first, "first").await;
    assert_eq!(client.message(false).await.text(), by("first"));
    let mut client = chat(&gateway, "x-tidegate-max-wait: 5s\r\n").await;
    serve(&second, "second").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text()), (200, by("second")));
    assert_eq!((reply.header("x-tidegate-attempts"), reply.header("x-tidegate-queued-ms")), (Some("1"), Some("0")));
    idle(&gateway).await;
    let metrics = metrics(&gateway).await;
    for line in [
        "tidegate_calls_total{upstream=\"second\",model=\"gpt-4o\",priority=\"normal\",outcome=\"ok\"} 1",
        "tidegate_calls_total{upstream=\"first\",model=\"gpt-4o\",priority=\"normal\",outcome=\"refused\"} 0",
        "tidegate_rate_limited_total{limit=\"account\",dimension=\"requests_per_minute\",model=\"gpt-4o\",action=\"fell_back\"} 1",
        "tidegate_retries_total{reason=\"limit\",result=\"fell_back\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing from\n{metrics}");
    }
}

#[tokio::test]
async fn who_can_wait_for_the_first_upstream_waits_for_it() {
    let (gateway, first, _second) = two_with(|config| {
        let base = Rates::default().with(Dimension::MaxInFlight, 1);
        config.policy.limits.push(Limit { base, ..once_a_minute("account", vec![Scope::Account]) });
    })
    .await;
    let mut one = chat(&gateway, "").await;
    let (mut peer, _) = first.request().await;
    let mut other = chat(&gateway, "").await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    peer.reply("200 OK", "connection: close\r\n", &by("first")).await;
    assert_eq!(one.message(false).await.text(), by("first"));
    serve(&first, "first").await;
    assert_eq!(other.message(false).await.text(), by("first"));
    nothing_was_sent_to(&gateway, "second").await;
}

#[tokio::test]
async fn who_has_waited_in_vain_goes_to_the_fallback_at_the_deadline() {
    let (gateway, first, second) = two_with(|config| {
        let base = Rates::default().with(Dimension::MaxInFlight, 1);
        config.policy.limits.push(Limit { base, ..once_a_minute("account", vec![Scope::Account]) });
    })
    .await;
    let mut one = chat(&gateway, "").await;
    let (mut peer, _) = first.request().await;
    let mut other = chat(&gateway, "x-tidegate-max-wait: 20ms\r\n").await;
    serve(&second, "second").await;
    let reply = other.message(false).await;
    assert_eq!((reply.text(), reply.header("x-tidegate-attempts")), (by("second"), Some("1")));
    let queued_ms: u64 = reply.header("x-tidegate-queued-ms").unwrap().parse().unwrap();
    assert!(queued_ms >= 20, "{queued_ms}");
    peer.reply("200 OK", "", &by("first")).await;
    assert_eq!(one.message(false).await.text(), by("first"));
}

#[tokio::test]
async fn a_limit_of_ones_own_holds_a_call_wherever_it_could_go() {
    let (gateway, first, _second) =
        two_with(|config| config.policy.limits.push(once_a_minute("team", Vec::new()))).await;
    let mut client = chat(&gateway, "").await;
    serve(&first, "first").await;
    client.message(false).await;
    let reply = chat(&gateway, NEVER_WAITS).await.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-limit")), (429, Some("team/requests_per_minute")));
    nothing_was_sent_to(&gateway, "second").await;
}

#[tokio::test]
async fn an_open_breaker_leaves_calls_to_the_fallback() {
    let (gateway, first, second) = two().await;
    let mut client = chat(&gateway, "").await;
    serve(&first, "first").await;
    client.message(false).await;
    let forced =
        |gate: &mut tidegate_core::gate::Gate, now| gate.force_breaker("first/gpt-4o", BreakerState::ForcedOpen, now);
    assert!(gateway.driver().with(forced));
    let mut client = chat(&gateway, "").await;
    serve(&second, "second").await;
    assert_eq!(client.message(false).await.text(), by("second"));
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_leaves_calls_to_the_fallback() {
    let gone = nowhere().await;
    let (gateway, _first, second) = two_with(|config| config.upstreams[0] = upstream("first", gone, false)).await;
    let mut client = chat(&gateway, "").await;
    serve(&second, "second").await;
    let reply = client.message(false).await;
    // Three attempts are all that a call has: two where it went first, and one is left for the fallback.
    assert_eq!((reply.text(), reply.header("x-tidegate-attempts")), (by("second"), Some("3")));
}

#[tokio::test]
async fn attempts_are_one_budget_and_every_upstream_is_left_one_of_them() {
    for (max_attempts, at_first, sent) in [(3, 2, "3"), (2, 1, "2"), (1, 1, "2"), (5, 4, "5")] {
        let (gateway, first, second) = two_with(|config| config.policy.retry.max_attempts = max_attempts).await;
        let mut client = chat(&gateway, "").await;
        for _ in 0..at_first {
            fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
        }
        serve(&second, "second").await;
        let reply = client.message(false).await;
        assert_eq!((reply.text(), reply.header("x-tidegate-attempts")), (by("second"), Some(sent)));
    }
}

#[tokio::test]
async fn when_all_fail_the_caller_gets_the_last_answer_that_an_upstream_gave() {
    let (gateway, first, second) = two_with(|config| config.policy.retry.max_attempts = 2).await;
    let mut client = chat(&gateway, "").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    fail(&second, "502 Bad Gateway", "{\"error\":{\"message\":\"second\"}}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("message").as_str()), (502, "second"));
    assert_eq!((reply.header("x-tidegate-attempts"), reply.header("x-should-retry")), (Some("2"), Some("false")));
    // One that gives none is passed over: what the first said says more.
    let mut client = chat(&gateway, "").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    drop(second.request().await);
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (500, SERVER_ERROR));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"));
    idle(&gateway).await;
    let failed = "tidegate_calls_total{upstream=\"second\",model=\"gpt-4o\",priority=\"normal\",outcome=\"failed\"} 2";
    assert!(metrics(&gateway).await.contains(failed));
}

#[tokio::test]
async fn when_nobody_answers_at_all_every_attempt_is_told_of() {
    let (one, other) = (nowhere().await, nowhere().await);
    let (gateway, _, _) = two_with(|config| {
        config.upstreams = vec![upstream("first", one, false), upstream("second", other, true)];
    })
    .await;
    let reply = chat(&gateway, "").await.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"));
    let message = reply.error("message");
    assert!(message.starts_with("tidegate: gave up after 3 of 3 attempts in "), "{message}");
}

#[tokio::test]
async fn when_all_are_limited_the_caller_is_told_of_the_one_that_has_room_first() {
    let (gateway, first, second) = two_with(|config| {
        let mut account = once_a_minute("account", vec![Scope::Account]);
        account.base = Rates::default().with(Dimension::TokensPerMinute, 6_000);
        config.policy.limits.push(account);
        config.upstreams.iter_mut().for_each(|upstream| upstream.token_charge = TokenCharge::InputPlusMax);
    })
    .await;
    let spends = |tokens: u64| CHAT.replace("}]}", &format!("}}],\"max_tokens\":{tokens}}}"));
    for (script, tokens) in [(&first, 5_900), (&second, 3_000)] {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", NEVER_WAITS, &spends(tokens)).await;
        serve(script, "any").await;
        assert_eq!(client.message(false).await.status(), 200);
    }
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", NEVER_WAITS, &spends(5_000)).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (429, Some("0")));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    // Refilled by 100 a second: 20 s at the second, 49 s at the first.
    assert!(seconds < 30, "{seconds}: {}", reply.text());
}

#[tokio::test]
async fn an_account_without_quota_is_passed_over_by_the_calls_that_follow() {
    let (gateway, first, second) = two().await;
    let mut client = chat(&gateway, "").await;
    fail(&first, "429 Too Many Requests", QUOTA).await;
    serve(&second, "second").await;
    assert_eq!(client.message(false).await.header("x-tidegate-attempts"), Some("2"));
    let mut client = chat(&gateway, "").await;
    serve(&second, "second").await;
    assert_eq!(client.message(false).await.header("x-tidegate-attempts"), Some("1"));
    // Where nobody has any, the first is asked and says so.
    let mut client = chat(&gateway, "").await;
    fail(&second, "429 Too Many Requests", QUOTA).await;
    assert_eq!(client.message(false).await.error("code"), "insufficient_quota");
    let mut client = chat(&gateway, "").await;
    fail(&first, "429 Too Many Requests", QUOTA).await;
    assert_eq!(client.message(false).await.error("code"), "insufficient_quota");
}

#[tokio::test]
async fn a_callers_mistake_is_nobody_elses_to_answer() {
    for status in ["400 Bad Request", "401 Unauthorized", "404 Not Found", "422 Unprocessable Entity"] {
        let (gateway, first, _second) = two().await;
        let mut client = chat(&gateway, "").await;
        fail(&first, status, "{\"error\":{\"message\":\"no\",\"code\":\"model_not_found\"}}").await;
        let reply = client.message(false).await;
        assert_eq!(
            (reply.start.as_str(), reply.header("x-tidegate-attempts")),
            (&*format!("HTTP/1.1 {status}"), Some("1"))
        );
        nothing_was_sent_to(&gateway, "second").await;
    }
}

#[tokio::test]
async fn an_error_in_a_stream_goes_to_the_fallback_until_the_status_is_out_and_never_after() {
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    let error = format!("data: {SERVER_ERROR}\n\n");
    let (gateway, first, second) = two_with(|config| config.policy.retry.max_attempts = 1).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = first.request().await;
    peer.begin_stream().await;
    peer.chunk(&error).await;
    peer.end_stream().await;
    let (mut peer, _) = second.request().await;
    peer.begin_stream().await;
    peer.chunk(event).await;
    client.head().await;
    assert_eq!(client.next_chunk().await.unwrap(), event.as_bytes());
    peer.chunk(&error).await;
    peer.end_stream().await;
    assert_eq!(client.next_chunk().await.unwrap(), error.as_bytes());
    assert_eq!(client.next_chunk().await, None);
    idle(&gateway).await;
    let attempts = "tidegate_attempts_total{upstream=\"first\",model=\"gpt-4o\",status=\"200\"} 1";
    assert!(metrics(&gateway).await.contains(attempts));
}

#[tokio::test]
async fn no_attempt_starts_anywhere_after_the_longest_wait() {
    let (gateway, first, _second) = two_with(|config| config.policy.retry.max_attempts = 1).await;
    let mut client = chat(&gateway, NEVER_WAITS).await;
    let (mut peer, _) = first.request().await;
    let arrived_at = gateway.driver().now();
    until(|| gateway.driver().now() > arrived_at + Duration::from_millis(2)).await;
    peer.reply("500 Internal Server Error", "", SERVER_ERROR).await;
    assert_eq!(client.message(false).await.text(), SERVER_ERROR);
    nothing_was_sent_to(&gateway, "second").await;
}

#[tokio::test]
async fn fallbacks_are_asked_in_their_order() {
    let third = Script::listen().await;
    let (gateway, first, second) = two_with(|config| {
        config.policy.retry.max_attempts = 1;
        config.upstreams.push(upstream("third", third.addr, true));
    })
    .await;
    let mut client = chat(&gateway, "").await;
    for upstream in [&first, &second] {
        fail(upstream, "503 Service Unavailable", SERVER_ERROR).await;
    }
    serve(&third, "third").await;
    let reply = client.message(false).await;
    assert_eq!((reply.text(), reply.header("x-tidegate-attempts")), (by("third"), Some("3")));
}

#[tokio::test]
async fn upstreams_that_are_no_fallback_share_calls_by_weight() {
    let (gateway, first, second) = two_with(|config| {
        config.upstreams[0].weight = 2;
        config.upstreams[1].fallback = false;
    })
    .await;
    for turn in [&first, &second, &first, &first, &second, &first] {
        let mut client = chat(&gateway, "").await;
        serve(turn, "any").await;
        assert_eq!(client.message(false).await.status(), 200);
    }
}

#[tokio::test]
async fn a_response_is_gone_on_with_where_it_was_made() {
    let (gateway, first, second) = two_with(|config| config.policy.retry.max_attempts = 1).await;
    let respond = async |more: &str| {
        let mut client = client(&gateway).await;
        client.post("/v1/responses", "", &format!("{{\"model\":\"gpt-4o\",\"input\":\"hi\"{more}}}")).await;
        client
    };
    let mut made = respond("").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    let (mut peer, _) = second.request().await;
    peer.reply("200 OK", "connection: close\r\n", "{\"id\": \"resp_1\",\"output\":[]}").await;
    assert_eq!(made.message(false).await.status(), 200);
    let mut streamed = respond(",\"stream\":true").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    let (mut peer, _) = second.request().await;
    peer.begin_stream().await;
    peer.chunk(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_2\"}}\n\n\
         event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_2\"}}\n\n",
    )
    .await;
    peer.end_stream().await;
    assert_eq!(streamed.message(false).await.status(), 200);
    drop(peer);
    for id in ["resp_1", "resp_2"] {
        let mut client = respond(&format!(",\"previous_response_id\":\"{id}\"")).await;
        serve(&second, "second").await;
        assert_eq!(client.message(false).await.text(), by("second"));
        let mut reader = crate::support::client(&gateway).await;
        reader.write(format!("GET /v1/responses/{id} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        serve(&second, "second").await;
        assert_eq!(reader.message(false).await.text(), by("second"));
    }
    // What nobody remembers is asked of the first, and of nobody else.
    let mut client = respond(",\"previous_response_id\":\"resp_0\"").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (500, Some("1")));
}

#[tokio::test]
async fn files_and_batches_stay_with_the_first_upstream() {
    let (gateway, first, _second) = two_with(|config| config.policy.retry.max_attempts = 1).await;
    for (method, path) in [("GET", "/v1/files"), ("GET", "/v1/files/file-1/content"), ("POST", "/v1/batches")] {
        let mut client = client(&gateway).await;
        client.write(format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}")).await;
        fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
        assert_eq!(client.message(false).await.status(), 500, "{path}");
    }
    let with_file = CHAT.replace("\"hello\"", "[{\"type\":\"file\",\"file\":{\"file_id\":\"file-1\"}}]");
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", &with_file).await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    assert_eq!(client.message(false).await.status(), 500);
    nothing_was_sent_to(&gateway, "second").await;
}

#[tokio::test]
async fn names_that_lead_to_one_account_have_one_level_and_are_no_way_round_it() {
    let (gateway, first, _second) = two_with(|config| {
        config.policy.limits.push(once_a_minute("account", vec![Scope::Account]));
        let base_url = config.upstreams[0].base_url.clone();
        config.upstreams[1] =
            UpstreamConfig { name: "again".into(), base_url, fallback: true, ..config.upstreams[0].clone() };
    })
    .await;
    let mut client = chat(&gateway, "").await;
    serve(&first, "first").await;
    client.message(false).await;
    let reply = chat(&gateway, NEVER_WAITS).await.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("limit")));
    let status = gateway.driver().with(|gate, now| gate.status(now));
    assert_eq!(status.limits.iter().filter(|level| level.limit == "account").count(), 1);
}

#[tokio::test]
async fn a_callers_credential_goes_to_the_first_upstream_and_to_no_other() {
    let third = Script::listen().await;
    let (gateway, first, second) = two_with(|config| {
        config.policy.retry.max_attempts = 1;
        config.upstreams[0].api_key = None;
        let without_key = UpstreamConfig { api_key: None, ..upstream("third", third.addr, true) };
        config.upstreams.push(without_key);
    })
    .await;
    let credentials = "authorization: Bearer sk-caller\r\nopenai-organization: org-caller\r\nopenai-project: proj\r\n";
    let mut client = chat(&gateway, credentials).await;
    let (mut peer, request) = first.request().await;
    assert_eq!(request.header("authorization"), Some("Bearer sk-caller"));
    assert_eq!(request.header("openai-organization"), Some("org-caller"));
    peer.reply("500 Internal Server Error", "", SERVER_ERROR).await;
    let (mut peer, request) = second.request().await;
    assert_eq!(request.header("authorization"), Some("Bearer sk-tidegate-sim"));
    assert_eq!((request.header("openai-organization"), request.header("openai-project")), (None, None));
    peer.reply("500 Internal Server Error", "", SERVER_ERROR).await;
    let request = serve(&third, "third").await;
    assert_eq!((request.header("authorization"), request.header("openai-organization")), (None, None));
    assert_eq!(client.message(false).await.text(), by("third"));
}

#[tokio::test]
async fn the_first_upstream_gets_the_callers_credential_as_a_fallback_too() {
    let (gateway, first, second) = two_with(|config| {
        config.policy.retry.max_attempts = 1;
        config.upstreams[0].api_key = None;
        config.upstreams[0].fallback = true;
        config.upstreams[1].fallback = false;
    })
    .await;
    let mut client = chat(&gateway, "authorization: Bearer sk-caller\r\n").await;
    let (mut peer, request) = second.request().await;
    assert_eq!(request.header("authorization"), Some("Bearer sk-tidegate-sim"));
    peer.reply("500 Internal Server Error", "", SERVER_ERROR).await;
    assert_eq!(serve(&first, "first").await.header("authorization"), Some("Bearer sk-caller"));
    assert_eq!(client.message(false).await.text(), by("first"));
}

#[tokio::test]
async fn an_azure_fallback_is_spoken_to_in_its_own_way() {
    for (base, target, model) in [
        ("openai", "/openai/deployments/my%20own/chat/completions?api-version=2024-10-21", "gpt-4o"),
        ("openai/v1", "/openai/v1/chat/completions", "my own"),
    ] {
        let (gateway, first, second) = two_with(|config| {
            config.policy.retry.max_attempts = 1;
            let azure = &mut config.upstreams[1];
            azure.kind = UpstreamKind::Azure;
            azure.base_url = azure.base_url.replace("v1", base);
            azure.models = ModelMap::Renames(BTreeMap::from([("gpt-4o".to_owned(), "my own".to_owned())]));
        })
        .await;
        let mut client = chat(&gateway, "authorization: Bearer sk-caller\r\n").await;
        fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
        let request = serve(&second, "azure").await;
        assert_eq!(request.start, format!("POST {target} HTTP/1.1"));
        assert_eq!((request.header("api-key"), request.header("authorization")), (Some("sk-tidegate-sim"), None));
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["model"], model);
        assert_eq!(client.message(false).await.text(), by("azure"));
    }
}

#[tokio::test]
async fn each_attempt_is_settled_on_the_account_that_it_used() {
    let (gateway, first, second) = two_with(|config| {
        config.policy.retry.max_attempts = 1;
        for (name, per) in [("account", vec![Scope::Account]), ("team", Vec::new())] {
            let base = Rates::default().with(Dimension::RequestsPerMinute, 10).with(Dimension::TokensPerMinute, 1_000);
            config.policy.limits.push(Limit { base, ..once_a_minute(name, per) });
        }
        config.upstreams.iter_mut().for_each(|upstream| upstream.token_charge = TokenCharge::Usage);
    })
    .await;
    let mut client = chat(&gateway, "").await;
    fail(&first, "500 Internal Server Error", SERVER_ERROR).await;
    let (mut peer, _) = second.request().await;
    peer.reply("200 OK", "", r#"{"usage":{"prompt_tokens":60,"completion_tokens":40}}"#).await;
    assert_eq!(client.message(false).await.status(), 200);
    idle(&gateway).await;
    let status = gateway.driver().with(|gate, now| gate.status(now));
    let left = |limit: &str, upstream: &str, dimension: Dimension| {
        let levels = status.limits.iter().filter(|level| level.limit == limit && level.key.starts_with(upstream));
        let meters = levels.flat_map(|level| &level.meters).filter(|meter| meter.dimension == dimension.name());
        meters.map(|meter| meter.remaining).collect::<Vec<_>>()
    };
    assert_eq!(left("account", "first", Dimension::RequestsPerMinute), [9]);
    assert_eq!(left("account", "second", Dimension::RequestsPerMinute), [9]);
    assert_eq!(left("account", "second", Dimension::TokensPerMinute), [900]);
    assert_eq!(left("team", "", Dimension::RequestsPerMinute), [9]);
    assert_eq!(left("team", "", Dimension::TokensPerMinute), [900]);
}

/// A form whose end is not known in advance: it streams through.
const FORM: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; \
                    boundary=b\r\ntransfer-encoding: chunked\r\n\r\n5\r\n--b--\r\n0\r\n\r\n";

#[tokio::test]
async fn a_body_that_streams_through_goes_elsewhere_only_while_nothing_of_it_was_sent() {
    let gone = nowhere().await;
    let (gateway, _first, second) = two_with(|config| config.upstreams[0] = upstream("first", gone, false)).await;
    let mut client = crate::support::client(&gateway).await;
    client.write(FORM).await;
    assert_eq!(serve(&second, "second").await.text(), "--b--");
    let reply = client.message(false).await;
    assert_eq!((reply.text(), reply.header("x-tidegate-attempts")), (by("second"), Some("2")));

    let (gateway, first, _second) = two().await;
    let mut client = crate::support::client(&gateway).await;
    client.write(FORM).await;
    fail(&first, "503 Service Unavailable", SERVER_ERROR).await;
    assert_eq!(client.message(false).await.status(), 503);
    nothing_was_sent_to(&gateway, "second").await;
}

#[tokio::test]
async fn what_one_upstream_refuses_and_another_takes_is_told_as_that() {
    let (gateway, first, second) =
        two_with(|config| config.policy.limits.push(once_a_minute("mirror", vec![Scope::Account]))).await;
    let mut told = Reader::open(&gateway, "", "").await;
    let mut before = chat(&gateway, "").await;
    serve(&first, "first").await;
    before.message(false).await;
    let mut call = chat(&gateway, &format!("{NEVER_WAITS}x-tidegate-id: c-2\r\n")).await;
    serve(&second, "second").await;
    assert_eq!(call.message(false).await.status(), 200);
    // The one is told by the core, the other by the gateway: either may come first.
    let (mut refused, mut went_on) = (None, None);
    while refused.is_none() || went_on.is_none() {
        let one = told.next().await.unwrap();
        match &*one.event {
            "refused" => refused = Some(one.data),
            "fell_back" => went_on = Some(one.data),
            _ => {}
        }
    }
    let said = |told: Option<Value>, names: [&str; 3]| {
        names.map(|name| told.as_ref().unwrap()[name].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(said(refused, ["call", "target", "why"]), ["c-2", "first/gpt-4o", "limit"]);
    let from_to = |told: &Option<Value>| said(told.clone(), ["before", "after", "call"]);
    assert_eq!(from_to(&went_on), ["first/gpt-4o", "second/gpt-4o", "c-2"]);
    assert_eq!(said(went_on, ["what", "why", "kind"]), ["fell back", "limit", "retry"]);
}
