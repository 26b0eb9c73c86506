//! What does not go through, and what is said of it.

use std::time::Duration;

use tidegate_core::config::KeyConfig;
use tidegate_core::limit::{Dimension, Limit, Rates};

use crate::support::*;

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

#[tokio::test]
async fn an_unknown_path_is_told_the_right_base_url() {
    let (gateway, _upstream) = scripted().await;
    for path in ["/", "/v1/v1/chat/completions", "/v2/chat/completions", "/api/generate"] {
        let reply = call(&gateway, get(path, "")).await;
        assert_eq!((reply.status(), reply.header("x-should-retry")), (404, Some("false")), "{path}");
        assert!(reply.error("message").contains("base_url to http://localhost/v1"), "{}", reply.text());
        assert_eq!(reply.header("x-request-id"), reply.header("x-tidegate-id"));
    }
    idle(&gateway).await;
}

#[tokio::test]
async fn a_bad_body_is_refused_with_what_is_wrong_and_where() {
    let (gateway, _upstream) = scripted().await;
    for (body, says) in [
        ("{\"model\":\"gpt-4o\",", "byte"),
        ("", "JSON"),
        ("[1]", "JSON object"),
        ("{\"model\":1,\"messages\":[]}", "model must be a string"),
        ("{\"model\":\"a\",\"model\":\"b\"}", "model is given twice"),
        ("{\"model\":\"a\",\"max_tokens\":\"many\"}", "max_tokens must be a whole number"),
        ("{\"model\":\"a\",\"messages\":\"hi\"}", "messages must be"),
    ] {
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "", body).await;
        let reply = client.message(false).await;
        assert_eq!((reply.status(), reply.error("code").as_str()), (400, "invalid_body"), "{body}");
        assert!(reply.error("message").contains(says), "{body}: {}", reply.text());
        assert_eq!(reply.header("x-tidegate-reason"), Some("bad_request"));
    }
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "content-encoding: br\r\n", CHAT).await;
    assert_eq!(client.message(false).await.status(), 400);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_or_without_a_length() {
    let (gateway, _upstream) = scripted_with(|config| config.server.max_body = 64).await;
    let mut with_length = client(&gateway).await;
    with_length.post("/v1/chat/completions", "", CHAT).await;
    let reply = with_length.message(true).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (413, "request_too_large"));
    let mut without = client(&gateway).await;
    without.write("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").await;
    without.chunk(CHAT).await;
    without.end_stream().await;
    assert_eq!(without.message(true).await.status(), 413);
    idle(&gateway).await;
}

#[tokio::test]
async fn half_a_body_reaches_nobody_and_leaves_nothing_behind() {
    let (gateway, upstream) = scripted().await;
    let mut half = client(&gateway).await;
    half.write("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"model\":").await;
    drop(half);
    let mut whole = client(&gateway).await;
    whole.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.text(), CHAT);
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(whole.message(false).await.status(), 200);
    idle(&gateway).await;
}

#[tokio::test]
async fn web_pages_and_foreign_names_do_not_get_in() {
    let (gateway, _upstream) = scripted().await;
    for headers in ["origin: https://evil.example\r\n", "sec-fetch-site: cross-site\r\n", "origin: null\r\n"] {
        let reply = call(&gateway, get("/v1/models", headers)).await;
        assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (403, Some("auth")), "{headers}");
    }
    let rebound = "GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(call(&gateway, rebound).await.status(), 403);
    let health = "GET /readyz HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(call(&gateway, health).await.status(), 200);
    let status = "GET /admin/v1/status HTTP/1.1\r\nhost: evil.example\r\nauthorization: Bearer operator\r\nconnection: close\r\n\r\n";
    assert_eq!(call_admin(&gateway, status).await.status(), 403);
    idle(&gateway).await;
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_read_and_no_others() {
    let (gateway, upstream) = scripted_with(|config| {
        config.server.allowed_origins = vec!["https://app.example".into()];
        config.policy.limits.push(team_limit(100));
    })
    .await;
    let origin = "origin: https://app.example\r\nsec-fetch-site: cross-site\r\n";
    let preflight = |host: &str, origin: &str| {
        format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{origin}connection: close\r\n\
             access-control-request-method: POST\r\n\
             access-control-request-headers: authorization,content-type,x-tidegate-priority\r\n\r\n"
        )
    };
    let reply = call(&gateway, preflight("localhost", origin)).await;
    assert_eq!(reply.status(), 204);
    assert!(reply.header("access-control-allow-methods").unwrap().contains("POST"));
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-headers", "authorization,content-type,x-tidegate-priority"),
        ("vary", "origin"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    for (host, origin) in [("localhost", "origin: https://evil.example\r\n"), ("evil.example", origin)] {
        assert_eq!(call(&gateway, preflight(host, origin)).await.status(), 403);
    }

    let too_large = CHAT.replace("hello", &"a".repeat(2000));
    let mut page = client(&gateway).await;
    page.post("/v1/chat/completions", origin, &too_large).await;
    let refused = page.message(false).await;
    page.post("/v1/chat/completions", origin, CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "access-control-allow-origin: *\r\n", "{}").await;
    let passed = page.message(false).await;
    for (reply, status) in [(refused, 429), (passed, 200)] {
        assert_eq!(reply.status(), status);
        assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
        let exposed = reply.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("x-tidegate-reason") && exposed.contains("retry-after"), "{exposed}");
    }
    let foreign = call(&gateway, get("/v1/models", "origin: https://evil.example\r\n")).await;
    assert_eq!((foreign.status(), foreign.header("access-control-allow-origin")), (403, None));
    page.post("/v1/chat/completions", "", &too_large).await;
    assert_eq!(page.message(false).await.header("access-control-allow-origin"), None);
    idle(&gateway).await;
}

