//! Limits, retries and breaker together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate::{
    BreakerConfig, BreakerState, Call, Error, Event, Fault, FaultKind, GiveUpReason, Jitter, RateLimitConfig,
    RetryConfig, RetryStrategy, Tidegate, Usage,
};
use tokio::time::{Instant, advance, sleep, timeout};

fn retry() -> RetryConfig {
    RetryConfig::default().with_delays(Duration::from_millis(100), Duration::from_secs(1)).with_jitter(Jitter::None)
}

fn gate(limit: RateLimitConfig) -> Tidegate {
    let breaker = BreakerConfig::default().with_failure_threshold(3).with_recovery_timeout(Duration::from_secs(1));
    Tidegate::builder().limit(limit).retry(retry()).breaker(breaker).learn_limits(false).build()
}

fn call() -> Call {
    Call::new("gpt-4o").with_id("test").with_tokens(100, 100)
}

fn left(gate: &Tidegate) -> Option<u64> {
    gate.limiter().check(&call()).remaining_tokens
}

async fn run(gate: &Tidegate, statuses: &[u16]) -> (Result<u32, Error>, usize) {
    let mut asked = 0;
    let mut statuses = statuses.iter();
    let result = gate
        .execute(&call(), |attempt| {
            asked += 1;
            let status = statuses.next().copied();
            async move {
                attempt.used(Usage::new(100, 20));
                status.map_or(Ok(attempt.number()), |status| Err(Fault::of_status(status)))
            }
        })
        .await;
    (result, asked)
}

