//! Decides what the core is told, as validated types with the contract's defaults: limits, queue, retry, breaker.
//!
//! Reads no text; the reader beside it fills these in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::call::Priority;
use crate::limit::Limit;

/// `[queue]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Queueing and back-off together; no attempt starts after it.
    pub max_wait: Duration,
    /// Calls that may wait at once.
    pub max_waiting: usize,
    /// Bytes of bodies that may wait at once; and, counted apart, that may be read at once.
    pub max_bytes: u64,
    /// Shares of the room while classes contend, by [`crate::call::Priority::index`].
    pub priorities: [u32; 3],
    /// Share of each level left free by lower classes while a higher one was active in the last 10 minutes. 0 to 1.
    pub reserve: f64,
    /// Shares between tenants of one class; 1 where not named.
    pub weights: BTreeMap<Arc<str>, u32>,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_secs(240),
            max_waiting: 10_000,
            max_bytes: 512 << 20,
            priorities: [1, 4, 8],
            reserve: 0.5,
            weights: BTreeMap::new(),
        }
    }
}

impl QueueConfig {
    /// How long calls may wait that say nothing of it, queueing and back-off together.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Calls that may wait at once.
    #[must_use]
    pub fn with_max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// Share of each level, 0 to 1, that lower classes leave free while a higher one is active.
    #[must_use]
    pub fn with_reserve(mut self, share: f64) -> Self {
        self.reserve = share;
        self
    }

    /// The share of a tenant among those of one class. Absent: 1.
    #[must_use]
    pub fn with_weight(mut self, tenant: impl Into<Arc<str>>, weight: u32) -> Self {
        self.weights.insert(tenant.into(), weight);
        self
    }
}

/// How random the delay before a retry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Jitter {
    /// Exactly the delay.
    None,
    /// Anything up to the delay. Source: AWS, "Exponential Backoff and Jitter".
    #[default]
    Full,
    /// Half the delay and up to half on top.
    Equal,
    /// Between the base delay and three times the delay before.
    Decorrelated,
    /// The delay and up to a quarter on top.
    Additive,
}

/// `[retry.strategy.NAME]`: what is different for one error class or code. `None`: as in `[retry]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RetryStrategyConfig {
    /// Sends, the first included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Delay before the first retry.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bound_as_text")]
    pub base_delay: Option<Duration>,
    /// Bound of our own delays.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bound_as_text")]
    pub max_delay: Option<Duration>,
    /// Growth from retry to retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_multiplier: Option<f64>,
}

impl RetryStrategyConfig {
    /// Sends, the first included.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The delay before the first retry, and the bound of those after it.
    #[must_use]
    pub fn with_delays(mut self, base: Duration, max: Duration) -> Self {
        (self.base_delay, self.max_delay) = (Some(base), Some(max));
        self
    }

    /// Growth from retry to retry.
    #[must_use]
    pub fn with_backoff_multiplier(mut self, multiplier: f64) -> Self {
        self.backoff_multiplier = Some(multiplier);
        self
    }
}

/// `retry.budget`: retries may not exceed this share of calls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RetryBudgetConfig {
    /// Retries per call.
    pub ratio: f64,
    /// Retries a second that are allowed however few calls there are.
    pub min_per_second: u32,
}

