//! Decides what the end of an attempt means: what is given back, what is owed, what breaker and retry make of it.

use std::time::Duration;

use super::{Gate, State, Ticket, Timer};
use crate::breaker::{BreakerResult, BreakerState};
use crate::call::WhenOpen;
use crate::config::TokenCharge;
use crate::cost::Usage;
use crate::event::{Event, Interest};
use crate::fault::{Fault, FaultKind};
use crate::learn::output::Tenant;
use crate::limit::Dimension;
use crate::outcome::{Ending, Outcome};
use crate::refusal::{GiveUp, GiveUpReason, Next};
use crate::retry::{Decision, History};
use crate::time::Time;

/// A reply that says it used more than this is not believed: no call can.
const TOKENS_MAX: u64 = 1_000_000_000;

/// What becomes of the units that an attempt took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// It never reached the upstream: all back.
    Nothing,
    /// Refused at the upstream's door: the request counts there, its tokens do not.
    Requests,
    /// The upstream worked on it and failed: mirrors keep all, own limits return the tokens.
    MirrorTokens,
    /// What was used, or where that is not known all that was taken.
    Used(Option<Usage>),
}

impl Gate {
    /// `judged`: what a rule of one's own has said already of how it failed.
    pub(super) fn settle_attempt(&mut self, ticket: Ticket, outcome: &Outcome, judged: Option<Decision>) -> Next {
        let now = self.clock;
        if self.entry_mut(ticket, State::InFlight).is_none() {
            return Next::Done;
        }
        let entry = &self.entries[ticket.index()];
        let believed = |usage: Option<Usage>| usage.filter(|usage| usage.total() <= TOKENS_MAX);
        let seen = believed(outcome.usage).or(believed(entry.seen));
        // What was seen of an attempt that ended well is all that it used.
        let reported = if outcome.ending == Ending::Success { seen } else { believed(outcome.usage) };
        let keep = match &outcome.ending {
            Ending::Unsent => Keep::Nothing,
            Ending::Success | Ending::CutShort(_) | Ending::Cancelled => Keep::Used(seen),
            Ending::Failed(fault) => match fault.kind {
                kind if kind.never_arrived() => Keep::Nothing,
                FaultKind::RateLimited | FaultKind::SlowDown | FaultKind::TooLarge | FaultKind::QuotaExhausted => {
                    Keep::Requests
                }
                FaultKind::Timeout | FaultKind::Broken => Keep::Used(seen),
                _ => Keep::MirrorTokens,
            },
        };
        let (attempt, duration) = (entry.attempts, now.since(entry.granted_at));
        let route = entry.route;
        let target = self.routes[route].target;
        if let Ending::Failed(fault) = &outcome.ending
            && fault.kind.is_rate()
        {
            self.learn_from_rate_limit(ticket, fault);
        }
        self.give_back(ticket, keep);
        let result = match &outcome.ending {
            Ending::Success => BreakerResult::Good { first_byte_after: outcome.first_byte_after },
            Ending::Failed(fault) | Ending::CutShort(fault) if fault.kind.is_service_fault() => BreakerResult::Bad,
            _ => BreakerResult::Ignored,
        };
        let fault = match &outcome.ending {
            Ending::Failed(fault) | Ending::CutShort(fault) => Some(fault),
            _ => None,
        };
        self.tell_breaker(ticket, result, fault);
        if matches!(outcome.ending, Ending::Success) {
            self.targets[target].refused_in_row = 0;
            if let Some(cold_start) = &mut self.targets[target].cold_start {
                cold_start.good_reply(now);
                let gauge = self.targets[target].gauge;
                self.stir(gauge);
            }
            if let Some(usage) = reported {
                let request_type = self.request_type(route);
                let entry = &self.entries[ticket.index()];
                let (reserved, has_ceiling) = (entry.amounts.own_tokens, entry.cost.max_output_tokens.is_some());
                let choices = entry.cost.choices.max(1);
                let route = &self.routes[route];
                let tenant = Tenant { hash: route.tenant_hash, name: &route.subject.tenant };
                let target = &mut self.targets[target];
                if !has_ceiling {
                    target.typical_output.wrote(tenant, request_type, usage.output_tokens / choices);
                }
                target.reserved.tokens = target.reserved.tokens.saturating_add(reserved);
                target.reserved.error = target.reserved.error.saturating_add(reserved.abs_diff(usage.total()));
                target.charge_rule.used(usage);
            }
        }
        let went_well = matches!(outcome.ending, Ending::Success);
        if self.tells_all() || self.interest > Interest::Nothing && !(went_well && attempt == 1) {
            let call = self.entries[ticket.index()].id.clone();
            match &outcome.ending {
                Ending::Success => self.emit(|| Event::AttemptSuccess { call, attempt, duration }),
                Ending::Failed(fault) | Ending::CutShort(fault) => {
                    let kind = fault.kind;
                    if matches!(outcome.ending, Ending::CutShort(_)) {
                        self.emit(|| Event::StreamBroken { call: call.clone(), kind });
                    }
                    let whose = Some(self.whose(ticket));
                    self.emit(|| Event::AttemptFailed { call, whose, attempt, kind });
                }
                Ending::Unsent | Ending::Cancelled => {}
            }
        }
        match &outcome.ending {
            Ending::Failed(fault) => self.after_failure(ticket, fault, judged),
            _ => {
                self.close_entry(ticket);
                Next::Done
            }
        }
    }

