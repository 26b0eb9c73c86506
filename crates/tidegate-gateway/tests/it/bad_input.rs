//! What no side should send, and does: a clear error or a sane continuation, with nothing left in flight and nobody waiting.
//!
//! Malformed bodies and wrong paths are in `refusing`, upstreams that fail in `retrying`, those that leave in `ending`.

use std::time::Duration;

use crate::support::*;

const HEAD: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";

#[tokio::test]
async fn a_caller_that_stops_reading_is_given_up_and_the_upstreams_work_with_it() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    peer.flood(&comment(64 << 10)).await;
    // It is the upstream that waits now: nothing is piled up here.
    assert_eq!(gateway.driver().with(|gate, _| gate.in_flight()), 1);
    let_pass(Duration::from_secs(61)).await;
    assert!(peer.closed().await && client.closed().await);
    idle(&gateway).await;
    let cancelled =
        "tidegate_calls_total{upstream=\"openai\",model=\"gpt-4o\",priority=\"normal\",outcome=\"cancelled\"} 1";
    let metrics = metrics(&gateway).await;
    assert!(metrics.contains(cancelled), "{metrics}");
}

#[tokio::test]
async fn a_caller_that_pauses_is_no_silence_of_the_upstreams() {
    let (gateway, upstream) =
        scripted_with(|config| config.upstreams[0].idle_timeout = Some(Duration::from_secs(20))).await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT_STREAM).await;
    let (mut peer, _) = upstream.request().await;
    peer.begin_stream().await;
    let piece = comment(64 << 10);
    let written = peer.flood(&piece).await;
    let_pass(Duration::from_secs(40)).await;
    let rest = async {
        peer.write(&piece[written % piece.len()..]).await;
        peer.chunk("data: [DONE]\n\n").await;
        peer.end_stream().await;
    };
    let (reply, ()) = tokio::join!(client.message(false), rest);
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_answered_and_holds_nothing() {
    let (gateway, _upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.write(format!("{HEAD}expect: 100-continue\r\ncontent-length: 100\r\n\r\n{{\"model\":")).await;
    // Said as soon as the body is awaited.
    assert!(client.head().await.0.contains("100 Continue"));
    let_pass(Duration::from_secs(61)).await;
    let reply = client.message(true).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (408, "invalid_body"));
    assert!(reply.error("message").contains("the body stopped arriving"), "{}", reply.text());
    idle(&gateway).await;
}

#[tokio::test]
async fn bodies_that_are_being_read_have_a_bound_together_and_small_ones_go_on() {
    let (gateway, upstream) = scripted_with(|config| config.policy.queue.max_bytes = 1 << 20).await;
    let mut greedy = client(&gateway).await;
    greedy.write(format!("{HEAD}content-length: {}\r\n\r\n", 32 << 20)).await;
    // More than all sockets take: most of it has been read.
    greedy.write(vec![b' '; (32 << 20) - 1]).await;
    let large = CHAT.replace("hello", &"a".repeat(512 << 10));
    let mut refused = client(&gateway).await;
    refused.post("/v1/chat/completions", "", &large).await;
    let reply = refused.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("queue_full")));
    assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (Some("1"), Some("true")));
    let mut small = client(&gateway).await;
    small.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "connection: close\r\n", "{}").await;
    assert_eq!(small.message(false).await.status(), 200);
    drop(greedy);
    loop {
        let mut again = client(&gateway).await;
        again.post("/v1/chat/completions", "", &large).await;
        tokio::select! {
            (mut peer, _) = upstream.request() => {
                peer.reply("200 OK", "", "{}").await;
                assert_eq!(again.message(false).await.status(), 200);
                break;
            }
            // It has not been seen yet that the other one has left.
            reply = again.message(false) => assert_eq!(reply.status(), 429),
        }
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn half_a_form_is_the_callers_fault_and_not_the_upstreams() {
    let (gateway, upstream) = scripted_with(|config| config.policy.breaker.failure_threshold = 1).await;
    for leaves in [true, false] {
        let mut client = client(&gateway).await;
        client
            .write(
                "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n\
                 transfer-encoding: chunked\r\n\r\n7\r\n--b\r\nha\r\n",
            )
            .await;
        let mut peer = upstream.connection().await;
        peer.head().await;
        assert_eq!(peer.next_chunk().await.unwrap(), b"--b\r\nha");
        if leaves {
            drop(client);
        } else {
            let_pass(Duration::from_secs(61)).await;
            let reply = client.message(true).await;
            assert_eq!((reply.status(), reply.error("code").as_str()), (400, "invalid_body"));
            assert!(reply.error("message").contains("the rest of the body did not arrive"), "{}", reply.text());
        }
        assert!(peer.closed().await);
        idle(&gateway).await;
    }
    let status = gateway.driver().with(|gate, now| gate.status(now));
    assert!(status.breakers.iter().all(|breaker| breaker.state == "closed"), "{:?}", status.breakers);
}

#[tokio::test]
async fn a_body_in_pieces_that_cut_characters_arrives_whole() {
    let (gateway, upstream) = scripted().await;
    let body = CHAT.replace("hello", "Grüße 🌊 \\ud83c\\udf0a");
    let mut client = client(&gateway).await;
    client.write(format!("{HEAD}transfer-encoding: chunked\r\n\r\n")).await;
    for byte in body.as_bytes().chunks(1) {
        client.chunk(byte).await;
    }
    client.end_stream().await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.text(), body);
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    idle(&gateway).await;
}

