//! What the layers read of replies: errors in streams, what was used, when the first byte came.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tidegate::{
    BreakerConfig, BreakerState, Call, CircuitBreaker, CircuitBreakerLayer, RateLimitConfig, RateLimitLayer,
    RateLimiter, Tidegate, TidegateLayer,
};
use tokio::time::sleep;
use tower::{BoxError, Layer, ServiceExt, service_fn};

const CHAT: &str =
    r#"{"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello, tide"}]}"#;
const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"1\"}}]}\n\n";
const WRONG: &str = "data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":null}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

type Piecewise = Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>;

/// A stream of pieces, each after a time.
fn streamed(pieces: &'static [(Duration, &'static str)]) -> Response<Piecewise> {
    let frames = stream::iter(pieces).then(|(after, piece)| async move {
        sleep(*after).await;
        Ok(Frame::data(Bytes::from_static(piece.as_bytes())))
    });
    let body: Piecewise = Box::pin(StreamBody::new(frames));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

fn request(call: Call) -> Request<Full<Bytes>> {
    let mut request = Request::post("https://api.openai.com/v1/chat/completions").body(Full::from(CHAT)).unwrap();
    request.extensions_mut().insert(call);
    request
}

fn chat() -> Call {
    Call::of_openai("POST", "/v1/chat/completions", CHAT.as_bytes())
}

/// The states of a breaker alone and of one together with all else after `calls` that are read to their ends.
async fn states_after(
    calls: u32,
    config: BreakerConfig,
    pieces: &'static [(Duration, &'static str)],
) -> [BreakerState; 2] {
    let service = service_fn(move |_: Request<Full<Bytes>>| async move { Ok::<_, BoxError>(streamed(pieces)) });
    let (breaker, tidegate) = (CircuitBreaker::new(config.clone()), Tidegate::builder().breaker(config).build());
    for _ in 0..calls {
        let response = CircuitBreakerLayer::new(breaker.clone()).layer(service).oneshot(request(chat())).await.unwrap();
        response.into_body().collect().await.unwrap();
        let response = TidegateLayer::new(tidegate.clone()).layer(service).oneshot(request(chat())).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    [breaker.state(), tidegate.breaker_state(&chat())]
}

#[tokio::test(start_paused = true)]
async fn an_error_within_a_stream_counts_whether_or_not_its_last_event_follows() {
    const ZERO: Duration = Duration::ZERO;
    let strict = BreakerConfig::default().with_failure_threshold(1);
    for pieces in [&[(ZERO, WORD), (ZERO, WRONG), (ZERO, DONE)][..], &[(ZERO, WORD), (ZERO, WRONG)]] {
        assert_eq!(states_after(1, strict.clone(), pieces).await, [BreakerState::Open; 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_reply_that_began_at_once_is_no_slow_call() {
    const LONG: &[(Duration, &str)] = &[(Duration::ZERO, WORD), (Duration::from_secs(20), DONE)];
    let config = BreakerConfig::default().with_slow_calls(Duration::from_secs(5), 0.5).with_failure_rate(0.5, 3);
    assert_eq!(states_after(4, config, LONG).await, [BreakerState::Closed; 2]);
}

const ANSWER: &str =
    r#"{"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}"#;

#[tokio::test(start_paused = true)]
async fn of_a_call_that_the_program_made_the_reply_is_read_as_the_requests_path_says() {
    let service = service_fn(|_: Request<Full<Bytes>>| async {
        let response = Response::builder().header("content-type", "application/json");
        Ok::<_, BoxError>(response.body(Full::new(Bytes::from_static(ANSWER.as_bytes())))?)
    });
    let limits = || RateLimitConfig::default().with_tokens_per_minute(10_000);
    let made = || Call::new("gpt-4o").with_tokens(1000, 1000);
    let limiter = RateLimiter::new(limits());
    let response = RateLimitLayer::new(limiter.clone()).layer(service).oneshot(request(made())).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(limiter.check(&made()).remaining_tokens, Some(9985));

    let tidegate = Tidegate::builder().limit(limits()).learn_limits(false).build();
    let layer = TidegateLayer::new(tidegate.clone()).map_call(move |_| made());
    layer.layer(service).oneshot(request(chat())).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(tidegate.limiter().check(&chat()).remaining_tokens, Some(9985));
}
