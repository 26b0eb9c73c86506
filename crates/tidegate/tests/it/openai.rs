//! async-openai and reqwest under tidegate, against the simulator on a real socket.

use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{CreateChatCompletionRequest, CreateChatCompletionRequestArgs};
use async_openai::types::embeddings::CreateEmbeddingRequestArgs;
use async_openai::types::files::{CreateFileRequestArgs, FileInput, FilePurpose};
use async_openai::types::responses::CreateResponseArgs;
use futures_util::StreamExt;
use serde_json::json;
use tidegate::{Call, Error, RateLimitConfig, RetryConfig, Tidegate, TidegateLayer};
use tidegate_sim::{Options, Scenario, Simulator};
use tower::{Layer, ServiceExt};

pub(crate) async fn simulator(toml: &str) -> Simulator {
    let options = Options { speed: 0.0, seed: 1, ..Options::default() };
    let scenario = Scenario::from_toml(toml).unwrap();
    Simulator::start(scenario, options, ([127, 0, 0, 1], 0).into()).await.unwrap()
}

pub(crate) fn config(simulator: &Simulator) -> OpenAIConfig {
    OpenAIConfig::new().with_api_base(simulator.base_url()).with_api_key("simulated")
}

pub(crate) fn tidegate() -> Tidegate {
    let mut retry = RetryConfig::default().with_delays(Duration::from_millis(1), Duration::from_millis(5));
    retry.strategies.clear();
    Tidegate::builder().limit(RateLimitConfig::default().with_tokens_per_minute(100_000)).retry(retry).build()
}

fn client(simulator: &Simulator, tidegate: &Tidegate) -> Client<OpenAIConfig> {
    tidegate::openai_client(config(simulator), tidegate)
}

fn chat() -> CreateChatCompletionRequest {
    let message = json!({"role": "user", "content": "Hello, tide."});
    let messages =
        vec![serde_json::from_value::<async_openai::types::chat::ChatCompletionRequestMessage>(message).unwrap()];
    CreateChatCompletionRequestArgs::default()
        .model("gpt-4o-mini")
        .max_completion_tokens(50_u32)
        .messages(messages)
        .build()
        .unwrap()
}

fn tokens_used(tidegate: &Tidegate) -> u64 {
    tidegate.limiter().info().tokens_in_last_minute
}

fn statuses(simulator: &Simulator) -> Vec<u16> {
    simulator.log().iter().map(|entry| entry.status).collect()
}

#[tokio::test]
async fn a_chat_is_answered_and_charged_with_its_usage() {
    let (simulator, tidegate) = (simulator("").await, tidegate());
    let answer = client(&simulator, &tidegate).chat().create(chat()).await.unwrap();
    let usage = answer.usage.unwrap();
    assert_eq!(tokens_used(&tidegate), u64::from(usage.total_tokens));
}

#[tokio::test]
async fn a_stream_comes_whole_and_is_settled_when_it_ends() {
    let (simulator, tidegate) = (simulator("").await, tidegate());
    let mut stream = client(&simulator, &tidegate).chat().create_stream(chat()).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        for choice in chunk.unwrap().choices {
            text.push_str(&choice.delta.content.unwrap_or_default());
        }
    }
    assert!(!text.is_empty());
    // The stream tells no usage unless asked to: a quarter of its bytes, and the input as estimated.
    let input = 5;
    assert_eq!(tokens_used(&tidegate), input + text.len().div_ceil(4) as u64);
}

#[tokio::test]
async fn responses_embeddings_and_files_go_through_it_too() {
    let (simulator, tidegate) = (simulator("").await, tidegate());
    let client = client(&simulator, &tidegate);
    let response = CreateResponseArgs::default().model("gpt-4o-mini").input("Hello, tide.").build().unwrap();
    client.responses().create(response).await.unwrap();
    let after_response = tokens_used(&tidegate);
    assert!(after_response > 0);
    let embedding =
        CreateEmbeddingRequestArgs::default().model("text-embedding-3-small").input("Hello, tide.").build().unwrap();
    let embedded = client.embeddings().create(embedding).await.unwrap();
    assert_eq!(tokens_used(&tidegate) - after_response, u64::from(embedded.usage.total_tokens));
    let file = FileInput::from_vec_u8("lines.jsonl".to_owned(), b"{}\n".to_vec());
    let upload = CreateFileRequestArgs::default().file(file).purpose(FilePurpose::Batch).build().unwrap();
    let uploaded = client.files().create(upload).await.unwrap();
    let listed = client.files().list().await.unwrap();
    assert_eq!(listed.data[0].id, uploaded.id);
}

