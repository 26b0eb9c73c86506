//! Decides which kinds of failure there are, and what each means for limits, retry and breaker.
//!
//! Knows no provider's words; `openai::faults` translates them, statuses too, into these.

use std::time::Duration;

use crate::limit::Dimension;

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// 429: a rate of requests or tokens is used up for now. Waits its turn again; uses up no attempt.
    RateLimited,
    /// 429: asks for more than the limit ever holds. Never retried.
    TooLarge,
    /// 429: the bill or a spending cap. Waiting cannot pay a bill: never retried.
    QuotaExhausted,
    /// 429 or 503 `slow_down`: traffic grew too fast. Retried later, at a lower rate.
    SlowDown,
    /// 503 or 529: the model is overloaded.
    Overloaded,
    /// Any other 5xx.
    Server,
    /// 408.
    RequestTimeout,
    /// 409.
    Conflict,
    /// 401 or 403.
    Unauthorized,
    /// 404.
    NotFound,
    /// Any other 4xx: the request itself is wrong.
    Invalid,
    /// No connection: refused, reset before a byte of the reply, TLS.
    Connect,
    /// The name did not resolve.
    Dns,
    /// Connected and sent, but no reply in time.
    Timeout,
    /// The reply broke off.
    Broken,
    /// An error that nobody here can judge. Neither retried, unless `unknown_error` is listed, nor held against the service.
    Unknown,
}

impl FaultKind {
    /// True if it says something about the health of the service, and so counts for the breaker.
    /// Rate limits, quotas and mistakes of the caller do not, nor what is not known.
    #[must_use]
    pub const fn is_service_fault(self) -> bool {
        matches!(self, Self::Overloaded | Self::Server | Self::Connect | Self::Dns | Self::Timeout | Self::Broken)
    }

    /// True if the request never reached the upstream, so that nothing of it counts.
    #[must_use]
    pub const fn never_arrived(self) -> bool {
        matches!(self, Self::Connect | Self::Dns)
    }

    /// True for the 429s that speak of a rate.
    #[must_use]
    pub const fn is_rate(self) -> bool {
        matches!(self, Self::RateLimited | Self::SlowDown)
    }

    /// True if the upstream may have done, and billed, work before it failed.
    #[must_use]
    pub const fn may_be_billed(self) -> bool {
        matches!(self, Self::Timeout | Self::Broken | Self::Unknown)
    }

    /// The name of the error class in `retry.retryable_errors` and `[retry.strategy.NAME]`.
    #[must_use]
    pub const fn error_class(self) -> &'static str {
        match self {
            Self::RateLimited | Self::SlowDown => "rate_limit_exceeded",
            Self::TooLarge => "request_too_large",
            Self::QuotaExhausted => "insufficient_quota",
            Self::Overloaded => "model_overloaded",
            Self::Server | Self::RequestTimeout | Self::Conflict => "temporary_error",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid_request",
            Self::Connect | Self::Dns | Self::Broken => "connection_error",
            Self::Timeout => "timeout",
            Self::Unknown => "unknown_error",
        }
    }
}

/// The numbers of a 429's message: `Limit 30000, Used 29937, Requested 385`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitNumbers {
    /// Which dimension, where the message names it.
    pub dimension: Option<Dimension>,
    /// The limit.
    pub limit: u64,
    /// What is in use. `None` for `Request too large`, which does not say.
    pub used: Option<u64>,
    /// What was asked. `None` where the message does not say.
    pub requested: Option<u64>,
}

/// A failed attempt, in the core's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub kind: FaultKind,
    /// HTTP status, where there was one; for an in-band error, that of the reply it came in.
    pub status: Option<u16>,
    /// The provider's own code or type, as in `[retry.strategy.CODE]`.
    pub code: Option<Box<str>>,
    /// How long the server asked us to wait. Never zero.
    pub wait: Option<Duration>,
    /// The numbers in the message.
    pub numbers: Option<LimitNumbers>,
    /// The model group that the message names: `(for limit gpt-4.1)`.
    pub limit_group: Option<Box<str>>,
    /// `x-should-retry`, where the server sent it.
    pub should_retry: Option<bool>,
    /// One line for people. Never holds prompts or completions.
    pub summary: Box<str>,
}

impl Fault {
    /// A fault of `kind` with nothing else known.
    #[must_use]
    pub fn new(kind: FaultKind, summary: impl Into<Box<str>>) -> Self {
        Self {
            kind,
            status: None,
            code: None,
            wait: None,
            numbers: None,
            limit_group: None,
            should_retry: None,
            summary: summary.into(),
        }
    }

    /// What a reply with `status` means of which nothing else is known.
    ///
    /// ```
    /// # use tidegate_core::fault::{Fault, FaultKind};
    /// assert_eq!(Fault::of_status(429).kind, FaultKind::RateLimited);
    /// ```
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        // A status below 400 of what is called a failure is a server's that does not know what it says.
        let unexpected = || Self::new(FaultKind::Server, format!("status {status}")).with_status(status);
        crate::openai::faults::classify(status, &[("", ""); 0], b"", Duration::ZERO).unwrap_or_else(unexpected)
    }

    /// The same with a status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary)
    }
}

impl std::error::Error for Fault {}