#[tokio::test]
async fn only_known_keys_pass_and_only_where_they_may() {
    use sha2::{Digest, Sha256};
    let (gateway, upstream) = scripted_with(|config| {
        config.keys = vec![KeyConfig {
            name: "billing".into(),
            sha256: Sha256::digest(b"tg-secret").into(),
            ..KeyConfig::default()
        }];
    })
    .await;
    assert_eq!(gateway.auth(), "keys");
    for headers in ["", "authorization: Bearer sk-openai\r\n", "authorization: Bearer tidegate\r\n"] {
        let reply = call(&gateway, get("/v1/models", headers)).await;
        assert_eq!((reply.status(), reply.error("code").as_str()), (401, "invalid_api_key"), "{headers}");
    }
    let key = "authorization: Bearer tg-secret\r\nopenai-organization: org-other\r\n";
    let reply = call(&gateway, get("/v1/files", key)).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (403, "forbidden"));
    let says = "tidegate: key \"billing\" may not use /v1/files; an operator can allow it with paths.";
    assert_eq!(reply.error("message"), says);
    let mut client = client(&gateway).await;
    client.write(get("/v1/models", key)).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.header("authorization"), Some("Bearer sk-tidegate-sim"));
    assert_eq!(request.header("openai-organization"), None);
    assert!(!format!("{request:?}").contains("tg-secret"));
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(true).await.status(), 200);
}

#[tokio::test]
async fn a_caller_that_is_turned_away_while_it_still_sends_sees_why() {
    let (gateway, _upstream) = scripted_with(|config| config.keys = vec![KeyConfig::default()]).await;
    let mut client = client(&gateway).await;
    let large = CHAT.replace("hello", &"a".repeat(4 << 20));
    client.post("/v1/chat/completions", "authorization: Bearer tg-wrong\r\n", &large).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (401, "invalid_api_key"));
    idle(&gateway).await;
}

#[tokio::test]
async fn a_wish_is_heeded_or_refused_by_name() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "x-tidegate-priority: urgent\r\n", CHAT).await;
    let reply = client.message(false).await;
    assert_eq!(reply.status(), 400);
    assert!(reply.error("message").contains("x-tidegate-priority must be low, normal or high"), "{}", reply.text());
    client.post("/v1/chat/completions", "x-tidegate-timeout: 300ms\r\n", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (504, "upstream_timeout"));
    assert!(peer.closed().await);
    idle(&gateway).await;
}

#[tokio::test]
async fn a_call_above_a_limit_is_refused_with_the_numbers() {
    let (gateway, _upstream) = scripted_with(|config| config.policy.limits.push(team_limit(100))).await;
    let mut client = client(&gateway).await;
    let large = CHAT.replace("hello", &"a".repeat(2000));
    client.post("/v1/chat/completions", "", &large).await;
    let reply = client.message(false).await;
    assert_eq!((reply.status(), reply.error("type").as_str()), (429, "tokens"));
    assert_eq!(reply.header("x-tidegate-reason"), Some("too_large"));
    assert_eq!(reply.header("x-tidegate-limit"), Some("team/tokens_per_minute"));
    assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (None, Some("false")));
    assert!(reply.error("message").starts_with("tidegate: request too large for limit \"team\" (TPM): Limit 100,"));
}

#[tokio::test]
async fn a_call_that_would_miss_its_deadline_is_told_when_to_come_back() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(team_limit(100))).await;
    let mut first = client(&gateway).await;
    let all = CHAT.replace("}]}", "}],\"max_tokens\":96}");
    first.post("/v1/chat/completions", "", &all).await;
    let (_held, _) = upstream.request().await;
    let mut second = client(&gateway).await;
    second.post("/v1/chat/completions", "x-tidegate-max-wait: 10ms\r\n", &all).await;
    let reply = second.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("limit")));
    let wait = reply.header("retry-after").unwrap().parse::<u64>().unwrap();
    let millis = reply.header("retry-after-ms").unwrap().parse::<u64>().unwrap();
    assert!(wait >= 1 && Duration::from_secs(wait) >= Duration::from_millis(millis), "{wait} {millis}");
    assert!(reply.error("message").contains("Limit 100, Used "), "{}", reply.text());
}

