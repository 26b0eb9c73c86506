use proptest::prelude::*;

use super::*;
use crate::limit::Dimension;
use FaultKind::{
    Conflict, Invalid, NotFound, Overloaded, QuotaExhausted, RateLimited, RequestTimeout, Server, SlowDown, TooLarge,
    Unauthorized,
};

const NOW: Duration = Duration::from_secs(1_800_000_000);
const NONE: [(&str, &str); 0] = [];

fn of(status: u16, body: &str) -> Fault {
    classify(status, &NONE, body.as_bytes(), NOW).expect("an error status is a fault")
}

fn error(message: &str, kind: &str, code: &str) -> String {
    serde_json::json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string()
}

fn rate_limit(message: &str) -> Fault {
    of(429, &error(message, "tokens", "rate_limit_exceeded"))
}

#[test]
fn a_good_status_is_no_fault() {
    for status in [0, 100, 101, 200, 204, 304, 399] {
        assert_eq!(classify(status, &NONE, b"{\"error\":{}}", NOW), None, "{status}");
    }
}

#[test]
fn a_rate_limit_tells_dimension_numbers_and_exact_wait() {
    use Dimension::{ImagesPerMinute, RequestsPerDay, RequestsPerMinute, TokensPerDay, TokensPerMinute};
    for (message, dimension, limit, used, requested, millis) in [
        (
            "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 29937, \
             Requested 385. Please try again in 644ms. Visit https://platform.openai.com/account/rate-limits to learn more.",
            TokensPerMinute,
            30_000,
            29_937,
            385,
            644,
        ),
        (
            "Rate limit reached for gpt-4 in organization org-x on tokens per min (TPM): Limit 10000, Used 8554, \
             Requested 3082. Please try again in 9.816s. Visit …",
            TokensPerMinute,
            10_000,
            8_554,
            3_082,
            9_816,
        ),
        (
            "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 450000, Used 379102, \
             Requested 89741. Please try again in 2.512s.",
            TokensPerMinute,
            450_000,
            379_102,
            89_741,
            2_512,
        ),
        (
            "Rate limit reached for gpt-4o-mini in organization O on requests per day (RPD): Limit 200, Used 200, \
             Requested 1. Please try again in 7m12s.",
            RequestsPerDay,
            200,
            200,
            1,
            432_000,
        ),
        (
            "Rate limit reached for gpt-3.5-turbo in organization org-x on requests per min (RPM): Limit 3, Used 3, \
             Requested 1. Please try again in 20s.",
            RequestsPerMinute,
            3,
            3,
            1,
            20_000,
        ),
        (
            "Rate limit reached for dall-e-3 in organization org-x on images per min (IPM): Limit 5, Used 5, Requested 1. \
             Please try again in 12s.",
            ImagesPerMinute,
            5,
            5,
            1,
            12_000,
        ),
        (
            "Rate limit reached for llama-3.3-70b in organization `org` on tokens per day (TPD): Limit 100000, Used 99000, \
             Requested 2500. Please try again in 21m36s.",
            TokensPerDay,
            100_000,
            99_000,
            2_500,
            1_296_000,
        ),
        (
            "Rate limit reached for project p organization o on tokens per min (TPM): Limit 25000, Used 23255, Requested \
             5872. Please try again in 9.904s.",
            TokensPerMinute,
            25_000,
            23_255,
            5_872,
            9_904,
        ),
    ] {
        let fault = rate_limit(message);
        assert_eq!(fault.kind, RateLimited, "{message}");
        let expected = LimitNumbers { dimension: Some(dimension), limit, used: Some(used), requested: Some(requested) };
        assert_eq!(fault.numbers, Some(expected), "{message}");
        assert_eq!(fault.wait, Some(Duration::from_millis(millis)), "{message}");
        assert_eq!(fault.code.as_deref(), Some("rate_limit_exceeded"));
    }
}

#[test]
fn the_group_that_shares_the_limit_is_learned_from_the_message() {
    let fault = rate_limit(
        "Rate limit reached for gpt-4.1-2025-04-14 (for limit gpt-4.1) in organization o on tokens per min (TPM): Limit \
         30000, Used 30000, Requested 1. Please try again in 2ms.",
    );
    assert_eq!(fault.limit_group.as_deref(), Some("gpt-4.1"));
    let fault = of(
        429,
        &error(
            "Rate limit reached for gpt-image-2-codex (for limit gpt-image) in organization o on input-images per min: \
             Limit 4000, Used 4000, Requested 31. Please try again in 467ms.",
            "input-images",
            "rate_limit_exceeded",
        ),
    );
    assert_eq!(fault.limit_group.as_deref(), Some("gpt-image"));
    assert_eq!(fault.numbers.and_then(|numbers| numbers.dimension), Some(Dimension::ImagesPerMinute));
    assert_eq!(fault.wait, Some(Duration::from_millis(467)));
    assert_eq!(rate_limit("m (for limit what a prompt might say) in organization o").limit_group, None);
}

