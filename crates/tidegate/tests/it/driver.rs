//! The driver wakes whom it must, when it must, and survives being dropped anywhere.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{Driver, Permit, RateLimitConfig, RateLimiter, Settled};
use tidegate_core::call::{Call, Priority, RequestType, Subject, WhenOpen};
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::{Cost, Usage};
use tidegate_core::event::Event;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::limit::{Algorithm, Dimension, Limit, Mode, Rates};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Reason;
use tidegate_core::time::Time;
use tokio::time::{Instant, timeout};

fn policy(dimension: Dimension, units: u64) -> Policy {
    let limit = Limit {
        name: "team".into(),
        per: Vec::new(),
        base: Rates { burst_allowance: NonZeroU64::new(units), ..Rates::default().with(dimension, units) },
        overrides: Vec::new(),
        algorithm: Some(Algorithm::TokenBucket),
        mode: Mode::Enforce,
    };
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: false, token_charge: TokenCharge::Input };
    Policy { limits: vec![limit], upstreams: vec![upstream], ..Policy::default() }
}

fn call() -> Call {
    Call {
        id: "call".into(),
        subject: Subject {
            account: "openai#1".into(),
            model: "gpt-4o".into(),
            key: None,
            organization: None,
            project: None,
            user: None,
            request_type: RequestType::Chat,
            tenant: "anonymous".into(),
        },
        cost: Cost { input_tokens: 10, ..Cost::default() },
        priority: Priority::Normal,
        start_by: Time::NEVER,
        end_by: Time::NEVER,
        when_open: WhenOpen::Refuse,
        body_bytes: 10,
        own_charged: false,
    }
}

fn success() -> Outcome {
    Outcome { usage: Some(Usage { input_tokens: 10, output_tokens: 5 }), ..Outcome::of(Ending::Success) }
}