#[tokio::test(start_paused = true)]
async fn what_was_used_is_charged_however_many_attempts_it_took() {
    let gate = gate(RateLimitConfig::default().with_tokens_per_minute(1000).with_requests_per_minute(10));
    let (result, asked) = run(&gate, &[429, 500]).await;
    assert_eq!((result.unwrap(), asked), (3, 3));
    assert_eq!(left(&gate), Some(880));
    assert_eq!(gate.limiter().info().requests_in_last_minute, 1, "an own limit counts a call once");
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_a_limit_wait_and_all_are_served() {
    let gate = gate(RateLimitConfig::default().with_requests_per_minute(60).with_burst_allowance(1));
    let started = Instant::now();
    let calls: Vec<_> =
        (0..10).map(|_| gate.clone()).map(|gate| tokio::spawn(async move { run(&gate, &[]).await.0 })).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    // Each waits for those before it, and for nobody's wait twice.
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_opens_the_breaker_and_nothing_more_is_sent() {
    let gate = gate(RateLimitConfig::default());
    let (result, asked) = run(&gate, &[500; 9]).await;
    assert_eq!(asked, 3);
    assert!(matches!(result, Err(Error::Exhausted { reason: GiveUpReason::AttemptsExhausted, .. })), "{result:?}");
    assert_eq!(gate.breaker_state(&call()), BreakerState::Open);
    let (result, asked) = run(&gate, &[]).await;
    assert_eq!(asked, 0);
    assert!(matches!(result, Err(Error::CircuitOpen { .. })), "{result:?}");
    assert_eq!(left(&gate), None);
    advance(Duration::from_secs(1)).await;
    for _ in 0..3 {
        run(&gate, &[]).await.0.unwrap();
    }
    assert_eq!(gate.breaker_state(&call()), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_of_one_model_leaves_the_others_alone() {
    let gate = gate(RateLimitConfig::default());
    run(&gate, &[]).await.0.unwrap();
    assert!(gate.force_breaker(&call(), BreakerState::ForcedOpen));
    assert!(run(&gate, &[]).await.0.is_err());
    assert!(!gate.force_breaker(&Call::new("o1"), BreakerState::ForcedOpen), "no such calls were seen");
    let other = gate.execute(&Call::new("o1"), |_| async { Ok::<_, Fault>(()) }).await;
    other.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bulk_work_may_wait_for_the_breaker_to_close() {
    let gate = gate(RateLimitConfig::default());
    run(&gate, &[500; 9]).await.0.unwrap_err();
    let patient = call().waiting_while_open();
    gate.execute(&patient, |_| async { Ok::<_, Fault>(()) }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_it_cancels_the_attempt_and_charges_what_is_known_to_have_been_used() {
    let gate = gate(RateLimitConfig::default().with_tokens_per_minute(1000));
    let under_way = Arc::new(());
    let held = under_way.clone();
    let call = call();
    let work = gate.execute(&call, |attempt| {
        let held = held.clone();
        async move {
            let _held = held;
            attempt.used(Usage::new(100, 7));
            std::future::pending::<Result<(), Fault>>().await
        }
    });
    assert!(timeout(Duration::from_secs(1), work).await.is_err());
    drop(held);
    assert_eq!(Arc::strong_count(&under_way), 1);
    assert_eq!(left(&gate), Some(893));
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_an_attempt_after_its_end_is_not_charged_to_the_next() {
    let gate = gate(RateLimitConfig::default().with_tokens_per_minute(1000));
    let mut first = None;
    let call = call();
    let result = gate.execute(&call, |attempt| {
        let failed = (attempt.number() == 1).then_some(Fault::of_status(503));
        attempt.used(Usage::new(100, 7));
        let late = first.get_or_insert(attempt);
        late.used(Usage::new(400, 400));
        async move { failed.map_or(Ok(()), Err) }
    });
    result.await.unwrap();
    assert_eq!(left(&gate), Some(893));
}

#[tokio::test(start_paused = true)]
async fn dropped_while_it_waits_it_has_taken_nothing() {
    let gate = gate(RateLimitConfig::default().with_tokens_per_minute(300));
    run(&gate, &[]).await.0.unwrap();
    let asked = AtomicU32::new(0);
    let call = call();
    let work = gate.execute(&call, |_| async {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Fault>(())
    });
    assert!(timeout(Duration::from_secs(1), work).await.is_err());
    assert_eq!((asked.load(Ordering::Relaxed), left(&gate)), (0, Some(180)));
}

#[tokio::test(start_paused = true)]
async fn the_whole_call_ends_at_its_timeout() {
    let gate = gate(RateLimitConfig::default());
    let call = call().with_timeout(Duration::from_secs(3));
    let started = Instant::now();
    let result = gate.execute(&call, |_| std::future::pending::<Result<(), Fault>>()).await;
    assert!(matches!(result, Err(Error::Timeout { attempts: 1, may_be_billed: true, .. })), "{result:?}");
    assert_eq!(started.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_over_its_time_is_cancelled_and_tried_again() {
    let gate = Tidegate::builder().retry(retry().with_attempt_timeout(Duration::from_secs(1))).build();
    let result = gate
        .execute(&call(), |attempt| async move {
            sleep(Duration::from_secs(if attempt.number() < 3 { 9 } else { 0 })).await;
            Ok::<_, Fault>(attempt.number())
        })
        .await;
    assert_eq!(result.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn while_paused_nothing_new_is_let_through() {
    let gate = gate(RateLimitConfig::default());
    gate.pause("maintenance");
    let error = run(&gate, &[]).await.0.unwrap_err();
    assert!(matches!(&error, Error::Cancelled { reason, .. } if &**reason == "maintenance"), "{error}");
    gate.resume();
    run(&gate, &[]).await.0.unwrap();
}

#[derive(Debug)]
struct Panics;

impl RetryStrategy for Panics {
    fn should_retry(&self, _: &Fault, _: u32) -> bool {
        panic!("of no use")
    }

    fn delay(&self, _: u32) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_whole_story_and_a_strategy_that_panics_is_part_of_it() {
    let gate = Tidegate::builder().strategy("temporary_error", Panics).build();
    let mut events = gate.subscribe();
    run(&gate, &[500]).await.0.unwrap_err();
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push(match &*event {
            Event::Granted { .. } => "granted",
            Event::AttemptStart { .. } => "attempt_start",
            Event::UsageRecorded { .. } => "usage_recorded",
            Event::Settled { .. } => "settled",
            Event::CallFailure { kind: FaultKind::Server, failure_count: 1, .. } => "call_failure",
            Event::AttemptFailed { .. } => "attempt_failed",
            Event::CallbackError { .. } => "callback_error",
            Event::OperationFailed { reason: GiveUpReason::NotRetryable, .. } => "operation_failed",
            other => panic!("{other:?}"),
        });
    }
    told.sort_unstable();
    let expected = [
        "attempt_failed",
        "attempt_start",
        "call_failure",
        "callback_error",
        "granted",
        "operation_failed",
        "settled",
        "usage_recorded",
    ];
    assert_eq!(told, expected);
}