/// `[retry]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Sends, the first included.
    pub max_attempts: u32,
    /// How long one attempt may take. `None`: no bound.
    #[serde(serialize_with = "bound_as_text")]
    pub attempt_timeout: Option<Duration>,
    /// How long a call may take from its arrival. `None`: no bound.
    #[serde(serialize_with = "bound_as_text")]
    pub total_timeout: Option<Duration>,
    /// Delay before the first retry.
    #[serde(serialize_with = "as_text")]
    pub base_delay: Duration,
    /// Bound of our own delays; a server's longer wait is honoured up to the deadline.
    #[serde(serialize_with = "as_text")]
    pub max_delay: Duration,
    /// Growth from retry to retry.
    pub backoff_multiplier: f64,
    /// How random delays are.
    pub jitter: Jitter,
    /// Statuses worth a retry.
    pub retryable_status_codes: Vec<u16>,
    /// Error classes or codes worth a retry.
    pub retryable_errors: Vec<String>,
    /// Factor on delays, by [`crate::call::Priority::index`].
    #[serde(serialize_with = "by_priority")]
    pub priority_factor: [f64; 3],
    /// Bound on retries as a share of calls.
    pub budget: RetryBudgetConfig,
    /// By error class or code.
    #[serde(rename = "strategy")]
    pub strategies: BTreeMap<String, RetryStrategyConfig>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            attempt_timeout: None,
            total_timeout: Some(Duration::from_secs(600)),
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            backoff_multiplier: 2.0,
            jitter: Jitter::Full,
            retryable_status_codes: vec![408, 409, 429, 500, 502, 503, 504],
            retryable_errors: [
                "rate_limit_exceeded",
                "model_overloaded",
                "timeout",
                "connection_error",
                "temporary_error",
            ]
            .map(String::from)
            .to_vec(),
            priority_factor: [1.5, 1.0, 0.5],
            budget: RetryBudgetConfig { ratio: 0.2, min_per_second: 10 },
            strategies: BTreeMap::from([(
                "model_overloaded".to_owned(),
                RetryStrategyConfig {
                    max_attempts: Some(5),
                    base_delay: Some(Duration::from_secs(10)),
                    max_delay: Some(Duration::from_secs(60)),
                    backoff_multiplier: None,
                },
            )]),
        }
    }
}

impl RetryConfig {
    /// Sends, the first included.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// How long one attempt may take.
    #[must_use]
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// How long a call may take in all.
    #[must_use]
    pub fn with_total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// The delay before the first retry, and the bound of those after it.
    #[must_use]
    pub fn with_delays(mut self, base: Duration, max: Duration) -> Self {
        (self.base_delay, self.max_delay) = (base, max);
        self
    }

    /// Growth from retry to retry.
    #[must_use]
    pub fn with_backoff_multiplier(mut self, multiplier: f64) -> Self {
        self.backoff_multiplier = multiplier;
        self
    }

    /// Another error class or code that is worth a retry.
    #[must_use]
    pub fn with_retryable_error(mut self, error: impl Into<String>) -> Self {
        self.retryable_errors.push(error.into());
        self
    }

    /// No other rule for any error class or code.
    #[must_use]
    pub fn without_strategies(mut self) -> Self {
        self.strategies.clear();
        self
    }

    /// How random delays are.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Retries as a share of calls, and so many a second however few calls there are.
    #[must_use]
    pub fn with_budget(mut self, ratio: f64, min_per_second: u32) -> Self {
        self.budget = RetryBudgetConfig { ratio, min_per_second };
        self
    }

    /// What is different for one error class or code.
    #[must_use]
    pub fn with_strategy(mut self, error: impl Into<String>, strategy: RetryStrategyConfig) -> Self {
        self.strategies.insert(error.into(), strategy);
        self
    }
}

fn by_priority<S: Serializer>(factors: &[f64; 3], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Priority::ALL.map(|priority| (priority.name(), factors[priority.index()])))
}

/// `[breaker]`: one breaker per account and model group.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// Share of failures within `monitoring_period` that opens it.
    pub failure_rate: f64,
    /// The window in which calls are counted.
    #[serde(serialize_with = "as_text")]
    pub monitoring_period: Duration,
    /// Calls in the window before a rate counts.
    pub minimum_calls: u32,
    /// Where more than one tenant was active, failures must come from so many.
    pub min_tenants: u32,
    /// Calls slower than this to their first byte count as slow. `None`: off.
    #[serde(serialize_with = "bound_as_text")]
    pub slow_call_duration: Option<Duration>,
    /// Share of slow calls within the window that opens it.
    pub slow_call_rate: f64,
    /// How long it stays open the first time.
    #[serde(serialize_with = "as_text")]
    pub recovery_timeout: Duration,
    /// Probes at once, and successes that close it.
    pub half_open_max_calls: u32,
    /// After closing, traffic comes back as a ramp over this, at most as long as it was open.
    #[serde(serialize_with = "as_text")]
    pub expected_recovery_time: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_threshold: 5,
            failure_rate: 0.5,
            monitoring_period: Duration::from_secs(300),
            minimum_calls: 10,
            min_tenants: 2,
            slow_call_duration: None,
            slow_call_rate: 0.8,
            recovery_timeout: Duration::from_secs(60),
            half_open_max_calls: 3,
            expected_recovery_time: Duration::from_secs(120),
        }
    }
}

