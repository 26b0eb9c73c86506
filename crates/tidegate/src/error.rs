//! Decides what a program is told when a call did not end well: one enum, with every number that explains it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_core::breaker::BreakerState;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::refusal::{BreakerReport, GiveUpReason, LimitReport, Reason, Refusal};

use crate::clock;
use crate::fault::ToFault;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call did not end well.
///
/// "Not sent" is said of the attempt that was to be made: where that was not the first, `earlier` says what came of those before.
///
/// Says in its own words what happened; what an operation's own error says is that of its [`source`](std::error::Error::source).
#[non_exhaustive]
#[derive(Debug)]
pub enum Error {
    /// A limit had no room before the call's deadline. It was not sent.
    #[non_exhaustive]
    Refused {
        /// Which limit, what was asked, what it allows, what is in use.
        limit: Box<LimitReport>,
        /// How long it had waited.
        waited: Duration,
        /// After this there would be room, if nobody else came. `None`: not known.
        retry_after: Option<Duration>,
        /// What came of the attempts that were made before. `None`: it was the first that was refused.
        earlier: Option<Box<Earlier>>,
    },
    /// It asks for more than a limit ever holds; waiting cannot help. It was not sent.
    #[non_exhaustive]
    TooLarge {
        /// Which limit, what was asked, what it allows.
        limit: Box<LimitReport>,
        /// What came of the attempts that were made before. `None`: it was the first that was refused.
        earlier: Option<Box<Earlier>>,
    },
    /// Too many calls are waiting already. It was not sent.
    #[non_exhaustive]
    QueueFull {
        /// How many.
        waiting: usize,
        /// After this there may be a place. `None`: not known.
        retry_after: Option<Duration>,
        /// What came of the attempts that were made before. `None`: it was the first that was refused.
        earlier: Option<Box<Earlier>>,
    },
    /// The circuit breaker is open, or half-open with every probe under way. It was not sent.
    #[non_exhaustive]
    CircuitOpen {
        /// Which breaker, what opened it, its probes.
        breaker: Box<BreakerReport>,
        /// When the next probe may go. `None`: when somebody says so, or when a probe under way ends.
        until: Option<SystemTime>,
        /// The same, counted from now.
        retry_after: Option<Duration>,
        /// What came of the attempts that were made before. `None`: it was the first that was refused.
        earlier: Option<Box<Earlier>>,
    },
    /// It was tried as often as allowed, or for as long, and failed each time.
    #[non_exhaustive]
    Exhausted {
        /// Attempts made.
        attempts: u32,
        /// Why no more.
        reason: GiveUpReason,
        /// What kind of failure the last one was.
        fault: Box<Fault>,
        /// The last one's error.
        last: BoxError,
        /// The upstream may have done, and billed, work in the last one.
        may_be_billed: bool,
    },
    /// It was not done in time. What was under way has been cancelled.
    #[non_exhaustive]
    Timeout {
        /// The bound.
        after: Duration,
        /// Attempts begun.
        attempts: u32,
        /// The error of the last attempt that ended before. `None`: none had.
        last: Option<BoxError>,
        /// The upstream may have done, and billed, work in the last one.
        may_be_billed: bool,
    },
    /// Nothing new is let through: paused, or about to end.
    #[non_exhaustive]
    Cancelled {
        /// Why.
        reason: Arc<str>,
        /// What came of the attempts that were made before. `None`: it was the first that was refused.
        earlier: Option<Box<Earlier>>,
    },
    /// The operation failed in a way that is not retried.
    #[non_exhaustive]
    Upstream {
        /// What kind of failure it was.
        fault: Box<Fault>,
        /// The operation's own error.
        error: BoxError,
    },
}

/// What came of the attempts of a call of which a further one was refused.
#[non_exhaustive]
#[derive(Debug)]
pub struct Earlier {
    /// Attempts made.
    pub attempts: u32,
    /// The last one's error.
    pub last: BoxError,
    /// The upstream may have done, and billed, work in one of them.
    pub may_be_billed: bool,
}

