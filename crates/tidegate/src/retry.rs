//! Retrying by itself: tries an operation again while that is worth it, and not before when.
//!
//! Decides nothing itself: `tidegate_core::retry` and `retry_budget` do. This sleeps between attempts and cancels those that
//! take too long. What another retry has given up on is not tried again: there is one owner of a call's retries.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::config::RetryConfig;
use tidegate_core::event::Event;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::refusal::GiveUpReason;
use tidegate_core::retry::{Decision, History, RetryPolicy, RetryStrategy};
use tidegate_core::retry_budget::RetryBudget;
use tidegate_core::time::Time;

use crate::call::Call;
use crate::clock::Clock;
use crate::error::{BoxError, Error};
use crate::events::{Events, Teller};
use crate::fault::ToFault;
use crate::progress::Progress;

/// The delay where a strategy of the program's own panicked when asked for one.
const DELAY_WITHOUT_WORD: Duration = Duration::from_secs(1);

/// Retries operations; clones share the rules and the budget, but not the strategies that one of them is given later.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use tidegate::{Call, Fault, Retry, RetryConfig};
///
/// let retry = Retry::new(RetryConfig::default());
/// let mut statuses = [429, 500].into_iter();
/// let answer = retry
///     .execute(&Call::new("gpt-4o"), || {
///         let status = statuses.next();
///         async move { status.map_or(Ok("success"), |status| Err(Fault::of_status(status))) }
///     })
///     .await;
/// assert_eq!(answer.unwrap(), "success");
/// # }
/// ```
#[derive(Clone)]
pub struct Retry {
    inner: Arc<Inner>,
    strategies: Vec<Strategy>,
}

type Strategy = (Arc<str>, Arc<dyn RetryStrategy>);

struct Inner {
    rules: Mutex<Rules>,
    clock: Clock,
    teller: Teller,
}

struct Rules {
    policy: RetryPolicy,
    budget: RetryBudget,
    random: fastrand::Rng,
}

/// An attempt that failed. `error`: the bound instead, where it was cancelled for taking too long.
pub(crate) struct Failure {
    pub(crate) fault: Box<Fault>,
    pub(crate) error: Result<BoxError, Duration>,
}

impl Retry {
    /// Retries by the rules of `config`.
    #[must_use]
    pub fn new(config: RetryConfig) -> Self {
        let clock = Clock::start();
        let budget = RetryBudget::new(config.budget, clock.now());
        let rules = Rules { policy: RetryPolicy::new(Arc::new(config)), budget, random: random() };
        let inner = Arc::new(Inner { rules: Mutex::new(rules), clock, teller: Teller::default() });
        Self { inner, strategies: Vec::new() }
    }

    /// Judges errors of the class or code `error` by a rule of one's own, which comes before the configured ones.
    ///
    /// One that panics is contained and told ([`Event::CallbackError`]); the error is then not retried.
    #[must_use]
    pub fn with_strategy(mut self, error: impl Into<String>, strategy: impl RetryStrategy + 'static) -> Self {
        let contained = Contained { strategy, teller: self.inner.teller.clone() };
        self.strategies.push((error.into().into(), Arc::new(contained)));
        self
    }

    /// Runs `operation` until it succeeds or is given up. Of `call`, its priority, `max_wait` and timeout count.
    ///
    /// An attempt over `attempt_timeout` is cancelled and counts as failed; at the end of the call's timeout, or of
    /// `total_timeout`, all is cancelled. So it is if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Upstream`] if it failed in a way that is not retried, [`Error::Exhausted`] if it was tried as often, or as long,
    /// as allowed, with a [`Fault`] as its last error where the last attempt ran over its time; [`Error::Timeout`] if the call did,
    /// or an attempt that is not retried.
    pub async fn execute<T, E, Fut>(&self, call: &Call, operation: impl FnMut() -> Fut) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, E>>,
        E: ToFault + Into<BoxError>,
    {
        let progress = Progress::default();
        let (run, attempt_timeout, total_timeout) = self.begin(call, &progress);
        let work = attempts(run, operation, attempt_timeout);
        let Some(after) = total_timeout else { return work.await };
        match tokio::time::timeout(after, work).await {
            Ok(result) => result,
            Err(_) => Err(self.ran_out(call, &progress, after)),
        }
    }