    /// Gives back, or debits, the difference between what was taken and what is kept.
    fn give_back(&mut self, ticket: Ticket, keep: Keep) {
        let now = self.clock;
        let entry = &mut self.entries[ticket.index()];
        self.in_flight -= 1;
        entry.state = State::BackingOff;
        let route = &self.routes[entry.route];
        let target = &self.targets[route.target];
        let charges_usage = target.charge_rule.rule() == Some(TokenCharge::Usage);
        let mut debt = None;
        let mut corrected_share = 0;
        let reserved = entry.amounts.own_tokens;
        let (requests, charged) = match keep {
            Keep::Nothing => (0, 0),
            Keep::Requests | Keep::MirrorTokens => (1, 0),
            Keep::Used(usage) => (1, usage.map_or(reserved, Usage::total)),
        };
        for charge in entry.charges.drain(..) {
            let Some(meter) = self.ledger.charged_meter(charge.meter, charge.epoch) else { continue };
            let kept = match (meter.dimension, keep) {
                (Dimension::MaxInFlight, _) | (_, Keep::Nothing) => 0,
                (Dimension::RequestsPerMinute | Dimension::RequestsPerDay, _) => charge.amount,
                (_, Keep::Requests) => 0,
                (_, Keep::MirrorTokens) if meter.mirror => charge.amount,
                (_, Keep::MirrorTokens) => 0,
                (Dimension::TokensPerMinute | Dimension::TokensPerDay, Keep::Used(Some(usage))) => {
                    // A mirror follows the upstream, which gives nothing back because less was used.
                    if !meter.mirror || charges_usage { usage.total() } else { charge.amount }
                }
                (_, Keep::Used(_)) => charge.amount,
            };
            if kept < charge.amount {
                meter.refund(charge.amount - kept, charge.bin, now);
                if !meter.lot.is_empty() {
                    self.stirred.push(charge.meter);
                }
            } else if kept > charge.amount {
                // Up to date first: a debit of a level of a minute ago would be refilled for a minute that has passed.
                // (For a refund the order makes no difference.)
                meter.refill(now);
                meter.debit(kept - charge.amount, charge.bin);
                if meter.level() < 0 {
                    debt = Some((meter.level, meter.level().unsigned_abs()));
                }
            }
            if meter.shared && kept != charge.amount {
                let units = crate::bucket::as_level(kept) - crate::bucket::as_level(charge.amount);
                corrected_share = units.saturating_mul(crate::bucket::as_level(meter.share_per_unit));
            }
        }
        if keep == Keep::Nothing && entry.amounts.own_requests > 0 {
            entry.own_request_charged = false;
        }
        let (class, call) = (entry.class, &entry.id);
        if corrected_share != 0
            && let Some(lane) = route.lanes[class.index()]
        {
            self.queue.tenant_corrected(self.queue.lane(lane).tenant, corrected_share);
        }
        let (call, route) = (call.clone(), entry.route);
        if !self.tells_all() {
            return;
        }
        if let Some((level, debt)) = debt {
            let (call, limit) = (call.clone(), self.ledger.levels[level].name.clone());
            self.emit(|| Event::DebtIncurred { call, limit, debt });
        }
        if requests > 0 {
            self.tell_usage(&call, route, requests, charged);
        }
        self.emit(|| Event::Settled { call, reserved, charged });
    }

