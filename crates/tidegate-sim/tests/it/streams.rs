use serde_json::json;
use tidegate_sim::Scenario;

use crate::client::*;

#[tokio::test]
async fn a_chat_stream_has_role_text_finish_and_done() {
    let simulator = simulator(Scenario::default()).await;
    let reply = chat(&simulator, json!({"stream": true, "max_tokens": 9})).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = reply.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let texts = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(texts.collect::<String>().split(' ').count(), 9);
    let last = events.last().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e.get("usage").is_none()));
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn usage_comes_last_and_only_if_asked_for() {
    let simulator = simulator(Scenario::default()).await;
    let fields = json!({"stream": true, "max_tokens": 4, "stream_options": {"include_usage": true}});
    let events = chat(&simulator, fields).await.events();
    let (last, others) = events.split_last().expect("events");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert!(others.iter().all(|e| e["usage"].is_null() && e.get("usage").is_some()));
}

#[tokio::test]
async fn a_streamed_tool_call_adds_up_to_its_arguments() {
    let simulator = simulator(Scenario::default()).await;
    let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}});
    let tools = json!([{"type": "function", "function": function}]);
    let events = chat(&simulator, json!({"stream": true, "tools": tools, "tool_choice": "required"})).await.events();
    let deltas = events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"]);
    let arguments: String = deltas.filter_map(|a| a.as_str()).collect();
    assert_eq!(arguments, "{\"a\":7}");
    assert_eq!(events.last().expect("events")["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_responses_stream_has_its_events_in_order_and_numbered() {
    let simulator = simulator(Scenario::default()).await;
    let body = json!({"model": "gpt-4o", "input": "x", "stream": true, "max_output_tokens": 2});
    let reply = post(&simulator, "/v1/responses", &body).await;
    let events = reply.events();
    let kinds: Vec<_> = events.iter().map(|e| e["type"].as_str().expect("a type")).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(kinds, expected);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    assert_eq!(events[9]["response"]["usage"]["output_tokens"], 2);
    let named: Vec<_> = reply.text().lines().filter_map(|l| l.strip_prefix("event: ").map(str::to_owned)).collect();
    assert_eq!(named, expected);
}

#[tokio::test]
async fn a_legacy_stream_ends_with_a_reason_and_done() {
    let simulator = simulator(Scenario::default()).await;
    let body = json!({"model": "gpt-3.5-turbo-instruct", "prompt": "x", "stream": true, "max_tokens": 3});
    let reply = post(&simulator, "/v1/completions", &body).await;
    assert_eq!(reply.events()[2]["choices"][0]["finish_reason"], "length");
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn the_same_seed_says_the_same() {
    let (one, two) = (simulator(Scenario::default()).await, simulator(Scenario::default()).await);
    for _ in 0..3 {
        let (a, b) = (chat(&one, json!({})).await.json(), chat(&two, json!({})).await.json());
        assert_eq!(a["choices"], b["choices"]);
        assert_eq!(a["id"], b["id"]);
    }
}
