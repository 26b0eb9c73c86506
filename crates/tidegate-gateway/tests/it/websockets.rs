//! Upgrades go through, both ways, and end with either side.

use std::time::Duration;

use crate::support::*;

const HANDSHAKE: &str = "GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\n\
                         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn bytes_go_both_ways_after_the_upgrade() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.write(HANDSHAKE).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.start, "GET /v1/realtime?model=gpt-realtime HTTP/1.1");
    assert_eq!(request.header("upgrade"), Some("websocket"));
    assert_eq!(request.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    peer.write(format!("{SWITCHED}first")).await;
    let (start, headers) = client.head().await;
    assert!(start.contains("101"), "{start}");
    assert!(headers.iter().any(|(name, _)| name == "x-tidegate-id"));
    client.expect(b"first").await;
    client.write("ping").await;
    peer.expect(b"ping").await;
    peer.write("pong").await;
    client.expect(b"pong").await;
    assert_eq!(gateway.driver().with(|gate, _| gate.in_flight()), 1);
    drop(peer);
    assert!(client.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_caller_that_reads_no_more_is_given_up_and_the_upstream_is_not_blamed() {
    let (gateway, upstream) = scripted_with(|config| config.policy.breaker.failure_threshold = 1).await;
    let mut client = client(&gateway).await;
    client.write(HANDSHAKE).await;
    let (mut peer, _) = upstream.request().await;
    peer.write(SWITCHED).await;
    client.head().await;
    peer.flood(&[b'-'; 64 << 10]).await;
    let_pass(Duration::from_secs(61)).await;
    assert!(peer.closed().await && client.closed().await);
    idle(&gateway).await;
    let status = gateway.driver().with(|gate, now| gate.status(now));
    assert!(status.breakers.iter().all(|breaker| breaker.state == "closed"), "{:?}", status.breakers);
}

#[tokio::test]
async fn a_refused_upgrade_is_passed_on() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.write(HANDSHAKE).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("401 Unauthorized", "", "{\"error\":{\"code\":\"invalid_api_key\"}}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (401, "{\"error\":{\"code\":\"invalid_api_key\"}}"));
    idle(&gateway).await;
}

#[tokio::test]
async fn an_upgrade_is_refused_where_tokens_are_limited() {
    let (gateway, _upstream) = scripted_with(|config| config.policy.limits.push(team_limit(1000))).await;
    let mut client = client(&gateway).await;
    client.write(HANDSHAKE).await;
    let reply = client.message(false).await;
    assert_eq!(reply.status(), 403);
    assert!(reply.error("message").contains("limit \"team\""), "{}", reply.text());
}

#[tokio::test]
async fn a_handshake_is_waited_for_as_long_as_the_upstream_is_given() {
    for (first_byte_timeout, answers) in [(Some(Duration::from_secs(5)), false), (None, true)] {
        let (gateway, upstream) =
            scripted_with(|config| config.upstreams[0].first_byte_timeout = first_byte_timeout).await;
        let mut client = client(&gateway).await;
        client.write(HANDSHAKE).await;
        let (mut peer, _) = upstream.request().await;
        let_pass(Duration::from_secs(3600)).await;
        if answers {
            peer.write(SWITCHED).await;
            assert!(client.head().await.0.contains("101"));
        } else {
            let reply = client.message(false).await;
            assert_eq!((reply.status(), reply.error("code").as_str()), (504, "upstream_timeout"));
        }
    }
}
