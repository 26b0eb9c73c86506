//! Decides whether a call that cannot go now may wait: is there a place, would it go in time. And how calls are turned away.

use std::time::Duration;

use super::{Gate, Output, State, Ticket, Timer};
use crate::call::Priority;
use crate::event::{Event, Interest};
use crate::ledger::{Amounts, Charge};
use crate::meter::{Kind, MeterSays};
use crate::queue::LaneId;
use crate::refusal::{BreakerReport, LimitReport, Reason, Refusal};
use crate::time::Wait;

/// What a caller is told where nobody knows when there will be room: the least that `retry-after` can say.
const LEAST_TOLD: Duration = Duration::from_secs(1);
/// The share of a level that is all of it.
const WHOLE_LEVEL: u64 = 1 << 40;

impl Gate {
    /// Puts a call into the queue, parked at `meter`, unless the queue is full or it could not go in time.
    pub(super) fn wait_at(&mut self, ticket: Ticket, meter: u32, wait: Option<Wait>) {
        let now = self.clock;
        let (class, route, start_by, bytes) = {
            let entry = &self.entries[ticket.index()];
            (entry.class, entry.route, entry.start_by, entry.body_bytes)
        };
        self.refill_route(route);
        let predicted = self.predicted_wait(ticket);
        if self.queue_is_full(ticket) {
            self.ledger.meters[meter].mark_active(class, now);
            let waiting = self.queue.total_waiting();
            let after = Again::after(predicted.map_or(0, |(micros, _)| micros), true);
            return self.refuse_bound(ticket, Reason::QueueFull { waiting }, after, None);
        }
        // A place in flight is free when somebody ends; how often that is looked at is no wait.
        let is_guess =
            meter == self.targets[self.routes[route].target].gauge && self.ledger.meters[meter].paused_until <= now;
        let exact = wait.filter(|wait| !is_guess && *wait != Wait::UNTIL_EVENT).map_or(0, Wait::micros);
        // Who may not wait at all is held by what has no room now, whatever would be scarce by the time of its turn.
        let (longest, binding) = match predicted {
            Some((micros, other))
                if micros > 0 && micros >= exact && (now < start_by || self.holds_now(ticket, other)) =>
            {
                (micros, other)
            }
            _ => (exact.max(predicted.map_or(0, |(micros, _)| micros)), meter),
        };
        if now.plus_micros(longest) > start_by || now >= start_by {
            if meter == self.targets[self.routes[route].target].waits_for_breaker {
                return self.refuse_for_breaker(ticket);
            }
            // The next of its class is to find room.
            self.ledger.meters[binding].mark_active(class, now);
            return self.refuse_for_limit(ticket, binding, longest);
        }
        self.note_held(ticket, Some(meter));
        let lane = self.open_lane(route, class);
        let share = self.share(route, ticket);
        let age = self.entries[ticket.index()].age;
        self.queue.enqueue(lane, age, ticket, share, bytes);
        let entry = &mut self.entries[ticket.index()];
        entry.state = State::Waiting;
        entry.share = share;
        entry.charges.clear();
        for id in &self.routes[route].meters {
            let waits_at = &mut self.ledger.meters[*id];
            let amount = entry.amounts.of(waits_at);
            if amount > 0 {
                waits_at.backlog[class.index()] = waits_at.backlog[class.index()].saturating_add(amount);
                waits_at.mark_active(class, now);
                entry.charges.push(Charge { meter: *id, epoch: waits_at.epoch, amount, bin: 0 });
            }
        }
        let report_call = entry.id.clone();
        self.set_timer(start_by, Timer::Deadline(ticket));
        self.demand(ticket);
        if self.queue.lane(lane).parked_at.is_none() {
            self.queue.park(lane, meter, &mut self.ledger.meters[meter].lot);
        }
        let parked_at = self.queue.lane(lane).parked_at.unwrap_or(meter);
        self.stirred.push(parked_at);
        if self.tells_all() {
            let level = &self.ledger.levels[self.ledger.meters[parked_at].level];
            let (limit, dimension) = (level.name.clone(), Some(self.ledger.meters[parked_at].dimension));
            self.emit(|| Event::Queued { call: report_call, limit, dimension });
        }
    }

    /// Whether there is no place to wait in. Who has been let in once is not turned away for those that came after.
    pub(super) fn queue_is_full(&self, ticket: Ticket) -> bool {
        let (queue, entry) = (&self.policy.queue, &self.entries[ticket.index()]);
        let bytes = entry.body_bytes;
        let is_full = self.queue.total_waiting() >= queue.max_waiting
            || (bytes > 0 && self.queue.waiting_bytes.saturating_add(bytes) > queue.max_bytes);
        is_full && entry.attempts == 0
    }

