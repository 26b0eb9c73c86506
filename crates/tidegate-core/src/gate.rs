//! The state machine that joins limits, queue, retry and breaker.
//!
//! Driven like a sans-IO protocol: whoever drives it hands in inputs with `now`, takes outputs until there are none, and
//! comes back by [`Gate::wake_at`]. It never waits, sends or reads a clock itself.
//!
//! - Inputs: [`Gate::admit`], [`Gate::sent`], [`Gate::observe`], [`Gate::settle`], [`Gate::cancel`], [`Gate::advance`],
//!   [`Gate::record`], [`Gate::reload`], [`Gate::pause`], [`Gate::drain`], [`Gate::force_breaker`], [`Gate::reset_limits`], [`Gate::reset_limit`],
//!   [`Gate::override_with`]; where levels are
//!   shared, [`Gate::credit`], [`Gate::credit_refused`], [`Gate::cooldown`].
//! - Outputs: [`Gate::poll_output`], in the order in which they were decided.
//! - Getters: [`Gate::wake_at`], [`Gate::check`], [`Gate::status`], [`Gate::open_breakers`], [`Gate::shadow_held`], [`Gate::explain`],
//!   [`Gate::snapshot`], [`Gate::own_levels`].
//!
//! The life of a call: `admit` gives a ticket; `Granted` or `Refused` follows. A granted attempt is `sent`, its reply's
//! headers `observe`d, its end `settle`d; after `Next::Retry` the same ticket is granted or refused again.

mod admission;
mod asking;
mod boosting;
mod explain;
mod learning;
mod overview;
mod pacing;
mod routes;
mod serving;
mod settlement;
mod sharing;
mod snapshot;
mod status;
mod upkeep;
mod waiting;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::breaker::{BreakerPermit, BreakerState};
use crate::call::{Call, Priority, RequestType, Subject, WhenOpen};
use crate::config::{BreakerConfig, Policy};
use crate::cost::{Cost, Usage};
use crate::event::{Event, Interest, Whose};
use crate::fault::Fault;
use crate::learn::charge::Predictions;
use crate::ledger::{Amounts, Charge, Ledger, Note};
use crate::outcome::{Outcome, ServerLimits};
use crate::queue::Queue;
use crate::refusal::{Next, Refusal};
use crate::retry::{Decision, OwnRule, RetryPolicy};
use crate::retry_budget::RetryBudget;
use crate::slots::Slots;
use crate::target::Target;
use crate::time::Time;

pub use asking::Check;
pub use boosting::Boost;
pub use explain::{Explanation, LimitThen};
pub use overview::{BackingOffStatus, Overview, WaitingStatus};
pub use sharing::{Demand, LevelKey, Overrides};
pub use snapshot::{Snapshot, SnapshotError};
pub use status::{BoostStatus, BreakerStatus, LearnedStatus, LevelStatus, MeterStatus, QueueStatus, Status};

/// One call, from its admission to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

