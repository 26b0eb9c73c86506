//! Decides what is shared with other processes: credit for levels kept elsewhere, cool-downs and overrides told by others.
//!
//! Knows no store: whoever drives the gate carries its demands there and brings the answers.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Boost, Gate, Output, Ticket};
use crate::breaker::BreakerState;
use crate::config::LevelSource;
use crate::event::Event;
use crate::limit::Dimension;
use crate::meter::Kind;
use crate::time::{Time, Wait};

/// A demand that stands unanswered for so long is made again.
const DEMAND_AGAIN_AFTER: Wait = Wait::from_micros(1_000_000);

/// Names one dimension of one level in stable bytes: the same after a restart, and in every process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LevelKey {
    /// The limit's name and the key's parts.
    pub level: Arc<str>,
    /// Which dimension of it.
    pub dimension: Dimension,
}

/// Credit that a waiting call needs. Answered, in whatever order and number, by [`Gate::credit`] or [`Gate::credit_refused`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The call whose turn it is.
    pub ticket: Ticket,
    /// Units missing, for it and for those that wait behind it.
    pub wants: SmallVec<[(LevelKey, u64); 2]>,
}

/// What operators decided, somewhere, for all processes alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Counts up with each change; an older version than the one in force is ignored.
    pub version: u64,
    /// Why new calls are refused. `None`: they are not.
    pub paused: Option<Arc<str>>,
    /// Breakers by name, and the state that each is held in; also those that are not there yet.
    pub breakers: Vec<(Arc<str>, BreakerState)>,
    /// Limits that are raised for a while.
    pub boosts: Vec<Boost>,
}

impl Gate {
    /// `amount` units of a shared level may be spent here until `expires_at`. False: there is no such level here (any more).
    pub fn credit(&mut self, level: &LevelKey, amount: u64, expires_at: Time, now: Time) -> bool {
        self.tick(now);
        let now = self.clock;
        let Some(meter) = self.ledger.meter_of_key(&level.level, level.dimension) else { return false };
        let Kind::Credit(credit) = &mut self.ledger.meters[meter].kind else { return false };
        credit.advance(now);
        credit.add(amount, expires_at, now);
        self.stir(meter);
        self.serve_stirred();
        true
    }

    /// The keeper of a shared level has none to give for `wait`; it is asked again then. False: there is no such level here.
    pub fn credit_refused(&mut self, level: &LevelKey, wait: Wait, now: Time) -> bool {
        self.tick(now);
        let Some(meter) = self.ledger.meter_of_key(&level.level, level.dimension) else { return false };
        let Kind::Credit(credit) = &mut self.ledger.meters[meter].kind else { return false };
        credit.refuse(wait, self.clock);
        // Those that could not make their deadline now are refused by it, with this wait.
        self.wake_lot(meter, wait);
        true
    }

    /// Another process met a limit of this account and model group: nothing goes there before `until`. The latest instant wins.
    /// False: nothing has been sent there from here.
    pub fn cooldown(&mut self, account: &str, model: &str, until: Time, now: Time) -> bool {
        self.tick(now);
        let Some(target) = self.target_ids.get(&(account.into(), model.into())).copied() else { return false };
        let wait = until.since(self.clock);
        if !wait.is_zero() {
            self.pause_target(target, Some(wait));
        }
        true
    }

    /// Takes over what operators decided. False: a version as new is in force already.
    ///
    /// A breaker that an older version held and this one does not name goes back to closed, if it is still held.
    pub fn override_with(&mut self, overrides: Overrides, now: Time) -> bool {
        if overrides.version <= self.overrides.version {
            return false;
        }
        self.tick(now);
        self.paused.clone_from(&overrides.paused);
        let before = std::mem::replace(&mut self.overrides, overrides);
        for (name, _) in &before.breakers {
            if !self.overrides.breakers.iter().any(|(held, _)| held == name) {
                self.release_breaker(name);
            }
        }
        for (name, state) in self.overrides.breakers.clone() {
            if !before.breakers.contains(&(name.clone(), state)) {
                self.force_breaker(&name, state, now);
            }
        }
        if before.boosts != self.overrides.boosts {
            self.take_over_boosts();
        }
        self.serve_stirred();
        let version = self.overrides.version;
        self.emit(|| Event::OverrideApplied { version });
        true
    }

    /// Ends the hold on a breaker; one whose state was changed by hand since stays as it is.
    fn release_breaker(&mut self, name: &str) {
        let is_held = |state| matches!(state, BreakerState::ForcedOpen | BreakerState::ForcedClosed);
        let held: Vec<u32> = self
            .targets
            .iter()
            .filter(|(_, target)| &*target.name == name && is_held(target.breaker.state()))
            .map(|(id, _)| id)
            .collect();
        for target in held {
            let before = self.targets[target].breaker.force(BreakerState::Closed, self.clock);
            self.breaker_changed(target, before);
        }
    }

    /// Holds the breaker of a target that has just been made in the state that operators decided.
    pub(super) fn hold_breaker(&mut self, target: u32) {
        let name = &self.targets[target].name;
        let held = self.overrides.breakers.iter().find(|(held, _)| held == name).map(|(_, state)| *state);
        if let Some(state) = held {
            let before = self.targets[target].breaker.force(state, self.clock);
            self.breaker_changed(target, before);
        }
    }

    /// Asks for the credit that a waiting call and those behind it lack.
    pub(super) fn demand(&mut self, ticket: Ticket) {
        if self.ledger.source != LevelSource::Credit {
            return;
        }
        let now = self.clock;
        let mut wants = SmallVec::<[(LevelKey, u64); 2]>::new();
        let mut asked = SmallVec::<[u32; 2]>::new();
        for id in &self.routes[self.entries[ticket.index()].route].meters {
            let meter = &mut self.ledger.meters[*id];
            let needed = meter.backlog.iter().fold(0_u64, |sum, units| sum.saturating_add(*units));
            let Kind::Credit(credit) = &mut meter.kind else { continue };
            if let Some(units) = credit.demand(needed, now) {
                let level: Arc<str> = (&*self.ledger.levels[meter.level].key).into();
                wants.push((LevelKey { level, dimension: meter.dimension }, units));
                asked.push(*id);
            }
        }
        if !wants.is_empty() {
            self.outputs.push_back(Output::Demand(Demand { ticket, wants }));
        }
        asked.into_iter().for_each(|meter| self.wake_lot(meter, DEMAND_AGAIN_AFTER));
    }

    /// A lot of a shared level is looked at because nothing was heard of its demand.
    pub(super) fn forget_demand(&mut self, meter: u32) {
        if let Kind::Credit(credit) = &mut self.ledger.meters[meter].kind {
            credit.forget_demand();
        }
    }
}
