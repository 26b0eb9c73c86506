//! What is tried again, what is not, and what is said at the end.

use std::time::Duration;

use crate::support::*;

const RATE_LIMIT: &str = r#"{"error":{"message":"Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 30000, Requested 1. Please try again in 2ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;
const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\ndata: [DONE]\n\n";

#[tokio::test]
async fn a_rate_limit_is_waited_out_and_the_caller_sees_nothing_of_it() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("429 Too Many Requests", "retry-after-ms: 2\r\n", RATE_LIMIT).await;
    let again = peer.message(false).await;
    assert_eq!(again.text(), CHAT);
    peer.reply("200 OK", "", "{\"ok\":true}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "{\"ok\":true}"));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"));
    idle(&gateway).await;
}

#[tokio::test]
async fn an_error_within_a_stream_is_retried_while_its_status_is_not_out() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk(format!("data: {RATE_LIMIT}\n\n")).await;
    peer.end_stream().await;
    let mut peer = peer.again(&upstream).await;
    peer.begin_stream().await;
    peer.chunk(EVENT).await;
    peer.end_stream().await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, EVENT));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"));
    idle(&gateway).await;
}

#[tokio::test]
async fn an_error_after_the_preamble_of_a_response_is_retried() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/responses", "", r#"{"model":"gpt-4o","input":"hi","stream":true}"#).await;
    let (mut peer, _) = upstream.request().await;
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n";
    peer.begin_stream().await;
    peer.chunk(created).await;
    peer.chunk(
        "event: error\ndata: {\"type\":\"error\",\"code\":\"rate_limit_exceeded\",\"message\":\"Rate limit reached. \
         Please try again in 2ms.\",\"param\":null,\"sequence_number\":1}\n\n",
    )
    .await;
    peer.end_stream().await;
    let mut peer = peer.again(&upstream).await;
    let rest = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\
                \"input_tokens\":3,\"output_tokens\":2}}}\n\n";
    peer.begin_stream().await;
    peer.chunk(created).await;
    peer.chunk(rest).await;
    peer.end_stream().await;
    let reply = client.message(false).await;
    assert_eq!(reply.text(), format!("{created}{rest}"));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"));
}

#[tokio::test]
async fn an_error_within_a_good_json_reply_is_retried() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "", r#"{"error":{"message":"try again in 2ms","code":429}}"#).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.header("x-tidegate-attempts"), Some("2"));
}

#[tokio::test]
async fn an_error_after_the_first_event_goes_through_as_it_is() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n").await;
    client.head().await;
    let error = "data: {\"error\":{\"message\":\"boom\",\"type\":\"server_error\"}}\n\n";
    assert!(client.next_chunk().await.is_some());
    peer.chunk(error).await;
    peer.end_stream().await;
    assert_eq!(client.next_chunk().await.unwrap(), error.as_bytes());
    assert_eq!(client.next_chunk().await, None);
    idle(&gateway).await;
}

