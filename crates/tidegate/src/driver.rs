//! The one loop that sleeps: hands calls to the core, and wakes exactly the one that was granted.
//!
//! One `Gate` behind one mutex, held for a decision and never across an await. One timer for everything that is due.
//! Every future here may be dropped at any point: the call is withdrawn and what it held goes back.

mod permit;
mod timer;

#[cfg(feature = "openai")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidegate_core::call::Call;
use tidegate_core::config::Policy;
use tidegate_core::cost::Usage;
use tidegate_core::event::{Event, Interest};
use tidegate_core::gate::{Demand, Gate, Output, Ticket};
use tidegate_core::refusal::{Reason, Refusal};
use tidegate_core::time::Time;
use tokio::sync::{Notify, mpsc};

#[cfg(feature = "tower")]
use crate::calibrations::Calibrations;
use crate::clock::Clock;
use crate::events::{Events, Teller, contained};

pub use permit::{Admission, Attempt, Permit, Settled, Waiting};

use timer::Timer;

/// A handle on the core; clones share it. When the last one and the last permit are gone, its timer ends.
#[derive(Clone, Debug)]
pub struct Driver(Arc<Inner>);

/// A handle that does not keep the driver going.
#[derive(Clone, Debug)]
pub struct WeakDriver(Weak<Inner>);

impl WeakDriver {
    /// The driver, if it still goes.
    #[must_use]
    pub fn upgrade(&self) -> Option<Driver> {
        self.0.upgrade().map(Driver)
    }
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    clock: Clock,
    /// Wakes the timer when something is due sooner than it knew.
    sooner: Arc<Notify>,
    events: Teller,
    notable: Teller,
    #[cfg(feature = "tower")]
    calibrations: Calibrations,
    /// True while somebody writes what happens to the log.
    #[cfg(feature = "openai")]
    is_logged: AtomicBool,
    /// Who answers demands for credit.
    demands: Mutex<Option<mpsc::UnboundedSender<Demand>>>,
    /// Held while the state is saved; true once a clean one has been.
    state_closed: Mutex<bool>,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    /// By ticket index. Several for one index where a call has ended whose task has not looked yet, and another has its place.
    seats: Vec<Vec<(Ticket, Seat)>>,
    /// When the timer will come by itself.
    timer_at: Time,
    /// Taken out under the lock, woken outside of it.
    to_wake: Vec<Waker>,
    /// False where there has been no runtime for a timer, or it has ended with its own: whoever waits next starts another.
    has_timer: bool,
}

/// Where the decision on one call is left for the task that awaits it.
#[derive(Debug)]
enum Seat {
    Waits(Option<Waker>),
    Granted { attempt: u32, queued_for: Duration },
    Refused(Box<Refusal>),
}

