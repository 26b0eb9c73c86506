//! What is told of events beside the audit trail.

use std::time::Duration;

use crate::support::*;

#[tokio::test]
async fn a_breaker_that_opens_is_counted_from_what_to_what() {
    let (gateway, upstream) = scripted_with(|config| {
        config.policy.breaker.failure_threshold = 1;
        config.policy.retry.max_attempts = 1;
    })
    .await;
    let mut client = client(&gateway).await;
    client.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, _) = upstream.request().await;
    peer.reply("503 Service Unavailable", "", "{}").await;
    client.message(false).await;
    let series = "tidegate_breaker_transitions_total{breaker=\"openai/gpt-4o\",from=\"closed\",to=\"open\"} 1";
    within(async { while !metrics(&gateway).await.contains(series) {} }).await;
}

#[tokio::test]
async fn tenants_have_series_only_where_that_is_asked_for() {
    for is_asked in [false, true] {
        let (gateway, upstream) = scripted_with(|config| config.telemetry.tenant_metrics = is_asked).await;
        let mut client = client(&gateway).await;
        client.post("/v1/chat/completions", "openai-organization: acme\r\n", CHAT).await;
        let (mut peer, _) = upstream.request().await;
        peer.reply("200 OK", "", "{}").await;
        client.message(false).await;
        idle(&gateway).await;
        let told = metrics(&gateway).await;
        let count =
            told.lines().find(|line| line.starts_with("tidegate_calls_by_tenant_total{") && line.contains("\"ok\""));
        assert_eq!(count.is_some_and(|line| line.ends_with(" 1")), is_asked, "{told}");
    }
}

#[tokio::test]
async fn a_scraper_gets_the_format_that_it_asks_for() {
    let (gateway, _upstream) = scripted().await;
    let ask = |accept: &str| format!("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{accept}\r\n");
    let older = call_admin(&gateway, &ask("")).await;
    assert!(older.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(older.text().contains("# TYPE tidegate_build_info gauge\n") && !older.text().contains("# EOF"));
    let newer = call_admin(&gateway, &ask("accept: application/openmetrics-text; version=1.0.0\r\n")).await;
    assert!(newer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(newer.text().contains("# TYPE tidegate_build info\n") && newer.text().ends_with("# EOF\n"));
}

#[tokio::test]
async fn what_a_limit_held_or_refused_is_counted_by_that_limit() {
    let (gateway, upstream) = scripted_with(|config| config.policy.limits.push(team_limit(60_000))).await;
    // Takes the whole minute's worth.
    let mut first = client(&gateway).await;
    first.post("/v1/chat/completions", "", &CHAT.replace("}]}", "}],\"max_tokens\":59900}")).await;
    let (_held, _) = upstream.request().await;
    let more = CHAT.replace("}]}", "}],\"max_tokens\":1900}");
    let mut hurried = client(&gateway).await;
    hurried.post("/v1/chat/completions", "x-tidegate-max-wait: 1ms\r\n", &more).await;
    assert_eq!(hurried.message(false).await.status(), 429);
    let mut patient = client(&gateway).await;
    patient.post("/v1/chat/completions", "", &more).await;
    until(|| gateway.driver().with(|gate, _| gate.waiting() == 1)).await;
    let_pass(Duration::from_secs(61)).await;
    let (_other, _) = upstream.request().await;
    let labels = "tidegate_rate_limited_total{limit=\"team\",dimension=\"tokens_per_minute\",model=\"gpt-4o\"";
    for action in ["held", "refused"] {
        let series = format!("{labels},action=\"{action}\"}} 1");
        within(async { while !metrics(&gateway).await.contains(&series) {} }).await;
    }
    assert!(metrics(&gateway).await.contains("tidegate_refusals_total{reason=\"limit\"} 1"));
}
