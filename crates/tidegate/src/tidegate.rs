//! Limits, retries and the circuit breaker together, around any operation.
//!
//! One gate decides all of it in one step: no attempt is sent while the breaker is open, none holds a place in a limit while
//! it waits for another, a rate limit queues again with its age. So it is more than the three parts put into one another.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{
    BreakerConfig, Policy, QueueConfig, RateLimitConfig, RetryConfig, TokenCharge, UpstreamPolicy,
};
use tidegate_core::fault::Fault;
use tidegate_core::gate::Gate;
use tidegate_core::openai::models;
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::retry::{RetryPolicy, RetryStrategy};

use crate::call::Call;
use crate::driver::{Attempt, Driver, Permit, Settled};
use crate::error::{BoxError, Error};
use crate::events::{Events, Teller};
use crate::fault::ToFault;
use crate::limiter::{RateLimiter, name_apart};
use crate::progress::Progress;
use crate::retry::{Contained, seed, within};

/// All of it; clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tidegate::Error> {
/// use tidegate::{Call, Fault, RateLimitConfig, Tidegate, Usage};
///
/// let tidegate = Tidegate::builder()
///     .limit(RateLimitConfig::default().with_requests_per_minute(500).with_tokens_per_minute(30_000))
///     .build();
/// let call = Call::new("gpt-4o").with_user("anna").with_tokens(1200, 300);
/// let answer = tidegate
///     .execute(&call, |attempt| async move {
///         // … the call itself …
///         attempt.used(Usage::new(1180, 95));
///         Ok::<_, Fault>("Hello, tide.")
///     })
///     .await?;
/// # assert_eq!(answer, "Hello, tide.");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tidegate {
    driver: Driver,
}

/// Makes a [`Tidegate`].
#[derive(Debug)]
#[must_use]
pub struct TidegateBuilder {
    policy: Policy,
    strategies: Vec<(String, Arc<dyn RetryStrategy>)>,
    teller: Teller,
}

impl TidegateBuilder {
    /// Keeps to this limit, beside those that the upstream is found to have. Of several that have one name the later ones get a
    /// number after it: `rate_limit_2`.
    pub fn limit(mut self, limit: RateLimitConfig) -> Self {
        self.policy.limits.push(limit.into_limit());
        self
    }

    /// How failed attempts are retried.
    pub fn retry(mut self, retry: RetryConfig) -> Self {
        self.policy.retry = retry;
        self
    }

    /// Judges errors of the class or code `error` by a rule of one's own. One that panics is contained and told.
    pub fn strategy(mut self, error: impl Into<String>, strategy: impl RetryStrategy + 'static) -> Self {
        let contained = Contained { strategy, teller: self.teller.clone() };
        self.strategies.push((error.into(), Arc::new(contained)));
        self
    }

    /// When the service is left alone.
    pub fn breaker(mut self, breaker: BreakerConfig) -> Self {
        self.policy.breaker = breaker;
        self
    }

    /// How calls wait.
    pub fn queue(mut self, queue: QueueConfig) -> Self {
        self.policy.queue = queue;
        self
    }

    /// Follows the upstream's own limits, as its replies tell them. Absent: as soon as a reply tells any.
    pub fn learn_limits(mut self, learn: bool) -> Self {
        self.policy.upstreams[0].learn_limits = learn;
        self
    }

    /// Starts it.
    #[must_use]
    pub fn build(mut self) -> Tidegate {
        name_apart(&mut self.policy.limits);
        let mut retry = RetryPolicy::new(Arc::new(self.policy.retry.clone()));
        for (error, strategy) in self.strategies {
            retry = retry.with_strategy(error, strategy);
        }
        let gate = Gate::new(self.policy, seed()).with_retry(retry);
        Tidegate { driver: Driver::telling(gate, self.teller) }
    }
}

impl Default for TidegateBuilder {
    fn default() -> Self {
        let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: TokenCharge::Learned };
        let policy = Policy { upstreams: vec![upstream], ..Policy::default() };
        Self { policy, strategies: Vec::new(), teller: Teller::default() }
    }
}

impl Tidegate {
    /// Nothing limited that the upstream does not limit, and everything else as by default.
    pub fn builder() -> TidegateBuilder {
        TidegateBuilder::default()
    }

    /// What a configuration file says: see [`tidegate_core::config::load`].
    #[must_use]
    pub fn with_policy(mut policy: Policy) -> Self {
        name_apart(&mut policy.limits);
        Self { driver: Driver::new(policy, seed()) }
    }