#[tokio::test]
async fn the_upstreams_last_answer_is_passed_on_and_sdks_are_told_not_to_retry() {
    let (gateway, upstream) = scripted_with(|config| config.policy.retry.max_attempts = 2).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let body = r#"{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}"#;
    peer.reply("500 Internal Server Error", "", body).await;
    peer.message(false).await;
    peer.reply("500 Internal Server Error", "x-request-id: req_2\r\n", body).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (500, body));
    assert_eq!((reply.header("x-should-retry"), reply.header("x-request-id")), (Some("false"), Some("req_2")));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_callers_mistake_is_sent_once_and_answered_as_it_is() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let body =
        r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}"#;
    peer.reply("400 Bad Request", "", body).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (400, body));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("1"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_tried_again_and_then_said() {
    let gateway = {
        let mut config = config("127.0.0.1:1".parse().unwrap());
        // Never resolves (RFC 2606).
        config.upstreams[0].base_url = "http://upstream.invalid/v1".to_owned();
        start(config).await
    };
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"));
    let message = reply.error("message");
    assert!(message.starts_with("tidegate: gave up after 3 of 3 attempts in "), "{message}");
    assert!(message.ends_with("last: the upstream's name does not resolve."), "it was not billed: {message}");
    idle(&gateway).await;
}

#[tokio::test]
async fn an_upstream_that_closes_early_is_tried_again_and_then_given_up() {
    let (gateway, upstream) = scripted_with(|config| config.policy.retry.max_attempts = 2).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    for _ in 0..2 {
        let (peer, request) = upstream.request().await;
        assert_eq!(request.text(), CHAT);
        drop(peer);
    }
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"));
    let message = reply.error("message");
    assert!(message.starts_with("tidegate: gave up after 2 of 2 attempts in "), "{message}");
    assert!(message.ends_with("The last attempt may have been billed."), "{message}");
    assert_eq!(reply.header("x-tidegate-reason"), Some("upstream"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_reply_that_breaks_off_within_its_body_is_tried_again_while_nothing_of_it_is_out() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    for half in ["content-length: 100\r\n\r\n{\"id\":", "transfer-encoding: chunked\r\n\r\n6\r\n{\"id\":\r\n"] {
        let (mut peer, _) = upstream.request().await;
        peer.write(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{half}")).await;
    }
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "", "{\"id\":1}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "{\"id\":1}"));
    assert_eq!(reply.header("x-tidegate-attempts"), Some("3"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_wait_of_114_hours_is_told_to_its_caller_and_not_imposed_on_everybody() {
    let (gateway, upstream) = scripted().await;
    let too_long = RATE_LIMIT.replace("2ms", "114h18m0s");
    for told in [Some("411480"), None] {
        let headers = told.map_or_else(String::new, |told| format!("retry-after: {told}\r\n"));
        let mut first = client(&gateway).await;
        first.post("/v1/chat/completions", "", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("429 Too Many Requests", &format!("{headers}connection: close\r\n"), &too_long).await;
        let reply = first.message(false).await;
        assert_eq!((reply.status(), reply.text()), (429, too_long.clone()));
        assert_eq!(reply.header("retry-after"), told);
        assert_eq!((reply.header("x-should-retry"), reply.header("x-tidegate-attempts")), (Some("false"), Some("1")));
        // For the others it is a pause, and a short one.
        let mut hurried = client(&gateway).await;
        hurried.post("/v1/chat/completions", "x-tidegate-max-wait: 1s\r\n", CHAT).await;
        let reply = hurried.message(false).await;
        assert_eq!(reply.status(), 429);
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() <= 60, "{:?}", reply.headers);
        let mut patient = client(&gateway).await;
        patient.post("/v1/chat/completions", "", CHAT).await;
        until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
        let_pass(Duration::from_secs(61)).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("200 OK", "connection: close\r\n", "{}").await;
        assert_eq!(patient.message(false).await.status(), 200);
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn a_retry_after_in_the_past_asks_for_no_wait() {
    let (gateway, upstream) = scripted().await;
    for (status, past) in [
        ("429 Too Many Requests", "retry-after: Thu, 01 Jan 1970 00:00:00 GMT\r\n"),
        ("500 Internal Server Error", "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        ("500 Internal Server Error", "retry-after: -5\r\nretry-after-ms: -1\r\n"),
        ("500 Internal Server Error", "retry-after: 0\r\n"),
    ] {
        let mut client = client(&gateway).await;
        // With a wait of a minute this would be the last answer.
        client.post("/v1/chat/completions", "x-tidegate-max-wait: 10s\r\n", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply(status, past, "{\"error\":{\"message\":\"no\"}}").await;
        peer.message(false).await;
        peer.reply("200 OK", "connection: close\r\n", "{}").await;
        let reply = client.message(false).await;
        assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")), "{status} {past}");
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn of_what_an_upstream_says_twice_the_first_counts_and_both_go_through() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("429 Too Many Requests", "retry-after-ms: 2\r\nretry-after-ms: 411480000\r\n", "{\"error\":{}}").await;
    peer.message(false).await;
    let twice = "x-ratelimit-limit-tokens: 30000\r\nx-ratelimit-limit-tokens: 1\r\n\
                 x-ratelimit-remaining-tokens: 29000\r\nx-ratelimit-remaining-tokens: 0\r\nretry-after: 1\r\nretry-after: 2\r\n";
    peer.reply("200 OK", twice, "{}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")));
    for (name, both) in [("x-ratelimit-remaining-tokens", ["29000", "0"]), ("retry-after", ["1", "2"])] {
        let came: Vec<&str> =
            reply.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect();
        assert_eq!(came, both);
    }
    let status = gateway.driver().with(|gate, now| gate.status(now));
    assert_eq!(status.learned[0].limits[0].limit, 30_000);
    client.post("/v1/chat/completions", "x-tidegate-max-wait: 1ms\r\n", CHAT).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    idle(&gateway).await;
}

#[tokio::test]
async fn garbage_instead_of_a_reply_is_a_failed_attempt() {
    let (gateway, upstream) = scripted_with(|config| config.policy.retry.max_attempts = 1).await;
    for garbage in [
        "\0\u{1}\u{2}nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 2000\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}",
    ] {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.write(garbage).await;
        let reply = client.message(false).await;
        assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"), "{garbage:?}");
        assert!(reply.error("message").contains("no valid HTTP"), "{}", reply.text());
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn absurd_limits_in_headers_change_nothing() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    for headers in [
        "x-ratelimit-limit-requests: -5\r\nx-ratelimit-remaining-requests: -1\r\n",
        "x-ratelimit-limit-tokens: 99999999999999999999\r\nx-ratelimit-remaining-tokens: x\r\n",
        "retry-after: Thu, 01 Jan 1970 00:00:00 GMT\r\nx-ratelimit-reset-tokens: 114h18m0s\r\n",
        "x-ratelimit-limit-requests: 5\r\nx-ratelimit-limit-requests: 6\r\nx-ratelimit-remaining-requests: 7\r\n",
    ] {
        client.post("/v1/chat/completions", "x-tidegate-max-wait: 1ms\r\n", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("200 OK", &format!("{headers}connection: close\r\n"), "{}").await;
        assert_eq!(client.message(false).await.status(), 200, "{headers}");
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_in_time_is_a_timeout() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.retry.max_attempts = 1;
        config.upstreams[0].first_byte_timeout = Some(Duration::from_millis(300));
    })
    .await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (504, "upstream_timeout"));
    assert!(peer.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_retry_of_the_callers_sdk_is_counted_and_passed_on() {
    let (gateway, upstream) = scripted().await;
    for count in ["0", "2"] {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", &format!("x-stainless-retry-count: {count}\r\n"), CHAT).await;
        let (mut peer, request) = upstream.request().await;
        assert_eq!(request.header("x-stainless-retry-count"), Some(count));
        peer.reply("200 OK", "connection: close\r\n", "{}").await;
        assert_eq!(client.message(false).await.status(), 200);
    }
    let metrics = call_admin(&gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text();
    assert!(metrics.contains("tidegate_retries_total{reason=\"sdk\",result=\"received\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_form_of_unknown_length_is_never_sent_twice_and_its_sender_may_retry() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client
        .write("POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n\r\n5\r\n--b--\r\n0\r\n\r\n")
        .await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("503 Service Unavailable", "", "{\"error\":{}}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.text().as_str()), (503, "{\"error\":{}}"));
    assert_eq!((reply.header("x-should-retry"), reply.header("x-tidegate-attempts")), (None, Some("1")));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_small_form_waits_for_a_rate_limit_and_is_sent_again_like_any_other_call() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client
        .write("POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 5\r\n\r\n--b--")
        .await;
    let (mut peer, first) = upstream.request().await;
    peer.reply("429 Too Many Requests", "retry-after-ms: 20\r\n", "{\"error\":{\"code\":\"rate_limit_exceeded\"}}")
        .await;
    let second = peer.message(false).await;
    assert_eq!((first.text(), second.text()), ("--b--".to_owned(), "--b--".to_owned()));
    peer.reply("200 OK", "", "{}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")));
    idle(&gateway).await;
}
