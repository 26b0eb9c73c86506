//! Decides what is said of a call that may not go, or may not be tried again: every number that explains it.
//!
//! Renders nothing; the edges put it into their own words.

use std::sync::Arc;
use std::time::Duration;

use crate::fault::Fault;
use crate::limit::Dimension;
use crate::time::Time;

/// Why a call was not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A limit had no room before the call's deadline.
    Limit(LimitReport),
    /// It asks for more than a limit ever holds; waiting cannot help.
    TooLarge(LimitReport),
    /// Too many calls, or bytes of bodies, are waiting already.
    QueueFull {
        /// Calls waiting.
        waiting: usize,
    },
    /// The circuit breaker is open, or half-open with every probe under way.
    Breaker(BreakerReport),
    /// An operator paused everything.
    Paused {
        /// What the operator said.
        reason: Arc<str>,
    },
    /// The process is about to end.
    Draining,
}

impl Reason {
    /// The word used in the header `x-tidegate-reason`, in events and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::TooLarge(_) => "too_large",
            Self::QueueFull { .. } => "queue_full",
            Self::Breaker(_) => "breaker",
            Self::Paused { .. } => "paused",
            Self::Draining => "draining",
        }
    }
}

/// Which limit, and how it stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReport {
    /// The limit's name, as configured; `learned` for an upstream's own.
    pub limit: Arc<str>,
    /// Which of its levels: the key's parts joined by `/`, credentials left out; empty where it has one level for all.
    pub key: Arc<str>,
    /// The dimension that binds.
    pub dimension: Dimension,
    /// Units per period. 0: blocked.
    pub allowed: u64,
    /// Units in use.
    pub used: u64,
    /// Units asked.
    pub requested: u64,
    /// Units that it has to leave for calls of higher priority (`queue.reserve`). 0: none.
    pub kept: u64,
}

impl LimitReport {
    /// `team/acme/tokens_per_minute`, as in the header `x-tidegate-limit`.
    #[must_use]
    pub fn path(&self) -> String {
        if self.key.is_empty() {
            format!("{}/{}", self.limit, self.dimension.name())
        } else {
            format!("{}/{}/{}", self.limit, self.key, self.dimension.name())
        }
    }
}

/// How a breaker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerReport {
    /// `upstream/model group`.
    pub name: Arc<str>,
    /// `open`, `half_open` or `forced_open`.
    pub state: &'static str,
    /// What opened it, for people: `5 failures in a row, last 503`.
    pub cause: Arc<str>,
    /// When the next probe may go. `None`: when an operator says so, or when a probe under way ends.
    pub next_probe_at: Option<Time>,
    /// Probes under way and allowed at once, while half-open.
    pub probes: (u32, u32),
}

/// A call that was not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The model group.
    pub model: Arc<str>,
    /// How long it had waited by then.
    pub waited: Duration,
    /// When coming back makes sense: when it would have been let through as far as is known, or the least that can be told (a
    /// second) where room comes when other calls end. Never zero. `None`: not known of a breaker or a pause, or never.
    pub retry_after: Option<Duration>,
}

/// Why no further attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GiveUpReason {
    /// The fault is none that a retry can mend.
    NotRetryable,
    /// All attempts are used up.
    AttemptsExhausted,
    /// Retries have used up their share of calls.
    BudgetExhausted,
    /// The next attempt could not start, or end, in time.
    DeadlineExceeded,
}

impl GiveUpReason {
    /// The word used in events and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotRetryable => "not_retryable",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::BudgetExhausted => "budget_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
        }
    }
}

/// The end of a call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiveUp {
    /// Why no further attempt is made.
    pub reason: GiveUpReason,
    /// Attempts made.
    pub attempts: u32,
    /// Attempts that were allowed.
    pub max_attempts: u32,
    /// How the last one failed.
    pub last: Fault,
    /// Since the call arrived.
    pub elapsed: Duration,
    /// How long a further attempt would have had to wait, where the server said so.
    pub retry_after: Option<Duration>,
}

/// What follows when an attempt has been settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the call has ended.
    Done,
    /// It is queued again with its age kept, and goes no earlier than `not_before`. Granted or Refused follows.
    Retry {
        /// Earliest instant of the next attempt.
        not_before: Time,
    },
    /// No further attempt.
    GiveUp(Box<GiveUp>),
}
