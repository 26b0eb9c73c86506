//! Rules of the program's own, where all is decided together.

use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use tidegate::{BreakerConfig, Call, Error, Fault, GiveUpReason, Retry, RetryConfig, RetryStrategy, Tidegate};
use tokio::time::Instant;

/// However slow the machine is: a lock that is never let go of is found out.
const LONG: Duration = Duration::from_secs(60);

fn call() -> Call {
    Call::new("gpt-4o").with_id("test")
}

/// Attempts made of a call that fails each time, and how it ended.
async fn fails(gate: &Tidegate, call: &Call) -> (u32, Error) {
    let mut asked = 0;
    let result = gate.execute(call, |_| {
        asked += 1;
        async { Err::<(), _>(Fault::of_status(500)) }
    });
    let error = result.await.unwrap_err();
    (asked, error)
}

/// Looks at the gate that asks it before it says anything.
#[derive(Debug)]
struct Looks(Arc<OnceLock<Tidegate>>);

impl RetryStrategy for Looks {
    fn should_retry(&self, _: &Fault, attempt: u32) -> bool {
        let gate = self.0.get().unwrap();
        gate.limiter().info().requests_in_last_minute == 0 && attempt < 3
    }

    fn delay(&self, _: u32) -> Duration {
        let _seen = self.0.get().unwrap().limiter().info();
        Duration::ZERO
    }
}

async fn attempts_judged_by_one_that_looks() -> u32 {
    let place = Arc::new(OnceLock::new());
    let gate = Tidegate::builder().strategy("temporary_error", Looks(place.clone())).build();
    place.set(gate.clone()).unwrap();
    fails(&gate, &call()).await.0
}

#[test]
fn a_strategy_may_use_the_very_gate_that_asks_it() {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        done.send(runtime.block_on(attempts_judged_by_one_that_looks())).unwrap();
    });
    assert_eq!(is_done.recv_timeout(LONG), Ok(3));
}

/// Retries after the same delay each time.
#[derive(Debug)]
struct Waits {
    most: u32,
    delay: Duration,
}

impl RetryStrategy for Waits {
    fn should_retry(&self, _: &Fault, attempt: u32) -> bool {
        attempt < self.most
    }

    fn delay(&self, _: u32) -> Duration {
        self.delay
    }
}

#[tokio::test(start_paused = true)]
async fn a_strategys_delay_is_kept_though_the_configured_jitter_would_fit_another_in() {
    for (max_wait, attempts) in [(30, 1), (60, 2), (100, 3)] {
        let gate = Tidegate::builder()
            .strategy("temporary_error", Waits { most: 9, delay: Duration::from_secs(45) })
            .breaker(BreakerConfig::default().with_failure_threshold(9))
            .build();
        let started = Instant::now();
        let (asked, error) = fails(&gate, &call().with_max_wait(Duration::from_secs(max_wait))).await;
        assert_eq!(asked, attempts, "{error}");
        assert_eq!(started.elapsed(), Duration::from_secs(45 * u64::from(attempts - 1)));
        assert!(matches!(error, Error::Exhausted { reason: GiveUpReason::DeadlineExceeded, .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_strategy_that_stops_after_some_attempts_has_exhausted_them() {
    for most in [1, 3] {
        let gate = Tidegate::builder().strategy("temporary_error", Waits { most, delay: Duration::ZERO }).build();
        let retry = Retry::new(RetryConfig::default());
        let retry = retry.with_strategy("temporary_error", Waits { most, delay: Duration::ZERO });
        let (asked, by_all) = fails(&gate, &call()).await;
        assert_eq!(asked, most);
        let by_retry = retry.execute(&call(), || async { Err::<(), _>(Fault::of_status(500)) }).await.unwrap_err();
        for error in [by_all, by_retry] {
            match error {
                Error::Upstream { .. } => assert_eq!(most, 1, "it was not retried"),
                Error::Exhausted { attempts, reason, .. } => {
                    assert_eq!((attempts, reason), (3, GiveUpReason::AttemptsExhausted));
                }
                other => panic!("{other}"),
            }
        }
    }
}
