//! Decides what a refusal for a rate teaches: a level that is lower than thought, a limit, or a pace of its own.

use std::time::Duration;

use super::{Gate, Ticket};
use crate::event::Event;
use crate::fault::{Fault, FaultKind, LimitNumbers};
use crate::learn::binding::Mark;
use crate::learn::cold_start::ColdStart;
use crate::learn::pace::{Due, Pace, RefusedAt};
use crate::ledger::{LEARNED, Note, Source, pace_spec};
use crate::limit::{Allowance, Dimension};
use crate::meter::Spec;
use crate::outcome::ServerLimit;
use crate::target::Paced;
use crate::time::{Time, micros_up};

/// A rate limit that tells no wait pauses its target for so long at most.
const PAUSE_MICROS: u64 = 1_000_000;
/// … and any for so long at most: longer waits are the call's own, not everybody's.
const PAUSE_MAX_MICROS: u64 = 60_000_000;
/// One part in so many of a limit left, by what is told, is room.
const ROOM_PART: u64 = 4;
/// A rate is guessed from so many calls at least.
const FEW_CALLS: u64 = 8;
/// `slow_down` without a wait.
const SLOW_DOWN_MICROS: u64 = 5_000_000;

/// After so many refusals without one call that went well, numbers that say otherwise are not believed …
const REFUSED_IN_ROW: u32 = 32;
/// … and calls are paused for so long, and twice as long after each few more, up to so often.
const IN_ROW_MICROS: u64 = 50_000;
const FEW_IN_ROW: u32 = 8;
const IN_ROW_DOUBLES: u32 = 6;

/// A told wait that is longer than the numbers say by less than this is rounded.
const ROUNDING: Duration = Duration::from_secs(2);

const PER_MINUTE: [Dimension; 2] = [Dimension::RequestsPerMinute, Dimension::TokensPerMinute];

impl Gate {
    /// A refusal for a rate. What the limits known explain corrects them; what they do not is paced.
    pub(super) fn learn_from_rate_limit(&mut self, ticket: Ticket, fault: &Fault) {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let target = self.routes[entry.route].target;
        let (notes, tokens) = (entry.notes.clone(), entry.amounts.mirror_tokens);
        if fault.kind == FaultKind::SlowDown {
            self.slow_down(ticket, fault.wait);
            return self.count_refused(target, tokens);
        }
        for note in &notes {
            if fault.numbers.is_none_or(|numbers| numbers.dimension.is_none() || self.is_of(note, &numbers))
                && let Some(meter) = self.ledger.charged_meter(note.meter, note.epoch)
            {
                meter.widen_margin(note.seen.own, now);
            }
        }
        if !self.is_explained(ticket, fault, &notes) {
            self.pace(ticket, fault);
        } else if let Some(wait) = fault.wait.filter(|_| self.has_moved(target, fault)) {
            // What headers tell changes from reply to reply: the wait is all there is to go by.
            self.pause_target(target, Some(wait));
        } else {
            let (flows_in_after, per_second) = flow_of(fault).unwrap_or_else(|| self.flow_as_known(&notes));
            let refused = &mut self.targets[target].refused_in_row;
            *refused = refused.saturating_add(1);
            if let Some(longer) = refused.checked_sub(REFUSED_IN_ROW) {
                // Whatever it says, it takes nothing: less often, and a few at once.
                let pause = Duration::from_micros(IN_ROW_MICROS << (longer / FEW_IN_ROW).min(IN_ROW_DOUBLES));
                self.pause_target(target, Some(fault.wait.unwrap_or_default().max(pause)));
                self.come_back_slowly(target, per_second);
            } else if let Some(wait) = fault.wait.filter(|wait| *wait > flows_in_after + ROUNDING) {
                // What is known says sooner: the server knows why.
                self.pause_target(target, Some(wait));
                self.come_back_slowly(target, per_second);
            }
        }
        self.count_refused(target, tokens);
    }