impl Driver {
    /// Starts driving a new core with `policy`; `seed` is that of the randomness of back-off.
    ///
    /// Its timer runs on the tokio runtime that this is called on; outside of any, or when that has ended, on that of the next call
    /// that waits. That needs its timer enabled.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self::with_gate(Gate::new(policy, seed))
    }

    /// Starts driving a core that was made elsewhere, for example with a state restored.
    #[must_use]
    pub fn with_gate(gate: Gate) -> Self {
        Self::telling(gate, Teller::default())
    }

    /// The same, which tells what happens to the subscribers of `events`.
    pub(crate) fn telling(gate: Gate, events: Teller) -> Self {
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                gate,
                seats: Vec::new(),
                timer_at: Time::NEVER,
                to_wake: Vec::new(),
                has_timer: true,
            }),
            clock: Clock::start(),
            sooner: Arc::default(),
            events,
            notable: Teller::default(),
            #[cfg(feature = "tower")]
            calibrations: Calibrations::default(),
            #[cfg(feature = "openai")]
            is_logged: false.into(),
            demands: Mutex::default(),
            state_closed: Mutex::new(false),
        });
        if !Timer::start(&inner) {
            inner.lock().has_timer = false;
        }
        Self(inner)
    }

    /// The driver's clock: what `Call::start_by` and `Call::end_by` are measured on.
    #[must_use]
    pub fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// Waits for the call's turn. Dropping the future withdraws the call and gives back what it held.
    ///
    /// # Errors
    /// The refusal, with everything that explains it.
    pub fn admit(&self, call: Call) -> Admission {
        Admission::new(self.0.clone(), call)
    }

    /// Lets the call through now, or not at all.
    ///
    /// # Errors
    /// The refusal, with everything that explains it.
    pub fn try_admit(&self, mut call: Call) -> Result<Permit, Box<Refusal>> {
        let now = self.now();
        call.start_by = call.start_by.min(now);
        let mut state = self.0.lock();
        let ticket = state.gate.admit(&call, now);
        state.seat(ticket, Seat::Waits(None));
        self.0.finish(state);
        let decided = self.0.lock().leave_seat(ticket);
        match decided {
            Some(Seat::Granted { attempt, queued_for }) => Ok(self.0.permit(ticket, attempt, queued_for)),
            Some(Seat::Refused(refusal)) => Err(refusal),
            // Whose deadline is now does not wait; if it were ever to, it must not be left behind.
            Some(Seat::Waits(_)) | None => {
                self.0.cancel(ticket, false, None);
                let reason = Reason::QueueFull { waiting: 0 };
                Err(Box::new(Refusal { reason, model: call.subject.model, waited: Duration::ZERO, retry_after: None }))
            }
        }
    }

    /// Asks or changes the core directly, for what has no method here: status, reload, breakers, saved state.
    ///
    /// `act` runs under the lock that every call needs. It must be quick, and use neither this driver nor anything made of it, nor
    /// wait for somebody who does: that would stop all calls for good.
    pub fn with<T>(&self, act: impl FnOnce(&mut Gate, Time) -> T) -> T {
        let now = self.now();
        let mut state = self.0.lock();
        let result = act(&mut state.gate, now);
        self.0.finish(state);
        result
    }

    /// How long calls may wait that say nothing of it.
    pub(crate) fn max_wait(&self) -> Duration {
        self.0.lock().gate.policy().queue.max_wait
    }

    /// The same, and the bounds of an attempt and of a call.
    pub(crate) fn bounds(&self) -> (Duration, Option<Duration>, Option<Duration>) {
        let state = self.0.lock();
        let policy = state.gate.policy();
        (policy.queue.max_wait, policy.retry.attempt_timeout, policy.retry.total_timeout)
    }

    /// How far estimates of the calls that it drives are off.
    #[cfg(feature = "tower")]
    pub(crate) fn calibrations(&self) -> &Calibrations {
        &self.0.calibrations
    }

    /// Leave to write to the log what happens, until the guard is dropped. `None`: somebody does already.
    #[cfg(feature = "openai")]
    pub(crate) fn log(&self) -> Option<LogGuard> {
        let is_logged = self.0.is_logged.swap(true, Ordering::Relaxed);
        (!is_logged).then(|| LogGuard(self.downgrade()))
    }

    /// Tells subscribers what the core itself does not see.
    pub fn tell(&self, event: Event) {
        let event = Arc::new(event);
        if event.is_notable() {
            self.0.notable.send(event.clone());
        }
        self.0.events.send(event);
    }

    /// Calls a callback of the program's own. `None`: it panicked, which subscribers have been told.
    pub(crate) fn contained<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        contained(&[&self.0.events, &self.0.notable], callback, call)
    }

    pub(crate) fn state_closed(&self) -> MutexGuard<'_, bool> {
        self.0.state_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The demands for credit of shared levels, from now on; a receiver taken earlier gets none any more.
    ///
    /// Answer each by [`Driver::with`] and `Gate::credit` or `Gate::credit_refused`; a demand that nobody answers is made again.
    /// One stands open for each level at a time, so that the channel holds no more than there are levels.
    #[must_use]
    pub fn demands(&self) -> mpsc::UnboundedReceiver<Demand> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.demands.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// A handle that does not keep the driver going.
    #[must_use]
    pub fn downgrade(&self) -> WeakDriver {
        WeakDriver(Arc::downgrade(&self.0))
    }

    /// Everything that happens from now on. A subscriber that falls behind misses events and is told how many; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        let receiver = self.0.events.subscribe();
        self.0.lock().gate.listen(self.0.interest());
        receiver
    }

    /// The same of what is out of the ordinary ([`Event::is_notable`](crate::Event::is_notable)): a call that goes well at once costs nothing for it.
    #[must_use]
    pub fn subscribe_notable(&self) -> Events {
        let receiver = self.0.notable.subscribe();
        self.0.lock().gate.listen(self.0.interest());
        receiver
    }
}

/// Held by whoever writes to the log.
#[cfg(feature = "openai")]
#[derive(Debug)]
pub(crate) struct LogGuard(WeakDriver);

