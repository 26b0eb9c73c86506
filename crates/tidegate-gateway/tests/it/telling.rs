//! Who is told what happens, as it happens, and what they are never told.

use std::time::Duration;

use serde_json::Value;
use tidegate_core::config::{OnAuditFailure, UpstreamConfig};
use tidegate_core::limit::{Limit, Scope};
use tidegate_gateway::Gateway;

use crate::admin::{ask, with_viewer};
use crate::support::*;

/// Somebody who reads what happens.
pub(crate) struct Reader {
    peer: Peer,
    text: String,
}

/// One event.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) event: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Reader {
    pub(crate) async fn open(gateway: &Gateway, query: &str, headers: &str) -> Self {
        Self::open_as(gateway, "operator", query, headers).await
    }

    pub(crate) async fn open_as(gateway: &Gateway, token: &str, query: &str, headers: &str) -> Self {
        let mut peer = Peer::connect(gateway.admin_addr()).await;
        let token = format!("authorization: Bearer {token}");
        peer.write(format!("GET /admin/v1/events{query} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n{headers}\r\n"))
            .await;
        let (start, headers) = peer.head().await;
        assert!(start.contains("200"), "{start}");
        assert!(headers.contains(&("content-type".to_owned(), "text/event-stream".to_owned())), "{headers:?}");
        Self { peer, text: String::new() }
    }

    /// The next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_default().to_owned()
                };
                let (event, id) = (field("event"), field("id"));
                let data = serde_json::from_str(&field("data")).unwrap_or_default();
                self.text = rest.to_owned();
                if !event.is_empty() {
                    return Some(Told { event, id, data });
                }
            }
            let chunk = self.peer.next_chunk().await?;
            self.text.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    /// The next event of this name.
    pub(crate) async fn find(&mut self, event: &str) -> Told {
        loop {
            let told = self.next().await.unwrap();
            if told.event == event {
                return told;
            }
        }
    }
}

/// A call that is answered with 503, and again with 200.
pub(crate) async fn retried(gateway: &Gateway, upstream: &Script, headers: &str) {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", headers, CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("503 Service Unavailable", "", "{}").await;
    peer.again(upstream).await.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
}

#[tokio::test]
async fn a_retry_is_told_as_it_happens_and_to_those_who_come_later() {
    let (gateway, upstream) = scripted().await;
    let mut before = Reader::open(&gateway, "", "").await;
    let secret = "authorization: Bearer sk-planted\r\nx-tidegate-id: c-1\r\nx-tidegate-user: ada\r\n";
    retried(&gateway, &upstream, secret).await;
    let failed = before.find("attempt_failed").await;
    assert_eq!((&failed.data["user"], &failed.data["why"]), (&"ada".into(), &"temporary_error".into()));
    let scheduled = before.find("retry_scheduled").await;
    assert_eq!((&scheduled.data["call"], &scheduled.data["kind"]), (&"c-1".into(), &"retry".into()));
    assert!(scheduled.data["numbers"]["delay_us"].is_number() && scheduled.data["tenant"].is_string());
    assert!(scheduled.data["at"].as_str().unwrap().ends_with('Z'), "{scheduled:?}");
    let succeeded = before.find("attempt_success").await;
    let mut after = Reader::open(&gateway, "", "").await;
    assert_eq!(after.find("attempt_success").await.id, succeeded.id);
    let mut on = Reader::open(&gateway, "?kind=retry", &format!("last-event-id: {}\r\n", scheduled.id)).await;
    assert_eq!(on.next().await.unwrap().id, succeeded.id, "who read before goes on there");
    assert!(!format!("{scheduled:?}{failed:?}{}{}", before.text, after.text).contains("sk-planted"));
}

#[tokio::test]
async fn only_what_is_asked_for_is_told() {
    let (gateway, upstream) = scripted().await;
    let mut other = Reader::open(&gateway, "?call=c-2&kind=retry", "").await;
    let mut users = Reader::open(&gateway, "?user=grace", "").await;
    retried(&gateway, &upstream, "x-tidegate-id: c-1\r\nx-tidegate-user: ada\r\n").await;
    retried(&gateway, &upstream, "x-tidegate-id: c-2\r\nx-tidegate-user: grace\r\n").await;
    assert_eq!(other.next().await.unwrap().data["call"], "c-2");
    assert_eq!(users.next().await.unwrap().data["user"], "grace");
}

