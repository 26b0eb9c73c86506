//! The tower layers: what a service must keep to, for each of them; and what each does.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tidegate::{
    BreakerConfig, BreakerState, Call, CircuitBreaker, CircuitBreakerLayer, Error, Fault, FaultKind, GiveUpReason,
    Jitter, RateLimitConfig, RateLimitLayer, RateLimiter, Retry, RetryConfig, RetryLayer, Tidegate, TidegateLayer,
};
use tokio::time::{Instant, timeout};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};

const CHAT: &str =
    r#"{"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello, tide"}]}"#;
const ANSWER: &str =
    r#"{"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}"#;

/// A body of given pieces; then it ends, or nothing comes any more.
#[derive(Clone, Debug, Default)]
struct Pieces {
    pieces: VecDeque<&'static str>,
    hangs: bool,
    breaks: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))),
            None if self.breaks => Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into()))),
            None if self.hangs => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// What the service answers, in turn; the last one for ever.
#[derive(Clone, Copy, Debug)]
enum Answers {
    Status(u16),
    Pieces(&'static [&'static str], &'static str),
    Hang,
    Broken(&'static [&'static str]),
    Fails,
}

const OK: Answers = Answers::Pieces(&[ANSWER], "application/json");

/// A service that insists on being ready, as some are: a clone is not.
#[derive(Debug)]
struct Strict {
    ready: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    answers: Mutex<VecDeque<Answers>>,
    asked: AtomicU32,
    under_way: Arc<()>,
    never_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, shared: self.shared.clone() }
    }
}

impl Strict {
    fn new(answers: &[Answers]) -> Self {
        let answers = Mutex::new(answers.iter().copied().collect());
        let shared = Shared { answers, asked: AtomicU32::new(0), under_way: Arc::new(()), never_ready: false };
        Self { ready: false, shared: Arc::new(shared) }
    }

    fn asked(&self) -> u32 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.shared.under_way) == 1
    }
}

impl Service<Request<Full<Bytes>>> for Strict {
    type Response = Response<Pieces>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Pieces>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.shared.never_ready {
            return Poll::Ready(Err("never ready".into()));
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been ready");
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.shared.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
        let under_way = self.shared.under_way.clone();
        Box::pin(async move {
            let _under_way = under_way;
            let pieces = |pieces: &[&'static str]| pieces.iter().copied().collect();
            let (status, kind, body) = match answer.expect("something to answer") {
                Answers::Status(status) => (status, "application/json", Pieces::default()),
                Answers::Pieces(all, kind) => (200, kind, Pieces { pieces: pieces(all), ..Pieces::default() }),
                Answers::Broken(all) => {
                    (200, "text/event-stream", Pieces { pieces: pieces(all), breaks: true, hangs: false })
                }
                Answers::Hang => std::future::pending().await,
                Answers::Fails => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()),
            };
            Ok(Response::builder().status(status).header("content-type", kind).body(body)?)
        })
    }
}

fn request() -> Request<Full<Bytes>> {
    let mut request = Request::post("https://api.openai.com/v1/chat/completions").body(Full::from(CHAT)).unwrap();
    let call = Call::of_openai("POST", "/v1/chat/completions", CHAT.as_bytes()).with_id("test");
    request.extensions_mut().insert(call);
    request
}

fn limits() -> RateLimitConfig {
    RateLimitConfig::default().with_tokens_per_minute(1000).with_requests_per_minute(100)
}

fn retry() -> RetryConfig {
    RetryConfig::default().with_delays(Duration::from_millis(100), Duration::from_secs(1)).with_jitter(Jitter::None)
}

fn whole() -> Tidegate {
    Tidegate::builder().limit(limits()).retry(retry()).learn_limits(false).build()
}

fn left(limiter: &RateLimiter) -> Option<u64> {
    limiter.check(&Call::new("gpt-4o")).remaining_tokens
}

