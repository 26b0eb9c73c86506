//! What layers make of errors of the service's own: known, unknown, or judged by the program.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tidegate::{
    BreakerConfig, BreakerState, Call, CircuitBreaker, CircuitBreakerLayer, Error, Event, Fault, FaultKind,
    RateLimitConfig, RateLimitLayer, RateLimiter, Retry, RetryConfig, RetryLayer, Tidegate, TidegateLayer, ToFault,
};
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::{BoxError, Layer, ServiceExt, service_fn};

fn request() -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    request.extensions_mut().insert(Call::new("gpt-4o").with_estimated_tokens(100));
    request
}

/// Asks a service under `layer` that sheds load five times, and tells how often it was asked.
async fn sheds<L>(layer: L) -> u32
where
    L: Layer<Shedding>,
    L::Service: tower::Service<Request<Full<Bytes>>, Error = Error> + Clone,
{
    let asked = Arc::new(AtomicU32::new(0));
    let service = layer.layer(Shedding(asked.clone()));
    for _ in 0..5 {
        let error = service.clone().oneshot(request()).await.err().unwrap();
        assert!(
            matches!(error, Error::Upstream { .. } | Error::Exhausted { .. } | Error::CircuitOpen { .. }),
            "{error}"
        );
    }
    asked.load(Ordering::Relaxed)
}

#[derive(Clone)]
struct Shedding(Arc<AtomicU32>);

impl tower::Service<Request<Full<Bytes>>> for Shedding {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Err(Overloaded::new().into()))
    }
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new(BreakerConfig::default().with_failure_threshold(1))
}

fn overloaded(error: &BoxError) -> Option<Fault> {
    error.is::<Overloaded>().then(|| Fault::new(FaultKind::Overloaded, "shed"))
}

#[test]
fn errors_are_judged_by_what_is_known_of_them_wherever_it_stands_in_their_chain() {
    let judged = |error: BoxError| error.to_fault().kind;
    let nested = io::Error::other(Fault::of_status(503));
    let kinds = [
        (judged(io::Error::from(ErrorKind::ConnectionReset).into()), FaultKind::Broken),
        (judged(io::Error::from(ErrorKind::ConnectionRefused).into()), FaultKind::Connect),
        (judged(io::Error::from(ErrorKind::TimedOut).into()), FaultKind::Timeout),
        (judged(io::Error::from(ErrorKind::NotFound).into()), FaultKind::Unknown),
        (judged(Box::new(BoxedIo(io::Error::from(ErrorKind::BrokenPipe)))), FaultKind::Broken),
        (judged(nested.into()), FaultKind::Server),
        (judged(Overloaded::new().into()), FaultKind::Unknown),
        (judged(Elapsed::new().into()), FaultKind::Unknown),
        (judged("who knows".into()), FaultKind::Unknown),
    ];
    for (number, (judged, expected)) in kinds.into_iter().enumerate() {
        assert_eq!(judged, expected, "number {number}");
    }
}

#[derive(Debug, thiserror::Error)]
#[error("sending failed")]
struct BoxedIo(#[source] io::Error);

#[tokio::test(start_paused = true)]
async fn what_nobody_can_judge_neither_opens_a_breaker_nor_is_retried() {
    let breaker = breaker();
    assert_eq!(sheds(CircuitBreakerLayer::new(breaker.clone())).await, 5);
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(sheds(RetryLayer::new(Retry::new(RetryConfig::default()))).await, 5);
    let whole = Tidegate::builder().breaker(BreakerConfig::default().with_failure_threshold(1)).build();
    assert_eq!(sheds(TidegateLayer::new(whole.clone())).await, 5);
    assert_eq!(whole.breaker_state(&Call::new("gpt-4o")), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn unknown_errors_are_retried_where_they_are_listed() {
    let config = RetryConfig::default().with_retryable_error("unknown_error");
    assert_eq!(sheds(RetryLayer::new(Retry::new(config))).await, 15);
}

#[tokio::test(start_paused = true)]
async fn a_program_can_say_what_its_errors_are() {
    let breaker = breaker();
    assert_eq!(sheds(CircuitBreakerLayer::new(breaker.clone()).classify(overloaded)).await, 1);
    assert_eq!(breaker.state(), BreakerState::Open);
    let retry = RetryConfig::default().without_strategies();
    assert_eq!(sheds(RetryLayer::new(Retry::new(retry)).classify(overloaded)).await, 15);
    let whole = Tidegate::builder().breaker(BreakerConfig::default().with_failure_threshold(1)).build();
    assert_eq!(sheds(TidegateLayer::new(whole).classify(overloaded)).await, 1);

    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(10));
    let unsent = |error: &BoxError| error.is::<Overloaded>().then(|| Fault::new(FaultKind::Connect, "never sent"));
    assert_eq!(sheds(RateLimitLayer::new(limiter.clone()).classify(unsent)).await, 5);
    assert_eq!(limiter.check(&Call::new("gpt-4o")).remaining_requests, Some(10), "what was never sent is given back");
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_panics_is_contained_and_told() {
    let breaker = breaker();
    let mut events = breaker.subscribe();
    let layer = CircuitBreakerLayer::new(breaker).classify(|_| panic!("no idea"));
    let failing = service_fn(|_: Request<Full<Bytes>>| async { Err::<Response<Full<Bytes>>, BoxError>("x".into()) });
    assert!(matches!(layer.layer(failing).oneshot(request()).await, Err(Error::Upstream { .. })));
    let told = events.try_recv().unwrap();
    assert!(matches!(&*told, Event::CallbackError { callback: "classify", message } if &**message == "no idea"));
}