#[tokio::test]
async fn what_happens_is_for_those_with_the_token_and_for_so_many_at_a_time() {
    let (gateway, _upstream) = scripted().await;
    let ask =
        |token: &str| format!("GET /admin/v1/events HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n");
    assert_eq!(call_admin(&gateway, &ask("")).await.status(), 401);
    assert_eq!(call_admin(&gateway, &ask("authorization: Bearer wrong\r\n")).await.status(), 401);
    let mut readers = Vec::new();
    for _ in 0..32 {
        readers.push(Reader::open(&gateway, "", "").await);
    }
    let token = "authorization: Bearer operator\r\n";
    let refused = call_admin(&gateway, &ask(token)).await;
    assert!(refused.error("message").contains("32 readers"), "{}", refused.text());
    readers.pop();
    // Its place is free once its connection is known to be closed.
    within(async {
        loop {
            let mut peer = Peer::connect(gateway.admin_addr()).await;
            peer.write(ask(token)).await;
            if peer.head().await.0.contains("200") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn viewers_leave_room_for_operators() {
    let (gateway, _upstream) = scripted_with(with_viewer).await;
    let mut readers = Vec::new();
    for _ in 0..24 {
        readers.push(Reader::open_as(&gateway, "viewer", "", "").await);
    }
    let refused = ask(&gateway, "viewer", "GET /admin/v1/events", "").await;
    assert!(refused.error("message").contains("24 viewers are told already"), "{}", refused.text());
    for _ in 24..32 {
        readers.push(Reader::open(&gateway, "", "").await);
    }
}

#[tokio::test]
async fn how_everything_stands_is_told_again_and_again_and_takes_no_more_room_than_a_page_has() {
    let (gateway, upstream) = scripted_with(|config| {
        // Else the calls that may be under way while nothing is known grow by and by.
        let upstream = UpstreamConfig { learn_limits: false, ..config.upstreams[0].clone() };
        config.set_upstreams(vec![upstream]);
        config.policy.limits.push(Limit { name: "each".into(), per: vec![Scope::User], ..team_limit(1000) });
    })
    .await;
    let mut peers = Vec::new();
    for user in 0..60 {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", &format!("x-tidegate-user: user-{user}\r\n"), CHAT).await;
        peers.push((client, upstream.request().await));
    }
    let mut reader = Reader::open(&gateway, "?kind=status", "").await;
    let first = reader.next().await.unwrap();
    assert_eq!((&first.event, &first.data["state"]), (&"status".to_owned(), &"serving".into()));
    assert_eq!((first.data["levels"].as_u64(), first.data["limits"].as_array().unwrap().len()), (Some(60), 50));
    assert_eq!(first.data["in_flight"], 60);
    let_pass(Duration::from_millis(1100)).await;
    assert_ne!(reader.next().await.unwrap().data["at"], "");
}

#[tokio::test]
async fn what_came_within_the_last_minute_is_told_to_who_looks_afterwards_and_to_all_the_same() {
    let (gateway, upstream) = scripted().await;
    retried(&gateway, &upstream, "").await;
    ask(&gateway, "operator", "POST /admin/v1/pause", "").await;
    for _ in 0..38 {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", CHAT).await;
        assert_eq!(client.message(false).await.status(), 503);
    }
    let mut readers = Vec::new();
    for _ in 0..2 {
        readers.push(Reader::open(&gateway, "?kind=status", "").await);
    }
    for reader in &mut readers {
        let told = &reader.next().await.unwrap().data["last_minute"];
        let seconds = told["seconds"].as_u64().unwrap();
        assert!((1..60).contains(&seconds), "the gateway is younger than a minute: {told}");
        let came = serde_json::json!({
            "seconds": seconds, "calls": 39, "refused": 38, "reasons": {"paused": 38}, "retries": 1, "too_many_requests": 0,
        });
        assert_eq!(*told, came);
    }
    let mut over = serde_json::Value::Null;
    for _ in 0..8 {
        let_pass(Duration::from_secs(20)).await;
        over = readers[0].next().await.unwrap().data["last_minute"].clone();
    }
    let nothing = serde_json::json!({
        "seconds": 60, "calls": 0, "refused": 0, "reasons": {}, "retries": 0, "too_many_requests": 0,
    });
    assert_eq!(over, nothing);
}

#[tokio::test]
async fn an_override_that_was_refused_for_the_trail_is_told_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing").join("audit.db");
    let (gateway, _upstream) = scripted_with(|config| {
        config.audit.path = path.clone();
        config.audit.on_failure = OnAuditFailure::Refuse;
    })
    .await;
    let mut reader = Reader::open(&gateway, "?kind=override", "").await;
    assert_eq!(ask(&gateway, "operator", "POST /admin/v1/pause", "").await.status(), 503);
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    within(async { while ask(&gateway, "operator", "POST /admin/v1/resume", "").await.status() != 200 {} }).await;
    assert_eq!(reader.next().await.unwrap().data["what"], "resume");
}

#[tokio::test]
async fn who_loses_the_right_to_read_is_told_nothing_more() {
    let (gateway, upstream) = scripted_with(with_viewer).await;
    let mut reader = Reader::open_as(&gateway, "viewer", "?kind=override", "").await;
    ask(&gateway, "operator", "POST /admin/v1/pause", "").await;
    assert_eq!(reader.next().await.unwrap().data["what"], "pause");
    gateway.reload(config(upstream.addr)).unwrap();
    ask(&gateway, "operator", "POST /admin/v1/resume", "").await;
    // Of the pause there may be more on its way.
    while let Some(told) = reader.next().await {
        assert_ne!(told.data["after"], "running", "{told:?}");
    }
}

#[tokio::test]
async fn the_end_of_the_process_is_told_to_the_last() {
    let (gateway, upstream) = scripted().await;
    let mut reader = Reader::open(&gateway, "", "").await;
    retried(&gateway, &upstream, "x-tidegate-id: c-1\r\n").await;
    within(gateway.drain()).await;
    reader.find("attempt_success").await;
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn who_is_told_nothing_for_long_hears_that_the_line_is_alive() {
    let (gateway, _upstream) = scripted().await;
    let mut reader = Reader::open(&gateway, "?kind=override", "").await;
    assert_eq!(reader.peer.next_chunk().await.unwrap(), b"retry: 2000\n\n");
    let_pass(Duration::from_secs(16)).await;
    assert_eq!(reader.peer.next_chunk().await.unwrap(), b":\n\n");
}