impl BreakerConfig {
    /// Consecutive failures that open it.
    #[must_use]
    pub fn with_failure_threshold(mut self, failures: u32) -> Self {
        self.failure_threshold = failures;
        self
    }

    /// Share of failures that opens it, once `minimum_calls` were seen within the monitoring period.
    #[must_use]
    pub fn with_failure_rate(mut self, rate: f64, minimum_calls: u32) -> Self {
        self.failure_rate = rate;
        self.minimum_calls = minimum_calls;
        self
    }

    /// The window in which calls are counted.
    #[must_use]
    pub fn with_monitoring_period(mut self, period: Duration) -> Self {
        self.monitoring_period = period;
        self
    }

    /// How long it stays open the first time.
    #[must_use]
    pub fn with_recovery_timeout(mut self, timeout: Duration) -> Self {
        self.recovery_timeout = timeout;
        self
    }

    /// Probes at once while half-open, and successes that close it.
    #[must_use]
    pub fn with_half_open_max_calls(mut self, calls: u32) -> Self {
        self.half_open_max_calls = calls;
        self
    }

    /// How long traffic takes to come back after closing.
    #[must_use]
    pub fn with_expected_recovery_time(mut self, time: Duration) -> Self {
        self.expected_recovery_time = time;
        self
    }

    /// Calls slower than `duration` count as slow; a share of `rate` of them opens it.
    #[must_use]
    pub fn with_slow_calls(mut self, duration: Duration, rate: f64) -> Self {
        self.slow_call_duration = Some(duration);
        self.slow_call_rate = rate;
        self
    }
}

/// How an upstream charges tokens when it admits a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TokenCharge {
    /// The input.
    Input,
    /// Input and the ceiling on output together.
    InputPlusMax,
    /// The larger of input and the ceiling on output.
    Max,
    /// What the call really used, once it has ended.
    Usage,
    /// Found out from its replies.
    #[default]
    Learned,
}

/// What the core must know of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamPolicy {
    /// As in `upstream.name`; the part of an account before `#`.
    pub name: Arc<str>,
    /// Whether an implicit mirror limit per account and model group follows its headers.
    pub learn_limits: bool,
    /// How it charges tokens.
    pub token_charge: TokenCharge,
}

/// Where the refill of configured levels comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LevelSource {
    /// They refill by themselves, in this process.
    #[default]
    Rate,
    /// They are shared: whoever keeps them answers the gate's demands with credit.
    Credit,
}

/// Everything that a `Gate` is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// `[limit.NAME]`, in the file's order.
    pub limits: Vec<Limit>,
    /// `[queue]`.
    pub queue: QueueConfig,
    /// `[retry]`.
    pub retry: RetryConfig,
    /// `[breaker]`.
    pub breaker: BreakerConfig,
    /// `[[upstream]]`, as far as the core is concerned; an account of any other upstream learns everything.
    pub upstreams: Vec<UpstreamPolicy>,
    /// Whether configured levels of requests and tokens are this process's own or shared; calls in flight are always its own.
    pub level_source: LevelSource,
}

/// `1m 30s`.
fn as_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// The same, where none is zero.
fn bound_as_text<S: Serializer>(bound: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    as_text(&bound.unwrap_or_default(), serializer)
}
