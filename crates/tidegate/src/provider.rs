//! Chat with one call: a message goes out, its answer comes back as a stream of chunks, and the log tells how it went.
//!
//! Decides only what is logged at which level; the rest is async-openai's and the layer's.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::ReqwestService;
use async_openai::types::chat::{
    ChatCompletionResponseStream, CreateChatCompletionRequest, CreateChatCompletionStreamResponse,
};
use futures_core::Stream;
use serde::Serialize;
use serde_json::Value;
use tidegate_core::call::Priority;
use tidegate_core::cost::Usage;
use tidegate_core::event::Event;
use tokio::sync::broadcast::error::RecvError;
use tower_layer::Layer;

use crate::call::Call;
use crate::driver::LogGuard;
use crate::error::Error;
use crate::events::Events;
use crate::service::TidegateLayer;
use crate::service::openai::choose_crypto;
use crate::tidegate::Tidegate;

/// Sends messages through async-openai; clones share everything.
///
/// ```no_run
/// # async fn run() -> Result<(), tidegate::Error> {
/// use async_openai::config::OpenAIConfig;
/// use futures_util::StreamExt;
/// use tidegate::{Message, MessageRequest, Provider, Tidegate};
///
/// let provider = Provider::new(OpenAIConfig::default(), Tidegate::builder().build());
/// let mut answer = provider.send_message(MessageRequest::new("gpt-4o-mini", [Message::user("Hello, tide.")]));
/// while let Some(chunk) = answer.next().await {
///     print!("{}", chunk?.delta);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Provider {
    client: Client<OpenAIConfig>,
    http: reqwest::Client,
    tidegate: Tidegate,
}

/// A message to be answered.
#[derive(Clone, Debug)]
pub struct MessageRequest {
    /// The name under which it appears in events. Absent: one is made.
    pub id: Option<String>,
    /// End user; also told to the API.
    pub user: Option<String>,
    /// Organization, for limits and fairness here.
    pub organization: Option<String>,
    /// Which model is to answer.
    pub model: String,
    /// What has been said so far.
    pub messages: Vec<Message>,
    /// How free the answer is, 0 to 2. Absent: the API's default.
    pub temperature: Option<f64>,
    /// The most tokens that the answer may have. Absent: the model's.
    pub max_tokens: Option<u64>,
    /// How urgent it is.
    pub priority: Priority,
    /// How long it may take until its answer begins, waiting included. Absent: as configured.
    pub timeout: Option<Duration>,
    /// Whatever else the API takes, by its name there.
    pub options: BTreeMap<String, Value>,
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What.
    pub content: Content,
}

/// A text, or parts as the API defines them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Texts, images, audio.
    Parts(Vec<Value>),
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageChunk {
    /// The answer's, as the API names it.
    pub id: String,
    /// Which of several answers.
    pub index: u32,
    /// What is new.
    pub delta: String,
    /// Why nothing more comes, with the last piece.
    pub finish_reason: Option<String>,
    /// What the whole of it used: with the very last chunk.
    pub usage: Option<Usage>,
}

impl MessageRequest {
    /// Asks `model` to answer `messages`.
    pub fn new(model: impl Into<String>, messages: impl IntoIterator<Item = Message>) -> Self {
        Self {
            id: None,
            user: None,
            organization: None,
            model: model.into(),
            messages: messages.into_iter().collect(),
            temperature: None,
            max_tokens: None,
            priority: Priority::Normal,
            timeout: None,
            options: BTreeMap::new(),
        }
    }

    /// The same in async-openai's words.
    fn body(&self) -> Result<CreateChatCompletionRequest, OpenAIError> {
        let mut body = serde_json::json!({
            "model": self.model,
            "messages": self.messages,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let given = [
            ("user", self.user.clone().map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("max_completion_tokens", self.max_tokens.map(Value::from)),
        ];
        for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            body[name] = value;
        }
        // The API takes `null` as absent, and so it is left out.
        let options = || self.options.iter().filter(|(_, value)| !value.is_null());
        for (name, value) in options() {
            body[name] = value.clone();
        }
        let wrong = |error: serde_json::Error| OpenAIError::InvalidArgument(error.to_string());
        let request = serde_json::from_value(body).map_err(wrong)?;
        // What async-openai does not know would be left out in silence.
        let written = serde_json::to_value(&request).map_err(wrong)?;
        match options().find(|(name, _)| written.get(name).is_none()) {
            Some((name, _)) => Err(OpenAIError::InvalidArgument(format!("unknown option \"{name}\""))),
            None => Ok(request),
        }
    }

    fn apply(&self, mut call: Call) -> Call {
        call.priority = self.priority;
        call.timeout = self.timeout;
        if let Some(id) = &self.id {
            call = call.with_id(&**id);
        }
        if let Some(user) = &self.user {
            call = call.with_user(&**user);
        }
        match &self.organization {
            Some(organization) => call.with_organization(&**organization),
            None => call,
        }
    }
}

impl Message {
    /// Something that the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: Content::Text(text.into()) }
    }

    /// What the model is told to be.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: Content::Text(text.into()) }
    }

    /// Something that the model has said.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: "assistant".to_owned(), content: Content::Text(text.into()) }
    }
}