    /// What has flowed in by the end of a pause does not all go at once: calls begin as if the limit had just become known.
    fn come_back_slowly(&mut self, target: u32, per_second: u64) {
        let gauge = self.targets[target].gauge;
        let ends_at = self.ledger.meters[gauge].paused_until;
        self.targets[target].cold_start = Some(ColdStart::coming_back(per_second.max(1), ends_at));
        self.stir(gauge);
    }

    /// How long until the limits that are known have let flow in what a call took, and how many like it they let flow in a second.
    fn flow_as_known(&mut self, notes: &[Note]) -> (Duration, u64) {
        let mut all = (Duration::ZERO, u64::MAX);
        for note in notes {
            let Some(meter) = self.ledger.charged_meter(note.meter, note.epoch) else { continue };
            let Some(period) = meter.dimension.period_micros() else { continue };
            let missing = crate::bucket::as_level(note.seen.own).saturating_sub(meter.level()).max(0).unsigned_abs();
            let (after, per_second) = flow(meter.limit(), period, missing, note.seen.own);
            all = (all.0.max(after), all.1.min(per_second));
        }
        all
    }

    /// Whether the limit that refused has lately been told in more than one way.
    fn has_moved(&self, target: u32, fault: &Fault) -> bool {
        let dimension = fault.numbers.and_then(|numbers| numbers.dimension);
        let mut learned = self.targets[target].learned.iter();
        learned.any(|learned| learned.moves > 0 && dimension.is_none_or(|refused| refused == learned.dimension))
    }

    fn count_refused(&mut self, target: u32, tokens: u64) {
        let now = self.clock;
        let flows = &mut self.targets[target].flows;
        flows[0].refused(1, now);
        flows[1].refused(tokens, now);
    }

    fn is_of(&self, note: &Note, numbers: &LimitNumbers) -> bool {
        let meter = self.ledger.meters.get(note.meter).filter(|meter| meter.epoch == note.epoch);
        meter.is_some_and(|meter| Some(meter.dimension) == numbers.dimension && meter.limit() == numbers.limit)
    }

    /// Whether the limits that are known account for the refusal, now that they have been corrected by it.
    fn is_explained(&mut self, ticket: Ticket, fault: &Fault, notes: &[Note]) -> bool {
        let sent_at = self.entries[ticket.index()].granted_at;
        let Some(numbers) = fault.numbers else {
            return self.was_near_empty(notes, sent_at);
        };
        let Some(dimension) = numbers.dimension else { return self.was_near_empty(notes, sent_at) };
        let (Some(used), Some(requested)) = (numbers.used, numbers.requested) else { return false };
        let target = self.routes[self.entries[ticket.index()].route].target;
        if dimension == Dimension::TokensPerMinute {
            let cost = self.entries[ticket.index()].cost;
            self.targets[target].charge_rule.requested(&cost, requested);
        }
        if used.saturating_add(requested) <= numbers.limit {
            // It says itself that there is room.
            return false;
        }
        let remaining = numbers.limit.saturating_sub(used);
        let told = ServerLimit { dimension, limit: numbers.limit, remaining: Some(remaining) };
        let mut is_known = false;
        for note in notes.iter().filter(|note| self.is_of(note, &numbers)).copied().collect::<Vec<_>>() {
            is_known = true;
            self.correct(note, sent_at, remaining, true);
            if let Some(learned) = self.targets[target].learned.iter_mut().find(|learned| learned.meter == note.meter) {
                learned.told_at = self.clock;
            }
        }
        if is_known || !self.targets[target].learn_limits {
            return is_known;
        }
        match self.targets[target].learned.iter().find(|learned| learned.dimension == dimension) {
            None => self.learn_new(ticket, target, told, true),
            Some(learned) => {
                let id = learned.meter;
                let note = notes.iter().find(|note| note.meter == id).copied();
                self.follow(target, id, told, note);
            }
        }
        true
    }