    fn tell_breaker(&mut self, ticket: Ticket, result: BreakerResult, fault: Option<&Fault>) {
        let now = self.clock;
        let entry = &mut self.entries[ticket.index()];
        let Some(permit) = entry.permit.take() else { return };
        let route = &self.routes[entry.route];
        let target = route.target;
        let duration = now.since(entry.granted_at);
        let breaker = &mut self.targets[target].breaker;
        let failures = breaker.failures_in_a_row();
        let before = breaker.record(permit, route.tenant_hash, result, fault, now);
        if self.tells_all() {
            let breaker = &mut self.targets[target].breaker;
            let (state, removed, breaker) = (breaker.state(), breaker.take_passed(), self.targets[target].name.clone());
            if removed > 0 {
                self.emit(|| Event::HistoryCleaned { breaker: breaker.clone(), removed });
            }
            match (result, fault) {
                (BreakerResult::Good { .. }, _) => self.emit(|| Event::CallSuccess { breaker, duration, state }),
                (BreakerResult::Bad, Some(fault)) => {
                    let (kind, failure_count) = (fault.kind, failures.saturating_add(1));
                    self.emit(|| Event::CallFailure { breaker, kind, duration, state, failure_count });
                }
                _ => {}
            }
        }
        if permit.is_probe() {
            let lot = self.targets[target].waits_for_breaker;
            self.stir(lot);
        }
        self.breaker_changed(target, before);
    }

    /// A breaker may have changed its state: tells of it, and lets go, or refuses, those whom that concerns.
    pub(super) fn breaker_changed(&mut self, target: u32, before: Option<BreakerState>) {
        let Some(from) = before else { return };
        let to = self.targets[target].breaker.state();
        let breaker = self.targets[target].name.clone();
        let cause = self.targets[target].breaker.cause();
        self.emit(|| Event::StateChanged { breaker, from, to, cause });
        let lot = self.targets[target].waits_for_breaker;
        match to {
            BreakerState::Open | BreakerState::ForcedOpen => {
                // Those who do not want to wait for it are told now, not when their turn would have come.
                let refused: Vec<Ticket> = self
                    .entries
                    .iter()
                    .enumerate()
                    .filter(|(_, entry)| {
                        entry.state == State::Waiting
                            && entry.when_open == WhenOpen::Refuse
                            && self.routes[entry.route].target == target
                    })
                    .map(|(at, entry)| Ticket { index: at as u32, generation: entry.generation })
                    .collect();
                for ticket in refused {
                    self.refuse_for_breaker(ticket);
                }
                if let Some(at) = self.targets[target].breaker.next_probe_at() {
                    let wait = crate::time::Wait::from_micros(at.micros_since(self.clock));
                    self.wake_lot(lot, wait);
                }
            }
            BreakerState::Closed | BreakerState::HalfOpen | BreakerState::ForcedClosed => self.stir(lot),
        }
    }