impl Provider {
    /// Sends with `config`, under `tidegate`. What happens under that is logged once, whatever number of providers share it.
    ///
    /// # Panics
    /// If called outside of a tokio runtime.
    #[must_use]
    pub fn new(config: OpenAIConfig, tidegate: Tidegate) -> Self {
        choose_crypto();
        let http = reqwest::Client::new();
        if let Some(guard) = tidegate.driver().log() {
            tokio::spawn(log(tidegate.subscribe(), guard));
        }
        Self { client: Client::build(http.clone(), config), http, tidegate }
    }

    /// Sends a message; nothing is done before the stream is polled. Dropping it cancels the call.
    pub fn send_message(&self, request: MessageRequest) -> MessageStream {
        let (client, http, tidegate) = (self.client.clone(), self.http.clone(), self.tidegate.clone());
        let sending = async move {
            let body = request.body()?;
            let layer = TidegateLayer::new(tidegate).map_call(move |call| request.apply(call));
            let client = client.with_http_service(layer.layer(ReqwestService::new(http)));
            client.chat().create_stream(body).await
        };
        MessageStream { state: State::Sending(Box::pin(sending)), ready: VecDeque::new() }
    }

    /// Everything that happens from now on; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.tidegate.subscribe()
    }

    /// What it is under.
    #[must_use]
    pub const fn tidegate(&self) -> &Tidegate {
        &self.tidegate
    }
}

/// An answer as it comes.
#[must_use = "nothing is sent before it is polled"]
pub struct MessageStream {
    state: State,
    /// Of a chunk that told of several answers, those that have not been given out.
    ready: VecDeque<MessageChunk>,
}

type Chunks = ChatCompletionResponseStream;

enum State {
    Sending(Pin<Box<dyn Future<Output = Result<Chunks, OpenAIError>> + Send>>),
    Answered(Chunks),
    Ended,
}

impl Stream for MessageStream {
    type Item = Result<MessageChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(chunk)));
            }
            let chunk = match &mut self.state {
                State::Sending(sending) => match std::task::ready!(sending.as_mut().poll(context)) {
                    Ok(chunks) => {
                        self.state = State::Answered(chunks);
                        continue;
                    }
                    Err(error) => Some(Err(error)),
                },
                State::Answered(chunks) => std::task::ready!(chunks.as_mut().poll_next(context)),
                State::Ended => None,
            };
            match chunk {
                Some(Ok(chunk)) => self.ready = by_answer(chunk),
                ended => {
                    self.state = State::Ended;
                    return Poll::Ready(ended.and_then(Result::err).map(|error| Err(error.into())));
                }
            }
        }
    }
}

impl std::fmt::Debug for MessageStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MessageStream").finish_non_exhaustive()
    }
}

/// A chunk for each answer that it tells of, or one that tells only the use.
fn by_answer(chunk: CreateChatCompletionStreamResponse) -> VecDeque<MessageChunk> {
    let CreateChatCompletionStreamResponse { id, choices, usage, .. } = chunk;
    let usage = usage.map(|usage| Usage::new(usage.prompt_tokens.into(), usage.completion_tokens.into()));
    let blank = || MessageChunk { id: id.clone(), index: 0, delta: String::new(), finish_reason: None, usage: None };
    let chunks = choices.into_iter().map(|choice| {
        // The words of the API, which are those that it is written with.
        let word = choice.finish_reason.and_then(|reason| serde_json::to_value(reason).ok());
        let finish_reason = word.and_then(|word| word.as_str().map(str::to_owned));
        let delta = choice.delta.content.unwrap_or_default();
        MessageChunk { index: choice.index, delta, finish_reason, ..blank() }
    });
    let mut chunks: VecDeque<_> = chunks.collect();
    if chunks.is_empty() {
        chunks.push_back(blank());
    }
    if let Some(last) = chunks.back_mut() {
        last.usage = usage;
    }
    chunks
}

/// Tells of uses, failures and changes of state as long as there is anybody whom they can happen to.
async fn log(mut events: Events, _guard: LogGuard) {
    loop {
        match events.recv().await {
            Ok(event) => say(&event),
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events came faster than they could be logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn say(event: &Arc<Event>) {
    match &**event {
        Event::UsageRecorded { call, user, organization, model, requests, tokens } => {
            tracing::debug!(%call, ?user, ?organization, %model, requests, tokens, "usage recorded");
        }
        Event::AttemptFailed { call, attempt, kind, .. } => {
            tracing::warn!(operation_id = %call, attempt, error = kind.error_class(), "attempt failed");
        }
        Event::StateChanged { breaker, from, to, .. } => {
            tracing::info!(%breaker, from = from.name(), state = to.name(), "circuit breaker state changed");
        }
        Event::CallFailure { breaker, kind, failure_count, .. } => {
            tracing::error!(%breaker, error = kind.error_class(), failure_count, "circuit breaker call failure");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_that_a_chunk_tells_of_is_given_and_the_use_once() {
        let chunk = serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini",
            "choices": [
                {"index": 0, "delta": {"content": "a"}, "finish_reason": null},
                {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        });
        let chunks = by_answer(serde_json::from_value(chunk).unwrap());
        let told = |chunk: &MessageChunk| (chunk.index, chunk.delta.clone(), chunk.usage);
        let told: Vec<_> = chunks.iter().map(told).collect();
        assert_eq!(told, [(0, "a".to_owned(), None), (1, "b".to_owned(), Some(Usage::new(3, 2)))]);
        assert_eq!(chunks[1].finish_reason.as_deref(), Some("stop"));
    }
}
