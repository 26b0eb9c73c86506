//! Decides whether a failed attempt is worth another, and not before when.
//!
//! Never sleeps and never counts calls; `gate` does. A rate limit is not decided here by attempts: the call queues again
//! with its age, uses up no attempt, and has a cap of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::call::Priority;
use crate::config::{Jitter, RetryConfig};
use crate::fault::{Fault, FaultKind};
use crate::refusal::GiveUpReason;

/// Rate limits met by one call before it is given up.
pub const MAX_RATE_LIMITS: u32 = 10;
/// A call whose rate limit tells no wait tries again after about this.
const RATE_WAIT: Duration = Duration::from_millis(500);

/// What a call has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts made that count, the one that failed included; rate limits do not count.
    pub attempts: u32,
    /// Rate limits met, the present one included.
    pub rate_limits: u32,
    /// The delay before the attempt that failed.
    pub previous_delay: Duration,
}

impl History {
    /// Which failure of its sort `fault` is, from 1.
    fn attempt(&self, fault: &Fault) -> u32 {
        if fault.kind == FaultKind::RateLimited { self.rate_limits } else { self.attempts }
    }

    fn has_met_too_many(&self, fault: &Fault) -> bool {
        fault.kind == FaultKind::RateLimited && self.rate_limits >= MAX_RATE_LIMITS
    }
}

/// What is to be done about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this delay, which is never below what the server asked for.
    Retry {
        /// Counted from the failure. Never zero.
        delay: Duration,
    },
    /// Do not.
    GiveUp(GiveUpReason),
}

/// A rule of one's own for a class of errors (`customRetryStrategies`).
pub trait RetryStrategy: Send + Sync + std::fmt::Debug {
    /// Whether the attempt that failed with `fault` is worth another; `attempt` counts from 1.
    fn should_retry(&self, fault: &Fault, attempt: u32) -> bool;

    /// The delay before the next attempt; the server's wait remains its floor.
    fn delay(&self, attempt: u32) -> Duration;
}

/// A rule of one's own that is to judge a failed attempt: ask it while no lock is held, as its code is the program's.
#[derive(Clone, Debug)]
pub struct OwnRule {
    strategy: Arc<dyn RetryStrategy>,
    attempt: u32,
}

impl OwnRule {
    /// What it says to do about `fault`.
    #[must_use]
    pub fn judge(&self, fault: &Fault) -> Decision {
        if fault.should_retry == Some(false) {
            return Decision::GiveUp(GiveUpReason::NotRetryable);
        }
        if !self.strategy.should_retry(fault, self.attempt) {
            // It says no more than that: of a first attempt that such faults are not retried, later that it was enough.
            let reason = if self.attempt > 1 { GiveUpReason::AttemptsExhausted } else { GiveUpReason::NotRetryable };
            return Decision::GiveUp(reason);
        }
        Decision::Retry { delay: at_least(fault.wait, self.strategy.delay(self.attempt)) }
    }
}

/// The rules of `[retry]`, ready to be asked.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    config: Arc<RetryConfig>,
    strategies: Vec<(String, Arc<dyn RetryStrategy>)>,
}

impl RetryPolicy {
    /// The rules of `config`.
    #[must_use]
    pub fn new(config: Arc<RetryConfig>) -> Self {
        Self { config, strategies: Vec::new() }
    }

    /// Adds a rule of one's own for an error class or code; it comes before the configured ones, but is not asked about a
    /// fault that says that it must not be retried.
    #[must_use]
    pub fn with_strategy(mut self, error: impl Into<String>, strategy: Arc<dyn RetryStrategy>) -> Self {
        self.strategies.push((error.into(), strategy));
        self
    }

    /// The configuration that it was made from.
    #[must_use]
    pub fn config(&self) -> &RetryConfig {
        &self.config
    }

    /// Takes over a new configuration; rules of one's own stay.
    pub fn reconfigure(&mut self, config: Arc<RetryConfig>) {
        self.config = config;
    }

