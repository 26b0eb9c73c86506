//! Decides of one call whether it goes at once, waits, or is refused.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Entry, Gate, Output, Route, State, Ticket, Timer};
use crate::breaker::{BreakerSays, BreakerState};
use crate::call::{Call, Subject, WhenOpen};
use crate::cost::Cost;
use crate::event::Event;
use crate::learn::cold_start::ColdStart;
use crate::ledger::{Amounts, Charge, START, Source, gauge_spec};
use crate::limit::Dimension;
use crate::meter::{MeterSays, Obstacle};
use crate::queue::LaneId;
use crate::refusal::{BreakerReport, Reason, Refusal};
use crate::target::Target;
use crate::time::{Time, Wait, micros_up};

/// How often a bound on calls in flight that grows with time is looked at again.
const GAUGE_GROWS_MICROS: u64 = 250_000;

/// The share of a level that is all of it.
const WHOLE_LEVEL: u64 = 1 << 40;

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

    fn route(&mut self, subject: &Subject) -> u32 {
        if let Some(route) = self.route_ids.get(subject) {
            return *route;
        }
        let now = self.clock;
        let (configured, levels) = self.ledger.resolve(subject, now);
        self.restore_levels(&levels);
        let has_mirror = configured.iter().any(|meter| self.ledger.meters[*meter].mirror);
        let target = self.target(subject, has_mirror);
        self.targets[target].routes += 1;
        let route = Route {
            subject: subject.clone(),
            tenant_hash: self.hash(&subject.tenant),
            meters: SmallVec::new(),
            configured,
            levels,
            target,
            target_version: u32::MAX,
            has_mirror,
            lanes: [None; 3],
            entries: 0,
            used_at: now,
        };
        let route = self.routes.insert(route);
        self.route_ids.insert(subject.clone(), route);
        self.refresh_route(route);
        route
    }

    fn hash(&self, name: &str) -> u64 {
        use std::hash::BuildHasher;
        self.route_ids.hasher().hash_one(name)
    }

    fn target(&mut self, subject: &Subject, has_mirror: bool) -> u32 {
        let key = (subject.account.clone(), subject.model.clone());
        if let Some(target) = self.target_ids.get(&key) {
            return *target;
        }
        let now = self.clock;
        let policy = self.policy.upstreams.iter().find(|policy| &*policy.name == subject.upstream());
        let charge_rule = Target::charge_rule_for(policy);
        let learn_limits = policy.is_none_or(|policy| policy.learn_limits);
        let model = if subject.model.is_empty() { "-" } else { &*subject.model };
        let name: Arc<str> = format!("{}/{model}", subject.upstream()).into();
        let place = self.targets.insert(Target {
            account: subject.account.clone(),
            model: subject.model.clone(),
            name: name.clone(),
            breaker: crate::breaker::Breaker::new(self.breaker_config.clone()),
            learn_limits,
            learned: SmallVec::new(),
            version: 0,
            charge_rule,
            typical_output: Default::default(),
            cold_start: (learn_limits && !has_mirror).then(|| ColdStart::new(now)),
            gauge: 0,
            waits_for_breaker: 0,
            peak_in_flight: 0,
            routes: 0,
        });
        let level = self.ledger.add_level(
            format!("{START}|{}|{}", subject.account, subject.model).into(),
            START.into(),
            name,
            Source::Target(place),
        );
        let gauge = self.ledger.put_meter(level, gauge_spec(), now);
        // A lot of its own, with a meter that never binds: the breaker does.
        let breaker_level = self.ledger.add_level(
            format!("breaker|{}|{}", subject.account, subject.model).into(),
            "breaker".into(),
            "".into(),
            Source::Target(place),
        );
        let waits_for_breaker = self.ledger.put_meter(breaker_level, gauge_spec(), now);
        let target = &mut self.targets[place];
        target.gauge = gauge;
        target.waits_for_breaker = waits_for_breaker;
        self.target_ids.insert(key, place);
        self.restore_target(place);
        place
    }

    /// Brings a route's meters up to date with what has been learned of its target.
    pub(super) fn refresh_route(&mut self, route: u32) {
        let entry = &mut self.routes[route];
        let target = &self.targets[entry.target];
        if entry.target_version == target.version {
            return;
        }
        entry.target_version = target.version;
        entry.meters.clear();
        entry.meters.extend(entry.configured.iter().copied());
        entry.meters.extend(target.learned.iter().map(|learned| learned.meter));
        entry.meters.push(target.gauge);
    }

    pub(super) fn amounts(&self, route: u32, cost: &Cost, own_request_charged: bool) -> Amounts {
        let route = &self.routes[route];
        let target = &self.targets[route.target];
        let capacity = route
            .meters
            .iter()
            .map(|meter| &self.ledger.meters[*meter])
            .filter(|meter| meter.mirror && meter.dimension == Dimension::TokensPerMinute)
            .map(|meter| meter.limit())
            .min();
        let mirror = target.charge_rule.charge(cost, capacity.unwrap_or(u64::MAX));
        let typical = target.typical_output.expected(route.subject.request_type);
        let mut amounts = Amounts::new(cost, typical, mirror);
        if own_request_charged {
            amounts.own_requests = 0;
        }
        amounts
    }

    /// A call that is not in the queue wants its turn: newly arrived, or back from a back-off.
    pub(super) fn start(&mut self, ticket: Ticket) {
        let now = self.clock;
        let (route, class, when_open, charged) = {
            let entry = &self.entries[ticket.index()];
            (entry.route, entry.class, entry.when_open, entry.own_request_charged)
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
        let meter = self.contended_meter(route, &amounts);
        self.wait_at(ticket, meter, None);
    }

    /// True if others wait for what this call would take: then it must not overtake them.
    fn is_contended(&self, route: u32, lane: Option<LaneId>, amounts: &Amounts) -> bool {
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

    fn contended_meter(&self, route: u32, amounts: &Amounts) -> u32 {
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
        class: crate::call::Priority,
        lane: Option<LaneId>,
        reserve_permille: u64,
    ) -> Verdict {
        let now = self.clock;
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
        self.outputs.push_back(Output::Granted { ticket, attempt, queued_for });
        if self.events {
            let call = self.entries[ticket.index()].id.clone();
            self.emit(|| Event::Granted { call, attempt, queued_for });
            if permit.is_probe() {
                let breaker = self.targets[self.routes[target].target].name.clone();
                self.emit(|| Event::ProbeStarted { breaker });
            }
        }
        let target = self.routes[target].target;
        if before != self.targets[target].breaker.state() {
            self.breaker_changed(target, Some(before));
        }
    }

    /// Puts a call into the queue, parked at `meter`, unless the queue is full or it could not go in time.
    fn wait_at(&mut self, ticket: Ticket, meter: u32, wait: Option<Wait>) {
        let now = self.clock;
        let (class, route, start_by, bytes) = {
            let entry = &self.entries[ticket.index()];
            (entry.class, entry.route, entry.start_by, entry.body_bytes)
        };
        self.refill_route(route);
        let predicted = self.predicted_wait(ticket);
        let queue = &self.policy.queue;
        let retry = self.entries[ticket.index()].attempts > 0;
        let full = self.queue.total_waiting() >= queue.max_waiting
            || (bytes > 0 && self.queue.waiting_bytes.saturating_add(bytes) > queue.max_bytes);
        // Who has been let in once is not turned away for those that came after.
        if full && !retry {
            let waiting = self.queue.total_waiting();
            let after = predicted.map(|(micros, _)| Duration::from_micros(micros.max(1)));
            return self.refuse(ticket, Reason::QueueFull { waiting }, after);
        }
        // A place in flight is free when somebody ends; how often that is looked at is no wait.
        let is_guess =
            meter == self.targets[self.routes[route].target].gauge && self.ledger.meters[meter].paused_until <= now;
        let exact = wait.filter(|wait| !is_guess && *wait != Wait::UNTIL_EVENT).map_or(0, Wait::micros);
        let (longest, binding) = predicted.unwrap_or((0, meter));
        let (longest, binding) = if exact > longest { (exact, meter) } else { (longest, binding) };
        if now.plus_micros(longest) > start_by || now >= start_by {
            if meter == self.targets[self.routes[route].target].waits_for_breaker {
                return self.refuse_for_breaker(ticket);
            }
            let after = (longest > 0).then(|| Duration::from_micros(longest));
            return self.refuse_for_limit(ticket, binding, after);
        }
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
        if self.queue.lane(lane).parked_at.is_none() {
            self.queue.park(lane, meter, &mut self.ledger.meters[meter].lot);
        }
        let parked_at = self.queue.lane(lane).parked_at.unwrap_or(meter);
        self.stirred.push(parked_at);
        if self.events {
            let level = &self.ledger.levels[self.ledger.meters[parked_at].level];
            let (limit, dimension) = (level.name.clone(), Some(self.ledger.meters[parked_at].dimension));
            self.emit(|| Event::Queued { call: report_call, limit, dimension });
        }
    }

    fn open_lane(&mut self, route: u32, class: crate::call::Priority) -> LaneId {
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
    fn share(&self, route: u32, ticket: Ticket) -> u64 {
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
            if let Some(wait) = meter.predicted_wait_micros(in_class.saturating_add(other_classes), cost, now)
                && longest.is_none_or(|(other, _)| wait > other)
            {
                longest = Some((wait, *id));
            }
        }
        longest
    }

    fn refill_route(&mut self, route: u32) {
        let now = self.clock;
        for meter in &self.routes[route].meters {
            self.ledger.meters[*meter].refill(now);
        }
    }

    pub(super) fn refuse_for_limit(&mut self, ticket: Ticket, meter: u32, retry_after: Option<Duration>) {
        let entry = &self.entries[ticket.index()];
        let requested = entry.amounts.of(&self.ledger.meters[meter]);
        let report = self.ledger.report(meter, requested);
        self.refuse(ticket, Reason::Limit(report), retry_after);
    }

    pub(super) fn refuse_for_good(&mut self, ticket: Ticket, meter: u32) {
        let entry = &self.entries[ticket.index()];
        let requested = entry.amounts.of(&self.ledger.meters[meter]);
        let report = self.ledger.report(meter, requested);
        self.refuse(ticket, Reason::TooLarge(report), None);
    }

    pub(super) fn refuse_for_breaker(&mut self, ticket: Ticket) {
        let target = &self.targets[self.routes[self.entries[ticket.index()].route].target];
        let report: BreakerReport = target.breaker.report(target.name.clone());
        let after = report.next_probe_at.map(|at| at.since(self.clock).max(Duration::from_micros(1)));
        self.refuse(ticket, Reason::Breaker(report), after);
    }

    /// Ends a call that has not been granted.
    pub(super) fn refuse(&mut self, ticket: Ticket, reason: Reason, retry_after: Option<Duration>) {
        let now = self.clock;
        if self.entries[ticket.index()].state == State::Waiting {
            self.leave_queue(ticket);
        }
        let entry = &self.entries[ticket.index()];
        let waited = entry.waited.saturating_add(now.since(entry.waits_since));
        let model = self.routes[entry.route].subject.model.clone();
        let refusal = Refusal { reason, model, waited, retry_after };
        if self.events {
            let (call, word) = (entry.id.clone(), refusal.reason.name());
            self.emit(|| Event::Refused { call, reason: word });
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
            let after = self.predicted_wait(ticket).map(|(micros, _)| Duration::from_micros(micros.max(1)));
            self.refuse_for_limit(ticket, meter, after);
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
            class: crate::call::Priority::Normal,
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
            permit: None,
            amounts: Amounts::default(),
            share: 1,
            own_request_charged: false,
            seen: None,
        }
    }
}

/// `value × numerator ÷ denominator` without overflow.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1))).unwrap_or(u64::MAX)
}
