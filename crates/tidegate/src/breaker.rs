//! A circuit breaker by itself: stops calling a service that has been failing, and finds out when it is back.
//!
//! Decides nothing itself: `tidegate_core::breaker` does. This adds a clock, a lock and a guard for each attempt, so that one
//! that is dropped at any point gives its place back and counts for nothing.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::breaker::{Breaker, BreakerPermit, BreakerResult, BreakerSays, BreakerState};
use tidegate_core::config::BreakerConfig;
use tidegate_core::event::Event;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::time::Time;

use crate::call::Call;
use crate::clock::Clock;
use crate::error::{BoxError, Error};
use crate::events::{Events, Teller};
use crate::fault::ToFault;

/// The name of a breaker that was given none.
const NAME: &str = "breaker";

/// One circuit breaker; clones share it.
///
/// Only faults of the service count ([`FaultKind::is_service_fault`]): neither rate limits nor the caller's own mistakes open it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tidegate::{BreakerConfig, BreakerState, Call, CircuitBreaker, Error, Fault};
///
/// let breaker = CircuitBreaker::new(BreakerConfig::default().with_failure_threshold(1));
/// let call = Call::new("gpt-4o");
/// let failed = breaker.execute(&call, || async { Err::<(), _>(Fault::of_status(503)) }).await;
/// assert!(matches!(failed, Err(Error::Upstream { .. })));
/// assert_eq!(breaker.state(), BreakerState::Open);
///
/// // From here on nothing is sent for a while.
/// let refused = breaker.execute(&call, || async { Ok::<_, Fault>("never asked") }).await;
/// assert!(matches!(refused, Err(Error::CircuitOpen { .. })));
/// # }
/// ```
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    breaker: Mutex<Breaker>,
    clock: Clock,
    teller: Teller,
    callbacks: Mutex<Vec<Callback>>,
    changes: Mutex<Changes>,
}

struct Change {
    from: BreakerState,
    to: BreakerState,
    cause: Arc<str>,
}

/// Changes of state that have yet to be told, in their order.
#[derive(Default)]
struct Changes {
    untold: VecDeque<Change>,
    /// Somebody tells them: whoever brings about another leaves it to him.
    is_telling: bool,
}

type Callback = Arc<dyn Fn(BreakerState) -> Result<(), BoxError> + Send + Sync>;

/// What a callback may return: nothing, or that it failed.
pub trait CallbackResult {
    /// What is told of it.
    ///
    /// # Errors
    /// That it failed.
    fn into_result(self) -> Result<(), BoxError>;
}

impl CallbackResult for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> CallbackResult for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