    /// The call's history, with `fault` as its latest failure.
    pub(super) fn history_with(&self, ticket: Ticket, fault: &Fault) -> History {
        let entry = &self.entries[ticket.index()];
        let is_rate_limit = fault.kind == FaultKind::RateLimited;
        History {
            attempts: entry.counted_attempts + u32::from(!is_rate_limit),
            rate_limits: entry.rate_limits + u32::from(is_rate_limit),
            previous_delay: entry.previous_delay,
        }
    }

    fn after_failure(&mut self, ticket: Ticket, fault: &Fault, judged: Option<Decision>) -> Next {
        let now = self.clock;
        let history = self.history_with(ticket, fault);
        let entry = &mut self.entries[ticket.index()];
        (entry.counted_attempts, entry.rate_limits) = (history.attempts, history.rate_limits);
        let (class, start_by, end_by) = (entry.class, entry.start_by, entry.end_by);
        let decision = judged.unwrap_or_else(|| self.retry.decide(fault, history, class, &mut self.random));
        let delay = match decision {
            Decision::GiveUp(reason) => return self.give_up(ticket, fault, reason),
            Decision::Retry { delay } if self.retry.draws_delay(fault, history) => {
                self.within(start_by.min(end_by), fault.wait, delay)
            }
            Decision::Retry { delay } => delay,
        };
        if self.deadline_passed(start_by.min(end_by), delay) {
            return self.give_up(ticket, fault, GiveUpReason::DeadlineExceeded);
        }
        if fault.kind != FaultKind::RateLimited && !self.budget.withdraw(now) {
            self.emit(|| Event::RetryBudgetExhausted);
            return self.give_up(ticket, fault, GiveUpReason::BudgetExhausted);
        }
        let not_before = now + delay;
        let entry = &mut self.entries[ticket.index()];
        entry.previous_delay = delay;
        entry.waits_since = now;
        self.note_backing_off(ticket, fault.kind.error_class());
        let entry = &mut self.entries[ticket.index()];
        entry.state = State::BackingOff;
        let (call, attempt) = (entry.id.clone(), entry.attempts);
        self.set_timer(not_before, Timer::BackOff(ticket));
        self.emit(|| Event::RetryScheduled { call, attempt, delay });
        Next::Retry { not_before }
    }

    /// The delay that full jitter drew, or where that ends beyond the deadline another one that does not.
    fn within(&mut self, deadline: Time, floor: Option<Duration>, delay: Duration) -> Duration {
        let left = Duration::from_micros(deadline.micros_since(self.clock));
        let room = left.saturating_sub(floor.unwrap_or_default());
        if delay <= left || room.is_zero() { delay } else { left - room.mul_f64(self.random.f64()) }
    }

    fn give_up(&mut self, ticket: Ticket, fault: &Fault, reason: GiveUpReason) -> Next {
        let entry = &self.entries[ticket.index()];
        let given_up = GiveUp {
            reason,
            attempts: entry.attempts,
            max_attempts: self.retry.max_attempts(fault).max(entry.attempts),
            last: fault.clone(),
            elapsed: self.clock.since(entry.arrived_at),
            retry_after: fault.wait,
        };
        let (call, attempts) = (entry.id.clone(), entry.attempts);
        self.emit(|| Event::OperationFailed { call, attempts, reason, kind: fault.kind });
        self.close_entry(ticket);
        Next::GiveUp(Box::new(given_up))
    }

    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        let Some(entry) = self.entry(ticket) else { return };
        match entry.state {
            State::Free => {}
            State::InFlight => {
                let ending = if entry.sent { Ending::Cancelled } else { Ending::Unsent };
                let outcome = Outcome { ending, usage: entry.seen, first_byte_after: None };
                self.settle_attempt(ticket, &outcome, None);
            }
            State::Waiting => {
                self.leave_queue(ticket);
                self.close_entry(ticket);
            }
            State::BackingOff => self.close_entry(ticket),
        }
    }
}
