//! What a call holds while it waits and while it is under way; each gives back what it holds when it is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::call::Call;
use tidegate_core::cost::Usage;
use tidegate_core::fault::Fault;
use tidegate_core::gate::{OwnLevels, Ticket};
use tidegate_core::outcome::{Ending, Outcome, ServerLimits};
use tidegate_core::refusal::{GiveUp, Next, Refusal};
use tidegate_core::retry::OwnRule;

use super::{Inner, Seat, State};

/// A call on its way to its first attempt: await it.
#[derive(Debug)]
#[must_use = "a call is admitted only when this is awaited"]
pub struct Admission {
    inner: Arc<Inner>,
    call: Option<Call>,
    ticket: Option<Ticket>,
}

impl Admission {
    pub(super) const fn new(inner: Arc<Inner>, call: Call) -> Self {
        Self { inner, call: Some(call), ticket: None }
    }
}

impl Future for Admission {
    type Output = Result<Permit, Box<Refusal>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.inner.clone();
        if let Some(call) = self.call.take() {
            let now = inner.clock.now();
            let mut state = inner.lock();
            let ticket = state.gate.admit(&call, now);
            state.seat(ticket, Seat::Waits(None));
            inner.finish(state);
            self.ticket = Some(ticket);
        }
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let decided = inner.take(ticket, context);
        if decided.is_ready() {
            self.ticket = None;
        }
        decided
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.inner.cancel(ticket, false, None);
        }
    }
}

/// A granted attempt. Dropped before [`Permit::sent`]: refunded in full. Dropped after: charged with what was seen, else whole.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    ticket: Ticket,
    attempt: u32,
    queued_for: Duration,
    sent: bool,
    seen: Option<Usage>,
    ended: bool,
}

impl Permit {
    pub(super) const fn new(inner: Arc<Inner>, ticket: Ticket, attempt: u32, queued_for: Duration) -> Self {
        Self { inner, ticket, attempt, queued_for, sent: false, seen: None, ended: false }
    }

    /// From now on the upstream may have seen the request.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// A handle for whoever makes the attempt, to say what it finds out.
    pub(crate) fn handle(&self) -> Attempt {
        Attempt { inner: self.inner.clone(), ticket: self.ticket, number: self.attempt }
    }

    /// The call took `real` tokens of input, as its reply says.
    #[cfg(feature = "tower")]
    pub(crate) fn learn(&self, lesson: crate::calibrations::Lesson, real: u64) {
        self.inner.calibrations.learn(lesson, real);
    }

    /// 1 for the first send.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long the call has waited so far, queueing and back-off together.
    #[must_use]
    pub fn queued_for(&self) -> Duration {
        self.queued_for
    }

    /// What the reply's headers told of the server's limiter. Call it as soon as they are there, once per attempt.
    pub fn observe(&mut self, limits: &ServerLimits) {
        if limits.0.is_empty() {
            return;
        }
        let now = self.inner.clock.now();
        let mut state = self.inner.lock();
        state.gate.observe(self.ticket, limits, now);
        self.inner.finish(state);
    }

    /// What has been seen of a stream so far; the charge if the permit is dropped.
    pub fn seen(&mut self, usage: Usage) {
        self.seen = Some(usage);
    }

    /// How the tightest own limits of this call stand. `None` where no own limit applies to it.
    #[must_use]
    pub fn own_levels(&self) -> Option<OwnLevels> {
        let now = self.inner.clock.now();
        self.inner.lock().gate.own_levels(self.ticket, now)
    }

    /// Ends the attempt.
    #[must_use = "a failed attempt may be tried again"]
    pub fn settle(mut self, outcome: Outcome) -> Settled {
        // Asked without the lock: what it does is the program's own.
        let judged = match &outcome.ending {
            Ending::Failed(fault) => self.own_rule(fault).map(|rule| rule.judge(fault)),
            _ => None,
        };
        self.ended = true;
        let now = self.inner.clock.now();
        let mut state = self.inner.lock();
        if let Some(seen) = self.seen {
            state.gate.seen(self.ticket, seen);
        }
        let next = state.gate.settle_judged(self.ticket, &outcome, judged, now);
        if matches!(next, Next::Retry { .. }) {
            state.seat(self.ticket, Seat::Waits(None));
        }
        self.inner.finish(state);
        match next {
            Next::Done => Settled::Done,
            Next::GiveUp(given_up) => Settled::GiveUp(given_up),
            Next::Retry { .. } => Settled::Retry(Waiting { inner: self.inner.clone(), ticket: Some(self.ticket) }),
        }
    }

    fn own_rule(&self, fault: &Fault) -> Option<OwnRule> {
        self.inner.lock().gate.own_rule(self.ticket, fault)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.ended {
            self.inner.cancel(self.ticket, self.sent, self.seen);
        }
    }
}

/// The attempt under way, for the operation that makes it.
#[derive(Debug)]
pub struct Attempt {
    inner: Arc<Inner>,
    ticket: Ticket,
    number: u32,
}

impl Attempt {
    /// 1 for the first send.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// It has used so much: what it is charged, however it ends. Said not at all, all is charged that was reserved.
    ///
    /// Said after it has ended it changes nothing: what is under way then is another attempt.
    pub fn used(&self, usage: Usage) {
        let mut state = self.inner.lock();
        if self.is_under_way(&state) {
            state.gate.seen(self.ticket, usage);
        }
    }

    /// What the reply's headers told of the server's limiter. Say it as soon as they are there, once; later it is not heard.
    pub fn observe(&self, limits: &ServerLimits) {
        if limits.0.is_empty() {
            return;
        }
        let now = self.inner.clock.now();
        let mut state = self.inner.lock();
        if self.is_under_way(&state) {
            state.gate.observe(self.ticket, limits, now);
            self.inner.finish(state);
        }
    }

    fn is_under_way(&self, state: &State) -> bool {
        state.gate.attempt(self.ticket) == Some(self.number)
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

/// A call that waits for its next attempt: await it. Dropping it withdraws the call.
#[derive(Debug)]
#[must_use = "the next attempt is granted only when this is awaited"]
pub struct Waiting {
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
}

impl Waiting {
    /// Waits for the call's turn: the same as awaiting it.
    ///
    /// # Errors
    /// The refusal, with everything that explains it.
    pub async fn granted(self) -> Result<Permit, Box<Refusal>> {
        self.await
    }
}

impl Future for Waiting {
    type Output = Result<Permit, Box<Refusal>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let decided = self.inner.take(ticket, context);
        if decided.is_ready() {
            self.ticket = None;
        }
        decided
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.inner.cancel(ticket, false, None);
        }
    }
}
