//! What a caller is told of a call that did not end well.

use std::error::Error as _;
use std::time::Duration;

use tidegate::{BreakerConfig, Call, Error, Fault, FaultKind, Jitter, Retry, RetryConfig, Tidegate};

fn config() -> RetryConfig {
    RetryConfig::default()
        .with_max_attempts(3)
        .with_delays(Duration::from_secs(1), Duration::from_secs(9))
        .with_jitter(Jitter::None)
}

fn fault(status: u16) -> Fault {
    let mut fault = Fault::of_status(status);
    fault.summary = "what the service said".into();
    fault
}

/// As a program prints it that prints causes.
fn whole_story(error: &Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

#[tokio::test(start_paused = true)]
async fn an_error_says_its_own_part_and_its_source_the_rest() {
    let retry = Retry::new(config());
    let refused = retry.execute(&Call::new("gpt-4o"), || async { Err::<(), _>(fault(400)) }).await.unwrap_err();
    assert_eq!(whole_story(&refused), "failed: invalid_request (400): what the service said");
    let exhausted = retry.execute(&Call::new("gpt-4o"), || async { Err::<(), _>(fault(500)) }).await.unwrap_err();
    assert_eq!(whole_story(&exhausted), "gave up after 3 attempts; last: temporary_error (500): what the service said");
}

/// Fails twice, a second apart; the third attempt, after two more, hangs.
struct FailsThenHangs(u32);

impl FailsThenHangs {
    fn attempt(&mut self) -> impl Future<Output = Result<(), Fault>> + use<> {
        self.0 += 1;
        let hangs = self.0 == 3;
        async move { if hangs { std::future::pending().await } else { Err(fault(500)) } }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_up_tells_the_last_error_before() {
    let call = Call::new("gpt-4o").with_timeout(Duration::from_secs(5));
    let mut operation = FailsThenHangs(0);
    let whole = Tidegate::builder().retry(config()).build();
    let by_all = whole.execute(&call, |_| operation.attempt()).await.unwrap_err();
    let mut operation = FailsThenHangs(0);
    let by_retry = Retry::new(config()).execute(&call, || operation.attempt()).await.unwrap_err();
    for error in [by_all, by_retry] {
        assert!(matches!(error, Error::Timeout { attempts: 3, may_be_billed: true, .. }), "{error}");
        assert_eq!(error.upstream::<Fault>().unwrap().kind, FaultKind::Server, "{error}");
        let told = "not done within 5s, attempts: 3; the last attempt may have been billed: what the service said";
        assert_eq!(whole_story(&error), told);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_an_attempt_tells_what_came_of_that() {
    let hangs = config().with_attempt_timeout(Duration::from_secs(1));
    let gate = Tidegate::builder().retry(hangs).breaker(BreakerConfig::default().with_failure_threshold(1)).build();
    let call = Call::new("gpt-4o");
    let open = gate.execute(&call, |_| std::future::pending::<Result<(), Fault>>()).await.unwrap_err();
    assert!(matches!(open, Error::CircuitOpen { .. }), "{open}");
    assert!(open.may_be_billed());
    assert_eq!(open.earlier().map(|earlier| earlier.attempts), Some(1));
    assert_eq!(open.upstream::<Fault>().map(|fault| fault.kind), Some(FaultKind::Timeout));
    assert!(open.to_string().contains("attempts before: 1, which may have been billed"), "{open}");

    let unsent = gate.execute(&call, |_| async { Ok::<_, Fault>(()) }).await.unwrap_err();
    assert!(unsent.earlier().is_none() && !unsent.may_be_billed(), "{unsent}");
}