    pub(super) fn open_lane(&mut self, route: u32, class: crate::call::Priority) -> LaneId {
        if let Some(lane) = self.routes[route].lanes[class.index()] {
            return lane;
        }
        let tenant = self.routes[route].subject.tenant.clone();
        let weight = self.weight_of(&tenant);
        let lane = self.queue.open_lane(class, route, &tenant, weight);
        self.routes[route].lanes[class.index()] = Some(lane);
        lane
    }

    /// The largest share of any level that tenants share.
    pub(super) fn share(&self, route: u32, ticket: Ticket) -> u64 {
        let amounts = &self.entries[ticket.index()].amounts;
        self.routes[route]
            .meters
            .iter()
            .map(|meter| &self.ledger.meters[*meter])
            .filter(|meter| meter.shared && meter.enforce)
            .map(|meter| amounts.of(meter).saturating_mul(meter.share_per_unit).min(WHOLE_LEVEL))
            .max()
            .unwrap_or(1)
            .max(1)
    }

    /// Takes a waiting call out of its lane and the backlogs.
    pub(super) fn leave_queue(&mut self, ticket: Ticket) {
        let entry = &mut self.entries[ticket.index()];
        let class = entry.class.index();
        for charge in entry.charges.drain(..) {
            if let Some(meter) = self.ledger.meters.get_mut(charge.meter).filter(|meter| meter.epoch == charge.epoch) {
                meter.backlog[class] = meter.backlog[class].saturating_sub(charge.amount);
            }
        }
        let Some(lane) = self.routes[entry.route].lanes[class] else { return };
        self.queue.leave(lane, entry.share, entry.body_bytes);
        self.queue.forget(lane, ticket);
        // What was promised to it is free again, and whoever it held up may go.
        self.release_earmarks(lane);
        if let Some(meter) = self.queue.lane(lane).parked_at {
            self.stirred.push(meter);
        }
    }

    /// When a call that begins to wait now would go, and by which meter: an O(1) estimate from the backlogs.
    ///
    /// Other classes and tenants can go before it only by their share, or as much as they have waiting. `None`: not known.
    pub(super) fn predicted_wait(&self, ticket: Ticket) -> Option<(u64, u32)> {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let class = entry.class.index();
        let weights = self.policy.queue.priorities;
        let tenant = self.routes[entry.route].lanes[class].map(|lane| self.queue.lane(lane).tenant);
        let mine = tenant.map_or(0, |tenant| self.queue.tenant(tenant).backlog);
        let of_class = self.queue.active_backlog[class].max(1);
        let share = self.share(entry.route, ticket);
        let others_part = self.queue.others_part(entry.class, tenant, mine.saturating_add(share));
        let mut longest: Option<(u64, u32)> = None;
        for id in &self.routes[entry.route].meters {
            let meter = &self.ledger.meters[*id];
            let cost = entry.amounts.of(meter);
            if cost == 0 || !meter.enforce {
                continue;
            }
            let backlog = meter.backlog[class];
            let kept = meter.reserve(entry.class, self.reserve_permille, cost, now);
            let my_part = scale(backlog, mine.min(of_class), of_class);
            let others = scale(backlog - my_part, others_part, 1 << 20);
            let in_class = my_part.saturating_add(others);
            let other_classes: u64 = (0..3)
                .filter(|other| *other != class)
                .map(|other| {
                    let by_share =
                        scale(in_class.saturating_add(cost), u64::from(weights[other]), u64::from(weights[class]));
                    meter.backlog[other].min(by_share)
                })
                .sum();
            let ahead = in_class.saturating_add(other_classes);
            let wait = meter.predicted_wait_micros(ahead, cost, now).map(|wait| match kept {
                0 => wait,
                // Once the level holds what is kept as well, or its class has its part of what flows in.
                _ => {
                    let whole = meter.predicted_wait_micros(ahead.saturating_add(kept), cost, now).unwrap_or(wait);
                    whole.min(wait.max(meter.lower_part_in(in_class.saturating_add(cost), now)))
                }
            });
            if let Some(wait) = wait
                && longest.is_none_or(|(other, _)| wait > other)
            {
                longest = Some((wait, *id));
            }
        }
        longest
    }

    /// Whether a meter does not let the call pass now: there is no room, or others wait for it.
    fn holds_now(&self, ticket: Ticket, meter: u32) -> bool {
        let entry = &self.entries[ticket.index()];
        let lane = self.routes[entry.route].lanes[entry.class.index()];
        let meter = &self.ledger.meters[meter];
        let amount = entry.amounts.of(meter);
        let says = || meter.says(amount, entry.class, lane, self.reserve_permille, self.clock);
        amount > 0 && (!meter.lot.is_empty() || says() != MeterSays::Room)
    }

    pub(super) fn refill_route(&mut self, route: u32) {
        let now = self.clock;
        for meter in &self.routes[route].meters {
            self.ledger.meters[*meter].refill(now);
        }
    }

