//! What replies teach, by way of the wire.

use tidegate_core::limit::Scope;

use crate::support::*;

const SHARED: &str = r#"{"error":{"message":"Rate limit reached for gpt-4.1-mini (for limit gpt-4.1) in organization org-1 on tokens per min (TPM): Limit 30000, Used 29999, Requested 9. Please try again in 16ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;

fn chat(model: &str) -> String {
    CHAT.replace("gpt-4o", model)
}

#[tokio::test]
async fn models_that_a_refusal_says_share_a_limit_have_one_level_from_then_on() {
    let (gateway, upstream) = scripted().await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", &chat("gpt-4.1-mini")).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("429 Too Many Requests", "", &SHARED.replace("limit gpt-4.1)", "limit gpt-4.1-2025-04-14)")).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(client.message(false).await.status(), 200);
    let told = |left: u64| format!("x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: {left}\r\n");
    for (model, left) in [("gpt-4.1-mini", 499), ("gpt-4.1", 498), ("gpt-4.1-mini-2025-04-14", 497)] {
        client.post("/v1/chat/completions", "", &chat(model)).await;
        let request = peer.message(false).await;
        assert!(request.text().contains(&format!("\"{model}\"")), "each goes by its own name: {}", request.text());
        peer.reply("200 OK", &told(left), "{}").await;
        assert_eq!(client.message(false).await.status(), 200);
    }
    let learned = gateway.driver().with(|gate, now| gate.status(now)).learned;
    let of_requests: Vec<_> = learned
        .iter()
        .flat_map(|target| target.limits.iter().map(|limit| (target.name.as_str(), limit)))
        .filter(|(_, limit)| limit.dimension == "requests_per_minute")
        .map(|(name, limit)| (name, limit.limit, limit.remaining))
        .collect();
    assert_eq!(of_requests, [("openai/gpt-4.1", 500, 497)]);
    idle(&gateway).await;
}

#[tokio::test]
async fn which_models_share_a_limit_and_how_estimates_are_off_survive_a_restart_and_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    let gateway = start_in(dir.path(), config.clone()).await;
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "", &chat("gpt-4.1-mini")).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("429 Too Many Requests", "", SHARED).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(caller.message(false).await.status(), 200);
    within(gateway.drain()).await;

    let gateway = start_in(dir.path(), config.clone()).await;
    // An upstream that is configured anew is another one, whose models are the same.
    config.upstreams[0].weight = 3;
    gateway.reload(config.clone()).unwrap();
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "", &chat("gpt-4.1-mini-2025-04-14")).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("200 OK", "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 499\r\n", "{}").await;
    assert_eq!(caller.message(false).await.status(), 200);
    let learned = gateway.driver().with(|gate, now| gate.status(now)).learned;
    let told = learned.iter().filter(|target| target.limits.iter().any(|limit| limit.limit == 500));
    assert_eq!(told.map(|target| target.name.as_str()).collect::<Vec<_>>(), ["openai/gpt-4.1"]);

    // Limits by model make it the operator's to say which models share one.
    let mut by_model = team_limit(1000);
    by_model.per = vec![Scope::Model];
    let mut limited = config;
    limited.policy.limits.push(by_model);
    gateway.reload(limited).unwrap();
    caller.post("/v1/chat/completions", "", &chat("gpt-4.1-mini")).await;
    peer.message(false).await;
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(caller.message(false).await.status(), 200);
    let names = gateway.driver().with(|gate, now| gate.status(now)).learned;
    assert!(names.iter().any(|target| target.name == "openai/gpt-4.1-mini"), "{names:?}");
    within(gateway.drain()).await;
}

#[tokio::test]
async fn an_upstream_that_is_somewhere_else_has_other_models_under_the_same_name() {
    for restarts in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (upstream, elsewhere) = (Script::listen().await, Script::listen().await);
        let mut gateway = start_in(dir.path(), config(upstream.addr)).await;
        let mut caller = client(&gateway).await;
        caller.post("/v1/chat/completions", "", &chat("gpt-4.1-mini")).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("429 Too Many Requests", "", SHARED).await;
        peer.message(false).await;
        peer.reply("200 OK", "", "{}").await;
        assert_eq!(caller.message(false).await.status(), 200);
        if restarts {
            within(gateway.drain()).await;
            gateway = start_in(dir.path(), config(elsewhere.addr)).await;
        } else {
            gateway.reload(config(elsewhere.addr)).unwrap();
        }
        let mut caller = client(&gateway).await;
        caller.post("/v1/chat/completions", "", &chat("gpt-4.1-mini")).await;
        let (mut peer, _) = elsewhere.request().await;
        peer.reply("200 OK", "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 499\r\n", "{}").await;
        assert_eq!(caller.message(false).await.status(), 200);
        let learned = gateway.driver().with(|gate, now| gate.status(now)).learned;
        let told = learned.iter().filter(|target| target.limits.iter().any(|limit| limit.limit == 500));
        let told: Vec<&str> = told.map(|target| target.name.as_str()).collect();
        assert_eq!(told, ["openai/gpt-4.1-mini"], "restarts: {restarts}");
    }
}
