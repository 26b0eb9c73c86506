//! The one loop that sleeps: hands calls to the core, wakes exactly the one that was granted.

use std::time::Duration;

use tidegate_core::call::Call;
use tidegate_core::config::Policy;
use tidegate_core::cost::Usage;
use tidegate_core::outcome::{Outcome, ServerLimits};
use tidegate_core::refusal::{GiveUp, Refusal};
use tidegate_core::time::Time;

/// A handle on the core; clones share it.
#[derive(Clone, Debug)]
pub struct Driver {}

impl Driver {
    /// Starts driving a new core with `policy`. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(_policy: Policy, _seed: u64) -> Self {
        Self {}
    }

    /// The driver's clock: what `Call::start_by` and `Call::end_by` are measured on.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::ZERO
    }

    /// Waits for the call's turn. Dropping the future withdraws the call and gives back what it held.
    ///
    /// # Errors
    /// The refusal, with everything that explains it.
    pub async fn admit(&self, _call: Call) -> Result<Permit, Box<Refusal>> {
        Ok(Permit {})
    }
}

/// A granted attempt. Dropped before [`Permit::sent`]: refunded in full. Dropped after: charged with what was seen, else whole.
#[derive(Debug)]
pub struct Permit {}

impl Permit {
    /// From now on the upstream may have seen the request.
    pub fn sent(&mut self) {}

    /// 1 for the first send.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        1
    }

    /// How long the call has waited so far, queueing and back-off together.
    #[must_use]
    pub fn queued_for(&self) -> Duration {
        Duration::ZERO
    }

    /// What the reply's headers told of the server's limiter. Call it as soon as they are there, once per attempt.
    pub fn observe(&mut self, _limits: &ServerLimits) {}

    /// What has been seen of a stream so far; the charge if the permit is dropped.
    pub fn seen(&mut self, _usage: Usage) {}

    /// Ends the attempt.
    pub fn settle(self, _outcome: Outcome) -> Settled {
        Settled::Done
    }
}

/// What follows when an attempt has been settled.
#[derive(Debug)]
pub enum Settled {
    /// Nothing: the call has ended.
    Done,
    /// It is queued again: await it for the next attempt's permit.
    Retry(Waiting),
    /// No further attempt.
    GiveUp(Box<GiveUp>),
}

/// A call that waits for its next attempt. Dropping it withdraws the call.
#[derive(Debug)]
pub struct Waiting {}

impl Waiting {
    /// Waits for the call's turn.
    ///
    /// # Errors
    /// The refusal, with everything that explains it.
    pub async fn granted(self) -> Result<Permit, Box<Refusal>> {
        Ok(Permit {})
    }
}
