//! What an uncontended call costs in memory: nothing.

use futures_util::FutureExt;
use tidegate::{BreakerConfig, Call, CircuitBreaker, Fault, RateLimitConfig, RateLimiter, Tidegate, Usage};

const CALLS: u64 = 1000;

fn limits() -> RateLimitConfig {
    RateLimitConfig::default().with_requests_per_minute(1_000_000).with_tokens_per_minute(1_000_000_000)
}

fn call() -> Call {
    Call::new("gpt-4o").with_user("anna").with_organization("acme").with_tokens(100, 50)
}

/// Allocations of `act`, done again and again, once it has been done a few times.
fn allocations(mut act: impl FnMut()) -> u64 {
    (0..10).for_each(|_| act());
    allocation_counter::measure(|| (0..CALLS).for_each(|_| act())).count_total
}

#[tokio::test]
async fn the_admission_of_a_call_that_need_not_wait_allocates_nothing() {
    let (limiter, call) = (RateLimiter::new(limits()), call());
    let allocated = allocations(|| {
        let mut reservation = limiter.reserve(&call).now_or_never().unwrap().unwrap();
        reservation.sent();
        reservation.settle(Usage::new(100, 20));
    });
    assert_eq!(allocated, 0, "in {CALLS} calls");
}

#[tokio::test]
async fn limits_retry_and_breaker_around_an_operation_that_succeeds_allocate_nothing() {
    let (tidegate, call) = (Tidegate::builder().limit(limits()).learn_limits(false).build(), call());
    let allocated = allocations(|| {
        let done = tidegate.execute(&call, |attempt| async move {
            attempt.used(Usage::new(100, 20));
            Ok::<_, Fault>(())
        });
        done.now_or_never().unwrap().unwrap();
    });
    assert_eq!(allocated, 0, "in {CALLS} calls");
}

#[tokio::test]
async fn a_part_to_which_nobody_listens_is_small() {
    let breaker = allocation_counter::measure(|| {
        drop(CircuitBreaker::new(BreakerConfig::default()));
    });
    let limiter = allocation_counter::measure(|| {
        drop(RateLimiter::new(limits()));
    });
    let most = 16 << 10;
    assert!(breaker.bytes_max < most && limiter.bytes_max < most, "{breaker:?}, {limiter:?}");
}