fn remaining(driver: &Driver) -> i64 {
    driver.with(|gate, now| gate.status(now).limits[0].meters[0].remaining)
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_when_its_cost_fits() {
    let driver = Driver::new(policy(Dimension::RequestsPerMinute, 60), 1);
    let held: Vec<Permit> = {
        let mut held = Vec::new();
        for _ in 0..60 {
            held.push(driver.admit(call()).await.unwrap());
        }
        held
    };
    let started = Instant::now();
    let permit = driver.admit(call()).await.unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_millis(1010), "{waited:?}");
    assert!(permit.queued_for() >= Duration::from_secs(1));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_place_given_back_wakes_exactly_one() {
    let driver = Driver::new(policy(Dimension::MaxInFlight, 1), 1);
    let first = driver.admit(call()).await.unwrap();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..3 {
        let (driver, done) = (driver.clone(), done.clone());
        tokio::spawn(async move {
            let permit = driver.admit(call()).await.unwrap();
            done.send((number, permit)).unwrap();
        });
    }
    tokio::task::yield_now().await;
    assert!(finished.try_recv().is_err());
    assert!(matches!(first.settle(success()), Settled::Done));
    let (_, second) = finished.recv().await.unwrap();
    assert!(finished.try_recv().is_err());
    drop(second);
    finished.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiter_withdraws_it_and_dropping_a_permit_unsent_gives_all_back() {
    let driver = Driver::new(policy(Dimension::TokensPerMinute, 15), 1);
    let first = driver.admit(call()).await.unwrap();
    {
        let waiting = driver.admit(call());
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_micros(10), waiting.as_mut()).await.is_err());
        assert_eq!(driver.with(|gate, _| gate.waiting()), 1);
    }
    assert_eq!(driver.with(|gate, _| gate.waiting()), 0);
    drop(first);
    assert_eq!(remaining(&driver), 15);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_permit_after_sending_charges_what_was_seen_else_the_whole() {
    let driver = Driver::new(policy(Dimension::TokensPerMinute, 1000), 1);
    let mut permit = driver.admit(call()).await.unwrap();
    permit.sent();
    permit.seen(Usage { input_tokens: 10, output_tokens: 2 });
    drop(permit);
    assert_eq!(remaining(&driver), 988);
    let mut permit = driver.admit(call()).await.unwrap();
    permit.sent();
    drop(permit);
    assert!(remaining(&driver) < 988 - 10, "input and the output that such calls write");
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_granted_again_after_its_delay() {
    let driver = Driver::new(Policy::default(), 1);
    let permit = driver.admit(call()).await.unwrap();
    let mut fault = Fault::new(FaultKind::Server, "503").with_status(503);
    fault.wait = Some(Duration::from_secs(7));
    let started = Instant::now();
    let Settled::Retry(waiting) = permit.settle(Outcome::of(Ending::Failed(fault))) else { panic!("retryable") };
    let permit = waiting.await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(7));
    assert_eq!(permit.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_reaches_the_caller_at_its_deadline() {
    let driver = Driver::new(policy(Dimension::MaxInFlight, 1), 1);
    let _first = driver.admit(call()).await.unwrap();
    let mut hurried = call();
    hurried.start_by = driver.now() + Duration::from_secs(3);
    let started = Instant::now();
    let refusal = driver.admit(hurried).await.unwrap_err();
    assert!(matches!(refusal.reason, Reason::Limit(_)));
    assert!(started.elapsed() >= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn random_drops_at_any_point_leak_nothing() {
    let driver = Driver::new(policy(Dimension::MaxInFlight, 5), 1);
    let mut tasks = Vec::new();
    for number in 0..500_u64 {
        let driver = driver.clone();
        tasks.push(tokio::spawn(async move {
            let patience = Duration::from_millis(number * 7 % 301);
            let work = async {
                let mut permit = driver.admit(call()).await.unwrap();
                permit.sent();
                tokio::time::sleep(Duration::from_millis(number % 13)).await;
                if number % 3 == 0 {
                    let fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
                    if let Settled::Retry(waiting) = permit.settle(Outcome::of(Ending::Failed(fault))) {
                        drop(waiting.await);
                    }
                } else if let Settled::Retry(_) = permit.settle(success()) {
                    unreachable!("a success is not retried");
                }
            };
            let _ = tokio::time::timeout(patience, work).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(driver.with(|gate, _| (gate.waiting(), gate.in_flight())), (0, 0));
    assert_eq!(remaining(&driver), 5);
}

#[tokio::test(start_paused = true)]
async fn events_reach_a_subscriber_and_a_slow_one_slows_nobody() {
    let driver = Driver::new(Policy::default(), 1);
    let mut events = driver.subscribe();
    for _ in 0..10_000 {
        let permit = driver.admit(call()).await.unwrap();
        assert!(matches!(permit.settle(success()), Settled::Done));
    }
    assert!(matches!(events.recv().await, Err(tokio::sync::broadcast::error::RecvError::Lagged(_))));
    let mut kinds = Vec::new();
    while let Ok(event) = events.try_recv() {
        kinds.push(!matches!(*event, Event::AttemptFailed { .. } | Event::Refused { .. }));
    }
    assert!(!kinds.is_empty() && kinds.iter().all(|known| *known));
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_what_is_out_of_the_ordinary_is_told_nothing_of_calls_that_go_well_at_once() {
    let driver = Driver::new(policy(Dimension::MaxInFlight, 1), 1);
    let mut notable = driver.subscribe_notable();
    let held = driver.admit(call()).await.unwrap();
    let mut second = Box::pin(driver.admit(call()));
    assert!(poll_once(&mut second).await.is_none());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(held.settle(success()), Settled::Done));
    let mut waited = second.await.unwrap();
    waited.sent();
    let fault = Fault::new(FaultKind::Server, "500").with_status(500);
    let Settled::Retry(waiting) = waited.settle(Outcome::of(Ending::Failed(fault))) else { panic!("it is retried") };
    assert!(matches!(waiting.await.unwrap().settle(success()), Settled::Done));
    let told: Vec<_> = std::iter::from_fn(|| notable.try_recv().ok()).collect();
    assert!(told.iter().all(|event| event.is_notable()), "{told:?}");
    let attempts: Vec<u32> = told
        .iter()
        .filter_map(|event| match &**event {
            Event::Granted { attempt, queued_for, .. } => {
                assert!(*queued_for >= Duration::from_secs(2));
                Some(*attempt)
            }
            Event::AttemptFailed { attempt, whose: Some(_), .. } | Event::AttemptSuccess { attempt, .. } => {
                Some(*attempt)
            }
            _ => None,
        })
        .collect();
    assert_eq!(attempts, [1, 1, 2, 2], "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_state_is_kept_and_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Driver::new(policy(Dimension::RequestsPerDay, 100), 1);
    for _ in 0..30 {
        let permit = driver.admit(call()).await.unwrap();
        assert!(matches!(permit.settle(success()), Settled::Done));
    }
    driver.save_state(folder.path(), true).unwrap();
    let mut gate = tidegate_core::gate::Gate::new(policy(Dimension::RequestsPerDay, 100), 1);
    gate.restore(tidegate::state::load(folder.path()).unwrap().unwrap());
    let driver = Driver::with_gate(gate);
    let _permit = driver.admit(call()).await.unwrap();
    assert_eq!(remaining(&driver), 69);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_nobody_has_looked_at_is_not_lost_to_the_next_call_with_its_place() {
    let driver = Driver::new(policy(Dimension::MaxInFlight, 1), 1);
    let held = driver.admit(call()).await.unwrap();
    let mut hurried = call();
    hurried.start_by = driver.now() + Duration::from_secs(1);
    let mut first = Box::pin(driver.admit(hurried));
    assert!(poll_once(&mut first).await.is_none());
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Refused by now, and its place in the core is free: the next call gets it.
    let mut second = Box::pin(driver.admit(call()));
    assert!(poll_once(&mut second).await.is_none());
    assert!(first.await.is_err());
    drop(held);
    assert!(second.await.is_ok());

    let held = driver.admit(call()).await.unwrap();
    let mut hurried = call();
    hurried.start_by = driver.now() + Duration::from_secs(1);
    let mut first = Box::pin(driver.admit(hurried));
    assert!(poll_once(&mut first).await.is_none());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut second = Box::pin(driver.admit(call()));
    assert!(poll_once(&mut second).await.is_none());
    // Dropped without having looked: what it leaves is its own seat, not the other's.
    drop(first);
    drop(held);
    assert!(second.await.is_ok());
}

/// Polls once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn a_driver_may_be_made_outside_of_any_runtime() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(60).with_burst_allowance(1));
    let call = tidegate::Call::new("gpt-4o");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let waited = runtime.block_on(async {
        limiter.reserve(&call).await.unwrap().settle(Usage::new(0, 0));
        timeout(Duration::from_secs(9), limiter.reserve(&call)).await.unwrap().unwrap().waited()
    });
    assert!(waited > Duration::ZERO && waited <= Duration::from_secs(1), "{waited:?}");
}

#[test]
fn a_driver_outlives_the_runtime_that_it_was_made_on() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let first = runtime();
    let (driver, held) = first.block_on(async {
        let driver = Driver::new(policy(Dimension::MaxInFlight, 1), 1);
        let held = driver.admit(call()).await.unwrap();
        (driver, held)
    });
    let second = runtime();
    let waiting = second.spawn({
        let driver = driver.clone();
        async move {
            let start_by = driver.now() + Duration::from_secs(5);
            driver.admit(Call { start_by, ..call() }).await.map(drop)
        }
    });
    // It waits already when the runtime with the timer ends.
    second.block_on(tokio::task::yield_now());
    drop(first);
    let refusal = second.block_on(waiting).unwrap().unwrap_err();
    assert_eq!(refusal.waited, Duration::from_secs(5));
    drop((second, held));

    let third = runtime();
    let held = third.block_on(driver.admit(call())).unwrap();
    let late = third.block_on(async {
        let start_by = driver.now() + Duration::from_secs(5);
        tokio::time::timeout(Duration::from_secs(60), driver.admit(Call { start_by, ..call() })).await
    });
    assert!(late.expect("refused at its deadline").is_err());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_whoever_is_told_that_the_state_cannot_be_saved_is_contained_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Driver::new(policy(Dimension::RequestsPerMinute, 10), 1);
    let mut events = driver.subscribe_notable();
    driver.keep_state(folder.path().join("missing"), |_| panic!("not told"));
    let told = events.recv().await.unwrap();
    assert!(matches!(&*told, Event::CallbackError { callback: "keep_state", .. }), "{told:?}");
    // It goes on: the folder is there now.
    std::fs::create_dir(folder.path().join("missing")).unwrap();
    while !folder.path().join("missing").join("levels.json").exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A waker that looks at the limiter when it is dropped.
struct Looks(RateLimiter);

impl std::task::Wake for Looks {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Looks {
    fn drop(&mut self) {
        let _seen = self.0.info();
    }
}

async fn waits_with_wakers_that_look() {
    let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(1));
    let call = tidegate::Call::new("gpt-4o");
    limiter.reserve(&call).await.unwrap().settle(Usage::new(0, 0));
    let mut waiting = Box::pin(limiter.reserve(&call));
    for _ in 0..2 {
        let waker = std::task::Waker::from(Arc::new(Looks(limiter.clone())));
        assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    }
}

#[test]
fn a_waker_may_use_the_limiter_that_lets_go_of_it() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(waits_with_wakers_that_look());
        done.send(()).unwrap();
    });
    // However slow the machine is: a lock that is never let go of is found out.
    is_done.recv_timeout(Duration::from_secs(60)).unwrap();
}