    /// Runs `operation` when its turn has come, again as long as that is worth it, and charges what it used.
    ///
    /// Dropping the future cancels what is under way and gives back what was not used.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn execute<T, E, Fut>(&self, call: &Call, operation: impl FnMut(Attempt) -> Fut) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, E>>,
        E: ToFault + Into<BoxError>,
    {
        let (max_wait, attempt_timeout, total_timeout) = self.driver.bounds();
        let total_timeout = [call.timeout, total_timeout].into_iter().flatten().min();
        let progress = Progress::default();
        let admitted = self.driver.admit(call.at(self.driver.now(), max_wait, total_timeout));
        let work = attempts(admitted, operation, attempt_timeout, &progress);
        let Some(after) = total_timeout else { return work.await };
        tokio::time::timeout(after, work).await.unwrap_or_else(|_| Err(progress.timed_out(after)))
    }

    /// Waits for the call's turn, for whoever makes and settles the attempts without [`Tidegate::execute`].
    ///
    /// # Errors
    /// That it is refused.
    pub async fn admit(&self, call: &Call) -> Result<Permit, Error> {
        let (max_wait, _, total_timeout) = self.driver.bounds();
        Ok(self.driver.admit(call.at(self.driver.now(), max_wait, total_timeout)).await?)
    }

    /// Its limits: how they stand, and what else has used them.
    #[must_use]
    pub fn limiter(&self) -> RateLimiter {
        RateLimiter::of(self.driver.clone())
    }

    /// The state of the breaker of calls like `call`. One that has seen no call is closed.
    #[must_use]
    pub fn breaker_state(&self, call: &Call) -> BreakerState {
        let name = breaker_name(call);
        let found = self.driver.with(|gate, now| {
            let breakers = gate.status(now).breakers;
            breakers.iter().find(|breaker| breaker.name == name).map(|breaker| breaker.state)
        });
        BreakerState::ALL.into_iter().find(|state| Some(state.name()) == found).unwrap_or(BreakerState::Closed)
    }

    /// Sets the state of the breaker of calls like `call`; [`BreakerState::Closed`] resets it. False: it has seen no call.
    #[must_use = "false if there was no breaker to set"]
    pub fn force_breaker(&self, call: &Call, state: BreakerState) -> bool {
        self.driver.with(|gate, now| gate.force_breaker(&breaker_name(call), state, now))
    }

    /// Lets nothing new through until [`Tidegate::resume`]; what waits or is under way goes on.
    pub fn pause(&self, reason: impl Into<Arc<str>>) {
        self.driver.with(|gate, _| gate.pause(reason));
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.driver.with(|gate, _| gate.resume());
    }

    /// Everything that happens from now on; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.driver.subscribe()
    }

    /// What drives it, for what has no method here: status, reload, saved state.
    #[must_use]
    pub const fn driver(&self) -> &Driver {
        &self.driver
    }
}

async fn attempts<T, E, Fut>(
    admitted: crate::driver::Admission,
    mut operation: impl FnMut(Attempt) -> Fut,
    attempt_timeout: Option<Duration>,
    progress: &Progress,
) -> Result<T, Error>
where
    Fut: Future<Output = Result<T, E>>,
    E: ToFault + Into<BoxError>,
{
    let mut permit = admitted.await?;
    loop {
        permit.sent();
        let number = permit.attempt();
        progress.begins(number);
        let sent_at = tokio::time::Instant::now();
        let failure = match within(attempt_timeout, operation(permit.handle())).await {
            Ok(value) => {
                let first_byte_after = Some(sent_at.elapsed());
                // A success leaves nothing to be done.
                let _done = permit.settle(Outcome { ending: Ending::Success, usage: None, first_byte_after });
                return Ok(value);
            }
            Err(failure) => failure,
        };
        permit = match next(permit, &failure.fault) {
            Next::Wait(waiting) => {
                progress.failed(failure);
                waiting.await.map_err(|refusal| progress.refused(refusal))?
            }
            Next::GiveUp(reason) => return Err(failure.into_error(number, reason)),
        };
    }
}

/// What follows on an attempt that failed.
pub(crate) enum Next {
    Wait(crate::driver::Waiting),
    GiveUp(tidegate_core::refusal::GiveUpReason),
}

pub(crate) fn next(permit: Permit, fault: &Fault) -> Next {
    match permit.settle(Outcome::of(Ending::Failed(fault.clone()))) {
        Settled::Retry(waiting) => Next::Wait(waiting),
        Settled::GiveUp(given_up) => Next::GiveUp(given_up.reason),
        // It was settled before, which only this function does.
        Settled::Done => Next::GiveUp(tidegate_core::refusal::GiveUpReason::NotRetryable),
    }
}

fn breaker_name(call: &Call) -> String {
    let model = models::family(&call.subject.model);
    format!("{}/{}", call.subject.upstream(), if model.is_empty() { "-" } else { model })
}
