//! Decides of one call whether it goes at once, waits, or is refused.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Entry, Gate, Output, State, Ticket};
use crate::breaker::{BreakerSays, BreakerState};
use crate::call::{Call, Priority, WhenOpen};
use crate::cost::Cost;
use crate::event::{Event, Interest};
use crate::ledger::Amounts;
use crate::limit::Dimension;
use crate::meter::{MeterSays, Obstacle};
use crate::queue::LaneId;
use crate::refusal::Reason;
use crate::time::{Time, Wait, micros_up};

/// How often a bound on calls in flight that grows with time is looked at again.
const GAUGE_GROWS_MICROS: u64 = 250_000;

/// What all meters of a call say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    /// The meter with the longest wait binds.
    Wait {
        meter: u32,
        wait: Wait,
        obstacle: Obstacle,
    },
    Never {
        meter: u32,
    },
}

impl Gate {
    pub(super) fn open_entry(&mut self, call: &Call) -> Ticket {
        let now = self.clock;
        let route = self.route(&call.subject);
        self.routes[route].entries += 1;
        self.routes[route].used_at = now;
        self.ages += 1;
        let at = if let Some(at) = self.free_entries.pop() {
            at
        } else {
            self.entries.push(Entry::free(call.id.clone()));
            (self.entries.len() - 1) as u32
        };
        let age = self.ages;
        let entry = &mut self.entries[at as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.state = State::BackingOff;
        entry.id.clone_from(&call.id);
        entry.cost = call.cost;
        entry.class = call.priority;
        entry.start_by = call.start_by;
        entry.end_by = call.end_by;
        entry.when_open = call.when_open;
        entry.body_bytes = call.body_bytes;
        entry.route = route;
        entry.age = age;
        entry.arrived_at = now;
        entry.waits_since = now;
        entry.waited = Duration::ZERO;
        entry.attempts = 0;
        entry.counted_attempts = 0;
        entry.rate_limits = 0;
        entry.previous_delay = Duration::ZERO;
        entry.own_request_charged = call.own_charged;
        Ticket { index: at, generation: entry.generation }
    }

    /// Frees the place of a call that has ended.
    pub(super) fn close_entry(&mut self, ticket: Ticket) {
        let entry = &mut self.entries[ticket.index()];
        entry.state = State::Free;
        entry.charges.clear();
        entry.notes.clear();
        entry.held = None;
        let route = entry.route;
        self.routes[route].entries -= 1;
        self.free_entries.push(ticket.index);
    }

    pub(super) fn closed_to_new_calls(&self) -> Option<Reason> {
        if self.draining {
            return Some(Reason::Draining);
        }
        self.paused.clone().map(|reason| Reason::Paused { reason })
    }

    /// A call that is not in the queue wants its turn: newly arrived, or back from a back-off.
    pub(super) fn start(&mut self, ticket: Ticket) {
        let now = self.clock;
        let (route, class, when_open, charged, start_by) = {
            let entry = &self.entries[ticket.index()];
            (entry.route, entry.class, entry.when_open, entry.own_request_charged, entry.start_by)
        };
        self.refresh_route(route);
        let cost = self.entries[ticket.index()].cost;
        let amounts = self.amounts(route, &cost, charged);
        self.entries[ticket.index()].amounts = amounts;
        let target = self.routes[route].target;
        match self.targets[target].breaker.says(now) {
            BreakerSays::Go => {}
            _ if when_open == WhenOpen::Refuse => return self.refuse_for_breaker(ticket),
            BreakerSays::NotBefore(at) => {
                let wait = Wait::from_micros(at.micros_since(now));
                return self.wait_at(ticket, self.targets[target].waits_for_breaker, Some(wait));
            }
            BreakerSays::NotUntilChange => return self.wait_at(ticket, self.targets[target].waits_for_breaker, None),
        }
        let lane = self.routes[route].lanes[class.index()];
        if !self.is_contended(route, lane, &amounts) {
            match self.verdict(route, &amounts, class, lane, self.reserve_permille) {
                Verdict::Go => return self.grant(ticket, None),
                Verdict::Never { meter } => return self.refuse_for_good(ticket, meter),
                Verdict::Wait { meter, wait, .. } => return self.wait_at(ticket, meter, Some(wait)),
            }
        }
        if let Some(meter) = self.never_fits(route, &amounts) {
            return self.refuse_for_good(ticket, meter);
        }
        // Who has no place to wait in is kept some room for too.
        if (start_by <= now || self.queue_is_full(ticket))
            && self.may_pass(route, class, &amounts)
            && self.verdict(route, &amounts, class, lane, self.reserve_permille) == Verdict::Go
        {
            return self.grant(ticket, None);
        }
        let meter = self.contended_meter(route, &amounts);
        self.wait_at(ticket, meter, None);
    }

    /// True if others wait for what this call would take: then it must not overtake them.
    pub(super) fn is_contended(&self, route: u32, lane: Option<LaneId>, amounts: &Amounts) -> bool {
        if self.queue.total_waiting() == 0 {
            return false;
        }
        let waits_here = lane.is_some_and(|lane| self.queue.lane(lane).parked_at.is_some());
        waits_here
            || self.routes[route].meters.iter().any(|meter| {
                let meter = &self.ledger.meters[*meter];
                !meter.lot.is_empty() && amounts.of(meter) > 0
            })
    }

    /// Whether a call may go before those that wait for what it would take: they are of lower classes, it takes of what is kept
    /// from them, and leaves enough of that for them to have their part.
    pub(super) fn may_pass(&self, route: u32, class: Priority, amounts: &Amounts) -> bool {
        let route = &self.routes[route];
        let own_wait = route.lanes[class.index()].is_some_and(|lane| self.queue.lane(lane).parked_at.is_some());
        !own_wait
            && route.meters.iter().all(|meter| {
                let meter = &self.ledger.meters[*meter];
                let amount = amounts.of(meter);
                amount == 0
                    || meter.lot.is_empty()
                    || (meter.lot.classes_in_turn().all(|waiting| waiting < class)
                        && meter.leaves_of_reserve(amount, self.reserve_permille))
            })
    }

    pub(super) fn contended_meter(&self, route: u32, amounts: &Amounts) -> u32 {
        let meters = &self.routes[route].meters;
        let contended = meters.iter().find(|meter| {
            let meter = &self.ledger.meters[**meter];
            !meter.lot.is_empty() && amounts.of(meter) > 0
        });
        contended.copied().unwrap_or(self.targets[self.routes[route].target].gauge)
    }

    fn never_fits(&mut self, route: u32, amounts: &Amounts) -> Option<u32> {
        self.refill_route(route);
        self.routes[route].meters.iter().copied().find(|meter| {
            let meter = &self.ledger.meters[*meter];
            let amount = amounts.of(meter);
            meter.enforce
                && amount > 0
                && meter.dimension != Dimension::MaxInFlight
                && (meter.blocked || amount > meter.limit())
        })
    }

    /// What all meters of a route say to these amounts now.
    pub(super) fn verdict(
        &mut self,
        route: u32,
        amounts: &Amounts,
        class: Priority,
        lane: Option<LaneId>,
        reserve_permille: u64,
    ) -> Verdict {
        let now = self.clock;
        let pace_due = self.paces_due(self.routes[route].target);
        let route = &self.routes[route];
        let target = &mut self.targets[route.target];
        let cap = target.in_flight_cap(now);
        if let crate::meter::Kind::Gauge { limit, .. } = &mut self.ledger.meters[target.gauge].kind {
            *limit = cap.unwrap_or(u64::MAX >> 8);
        }
        let mut verdict = Verdict::Go;
        for id in &route.meters {
            let meter = &mut self.ledger.meters[*id];
            meter.refill(now);
            meter.note_reserve(reserve_permille, now);
            let amount = amounts.of(meter);
            if amount == 0 {
                continue;
            }
            match meter.says(amount, class, lane, reserve_permille, now) {
                MeterSays::Room => {}
                MeterSays::Never => return Verdict::Never { meter: *id },
                MeterSays::Wait(wait, obstacle) => {
                    let wait = if *id == target.gauge && cap.is_some() {
                        wait.min(Wait::from_micros(GAUGE_GROWS_MICROS))
                    } else if let Some(due) = pace_due {
                        // It may rise before so much has flowed in.
                        wait.min(Wait::from_micros(due.micros_since(now)))
                    } else {
                        wait
                    };
                    if !matches!(verdict, Verdict::Wait { wait: longest, .. } if longest >= wait) {
                        verdict = Verdict::Wait { meter: *id, wait, obstacle };
                    }
                }
            }
        }
        verdict
    }

    /// Lets an attempt go: breaker permit and every charge in one step.
    ///
    /// `from`: the lane that it waited in, and the meter whose lot is being served.
    pub(super) fn grant(&mut self, ticket: Ticket, from: Option<(LaneId, u32)>) {
        let (lane, from) = (from.map(|(lane, _)| lane), from.map(|(_, meter)| meter));
        let now = self.clock;
        if lane.is_some() {
            self.leave_queue(ticket);
        } else {
            let contended = self.queue.total_waiting() > 0;
            let route = self.entries[ticket.index()].route;
            self.entries[ticket.index()].share = if contended { self.share(route, ticket) } else { 1 };
        }
        let entry = &mut self.entries[ticket.index()];
        let route = &self.routes[entry.route];
        let target = &mut self.targets[route.target];
        let before = target.breaker.state();
        let permit = target.breaker.permit(now);
        entry.permit = Some(permit);
        entry.charges.clear();
        entry.notes.clear();
        self.ledger.reserve(&route.meters, &entry.amounts, entry.class, &mut entry.charges, &mut entry.notes, now);
        entry.predictions = target.charge_rule.sent(&entry.cost, now);
        entry.sent_before = [target.flows[0].total_sent(), target.flows[1].total_sent()];
        target.flows[0].sent(1, now);
        target.flows[1].sent(entry.amounts.mirror_tokens, now);
        entry.state = State::InFlight;
        entry.attempts += 1;
        let is_new = entry.attempts == 1 && !entry.own_request_charged;
        entry.own_request_charged = true;
        entry.granted_at = now;
        entry.sent = false;
        entry.seen = None;
        entry.waited = entry.waited.saturating_add(now.since(entry.waits_since));
        if is_new {
            self.budget.deposit();
        }
        if let crate::meter::Kind::Gauge { used, .. } = self.ledger.meters[target.gauge].kind
            && target.breaker.state() == BreakerState::Closed
        {
            target.peak_in_flight = target.peak_in_flight.max(used);
        }
        self.in_flight += 1;
        let (class, attempt, queued_for, share) = (entry.class, entry.attempts, entry.waited, entry.share);
        let weight = self.policy.queue.priorities[class.index()];
        if self.queue.total_waiting() > 0 {
            for charge in &entry.charges {
                let lot = &mut self.ledger.meters[charge.meter].lot;
                if lot.is_empty() {
                    continue;
                }
                lot.went(class, share, weight);
                if from != Some(charge.meter) && self.queue.passed_by(lot) {
                    // Whoever is first there is promised room when it is asked next: now.
                    self.stirred.push(charge.meter);
                }
            }
        }
        match (lane, route.lanes[class.index()]) {
            (Some(lane), _) => self.queue.lane_went(lane, share),
            (None, Some(open)) if self.queue.total_waiting() > 0 => {
                let tenant = self.queue.lane(open).tenant;
                self.queue.tenant_went(tenant, share);
            }
            _ => {}
        }
        let target = entry.route;
        let of_target = route.target;
        if before != self.targets[of_target].breaker.state() {
            // Told before the grant that it allows.
            self.breaker_changed(of_target, Some(before));
        }
        self.outputs.push_back(Output::Granted { ticket, attempt, queued_for });
        let limit = if self.interest > Interest::Nothing { self.held_by(ticket) } else { None };
        self.explain_granted(ticket);
        if self.interest > Interest::Nothing {
            let is_plain = attempt == 1 && queued_for.is_zero();
            if self.tells_all() || !is_plain {
                let (call, whose) = (self.entries[ticket.index()].id.clone(), self.whose(ticket));
                self.emit(|| Event::Granted { call: call.clone(), whose, attempt, queued_for, limit });
                self.emit(|| Event::AttemptStart { call, attempt });
            }
            if permit.is_probe() {
                let breaker = self.targets[self.routes[target].target].name.clone();
                self.emit(|| Event::ProbeStarted { breaker });
            }
        }
    }

    pub(super) fn deadline_passed(&self, start_by: Time, delay: Duration) -> bool {
        self.clock.plus_micros(micros_up(delay)) > start_by
    }
}

impl Entry {
    fn free(id: Arc<str>) -> Self {
        Self {
            generation: 0,
            state: State::Free,
            id,
            cost: Cost::default(),
            class: Priority::Normal,
            start_by: Time::NEVER,
            end_by: Time::NEVER,
            when_open: WhenOpen::Refuse,
            body_bytes: 0,
            route: 0,
            age: 0,
            arrived_at: Time::ZERO,
            waits_since: Time::ZERO,
            waited: Duration::ZERO,
            attempts: 0,
            counted_attempts: 0,
            rate_limits: 0,
            previous_delay: Duration::ZERO,
            granted_at: Time::ZERO,
            sent: false,
            charges: SmallVec::new(),
            notes: SmallVec::new(),
            predictions: None,
            sent_before: [0; 2],
            permit: None,
            amounts: Amounts::default(),
            share: 1,
            own_request_charged: false,
            seen: None,
            held: None,
        }
    }
}