#[tokio::test]
async fn what_is_no_text_or_nested_without_end_is_a_bad_body() {
    let (gateway, _upstream) = scripted().await;
    let nested = format!("{{\"model\":\"gpt-4o\",\"messages\":{}", "[".repeat(200_000));
    let closed = format!("{nested}{}}}", "]".repeat(200_000));
    for body in [
        b"{\"model\":\"gpt-\xff\",\"messages\":[]}".as_slice(),
        b"{\"model\":\"gpt-4o\",\"messages\":[]}\0",
        nested.as_bytes(),
        closed.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        let mut client = client(&gateway).await;
        client.write(format!("{HEAD}content-length: {}\r\n\r\n", body.len())).await;
        client.write(body).await;
        let reply = client.message(false).await;

        assert_eq!((reply.status(), reply.error("code").as_str()), (400, "invalid_body"), "{shown}");
        assert!(reply.error("message").len() < 400, "{}", reply.text());
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn absurd_numbers_of_a_call_are_the_upstreams_to_judge_and_never_fit_a_limit() {
    let (free, upstream) = scripted().await;
    let (limited, _unreached) = scripted_with(|config| config.policy.limits.push(team_limit(1000))).await;
    let absurd = ["99999999999999999999", "18446744073709551615", "1e300"];
    for number in ["-5", "-99999999999999999999"].into_iter().chain(absurd) {
        let body = CHAT.replace("}]}", &format!("}}],\"n\":{number},\"max_tokens\":{number}}}"));
        let mut caller = client(&free).await;
        caller.post("/v1/chat/completions", "", &body).await;
        let (mut peer, request) = upstream.request().await;
        assert_eq!(request.text(), body);
        peer.reply("400 Bad Request", "connection: close\r\n", "{\"error\":{\"message\":\"no\"}}").await;
        assert_eq!(caller.message(false).await.status(), 400);
        if absurd.contains(&number) {
            let mut caller = client(&limited).await;
            caller.post("/v1/chat/completions", "", &body).await;
            assert_eq!(caller.message(false).await.header("x-tidegate-reason"), Some("too_large"), "{number}");
        }
    }
    for (wish, says) in [
        ("x-tidegate-estimated-tokens: 18446744073709551615", "too_large"),
        ("x-tidegate-estimated-tokens: -1", "bad_request"),
        ("x-tidegate-max-wait: -1s", "bad_request"),
        ("x-tidegate-max-wait: 99999999999999999999999h", "bad_request"),
        ("x-tidegate-timeout: 0s", "bad_request"),
    ] {
        let mut caller = client(&limited).await;
        caller.post("/v1/chat/completions", &format!("{wish}\r\n"), CHAT).await;
        assert_eq!(caller.message(false).await.header("x-tidegate-reason"), Some(says), "{wish}");
    }
    idle(&free).await;
    idle(&limited).await;
}

#[tokio::test]
async fn what_a_call_is_judged_by_may_be_said_only_once() {
    let (gateway, _upstream) = scripted().await;
    for (name, one, other) in [
        ("authorization", "Bearer sk-one", "Bearer sk-other"),
        ("api-key", "one", "other"),
        ("openai-organization", "org-one", "org-other"),
        ("openai-project", "proj-one", "proj-one"),
        ("content-type", "application/json", "multipart/form-data; boundary=b"),
        ("x-tidegate-priority", "low", "high"),
        ("x-tidegate-id", "one", "other"),
        ("host", "localhost", "localhost"),
    ] {
        let host = if name == "host" { "" } else { "host: localhost\r\n" };
        let length = CHAT.len();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n{host}{name}: {one}\r\n{name}: {other}\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{CHAT}"
        );
        let reply = call(&gateway, request).await;
        assert_eq!((reply.status(), reply.error("code").as_str()), (400, "invalid_request"), "{name}");
        let says = format!("tidegate: there is more than one {name} header");
        assert!(reply.error("message").eq_ignore_ascii_case(&says), "{}", reply.text());
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn a_length_said_twice_goes_on_once_and_two_lengths_are_none() {
    let (gateway, upstream) = scripted().await;
    let form = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n";
    for (head, body) in [(HEAD, CHAT), (form, "--b--")] {
        let length = format!("content-length: {}\r\n", body.len());
        let mut client = client(&gateway).await;
        client.write(format!("{head}{length}{length}\r\n{body}")).await;
        let (mut peer, request) = upstream.request().await;
        assert_eq!(request.headers.iter().filter(|(name, _)| name == "content-length").count(), 1, "{request:?}");
        assert_eq!(request.text(), body);
        peer.reply("200 OK", "", "{}").await;
        assert_eq!(client.message(false).await.status(), 200);
        let reply = call(&gateway, format!("{head}{length}content-length: 1\r\n\r\n{body}")).await;
        assert_eq!(reply.status(), 400);
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn headers_that_are_no_text_go_through_and_mean_nothing() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.write(format!("{HEAD}content-length: {}\r\nx-odd: \u{e9}\u{ff}\r\n\r\n{CHAT}", CHAT.len())).await;
    let (mut peer, request) = upstream.request().await;
    assert!(request.header("x-odd").is_some());
    let odd = "x-ratelimit-limit-tokens: \u{e9}\r\nx-ratelimit-remaining-tokens: \u{e9}\r\nretry-after: \u{e9}\r\n";
    peer.reply("500 Internal Server Error", odd, "{").await;
    peer.message(false).await;
    peer.reply("200 OK", &format!("{odd}content-encoding: \u{e9}\r\n"), "{}").await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")));
    assert!(reply.header("retry-after").is_some());
    idle(&gateway).await;
}

#[tokio::test]
async fn a_head_without_end_is_refused_on_either_side() {
    let (gateway, upstream) = scripted_with(|config| config.policy.retry.max_attempts = 1).await;
    let endless = format!("x-endless: {}\r\n", "a".repeat(512 << 10));
    let reply = call(&gateway, format!("{HEAD}{endless}")).await;
    assert_eq!(reply.status(), 431);
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.flood(format!("HTTP/1.1 200 OK\r\n{endless}").as_bytes()).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"));
    idle(&gateway).await;
}

#[tokio::test]
async fn models_and_accounts_that_callers_invent_make_no_series_of_their_own() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    let mut peer: Option<Peer> = None;
    for number in 0..200 {
        let call = CHAT.replace("gpt-4o", &format!("invented-{}", number / 2));
        client.post("/v1/chat/completions", &format!("openai-organization: org-{}\r\n", number % 2), &call).await;
        let peer = match &mut peer {
            Some(peer) => {
                peer.message(false).await;
                peer
            }
            none => none.insert(upstream.request().await.0),
        };
        let told = "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 499\r\n";
        peer.reply("404 Not Found", told, "{\"error\":{\"code\":\"model_not_found\"}}").await;
        assert_eq!(client.message(false).await.status(), 404);
    }
    let metrics = metrics(&gateway).await;
    for (family, most) in [("tidegate_breaker_state{", 65 * 5), ("tidegate_learned_limit{", 65)] {
        let lines = metrics.lines().filter(|line| line.starts_with(family));
        let mut series: Vec<&str> = lines.map(|line| line.rsplit_once(' ').unwrap().0).collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert!(all == series.len() && all <= most && all > most / 2, "{all} of {family}");
    }
    assert!(metrics.contains("tidegate_breaker_state{breaker=\"openai/other\",state=\"closed\"} 1"), "{metrics}");
    assert!(!metrics.contains("invented-64"));
    idle(&gateway).await;
}

/// A piece of a stream that says nothing, as one chunk of so many bytes.
fn comment(bytes: usize) -> Vec<u8> {
    format!("{:x}\r\n: {}\n\n\r\n", bytes + 4, "-".repeat(bytes)).into_bytes()
}