#[tokio::test]
async fn a_file_is_sent_again_where_the_first_send_failed() {
    let (simulator, tidegate) =
        (simulator("[[fault]]\nkind = \"error_500\"\npath = \"files\"\nfirst = 1").await, tidegate());
    let file = FileInput::from_vec_u8("lines.jsonl".to_owned(), b"{}\n".to_vec());
    let upload = CreateFileRequestArgs::default().file(file).purpose(FilePurpose::Batch).build().unwrap();
    client(&simulator, &tidegate).files().create(upload).await.unwrap();
    assert_eq!(statuses(&simulator), [500, 200]);
}

#[tokio::test]
async fn there_is_one_owner_of_retries() {
    let (simulator, tidegate) = (simulator("[[fault]]\nkind = \"error_500\"").await, tidegate());
    let error = client(&simulator, &tidegate).chat().create(chat()).await.unwrap_err();
    assert!(matches!(error, OpenAIError::ApiError(_)), "the upstream's own last answer: {error}");
    assert_eq!(statuses(&simulator), [500, 500, 500], "three attempts, not three times as many");
}

#[tokio::test]
async fn a_rate_limit_waits_its_turn_and_is_never_seen() {
    let (simulator, tidegate) =
        (simulator("[[fault]]\nkind = \"rate_limit\"\nfirst = 2\nwait = \"10ms\"").await, tidegate());
    client(&simulator, &tidegate).chat().create(chat()).await.unwrap();
    assert_eq!(statuses(&simulator), [429, 429, 200]);
}

#[tokio::test]
async fn an_error_within_a_stream_before_its_first_event_is_retried() {
    let fault = "[[fault]]\nkind = \"in_band\"\nfirst = 1\nstream = true";
    let (simulator, tidegate) = (simulator(fault).await, tidegate());
    let mut stream = client(&simulator, &tidegate).chat().create_stream(chat()).await.unwrap();
    while let Some(chunk) = stream.next().await {
        chunk.unwrap();
    }
    assert_eq!(simulator.log().len(), 2);
}

#[tokio::test]
async fn our_own_errors_can_be_matched_on() {
    let simulator = simulator("").await;
    let tidegate = Tidegate::builder().limit(RateLimitConfig::default().with_tokens_per_minute(10)).build();
    let error = client(&simulator, &tidegate).chat().create(chat()).await.unwrap_err();
    let OpenAIError::Boxed(error) = error else { panic!("{error}") };
    assert!(matches!(error.downcast_ref(), Some(Error::TooLarge { .. })), "{error}");
    assert!(simulator.log().is_empty());
}

#[tokio::test]
async fn a_reqwest_client_is_a_service_to_put_it_around() {
    let (simulator, tidegate) = (simulator("[[fault]]\nkind = \"overloaded\"\nfirst = 1").await, tidegate());
    // Made for its choice of who encrypts: this process has one.
    let _client = client(&simulator, &tidegate);
    let service =
        TidegateLayer::new(tidegate.clone()).map_call(|call| call.with_user("anna")).layer(reqwest::Client::new());
    let mut request = reqwest::Request::new(
        reqwest::Method::POST,
        format!("{}/chat/completions", simulator.base_url()).parse().unwrap(),
    );
    request.headers_mut().insert("authorization", "Bearer simulated".parse().unwrap());
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    *request.body_mut() = Some(serde_json::to_string(&chat()).unwrap().into());
    let url = request.url().clone();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.url()), (200, &url));
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(Some(tokens_used(&tidegate)), body["usage"]["total_tokens"].as_u64());
    let left = tidegate.limiter().check(&Call::new("gpt-4o-mini").with_user("bert")).remaining_tokens;
    assert_eq!(left, Some(100_000), "it was anna's");
    assert_eq!(statuses(&simulator), [503, 200]);
}
