//! Replies that fall silent.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tidegate::{
    BreakerConfig, BreakerState, Call, CircuitBreaker, CircuitBreakerLayer, Dimension, Fault, FaultKind,
    RateLimitConfig, RateLimitLayer, RateLimiter, Tidegate, TidegateLayer,
};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = UnsyncBoxBody<Bytes, Infallible>;

const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"1\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn request() -> Request<Full<Bytes>> {
    let mut request = Request::post("/v1/chat/completions").body(Full::default()).unwrap();
    request.extensions_mut().insert(Call::of_openai("POST", "/v1/chat/completions", br#"{"model": "gpt-4o"}"#));
    request
}

/// A stream of these events, each after so many seconds; then nothing more comes, but no end either.
fn streams(
    events: &'static [(u64, &str)],
) -> impl Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(move |_| async move {
        let pieces = stream::iter(events).then(|(seconds, event)| async move {
            sleep(Duration::from_secs(*seconds)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(event.as_bytes())))
        });
        let body = StreamBody::new(pieces.chain(stream::pending())).boxed_unsync();
        Ok(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
    })
}

fn one_at_a_time() -> RateLimitConfig {
    RateLimitConfig::default().with(Dimension::MaxInFlight, 1)
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_falls_silent_breaks_off_and_gives_its_place_back() {
    let whole = Tidegate::builder().limit(one_at_a_time()).build();
    let service = TidegateLayer::new(whole).layer(streams(&[(0, EVENT)]));
    let limited = RateLimitLayer::new(RateLimiter::new(one_at_a_time())).layer(streams(&[(0, EVENT)]));
    let started = Instant::now();
    for _ in 0..2 {
        let reply = service.clone().oneshot(request()).await.unwrap();
        let error = reply.into_body().collect().await.unwrap_err();
        assert_eq!(error.downcast_ref::<Fault>().unwrap().kind, FaultKind::Broken, "{error}");
        let reply = limited.clone().oneshot(request()).await.unwrap();
        assert!(reply.into_body().collect().await.is_err());
    }
    assert_eq!(started.elapsed(), Duration::from_secs(4 * 300));
}

#[tokio::test(start_paused = true)]
async fn silence_is_held_against_the_service() {
    let breaker = CircuitBreaker::new(BreakerConfig::default().with_failure_threshold(1));
    let layer = CircuitBreakerLayer::new(breaker.clone()).with_idle_timeout(Some(Duration::from_secs(5)));
    let started = Instant::now();
    let reply = layer.layer(streams(&[(0, EVENT)])).oneshot(request()).await.unwrap();
    reply.into_body().collect().await.unwrap_err();
    assert_eq!((started.elapsed(), breaker.state()), (Duration::from_secs(5), BreakerState::Open));
}

#[tokio::test(start_paused = true)]
async fn neither_a_slow_stream_nor_a_slow_reader_is_silence() {
    let breaker = CircuitBreaker::new(BreakerConfig::default().with_half_open_max_calls(1));
    breaker.force_half_open();
    let layer = CircuitBreakerLayer::new(breaker.clone()).with_idle_timeout(Some(Duration::from_secs(5)));
    let service = layer.layer(streams(&[(0, EVENT), (4, EVENT), (4, EVENT), (0, DONE)]));
    let mut reply = service.oneshot(request()).await.unwrap();
    while breaker.state() == BreakerState::HalfOpen {
        reply.body_mut().frame().await.unwrap().unwrap();
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(breaker.state(), BreakerState::Closed, "it ended well");
}

#[tokio::test(start_paused = true)]
async fn a_reply_may_be_silent_for_ever_where_a_program_wants_that() {
    let layer = TidegateLayer::new(Tidegate::builder().build()).with_idle_timeout(None);
    let reply = layer.layer(streams(&[(0, EVENT), (86_400, DONE)])).oneshot(request()).await.unwrap();
    let mut body = reply.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), DONE);
}