    /// Without numbers: whether a minute's level was so low, as far as we knew, that it may have been empty.
    fn was_near_empty(&mut self, notes: &[Note], sent_at: Time) -> bool {
        let near = |note: &&Note| note.seen.level < crate::bucket::as_level(note.seen.own.saturating_mul(2));
        let found: Vec<Note> = notes.iter().filter(near).copied().collect();
        let mut corrected = false;
        for note in found {
            corrected |= self.correct(note, sent_at, 0, true) < 0;
        }
        corrected
    }

    /// Paces what nothing that is known explains.
    fn pace(&mut self, ticket: Ticket, fault: &Fault) {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let (target, sent_at) = (self.routes[entry.route].target, entry.granted_at);
        let (tokens, sent_before) = (entry.amounts.mirror_tokens, entry.sent_before);
        let said = fault.numbers.and_then(|numbers| numbers.dimension).filter(|said| PER_MINUTE.contains(said));
        let dimension = said.unwrap_or_else(|| self.refused_for(ticket));
        let which = usize::from(dimension == Dimension::TokensPerMinute);
        let cost = if which == 1 { tokens } else { 1 };
        let flow = self.targets[target].flows[which];
        let told = self.told(target, dimension);
        let has_room = told.is_some_and(|(limit, level)| level >= crate::bucket::as_level(limit / ROOM_PART));
        let admitted = flow.admitted_of(sent_before[which]);
        let refused = RefusedAt { told: told.map(|(limit, _)| limit), has_room, admitted, sent_at, wait: fault.wait };
        let known = self.targets[target].paces.iter().position(|paced| paced.dimension == dimension);
        let changed = match known {
            _ if !self.targets[target].learn_limits => false,
            Some(at) => self.targets[target].paces[at].pace.refused(refused, now),
            // A refusal after a few calls is no evidence of any rate.
            None if told.is_none() && flow.busy_with(admitted) < FEW_CALLS * cost => false,
            None => {
                let guess = flow.limit_if_empty(admitted, sent_at);
                self.open_pace(target, dimension, Pace::new(refused, guess, now));
                true
            }
        };
        if changed {
            self.apply_pace(target, dimension, true);
        }
        let pace = self.targets[target].paces.iter().find(|paced| paced.dimension == dimension);
        let own = pace.map_or(PAUSE_MICROS, |paced| {
            let flows_in = u128::from(cost) * 60_000_000 / u128::from(paced.pace.rate(now));
            u64::try_from(flows_in).unwrap_or(u64::MAX).clamp(1000, PAUSE_MICROS)
        });
        self.pause_target(target, Some(fault.wait.unwrap_or(Duration::from_micros(own))));
    }

    /// The dimension that a refusal is for that does not say so: the one paced so far, until another one's flow is evidence.
    fn refused_for(&mut self, ticket: Ticket) -> Dimension {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let (target, sent_at, sent_before) = (self.routes[entry.route].target, entry.granted_at, entry.sent_before);
        let current = usize::from(entry.amounts.mirror_tokens > 0);
        let entry = &mut self.targets[target];
        let mut guessed = entry.paces.iter().filter(|paced| paced.pace.is_active() && paced.pace.is_guess());
        let current = match (guessed.next(), guessed.next()) {
            (Some(paced), None) => usize::from(paced.dimension == Dimension::TokensPerMinute),
            _ => current,
        };
        let other = PER_MINUTE[1 - current];
        let is_open =
            entry.learn_limits && entry.learned.iter().all(|learned| !PER_MINUTE.contains(&learned.dimension));
        let admitted = [0, 1].map(|which| entry.flows[which].admitted_of(sent_before[which]));
        let Some(rate) =
            entry.binding.refused(current, Mark { sent_at, admitted, sent: sent_before[0] }).filter(|_| is_open)
        else {
            return PER_MINUTE[current];
        };
        let former = entry.paces.iter().position(|paced| paced.dimension == PER_MINUTE[current]);
        if let Some(former) = former.map(|at| entry.paces.swap_remove(at)) {
            self.lift_pace(former.meter);
        }
        if self.targets[target].paces.iter().all(|paced| paced.dimension != other) {
            let refused =
                RefusedAt { told: None, has_room: false, admitted: admitted[1 - current], sent_at, wait: None };
            self.open_pace(target, other, Pace::new(refused, (rate, true), now));
            self.apply_pace(target, other, true);
        }
        other
    }

