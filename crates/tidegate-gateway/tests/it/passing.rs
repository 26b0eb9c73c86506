//! What goes through goes through as it is, and as soon as it is there.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::*;

const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";

#[tokio::test]
async fn a_json_call_goes_through_byte_for_byte() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    let odd =
        "{ \"model\" : \"gpt-4o\",\n\t\"messages\": [ {\"role\":\"user\",\"content\":\"h\\u00e9llo\"} ] , \"x\":1.0 }";
    client.post("/v1/chat/completions?a=%20b", "x-custom: 1\r\nX-Tidegate-Id: job-1\r\nte: trailers\r\n", odd).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.start, "POST /v1/chat/completions?a=%20b HTTP/1.1");
    assert_eq!(request.text(), odd);
    assert_eq!(request.header("x-custom"), Some("1"));
    assert_eq!(request.header("authorization"), Some("Bearer sk-tidegate-sim"));
    assert_eq!(request.header("host"), Some(upstream.addr.to_string().as_str()));
    assert_eq!((request.header("x-tidegate-id"), request.header("te")), (None, None));
    let body = "{\"id\":\"x\",  \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n";
    peer.reply("200 OK", "x-request-id: req_1\r\nx-odd: a\r\nx-odd: b\r\nkeep-alive: timeout=5\r\n", body).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, body));
    let odd: Vec<&str> = reply.headers.iter().filter(|(name, _)| name == "x-odd").map(|(_, value)| &**value).collect();
    assert_eq!(odd, ["a", "b"]);
    for (name, value) in [
        ("x-request-id", Some("req_1")),
        ("x-tidegate-id", Some("job-1")),
        ("x-tidegate-attempts", Some("1")),
        ("x-tidegate-queued-ms", Some("0")),
        ("keep-alive", None),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn the_first_event_of_a_stream_is_not_held_back_for_the_second() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    let (start, _) = client.head().await;
    assert!(start.contains("200"));
    // Nothing more was sent: only what is passed on at once can arrive.
    assert_eq!(client.next_chunk().await.unwrap(), EVENT.as_bytes());
    peer.chunk("data: [DONE]\n\n").await;
    assert_eq!(client.next_chunk().await.unwrap(), b"data: [DONE]\n\n");
    // The last event settles the call, whether the connection ends or not.
    idle(&gateway).await;
    peer.end_stream().await;
    assert_eq!(client.next_chunk().await, None);
}

#[tokio::test]
async fn a_stream_cut_inside_characters_and_lines_arrives_whole() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Grüße 🌊\"}}]}\r\n\r\ndata: [DONE]\r\n\r\n";
    peer.begin_stream().await;
    for byte in event.as_bytes().chunks(1) {
        peer.chunk(byte).await;
    }
    peer.end_stream().await;
    assert_eq!(client.message(false).await.text(), event);
    idle(&gateway).await;
}

#[tokio::test]
async fn paths_without_a_version_go_to_the_same_place() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/embeddings", "", r#"{"model":"text-embedding-3-small","input":"a"}"#).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.start, "POST /v1/embeddings HTTP/1.1");
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
}

#[tokio::test]
async fn a_form_streams_through_before_it_is_complete() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client
        .write(
            "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n\
             transfer-encoding: chunked\r\n\r\n",
        )
        .await;
    client.chunk("--b\r\nfirst half").await;
    let listener_side = upstream.request();
    let finish = async {
        client.chunk("second half\r\n--b--\r\n").await;
        client.end_stream().await;
    };
    let ((mut peer, request), ()) = tokio::join!(listener_side, finish);
    assert_eq!(request.text(), "--b\r\nfirst halfsecond half\r\n--b--\r\n");
    peer.reply("200 OK", "", "{\"id\":\"file-1\"}").await;
    assert_eq!(client.message(false).await.text(), "{\"id\":\"file-1\"}");
    idle(&gateway).await;
}