impl Ticket {
    /// A small number that no other call has at the same time; used again later.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// What the gate has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The call may be sent now.
    Granted {
        /// Which call.
        ticket: Ticket,
        /// 1 for the first send.
        attempt: u32,
        /// How long it has waited in all, queueing and back-off together.
        queued_for: Duration,
    },
    /// The call may not be sent; its ticket is void.
    Refused {
        /// Which call.
        ticket: Ticket,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// Credit for shared levels is needed; only where the policy says that levels are shared.
    Demand(Demand),
    /// Something happened; only while events are asked for.
    Event(Box<Event>),
}

/// How the tightest own limits of a call stand, for the `x-ratelimit-*` headers of its reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLevels {
    /// Requests: limit, remaining, microseconds until full.
    pub requests: Option<(u64, u64, u64)>,
    /// Tokens: limit, remaining, microseconds until full.
    pub tokens: Option<(u64, u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The place is not in use.
    Free,
    /// In a lane of the queue.
    Waiting,
    /// Granted, not settled.
    InFlight,
    /// Between two attempts, not yet back in the queue.
    BackingOff,
}

#[derive(Clone, Debug)]
struct Entry {
    generation: u32,
    state: State,
    id: Arc<str>,
    cost: Cost,
    class: Priority,
    start_by: Time,
    end_by: Time,
    when_open: WhenOpen,
    body_bytes: u64,
    route: u32,
    age: u64,
    arrived_at: Time,
    /// Start of the present wait.
    waits_since: Time,
    waited: Duration,
    attempts: u32,
    counted_attempts: u32,
    rate_limits: u32,
    previous_delay: Duration,
    granted_at: Time,
    sent: bool,
    /// While granted: the charges. While waiting: what it adds to backlogs.
    charges: SmallVec<[Charge; 12]>,
    notes: SmallVec<[Note; 4]>,
    predictions: Option<Predictions>,
    /// What had been sent to its target before it: requests, tokens.
    sent_before: [u64; 2],
    permit: Option<BreakerPermit>,
    amounts: Amounts,
    /// Largest share of a level that tenants share.
    share: u64,
    own_request_charged: bool,
    seen: Option<Usage>,
    /// What was noted when it began to wait.
    held: Option<Box<explain::Held>>,
}

/// Everything that follows from a subject: which levels its calls touch, at what they are aimed.
#[derive(Clone, Debug)]
struct Route {
    subject: Subject,
    tenant_hash: u64,
    meters: SmallVec<[u32; 12]>,
    configured: SmallVec<[u32; 12]>,
    levels: SmallVec<[u32; 6]>,
    target: u32,
    target_version: u32,
    has_mirror: bool,
    lanes: [Option<u32>; 3],
    entries: u32,
    used_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lot {
        meter: u32,
        epoch: u64,
    },
    Deadline(Ticket),
    BackOff(Ticket),
    /// A boost is over.
    Boost,
}

/// The state machine. See the module's documentation for the order of calls.
#[derive(Clone, Debug)]
pub struct Gate {
    clock: Time,
    policy: Arc<Policy>,
    breaker_config: Arc<BreakerConfig>,
    reserve_permille: u64,
    ledger: Ledger,
    queue: Queue,
    targets: Slots<Target>,
    target_ids: HashMap<(Arc<str>, Arc<str>), u32>,
    routes: Slots<Route>,
    route_ids: HashMap<Subject, u32>,
    /// Routes of subjects made of the very same strings as before: found without hashing them.
    recent_routes: [u32; routes::RECENT],
    entries: Vec<Entry>,
    free_entries: Vec<u32>,
    timers: BinaryHeap<Reverse<(Time, Timer)>>,
    outputs: VecDeque<Output>,
    /// Lots that an input may have made room in.
    stirred: Vec<u32>,
    retry: RetryPolicy,
    budget: RetryBudget,
    random: fastrand::Rng,
    paused: Option<Arc<str>>,
    overrides: Overrides,
    /// When the first of the boosts in force ends.
    boosts_end_at: Time,
    draining: bool,
    interest: Interest,
    ages: u64,
    in_flight: usize,
    /// Timers in the heap at which those that are stale are looked for.
    purge_timers_at: usize,
    /// Where the search for what is idle goes on: routes, levels, targets.
    sweep_at: [u32; 3],
    restored: HashMap<Box<str>, snapshot::KeptLevel>,
    /// The run before ended in a crash: its state was saved at this instant, and what came after is not known.
    crashed_after: Option<Time>,
    restored_targets: HashMap<(Box<str>, Box<str>), snapshot::KeptTarget>,
    /// Why the last calls that were held or refused were.
    explanations: VecDeque<Explanation>,
}

impl Gate {
    /// A gate with every level full. `seed`: of the randomness of back-off; the same seed and inputs give the same outputs.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        let budget = RetryBudget::new(policy.retry.budget, Time::ZERO);
        let retry = RetryPolicy::new(Arc::new(policy.retry.clone()));
        Self {
            clock: Time::ZERO,
            breaker_config: Arc::new(policy.breaker.clone()),
            reserve_permille: (policy.queue.reserve.clamp(0.0, 1.0) * 1000.0) as u64,
            ledger: Ledger::new(policy.limits.clone().into(), policy.level_source),
            policy: Arc::new(policy),
            queue: Queue::default(),
            targets: Slots::default(),
            target_ids: HashMap::new(),
            routes: Slots::default(),
            route_ids: HashMap::new(),
            recent_routes: [0; routes::RECENT],
            entries: Vec::new(),
            free_entries: Vec::new(),
            timers: BinaryHeap::new(),
            outputs: VecDeque::new(),
            stirred: Vec::new(),
            retry,
            budget,
            random: fastrand::Rng::with_seed(seed),
            paused: None,
            overrides: Overrides::default(),
            boosts_end_at: Time::NEVER,
            draining: false,
            interest: Interest::Nothing,
            ages: 0,
            in_flight: 0,
            purge_timers_at: upkeep::TIMERS_KEPT,
            sweep_at: [0; 3],
            restored: HashMap::new(),
            crashed_after: None,
            restored_targets: HashMap::new(),
            explanations: VecDeque::new(),
        }
    }

