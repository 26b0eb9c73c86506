//! Retrying by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate::{
    Call, CircuitBreaker, Error, Event, Fault, FaultKind, GiveUpReason, Jitter, Priority, Retry, RetryConfig,
    RetryStrategy, RetryStrategyConfig,
};
use tokio::time::{Instant, sleep};

fn config() -> RetryConfig {
    RetryConfig::default()
        .with_max_attempts(3)
        .with_delays(Duration::from_millis(100), Duration::from_secs(1))
        .with_jitter(Jitter::None)
}

fn call() -> Call {
    Call::new("gpt-3.5-turbo").with_id("test")
}

/// Fails with each status in turn, then succeeds. Counts how often it was asked.
async fn run(retry: &Retry, call: &Call, statuses: &[u16]) -> (Result<&'static str, Error>, usize) {
    let faults: Vec<_> = statuses.iter().map(|status| Fault::of_status(*status)).collect();
    run_faults(retry, call, faults).await
}

async fn run_faults(retry: &Retry, call: &Call, faults: Vec<Fault>) -> (Result<&'static str, Error>, usize) {
    let mut asked = 0;
    let mut faults = faults.into_iter();
    let result = retry
        .execute(call, || {
            asked += 1;
            let fault = faults.next();
            async move { fault.map_or(Ok("success"), Err) }
        })
        .await;
    (result, asked)
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_succeeds_is_run_once() {
    let (result, asked) = run(&Retry::new(config()), &call(), &[]).await;
    assert_eq!((result.unwrap(), asked), ("success", 1));
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_then_a_server_error_then_success_are_three_attempts() {
    let (result, asked) = run(&Retry::new(config()), &call(), &[429, 500]).await;
    assert_eq!((result.unwrap(), asked), ("success", 3));
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_is_not_retried() {
    let (result, asked) = run(&Retry::new(config()), &call(), &[400]).await;
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::Upstream { fault, .. } if fault.status == Some(400)), "{error:?}");
    assert_eq!(error.upstream::<Fault>().unwrap().kind, FaultKind::Invalid, "the operation's own error is there");
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_send_counts_as_an_attempt() {
    let started = Instant::now();
    let (result, asked) = run(&Retry::new(config()), &call(), &[500; 9]).await;
    assert_eq!(asked, 3);
    assert_eq!(started.elapsed(), Duration::from_millis(300), "100 and 200 ms, none after the last");
    let error = result.unwrap_err();
    assert!(error.to_string().starts_with("gave up after 3 attempts; last: temporary_error (500)"), "{error}");
    assert!(matches!(error, Error::Exhausted { attempts: 3, reason: GiveUpReason::AttemptsExhausted, .. }));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_billed_is_said() {
    let broken = Fault::new(FaultKind::Broken, "the reply broke off");
    let (result, _) = run_faults(&Retry::new(config()), &call(), vec![broken; 9]).await;
    let error = result.unwrap_err();
    assert!(error.may_be_billed() && error.to_string().contains("may have been billed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn no_delay_is_cut_short_of_what_the_server_asked_for() {
    let mut fault = Fault::of_status(503);
    fault.wait = Some(Duration::from_secs(20));
    let started = Instant::now();
    let retry = Retry::new(config().without_strategies());
    let (result, _) = run_faults(&retry, &call(), vec![fault]).await;
    result.unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(20) && waited <= Duration::from_secs(22), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_is_told_not_slept() {
    let mut fault = Fault::of_status(429);
    fault.wait = Some(Duration::from_secs(114 * 3600));
    let started = Instant::now();
    let (result, asked) = run_faults(&Retry::new(config()), &call(), vec![fault]).await;
    assert_eq!((started.elapsed(), asked), (Duration::ZERO, 1));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Exhausted { reason: GiveUpReason::DeadlineExceeded, .. }));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(114 * 3600)));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_after_the_longest_wait_that_a_call_wants() {
    let call = call().with_max_wait(Duration::from_millis(250));
    let (result, asked) = run(&Retry::new(config()), &call, &[500; 9]).await;
    assert!(matches!(result, Err(Error::Exhausted { reason: GiveUpReason::DeadlineExceeded, .. })));
    assert_eq!(asked, 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_over_its_time_is_cancelled_and_tried_again() {
    let retry = Retry::new(config().with_attempt_timeout(Duration::from_secs(1)));
    let under_way = Arc::new(());
    let mut asked = 0;
    let result = retry
        .execute(&call(), || {
            asked += 1;
            let (last, held) = (asked == 3, under_way.clone());
            async move {
                let _held = held;
                sleep(Duration::from_secs(if last { 0 } else { 9 })).await;
                Ok::<_, Fault>(last)
            }
        })
        .await;
    assert!(result.unwrap());
    assert_eq!((asked, Arc::strong_count(&under_way)), (3, 1), "none is left running");
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_cancels_whatever_is_under_way() {
    let retry = Retry::new(config());
    let under_way = Arc::new(());
    let call = call().with_timeout(Duration::from_secs(2));
    let started = Instant::now();
    let result = retry
        .execute(&call, || {
            let held = under_way.clone();
            async move {
                let _held = held;
                std::future::pending::<Result<(), Fault>>().await
            }
        })
        .await;
    assert_eq!(started.elapsed(), Duration::from_secs(2));
    assert!(matches!(result, Err(Error::Timeout { attempts: 1, .. })), "{result:?}");
    assert_eq!(Arc::strong_count(&under_way), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_retry_within_has_given_up_on_is_not_tried_again() {
    let (outer, inner) = (Retry::new(config()), Retry::new(config()));
    let asked = AtomicU32::new(0);
    let call = call();
    let result = outer
        .execute(&call, || {
            inner.execute(&call, || {
                asked.fetch_add(1, Ordering::Relaxed);
                async { Err::<(), _>(Fault::of_status(500)) }
            })
        })
        .await;
    assert_eq!(asked.into_inner(), 3, "not nine");
    assert!(matches!(result, Err(Error::Exhausted { attempts: 3, .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_within_is_not_asked_again() {
    let (retry, breaker) = (Retry::new(config()), CircuitBreaker::new(Default::default()));
    breaker.force_open();
    let mut asked = 0;
    let call = call();
    let result = retry
        .execute(&call, || {
            asked += 1;
            breaker.execute(&call, || async { Ok::<_, Fault>(()) })
        })
        .await;
    assert_eq!(asked, 1);
    assert!(matches!(result, Err(Error::CircuitOpen { .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn retries_keep_to_their_share_of_calls() {
    let retry = Retry::new(config().with_budget(0.0, 0));
    let mut events = retry.subscribe();
    let (result, asked) = run(&retry, &call(), &[500; 9]).await;
    assert_eq!(asked, 1);
    assert!(matches!(result, Err(Error::Exhausted { reason: GiveUpReason::BudgetExhausted, .. })), "{result:?}");
    let mut exhausted = 0;
    while let Ok(event) = events.try_recv() {
        exhausted += u32::from(*event == Event::RetryBudgetExhausted);
    }
    assert_eq!(exhausted, 1);
}

#[tokio::test(start_paused = true)]
async fn delays_grow_with_the_attempt_shrink_with_the_priority_and_are_bounded() {
    let retry = Retry::new(config());
    let fault = Fault::of_status(500);
    let of = |priority, attempt| retry.delay(&call().with_priority(priority), &fault, attempt);
    let millis = |millis| Some(Duration::from_millis(millis));
    assert_eq!([of(Priority::Normal, 1), of(Priority::Normal, 2)], [millis(100), millis(200)]);
    assert_eq!([of(Priority::High, 1), of(Priority::Low, 1)], [millis(50), millis(150)]);
    assert_eq!(of(Priority::Normal, 3), None, "there is no fourth attempt");
    retry.update_config(|config| config.max_attempts = 20);
    assert_eq!(of(Priority::Low, 12), millis(1000));
    assert!(retry.should_retry(&call(), &fault, 19) && !retry.should_retry(&call(), &fault, 20));
    assert!(!retry.should_retry(&call(), &Fault::of_status(401), 1));
}

#[tokio::test(start_paused = true)]
async fn a_configured_strategy_is_for_its_class_alone() {
    let strategy = RetryStrategyConfig::default().with_max_attempts(5);
    let retry = Retry::new(config().with_strategy("temporary_error", strategy));
    assert_eq!(run(&retry, &call(), &[500; 9]).await.1, 5);
    assert_eq!(run_faults(&retry, &call(), vec![Fault::new(FaultKind::Connect, ""); 9]).await.1, 3);
}

#[derive(Debug)]
struct Patient;

impl RetryStrategy for Patient {
    fn should_retry(&self, fault: &Fault, attempt: u32) -> bool {
        assert_ne!(fault.status, Some(418), "no teapots");
        attempt < 6
    }

    fn delay(&self, attempt: u32) -> Duration {
        Duration::from_secs(60) * attempt
    }
}

#[tokio::test(start_paused = true)]
async fn a_strategy_of_ones_own_decides_for_its_class() {
    let mut unbounded = config();
    unbounded.total_timeout = None;
    let retry = Retry::new(unbounded).with_strategy("temporary_error", Patient);
    let started = Instant::now();
    let (result, asked) = run(&retry, &call(), &[500; 5]).await;
    assert_eq!((result.unwrap(), asked), ("success", 6));
    assert_eq!(started.elapsed(), Duration::from_secs(60 * (1 + 2 + 3 + 4 + 5)));
}

#[tokio::test(start_paused = true)]
async fn a_strategy_that_panics_is_contained_and_told() {
    let retry = Retry::new(config()).with_strategy("invalid_request", Patient);
    let mut events = retry.subscribe();
    let (result, asked) = run(&retry, &call(), &[418]).await;
    assert!(matches!(result, Err(Error::Upstream { .. })), "{result:?}");
    assert_eq!(asked, 1);
    let mut told = 0;
    while let Ok(event) = events.try_recv() {
        told += u32::from(matches!(&*event, Event::CallbackError { callback: "retry_strategy", .. }));
    }
    assert_eq!(told, 1);
}

#[tokio::test(start_paused = true)]
async fn events_tell_of_each_attempt() {
    let retry = Retry::new(config());
    let mut events = retry.subscribe();
    let slow = || async {
        sleep(Duration::from_secs(2)).await;
        Err::<(), _>(Fault::of_status(500))
    };
    retry.update_config(|config| config.max_attempts = 2);
    retry.execute(&call(), slow).await.unwrap_err();
    run(&retry, &call(), &[]).await.0.unwrap();
    let (call, kind) = (|| Arc::<str>::from("test"), FaultKind::Server);
    let expected = [
        Event::ConfigUpdated,
        Event::AttemptStart { call: call(), attempt: 1 },
        Event::AttemptFailed { call: call(), whose: None, attempt: 1, kind },
        Event::RetryScheduled { call: call(), attempt: 1, delay: Duration::from_millis(100) },
        Event::AttemptStart { call: call(), attempt: 2 },
        Event::AttemptFailed { call: call(), whose: None, attempt: 2, kind },
        Event::OperationFailed { call: call(), attempts: 2, reason: GiveUpReason::AttemptsExhausted, kind },
        Event::AttemptStart { call: call(), attempt: 1 },
        Event::AttemptSuccess { call: call(), attempt: 1, duration: Duration::ZERO },
    ];
    for event in expected {
        assert_eq!(*events.try_recv().unwrap(), event);
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_callers_share_their_jitter() {
    let retry = Retry::new(config().with_jitter(Jitter::Full));
    let delays: Vec<_> = (0..20).map(|_| retry.clone().delay(&call(), &Fault::of_status(500), 1).unwrap()).collect();
    let mut distinct = delays.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 15, "{delays:?}");
}

#[tokio::test(start_paused = true)]
async fn a_strategy_given_to_a_clone_leaves_the_others_alone() {
    #[derive(Debug)]
    struct Never;
    impl RetryStrategy for Never {
        fn should_retry(&self, _: &Fault, _: u32) -> bool {
            false
        }
        fn delay(&self, _: u32) -> Duration {
            Duration::ZERO
        }
    }
    let retry = Retry::new(config());
    let strict = retry.clone().with_strategy("temporary_error", Never);
    assert_eq!(run(&strict, &call(), &[500; 9]).await.1, 1);
    assert_eq!(run(&retry, &call(), &[500; 9]).await.1, 3);
    retry.update_config(|config| config.max_attempts = 2);
    assert_eq!(strict.config().max_attempts, 2, "the rules are shared");
}

#[tokio::test(start_paused = true)]
async fn a_last_attempt_over_its_time_is_the_last_error_of_what_is_exhausted() {
    let retry = Retry::new(config().with_attempt_timeout(Duration::from_secs(1)));
    let hang = || std::future::pending::<Result<(), Fault>>();
    let error = retry.execute(&call(), hang).await.unwrap_err();
    assert!(matches!(error, Error::Exhausted { attempts: 3, reason: GiveUpReason::AttemptsExhausted, .. }), "{error}");
    assert_eq!(error.upstream::<Fault>().unwrap().kind, FaultKind::Timeout);
    assert!(error.may_be_billed() && error.upstream::<Fault>().unwrap().summary.contains("not done within 1s"));

    retry.update_config(|config| config.retryable_errors.clear());
    let error = retry.execute(&call(), hang).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { attempts: 1, .. }), "{error}");
}

#[test]
fn of_two_changes_at_once_neither_is_lost() {
    let retry = Retry::new(RetryConfig::default());
    let mut meanwhile = Some(retry.clone());
    retry.update_config(|config| {
        if let Some(other) = meanwhile.take() {
            other.update_config(|config| config.max_attempts = 7);
        }
        config.total_timeout = Some(Duration::from_secs(9));
    });
    let config = retry.config();
    assert_eq!((config.max_attempts, config.total_timeout), (7, Some(Duration::from_secs(9))));
}
