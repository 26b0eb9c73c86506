//! Keeps why calls were held or refused: the levels then, what each limit lacked, who was ahead.
//!
//! Notes only calls that have to wait or are turned away, and keeps the last of them; decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smallvec::SmallVec;

use super::{Gate, State, Ticket};
use crate::call::Priority;
use crate::time::Time;

/// Explanations kept; beyond that the oldest are forgotten.
const KEPT: usize = 2048;
/// A wait shorter than this needs no explanation.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// Tenants ahead that are looked at, and named.
const TENANTS_SEEN: usize = 32;
const TENANTS_NAMED: usize = 5;

/// Why one call was held, or refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The call's id.
    pub call: Arc<str>,
    /// `waiting`, `granted`, or the reason of a refusal: `limit`, `too_large`, `queue_full`, `breaker`, `paused`, `draining`.
    pub outcome: &'static str,
    /// `upstream/model group`.
    pub target: Arc<str>,
    /// Whom the queue is fair between.
    pub tenant: Arc<str>,
    /// Its class.
    pub priority: &'static str,
    /// When it began to wait, or was refused. Told by whoever knows what the gate's clock counts from.
    #[serde(skip)]
    pub at: Time,
    /// How long it waited in all.
    pub waited_ms: f64,
    /// When it would have been let through; absent where nothing is known, as where a place in flight has to become free.
    pub retry_after_ms: Option<f64>,
    /// The error class of the upstream's answer that it waits after; absent where it waits for its first attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<&'static str>,
    /// The breaker's state then.
    pub breaker: &'static str,
    /// Every limit that it had to fit, as it stood then; the one with the longest wait binds.
    pub limits: Vec<LimitThen>,
    /// Calls that waited already, by priority.
    pub ahead: BTreeMap<&'static str, usize>,
    /// The tenants of its own class with most calls waiting then, and how many.
    pub ahead_tenants: Vec<(Arc<str>, usize)>,
}

/// One dimension of one level, as it stood then.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LimitThen {
    /// The limit's name.
    pub limit: Arc<str>,
    /// Whose level.
    pub key: Arc<str>,
    /// `requests_per_minute`, ….
    pub dimension: &'static str,
    /// Units per period.
    pub allowed: u64,
    /// Units left then.
    pub remaining: i64,
    /// What the call asked for.
    pub requested: u64,
    /// Units that it had to leave for calls of higher priority.
    pub kept: u64,
    /// Units asked for by those that waited for it already.
    pub waiting: u64,
    /// Whether it is the one that held the call.
    pub binds: bool,
    /// Whether it only counts what it would have held.
    pub shadow: bool,
}

/// What was noted when a call began to wait.
#[derive(Clone, Debug)]
pub(super) struct Held {
    at: Time,
    after: Option<&'static str>,
    breaker: &'static str,
    limits: SmallVec<[LimitThen; 4]>,
    ahead: [usize; 3],
    ahead_tenants: Vec<(Arc<str>, usize)>,
}

impl Held {
    /// The error class of what the call waits after, if that is an attempt that failed.
    pub(super) const fn after(&self) -> Option<&'static str> {
        self.after
    }
}

impl Gate {
    /// What is known of the call: of one that waits now, or of the newest with this id that was held for a second or refused.
    #[must_use]
    pub fn explain(&self, call: &str) -> Option<Explanation> {
        let waits = |state| matches!(state, State::Waiting | State::BackingOff);
        let waiting = self.entries.iter().position(|entry| waits(entry.state) && &*entry.id == call);
        if let Some(at) = waiting {
            let ticket = Ticket { index: at as u32, generation: self.entries[at].generation };
            let held = self.entries[at].held.clone()?;
            return Some(self.explanation(ticket, &held, "waiting", None));
        }
        self.explanations.iter().rev().find(|explanation| &*explanation.call == call).cloned()
    }

    /// A call is about to wait, held by `binding`.
    pub(super) fn note_held(&mut self, ticket: Ticket, binding: Option<u32>) {
        if self.entries[ticket.index()].held.is_none() {
            let held = self.held_now(ticket, binding);
            self.entries[ticket.index()].held = Some(Box::new(held));
        }
    }