    /// The traffic grew too fast: a pause, then half as many calls as went, then slowly more. Calls and not tokens, as a large
    /// one among few would wait for long.
    fn slow_down(&mut self, ticket: Ticket, wait: Option<Duration>) {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let (target, sent_at, sent) = (self.routes[entry.route].target, entry.granted_at, entry.sent_before[0]);
        self.pause_target(target, Some(wait.unwrap_or(Duration::from_micros(SLOW_DOWN_MICROS))));
        let flow = &mut self.targets[target].flows[0];
        let (went, admitted) = (flow.per_minute(now).max(1), flow.admitted_of(sent));
        if flow.busy_with(admitted) < FEW_CALLS {
            // So few are no rate that could be halved.
            let until = self.ledger.meters[self.targets[target].gauge].paused_until;
            self.targets[target].cold_start = Some(ColdStart::new(until));
            return;
        }
        let dimension = Dimension::RequestsPerMinute;
        let paces = &mut self.targets[target].paces;
        let in_force = |paced: &Paced| paced.dimension == dimension && paced.pace.is_active();
        if !paces.iter().any(in_force) {
            let refused = RefusedAt { told: None, has_room: false, admitted, sent_at, wait };
            let pace = Pace::slowed(went, refused, now);
            match paces.iter_mut().find(|paced| paced.dimension == dimension) {
                Some(lifted) => lifted.pace = pace,
                None => self.open_pace(target, dimension, pace),
            }
        }
        let paces = &mut self.targets[target].paces;
        if let Some(paced) = paces.iter_mut().find(|paced| paced.dimension == dimension) {
            paced.pace.slow_down(now);
        }
        self.apply_pace(target, dimension, true);
    }

    /// What headers tell of a dimension: its limit, and what is left as far as is known.
    fn told(&self, target: u32, dimension: Dimension) -> Option<(u64, i64)> {
        let learned = self.targets[target].learned.iter().find(|learned| learned.dimension == dimension);
        let meter = learned.map(|learned| &self.ledger.meters[learned.meter])?;
        Some((meter.limit(), meter.level()))
    }

    pub(super) fn open_pace(&mut self, target: u32, dimension: Dimension, pace: Pace) {
        let now = self.clock;
        let entry = &self.targets[target];
        let key = format!("pace|{}|{}", entry.account, entry.model);
        let label = entry.name.clone();
        let level = match self.ledger.level_of_key(&key) {
            Some(level) => level,
            None => self.ledger.add_level(key.into(), LEARNED.into(), label, Source::Target(target)),
        };
        let meter = self.ledger.put_meter(level, pace_spec(dimension, pace.rate(now), pace.burst()), now);
        let entry = &mut self.targets[target];
        entry.paces.push(Paced { dimension, meter, pace });
        entry.version = entry.version.wrapping_add(1);
        // Its rate is known from now on.
        entry.cold_start = None;
        let gauge = entry.gauge;
        self.stir(gauge);
    }

    /// Puts a pace's rate and burst in force.
    fn apply_pace(&mut self, target: u32, dimension: Dimension, is_empty: bool) {
        let now = self.clock;
        let Some(paced) = self.targets[target].paces.iter().find(|paced| paced.dimension == dimension) else { return };
        let (rate, margin, id) = (paced.pace.rate(now), paced.pace.margin(), paced.meter);
        let slack = paced.pace.slack();
        let burst = paced.pace.burst().saturating_add(margin);
        let (is_guess, level) = (paced.pace.is_guess(), self.ledger.meters[id].level);
        self.ledger.meters[id].refill(now);
        self.ledger.put_meter(level, pace_spec(dimension, rate, burst.min(rate)), now);
        self.ledger.meters[id].set_pace(margin, is_empty.then_some(slack));
        self.stir(id);
        if is_guess {
            let name = self.targets[target].name.clone();
            self.emit(|| Event::LimitLearned { target: name, dimension, limit: rate });
        }
    }

