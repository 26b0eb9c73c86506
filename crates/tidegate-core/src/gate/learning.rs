//! Decides what a reply teaches: limits that appear or move, corrections of mirror levels, the charge rule.

use super::{Gate, State, Ticket};
use crate::event::Event;
use crate::learn::cold_start::ColdStart;
use crate::learn::correction::Told;
use crate::ledger::{LEARNED, Note, Source, learned_spec};
use crate::limit::{Allowance, Dimension};
use crate::meter::Spec;
use crate::outcome::{ServerLimit, ServerLimits};
use crate::target::{Early, Learned};
use crate::time::Time;

/// Replies in a row that tell limits and do not mention one of those learned, before that one is forgotten.
const UNTOLD_REPLIES: u32 = 16;
/// A limit that refusals told is kept for so long after the last of them, and a day's for a day.
const UNREFUSED_MICROS: u64 = 3_600_000_000;
/// Calls sent within so long of each other were counted by the server in any order …
const TOGETHER_MICROS: u64 = 100_000;
/// … and while nothing was known there were at most so many besides the first.
const SENT_TOGETHER_MAX: u64 = 7;
/// A limit that moved so often, for each time within …
const MOVES_MAX: u32 = 5;
/// … so many replies, is not believed …
const MOVE_WEIGHT: u32 = 4;
/// … for so long.
const DISTRUST_MICROS: u64 = 600_000_000;

impl Gate {
    /// The head of a reply told the server's limits.
    pub(super) fn learn_from(&mut self, ticket: Ticket, limits: &ServerLimits) {
        if self.entry_mut(ticket, State::InFlight).is_none() {
            return;
        }
        for told in &limits.0 {
            self.learn_limit(ticket, *told);
        }
        let target = self.routes[self.entries[ticket.index()].route].target;
        self.forget_untold(target, limits);
    }

    /// A limit that headers told, and do not mention any more in reply after reply, was a mistake, or is gone. One that only
    /// refusals told may have risen since: after long it is tried without.
    fn forget_untold(&mut self, target: u32, limits: &ServerLimits) {
        let now = self.clock;
        let mut gone = smallvec::SmallVec::<[u32; 2]>::new();
        self.targets[target].learned.retain(|learned| {
            let is_told = limits.0.iter().any(|told| told.dimension == learned.dimension);
            if is_told {
                learned.missed = 0;
            } else if learned.by_headers && !limits.0.is_empty() {
                learned.missed += 1;
            }
            let kept_for = learned.dimension.period_micros().unwrap_or(0).max(UNREFUSED_MICROS);
            let is_old = !learned.by_headers && now.micros_since(learned.told_at) > kept_for;
            let is_gone = learned.missed >= UNTOLD_REPLIES || is_old;
            if is_gone {
                gone.push(learned.meter);
            }
            !is_gone
        });
        if !gone.is_empty() {
            self.targets[target].version = self.targets[target].version.wrapping_add(1);
            gone.into_iter().for_each(|meter| self.unlearn(meter));
        }
    }

    /// A learned limit binds no more. Its meter stays: calls may wait in its lot, and the server may tell it again.
    pub(super) fn unlearn(&mut self, meter: u32) {
        let now = self.clock;
        let (level, dimension) = (self.ledger.meters[meter].level, self.ledger.meters[meter].dimension);
        self.ledger.put_meter(level, Spec { allowance: Allowance::Unlimited, ..learned_spec(dimension, 1) }, now);
        self.stir(meter);
    }

    fn learn_limit(&mut self, ticket: Ticket, told: ServerLimit) {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let target = self.routes[entry.route].target;
        if told.dimension == Dimension::TokensPerMinute
            && let Some(remaining) = told.remaining
        {
            let predictions = entry.predictions;
            self.targets[target].charge_rule.reply(predictions, remaining, told.limit, now);
        }
        let notes = entry.notes.clone();
        let sent_at = entry.granted_at;
        if let Some(remaining) = told.remaining {
            // A configured mirror is comparable with the server's numbers only where it has the same size.
            for note in &notes {
                if self.is_learned(target, note.meter) {
                    continue;
                }
                let same = self.ledger.charged_meter(note.meter, note.epoch).is_some_and(|meter| {
                    meter.dimension == told.dimension && meter.limit() == told.limit && meter.capacity() == told.limit
                });
                if same {
                    self.correct(*note, sent_at, remaining, false);
                }
            }
        }
        let distrusted = &mut self.targets[target].distrusted;
        distrusted.retain(|(_, until)| *until > now);
        let is_distrusted = distrusted.iter().any(|(dimension, _)| *dimension == told.dimension);
        if is_distrusted || !self.targets[target].learn_limits {
            return;
        }
        self.pace_told(target, told);
        let known = self.targets[target].learned.iter().position(|learned| learned.dimension == told.dimension);
        match known {
            None => self.learn_new(ticket, target, told, false),
            Some(at) => {
                let learned = &mut self.targets[target].learned[at];
                learned.told_at = now;
                learned.by_headers = true;
                let id = learned.meter;
                self.ledger.meters[id].told(now);
                let note = notes.iter().find(|note| note.meter == id).copied();
                let moved = self.ledger.meters[id].limit() != told.limit;
                learned.moves = if moved { learned.moves + MOVE_WEIGHT } else { learned.moves.saturating_sub(1) };
                if learned.moves > MOVES_MAX * MOVE_WEIGHT {
                    self.distrust(target, told.dimension);
                } else if moved {
                    self.follow(target, id, told, note);
                } else if let (Some(note), Some(remaining)) = (note, told.remaining) {
                    self.correct(note, sent_at, remaining, false);
                } else if let Some(remaining) = told.remaining {
                    self.learn_from_early(target, at, sent_at, remaining);
                }
            }
        }
    }

