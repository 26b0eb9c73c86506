//! The circuit breaker by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate::{BreakerConfig, BreakerState, Call, CircuitBreaker, Error, Event, Fault, FaultKind};
use tokio::time::{advance, sleep};

fn breaker() -> CircuitBreaker {
    let config = BreakerConfig::default()
        .with_failure_threshold(3)
        .with_recovery_timeout(Duration::from_secs(1))
        .with_monitoring_period(Duration::from_secs(5))
        .with_expected_recovery_time(Duration::from_secs(2))
        .with_half_open_max_calls(2);
    CircuitBreaker::new(config)
}

fn call() -> Call {
    Call::new("gpt-3.5-turbo").with_id("test")
}

async fn fails(breaker: &CircuitBreaker, fault: Fault) {
    let result = breaker.execute(&call(), || async { Err::<(), _>(fault) }).await;
    assert!(matches!(result, Err(Error::Upstream { .. })), "{result:?}");
}

async fn succeeds(breaker: &CircuitBreaker) {
    assert_eq!(breaker.execute(&call(), || async { Ok::<_, Fault>("success") }).await.unwrap(), "success");
}

fn api_error() -> Fault {
    Fault::of_status(500)
}

#[tokio::test(start_paused = true)]
async fn operations_go_while_it_is_closed() {
    let breaker = breaker();
    succeeds(&breaker).await;
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn three_failures_open_it() {
    let breaker = breaker();
    for _ in 0..3 {
        assert_eq!(breaker.state(), BreakerState::Closed);
        fails(&breaker, api_error()).await;
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_while_it_is_forced_open() {
    let breaker = breaker();
    breaker.force_open();
    let asked = AtomicU32::new(0);
    let refused = breaker
        .execute(&call(), || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Fault>(())
        })
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("circuit breaker is open"), "{refused}");
    assert_eq!(asked.into_inner(), 0);
    advance(Duration::from_secs(86_400)).await;
    assert!(breaker.try_begin(&call()).is_err(), "no time opens what was forced");
}

#[tokio::test(start_paused = true)]
async fn it_lets_probes_go_after_its_recovery_timeout_and_closes_when_they_went_well() {
    let breaker = breaker();
    for _ in 0..3 {
        fails(&breaker, api_error()).await;
    }
    let refused = breaker.try_begin(&call()).unwrap_err();
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));
    let Error::CircuitOpen { until: Some(_), .. } = refused else { panic!("{refused}") };
    advance(Duration::from_millis(999)).await;
    assert!(breaker.try_begin(&call()).is_err());
    advance(Duration::from_millis(1)).await;
    succeeds(&breaker).await;
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    succeeds(&breaker).await;
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_again() {
    let breaker = breaker();
    breaker.force_half_open();
    fails(&breaker, api_error()).await;
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_as_many_probes_go_as_it_is_told_to() {
    let breaker = breaker();
    breaker.force_half_open();
    let probes = [breaker.try_begin(&call()).unwrap(), breaker.try_begin(&call()).unwrap()];
    let refused = breaker.try_begin(&call()).unwrap_err();
    assert!(refused.to_string().contains("half-open for breaker, 2 of 2 probes under way"), "{refused}");
    drop(probes);
    assert!(breaker.try_begin(&call()).is_ok(), "a probe that was dropped has given its place back");
    assert_eq!(breaker.state(), BreakerState::HalfOpen, "and has neither closed nor opened it");
}

#[tokio::test(start_paused = true)]
async fn a_result_of_an_older_state_counts_for_nothing() {
    let breaker = breaker();
    let late = breaker.try_begin(&call()).unwrap();
    breaker.force_half_open();
    late.failed(&api_error());
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn rate_limits_and_mistakes_of_the_caller_neither_open_nor_close_it() {
    let breaker = breaker();
    for status in [429, 400, 401, 404].repeat(5) {
        fails(&breaker, Fault::of_status(status)).await;
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    breaker.force_half_open();
    for _ in 0..5 {
        fails(&breaker, Fault::of_status(429)).await;
    }
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn half_of_a_few_calls_is_no_rate() {
    let breaker = CircuitBreaker::new(BreakerConfig::default().with_failure_rate(0.5, 10));
    for _ in 0..4 {
        succeeds(&breaker).await;
        fails(&breaker, api_error()).await;
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    succeeds(&breaker).await;
    fails(&breaker, api_error()).await;
    assert_eq!(breaker.state(), BreakerState::Open, "five of ten are");
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_too_slow_open_it() {
    let config = BreakerConfig::default().with_failure_rate(0.5, 2).with_slow_calls(Duration::from_secs(1), 1.0);
    let breaker = CircuitBreaker::new(config);
    for _ in 0..2 {
        let slow = || async {
            sleep(Duration::from_secs(2)).await;
            Ok::<_, Fault>(())
        };
        breaker.execute(&call(), slow).await.unwrap();
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_cancels_the_operation_and_is_a_failure() {
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let breaker = breaker();
    let dropped = Arc::new(AtomicU32::new(0));
    let call = call().with_timeout(Duration::from_millis(10));
    for number in 1..=3 {
        let held = Dropped(dropped.clone());
        let never = || async move {
            let _held = held;
            std::future::pending::<Result<(), Fault>>().await
        };
        assert!(matches!(breaker.execute(&call, never).await, Err(Error::Timeout { attempts: 1, .. })));
        assert_eq!(dropped.load(Ordering::Relaxed), number);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_probe_leaves_its_place() {
    let breaker = breaker();
    breaker.force_half_open();
    for _ in 0..10 {
        let (breaker, call) = (breaker.clone(), call());
        let probe = breaker.execute(&call, std::future::pending::<Result<(), Fault>>);
        assert!(tokio::time::timeout(Duration::from_millis(1), probe).await.is_err());
    }
    succeeds(&breaker).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_forced_stays_until_it_is_reset() {
    let breaker = breaker();
    breaker.force_closed();
    for _ in 0..10 {
        fails(&breaker, api_error()).await;
    }
    assert_eq!(breaker.state(), BreakerState::ForcedClosed);
    breaker.reset();
    assert_eq!(breaker.state(), BreakerState::Closed);
    for _ in 0..2 {
        fails(&breaker, api_error()).await;
    }
    breaker.reset();
    fails(&breaker, api_error()).await;
    assert_eq!(breaker.state(), BreakerState::Closed, "a reset forgets the failures before it");
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_panics_or_fails_is_contained_and_told() {
    let breaker = breaker();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    breaker.on_state_change(|state| assert_eq!(state, BreakerState::Closed, "of no use"));
    breaker.on_state_change(|_| Err::<(), _>("no disk"));
    let (states, asks) = (seen.clone(), breaker.clone());
    breaker.on_state_change(move |state| states.lock().unwrap().push((state, asks.state())));
    let mut events = breaker.subscribe();
    breaker.force_open();
    assert_eq!(*seen.lock().unwrap(), [(BreakerState::ForcedOpen, BreakerState::ForcedOpen)]);
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::CallbackError { callback, message } = &*event {
            told.push(format!("{callback}: {message}"));
        }
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("of no use"), "{told:?}");
    assert_eq!(told[1..], ["on_state_change: no disk"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_a_callback_brings_about_is_told_after_the_one_that_it_was_told_of() {
    let breaker = breaker();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let acts = breaker.clone();
    breaker.on_state_change(move |state| {
        if state == BreakerState::ForcedOpen {
            acts.force_half_open();
        }
    });
    let states = seen.clone();
    breaker.on_state_change(move |state| states.lock().unwrap().push(state));
    breaker.force_open();
    assert_eq!(*seen.lock().unwrap(), [BreakerState::ForcedOpen, BreakerState::HalfOpen]);
}

#[test]
fn changes_are_told_one_after_the_other_in_their_order() {
    const CHANGES: usize = 500;
    let breaker = breaker();
    let (told, telling) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let states = told.clone();
    breaker.on_state_change(move |state| {
        assert_eq!(telling.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        states.lock().unwrap().push(state);
        telling.fetch_sub(1, Ordering::SeqCst);
    });
    let mut events = breaker.subscribe();
    std::thread::scope(|scope| {
        for open in [true, false] {
            let breaker = breaker.clone();
            scope.spawn(move || {
                (0..CHANGES).for_each(|_| if open { breaker.force_open() } else { breaker.force_closed() });
            });
        }
    });
    let mut before = BreakerState::Closed;
    let mut told = told.lock().unwrap().clone().into_iter();
    while let Ok(event) = events.try_recv() {
        let Event::StateChanged { from, to, .. } = *event else { panic!("{event:?}") };
        assert_eq!((from, told.next()), (before, Some(to)));
        before = to;
    }
    assert_eq!((told.next(), breaker.state()), (None, before));
}

#[tokio::test(start_paused = true)]
async fn events_tell_of_each_call_and_of_what_it_changed() {
    let breaker = CircuitBreaker::named("chat", BreakerConfig::default().with_failure_threshold(2));
    let mut events = breaker.subscribe();
    succeeds(&breaker).await;
    for _ in 0..2 {
        let slow = || async {
            sleep(Duration::from_secs(3)).await;
            Err::<(), _>(api_error())
        };
        breaker.execute(&call(), slow).await.unwrap_err();
    }
    let name: Arc<str> = "chat".into();
    let failure = |failure_count, state| Event::CallFailure {
        breaker: name.clone(),
        kind: FaultKind::Server,
        duration: Duration::from_secs(3),
        state,
        failure_count,
    };
    let (closed, open) = (BreakerState::Closed, BreakerState::Open);
    let expected = [
        Event::CallSuccess { breaker: name.clone(), duration: Duration::ZERO, state: closed },
        failure(1, closed),
        failure(2, open),
        Event::StateChanged {
            breaker: name.clone(),
            from: closed,
            to: open,
            cause: "2 failures in a row, last 500".into(),
        },
    ];
    for event in expected {
        assert_eq!(*events.try_recv().unwrap(), event);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_leave_the_monitoring_period_are_told_of() {
    let breaker = breaker();
    let mut events = breaker.subscribe();
    for _ in 0..4 {
        succeeds(&breaker).await;
    }
    advance(Duration::from_secs(60)).await;
    succeeds(&breaker).await;
    let mut removed = 0;
    while let Ok(event) = events.try_recv() {
        if let Event::HistoryCleaned { removed: so_many, .. } = &*event {
            removed += so_many;
        }
    }
    assert_eq!(removed, 4);
}
