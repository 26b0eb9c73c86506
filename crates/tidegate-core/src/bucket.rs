//! Decides when a cost fits into one continuously refilling level, as OpenAI's own limiter does it.
//!
//! Never reads a clock: the owner calls [`Bucket::refill`] with `now` first. Whole units and an exact remainder, so that no
//! fraction of a refill is ever lost; no floating point. Same admission as GCRA, but the level can be refunded,
//! corrected, put in debt and compared with `x-ratelimit-remaining-*`.

use crate::time::{Time, Wait};

/// What one level says to one cost at one instant.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It fits now.
    Now,
    /// The same cost fits after this wait, and not a microsecond sooner, if nobody else comes.
    Later(Wait),
    /// Waiting cannot help: it asks for more than the limit.
    Never,
}

/// A level that refills at `limit` units per `period`, up to `capacity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Units left; below zero is debt.
    level: i64,
    /// What has been refilled beyond `level`, in units ÷ period.
    remainder: u64,
    limit: u64,
    capacity: i64,
    period_micros: u64,
    refilled_at: Time,
}

impl Bucket {
    /// A full bucket of `limit` units per `period_micros` that holds at most `capacity`.
    #[must_use]
    pub fn full(limit: u64, capacity: u64, period_micros: u64, now: Time) -> Self {
        let capacity = as_level(capacity.clamp(1, limit.max(1)));
        Self { level: capacity, remainder: 0, limit, capacity, period_micros, refilled_at: now }
    }

    /// Units left; below zero is debt.
    #[must_use]
    pub const fn level(&self) -> i64 {
        self.level
    }

    /// Units per period.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The most it holds.
    #[must_use]
    pub const fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Takes in what has flowed since the last refill. An instant before that one changes nothing.
    #[inline]
    pub fn refill(&mut self, now: Time) {
        let elapsed = now.micros_since(self.refilled_at);
        if elapsed == 0 {
            return;
        }
        self.refilled_at = now;
        if self.level >= self.capacity {
            self.remainder = 0;
            return;
        }
        let (whole, remainder) =
            match elapsed.checked_mul(self.limit).and_then(|grown| grown.checked_add(self.remainder)) {
                Some(grown) => divide(grown, self.period_micros),
                // Long idle times a large limit: only here are 64 bits too few.
                None => {
                    let grown = u128::from(elapsed) * u128::from(self.limit) + u128::from(self.remainder);
                    let period = u128::from(self.period_micros);
                    (u64::try_from(grown / period).unwrap_or(u64::MAX), u64::try_from(grown % period).unwrap_or(0))
                }
            };
        self.level = self.level.saturating_add(as_level(whole)).min(self.capacity);
        self.remainder = if self.level == self.capacity { 0 } else { remainder };
    }

    /// Whether `cost` fits and leaves `floor` units. A cost above the capacity but within the limit fits when the bucket is full.
    #[inline]
    pub fn fit(&self, cost: u64, floor: u64) -> Fit {
        if cost > self.limit {
            return Fit::Never;
        }
        let needed = as_level(cost.saturating_add(floor)).min(self.capacity);
        if self.level >= needed { Fit::Now } else { Fit::Later(self.wait_until(needed)) }
    }

    /// How long until `needed` units are there.
    fn wait_until(&self, needed: i64) -> Wait {
        let missing = u128::from(needed.saturating_sub(self.level).unsigned_abs());
        let needed_flow = missing * u128::from(self.period_micros) - u128::from(self.remainder);
        Wait::from_micros(u64::try_from(needed_flow.div_ceil(u128::from(self.limit.max(1)))).unwrap_or(u64::MAX))
    }

    /// The time that `units` take to flow in.
    #[must_use]
    pub fn micros_to_refill(&self, units: u64) -> u64 {
        let flow = u128::from(units) * u128::from(self.period_micros);
        u64::try_from(flow.div_ceil(u128::from(self.limit.max(1)))).unwrap_or(u64::MAX)
    }

    /// The time until so much has been there in all, more than it ever holds at once or not.
    pub(crate) fn micros_until(&self, units: u64) -> u64 {
        let missing = as_level(units).saturating_sub(self.level());
        if missing <= 0 { 0 } else { self.micros_to_refill(missing.unsigned_abs()) }
    }

    /// The level at `then` if nothing else happens.
    #[must_use]
    pub fn level_at(&self, then: Time) -> i64 {
        let mut later = self.clone();
        later.refill(then);
        later.level
    }

    /// Takes `cost`, whatever the level: into debt if need be.
    #[inline]
    pub fn charge(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(as_level(cost));
    }

    /// Gives back `amount`, at most up to the capacity.
    #[inline]
    pub fn refund(&mut self, amount: u64) {
        self.level = self.level.saturating_add(as_level(amount)).min(self.capacity);
    }

