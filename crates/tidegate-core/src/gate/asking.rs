//! How limits stand for a call that nobody has made yet; and use that happened elsewhere.

use std::time::Duration;

use super::admission::Verdict;
use super::{Gate, State};
use crate::call::Call;
use crate::event::Event;
use crate::limit::Dimension;
use crate::refusal::LimitReport;
use crate::time::Time;

/// How limits stand for one call. A look changes nothing: whoever comes next may take what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// It could go now.
    pub allowed: bool,
    /// How long it would wait. Zero: it could go now. `None`: not known, or for ever, where it is too large.
    pub wait: Option<Duration>,
    /// Requests left of the tightest limit on them, this one not yet taken. `None`: not limited.
    pub remaining_requests: Option<u64>,
    /// Tokens left of the tightest limit on them, this call's not yet taken. `None`: not limited.
    pub remaining_tokens: Option<u64>,
    /// When the level that is in the way, else the tightest, is full again if nothing else is taken.
    pub full_at: Time,
    /// What is in the way. `None`: nothing.
    pub limit: Option<LimitReport>,
}

impl Gate {
    /// Asks what limits would say to `call` now. Breakers, pauses and the end of the process are not asked.
    pub fn check(&mut self, call: &Call, now: Time) -> Check {
        self.tick(now);
        let clock = self.clock;
        let ticket = self.open_entry(call);
        // It was never here: neither its age nor its number is used up.
        self.ages -= 1;
        let (route, class) = (self.entries[ticket.index()].route, call.priority);
        self.refresh_route(route);
        let amounts = self.amounts(route, &call.cost, call.own_charged);
        self.entries[ticket.index()].amounts = amounts;
        let lane = self.routes[route].lanes[class.index()];
        let verdict = self.verdict(route, &amounts, class, lane, self.reserve_permille);
        let has_to_queue = self.is_contended(route, lane, &amounts) && !self.may_pass(route, class, &amounts);
        let queued = has_to_queue.then(|| self.predicted_wait(ticket)).flatten();
        let (binding, wait) = match (verdict, queued) {
            (Verdict::Never { meter }, _) => (Some(meter), None),
            (Verdict::Wait { meter, wait, .. }, queued) => {
                let queued = queued.filter(|(micros, _)| *micros > wait.micros());
                let wait = queued.map_or(wait.duration(), |(micros, _)| Duration::from_micros(micros));
                let known = wait < Duration::from_micros(u64::MAX >> 1);
                (Some(queued.map_or(meter, |(_, meter)| meter)), known.then_some(wait))
            }
            // Others wait for it, and when they have gone is not known.
            (Verdict::Go, Some((0, _))) => (Some(self.contended_meter(route, &amounts)), None),
            (Verdict::Go, Some((micros, meter))) => (Some(meter), Some(Duration::from_micros(micros))),
            (Verdict::Go, None) => (None, Some(Duration::ZERO)),
        };
        let limit = binding.map(|meter| self.report(meter, class, &amounts));
        let tightest = |gate: &Self, dimensions: &[Dimension]| {
            let meters = gate.routes[route].meters.iter().map(|meter| (*meter, &gate.ledger.meters[*meter]));
            meters
                .filter(|(_, meter)| meter.enforce && dimensions.contains(&meter.dimension))
                .map(|(id, meter)| (u64::try_from(meter.level()).unwrap_or(0), id))
                .min()
        };
        let requests = tightest(self, &[Dimension::RequestsPerMinute, Dimension::RequestsPerDay]);
        let tokens = tightest(self, &[Dimension::TokensPerMinute, Dimension::TokensPerDay]);
        let shown = binding.or(requests.map(|(_, id)| id)).or(tokens.map(|(_, id)| id));
        let full_at = shown.map_or(clock, |meter| self.ledger.meters[meter].full_at(clock));
        self.close_entry(ticket);
        let remaining = |found: Option<(u64, u32)>| found.map(|(left, _)| left);
        Check {
            allowed: binding.is_none(),
            wait,
            remaining_requests: remaining(requests),
            remaining_tokens: remaining(tokens),
            full_at,
            limit,
        }
    }

    /// Counts a call that happened elsewhere, as if it had been let through here: into debt if need be.
    pub fn record(&mut self, call: &Call, now: Time) {
        self.tick(now);
        self.sweep();
        let clock = self.clock;
        let ticket = self.open_entry(call);
        let route = self.entries[ticket.index()].route;
        self.refresh_route(route);
        let amounts = self.amounts(route, &call.cost, call.own_charged);
        for id in &self.routes[route].meters {
            let meter = &mut self.ledger.meters[*id];
            let amount = amounts.of(meter);
            if amount > 0 && meter.dimension != Dimension::MaxInFlight {
                meter.refill(clock);
                meter.charge(amount, call.priority, clock);
            }
        }
        debug_assert!(self.entries[ticket.index()].state == State::BackingOff, "it was never let in");
        self.close_entry(ticket);
        self.tell_usage(&call.id, route, amounts.own_requests, amounts.own_tokens);
    }

    pub(super) fn tell_usage(&mut self, call: &std::sync::Arc<str>, route: u32, requests: u64, tokens: u64) {
        if !self.tells_all() {
            return;
        }
        let subject = self.routes[route].subject.clone();
        let call = call.clone();
        self.emit(|| Event::UsageRecorded {
            call,
            user: subject.user,
            organization: subject.organization,
            model: subject.model,
            requests,
            tokens,
        });
    }

    /// When everything that configured limits count will be unused again, if nothing else is taken.
    #[must_use]
    pub fn full_at(&mut self, now: Time) -> Time {
        self.tick(now);
        let clock = self.clock;
        let meters = self.ledger.meters.iter_mut().map(|(_, meter)| meter);
        meters.filter(|meter| meter.enforce && !meter.mirror).fold(clock, |latest, meter| {
            meter.refill(clock);
            latest.max(meter.full_at(clock))
        })
    }
}