    /// Replaces the rules of `[retry]` by ones with strategies of one's own.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// A call has arrived. `Granted` or `Refused` for the ticket follows, now or later.
    pub fn admit(&mut self, call: &Call, now: Time) -> Ticket {
        self.tick(now);
        self.sweep();
        let ticket = self.open_entry(call);
        if let Some(reason) = self.closed_to_new_calls() {
            self.refuse(ticket, reason, None);
        } else {
            self.start(ticket);
        }
        self.serve_stirred();
        ticket
    }

    /// The granted attempt is about to be sent: from now on the upstream may have seen it.
    pub fn sent(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entry_mut(ticket, State::InFlight) {
            entry.sent = true;
        }
    }

    /// The number of the call's attempt that is under way. `None`: none is.
    #[must_use]
    pub fn attempt(&self, ticket: Ticket) -> Option<u32> {
        self.entry(ticket).filter(|entry| entry.state == State::InFlight).map(|entry| entry.attempts)
    }

    /// What a granted attempt has used so far, as seen go by: its charge if it is cancelled.
    pub fn seen(&mut self, ticket: Ticket, usage: Usage) {
        if let Some(entry) = self.entry_mut(ticket, State::InFlight) {
            entry.seen = Some(usage);
        }
    }

    /// The head of the attempt's reply has come and told the server's limits. Once per attempt, as soon as it is there.
    pub fn observe(&mut self, ticket: Ticket, limits: &ServerLimits, now: Time) {
        self.tick(now);
        self.learn_from(ticket, limits);
        self.serve_stirred();
    }

    /// The attempt has ended. An attempt is settled once: a second time changes nothing and answers `Done`.
    ///
    /// A rule of one's own is asked here; whoever shares the gate by a lock asks [`Gate::own_rule`] before, without it.
    pub fn settle(&mut self, ticket: Ticket, outcome: &Outcome, now: Time) -> Next {
        self.settle_judged(ticket, outcome, None, now)
    }

    /// The rule of one's own that is to judge how the attempt failed, if there is one.
    #[must_use]
    pub fn own_rule(&self, ticket: Ticket, fault: &Fault) -> Option<OwnRule> {
        self.entry(ticket).and_then(|_| self.retry.own_rule(fault, self.history_with(ticket, fault)))
    }

    /// The same as [`Gate::settle`], where `judged` is what [`Gate::own_rule`]'s answer was.
    pub fn settle_judged(&mut self, ticket: Ticket, outcome: &Outcome, judged: Option<Decision>, now: Time) -> Next {
        self.tick(now);
        let next = self.settle_attempt(ticket, outcome, judged);
        self.serve_stirred();
        next
    }

    /// The call is withdrawn, whatever its state. Never sent: everything comes back. Sent: charged with what was seen, else whole.
    pub fn cancel(&mut self, ticket: Ticket, now: Time) {
        self.tick(now);
        self.withdraw(ticket);
        self.serve_stirred();
    }

    /// No calls follow those that have been admitted: a job has come to its end.
    ///
    /// What mirrors leave at its end is lost to it. So the margins against refusals shrink with what still waits, and replies
    /// that say that more is left are believed sooner. Calls that follow all the same are only a little likelier to be refused.
    pub fn nothing_follows(&mut self, now: Time) {
        self.tick(now);
        self.ledger.nothing_follows();
    }

    /// Time has passed: does what has become due.
    pub fn advance(&mut self, now: Time) {
        self.tick(now);
        self.run_timers();
        self.serve_stirred();
    }

    /// Takes over another configuration. Levels, debts and queues are kept: changing a limit never resets what was used.
    pub fn reload(&mut self, policy: Policy, now: Time) {
        self.tick(now);
        self.take_over(policy);
        self.serve_stirred();
    }

    /// Refuses new calls until [`Gate::resume`]; those that wait or are under way go on.
    pub fn pause(&mut self, reason: impl Into<Arc<str>>) {
        self.paused = Some(reason.into());
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.paused = None;
    }

    /// Refuses new calls for good: the process is about to end.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Sets a breaker's state by hand. `name` as in [`Status`]. False: there is no such breaker.
    pub fn force_breaker(&mut self, name: &str, state: BreakerState, now: Time) -> bool {
        self.tick(now);
        let found: Vec<u32> =
            self.targets.iter().filter(|(_, target)| &*target.name == name).map(|(id, _)| id).collect();
        for target in &found {
            let clock = self.clock;
            let before = self.targets[*target].breaker.force(state, clock);
            self.breaker_changed(*target, before);
        }
        self.serve_stirred();
        !found.is_empty()
    }