    /// A call begins: what decides on its attempts, and the bounds of each and of all.
    pub(crate) fn begin<'r>(
        &'r self,
        call: &'r Call,
        progress: &'r Progress,
    ) -> (Run<'r>, Option<Duration>, Option<Duration>) {
        let now = self.inner.clock.now();
        let mut rules = self.inner.lock();
        rules.budget.deposit();
        let config = rules.policy.config();
        let total_timeout = [call.timeout, config.total_timeout].into_iter().flatten().min();
        let bounds = [call.max_wait, total_timeout];
        let deadline = bounds.into_iter().flatten().min().map_or(Time::NEVER, |bound| now + bound);
        let run = Run { retry: self, call, progress, history: History::default(), began_at: now, deadline };
        (run, config.attempt_timeout, total_timeout)
    }

    /// The call's time was up.
    pub(crate) fn ran_out(&self, call: &Call, progress: &Progress, after: Duration) -> Error {
        self.inner.gave_up(call, progress.attempts(), GiveUpReason::DeadlineExceeded, FaultKind::Timeout);
        progress.timed_out(after)
    }

    /// Whether the attempt number `attempt` (from 1) that failed with `error` is worth another.
    #[must_use]
    pub fn should_retry(&self, call: &Call, error: &impl ToFault, attempt: u32) -> bool {
        self.delay(call, error, attempt).is_some()
    }

    /// How long to wait after the attempt number `attempt` (from 1) failed with `error`. `None`: it is not worth another.
    #[must_use]
    pub fn delay(&self, call: &Call, error: &impl ToFault, attempt: u32) -> Option<Duration> {
        let history = History { attempts: attempt, rate_limits: attempt, previous_delay: Duration::ZERO };
        let (policy, mut random) = self.judge();
        match policy.decide(&error.to_fault(), history, call.priority, &mut random) {
            Decision::Retry { delay } => Some(delay),
            Decision::GiveUp(_) => None,
        }
    }

    /// Changes the rules, for calls under way too. `change` is asked once more where somebody else's change came in between.
    pub fn update_config(&self, mut change: impl FnMut(&mut RetryConfig)) {
        loop {
            // Not under the lock: what `change` does is the program's own.
            let before = self.inner.lock().policy.clone();
            let mut config = before.config().clone();
            change(&mut config);
            let now = self.inner.clock.now();
            let mut rules = self.inner.lock();
            if std::ptr::eq(rules.policy.config(), before.config()) {
                rules.budget.reconfigure(config.budget, now);
                rules.policy.reconfigure(Arc::new(config));
                break;
            }
        }
        self.inner.teller.tell(|| Event::ConfigUpdated);
    }

    /// The rules in force.
    #[must_use]
    pub fn config(&self) -> RetryConfig {
        self.inner.lock().policy.config().clone()
    }

    /// Everything that happens from now on; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.inner.teller.subscribe()
    }

    /// Calls a callback of the program's own. `None`: it panicked, which subscribers have been told.
    #[cfg(feature = "tower")]
    pub(crate) fn contained<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        self.inner.teller.call(callback, call)
    }

    /// The rules and a sequence of random numbers of one's own, to be asked without the lock: a strategy may be the program's.
    fn judge(&self) -> (RetryPolicy, fastrand::Rng) {
        let mut rules = self.inner.lock();
        let (policy, random) = (rules.policy.clone(), rules.random.fork());
        drop(rules);
        let with = |policy: RetryPolicy, (error, strategy): &Strategy| policy.with_strategy(&**error, strategy.clone());
        (self.strategies.iter().fold(policy, with), random)
    }

    fn decide(&self, call: &Call, fault: &Fault, history: History, deadline: Time) -> Decision {
        let (policy, mut random) = self.judge();
        let decision = policy.decide(fault, history, call.priority, &mut random);
        let Decision::Retry { delay } = decision else { return decision };
        let now = self.inner.clock.now();
        if now + delay >= deadline {
            return Decision::GiveUp(GiveUpReason::DeadlineExceeded);
        }
        if fault.kind != FaultKind::RateLimited && !self.inner.lock().budget.withdraw(now) {
            self.inner.teller.tell(|| Event::RetryBudgetExhausted);
            return Decision::GiveUp(GiveUpReason::BudgetExhausted);
        }
        decision
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("policy", &self.inner.lock().policy).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gave_up(&self, call: &Call, attempts: u32, reason: GiveUpReason, kind: FaultKind) {
        self.teller.tell(|| Event::OperationFailed { call: call.id.clone(), attempts, reason, kind });
    }
}

/// What decides on the attempts of one call, whoever makes them.
pub(crate) struct Run<'r> {
    retry: &'r Retry,
    call: &'r Call,
    progress: &'r Progress,
    history: History,
    began_at: Time,
    deadline: Time,
}

