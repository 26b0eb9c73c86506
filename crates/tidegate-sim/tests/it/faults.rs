use serde_json::{Value, json};

use crate::client::*;

async fn struck(fault: &str, fields: Value) -> Result<Reply, String> {
    let simulator = simulator_of(&format!("[[fault]]\n{fault}")).await;
    try_post(&simulator, "/v1/chat/completions", &chat_with(fields)).await
}

#[tokio::test]
async fn each_error_has_its_status_type_and_code() {
    for (kind, status, error, code) in [
        ("rate_limit", 429, "tokens", json!("rate_limit_exceeded")),
        ("slow_down", 429, "rate_limit_error", json!("slow_down")),
        ("insufficient_quota", 429, "insufficient_quota", json!("insufficient_quota")),
        ("error_500", 500, "server_error", Value::Null),
        ("overloaded", 503, "service_unavailable_error", json!("server_is_overloaded")),
        ("request_timeout", 408, "server_error", Value::Null),
        ("conflict", 409, "conflict_error", Value::Null),
        ("unauthorized", 401, "invalid_request_error", json!("invalid_api_key")),
        ("context_length", 400, "invalid_request_error", json!("context_length_exceeded")),
    ] {
        let reply = struck(&format!("kind = \"{kind}\""), json!({})).await.expect("a reply");
        let body = reply.json();
        assert_eq!((reply.status, body["error"]["type"].as_str()), (status, Some(error)), "{kind}");
        assert_eq!(body["error"]["code"], code, "{kind}");
    }
}

#[tokio::test]
async fn proxies_answer_without_openai_s_envelope() {
    for (kind, status, content) in
        [("bad_gateway", 502, "text/html"), ("gateway_timeout", 504, "text/html"), ("outage", 503, "text/plain")]
    {
        let reply = struck(&format!("kind = \"{kind}\""), json!({})).await.expect("a reply");
        assert_eq!((reply.status, reply.header("content-type")), (status, Some(content)));
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), None);
    }
}

#[tokio::test]
async fn quota_has_the_code_that_the_scenario_or_the_fault_names() {
    for (toml, code) in [
        (
            "quota_code = \"credit_balance_exhausted\"\n[[fault]]\nkind = \"insufficient_quota\"",
            "credit_balance_exhausted",
        ),
        (
            "[[fault]]\nkind = \"insufficient_quota\"\ncode = \"project_spend_limit_exceeded\"",
            "project_spend_limit_exceeded",
        ),
    ] {
        let simulator = simulator_of(toml).await;
        assert_eq!(chat(&simulator, json!({})).await.json()["error"]["code"], code);
    }
}

#[tokio::test]
async fn waits_may_be_absurd_or_in_the_past() {
    let absurd = struck("kind = \"retry_after_absurd\"", json!({})).await.expect("a reply");
    assert_eq!(absurd.header("retry-after"), Some("411480"));
    assert!(absurd.text().contains("Please try again in 114h18m0s."), "{}", absurd.text());
    let past = "kind = \"rate_limit\"\nretry_after = \"Wed, 21 Oct 2015 07:28:00 GMT\"";
    let past = struck(past, json!({})).await.expect("a reply");
    assert_eq!(past.header("retry-after"), Some("Wed, 21 Oct 2015 07:28:00 GMT"));
    assert_eq!(past.header("retry-after-ms"), None);
}

#[tokio::test]
async fn a_reset_and_a_closed_outage_give_no_reply() {
    assert!(struck("kind = \"reset\"", json!({})).await.is_err());
    assert!(struck("kind = \"outage\"\nclosed = true", json!({})).await.is_err());
}

