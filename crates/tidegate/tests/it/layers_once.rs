//! Layers around what is out of the ordinary: requests that cannot be made again, callbacks that panic, trailers.

use std::cell::Cell;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tidegate::{
    AsCall, BreakerConfig, Call, CircuitBreaker, CircuitBreakerLayer, Event, Fault, RateLimitConfig, RateLimitLayer,
    RateLimiter, Repeatable, Retry, RetryConfig, RetryLayer, RetryStrategy, SentOnce, Tidegate, TidegateLayer,
};
use tower::{BoxError, Layer, ServiceExt, service_fn};

/// Its body is a stream: it can be sent but once.
#[derive(Debug)]
struct Once;

impl AsCall for Once {
    async fn call(&self) -> Result<Call, BoxError> {
        Ok(Call::of_openai("POST", "/v1/chat/completions", br#"{"model": "gpt-4o"}"#).with_id("test"))
    }
}

impl Repeatable for Once {
    fn again(&self) -> Option<Self> {
        None
    }
}

#[derive(Debug)]
struct Always;

impl RetryStrategy for Always {
    fn should_retry(&self, _: &Fault, _: u32) -> bool {
        true
    }

    fn delay(&self, _: u32) -> Duration {
        Duration::from_secs(1)
    }
}

async fn answer(status: u16, body: &'static str) -> Result<Response<Full<Bytes>>, BoxError> {
    Ok(Response::builder().status(status).body(Full::from(body))?)
}

const QUOTA: &str = r#"{"error": {"code": "insufficient_quota", "type": "insufficient_quota", "message": "x"}}"#;

#[tokio::test(start_paused = true)]
async fn the_reply_to_what_cannot_be_made_again_is_the_callers_whatever_the_rules_say() {
    let config = RetryConfig::default().with_retryable_error("insufficient_quota");
    for (status, body) in [(500, "down"), (429, QUOTA)] {
        let whole = Tidegate::builder().retry(config.clone()).strategy("temporary_error", Always).build();
        let service = TidegateLayer::new(whole).layer(service_fn(move |_: Once| answer(status, body)));
        let reply = service.oneshot(Once).await.unwrap();
        assert_eq!(reply.status().as_u16(), status);
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), body);

        let retry = Retry::new(config.clone()).with_strategy("temporary_error", Always);
        let service = RetryLayer::new(retry).layer(service_fn(move |_: Once| answer(status, body)));
        let reply = service.oneshot(Once).await.unwrap();
        assert_eq!(reply.status().as_u16(), status);
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mapping_of_calls_that_panics_is_contained_and_told() {
    let whole = Tidegate::builder().build();
    let mut events = whole.driver().subscribe_notable();
    let layer = TidegateLayer::new(whole).map_call(|_| panic!("mapped away"));
    let reply = layer.layer(service_fn(|_: Once| answer(200, "{}"))).oneshot(Once).await.unwrap();
    assert_eq!(reply.status().as_u16(), 200);
    let told = events.recv().await.unwrap();
    assert!(matches!(&*told, Event::CallbackError { callback: "map_call", message } if &**message == "mapped away"));
}

#[tokio::test(start_paused = true)]
async fn trailers_of_a_reply_that_was_looked_into_come_after_it() {
    let service = service_fn(|_: Once| async {
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("1"))]);
        let body = Full::from("{}").with_trailers(async { Some(Ok(trailers)) });
        Ok::<_, BoxError>(Response::new(Box::pin(body)))
    });
    let reply = TidegateLayer::new(Tidegate::builder().build()).layer(service).oneshot(Once).await.unwrap();
    let whole = reply.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
    assert_eq!(whole.to_bytes(), "{}");
}

#[tokio::test(start_paused = true)]
async fn a_body_need_not_be_shared_between_threads() {
    #[derive(Clone, Default)]
    struct Unshared(Full<Bytes>, PhantomData<Cell<u8>>);
    impl http_body::Body for Unshared {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::pin::Pin::new(&mut self.0).poll_frame(context)
        }
    }
    let service = service_fn(|_: http::Request<Unshared>| answer(200, "{}"));
    let service = TidegateLayer::new(Tidegate::builder().build()).layer(service);
    let reply = tokio::spawn(service.oneshot(http::Request::new(Unshared::default()))).await.unwrap();
    assert_eq!(reply.unwrap().status().as_u16(), 200);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_retried_must_be_made_again() {
    let down = service_fn(|_: http::Request<UnsyncBoxBody<Bytes, Infallible>>| answer(503, "down"));
    let request = || http::Request::new(Full::from("{}").boxed_unsync());
    let limited = RateLimitLayer::new(RateLimiter::new(RateLimitConfig::default())).layer(down);
    let both = CircuitBreakerLayer::new(CircuitBreaker::new(BreakerConfig::default())).layer(limited);
    assert_eq!(both.oneshot(request()).await.unwrap().status().as_u16(), 503);

    let whole = Tidegate::builder().build();
    let mut events = whole.subscribe();
    let service = TidegateLayer::new(whole).layer(down.map_request(|SentOnce(request)| request));
    assert_eq!(service.oneshot(SentOnce(request())).await.unwrap().status().as_u16(), 503);
    let mut failed = 0;
    while let Ok(event) = events.try_recv() {
        failed += u32::from(matches!(&*event, Event::AttemptFailed { .. }));
    }
    assert_eq!(failed, 1, "what is sent once is not retried");
}