    /// Attempts that a call failing with `fault` may make, the first included.
    #[must_use]
    pub fn max_attempts(&self, fault: &Fault) -> u32 {
        self.strategy_value(fault, |strategy| strategy.max_attempts).unwrap_or(self.config.max_attempts).max(1)
    }

    fn strategy_value<T>(
        &self,
        fault: &Fault,
        value: impl Fn(&crate::config::RetryStrategyConfig) -> Option<T>,
    ) -> Option<T> {
        let by_code = fault.code.as_deref().and_then(|code| self.config.strategies.get(code));
        let by_class = self.config.strategies.get(fault.kind.error_class());
        by_code.and_then(&value).or_else(|| by_class.and_then(&value))
    }

    /// Whether faults of this kind are worth a retry at all.
    #[must_use]
    pub fn is_retryable(&self, fault: &Fault) -> bool {
        let listed = |name: &str| self.config.retryable_errors.iter().any(|error| error == name);
        let named = fault.code.as_deref().is_some_and(listed);
        match fault.kind {
            // Waiting cannot shrink a request, mend a key or find a model, whatever its status says.
            FaultKind::TooLarge | FaultKind::Unauthorized | FaultKind::NotFound => false,
            // Only an operator who lists it by name gets it retried: waiting cannot pay a bill.
            FaultKind::QuotaExhausted => named || listed("insufficient_quota"),
            _ if fault.should_retry == Some(false) => false,
            FaultKind::Connect | FaultKind::Dns | FaultKind::Timeout | FaultKind::Broken => {
                listed(fault.kind.error_class())
            }
            _ => {
                named
                    || match fault.status {
                        // An in-band error came with status 200: its class decides.
                        None | Some(200..=299) => listed(fault.kind.error_class()),
                        Some(status) => {
                            self.config.retryable_status_codes.contains(&status) || listed(fault.kind.error_class())
                        }
                    }
            }
        }
    }

    /// The rule of one's own that [`RetryPolicy::decide`] would ask about `fault`, if there is one.
    #[must_use]
    pub fn own_rule(&self, fault: &Fault, history: History) -> Option<OwnRule> {
        if history.has_met_too_many(fault) {
            return None;
        }
        let of_fault = |error: &str| fault.code.as_deref() == Some(error) || fault.kind.error_class() == error;
        let (_, strategy) = self.strategies.iter().find(|(error, _)| of_fault(error))?;
        Some(OwnRule { strategy: strategy.clone(), attempt: history.attempt(fault) })
    }

    /// True if the delay that [`RetryPolicy::decide`] gives is full jitter's draw, of which any other is as good.
    #[must_use]
    pub fn draws_delay(&self, fault: &Fault, history: History) -> bool {
        let is_guess = fault.kind == FaultKind::RateLimited && self.attempts_bound(fault).is_none();
        self.config.jitter == Jitter::Full && !is_guess && self.own_rule(fault, history).is_none()
    }

    /// What a configured strategy says of how often `fault` is tried; one that has only a delay does not end.
    fn attempts_bound(&self, fault: &Fault) -> Option<u32> {
        self.strategy_value(fault, |strategy| strategy.max_attempts.or(strategy.base_delay.map(|_| u32::MAX)))
    }

