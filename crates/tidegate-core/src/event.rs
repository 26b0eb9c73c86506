//! Everything that happened, typed: what watchers are told.
//!
//! Made only while somebody listens, so that nobody pays for events that nobody reads.

use std::sync::Arc;
use std::time::Duration;

use crate::breaker::BreakerState;
use crate::fault::FaultKind;
use crate::limit::Dimension;
use crate::refusal::{GiveUpReason, LimitReport};

/// A call that waits for so long is out of the ordinary.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Which events are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// None.
    #[default]
    Nothing,
    /// Those that are out of the ordinary: see [`Event::is_notable`].
    Notable,
    /// All, those included that each call brings along.
    Everything,
}

/// On whose behalf a call is made, and at what it is aimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Whom the queue is fair between.
    pub tenant: Arc<str>,
    /// End user.
    pub user: Option<Arc<str>>,
    /// `upstream/model group`.
    pub target: Arc<str>,
}

/// One thing that happened.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A call began to wait.
    Queued {
        /// The call.
        call: Arc<str>,
        /// The limit that binds it.
        limit: Arc<str>,
        /// The dimension that binds it; `None` while a breaker or a pause does.
        dimension: Option<Dimension>,
    },
    /// A call was let through.
    Granted {
        /// The call.
        call: Arc<str>,
        /// Whose.
        whose: Whose,
        /// 1 for the first send.
        attempt: u32,
        /// How long it has waited in all.
        queued_for: Duration,
        /// The limit that it waited for (`team/acme/tokens_per_minute`); `None` where it waited for none.
        limit: Option<Arc<str>>,
    },
    /// A call was refused.
    Refused {
        /// The call.
        call: Arc<str>,
        /// Whose.
        whose: Whose,
        /// `limit`, `too_large`, `queue_full`, `breaker`, `paused` or `draining`.
        reason: &'static str,
        /// Which limit, and how it stood, where one refused it.
        limit: Option<LimitReport>,
        /// How long it had waited by then.
        waited: Duration,
        /// How long it was told to wait; `None` where waiting cannot help.
        retry_after: Option<Duration>,
    },
    /// An attempt begins.
    AttemptStart {
        /// The call.
        call: Arc<str>,
        /// 1 for the first.
        attempt: u32,
    },
    /// An attempt went well.
    AttemptSuccess {
        /// The call.
        call: Arc<str>,
        /// Which attempt.
        attempt: u32,
        /// From its grant to its end.
        duration: Duration,
    },
    /// An attempt failed.
    AttemptFailed {
        /// The call.
        call: Arc<str>,
        /// Whose; `None` where a retry runner alone made it.
        whose: Option<Whose>,
        /// Which attempt.
        attempt: u32,
        /// How.
        kind: FaultKind,
    },
    /// Another attempt will be made.
    RetryScheduled {
        /// The call.
        call: Arc<str>,
        /// The attempt that failed.
        attempt: u32,
        /// Until the next one, at the earliest.
        delay: Duration,
    },
    /// No further attempt will be made.
    OperationFailed {
        /// The call.
        call: Arc<str>,
        /// Attempts made.
        attempts: u32,
        /// Why no more.
        reason: GiveUpReason,
        /// How the last one failed.
        kind: FaultKind,
    },
    /// An attempt has been settled: what it had reserved, and what it was charged in the end.
    Settled {
        /// The call.
        call: Arc<str>,
        /// Tokens that own limits had set aside for it.
        reserved: u64,
        /// Tokens that they keep.
        charged: u64,
    },
    /// Use has been counted: of an attempt that was sent, or as it was recorded from elsewhere.
    UsageRecorded {
        /// The call.
        call: Arc<str>,
        /// End user, where known.
        user: Option<Arc<str>>,
        /// Organization, where known.
        organization: Option<Arc<str>>,
        /// The model group.
        model: Arc<str>,
        /// Requests.
        requests: u64,
        /// Tokens.
        tokens: u64,
    },
    /// Levels that nobody has used for long, and that are full again, were forgotten.
    RecordsCleaned {
        /// How many.
        removed: u64,
    },
    /// A reply broke off after part of it had gone to the caller.
    StreamBroken {
        /// The call.
        call: Arc<str>,
        /// How.
        kind: FaultKind,
    },
    /// A call used more than it had reserved, and a level went below zero.
    DebtIncurred {
        /// The call.
        call: Arc<str>,
        /// The limit.
        limit: Arc<str>,
        /// Units below zero.
        debt: u64,
    },
    /// The server's limit became known, or changed.
    LimitLearned {
        /// `upstream/model group`.
        target: Arc<str>,
        /// Which dimension.
        dimension: Dimension,
        /// Units per period.
        limit: u64,
    },
    /// Retries have used up their share of calls.
    RetryBudgetExhausted,
    /// A half-open breaker let a probe go.
    ProbeStarted {
        /// `upstream/model group`.
        breaker: Arc<str>,
    },
    /// A breaker changed its state.
    StateChanged {
        /// `upstream/model group`.
        breaker: Arc<str>,
        /// Before.
        from: BreakerState,
        /// Now.
        to: BreakerState,
        /// What opened it, for people. Empty: nothing did, or nobody knows.
        cause: Arc<str>,
    },
    /// A breaker saw an attempt go well.
    CallSuccess {
        /// `upstream/model group`, or the breaker's own name.
        breaker: Arc<str>,
        /// From its permit to its end.
        duration: Duration,
        /// The state after it.
        state: BreakerState,
    },
    /// A breaker saw the service fail.
    CallFailure {
        /// `upstream/model group`, or the breaker's own name.
        breaker: Arc<str>,
        /// How.
        kind: FaultKind,
        /// From its permit to its end.
        duration: Duration,
        /// The state after it.
        state: BreakerState,
        /// Failures in a row, this one included.
        failure_count: u32,
    },
    /// Calls have left a breaker's monitoring period.
    HistoryCleaned {
        /// `upstream/model group`, or the breaker's own name.
        breaker: Arc<str>,
        /// How many.
        removed: u64,
    },
    /// A callback or strategy of the program's own panicked or failed. It was contained: the call went on.
    CallbackError {
        /// Which: `on_state_change`, `retry_strategy`.
        callback: &'static str,
        /// What it said.
        message: Arc<str>,
    },
    /// A caller seems to go round its limits.
    BypassSuspected {
        /// Its key, or the tenant where it has none.
        caller: Arc<str>,
        /// `new_users`: it brings unusually many that it never named before, or throws them away. `early_returns`: it comes back before the time it was told.
        pattern: &'static str,
        /// How many.
        count: u64,
    },
    /// What operators decided for all processes alike is in force.
    OverrideApplied {
        /// Its version.
        version: u64,
    },
    /// What an operator had raised for a while is as it was before.
    BoostEnded {
        /// The limit.
        limit: Arc<str>,
    },
    /// Levels were set back to full.
    LimitsReset,
    /// A new configuration is in force.
    ConfigUpdated,
}

impl Event {
    /// Whether it is out of the ordinary: no part of what a call brings along that goes well, and within a second, at its first
    /// attempt.
    #[must_use]
    pub fn is_notable(&self) -> bool {
        match self {
            Self::Granted { attempt, queued_for, .. } => *attempt > 1 || *queued_for >= LONG_WAIT,
            Self::AttemptSuccess { attempt, .. } => *attempt > 1,
            Self::Queued { .. }
            | Self::AttemptStart { .. }
            | Self::Settled { .. }
            | Self::UsageRecorded { .. }
            | Self::DebtIncurred { .. }
            | Self::CallSuccess { .. }
            | Self::CallFailure { .. }
            | Self::RecordsCleaned { .. }
            | Self::HistoryCleaned { .. } => false,
            _ => true,
        }
    }
}