    /// A call is about to wait because of what the upstream answered.
    pub(super) fn note_backing_off(&mut self, ticket: Ticket, after: &'static str) {
        let held = self.held_now(ticket, None);
        self.entries[ticket.index()].held = Some(Box::new(Held { after: Some(after), ..held }));
    }

    fn held_now(&self, ticket: Ticket, binding: Option<u32>) -> Held {
        let entry = &self.entries[ticket.index()];
        let route = &self.routes[entry.route];
        let target = &self.targets[route.target];
        let limits = route
            .meters
            .iter()
            .filter_map(|id| {
                let meter = &self.ledger.meters[*id];
                let requested = entry.amounts.of(meter);
                let is_bound = meter.limit() < u64::MAX >> 8 || meter.blocked;
                let level = &self.ledger.levels[meter.level];
                (requested > 0 && is_bound).then(|| LimitThen {
                    limit: level.name.clone(),
                    key: level.label.clone(),
                    dimension: meter.dimension.name(),
                    allowed: meter.limit(),
                    remaining: meter.level(),
                    requested,
                    kept: meter.reserve(entry.class, self.reserve_permille, requested, self.clock),
                    waiting: meter.backlog.iter().fold(0, |sum, units| sum.saturating_add(*units)),
                    binds: binding == Some(*id),
                    shadow: !meter.enforce,
                })
            })
            .collect();
        Held {
            at: self.clock,
            after: None,
            breaker: target.breaker.state().name(),
            limits,
            ahead: self.queue.waiting,
            ahead_tenants: self.queue.largest_tenants(entry.class, TENANTS_SEEN, TENANTS_NAMED),
        }
    }

    fn explanation(
        &self,
        ticket: Ticket,
        held: &Held,
        outcome: &'static str,
        retry_after: Option<Duration>,
    ) -> Explanation {
        let entry = &self.entries[ticket.index()];
        let route = &self.routes[entry.route];
        let is_waiting = matches!(entry.state, State::Waiting | State::BackingOff);
        let waits = if is_waiting { self.clock.since(entry.waits_since) } else { Duration::ZERO };
        Explanation {
            call: entry.id.clone(),
            outcome,
            target: self.targets[route.target].name.clone(),
            tenant: route.subject.tenant.clone(),
            priority: entry.class.name(),
            at: held.at,
            waited_ms: entry.waited.saturating_add(waits).as_secs_f64() * 1e3,
            retry_after_ms: retry_after.map(|after| after.as_secs_f64() * 1e3),
            after: held.after,
            breaker: held.breaker,
            limits: held.limits.to_vec(),
            ahead: Priority::ALL.iter().map(|class| (class.name(), held.ahead[class.index()])).collect(),
            ahead_tenants: held.ahead_tenants.clone(),
        }
    }

    /// The limit that a call waits for.
    pub(super) fn held_by(&self, ticket: Ticket) -> Option<Arc<str>> {
        let held = self.entries[ticket.index()].held.as_ref()?;
        let binding = held.limits.iter().find(|limit| limit.binds)?;
        let parts = [&*binding.limit, &*binding.key, binding.dimension];
        Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/").into())
    }

    /// A call that waited was granted: kept if that took long.
    pub(super) fn explain_granted(&mut self, ticket: Ticket) {
        let Some(held) = self.entries[ticket.index()].held.take() else { return };
        if self.entries[ticket.index()].waited >= WORTH_TELLING {
            let explanation = self.explanation(ticket, &held, "granted", None);
            self.keep(explanation);
        }
    }

    /// A call is refused.
    pub(super) fn explain_refused(
        &mut self,
        ticket: Ticket,
        outcome: &'static str,
        binding: Option<u32>,
        retry_after: Option<Duration>,
    ) {
        let held = match self.entries[ticket.index()].held.take() {
            Some(held) => *held,
            None => self.held_now(ticket, binding),
        };
        let explanation = self.explanation(ticket, &held, outcome, retry_after);
        self.keep(explanation);
    }

    fn keep(&mut self, explanation: Explanation) {
        if self.explanations.len() >= KEPT {
            self.explanations.pop_front();
        }
        self.explanations.push_back(explanation);
    }
}
