//! Overhead around an operation that does nothing: limits, retry and breaker together, beside the crates that programs put
//! together for it, and beside nothing; each layer around a service that answers at once. Time, and allocations.
//!
//! `cargo run --release -p tidegate-bench --bin around`

use std::convert::Infallible;
use std::future::Ready;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use failsafe::futures::CircuitBreaker as _;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tidegate::{
    BreakerConfig, Call, CircuitBreaker, CircuitBreakerLayer, Fault, RateLimitConfig, RateLimitLayer, RateLimiter,
    Retry, RetryConfig, RetryLayer, Tidegate, TidegateLayer, Usage,
};
use tower::retry::{Policy, Retry as TowerRetry};
use tower::{Layer, Service, ServiceExt, service_fn};

const ROUNDS: usize = 15;
const PER_ROUND: u32 = 100_000;
const COUNTED: u32 = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:<66} {:>8} {:>8} {:>12}", "", "best ns", "median", "allocations");
    nothing().await;
    all_of_it().await;
    parts_by_hand().await;
    rivals().await;
    layers().await;
}

/// Times `$act`, an expression that is done and done again.
macro_rules! row {
    ($name:expr, $act:expr) => {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let started = Instant::now();
            for _ in 0..PER_ROUND {
                black_box($act);
            }
            times.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(PER_ROUND));
        }
        times.sort_by(f64::total_cmp);
        let counted = count(async {
            for _ in 0..COUNTED {
                black_box($act);
            }
        });
        let allocations = counted as f64 / f64::from(COUNTED);
        println!("{:<66} {:>8.0} {:>8.0} {:>12.1}", $name, times[0], times[ROUNDS / 2], allocations);
    };
}

/// Allocations of what never waits.
fn count(act: impl Future<Output = ()>) -> u64 {
    let mut act = pin!(act);
    let counted = allocation_counter::measure(|| {
        assert!(act.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready(), "nothing here waits");
    });
    counted.count_total
}

async fn operation() -> Result<(), Fault> {
    black_box(Ok(()))
}

fn limits() -> RateLimitConfig {
    RateLimitConfig::default().with_requests_per_minute(1_000_000_000).with_tokens_per_minute(1_000_000_000_000)
}

fn call() -> Call {
    Call::new("gpt-4o").with_user("anna").with_organization("acme").with_tokens(250, 200)
}

async fn nothing() {
    row!("no protection at all", operation().await.is_ok());
}

async fn all_of_it() {
    let (tidegate, made_once) = (Tidegate::builder().limit(limits()).learn_limits(false).build(), call());
    row!("tidegate: requests and tokens reserved and settled, retry, breaker", execute(&tidegate, &made_once).await);
    row!("  the same, and its call made each time", execute(&tidegate, &call()).await);
    row!("  making the call", call());
}

async fn execute(tidegate: &Tidegate, call: &Call) -> bool {
    let done = tidegate.execute(call, |attempt| async move {
        attempt.used(Usage::new(240, 90));
        operation().await
    });
    done.await.is_ok()
}

async fn parts_by_hand() {
    let (limiter, retry) = (RateLimiter::new(limits()), Retry::new(RetryConfig::default()));
    let (breaker, call) = (CircuitBreaker::new(BreakerConfig::default()), call());
    row!("  its limiter alone: reserve, sent, settle", {
        let reserved = limiter.reserve(&call).await;
        if let Ok(mut reservation) = reserved {
            reservation.sent();
            reservation.settle(Usage::new(240, 90));
        }
    });
    row!("  its retry alone", retry.execute(&call, operation).await.is_ok());
    row!("  its breaker alone", breaker.execute(&call, operation).await.is_ok());
}

/// Three attempts; no delay, no budget, as nothing fails here.
#[derive(Clone)]
struct Thrice(u32);

impl Policy<(), (), Fault> for Thrice {
    type Future = Ready<()>;

    fn retry(&mut self, (): &mut (), result: &mut Result<(), Fault>) -> Option<Ready<()>> {
        (result.is_err() && self.0 > 1).then(|| {
            self.0 -= 1;
            std::future::ready(())
        })
    }

    fn clone_request(&mut self, (): &()) -> Option<()> {
        Some(())
    }
}

async fn rivals() {
    let most = NonZeroU32::MAX;
    let requests = DefaultDirectRateLimiter::direct(Quota::per_minute(most));
    let tokens = DefaultKeyedRateLimiter::<Arc<str>>::keyed(Quota::per_minute(most));
    let user: Arc<str> = "acme/anna/gpt-4o".into();
    let cost = NonZeroU32::new(450).unwrap_or(NonZeroU32::MIN);
    row!("  governor alone: a request, and tokens of a key (neither settled)", {
        let _ = black_box(requests.check());
        let _ = black_box(tokens.check_key_n(&user, cost));
    });
    let service = tower::service_fn(|()| operation());
    let mut retried = TowerRetry::new(Thrice(3), service);
    row!("  tower::retry alone", {
        let ready = ServiceExt::<()>::ready(&mut retried).await;
        match ready {
            Ok(service) => service.call(()).await.is_ok(),
            Err(_) => false,
        }
    });
    let breaker = failsafe::Config::new().build();
    row!("  failsafe alone", breaker.call(operation()).await.is_ok());
    row!("governor + tower::retry + failsafe", {
        let _ = black_box(requests.check());
        let _ = black_box(tokens.check_key_n(&user, cost));
        let (breaker, retried) = (&breaker, &mut retried);
        let protected = async move {
            match ServiceExt::<()>::ready(retried).await {
                Ok(service) => breaker.call(service.call(())).await.map_err(|_| ()),
                Err(_) => Err(()),
            }
        };
        protected.await.is_ok()
    });
}

/// Around a service whose reply tells its use, read to its end; each request with a call of its own.
async fn layers() {
    let service = service_fn(|_: Request<Full<Bytes>>| async {
        let said = br#"{"usage": {"prompt_tokens": 240, "completion_tokens": 90}}"#;
        Ok::<_, Infallible>(Response::new(Full::from(Bytes::from_static(said))))
    });
    let tidegate = Tidegate::builder().limit(limits()).learn_limits(false).build();
    let mut whole = TidegateLayer::new(tidegate).layer(service);
    let mut limited = RateLimitLayer::new(RateLimiter::new(limits())).layer(service);
    let mut retried = RetryLayer::new(Retry::new(RetryConfig::default())).layer(service);
    let mut guarded = CircuitBreakerLayer::new(CircuitBreaker::new(BreakerConfig::default())).layer(service);
    let mut bare = service;
    row!("a service that answers at once, under no layer", asked(&mut bare).await);
    row!("  under TidegateLayer", asked(&mut whole).await);
    row!("  under RateLimitLayer", asked(&mut limited).await);
    row!("  under RetryLayer", asked(&mut retried).await);
    row!("  under CircuitBreakerLayer", asked(&mut guarded).await);
}

async fn asked<S, B>(service: &mut S) -> bool
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut request = Request::new(Full::default());
    *request.uri_mut() = http::Uri::from_static("/v1/chat/completions");
    request.extensions_mut().insert(call());
    let Ok(ready) = ServiceExt::ready(service).await else { return false };
    let Ok(reply) = ready.call(request).await else { return false };
    let mut body = reply.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        black_box(&frame);
    }
    true
}