#[test]
fn too_large_is_judged_by_the_numbers() {
    let fault = rate_limit(
        "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 31538. The input \
         or output tokens must be reduced in order to run successfully.",
    );
    assert_eq!((fault.kind, fault.wait), (TooLarge, None));
    assert_eq!(fault.numbers.map(|n| (n.limit, n.used, n.requested)), Some((30_000, None, Some(31_538))));
    let momentary = rate_limit(
        "Request too large for gpt-4o in organization o on tokens per min (TPM): Limit 250000, Requested 546.",
    );
    assert_eq!(momentary.kind, RateLimited);
    assert_eq!(rate_limit("Request too large for gpt-4o.").kind, TooLarge);
    let groq = "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 7000";
    assert_eq!(of(413, &error(groq, "tokens", "rate_limit_exceeded")).kind, TooLarge);
}

#[test]
fn no_quota_is_worth_a_retry_whatever_it_is_called() {
    for code in [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
    ] {
        let body = error("You exceeded your current quota, please check your plan.", "insufficient_quota", code);
        assert_eq!(of(429, &body).kind, QuotaExhausted, "{code}");
    }
    let of_2023 = r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":null}}"#;
    assert_eq!(of(429, of_2023).kind, QuotaExhausted);
    assert_eq!(of(429, of_2023).code.as_deref(), Some("insufficient_quota"));
    let hard = error("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached");
    assert_eq!(of(400, &hard).kind, QuotaExhausted);
    assert_eq!(of(402, "").kind, QuotaExhausted);
}