    /// Numbers that are others with every few replies tell nothing: as if there were none, until they may have come to rest.
    fn distrust(&mut self, target: u32, dimension: Dimension) {
        let now = self.clock;
        let entry = &mut self.targets[target];
        let gone = entry.learned.iter().position(|learned| learned.dimension == dimension);
        let gone = gone.map(|at| entry.learned.swap_remove(at).meter);
        entry.distrusted.push((dimension, now.plus_micros(DISTRUST_MICROS)));
        entry.version = entry.version.wrapping_add(1);
        if entry.learned.is_empty() && entry.paces.is_empty() {
            entry.cold_start = Some(ColdStart::new(now));
        }
        if let Some(meter) = gone {
            self.unlearn(meter);
        }
    }

    pub(super) fn is_learned(&self, target: u32, meter: u32) -> bool {
        self.targets[target].learned.iter().any(|learned| learned.meter == meter)
    }

    pub(super) fn correct(&mut self, note: Note, sent_at: crate::time::Time, remaining: u64, refused: bool) -> i64 {
        let now = self.clock;
        let Some(meter) = self.ledger.charged_meter(note.meter, note.epoch) else { return 0 };
        let change = meter.server_says(note.seen, Told { sent_at, remaining, refused }, now);
        if change > 0 {
            self.stir(note.meter);
        }
        change
    }

    /// The first word of a limit.
    pub(super) fn learn_new(&mut self, ticket: Ticket, target: u32, told: ServerLimit, is_refusal: bool) {
        let now = self.clock;
        let (account, model) = (self.targets[target].account.clone(), self.targets[target].model.clone());
        let key = format!("{LEARNED}|{account}|{model}");
        let level = match self.ledger.level_of_key(&key) {
            Some(level) => level,
            None => {
                let label = self.targets[target].name.clone();
                self.ledger.add_level(key.into(), LEARNED.into(), label, Source::Target(target))
            }
        };
        let meter = self.ledger.put_meter(level, learned_spec(told.dimension, told.limit), now);
        // Calls under way may or may not be in the server's number: taken as not, which errs towards waiting. Of those under way
        // when a refusal comes, which it does at once, the server has seen all but a few.
        let under_way = |entry: &&super::Entry| {
            entry.state == State::InFlight && self.routes[entry.route].target == target && !is_refusal
        };
        let (mut others, mut taken) = (0_u64, 0_u64);
        for other in self.entries.iter().filter(under_way) {
            others += 1;
            taken = taken.saturating_add(other.amounts.of(&self.ledger.meters[meter]));
        }
        let own = self.entries[ticket.index()].amounts.of(&self.ledger.meters[meter]);
        others = others.saturating_sub(1);
        taken = taken.saturating_sub(own);
        let each = taken.checked_div(others).unwrap_or(own);
        let left = crate::bucket::as_level(told.remaining.unwrap_or(told.limit));
        let level = left.saturating_sub(crate::bucket::as_level(taken));
        self.ledger.meters[meter].follow(told.limit, level);
        self.ledger.meters[meter].told(now);
        let entry = &mut self.targets[target];
        let sent_at = self.entries[ticket.index()].granted_at;
        let early = Early { sent_at, found: left, each, under_way: others.min(SENT_TOGETHER_MAX) };
        entry.learned.push(Learned {
            dimension: told.dimension,
            meter,
            by_headers: !is_refusal,
            told_at: now,
            missed: 0,
            moves: 0,
            early: (others > 0).then_some(early),
        });
        entry.version = entry.version.wrapping_add(1);
        if let (Some(start), Some(period)) = (&mut entry.cold_start, told.dimension.period_micros()) {
            // Of a day's limit all may go in a minute.
            let per_second =
                u128::from(told.limit) * 1_000_000 / u128::from(period.min(60_000_000)) / u128::from(each.max(1));
            start.told(u64::try_from(per_second).unwrap_or(u64::MAX), now);
        }
        let gauge = entry.gauge;
        let name = entry.name.clone();
        self.stir(gauge);
        self.emit(|| Event::LimitLearned { target: name, dimension: told.dimension, limit: told.limit });
    }

    /// A reply to a call that was sent before its limit was known: one less of those that the server may not have counted.
    fn learn_from_early(&mut self, target: u32, at: usize, sent_at: Time, remaining: u64) {
        let now = self.clock;
        let learned = &mut self.targets[target].learned[at];
        let together = |early: &&mut Early| sent_at.micros_since(early.sent_at) <= TOGETHER_MICROS;
        let Some(early) = learned.early.as_mut().filter(together) else { return };
        let id = learned.meter;
        let before = early.level();
        early.found = early.found.min(crate::bucket::as_level(remaining));
        early.under_way = early.under_way.saturating_sub(1);
        let change = early.level().saturating_sub(before);
        if early.under_way == 0 {
            learned.early = None;
        }
        let meter = &mut self.ledger.meters[id];
        meter.refill(now);
        meter.shift(change);
        self.stir(id);
    }

    /// The server's limit has moved.
    pub(super) fn follow(&mut self, target: u32, meter: u32, told: ServerLimit, note: Option<Note>) {
        let now = self.clock;
        let found = &mut self.ledger.meters[meter];
        found.refill(now);
        let before = found.level();
        // What was taken since that call was sent is not in the server's number.
        let since = note.map_or(0, |note| note.seen.level.saturating_sub(before)).max(0);
        let level = told.remaining.map_or(before, |remaining| crate::bucket::as_level(remaining).saturating_sub(since));
        found.follow(told.limit, level);
        self.stir(meter);
        let name = self.targets[target].name.clone();
        self.emit(|| Event::LimitLearned { target: name, dimension: told.dimension, limit: told.limit });
    }
}