    /// Sets the level to what is known to be true from elsewhere.
    pub fn set_level(&mut self, level: i64) {
        self.level = level.min(self.capacity);
        self.remainder = 0;
    }

    /// Counts refills from `at` on: the level is known to have stood so then.
    pub fn starts_at(&mut self, at: Time) {
        self.refilled_at = at;
    }

    /// Changes the limit without resetting what was used: raised, it adds the room; cut, the level stays, within the new capacity.
    pub fn reconfigure(&mut self, limit: u64, capacity: u64) {
        let capacity = as_level(capacity.clamp(1, limit.max(1)));
        self.level = self.level.saturating_add((capacity - self.capacity).max(0)).min(capacity);
        self.capacity = capacity;
        self.limit = limit;
        self.remainder = 0;
    }
}

/// Quotient and remainder. The two periods that occur are named, so that the compiler multiplies where it would have to
/// divide: that is a third of the cost of a decision.
#[inline]
fn divide(grown: u64, period_micros: u64) -> (u64, u64) {
    const MINUTE: u64 = 60_000_000;
    const DAY: u64 = 86_400_000_000;
    match period_micros {
        MINUTE => (grown / MINUTE, grown % MINUTE),
        DAY => (grown / DAY, grown % DAY),
        other => (grown / other, grown % other),
    }
}

/// Units as a level; saturating, so that an absurd number can cause no overflow.
pub(crate) fn as_level(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000_000;

    #[test]
    fn a_cost_above_the_burst_goes_when_full_and_leaves_debt() {
        let mut bucket = Bucket::full(600, 10, MINUTE, Time::ZERO);
        assert_eq!(bucket.fit(50, 0), Fit::Now);
        bucket.charge(50);
        assert_eq!(bucket.level(), -40);
        assert_eq!(bucket.fit(1, 0), Fit::Later(Wait::from_micros(4_100_000)));
        assert_eq!(bucket.fit(601, 0), Fit::Never);
    }

    #[test]
    fn a_clock_that_goes_back_creates_no_credit() {
        let mut bucket = Bucket::full(60, 60, MINUTE, Time::from_secs(100));
        bucket.charge(60);
        bucket.refill(Time::from_secs(10));
        assert_eq!(bucket.level(), 0);
        bucket.refill(Time::from_secs(101));
        assert_eq!(bucket.level(), 1);
    }

    #[test]
    fn a_century_of_idleness_fills_it_and_no_more() {
        let mut bucket = Bucket::full(200_000_000, 200_000_000, MINUTE, Time::ZERO);
        bucket.charge(200_000_000);
        bucket.refill(Time::from_secs(3_155_760_000));
        assert_eq!(bucket.level(), 200_000_000);
    }

    #[test]
    fn a_raised_limit_adds_room_and_a_cut_one_keeps_the_debt() {
        let mut bucket = Bucket::full(100, 100, MINUTE, Time::ZERO);
        bucket.charge(150);
        bucket.reconfigure(300, 300);
        assert_eq!(bucket.level(), 150);
        bucket.charge(200);
        bucket.reconfigure(10, 10);
        assert_eq!(bucket.level(), -50);
    }

    proptest! {
        #[test]
        fn a_granted_wait_suffices_and_one_microsecond_less_does_not(
            limit in 1_u64..2_000_000, used in 0_u64..4_000_000, cost in 1_u64..2_000_000, floor in 0_u64..1000, at in 0_u64..200_000_000,
        ) {
            let mut bucket = Bucket::full(limit, limit, MINUTE, Time::ZERO);
            bucket.charge(used);
            bucket.refill(Time::from_micros(at));
            match bucket.fit(cost, floor) {
                Fit::Never => prop_assert!(cost > limit),
                Fit::Now => {}
                Fit::Later(wait) => {
                    let mut early = bucket.clone();
                    early.refill(Time::from_micros(at + wait.micros() - 1));
                    prop_assert_ne!(early.fit(cost, floor), Fit::Now);
                    bucket.refill(Time::from_micros(at) + wait);
                    prop_assert_eq!(bucket.fit(cost, floor), Fit::Now);
                }
            }
        }

        #[test]
        fn any_number_of_small_refills_equals_one_large_one(
            limit in 1_u64..1_000_000, steps in proptest::collection::vec(1_u64..5_000_000, 1..50),
        ) {
            let mut often = Bucket::full(limit, limit, MINUTE, Time::ZERO);
            often.charge(limit);
            let mut once = often.clone();
            let mut now = 0;
            for step in steps {
                now += step;
                often.refill(Time::from_micros(now));
            }
            once.refill(Time::from_micros(now));
            prop_assert_eq!(often.level(), once.level());
        }
    }
}
