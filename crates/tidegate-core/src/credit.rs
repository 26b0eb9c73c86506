//! Decides whether a cost fits into what a shared level has been credited with.
//!
//! Where several processes share a limit, its level refills by credit: whoever keeps the shared level grants this process a
//! part of it, for a while. What is not spent by then lapses here and is counted as returned there, so that no unit is spent
//! twice. Never asks for credit itself (the gate's outputs do), and never refills by itself.

use smallvec::SmallVec;

use crate::bucket::{Fit, as_level};
use crate::time::{Time, Wait};

/// Lots held at once; a further one is taken together with the one that lapses first.
const LOTS_MAX: usize = 8;

/// What one credit has left, and when that lapses.
#[derive(Clone, Copy, Debug)]
struct Lot {
    units: u64,
    expires_at: Time,
}

/// The credited part of one dimension of a shared level.
#[derive(Clone, Debug)]
pub(crate) struct Credit {
    limit: u64,
    /// The one that lapses first is first.
    lots: SmallVec<[Lot; 2]>,
    /// Use beyond what was credited; the next credit pays for it first.
    debt: u64,
    /// Units asked for and not yet answered.
    demanded: u64,
    /// Refused by the keeper of the level: not to be asked for again before this.
    refused_until: Time,
}

impl Credit {
    /// Nothing credited yet of a level of `limit` units.
    pub(crate) fn none(limit: u64) -> Self {
        Self { limit, lots: SmallVec::new(), debt: 0, demanded: 0, refused_until: Time::ZERO }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Units that may be spent here now; below zero is debt.
    pub(crate) fn level(&self) -> i64 {
        let held = self.lots.iter().fold(0_u64, |sum, lot| sum.saturating_add(lot.units));
        as_level(held).saturating_sub(as_level(self.debt))
    }

    /// Lets what is over lapse.
    pub(crate) fn advance(&mut self, now: Time) {
        self.lots.retain(|lot| lot.expires_at > now && lot.units > 0);
    }

    pub(crate) fn fit(&self, cost: u64, now: Time) -> Fit {
        if cost > self.limit {
            Fit::Never
        } else if self.level() >= as_level(cost) {
            Fit::Now
        } else if self.refused_until > now {
            Fit::Later(Wait::from_micros(self.refused_until.micros_since(now)))
        } else {
            // Nobody knows when credit comes: its coming is an input.
            Fit::Later(Wait::UNTIL_EVENT)
        }
    }

    /// Takes `cost`, of what lapses first. Returns when that lapses, for a refund.
    pub(crate) fn charge(&mut self, cost: u64) -> Time {
        let from = self.lots.first().map_or(Time::ZERO, |lot| lot.expires_at);
        let mut rest = cost;
        for lot in &mut self.lots {
            let taken = rest.min(lot.units);
            lot.units -= taken;
            rest -= taken;
        }
        self.debt = self.debt.saturating_add(rest);
        from
    }

    /// Gives back `amount` of a charge, into the credit that it came from: nothing, if that has lapsed meanwhile.
    pub(crate) fn refund(&mut self, amount: u64, expires_at: Time, now: Time) {
        let paid = amount.min(self.debt);
        self.debt -= paid;
        if expires_at > now && amount > paid {
            self.put(amount - paid, expires_at);
        }
    }

    /// Credit has come. Debt is paid from it first.
    pub(crate) fn add(&mut self, amount: u64, expires_at: Time, now: Time) {
        self.demanded = 0;
        self.refused_until = Time::ZERO;
        let paid = amount.min(self.debt);
        self.debt -= paid;
        if expires_at > now && amount > paid {
            self.put(amount - paid, expires_at);
        }
    }

    fn put(&mut self, units: u64, expires_at: Time) {
        if let Some(lot) = self.lots.iter_mut().find(|lot| lot.expires_at == expires_at) {
            lot.units = lot.units.saturating_add(units);
            return;
        }
        if self.lots.len() >= LOTS_MAX {
            // Merged downwards: what lapses too early costs a little use, too late would overdraw the shared level.
            self.lots[0].units = self.lots[0].units.saturating_add(units);
            return;
        }
        let at = self.lots.partition_point(|lot| lot.expires_at < expires_at);
        self.lots.insert(at, Lot { units, expires_at });
    }

    /// The keeper of the level has none to give for `wait`.
    pub(crate) fn refuse(&mut self, wait: Wait, now: Time) {
        self.demanded = 0;
        self.refused_until = now + wait;
    }

    /// What to ask for so that `needed` units could be spent. `None`: it is there, asked for already, or refused for now.
    pub(crate) fn demand(&mut self, needed: u64, now: Time) -> Option<u64> {
        let missing = as_level(needed.min(self.limit)).saturating_sub(self.level());
        let missing = u64::try_from(missing).unwrap_or(0);
        if missing <= self.demanded || self.refused_until > now {
            return None;
        }
        self.demanded = missing;
        Some(missing)
    }

    /// What was asked for will not be answered any more, or has not been so far: it may be asked for again.
    pub(crate) fn forget_demand(&mut self) {
        self.demanded = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn what_is_not_spent_lapses_and_is_not_refunded_into() {
        let mut credit = Credit::none(100);
        credit.add(50, at(10), at(0));
        let from = credit.charge(20);
        assert_eq!((credit.level(), from), (30, at(10)));
        credit.advance(at(10));
        assert_eq!(credit.level(), 0);
        credit.refund(20, from, at(10));
        assert_eq!(credit.level(), 0, "what lapsed counts as returned there already");
    }

    #[test]
    fn what_lapses_first_is_spent_first() {
        let mut credit = Credit::none(100);
        credit.add(10, at(20), at(0));
        credit.add(10, at(5), at(0));
        assert_eq!(credit.charge(10), at(5));
        credit.advance(at(5));
        assert_eq!(credit.level(), 10);
    }

    #[test]
    fn debt_is_paid_by_the_next_credit() {
        let mut credit = Credit::none(100);
        credit.charge(30);
        assert_eq!(credit.level(), -30);
        credit.add(50, at(5), at(0));
        assert_eq!(credit.level(), 20);
        credit.advance(at(5));
        assert_eq!(credit.level(), 0);
    }

    #[test]
    fn the_same_need_is_demanded_once_and_a_greater_one_again() {
        let mut credit = Credit::none(100);
        assert_eq!(credit.demand(10, at(0)), Some(10));
        assert_eq!(credit.demand(10, at(0)), None);
        assert_eq!(credit.demand(500, at(0)), Some(100), "never more than the limit holds");
        credit.refuse(Wait::from_micros(2_000_000), at(0));
        assert_eq!(credit.demand(10, at(1)), None);
        assert_eq!(credit.fit(10, at(1)), Fit::Later(Wait::from_micros(1_000_000)));
        assert_eq!(credit.demand(10, at(2)), Some(10));
    }

    #[test]
    fn lots_are_bounded_and_never_last_longer_than_they_were_given_for() {
        let mut credit = Credit::none(1000);
        for number in 0..20 {
            credit.add(1, at(10 + number), at(0));
        }
        assert_eq!(credit.level(), 20);
        assert!(credit.lots.len() <= LOTS_MAX);
        credit.advance(at(20));
        assert!(credit.level() <= 9, "{}", credit.level());
    }
}