    /// What to do about `fault`.
    #[must_use]
    pub fn decide(&self, fault: &Fault, history: History, priority: Priority, random: &mut fastrand::Rng) -> Decision {
        if history.has_met_too_many(fault) {
            return Decision::GiveUp(GiveUpReason::AttemptsExhausted);
        }
        if let Some(rule) = self.own_rule(fault, history) {
            return rule.judge(fault);
        }
        let is_rate_limit = fault.kind == FaultKind::RateLimited;
        let attempt = history.attempt(fault);
        if !self.is_retryable(fault) {
            return Decision::GiveUp(GiveUpReason::NotRetryable);
        }
        let configured = self.attempts_bound(fault);
        if is_rate_limit && configured.is_none() {
            // The queue spreads those that wait, so that the server's wait needs no jitter on top.
            let guess = RATE_WAIT.mul_f64(f64::from(1 << attempt.saturating_sub(1).min(6)) * (0.5 + random.f64()));
            return Decision::Retry { delay: at_least(None, fault.wait.unwrap_or(guess)) };
        }
        if attempt >= configured.unwrap_or(self.config.max_attempts).max(1) {
            return Decision::GiveUp(GiveUpReason::AttemptsExhausted);
        }
        let backoff = Backoff {
            base_delay: self.strategy_value(fault, |strategy| strategy.base_delay).unwrap_or(self.config.base_delay),
            max_delay: self.strategy_value(fault, |strategy| strategy.max_delay).unwrap_or(self.config.max_delay),
            multiplier: self
                .strategy_value(fault, |strategy| strategy.backoff_multiplier)
                .unwrap_or(self.config.backoff_multiplier),
            jitter: self.config.jitter,
        };
        let factor = self.config.priority_factor[priority.index()];
        let ours = backoff.delay(attempt, factor, history.previous_delay, random);
        // The server's wait is a floor; jitter goes on top, so that those who were told the same do not return as one.
        let delay = match fault.wait {
            Some(wait) if wait > ours => {
                wait + Duration::from_secs_f64(random.f64() * 0.1 * wait.as_secs_f64().min(10.0))
            }
            _ => ours,
        };
        Decision::Retry { delay: at_least(None, delay) }
    }
}