    /// How a limit stands for a call of `class`.
    pub(super) fn report(&self, meter: u32, class: Priority, amounts: &Amounts) -> LimitReport {
        let found = &self.ledger.meters[meter];
        let requested = amounts.of(found);
        self.ledger.report(meter, requested, found.reserve(class, self.reserve_permille, requested, self.clock))
    }

    /// `micros`: how long it would have had to wait, as far as is known; 0: it is not.
    fn refuse_for_limit(&mut self, ticket: Ticket, meter: u32, micros: u64) {
        let found = &self.ledger.meters[meter];
        // A place in flight is free when another call ends: what other limits need is not when this one goes.
        let ends_by_event = matches!(found.kind, Kind::Gauge { .. }) && found.paused_until <= self.clock;
        let after = Again::after(micros, !ends_by_event);
        let entry = &self.entries[ticket.index()];
        let report = self.report(meter, entry.class, &entry.amounts);
        self.refuse_bound(ticket, Reason::Limit(report), after, Some(meter));
    }

    pub(super) fn refuse_for_good(&mut self, ticket: Ticket, meter: u32) {
        let entry = &self.entries[ticket.index()];
        let requested = entry.amounts.of(&self.ledger.meters[meter]);
        let report = self.ledger.report(meter, requested, 0);
        self.refuse_bound(ticket, Reason::TooLarge(report), Again::default(), Some(meter));
    }

    pub(super) fn refuse_for_breaker(&mut self, ticket: Ticket) {
        let target = &self.targets[self.routes[self.entries[ticket.index()].route].target];
        let report: BreakerReport = target.breaker.report(target.name.clone());
        let after = report.next_probe_at.map(|at| at.since(self.clock).max(Duration::from_micros(1)));
        self.refuse(ticket, Reason::Breaker(report), after);
    }

    /// Ends a call that has not been granted.
    pub(super) fn refuse(&mut self, ticket: Ticket, reason: Reason, retry_after: Option<Duration>) {
        self.refuse_bound(ticket, reason, Again { known: retry_after, told: retry_after }, None);
    }

    /// The same, because of the meter `binding`.
    fn refuse_bound(&mut self, ticket: Ticket, reason: Reason, again: Again, binding: Option<u32>) {
        let Again { known, told: retry_after } = again;
        let now = self.clock;
        if self.entries[ticket.index()].state == State::Waiting {
            self.leave_queue(ticket);
        }
        self.entries[ticket.index()].state = State::BackingOff;
        let entry = &self.entries[ticket.index()];
        let waited = entry.waited.saturating_add(now.since(entry.waits_since));
        let model = self.routes[entry.route].subject.model.clone();
        let refusal = Refusal { reason, model, waited, retry_after };
        let entry = &mut self.entries[ticket.index()];
        (entry.waited, entry.waits_since) = (waited, now);
        self.explain_refused(ticket, refusal.reason.name(), binding, known);
        if self.interest > Interest::Nothing {
            let (call, whose) = (self.entries[ticket.index()].id.clone(), self.whose(ticket));
            let reason = refusal.reason.name();
            let limit = match &refusal.reason {
                Reason::Limit(report) | Reason::TooLarge(report) => Some(report.clone()),
                _ => None,
            };
            self.emit(|| Event::Refused { call, whose, reason, limit, waited, retry_after });
        }
        self.outputs.push_back(Output::Refused { ticket, refusal: Box::new(refusal) });
        self.close_entry(ticket);
    }

    /// The end of a wait that lasted up to the deadline.
    pub(super) fn refuse_at_deadline(&mut self, ticket: Ticket) {
        let entry = &self.entries[ticket.index()];
        let (route, class) = (entry.route, entry.class);
        let parked_at = self.routes[route].lanes[class.index()].and_then(|lane| self.queue.lane(lane).parked_at);
        let target = &self.targets[self.routes[route].target];
        if parked_at == Some(target.waits_for_breaker) {
            self.refuse_for_breaker(ticket);
        } else {
            let meter = parked_at.unwrap_or(target.gauge);
            self.refill_route(route);
            // What is ahead of it now is ahead of it no longer when it comes back: its place is at the end.
            let micros = self.predicted_wait(ticket).map_or(0, |(micros, _)| micros);
            self.refuse_for_limit(ticket, meter, micros);
        }
    }
}

/// When coming back makes sense: as far as is known, and as the caller is told. `None`: never.
#[derive(Clone, Copy, Debug, Default)]
struct Again {
    known: Option<Duration>,
    told: Option<Duration>,
}

impl Again {
    /// After `micros`, and no sooner than can be told where that is not known.
    fn after(micros: u64, is_known: bool) -> Self {
        let after = Duration::from_micros(micros);
        let known = Some(after).filter(|after| is_known && !after.is_zero());
        Self { known, told: Some(known.unwrap_or(after.max(LEAST_TOLD))) }
    }
}

/// `value × numerator ÷ denominator` without overflow.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1))).unwrap_or(u64::MAX)
}