#[cfg(feature = "openai")]
impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(driver) = self.0.upgrade() {
            driver.0.is_logged.store(false, Ordering::Relaxed);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The core holds no invariant across a panic that another call could trip over: going on beats failing every call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interest(&self) -> Interest {
        match (self.events.is_heard(), self.notable.is_heard()) {
            (true, _) => Interest::Everything,
            (false, true) => Interest::Notable,
            (false, false) => Interest::Nothing,
        }
    }

    /// Hands out what was decided, lets go of the lock, wakes whom it concerns.
    fn finish(&self, mut state: MutexGuard<'_, State>) {
        while let Some(output) = state.gate.poll_output() {
            match output {
                Output::Granted { ticket, attempt, queued_for } => {
                    state.seat(ticket, Seat::Granted { attempt, queued_for })
                }
                Output::Refused { ticket, refusal } => state.seat(ticket, Seat::Refused(refusal)),
                Output::Demand(demand) => {
                    let mut demands = self.demands.lock().unwrap_or_else(PoisonError::into_inner);
                    // Without anybody to answer, the call waits up to its deadline, as if the level were empty.
                    if demands.as_ref().is_some_and(|demands| demands.send(demand).is_err()) {
                        *demands = None;
                    }
                }
                Output::Event(event) => {
                    let event = Arc::new(*event);
                    let is_missed = event.is_notable() && !self.notable.send(event.clone());
                    // Nobody listening is no failure; the gate is told to make no more than is asked for.
                    if !self.events.send(event) || is_missed {
                        state.gate.listen(self.interest());
                    }
                }
            }
        }
        let due = state.gate.wake_at().unwrap_or(Time::NEVER);
        let sooner = due < state.timer_at;
        if sooner {
            state.timer_at = due;
        }
        if state.to_wake.is_empty() {
            drop(state);
        } else {
            let wakers = std::mem::take(&mut state.to_wake);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
        if sooner {
            self.sooner.notify_one();
        }
    }

    fn cancel(&self, ticket: Ticket, sent: bool, seen: Option<Usage>) {
        let now = self.clock.now();
        let mut state = self.lock();
        if sent {
            state.gate.sent(ticket);
        }
        if let Some(seen) = seen {
            state.gate.seen(ticket, seen);
        }
        state.gate.cancel(ticket, now);
        let seat = state.leave_seat(ticket);
        self.finish(state);
        // Not under the lock: what its waker does when it is dropped is its maker's own.
        drop(seat);
    }

    fn permit(self: &Arc<Self>, ticket: Ticket, attempt: u32, queued_for: Duration) -> Permit {
        Permit::new(self.clone(), ticket, attempt, queued_for)
    }

    /// Takes the decision on a call, or leaves the waker for it. Who waits sees to it that there is a timer to wake him.
    fn take(self: &Arc<Self>, ticket: Ticket, context: &Context<'_>) -> Poll<Result<Permit, Box<Refusal>>> {
        let mut state = self.lock();
        // A waker that another replaces is dropped at the end, not under the lock.
        let (decided, _replaced) = self.decided(&mut state, ticket, context);
        let lacks_timer = decided.is_pending() && !std::mem::replace(&mut state.has_timer, true);
        drop(state);
        if lacks_timer && !Timer::start(self) {
            self.lock().has_timer = false;
        }
        decided
    }

    fn decided(
        self: &Arc<Self>,
        state: &mut State,
        ticket: Ticket,
        context: &Context<'_>,
    ) -> (Poll<Result<Permit, Box<Refusal>>>, Option<Waker>) {
        let waker = match state.leave_seat(ticket) {
            Some(Seat::Granted { attempt, queued_for }) => {
                return (Poll::Ready(Ok(self.permit(ticket, attempt, queued_for))), None);
            }
            Some(Seat::Refused(refusal)) => return (Poll::Ready(Err(refusal)), None),
            Some(Seat::Waits(waker)) => waker,
            None => None,
        };
        let (kept, replaced) = match waker {
            Some(waker) if waker.will_wake(context.waker()) => (waker, None),
            other => (context.waker().clone(), other),
        };
        state.seat(ticket, Seat::Waits(Some(kept)));
        (Poll::Pending, replaced)
    }
}

impl State {
    fn seat(&mut self, ticket: Ticket, decision: Seat) {
        if self.seats.len() <= ticket.index() {
            self.seats.resize_with(ticket.index() + 1, Vec::new);
        }
        let here = &mut self.seats[ticket.index()];
        let Some((_, seat)) = here.iter_mut().find(|(other, _)| *other == ticket) else {
            here.push((ticket, decision));
            return;
        };
        if let Seat::Waits(Some(waker)) = std::mem::replace(seat, decision) {
            self.to_wake.push(waker);
        }
    }

    /// Wakes everybody who waits, to look for himself.
    fn wake_all(&mut self) {
        for (_, seat) in self.seats.iter_mut().flatten() {
            if let Seat::Waits(waker) = seat {
                self.to_wake.extend(waker.take());
            }
        }
    }

    /// Takes what was left for a call.
    fn leave_seat(&mut self, ticket: Ticket) -> Option<Seat> {
        let here = self.seats.get_mut(ticket.index())?;
        let at = here.iter().position(|(other, _)| *other == ticket)?;
        Some(here.swap_remove(at).1)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The timer finds nobody left and ends.
        self.sooner.notify_one();
    }
}
