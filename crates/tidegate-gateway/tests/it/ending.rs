//! How calls, and the process, end: nothing reserved is left behind.

use std::time::Duration;

use crate::support::*;

const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";

#[tokio::test]
async fn a_caller_that_leaves_a_stream_cancels_the_upstreams_work() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    client.head().await;
    drop(client);
    assert!(peer.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_charged_what_was_seen_and_counts_against_the_upstream() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.limits.push(team_limit(1000));
        config.policy.breaker.failure_threshold = 1;
    })
    .await;
    let mut client = client(&gateway).await;
    let asked = CHAT_STREAM.replace("}]}", "}],\"max_tokens\":400}");
    client.post("/v1/chat/completions", "", &asked).await;
    let (mut peer, _) = upstream.request().await;
    let left = || gateway.driver().with(|gate, now| gate.status(now).limits[0].meters[0].remaining);
    let reserved = 1000 - left();
    assert!(reserved > 400, "{reserved}");
    peer.begin_stream().await;
    for _ in 0..10 {
        peer.chunk(EVENT).await;
    }
    client.head().await;
    drop(peer);
    idle(&gateway).await;
    let charged = 1000 - left();
    assert!((5..60).contains(&charged), "the input and twenty letters, not {charged} of {reserved}");
    let breakers = gateway.driver().with(|gate, now| gate.status(now)).breakers;
    assert_eq!(breakers[0].state, "open");
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_reply_cancels_the_upstreams_work() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    drop(client);
    assert!(peer.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_makes_room_for_the_next() {
    let (gateway, upstream) = scripted_with(|config| {
        let mut limit = team_limit(1_000_000);
        limit.base = tidegate_core::limit::Rates::default().with(tidegate_core::limit::Dimension::MaxInFlight, 1);
        config.policy.limits.push(limit);
    })
    .await;
    let mut first = client(&gateway).await;
    first.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let mut leaves = client(&gateway).await;
    leaves.post("/v1/chat/completions", "", CHAT).await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    drop(leaves);
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 0)).await;
    let mut stays = client(&gateway).await;
    stays.post("/v1/chat/completions", "", CHAT).await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(first.message(false).await.status(), 200);
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(stays.message(false).await.status(), 200);
    idle(&gateway).await;
}

/// What a client raises as an error, from a stream's last event.
fn last_error(chunk: &[u8], name: &str) -> (String, String) {
    let event = String::from_utf8_lossy(chunk).into_owned();
    let data =
        event.strip_prefix(name).and_then(|event| event.strip_prefix("data: ")).unwrap_or_else(|| panic!("{event}"));
    let data: serde_json::Value = serde_json::from_str(data.trim_end()).unwrap();
    let field = |name: &str| data["error"][name].as_str().unwrap().to_owned();
    (field("code"), field("message"))
}

#[tokio::test]
async fn a_stream_that_breaks_off_between_two_events_ends_with_an_error_that_clients_raise() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    client.head().await;
    assert_eq!(client.next_chunk().await.unwrap(), EVENT.as_bytes());
    drop(peer);
    let (code, message) = last_error(&client.next_chunk().await.unwrap(), "");
    assert_eq!(code, "stream_broken");
    assert!(message.starts_with("tidegate: the upstream's stream broke off (connection "), "{message}");
    assert_eq!(client.next_chunk().await, None);
    idle(&gateway).await;
    let metrics = call_admin(&gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text();
    let broken = "tidegate_calls_total{upstream=\"openai\",model=\"gpt-4o\",priority=\"normal\",outcome=\"broken\"} 1";
    assert!(metrics.contains(broken), "{metrics}");
}