impl Error {
    /// After how long it is worth coming back, where that is known. Never zero.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. }
            | Self::QueueFull { retry_after, .. }
            | Self::CircuitOpen { retry_after, .. } => *retry_after,
            Self::Upstream { fault, .. } | Self::Exhausted { fault, .. } => fault.wait,
            Self::TooLarge { .. } | Self::Timeout { .. } | Self::Cancelled { .. } => None,
        }
    }

    /// True if the upstream may have done, and billed, work for it.
    #[must_use]
    pub fn may_be_billed(&self) -> bool {
        match self {
            Self::Exhausted { may_be_billed, .. } | Self::Timeout { may_be_billed, .. } => *may_be_billed,
            Self::Upstream { fault, .. } => fault.kind.may_be_billed(),
            _ => self.earlier().is_some_and(|earlier| earlier.may_be_billed),
        }
    }

    /// What came of the attempts that were made before one was refused. `None`: none was, or none was made.
    #[must_use]
    pub fn earlier(&self) -> Option<&Earlier> {
        match self {
            Self::Refused { earlier, .. }
            | Self::TooLarge { earlier, .. }
            | Self::QueueFull { earlier, .. }
            | Self::CircuitOpen { earlier, .. }
            | Self::Cancelled { earlier, .. } => earlier.as_deref(),
            Self::Exhausted { .. } | Self::Timeout { .. } | Self::Upstream { .. } => None,
        }
    }

    /// The same refusal, of a call that had come so far.
    pub(crate) fn after(mut self, made: Option<Earlier>) -> Self {
        if let Self::Refused { earlier, .. }
        | Self::TooLarge { earlier, .. }
        | Self::QueueFull { earlier, .. }
        | Self::CircuitOpen { earlier, .. }
        | Self::Cancelled { earlier, .. } = &mut self
        {
            *earlier = made.map(Box::new);
        }
        self
    }

    /// The operation's own error, the last if there were several, if it is one of type `E`.
    #[must_use]
    pub fn upstream<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.cause()?.downcast_ref()
    }

    fn cause(&self) -> Option<&BoxError> {
        match self {
            Self::Upstream { error, .. } | Self::Exhausted { last: error, .. } => Some(error),
            Self::Timeout { last, .. } => last.as_ref(),
            _ => self.earlier().map(|earlier| &earlier.last),
        }
    }

    pub(crate) fn cancelled(reason: impl Into<Arc<str>>) -> Self {
        Self::Cancelled { reason: reason.into(), earlier: None }
    }

    /// An operation's own error, which is not retried; what is one of ours already stays as it is.
    pub(crate) fn of_upstream(fault: Box<Fault>, error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => *ours,
            Err(error) => Self::Upstream { fault, error },
        }
    }

    pub(crate) fn circuit_open(breaker: BreakerReport, retry_after: Option<Duration>) -> Self {
        let until = breaker.next_probe_at.map(clock::system_time);
        Self::CircuitOpen { breaker: Box::new(breaker), until, retry_after, earlier: None }
    }
}

impl From<Box<Refusal>> for Error {
    fn from(refusal: Box<Refusal>) -> Self {
        let Refusal { reason, waited, retry_after, .. } = *refusal;
        match reason {
            Reason::Limit(limit) => Self::Refused { limit: Box::new(limit), waited, retry_after, earlier: None },
            Reason::TooLarge(limit) => Self::TooLarge { limit: Box::new(limit), earlier: None },
            Reason::QueueFull { waiting } => Self::QueueFull { waiting, retry_after, earlier: None },
            Reason::Breaker(breaker) => Self::circuit_open(breaker, retry_after),
            Reason::Paused { reason } => Self::cancelled(reason),
            Reason::Draining => Self::cancelled("draining"),
        }
    }
}