/// Runs `$check` for each layer.
macro_rules! each_layer {
    ($check:ident) => {
        $check(TidegateLayer::new(whole())).await;
        $check(RateLimitLayer::new(RateLimiter::new(limits()))).await;
        $check(RetryLayer::new(Retry::new(retry()))).await;
        $check(CircuitBreakerLayer::new(CircuitBreaker::new(BreakerConfig::default()))).await;
    };
}

/// What is asked of every layer.
trait Over: Layer<Strict, Service: Serves> {}
impl<L: Layer<Strict, Service: Serves>> Over for L {}

trait Serves:
    Service<
        Request<Full<Bytes>>,
        Response = Response<tidegate::GuardedBody<Pieces>>,
        Error = Error,
        Future: Future<Output = Result<Response<tidegate::GuardedBody<Pieces>>, Error>> + Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}
impl<S> Serves for S where
    S: Service<
            Request<Full<Bytes>>,
            Response = Response<tidegate::GuardedBody<Pieces>>,
            Error = Error,
            Future: Future<Output = Result<Response<tidegate::GuardedBody<Pieces>>, Error>> + Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

async fn text<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    async fn check(layer: impl Over) {
        let strict = Strict::new(&[OK]);
        let mut service = layer.layer(strict.clone());
        for _ in 0..3 {
            poll_fn(|context| service.poll_ready(context)).await.unwrap();
            let response = service.call(request()).await.unwrap();
            assert_eq!(text(response).await, ANSWER);
        }
        assert_eq!(strict.asked(), 3);
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_be_ready_says_so() {
    async fn check(layer: impl Over) {
        let mut strict = Strict::new(&[OK]);
        Arc::get_mut(&mut strict.shared).unwrap().never_ready = true;
        let mut service = layer.layer(strict);
        let error = poll_fn(|context| service.poll_ready(context)).await.unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "never ready");
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn a_reply_goes_through_as_it_came_with_its_errors() {
    async fn check(layer: impl Over) {
        let strict = Strict::new(&[Answers::Status(404)]);
        let response = layer.layer(strict.clone()).oneshot(request()).await.unwrap();
        assert_eq!((response.status().as_u16(), strict.asked()), (404, 1));
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_drops_the_attempt() {
    async fn check(layer: impl Over) {
        let strict = Strict::new(&[Answers::Hang]);
        let calling = layer.layer(strict.clone()).oneshot(request());
        assert!(timeout(Duration::from_secs(1), calling).await.is_err());
        assert!(strict.asked() == 1 && strict.is_idle());
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_never_polled_does_nothing() {
    async fn check(layer: impl Over) {
        let strict = Strict::new(&[OK]);
        let mut service = layer.layer(strict.clone());
        poll_fn(|context| service.poll_ready(context)).await.unwrap();
        drop(service.call(request()));
        assert_eq!(strict.asked(), 0);
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn many_clones_under_one_bound_of_concurrency_all_get_their_turn() {
    async fn check(layer: impl Over) {
        let strict = Strict::new(&[OK]);
        let service = ServiceBuilder::new().concurrency_limit(2).service(layer.layer(strict.clone()));
        let calls: Vec<_> = (0..20).map(|_| tokio::spawn(service.clone().oneshot(request()))).collect();
        for call in calls {
            text(call.await.unwrap().unwrap()).await;
        }
        assert_eq!(strict.asked(), 20);
    }
    each_layer!(check);
}

#[tokio::test(start_paused = true)]
async fn layers_made_from_the_same_part_and_clones_of_their_services_share_it() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(2));
    let layer = RateLimitLayer::new(limiter.clone());
    let (first, second) = (layer.layer(Strict::new(&[OK])), layer.layer(Strict::new(&[OK])));
    text(first.clone().oneshot(request()).await.unwrap()).await;
    text(second.oneshot(request()).await.unwrap()).await;
    let mut impatient = request();
    let call = Call::new("gpt-4o").with_max_wait(Duration::ZERO);
    impatient.extensions_mut().insert(call);
    assert!(matches!(first.oneshot(impatient).await, Err(Error::Refused { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_sent_again_over_a_service_that_is_ready_again() {
    let answers = [Answers::Status(503), Answers::Fails, Answers::Status(429), OK];
    for retries in [true, false] {
        let strict = Strict::new(&answers);
        let config = retry().without_strategies();
        let response = if retries {
            RetryLayer::new(Retry::new(config)).layer(strict.clone()).oneshot(request()).await.unwrap()
        } else {
            let whole = Tidegate::builder().retry(config).build();
            TidegateLayer::new(whole).layer(strict.clone()).oneshot(request()).await.unwrap()
        };
        assert_eq!((text(response).await.as_str(), strict.asked()), (ANSWER, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_the_callers_and_the_last_error_too() {
    let strict = Strict::new(&[Answers::Status(500)]);
    let response = TidegateLayer::new(whole()).layer(strict.clone()).oneshot(request()).await.unwrap();
    assert_eq!((response.status().as_u16(), strict.asked()), (500, 3));
    let strict = Strict::new(&[Answers::Fails]);
    let error = TidegateLayer::new(whole()).layer(strict.clone()).oneshot(request()).await.err().unwrap();
    assert!(matches!(error, Error::Exhausted { attempts: 3, reason: GiveUpReason::AttemptsExhausted, .. }), "{error}");
    assert!(error.upstream::<std::io::Error>().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_json_settles_what_it_says_it_used() {
    for whole_layer in [true, false] {
        let tidegate = whole();
        let limiter = if whole_layer { tidegate.limiter() } else { RateLimiter::new(limits()) };
        let strict = Strict::new(&[OK]);
        let response = if whole_layer {
            TidegateLayer::new(tidegate).layer(strict).oneshot(request()).await.unwrap()
        } else {
            RateLimitLayer::new(limiter.clone()).layer(strict).oneshot(request()).await.unwrap()
        };
        text(response).await;
        assert_eq!(left(&limiter), Some(985));
    }
}

const STREAM: [&str; 3] = [
    "data: {\"choices\":[{\"delta\":{\"content\":\"12345678\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
];

#[tokio::test(start_paused = true)]
async fn a_stream_is_settled_when_its_last_event_has_come() {
    let tidegate = whole();
    let strict = Strict::new(&[Answers::Pieces(&STREAM, "text/event-stream")]);
    let response = TidegateLayer::new(tidegate.clone()).layer(strict).oneshot(request()).await.unwrap();
    let reserved = left(&tidegate.limiter()).unwrap();
    assert!(reserved <= 900, "the ceiling on the output is set aside while it goes on: {reserved}");
    assert_eq!(text(response).await, STREAM.concat());
    let used = 1000 - left(&tidegate.limiter()).unwrap();
    assert!((2..20).contains(&used), "as estimated, and two tokens of output: {used}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_came_whole_at_once_has_ended_well_though_its_reader_leaves() {
    const WHOLE: &[&str] = &["data: {\"choices\":[{\"delta\":{\"content\":\"12345678\"}}]}\n\ndata: [DONE]\n\n"];
    let breaker = CircuitBreaker::new(BreakerConfig::default().with_half_open_max_calls(1));
    breaker.force_half_open();
    let strict = Strict::new(&[Answers::Pieces(WHOLE, "text/event-stream")]);
    let layer = CircuitBreakerLayer::new(breaker.clone());
    let mut response = layer.layer(strict).oneshot(request()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_is_charged_with_what_went_by() {
    let tidegate = whole();
    let strict = Strict::new(&[Answers::Pieces(&STREAM, "text/event-stream")]);
    let mut response = TidegateLayer::new(tidegate.clone()).layer(strict).oneshot(request()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    let used = 1000 - left(&tidegate.limiter()).unwrap();
    assert!((3..20).contains(&used), "{used}");
}

#[tokio::test(start_paused = true)]
async fn an_error_before_the_first_event_is_retried_and_one_after_it_goes_through() {
    const IN_BAND: &[&str] = &["data: {\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"code\":null}}\n\n"];
    let strict = Strict::new(&[
        Answers::Pieces(IN_BAND, "text/event-stream"),
        Answers::Broken(&[]),
        Answers::Pieces(&STREAM, "text/event-stream"),
    ]);
    let response = TidegateLayer::new(whole()).layer(strict.clone()).oneshot(request()).await.unwrap();
    assert_eq!((text(response).await, strict.asked()), (STREAM.concat(), 3));

    let strict = Strict::new(&[Answers::Broken(&["data: {\"choices\":[{\"delta\":{\"content\":\"1\"}}]}\n\n"])]);
    let response = TidegateLayer::new(whole()).layer(strict.clone()).oneshot(request()).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(strict.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_open_the_breaker() {
    let breaker = CircuitBreaker::new(BreakerConfig::default().with_failure_threshold(2));
    let broken = Answers::Broken(&["data: {\"choices\":[{\"delta\":{\"content\":\"1\"}}]}\n\n"]);
    let strict = Strict::new(&[broken]);
    for _ in 0..2 {
        let layer = CircuitBreakerLayer::new(breaker.clone());
        let response = layer.layer(strict.clone()).oneshot(request()).await.unwrap();
        assert_eq!(breaker.state(), BreakerState::Closed);
        response.into_body().collect().await.unwrap_err();
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    let refused = CircuitBreakerLayer::new(breaker).layer(strict.clone()).oneshot(request()).await;
    assert!(matches!(refused, Err(Error::CircuitOpen { .. })));
    assert_eq!(strict.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_turn_and_is_dropped_was_never_sent() {
    let tidegate = Tidegate::builder().limit(RateLimitConfig::default().with_requests_per_minute(1)).build();
    let strict = Strict::new(&[OK]);
    let service = TidegateLayer::new(tidegate).layer(strict.clone());
    text(service.clone().oneshot(request()).await.unwrap()).await;
    assert!(timeout(Duration::from_secs(1), service.oneshot(request())).await.is_err());
    assert_eq!(strict.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn attempts_and_calls_end_at_their_timeouts() {
    let config = retry().with_attempt_timeout(Duration::from_secs(2)).with_total_timeout(Duration::from_secs(5));
    for retries_only in [true, false] {
        let strict = Strict::new(&[Answers::Hang]);
        let started = Instant::now();
        let result = if retries_only {
            RetryLayer::new(Retry::new(config.clone())).layer(strict.clone()).oneshot(request()).await
        } else {
            let tidegate = Tidegate::builder().retry(config.clone()).build();
            TidegateLayer::new(tidegate).layer(strict.clone()).oneshot(request()).await
        };
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        let error = result.err().unwrap();
        assert!(matches!(error, Error::Timeout { attempts: 3, .. }), "{error}");
        assert_eq!(error.upstream::<Fault>().unwrap().kind, FaultKind::Timeout, "the last attempt before, too");
        assert!(strict.asked() == 3 && strict.is_idle());
    }
}

#[tokio::test(start_paused = true)]
async fn parts_stacked_by_hand_work_too() {
    let strict = Strict::new(&[Answers::Status(503), OK]);
    let limiter = RateLimiter::new(limits());
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Retry::new(retry().without_strategies())))
        .layer(RateLimitLayer::new(limiter.clone()))
        .layer(CircuitBreakerLayer::new(CircuitBreaker::new(BreakerConfig::default())))
        .service(strict.clone());
    assert_eq!(text(service.oneshot(request()).await.unwrap()).await, ANSWER);
    assert_eq!((strict.asked(), left(&limiter)), (2, Some(985)));
}
