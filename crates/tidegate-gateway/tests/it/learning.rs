//! What replies teach, by way of the wire.

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
    peer.reply("429 Too Many Requests", "", SHARED).await;
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