#[tokio::test]
async fn a_reset_reaches_the_client_as_a_reset() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let simulator = simulator_of("[[fault]]\nkind = \"reset\"").await;
    let mut stream = tokio::net::TcpStream::connect(simulator.addr()).await.expect("connected");
    let body = chat_with(json!({})).to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    let error = stream.read(&mut [0; 64]).await.expect_err("no reply");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_may_break_in_each_way() {
    let stream = || json!({"stream": true});
    let reset = struck("kind = \"reset\"\nafter = 3", stream()).await.expect("a reply");
    assert_eq!((reset.events().len(), reset.whole), (3, false));
    let truncated = struck("kind = \"truncated\"\nafter = 4", stream()).await.expect("a reply");
    assert_eq!((truncated.events().len(), truncated.whole), (4, true));
    assert!(!truncated.text().contains("[DONE]"));
    let closed = struck("kind = \"truncated\"\nclosed = true", stream()).await.expect("a reply");
    assert_eq!((closed.events().len(), closed.whole), (5, false));
    let error = struck("kind = \"mid_stream_error\"\nafter = 2", stream()).await.expect("a reply");
    assert_eq!((error.status, error.events().len()), (200, 3));
    assert_eq!(error.events()[2]["error"]["type"], "server_error");
    let in_band = struck("kind = \"in_band\"", stream()).await.expect("a reply");
    assert_eq!((in_band.status, in_band.events().len()), (200, 1));
    assert_eq!(in_band.events()[0]["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn a_plain_reply_may_be_cut_or_carry_an_error_in_band() {
    let cut = struck("kind = \"truncated\"", json!({})).await.expect("a reply");
    let announced: usize = cut.header("content-length").expect("sent").parse().expect("a number");
    assert_eq!((cut.body.len(), cut.whole), (announced / 2, false));
    let in_band = struck("kind = \"in_band\"", json!({})).await.expect("a reply");
    assert_eq!((in_band.status, &in_band.json()["error"]["code"]), (200, &json!("rate_limit_exceeded")));
    assert_eq!(struck("kind = \"mid_stream_error\"", json!({})).await.expect("a reply").status, 500);
}

#[tokio::test]
async fn responses_fail_in_band_after_they_were_created() {
    let simulator = simulator_of("[[fault]]\nkind = \"in_band\"\nfirst = 1").await;
    let body = json!({"model": "gpt-4o", "input": "x", "stream": true});
    let events = post(&simulator, "/v1/responses", &body).await.events();
    let kinds: Vec<_> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(kinds, ["response.created", "response.in_progress", "response.failed"]);
    assert_eq!(events[2]["response"]["error"]["code"], "rate_limit_exceeded");
    let again = post(&simulator, "/v1/responses", &body).await.events();
    assert_eq!(again.last().expect("events")["type"], "response.completed", "only the first call was struck");
}

#[tokio::test]
async fn a_responses_stream_breaks_with_a_named_and_numbered_error() {
    let simulator = simulator_of("[[fault]]\nkind = \"mid_stream_error\"\nafter = 6\ncode = \"server_error\"").await;
    let reply = post(&simulator, "/v1/responses", &json!({"model": "gpt-4o", "input": "x", "stream": true})).await;
    let error = reply.events().pop().expect("events");
    assert_eq!(
        (&error["type"], &error["code"], &error["sequence_number"]),
        (&json!("error"), &json!("server_error"), &json!(6))
    );
    assert!(reply.text().contains("\n\nevent: error\ndata: {"));
}

#[tokio::test]
async fn faults_strike_where_no_model_is_named_too() {
    let simulator = simulator_of("[[fault]]\nkind = \"overloaded\"\npath = \"/v1/files\"").await;
    let reply = get(&simulator, "/v1/files").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("server_is_overloaded")));
    assert_eq!(get(&simulator, "/v1/models").await.status, 200);
    let simulator = simulator_of("[[fault]]\nkind = \"outage\"").await;
    let url = format!("ws://{}/v1/realtime", simulator.addr());
    assert!(tokio_tungstenite::connect_async(url).await.is_err());
}

#[tokio::test]
async fn a_charged_fault_costs_and_one_before_the_limiter_does_not() {
    for (fault, left) in [
        ("kind = \"error_500\"", "499"),
        ("kind = \"overloaded\"", "500"),
        ("kind = \"overloaded\"\ncharged = true", "499"),
    ] {
        let reply = struck(fault, json!({})).await.expect("a reply");
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left), "{fault}");
    }
}

#[tokio::test]
async fn headers_may_be_missing_or_make_no_sense() {
    let missing = struck("kind = \"missing_headers\"", json!({})).await.expect("a reply");
    assert_eq!(missing.status, 200);
    assert!(!missing.headers.keys().any(|k| k.as_str().starts_with("x-")), "{:?}", missing.headers);
    let garbage = struck("kind = \"garbage_headers\"", json!({})).await.expect("a reply");
    assert_eq!((garbage.status, garbage.header("x-ratelimit-limit-requests")), (200, Some("-1")));
    assert_eq!(garbage.headers.get_all("x-ratelimit-limit-tokens").iter().count(), 2);
}

#[tokio::test]
async fn a_split_stream_loses_nothing() {
    let whole = struck("kind = \"split\"\nprobability = 0.0", json!({"stream": true})).await.expect("a reply");
    let split = struck("kind = \"split\"\nbytes = 5", json!({"stream": true})).await.expect("a reply");
    let texts = |reply: &Reply| reply.events().iter().map(|e| e["choices"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&whole), texts(&split));
    let plain = struck("kind = \"split\"\nbytes = 5", json!({})).await.expect("a reply");
    assert_eq!(plain.json()["object"], "chat.completion");
}

#[tokio::test]
async fn the_same_calls_are_struck_under_the_same_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let simulator = simulator_of("[[fault]]\nkind = \"error_500\"\nprobability = 0.5").await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(chat(&simulator, json!({})).await.status);
        }
        let struck = statuses.iter().filter(|s| **s == 500).count() as u64;
        assert_eq!(simulator.stats().faults.values().sum::<u64>(), struck);
        assert!(struck > 0 && struck < 20);
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn a_stall_holds_up_what_comes_after_it() {
    let simulator = simulator_of("[[fault]]\nkind = \"stall\"\nafter = 2").await;
    let body = chat_with(json!({"stream": true})).to_string();
    let response = open(simulator.addr(), request("POST", "/v1/chat/completions", "application/json", body)).await;
    let mut body = response.expect("headers come").into_body();
    let frame = http_body_util::BodyExt::frame(&mut body).await.expect("a frame").expect("no error");
    let text = String::from_utf8(frame.into_data().expect("data").to_vec()).expect("UTF-8");
    assert_eq!(text.matches("data: ").count(), 2);
    assert_eq!(simulator.stats().streams_open, 1);
}