#[tokio::test]
async fn a_compressed_request_is_read_and_goes_on_unpacked() {
    let (gateway, upstream) = scripted().await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(CHAT.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let mut client = client(&gateway).await;
    let length = packed.len();
    client
        .write(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    client.write(&packed).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!((request.text().as_str(), request.header("content-encoding")), (CHAT, None));
    assert_eq!(request.header("content-length"), Some(CHAT.len().to_string().as_str()));
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
}

#[tokio::test]
async fn a_compressed_reply_goes_through_untouched_and_its_usage_is_read() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "accept-encoding: br, gzip\r\n", CHAT).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.header("accept-encoding"), Some("gzip"));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(br#"{"usage":{"prompt_tokens":30,"completion_tokens":12}}"#).unwrap();
    let packed = encoder.finish().unwrap();
    peer.write(format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", packed.len())).await;
    peer.write(&packed).await;
    let reply = client.message(false).await;
    assert_eq!((reply.header("content-encoding"), &reply.body), (Some("gzip"), &packed));
    let metrics = call_admin(&gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text();
    assert!(
        metrics.contains("tidegate_tokens_total{upstream=\"openai\",model=\"gpt-4o\",kind=\"input\"} 30"),
        "{metrics}"
    );
    assert!(metrics.contains("tidegate_tokens_total{upstream=\"openai\",model=\"gpt-4o\",kind=\"output\"} 12"));
}

#[tokio::test]
async fn a_renamed_model_is_sent_under_its_name_there() {
    let (gateway, upstream) = scripted_with(|config| {
        config.upstreams[0].models =
            tidegate_core::config::ModelMap::Renames([("gpt-4o".into(), "prod".into())].into());
    })
    .await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, request) = upstream.request().await;
    let sent: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&sent["model"], &sent["messages"][0]["content"]), (&"prod".into(), &"hello".into()));
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    client.post("/v1/chat/completions", "", &CHAT.replace("gpt-4o", "o3")).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (404, "model_not_found"));
}

#[tokio::test]
async fn where_own_limits_apply_the_headers_speak_of_them() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(team_limit(1000))).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "x-ratelimit-limit-tokens: 30000\r\nx-ratelimit-remaining-tokens: 29000\r\n", "{}").await;
    let reply = client.message(false).await;
    assert_eq!(reply.header("x-ratelimit-limit-tokens"), Some("1000"));
    assert_eq!(reply.header("x-tidegate-upstream-ratelimit-limit-tokens"), Some("30000"));
    assert!(reply.header("x-ratelimit-remaining-tokens").unwrap().parse::<u64>().unwrap() < 1000);
}

#[tokio::test]
async fn a_reply_without_a_body_is_a_success() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.write("HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let (mut peer, _) = upstream.request().await;
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
    let (start, headers) = client.head().await;
    assert!(start.contains("200") && headers.contains(&("content-length".to_owned(), "5".to_owned())), "{headers:?}");
    client.write("DELETE /v1/files/a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(peer.message(false).await.start, "DELETE /v1/files/a HTTP/1.1");
    peer.write("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(client.head().await.0.contains("204"));
    idle(&gateway).await;
    let metrics = call_admin(&gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text();
    for what in ["-/models", "-/files"] {
        let ok = format!("model=\"{what}\",priority=\"normal\",outcome=\"ok\"}} 1");
        assert!(metrics.contains(&ok), "{metrics}");
    }
}

#[tokio::test]
async fn a_reload_takes_over_limits_and_an_invalid_one_changes_nothing() {
    let (gateway, upstream) = scripted().await;
    let mut limited = config(upstream.addr);
    limited.policy.limits.push(team_limit(10));
    let mut invalid = limited.clone();
    invalid.server.tls = Some(tidegate_core::config::TlsConfig { cert: "/none".into(), key: "/none".into() });
    assert!(gateway.reload(invalid).is_err());
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    let metrics = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(call_admin(&gateway, metrics).await.text().contains("tidegate_config_last_reload_successful 0"));
    gateway.reload(limited).unwrap();
    client.post("/v1/chat/completions", "", &CHAT.replace("hello", &"a".repeat(400))).await;
    assert_eq!(client.message(false).await.header("x-tidegate-reason"), Some("too_large"));
    assert!(call_admin(&gateway, metrics).await.text().contains("tidegate_config_last_reload_successful 1"));
}