#[tokio::test]
async fn a_stream_that_breaks_off_within_an_event_is_cut_off_for_the_caller_too() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(format!("{EVENT}data: {{\"cho")).await;
    client.head().await;
    assert!(client.next_chunk().await.is_some());
    drop(peer);
    // Without the last chunk: a client can tell that something is missing.
    assert!(client.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_response_that_closes_before_its_last_event_ends_with_an_error_that_clients_raise() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/responses", "", r#"{"model":"gpt-4o","input":"hi","stream":true}"#).await;
    let (mut peer, _) = upstream.request().await;
    let delta =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n";
    peer.begin_stream().await;
    peer.chunk(delta).await;
    client.head().await;
    assert_eq!(client.next_chunk().await.unwrap(), delta.as_bytes());
    peer.end_stream().await;
    let (code, message) = last_error(&client.next_chunk().await.unwrap(), "event: error\n");
    assert_eq!(code, "stream_broken");
    assert!(message.starts_with("tidegate: the upstream's stream closed before its last event."), "{message}");
    assert_eq!(client.next_chunk().await, None);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_that_clients_raise() {
    let (gateway, upstream) =
        scripted_with(|config| config.upstreams[0].idle_timeout = Some(Duration::from_millis(20))).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    client.head().await;
    assert_eq!(client.next_chunk().await.unwrap(), EVENT.as_bytes());
    let (code, message) = last_error(&client.next_chunk().await.unwrap(), "");
    assert_eq!(code, "upstream_timeout");
    assert!(message.starts_with("tidegate: nothing came of the upstream's stream for 20ms."), "{message}");
    assert_eq!(client.next_chunk().await, None);
    assert!(peer.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn draining_refuses_new_calls_and_lets_streams_finish() {
    let (gateway, upstream) = scripted().await;
    let api = gateway.api_addrs()[0];
    let admin = gateway.admin_addr();
    let mut streaming = client(&gateway).await;
    streaming.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    streaming.head().await;
    assert!(streaming.next_chunk().await.is_some());
    let mut unused = client(&gateway).await;
    let draining = tokio::spawn(gateway.drain());
    // A connection that is not in use is closed at once, and so is the listener.
    assert!(unused.closed().await);
    until(|| std::net::TcpStream::connect(api).is_err()).await;
    let mut ready = Peer::connect(admin).await;
    ready.write("GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(ready.message(true).await.status(), 503);
    peer.chunk("data: [DONE]\n\n").await;
    peer.end_stream().await;
    assert_eq!(streaming.next_chunk().await.unwrap(), b"data: [DONE]\n\n");
    assert_eq!(streaming.next_chunk().await, None);
    within(draining).await.unwrap();
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_off() {
    let (gateway, upstream) = scripted_with(|config| config.server.drain_timeout = Duration::from_millis(20)).await;
    let driver = gateway.driver().clone();
    let mut streaming = client(&gateway).await;
    streaming.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    streaming.head().await;
    within(gateway.drain()).await;
    assert!(streaming.closed().await && peer.closed().await);
    assert_eq!(driver.with(|gate, _| gate.in_flight()), 0);
}

#[tokio::test]
async fn levels_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.policy.limits.push(team_limit(100));
    let all = CHAT.replace("}]}", "}],\"max_tokens\":90}");
    let first = start_in(dir.path(), config.clone()).await;
    let mut caller = client(&first).await;
    caller.post("/v1/chat/completions", "", &all).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "", r#"{"usage":{"prompt_tokens":10,"completion_tokens":90}}"#).await;
    assert_eq!(caller.message(false).await.status(), 200);
    within(first.drain()).await;
    let second = start_in(dir.path(), config).await;
    let mut caller = client(&second).await;
    caller.post("/v1/chat/completions", "x-tidegate-max-wait: 1ms\r\n", &all).await;
    assert_eq!(caller.message(false).await.status(), 429);
    let token = std::fs::read_to_string(dir.path().join("admin-token")).unwrap();
    let ask = format!(
        "GET /admin/v1/status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(call_admin(&second, &ask).await.status(), 200);
}

#[tokio::test]
async fn a_stream_whose_first_event_is_late_counts_as_slow_however_soon_its_head_came() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.breaker.slow_call_duration = Some(Duration::from_millis(500));
        config.policy.breaker.minimum_calls = 2;
    })
    .await;
    for _ in 0..2 {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", CHAT_STREAM).await;
        let (mut peer, _) = upstream.request().await;
        peer.write(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-ratelimit-limit-requests: 1000\r\n\
             x-ratelimit-remaining-requests: 999\r\nx-ratelimit-reset-requests: 60ms\r\n\r\n",
        )
        .await;
        // What the head told is known: it has come.
        let is_told = || {
            let status = gateway.driver().with(|gate, now| gate.status(now));
            status.learned[0].limits.first().is_some_and(|limit| limit.age_seconds < 0.5)
        };
        until(is_told).await;
        // It is passed on a second after it came, event or not.
        let_pass(Duration::from_millis(1100)).await;
        client.head().await;
        peer.chunk(EVENT).await;
        peer.chunk("data: [DONE]\n\n").await;
        peer.end_stream().await;
        while client.next_chunk().await.is_some() {}
        idle(&gateway).await;
    }
    let breaker = gateway.driver().with(|gate, now| gate.status(now)).breakers.remove(0);
    assert_eq!((breaker.state, breaker.cause.as_str()), ("open", "2 of 2 calls were slow"));
}