    /// Headers tell a limit of a dimension that may be paced.
    pub(super) fn pace_told(&mut self, target: u32, told: ServerLimit) {
        if let Some(paced) = self.targets[target].paces.iter_mut().find(|paced| paced.dimension == told.dimension) {
            let changed = paced.pace.told(told.limit, self.clock);
            if changed {
                self.apply_pace(target, told.dimension, false);
            }
        }
    }

    /// Moves paces whose time has come. Returns when the next one's does.
    #[inline]
    pub(super) fn paces_due(&mut self, target: u32) -> Option<Time> {
        let paces = &self.targets[target].paces;
        if paces.is_empty() {
            return None;
        }
        let now = self.clock;
        let due: smallvec::SmallVec<[Dimension; 2]> =
            paces.iter().filter(|paced| paced.pace.due_at() <= now).map(|paced| paced.dimension).collect();
        for dimension in due {
            self.pace_is_due(target, dimension);
        }
        let paces = &self.targets[target].paces;
        paces.iter().map(|paced| paced.pace.due_at()).min().filter(|due| *due < Time::NEVER)
    }

    fn pace_is_due(&mut self, target: u32, dimension: Dimension) {
        let now = self.clock;
        let Some(paced) = self.targets[target].paces.iter_mut().find(|paced| paced.dimension == dimension) else {
            return;
        };
        let id = paced.meter;
        let meter = &mut self.ledger.meters[id];
        meter.refill(now);
        let is_binding = !meter.lot.is_empty() || meter.level() < crate::bucket::as_level(meter.capacity() / 2);
        match paced.pace.due(is_binding, now) {
            None => {}
            Some(Due::Changed) => self.apply_pace(target, dimension, false),
            Some(Due::GivenUp) => self.lift_pace(id),
        }
    }

    /// A pace binds no more. Its meter stays: calls may wait in its lot, and it may be needed again.
    pub(super) fn lift_pace(&mut self, meter: u32) {
        let (level, dimension) = (self.ledger.meters[meter].level, self.ledger.meters[meter].dimension);
        let lifted = Spec { allowance: Allowance::Unlimited, ..pace_spec(dimension, 1, 1) };
        self.ledger.put_meter(level, Spec { burst: None, ..lifted }, self.clock);
        self.ledger.meters[meter].set_pace(0, None);
        self.stir(meter);
    }

    /// Pauses a target that said that it takes nothing for a while.
    pub(super) fn pause_target(&mut self, target: u32, wait: Option<Duration>) {
        let micros = wait.map_or(PAUSE_MICROS, micros_up).clamp(1, PAUSE_MAX_MICROS);
        let until = self.clock.plus_micros(micros);
        let gauge = self.targets[target].gauge;
        let meter = &mut self.ledger.meters[gauge];
        meter.paused_until = meter.paused_until.max(until);
        if let Some(start) = &mut self.targets[target].cold_start {
            start.paused(until);
        }
    }
}

/// By a refusal's own numbers: how long until what it says is missing has flowed in, and how many such calls do so in a second.
fn flow_of(fault: &Fault) -> Option<(Duration, u64)> {
    let numbers = fault.numbers?;
    let (period, used, requested) = (numbers.dimension?.period_micros()?, numbers.used?, numbers.requested?);
    let missing = used.saturating_add(requested).saturating_sub(numbers.limit);
    Some(flow(numbers.limit, period, missing, requested))
}

/// How long `missing` units take to flow in, and how often `each` does in a second.
fn flow(limit: u64, period_micros: u64, missing: u64, each: u64) -> (Duration, u64) {
    let micros = u128::from(missing) * u128::from(period_micros) / u128::from(limit.max(1));
    let per_second = u128::from(limit) * 1_000_000 / u128::from(period_micros.max(1)) / u128::from(each.max(1));
    let fits = |wide: u128| u64::try_from(wide).unwrap_or(u64::MAX);
    (Duration::from_micros(fits(micros)), fits(per_second))
}