impl CircuitBreaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self::named(NAME, config)
    }

    /// A closed breaker that is called `name` in events and errors.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>, config: BreakerConfig) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            breaker: Mutex::new(Breaker::new(Arc::new(config))),
            clock: Clock::start(),
            teller: Teller::default(),
            callbacks: Mutex::default(),
            changes: Mutex::default(),
        }))
    }

    /// Runs `operation` if the breaker lets it, and takes note of how it ends. Of `call`, its organization and its timeout count.
    ///
    /// Dropping the future, or a timeout, cancels the operation.
    ///
    /// # Errors
    /// [`Error::CircuitOpen`] if it was not run, [`Error::Timeout`], or the operation's own as [`Error::Upstream`].
    pub async fn execute<T, E, Fut>(&self, call: &Call, operation: impl FnOnce() -> Fut) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, E>>,
        E: ToFault + Into<BoxError>,
    {
        let attempt = self.try_begin(call)?;
        let result = match call.timeout {
            None => operation().await,
            Some(after) => match tokio::time::timeout(after, operation()).await {
                Ok(result) => result,
                Err(_) => {
                    attempt.failed(&Fault::new(FaultKind::Timeout, "not done in time"));
                    return Err(Error::Timeout { after, attempts: 1, last: None, may_be_billed: true });
                }
            },
        };
        match result {
            Ok(value) => {
                attempt.succeeded();
                Ok(value)
            }
            Err(error) => {
                let fault = Box::new(error.to_fault());
                attempt.failed(&fault);
                Err(Error::of_upstream(fault, error.into()))
            }
        }
    }

    /// Leave to make one attempt of `call` by other means than [`CircuitBreaker::execute`].
    ///
    /// # Errors
    /// [`Error::CircuitOpen`].
    pub fn try_begin(&self, call: &Call) -> Result<BreakerAttempt, Error> {
        let now = self.0.clock.now();
        let mut breaker = self.0.lock();
        if breaker.says(now) != BreakerSays::Go {
            let report = breaker.report(self.0.name.clone());
            let retry_after = report.next_probe_at.map(|at| at.since(now).max(Duration::from_micros(1)));
            return Err(Error::circuit_open(report, retry_after));
        }
        let before = breaker.state();
        let permit = breaker.permit(now);
        let before = (breaker.state() != before).then_some(before);
        self.0.changed(breaker, before);
        if permit.is_probe() {
            self.0.teller.tell(|| Event::ProbeStarted { breaker: self.0.name.clone() });
        }
        let tenant = hash(&call.subject.tenant);
        Ok(BreakerAttempt { inner: self.0.clone(), permit: Some(permit), tenant, began_at: now, first_byte_at: None })
    }

    /// The state. An open breaker whose time is over is still open until somebody asks to go.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.0.lock().state()
    }

    /// Forgets everything: closed, as if new.
    pub fn reset(&self) {
        self.0.force(BreakerState::Closed);
    }

    /// Lets nothing go until told otherwise.
    pub fn force_open(&self) {
        self.0.force(BreakerState::ForcedOpen);
    }

    /// Lets probes go, as if it had been open for its time.
    pub fn force_half_open(&self) {
        self.0.force(BreakerState::HalfOpen);
    }

    /// Lets everything go, whatever happens, until told otherwise.
    pub fn force_closed(&self) {
        self.0.force(BreakerState::ForcedClosed);
    }

    /// Calls `callback` with each new state, one after the other in the order in which they came about, in a task that brought
    /// about one of them: where another task is just telling of an earlier one, it tells of the next as well. By then the
    /// breaker may be in a later state.
    ///
    /// One that panics or fails is contained: the call goes on, and subscribers are told of a [`Event::CallbackError`].
    pub fn on_state_change<R: CallbackResult>(&self, callback: impl Fn(BreakerState) -> R + Send + Sync + 'static) {
        let callback: Callback = Arc::new(move |state| callback(state).into_result());
        self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }

    /// Everything that happens from now on; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.0.teller.subscribe()
    }

    /// Calls a callback of the program's own. `None`: it panicked, which subscribers have been told.
    #[cfg(feature = "tower")]
    pub(crate) fn contained<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        self.0.teller.call(callback, call)
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.0.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn force(&self, state: BreakerState) {
        let now = self.clock.now();
        let mut breaker = self.lock();
        let before = breaker.force(state, now);
        self.changed(breaker, before);
    }

    /// Lets go of the breaker and tells of a change: not under its lock, so that a callback may ask the breaker.
    fn changed(&self, breaker: MutexGuard<'_, Breaker>, before: Option<BreakerState>) {
        let has_changed = self.note(&breaker, before);
        drop(breaker);
        if has_changed {
            self.tell_changes();
        }
    }

    /// Puts a change among those to be told; under the breaker's lock, so that they stand in their order.
    fn note(&self, breaker: &Breaker, before: Option<BreakerState>) -> bool {
        if let Some(from) = before {
            self.changes().untold.push_back(Change { from, to: breaker.state(), cause: breaker.cause() });
        }
        before.is_some()
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_changes(&self) {
        if std::mem::replace(&mut self.changes().is_telling, true) {
            return;
        }
        loop {
            let mut changes = self.changes();
            let next = changes.untold.pop_front();
            changes.is_telling = next.is_some();
            drop(changes);
            let Some(change) = next else { return };
            self.tell_change(change);
        }
    }

    fn tell_change(&self, Change { from, to, cause }: Change) {
        self.teller.tell(|| Event::StateChanged { breaker: self.name.clone(), from, to, cause });
        let callbacks = self.callbacks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for callback in callbacks {
            if let Some(Err(error)) = self.teller.call("on_state_change", || callback(to)) {
                let message = error.to_string().into();
                self.teller.tell(|| Event::CallbackError { callback: "on_state_change", message });
            }
        }
    }

    fn record(&self, permit: BreakerPermit, tenant: u64, began_at: Time, result: BreakerResult, fault: Option<&Fault>) {
        let now = self.clock.now();
        let mut breaker = self.lock();
        let failures = breaker.failures_in_a_row();
        let before = breaker.record(permit, tenant, result, fault, now);
        let (state, removed) = (breaker.state(), breaker.take_passed());
        let has_changed = self.note(&breaker, before);
        drop(breaker);
        let (name, duration) = (|| self.name.clone(), now.since(began_at));
        if removed > 0 {
            self.teller.tell(|| Event::HistoryCleaned { breaker: name(), removed });
        }
        match (result, fault) {
            (BreakerResult::Good { .. }, _) => {
                self.teller.tell(|| Event::CallSuccess { breaker: name(), duration, state });
            }
            (BreakerResult::Bad, Some(fault)) => self.teller.tell(|| {
                let failure_count = failures.saturating_add(1);
                Event::CallFailure { breaker: name(), kind: fault.kind, duration, state, failure_count }
            }),
            _ => {}
        }
        if has_changed {
            self.tell_changes();
        }
    }
}

/// One attempt that the breaker let go. Dropped without a word it gives its place back and counts for nothing.
#[must_use = "the breaker learns how the attempt ended only through this"]
pub struct BreakerAttempt {
    inner: Arc<Inner>,
    permit: Option<BreakerPermit>,
    tenant: u64,
    began_at: Time,
    /// `None`: when it ends.
    first_byte_at: Option<Time>,
}

impl BreakerAttempt {
    /// Its reply has begun: how slow the service was is known now, however long the rest of the reply takes.
    pub fn replied(&mut self) {
        self.first_byte_at = Some(self.inner.clock.now());
    }

    /// The service did its part.
    pub fn succeeded(mut self) {
        let first_byte_at = self.first_byte_at.unwrap_or_else(|| self.inner.clock.now());
        let first_byte_after = Some(first_byte_at.since(self.began_at));
        self.end(BreakerResult::Good { first_byte_after }, None);
    }

    /// It failed; counts against the service only if that is the service's fault.
    pub fn failed(mut self, fault: &Fault) {
        let is_the_services = fault.kind.is_service_fault();
        self.end(if is_the_services { BreakerResult::Bad } else { BreakerResult::Ignored }, Some(fault));
    }

    fn end(&mut self, result: BreakerResult, fault: Option<&Fault>) {
        if let Some(permit) = self.permit.take() {
            self.inner.record(permit, self.tenant, self.began_at, result, fault);
        }
    }
}

impl Drop for BreakerAttempt {
    fn drop(&mut self) {
        self.end(BreakerResult::Ignored, None);
    }
}

impl fmt::Debug for BreakerAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerAttempt").field("breaker", &self.inner.name).finish_non_exhaustive()
    }
}

fn hash(name: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
