use serde_json::json;
use tidegate_sim::Scenario;

use crate::client::*;

const SMALL: &str = "[model.gpt-4o-mini]\nrpm = 3\ntpm = 10000\n";

#[tokio::test]
async fn what_is_over_the_limit_gets_openai_s_429() {
    let simulator = simulator_of(SMALL).await;
    for _ in 0..3 {
        assert_eq!(chat(&simulator, json!({})).await.status, 200);
    }
    let reply = chat(&simulator, json!({})).await;
    let error = &reply.json()["error"];
    assert_eq!(reply.status, 429);
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    let message = error["message"].as_str().expect("text");
    let begins = "Rate limit reached for gpt-4o-mini in organization org-simulated on requests per min (RPM): Limit 3, \
                  Used 3, Requested 1. Please try again in 20s.";
    assert!(message.starts_with(begins), "{message}");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(reply.header("retry-after"), Some("20"));
    assert!(reply.header("retry-after-ms").is_some());
    let stats = simulator.stats();
    assert_eq!((stats.admitted, stats.refused, stats.refused_by["requests"]), (3, 1, 1));
}

#[tokio::test]
async fn what_can_never_fit_is_told_so_without_a_wait() {
    let simulator = simulator_of(SMALL).await;
    let messages = json!([{"role": "user", "content": "x".repeat(50_000)}]);
    let reply = chat(&simulator, json!({"messages": messages})).await;
    let body = reply.json();
    let message = body["error"]["message"].as_str().expect("text");
    assert!(message.contains("(TPM): Limit 10000, Requested 12502. The input or output tokens must be"), "{message}");
    assert_eq!((reply.status, &body["error"]["type"]), (429, &json!("tokens")));
    assert_eq!(reply.header("retry-after"), None);
}

#[tokio::test]
async fn the_waits_are_told_as_the_scenario_wants() {
    for (form, seconds, millis) in [("seconds", true, false), ("ms", false, true), ("none", false, false)] {
        let simulator = simulator_of(&format!("retry_after = \"{form}\"\n[model.gpt-4o-mini]\nrpm = 1")).await;
        chat(&simulator, json!({})).await;
        let refused = chat(&simulator, json!({})).await;
        assert_eq!(refused.status, 429);
        assert_eq!(
            (refused.header("retry-after").is_some(), refused.header("retry-after-ms").is_some()),
            (seconds, millis)
        );
    }
}

#[tokio::test]
async fn waits_are_told_now_so_now_so_or_by_nothing_at_all() {
    let toml = "retry_after = \"mixed\"\nrefusal_message = \"nothing\"\n[model.gpt-4o-mini]\nrpm = 1";
    let simulator = simulator_of(toml).await;
    chat(&simulator, json!({})).await;
    let mut told = Vec::new();
    for _ in 0..4 {
        let refused = chat(&simulator, json!({})).await;
        let body = refused.json();
        assert_eq!((refused.status, &body["error"]["type"]), (429, &json!("rate_limit_error")));
        let message = body["error"]["message"].as_str().expect("text");
        assert!(!message.contains("per min") && !message.contains("try again"), "{message}");
        told.push((refused.header("retry-after").is_some(), refused.header("retry-after-ms").is_some()));
    }
    assert_eq!(told, [(false, true), (false, false), (true, false), (false, true)]);
}

#[tokio::test]
async fn snapshots_share_the_limit_of_their_family() {
    let simulator = simulator_of("[model.gpt-4o]\nrpm = 1").await;
    assert_eq!(chat(&simulator, json!({"model": "gpt-4o"})).await.status, 200);
    let refused = chat(&simulator, json!({"model": "gpt-4o-2024-08-06"})).await;
    let body = refused.json();
    let message = body["error"]["message"].as_str().expect("text");
    assert!(message.contains("for gpt-4o-2024-08-06 (for limit gpt-4o) in"), "{message}");
}

#[tokio::test]
async fn keys_have_limits_of_their_own_only_where_the_scenario_says_so() {
    for (own, second) in [(true, 200), (false, 429)] {
        let simulator = simulator_of(&format!("per_key_limits = {own}\n[model.gpt-4o-mini]\nrpm = 1")).await;
        let mut statuses = Vec::new();
        for key in ["Bearer a", "Bearer b"] {
            let body = chat_with(json!({})).to_string();
            let mut request = request("POST", "/v1/chat/completions", "application/json", body);
            request.headers_mut().insert("authorization", key.parse().expect("a value"));
            statuses.push(send(simulator.addr(), request).await.expect("a reply").status);
        }
        assert_eq!(statuses, [200, second]);
    }
}

#[tokio::test]
async fn a_new_scenario_keeps_levels_and_cuts_them() {
    let simulator = simulator_of("[model.gpt-4o-mini]\nrpd = 100").await;
    chat(&simulator, json!({})).await;
    simulator.set_scenario(Scenario::from_toml("[model.gpt-4o-mini]\nrpd = 2\nrpd_in_headers = true").expect("valid"));
    let reply = chat(&simulator, json!({})).await;
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("1"));
    assert_eq!(reply.header("x-ratelimit-reset-requests"), Some("12h0m0s"));
    let toml = request("POST", "/sim/scenario", "text/plain", "[model.gpt-4o-mini]\nrpd = 1\nrdp = 2");
    let wrong = send(simulator.addr(), toml).await.expect("a reply");
    assert!(wrong.json()["error"].as_str().expect("text").starts_with("3:1: "), "{:?}", wrong.body);
}

#[tokio::test]
async fn output_is_debited_afterwards_where_use_is_charged() {
    let toml = "[model.gpt-4o-mini]\ntpd = 1000\ncharge = \"usage\"\noutput = { median = 400, sigma = 0.0 }";
    let simulator = simulator_of(toml).await;
    let used = chat(&simulator, json!({})).await.json()["usage"]["completion_tokens"].as_u64().expect("a number");
    assert_eq!(used, 400);
    let level = simulator.stats().groups["gpt-4o-mini"].levels["tokens_day"];
    assert_eq!(level.charged, 404, "4 for the input, 400 for the answer");
}

#[tokio::test]
async fn an_unknown_model_is_served_only_if_there_is_a_default_one() {
    let simulator = simulator_of("[model.default]\nrpm = 1").await;
    assert_eq!(chat(&simulator, json!({"model": "a"})).await.status, 200);
    assert_eq!(chat(&simulator, json!({"model": "b"})).await.status, 200, "each has a limit of its own");
    assert_eq!(chat(&simulator, json!({"model": "a"})).await.status, 429);
}

#[tokio::test]
async fn limits_can_be_told_wrongly_and_are_enforced_rightly() {
    let simulator = simulator_of("told_factor = 2.0\n[model.gpt-4o-mini]\nrpm = 3").await;
    let reply = chat(&simulator, json!({})).await;
    assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("6"));
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("4"));
    for _ in 0..2 {
        assert_eq!(chat(&simulator, json!({})).await.status, 200);
    }
    let refused = chat(&simulator, json!({})).await;
    let message = refused.json()["error"]["message"].as_str().expect("text").to_owned();
    assert!(refused.status == 429 && message.contains("Limit 6, Used 6, Requested 1"), "{message}");
}

#[tokio::test]
async fn random_headers_are_readable_and_others_with_every_reply() {
    let simulator = simulator_of("[[fault]]\nkind = \"random_headers\"").await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let reply = chat(&simulator, json!({})).await;
        let limit: u64 = reply.header("x-ratelimit-limit-tokens").and_then(|text| text.parse().ok()).expect("a number");
        seen.insert(limit);
    }
    assert_eq!(seen.len(), 4);
}