/// For a part around another part: what a limit holds back is tried again when there is room, what has been retried
/// already, or what a breaker refuses, is not.
impl ToFault for Error {
    fn to_fault(&self) -> Fault {
        let mut fault = match self {
            Self::Refused { .. } | Self::QueueFull { .. } => Fault::new(FaultKind::RateLimited, self.to_string()),
            Self::TooLarge { .. } => Fault::new(FaultKind::TooLarge, self.to_string()),
            Self::CircuitOpen { .. } => Fault::new(FaultKind::Overloaded, self.to_string()),
            Self::Timeout { .. } => Fault::new(FaultKind::Timeout, self.to_string()),
            Self::Cancelled { .. } => Fault::new(FaultKind::Invalid, self.to_string()),
            Self::Upstream { fault, .. } | Self::Exhausted { fault, .. } => (**fault).clone(),
        };
        fault.wait = self.retry_after();
        if !matches!(self, Self::Refused { .. } | Self::QueueFull { .. } | Self::Upstream { .. }) {
            fault.should_retry = Some(false);
        }
        fault
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { limit, waited, .. } => {
                let LimitReport { dimension, allowed, used, requested, kept, .. } = **limit;
                let (path, phrase) = (limit.path(), dimension.openai_phrase());
                write!(f, "limit \"{path}\" reached on {phrase}: Limit {allowed}, Used {used}, Requested {requested}")?;
                if kept > 0 {
                    write!(f, ", and {kept} are kept for higher priorities")?;
                }
                write!(f, "; waited {waited:?}")?;
            }
            Self::TooLarge { limit, .. } if limit.allowed == 0 => {
                let (path, phrase) = (limit.path(), limit.dimension.openai_phrase());
                write!(f, "limit \"{path}\" allows nothing on {phrase}: Limit 0; waiting cannot help")?;
            }
            Self::TooLarge { limit, .. } => write!(
                f,
                "request too large for limit \"{}\" ({}): Limit {}, Requested {}; waiting cannot help",
                limit.path(),
                limit.dimension.openai_phrase(),
                limit.allowed,
                limit.requested
            )?,
            Self::QueueFull { waiting, .. } => write!(f, "{waiting} calls are already waiting")?,
            Self::CircuitOpen { breaker, .. } if breaker.state == BreakerState::HalfOpen.name() => {
                let (under_way, most) = breaker.probes;
                write!(f, "circuit breaker is half-open for {}, {under_way} of {most} probes under way", breaker.name)?;
            }
            Self::CircuitOpen { breaker, .. } => {
                write!(f, "circuit breaker is open for {} ({})", breaker.name, breaker.cause)?;
            }
            Self::Exhausted { attempts, reason, fault, .. } => {
                let why = match reason {
                    GiveUpReason::BudgetExhausted => ", as retries have used up their share of calls",
                    GiveUpReason::DeadlineExceeded => ", as another could not start in time",
                    _ => "",
                };
                write!(f, "gave up after {attempts} attempts{why}; last: {}", in_a_word(fault))?;
            }
            Self::Timeout { after, attempts, .. } => write!(f, "not done within {after:?}, attempts: {attempts}")?,
            Self::Cancelled { reason, .. } => write!(f, "nothing new is let through: {reason}")?,
            Self::Upstream { fault, .. } => write!(f, "failed: {}", in_a_word(fault))?,
        }
        if let Some(Earlier { attempts, may_be_billed, .. }) = self.earlier() {
            let billed = if *may_be_billed { ", which may have been billed" } else { "" };
            write!(f, "; attempts before: {attempts}{billed}")?;
        } else if self.may_be_billed() {
            f.write_str("; the last attempt may have been billed")?;
        }
        match self.retry_after() {
            Some(after) => write!(f, "; try again in {after:?}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause().map(|error| error.as_ref() as _)
    }
}

/// `temporary_error (500)`: what an error's own words would be repeated for, as they are its source's.
fn in_a_word(fault: &Fault) -> String {
    let class = fault.kind.error_class();
    fault.status.map_or_else(|| class.to_owned(), |status| format!("{class} ({status})"))
}