#[test]
fn growing_too_fast_is_told_apart_from_overload() {
    let ramp = error("Your traffic grew too fast", "rate_limit_error", "slow_down");
    assert_eq!(of(429, &ramp).kind, SlowDown);
    assert_eq!(of(503, &ramp).kind, SlowDown);
    assert_eq!(of(503, &error("Slow Down", "", "")).kind, SlowDown);
    assert_eq!(of(503, &error("overloaded", "service_unavailable_error", "server_is_overloaded")).kind, Overloaded);
    let engine = r#"{"error":{"message":"The engine is currently overloaded, please try again later","type":"server_error","param":null,"code":null}}"#;
    assert_eq!((of(503, engine).kind, of(429, engine).kind), (Overloaded, Overloaded));
    assert_eq!(
        of(529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#).kind,
        Overloaded
    );
}

#[test]
fn what_has_no_room_for_now_is_a_rate() {
    let flex = error("Resource unavailable", "resource_unavailable", "resource_unavailable");
    let fault = of(429, &flex);
    assert_eq!((fault.kind, fault.code.as_deref()), (RateLimited, Some("resource_unavailable")));
    assert_eq!(of(498, "").kind, RateLimited);
    // The batch queue's limit is none of tokens per minute.
    let batch = error(
        "Enqueued token limit reached for gpt-4o in organization o. Limit: 900,000 enqueued tokens. Please try again once \
         some in_progress batches have been completed.",
        "invalid_request_error",
        "token_limit_exceeded",
    );
    let fault = of(429, &batch);
    assert_eq!((fault.kind, fault.numbers, fault.wait), (RateLimited, None, None));
    assert_eq!(of(400, &batch).kind, Invalid);
}

#[test]
fn the_other_statuses_mean_what_they_say() {
    for (status, kind) in [
        (400, Invalid),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (408, RequestTimeout),
        (409, Conflict),
        (413, Invalid),
        (422, Invalid),
        (418, Invalid),
        (429, RateLimited),
        (500, Server),
        (501, Server),
        (502, Server),
        (503, Server),
        (529, Overloaded),
        (504, Server),
        (520, Server),
        (529, Overloaded),
        (999, Server),
    ] {
        assert_eq!(of(status, "").kind, kind, "{status}");
        assert_eq!(of(status, "<html><body>nginx</body></html>").kind, kind, "{status}");
        assert_eq!(of(status, "").status, Some(status));
    }
    let not_found = error("The model `gpt-9` does not exist", "invalid_request_error", "model_not_found");
    assert_eq!(of(404, &not_found).code.as_deref(), Some("model_not_found"));
    let long = error("This model's maximum context length is", "invalid_request_error", "context_length_exceeded");
    assert_eq!((of(400, &long).kind, of(400, &long).code.as_deref()), (Invalid, Some("context_length_exceeded")));
    let server = r#"{"error":{"message":"The server had an error processing your request.","type":"server_error","param":null,"code":null}}"#;
    assert_eq!((of(500, server).kind, of(500, server).code.as_deref()), (Server, Some("server_error")));
}

#[test]
fn azures_body_tells_the_wait_and_its_code_is_a_status() {
    let body = r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 26 seconds. Please go here: https://aka.ms/oai/quotaincrease."}}"#;
    let fault = of(429, body);
    assert_eq!((fault.kind, fault.wait), (RateLimited, Some(Duration::from_secs(26))));
    let day = body.replace("26 seconds", "86400 seconds");
    assert_eq!(of(429, &day).wait, Some(Duration::from_secs(86_400)));
    let management = r#"{ "statusCode": 429, "message": "Rate limit is exceeded. Try again in 7 seconds." }"#;
    assert_eq!(of(429, management).wait, Some(Duration::from_secs(7)));
}

#[test]
fn a_rounded_header_gives_way_to_the_messages_exact_wait() {
    let body = error("Please try again in 9.816s.", "tokens", "rate_limit_exceeded");
    let wait = |headers: &[(&str, &str)]| classify(429, headers, body.as_bytes(), NOW).and_then(|fault| fault.wait);
    let exact = Some(Duration::from_millis(9_816));
    assert_eq!(wait(&[("retry-after", "10")]), exact, "rounded up to whole seconds");
    assert_eq!(wait(&[("retry-after", "1")]), exact, "the longer");
    assert_eq!(wait(&[("retry-after", "11")]), Some(Duration::from_secs(11)), "the longer");
    assert_eq!(wait(&[("retry-after-ms", "9900")]), Some(Duration::from_millis(9_900)), "no whole seconds");
    assert_eq!(wait(&[("retry-after", "10"), ("x-should-retry", "false")]), exact);
    let fault = classify(429, &[("x-should-retry", "false")], b"", NOW).expect("a fault");
    assert_eq!((fault.should_retry, fault.wait), (Some(false), None));
}

#[test]
fn the_longest_wait_seen_is_kept() {
    let fault = rate_limit("(TPM): Limit 100000, Used 96749, Requested 19126. Please try again in 114h18m0s.");
    assert_eq!(fault.wait, Some(Duration::from_secs(411_480)));
}

#[test]
fn codes_may_be_null_text_or_number_and_bodies_anything() {
    for body in [
        r#"{"error":{"message":"m","code":null,"type":null}}"#,
        r#"{"error":{"message":"m","code":429}}"#,
        r#"{"error":{"message":{"a":1},"code":[],"type":{}}}"#,
        r#"{"error":"rate limited"}"#,
        r#"[{"error":{"code":429,"message":"Resource exhausted","status":"RESOURCE_EXHAUSTED"}}]"#,
        r#"{"detail":[{"loc":["body"]}]}"#,
        r#"{"error":{"message":"\ud83d"}}"#,
        r#"{"error":{"message":"cut o"#,
        "null",
        "429",
        "",
        "\u{feff}{}",
    ] {
        assert_eq!(of(429, body).kind, RateLimited, "{body}");
    }
    assert_eq!(of(429, r#"{"object":"error","type":"insufficient_quota","message":"m"}"#).kind, QuotaExhausted);
}

#[test]
fn of_a_huge_body_the_beginning_is_enough() {
    let padding = " ".repeat(200_000);
    let body = format!(r#"{{"error":{{"type":"insufficient_quota","code":null,"message":"{padding}"}}}}"#);
    assert_eq!(of(429, &body).kind, QuotaExhausted);
}

#[test]
fn a_summary_never_quotes_the_message() {
    let secret = "the patient's name is";
    let mut faults: Vec<Fault> = [400, 401, 404, 408, 409, 413, 422, 429, 500, 503]
        .into_iter()
        .map(|status| of(status, &error(&format!("{secret} (for limit {secret}): Limit 5, Used 5"), secret, secret)))
        .collect();
    faults.push(of(500, secret));
    faults.extend(classify_in_band(error(secret, secret, secret).as_bytes()));
    for fault in faults {
        assert!(!format!("{fault:?}").contains("patient"), "{fault:?}");
    }
    let fault =
        rate_limit("on tokens per min (TPM): Limit 30000, Used 29937, Requested 385. Please try again in 644ms.");
    assert_eq!(
        &*fault.summary,
        "429 rate_limit_exceeded (tokens): tokens per min (TPM): Limit 30000, Used 29937, Requested 385"
    );
}

#[test]
fn errors_within_a_good_reply_are_found_in_every_form() {
    let in_band = |json: &str| classify_in_band(json.as_bytes()).map(|fault| fault.kind);
    for (json, kind) in [
        (r#"{"error":{"message":"m","type":"server_error","param":null,"code":null}}"#, Server),
        (r#"{"error":{"message":"Rate limit reached","type":"tokens","code":"rate_limit_exceeded"}}"#, RateLimited),
        (r#"{"error":{"code":429,"message":"Provider returned error","metadata":{}},"user_id":"u"}"#, RateLimited),
        (r#"{"id":"gen-1","error":{"code":502,"message":"bad gateway"},"choices":[]}"#, Server),
        (r#"{"error":{"code":402,"message":"Insufficient credits"}}"#, QuotaExhausted),
        (r#"{"error":{"code":"503","message":"x"}}"#, Server),
        (
            r#"{"type":"error","code":"rate_limit_exceeded","message":"m","param":null,"sequence_number":3}"#,
            RateLimited,
        ),
        (
            r#"{"type":"error","sequence_number":1,"error":{"type":"invalid_request_error","code":"context_length_exceeded","message":"m"}}"#,
            Invalid,
        ),
        (r#"{"type":"error","code":null,"message":"m"}"#, Server),
        (
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"m"},"usage":null}}"#,
            Server,
        ),
        (
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"insufficient_quota","message":"m"}}}"#,
            QuotaExhausted,
        ),
        (r#"{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"m"}}}"#, Invalid),
        (r#"{"type":"response.failed","response":{"error":{"code":"vector_store_timeout","message":"m"}}}"#, Server),
        (r#"{"type":"response.failed","response":{"error":null}}"#, Server),
        (
            r#"{"object":"response","status":"failed","error":{"code":"server_is_overloaded","message":"m"}}"#,
            Overloaded,
        ),
        (r#"{"object":"response","error":null,"status":"failed"}"#, Server),
        (r#"{"error":"overloaded or something"}"#, Server),
        (r#"{"error":{"type":"authentication_error","message":"m"}}"#, Unauthorized),
    ] {
        assert_eq!(in_band(json), Some(kind), "{json}");
    }
    let limited = r#"{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached for gpt-4.1 in organization o on tokens per min (TPM): Limit 450000, Used 379102, Requested 89741. Please try again in 2.512s."}}}"#;
    let fault = classify_in_band(limited.as_bytes()).expect("a fault");
    assert_eq!((fault.status, fault.wait), (Some(200), Some(Duration::from_millis(2_512))));
    assert_eq!(fault.numbers.and_then(|numbers| numbers.used), Some(379_102));
}

#[test]
fn good_replies_hold_no_fault() {
    for json in [
        "",
        "[DONE]",
        "{}",
        r#"{"id":"c","choices":[{"delta":{"content":"\"error\": failed"}}]}"#,
        r#"{"id":"c","choices":[],"error":null}"#,
        r#"{"object":"response","status":"completed","error":null}"#,
        r#"{"type":"response.created","response":{"error":null,"status":"in_progress"}}"#,
        r#"{"object":"response","status":"incomplete","error":null,"incomplete_details":{"reason":"max_output_tokens"}}"#,
        r#"{"choices":[{"message":{"tool_calls":[{"error":{"code":"x"}}]}}]}"#,
        r#"{"error":{}}"#,
        r#"{"error":{"code":null,"message":""}}"#,
    ] {
        assert_eq!(classify_in_band(json.as_bytes()), None, "{json}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(status: u16, body in proptest::collection::vec(any::<u8>(), 0..300), after in ".{0,20}") {
        let _ = classify(status, &[("retry-after", after.as_str())], &body, NOW);
        let _ = classify_in_band(&body);
    }

    #[test]
    fn no_json_panics(body in "(\\{|\\}|\\[|\\]|:|,|\"error\"|\"message\"|\"code\"|\"type\"|\"response\"|null|1|\"x\"){0,40}") {
        let _ = classify(429, &NONE, body.as_bytes(), NOW);
        let _ = classify_in_band(body.as_bytes());
    }
}