    /// Sets every level back to full.
    pub fn reset_limits(&mut self, now: Time) {
        self.tick(now);
        self.refill(None);
        self.serve_stirred();
    }

    /// Sets every level of `[limit.NAME]` back to full. False: there is no such limit.
    pub fn reset_limit(&mut self, name: &str, now: Time) -> bool {
        self.tick(now);
        let is_known = self.policy.limits.iter().any(|limit| &*limit.name == name);
        if is_known {
            self.refill(Some(name));
            self.serve_stirred();
        }
        is_known
    }

    /// Which [`Output::Event`]s are made.
    pub fn listen(&mut self, interest: Interest) {
        self.interest = interest;
    }

    /// The next thing decided.
    #[inline]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Gate::advance`] is to be called at the latest. `None`: nothing is due until another input.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Calls granted and not settled.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Calls that have arrived so far.
    #[must_use]
    pub const fn calls_seen(&self) -> u64 {
        self.ages
    }

    /// Calls that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.total_waiting()
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How the tightest own limits of a granted call stand now. `None` where no own limit applies to it.
    #[must_use]
    pub fn own_levels(&mut self, ticket: Ticket, now: Time) -> Option<OwnLevels> {
        self.tick(now);
        let clock = self.clock;
        let route = self.entry(ticket)?.route;
        let mut own = OwnLevels::default();
        for at in 0..self.routes[route].configured.len() {
            let meter = &mut self.ledger.meters[self.routes[route].configured[at]];
            if meter.mirror || !meter.enforce {
                continue;
            }
            meter.refill(clock);
            let tightest = match meter.dimension {
                crate::limit::Dimension::RequestsPerMinute | crate::limit::Dimension::RequestsPerDay => {
                    &mut own.requests
                }
                crate::limit::Dimension::TokensPerMinute | crate::limit::Dimension::TokensPerDay => &mut own.tokens,
                _ => continue,
            };
            let limit = meter.limit();
            let remaining = u64::try_from(meter.level()).unwrap_or(0).min(limit);
            let period = meter.dimension.period_micros().unwrap_or(0);
            let used = u128::from(limit - remaining);
            let reset = u64::try_from(used * u128::from(period) / u128::from(limit.max(1))).unwrap_or(u64::MAX);
            let left = |(limit, remaining, _): &(u64, u64, u64)| {
                u128::from(*remaining) * (1 << 20) / u128::from(*limit.max(&1))
            };
            let this = (limit, remaining, reset);
            if tightest.as_ref().is_none_or(|other| left(&this) < left(other)) {
                *tightest = Some(this);
            }
        }
        (own != OwnLevels::default()).then_some(own)
    }

    fn tick(&mut self, now: Time) {
        // A clock that goes back stands still: no credit appears, nothing ends early.
        self.clock = self.clock.max(now);
        if self.clock >= self.boosts_end_at {
            self.end_boosts();
        }
    }

    fn entry(&self, ticket: Ticket) -> Option<&Entry> {
        self.entries
            .get(ticket.index())
            .filter(|entry| entry.generation == ticket.generation && entry.state != State::Free)
    }

    fn entry_mut(&mut self, ticket: Ticket, state: State) -> Option<&mut Entry> {
        self.entries
            .get_mut(ticket.index())
            .filter(|entry| entry.generation == ticket.generation && entry.state == state)
    }

    fn emit(&mut self, event: impl FnOnce() -> Event) {
        if self.interest > Interest::Nothing {
            self.outputs.push_back(Output::Event(Box::new(event())));
        }
    }

    /// Whether the events are wanted that each call brings along.
    fn tells_all(&self) -> bool {
        self.interest == Interest::Everything
    }

    fn whose(&self, ticket: Ticket) -> Whose {
        let route = &self.routes[self.entries[ticket.index()].route];
        let (tenant, user) = (route.subject.tenant.clone(), route.subject.user.clone());
        Whose { tenant, user, target: self.targets[route.target].name.clone() }
    }

    fn set_timer(&mut self, at: Time, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    fn weight_of(&self, tenant: &str) -> u32 {
        self.policy.queue.weights.get(tenant).copied().unwrap_or(1)
    }

    fn request_type(&self, route: u32) -> RequestType {
        self.routes[route].subject.request_type
    }
}
