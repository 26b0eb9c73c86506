use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tidegate_sim::Scenario;
use tokio_tungstenite::tungstenite::Message;

use crate::client::*;

#[tokio::test]
async fn chat_answers_with_text_usage_and_headers() {
    let simulator = simulator(Scenario::default()).await;
    let reply = chat(&simulator, json!({"max_tokens": 7, "n": 2})).await;
    let body = reply.json();
    assert_eq!(reply.status, 200);
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"].as_array().expect("choices").len(), 2);
    assert_eq!(body["choices"][1]["index"], 1);
    assert_eq!(body["choices"][0]["message"]["content"].as_str().expect("text").split(' ').count(), 7);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 14);
    // "How is the tide?" is 16 characters: 4 and 2 more.
    assert_eq!(reply.header("x-ratelimit-remaining-tokens"), Some("199994"));
    assert_eq!(reply.header("x-ratelimit-reset-tokens"), Some("2ms"));
    assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("500"));
    assert_eq!(reply.header("x-ratelimit-reset-requests"), Some("120ms"));
    for name in ["x-request-id", "openai-processing-ms", "openai-version", "openai-organization"] {
        assert!(reply.header(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_demanded_tool_is_called_with_arguments_of_its_schema() {
    let simulator = simulator(Scenario::default()).await;
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
    let demanded = chat(&simulator, json!({"tools": [tool], "tool_choice": "required"})).await.json();
    let choice = &demanded["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "weather");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).expect("JSON");
    assert!(arguments["city"].is_string());
    let free = chat(&simulator, json!({"tools": [tool]})).await.json();
    assert_eq!(free["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_wanted_json_answer_follows_its_schema() {
    let simulator = simulator(Scenario::default()).await;
    let schema = json!({"type": "object", "properties": {"height": {"type": "number"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "t", "schema": schema}});
    let reply = chat(&simulator, json!({"response_format": format})).await.json();
    let text = reply["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(serde_json::from_str::<Value>(text).expect("JSON")["height"].is_number());
}

#[tokio::test]
async fn responses_answer_and_count_real_input() {
    let simulator = simulator(Scenario::default()).await;
    let reply = post(&simulator, "/v1/responses", &json!({"model": "gpt-4o-mini", "input": "one two"})).await;
    let body = reply.json();
    assert_eq!(body["status"], "completed");
    assert_eq!(body["output"][0]["content"][0]["type"], "output_text");
    let charged = 200_000 - reply.header("x-ratelimit-remaining-tokens").expect("sent").parse::<u64>().expect("number");
    assert_eq!(charged, body["usage"]["input_tokens"].as_u64().expect("number") + 19);
    let cut =
        post(&simulator, "/v1/responses", &json!({"model": "o4-mini", "input": "x", "max_output_tokens": 1})).await;
    assert_eq!(cut.json()["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn embeddings_are_unit_vectors_as_numbers_or_base64() {
    let simulator = simulator(Scenario::default()).await;
    let model = "text-embedding-3-small";
    let plain =
        post(&simulator, "/v1/embeddings", &json!({"model": model, "input": ["a", "b"], "dimensions": 8})).await;
    let vector = plain.json()["data"][1]["embedding"].clone();
    let length: f64 = vector.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("number").powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-3);
    let body = json!({"model": model, "input": "a", "encoding_format": "base64"});
    let packed = post(&simulator, "/v1/embeddings", &body).await.json();
    let bytes = STANDARD.decode(packed["data"][0]["embedding"].as_str().expect("text")).expect("base64");
    assert_eq!(bytes.len(), 1_536 * 4);
}

#[tokio::test]
async fn images_are_png_and_edits_take_a_form() {
    let simulator = simulator(Scenario::default()).await;
    let body = json!({"model": "gpt-image-2", "prompt": "a tide", "n": 2});
    let made = post(&simulator, "/v1/images/generations", &body).await;
    let png = STANDARD.decode(made.json()["data"][1]["b64_json"].as_str().expect("text")).expect("base64");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert_eq!(made.header("x-ratelimit-remaining-images"), Some("3"));
    let form = form(&[("model", "gpt-image-2"), ("prompt", "more")], ("image[]", &png));
    let edited = post_form(&simulator, "/v1/images/edits", form).await;
    assert_eq!(edited.status, 200, "{:?}", edited.body);
    assert_eq!(edited.header("x-ratelimit-remaining-images"), Some("2"));
}

#[tokio::test]
async fn audio_is_spoken_and_written_down() {
    let simulator = simulator(Scenario::default()).await;
    let body = json!({"model": "tts-1", "input": "tide", "voice": "alloy", "response_format": "wav"});
    let spoken = post(&simulator, "/v1/audio/speech", &body).await;
    assert!(spoken.body.starts_with(b"RIFF"));
    let form = form(&[("model", "whisper-1")], ("file", &spoken.body));
    let written = post_form(&simulator, "/v1/audio/transcriptions", form).await;
    assert!(!written.json()["text"].as_str().expect("text").is_empty());
}

#[tokio::test]
async fn files_are_kept_listed_read_and_deleted() {
    let simulator = simulator(Scenario::default()).await;
    let content = vec![7_u8; 5 << 20];
    let added = post_form(&simulator, "/v1/files", form(&[("purpose", "batch")], ("file", &content))).await.json();
    let id = added["id"].as_str().expect("id").to_owned();
    assert_eq!((added["bytes"].as_u64(), added["filename"].as_str()), (Some(5 << 20), Some("a.bin")));
    assert_eq!(get(&simulator, "/v1/files").await.json()["data"][0]["id"], json!(id));
    assert_eq!(get(&simulator, &format!("/v1/files/{id}/content")).await.body, content);
    let gone = send(simulator.addr(), request("DELETE", &format!("/v1/files/{id}"), "text/plain", "")).await;
    assert_eq!(gone.expect("a reply").json()["deleted"], true);
    assert_eq!(get(&simulator, &format!("/v1/files/{id}")).await.status, 404);
}

#[tokio::test]
async fn models_moderations_completions_and_token_counts_answer() {
    let simulator = simulator(Scenario::default()).await;
    let listed = get(&simulator, "/v1/models").await.json();
    assert!(listed["data"].as_array().expect("list").iter().any(|m| m["id"] == "gpt-4o"));
    assert_eq!(get(&simulator, "/v1/models/gpt-4o-2024-08-06").await.json()["id"], "gpt-4o-2024-08-06");
    assert_eq!(get(&simulator, "/v1/models/nothing").await.status, 404);
    let body = json!({"model": "omni-moderation-latest", "input": ["a", "b"]});
    let moderated = post(&simulator, "/v1/moderations", &body).await.json();
    assert_eq!(moderated["results"][1]["flagged"], false);
    let body = json!({"model": "gpt-3.5-turbo-instruct", "prompt": "Once", "max_tokens": 3});
    let completed = post(&simulator, "/v1/completions", &body).await.json();
    assert_eq!(completed["choices"][0]["text"].as_str().expect("text").split(' ').count(), 3);
    let body = json!({"model": "gpt-4o", "input": "one two three"});
    let counted = post(&simulator, "/v1/responses/input_tokens", &body).await.json();
    assert_eq!(counted["object"], "response.input_tokens");
}

#[tokio::test]
async fn bad_calls_are_told_what_is_wrong_in_openai_s_envelope() {
    let scenario = Scenario { require_auth: true, ..Scenario::default() };
    let locked = simulator(scenario).await;
    assert_eq!(chat(&locked, json!({})).await.status, 401);
    let simulator = simulator(Scenario::default()).await;
    let path = "/v1/chat/completions";
    let broken = send(simulator.addr(), request("POST", path, "application/json", "{\"model\":")).await;
    assert_eq!(broken.expect("a reply").status, 400);
    let unknown = chat(&simulator, json!({"model": "gpt-none"})).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let missing = post(&simulator, path, &json!({"model": "gpt-4o"})).await;
    assert_eq!((missing.status, &missing.json()["error"]["param"]), (400, &json!("messages")));
    assert_eq!(missing.header("x-ratelimit-remaining-requests"), Some("499"), "a wrong call costs a request");
    assert_eq!(get(&simulator, path).await.status, 405);
    assert_eq!(post(&simulator, "/v1/nowhere", &json!({})).await.json()["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn a_websocket_gets_back_what_it_sends() {
    let simulator = simulator(Scenario::default()).await;
    let url = format!("ws://{}/v1/realtime?model=gpt-realtime", simulator.addr());
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("an upgrade");
    socket.send(Message::text("{\"type\":\"x\"}")).await.expect("sent");
    let echoed = socket.next().await.expect("a message").expect("no error");
    assert_eq!(echoed.into_text().expect("text").as_str(), "{\"type\":\"x\"}");
    assert_eq!(simulator.stats().streams_open, 1);
    simulator.shutdown().await;
}