fn at_least(floor: Option<Duration>, delay: Duration) -> Duration {
    delay.max(floor.unwrap_or(Duration::ZERO)).max(Duration::from_micros(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(Arc::new(RetryConfig::default()))
    }

    fn history(attempts: u32) -> History {
        History { attempts, rate_limits: 1, previous_delay: Duration::ZERO }
    }

    fn decide(fault: &Fault, attempts: u32) -> Decision {
        policy().decide(fault, history(attempts), Priority::Normal, &mut fastrand::Rng::with_seed(1))
    }

    const NO: Decision = Decision::GiveUp(GiveUpReason::NotRetryable);
    const EXHAUSTED: Decision = Decision::GiveUp(GiveUpReason::AttemptsExhausted);

    #[test]
    fn what_waiting_cannot_mend_is_never_retried() {
        for kind in [FaultKind::TooLarge, FaultKind::QuotaExhausted] {
            assert_eq!(decide(&Fault::new(kind, "").with_status(429), 1), NO, "{kind:?}");
        }
        for (kind, status) in [(FaultKind::Unauthorized, 401), (FaultKind::NotFound, 404), (FaultKind::Invalid, 400)] {
            assert_eq!(decide(&Fault::new(kind, "").with_status(status), 1), NO, "{kind:?}");
        }
    }

    #[test]
    fn a_server_error_is_tried_three_times_in_all() {
        let fault = Fault::new(FaultKind::Server, "").with_status(500);
        assert!(matches!(decide(&fault, 1), Decision::Retry { .. }));
        assert!(matches!(decide(&fault, 2), Decision::Retry { .. }));
        assert_eq!(decide(&fault, 3), EXHAUSTED);
    }

    #[test]
    fn an_overloaded_model_is_tried_five_times_with_longer_delays() {
        let config = RetryConfig { jitter: crate::config::Jitter::None, ..RetryConfig::default() };
        let policy = RetryPolicy::new(Arc::new(config));
        let fault = Fault::new(FaultKind::Overloaded, "").with_status(503);
        let random = &mut fastrand::Rng::with_seed(1);
        let delays: Vec<_> =
            (1..=5).map(|attempts| policy.decide(&fault, history(attempts), Priority::Normal, random)).collect();
        let seconds = |delay| Decision::Retry { delay: Duration::from_secs(delay) };
        assert_eq!(delays, [seconds(10), seconds(20), seconds(40), seconds(60), EXHAUSTED]);
    }

    #[test]
    fn a_rate_limit_uses_up_no_attempt_but_has_a_cap_of_its_own() {
        let mut fault = Fault::new(FaultKind::RateLimited, "").with_status(429);
        fault.wait = Some(Duration::from_millis(644));
        let random = &mut fastrand::Rng::with_seed(1);
        let mut history = History { attempts: 99, rate_limits: 9, previous_delay: Duration::ZERO };
        let again = policy().decide(&fault, history, Priority::Normal, random);
        assert_eq!(again, Decision::Retry { delay: Duration::from_millis(644) });
        history.rate_limits = 10;
        assert_eq!(policy().decide(&fault, history, Priority::Normal, random), EXHAUSTED);
    }

    #[test]
    fn the_servers_wait_is_a_floor_with_jitter_on_top() {
        let mut fault = Fault::new(FaultKind::Server, "").with_status(503);
        fault.wait = Some(Duration::from_secs(45));
        for seed in 0..100 {
            let decision = policy().decide(&fault, history(1), Priority::High, &mut fastrand::Rng::with_seed(seed));
            let Decision::Retry { delay } = decision else { panic!("{decision:?}") };
            assert!(delay >= Duration::from_secs(45) && delay <= Duration::from_secs(46), "{delay:?}");
        }
    }

    #[test]
    fn a_server_that_says_no_is_believed() {
        let mut fault = Fault::new(FaultKind::Server, "").with_status(500);
        fault.should_retry = Some(false);
        assert_eq!(decide(&fault, 1), NO);
    }

    #[test]
    fn an_operator_may_list_quota_as_retryable() {
        let mut config = RetryConfig::default();
        config.retryable_errors.push("insufficient_quota".into());
        let policy = RetryPolicy::new(Arc::new(config));
        assert!(policy.is_retryable(&Fault::new(FaultKind::QuotaExhausted, "").with_status(429)));
    }

    #[test]
    fn high_priority_waits_half_as_long_and_low_half_as_long_again() {
        let config = RetryConfig { jitter: crate::config::Jitter::None, ..RetryConfig::default() };
        let policy = RetryPolicy::new(Arc::new(config));
        let fault = Fault::new(FaultKind::Server, "").with_status(500);
        let delays =
            Priority::ALL.map(|priority| policy.decide(&fault, history(1), priority, &mut fastrand::Rng::with_seed(1)));
        assert_eq!(delays, [1500, 1000, 500].map(|millis| Decision::Retry { delay: Duration::from_millis(millis) }));
    }

    #[test]
    fn a_strategy_of_ones_own_comes_before_the_rules() {
        #[derive(Debug)]
        struct Thrice;
        impl RetryStrategy for Thrice {
            fn should_retry(&self, _: &Fault, attempt: u32) -> bool {
                attempt < 3
            }
            fn delay(&self, attempt: u32) -> Duration {
                Duration::from_secs(u64::from(attempt))
            }
        }
        let policy = policy().with_strategy("invalid_request", Arc::new(Thrice));
        let fault = Fault::new(FaultKind::Invalid, "").with_status(400);
        let random = &mut fastrand::Rng::with_seed(1);
        let again = policy.decide(&fault, history(2), Priority::Normal, random);
        assert_eq!(again, Decision::Retry { delay: Duration::from_secs(2) });
        let enough = policy.decide(&fault, history(3), Priority::Normal, random);
        assert_eq!(enough, Decision::GiveUp(GiveUpReason::AttemptsExhausted));
        let fault = Fault { should_retry: Some(false), ..fault };
        assert_eq!(
            policy.decide(&fault, history(1), Priority::Normal, random),
            NO,
            "nor does it ask for what cannot be"
        );
    }
}