#[tokio::test]
async fn a_call_whose_time_is_up_before_it_can_be_sent_is_not_sent() {
    let in_flight = |calls| Limit { base: Rates::default().with(Dimension::MaxInFlight, calls), ..team_limit(1) };
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(in_flight(1))).await;
    let mut first = client(&gateway).await;
    first.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    let mut second = client(&gateway).await;
    second.post("/v1/chat/completions", "x-tidegate-timeout: 60s\r\n", CHAT).await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    // Lets it go, but before it can look a minute has passed.
    let mut wider = config(upstream.addr);
    wider.policy.limits.push(in_flight(2));
    gateway.reload(wider).unwrap();
    assert_eq!(gateway.driver().with(|gate, _| (gate.waiting(), gate.in_flight())), (0, 2));
    let_pass(Duration::from_secs(61)).await;
    let reply = second.message(false).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("limit")));
    assert_eq!((reply.header("x-tidegate-attempts"), reply.header("x-should-retry")), (Some("0"), Some("false")));
    assert!(reply.error("message").contains("time was up before it could be sent, after 1m"), "{}", reply.text());
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(first.message(false).await.status(), 200);
    idle(&gateway).await;
}

#[tokio::test]
async fn the_status_is_for_those_with_the_token() {
    let (gateway, _upstream) = scripted().await;
    let ask = |headers: &str| get("/admin/v1/status", headers);
    for headers in ["", "authorization: Bearer wrong\r\n", "authorization: operator\r\n"] {
        assert_eq!(call_admin(&gateway, &ask(headers)).await.status(), 401, "{headers}");
    }
    let reply = call_admin(&gateway, &ask("authorization: Bearer operator\r\n")).await;
    let status: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    for part in ["limits", "queue", "breakers", "upstreams", "learned"] {
        assert!(!status[part].is_null(), "{part} is missing from {status}");
    }
    assert_eq!(call_admin(&gateway, &get("/healthz", "")).await.status(), 200);
}

#[tokio::test]
async fn a_refusal_is_explained_by_the_id_that_the_caller_was_told() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(team_limit(100))).await;
    let mut first = client(&gateway).await;
    let all = CHAT.replace("}]}", "}],\"max_tokens\":96}");
    first.post("/v1/chat/completions", "", &all).await;
    let (_held, _) = upstream.request().await;
    let mut second = client(&gateway).await;
    second.post("/v1/chat/completions", "x-tidegate-max-wait: 10ms\r\nx-tidegate-id: why-me\r\n", &all).await;
    assert_eq!(second.message(false).await.status(), 429);
    let ask = |path: &str| get(path, "authorization: Bearer operator\r\n");
    let reply = call_admin(&gateway, &ask("/admin/v1/explain/why-me")).await;
    let told: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status(), &told["outcome"], &told["limits"][0]["limit"]), (200, &"limit".into(), &"team".into()));
    let at = humantime::parse_rfc3339(told["at"].as_str().unwrap()).unwrap();
    assert!(at.elapsed().unwrap() < HANGS_AFTER, "{told}");
    assert!(told["limits"][0]["binds"] == true && told["limits"][0]["allowed"] == 100, "{told}");
    let reply = call_admin(&gateway, &ask("/admin/v1/explain/nobody")).await;
    assert_eq!(reply.status(), 404);
    assert!(reply.error("message").contains("waited for a second or were refused"), "{}", reply.text());
    assert_eq!(call_admin(&gateway, &get("/admin/v1/explain/why-me", "")).await.status(), 401);
}

#[tokio::test]
async fn a_wait_after_a_429_is_explained_while_it_lasts_and_after() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "x-tidegate-id: held\r\n", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("429 Too Many Requests", "retry-after: 30\r\n", "{\"error\":{\"code\":\"rate_limit_exceeded\"}}").await;
    let explained = async || {
        let reply = call_admin(&gateway, &get("/admin/v1/explain/held", "authorization: Bearer operator\r\n")).await;
        let told: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        (told["outcome"].as_str().map(str::to_owned), told["after"].as_str().map(str::to_owned))
    };
    let is = |outcome: &str| (Some(outcome.to_owned()), Some("rate_limit_exceeded".to_owned()));
    within(async { while explained().await != is("waiting") {} }).await;
    let_pass(Duration::from_secs(31)).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    assert_eq!(explained().await, is("granted"));
}

#[tokio::test]
async fn a_gateway_that_would_call_itself_does_not_start() {
    // Its port is known only once it listens: one is found first, and given back.
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let mut looped = config(own);
        looped.server.listen = vec![own.to_string().parse().unwrap()];
        looped.upstreams[0].base_url = format!("http://{host}:{}/v1", own.port());
        let options = tidegate_gateway::GatewayOptions {
            config: looped,
            allow_anonymous: false,
            state_dir: None,
            admin_token: None,
            own_threads: false,
            source: None,
        };
        let error = tidegate_gateway::Gateway::start(options).await.unwrap_err().to_string();
        assert!(error.contains("is this gateway itself: set base_url"), "{error}");
    }
}