impl Run<'_> {
    /// Attempts begun.
    pub(crate) fn attempt(&self) -> u32 {
        self.progress.attempts()
    }

    /// The attempt that failed is followed by another.
    pub(crate) fn goes_on(&self, failure: Failure) {
        self.progress.failed(failure);
    }

    pub(crate) fn starts(&mut self) {
        let attempt = self.attempt() + 1;
        self.progress.begins(attempt);
        self.began_at = self.retry.inner.clock.now();
        self.retry.inner.teller.tell(|| Event::AttemptStart { call: self.call.id.clone(), attempt });
    }

    pub(crate) fn succeeded(&self) {
        let (attempt, duration) = (self.attempt(), self.retry.inner.clock.now().since(self.began_at));
        self.retry.inner.teller.tell(|| Event::AttemptSuccess { call: self.call.id.clone(), attempt, duration });
    }

    pub(crate) fn failed(&mut self, fault: &Fault) -> Decision {
        let (attempt, kind, id) = (self.attempt(), fault.kind, || self.call.id.clone());
        self.retry.inner.teller.tell(|| Event::AttemptFailed { call: id(), whose: None, attempt, kind });
        if kind == FaultKind::RateLimited {
            self.history.rate_limits += 1;
        } else {
            self.history.attempts += 1;
        }
        let decision = self.retry.decide(self.call, fault, self.history, self.deadline);
        match decision {
            Decision::Retry { delay } => {
                self.retry.inner.teller.tell(|| Event::RetryScheduled { call: id(), attempt, delay });
                self.history.previous_delay = delay;
            }
            Decision::GiveUp(reason) => self.retry.inner.gave_up(self.call, attempt, reason, kind),
        }
        decision
    }
}

async fn attempts<T, E, Fut>(
    mut run: Run<'_>,
    mut operation: impl FnMut() -> Fut,
    attempt_timeout: Option<Duration>,
) -> Result<T, Error>
where
    Fut: Future<Output = Result<T, E>>,
    E: ToFault + Into<BoxError>,
{
    loop {
        run.starts();
        match within(attempt_timeout, operation()).await {
            Ok(value) => {
                run.succeeded();
                return Ok(value);
            }
            Err(failure) => match run.failed(&failure.fault) {
                Decision::Retry { delay } => {
                    run.goes_on(failure);
                    tokio::time::sleep(delay).await;
                }
                Decision::GiveUp(reason) => return Err(failure.into_error(run.attempt(), reason)),
            },
        }
    }
}

impl Failure {
    pub(crate) fn into_error(self, attempts: u32, reason: GiveUpReason) -> Error {
        let Self { fault, error } = self;
        match (error, reason) {
            (Err(after), GiveUpReason::NotRetryable) => {
                Error::Timeout { after, attempts, last: None, may_be_billed: true }
            }
            (Ok(error), GiveUpReason::NotRetryable) => Error::of_upstream(fault, error),
            (last, _) => {
                let last = last.unwrap_or_else(|_| fault.clone());
                let may_be_billed = fault.kind.may_be_billed();
                Error::Exhausted { attempts, reason, fault, last, may_be_billed }
            }
        }
    }

    /// The attempt's error; of one that was cancelled, or was answered, what kind of failure it was.
    pub(crate) fn into_last(self) -> BoxError {
        self.error.unwrap_or(self.fault)
    }
}

/// The operation's end, or its cancellation when its time is up.
pub(crate) async fn within<T, E: ToFault + Into<BoxError>>(
    timeout: Option<Duration>,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let operation = async {
        operation.await.map_err(|error| Failure { fault: Box::new(error.to_fault()), error: Ok(error.into()) })
    };
    within_failing(timeout, operation).await
}

/// The same of one that says what kind of failure it is.
pub(crate) async fn within_failing<T>(
    timeout: Option<Duration>,
    operation: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(after) = timeout else { return operation.await };
    match tokio::time::timeout(after, operation).await {
        Ok(result) => result,
        Err(_) => {
            let fault = Box::new(Fault::new(FaultKind::Timeout, format!("not done within {after:?}")));
            Err(Failure { fault, error: Err(after) })
        }
    }
}

/// A strategy of the program's own, which may panic.
#[derive(Debug)]
pub(crate) struct Contained<S> {
    pub(crate) strategy: S,
    pub(crate) teller: Teller,
}

impl<S: RetryStrategy> RetryStrategy for Contained<S> {
    fn should_retry(&self, fault: &Fault, attempt: u32) -> bool {
        self.teller.call("retry_strategy", || self.strategy.should_retry(fault, attempt)).unwrap_or(false)
    }

    fn delay(&self, attempt: u32) -> Duration {
        self.teller.call("retry_strategy", || self.strategy.delay(attempt)).unwrap_or(DELAY_WITHOUT_WORD)
    }
}

/// A sequence that is another in each process and for each part.
fn random() -> fastrand::Rng {
    fastrand::Rng::with_seed(seed())
}

pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0)
}
