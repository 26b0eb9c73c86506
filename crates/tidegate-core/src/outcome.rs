//! Decides how an attempt can end, and what the server's reply said of its limits.

use std::time::Duration;

use smallvec::SmallVec;

use crate::cost::Usage;
use crate::fault::Fault;
use crate::limit::Dimension;

/// One dimension of the server's limiter, as a reply's headers told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimit {
    /// Which dimension; minute or day already told apart.
    pub dimension: Dimension,
    /// The limit, units per period.
    pub limit: u64,
    /// What is left of it. `None` where only the limit was told.
    pub remaining: Option<u64>,
}

/// Everything that a reply's headers told of the server's limiter; empty when they told nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerLimits(pub SmallVec<[ServerLimit; 3]>);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was never sent.
    Unsent,
    /// The upstream did what was asked.
    Success,
    /// It failed before anything was passed on to the caller, so that it may be tried again.
    Failed(Fault),
    /// The reply broke off after part of it had gone to the caller: nothing is silently retried.
    CutShort(Fault),
    /// The caller left, or its own deadline passed.
    Cancelled,
}

/// What is known of an attempt when it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What it used, as reported or as seen go by. `None`: not known, so the whole reservation is charged.
    pub usage: Option<Usage>,
    /// From sending to the first byte of the reply; for a stream, to its first event. `None`: there was none.
    pub first_byte_after: Option<Duration>,
}

impl Outcome {
    /// An ending with nothing else known.
    #[must_use]
    pub const fn of(ending: Ending) -> Self {
        Self { ending, usage: None, first_byte_after: None }
    }
}
