//! Decides when a cost fits into a sliding window: never more than N in any period.
//!
//! Counts in 240 bins a period. The bin of now and the 241 before it must sum to at most N: one bin more than the period
//! guards against the jitter between a decision and its arrival upstream. At least 99 % of N can be used.

use crate::bucket::{Bucket, Fit, as_level};
use crate::time::{Time, Wait};

/// Bins in one period.
const BINS_PER_PERIOD: u64 = 240;
/// Bins that are summed: the current one, a period's worth, and one against jitter.
const BINS: usize = 242;

/// A level that never lets more than `limit` units through in any period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    bins: Box<[u64; BINS]>,
    /// Number of the current bin, counted from the epoch.
    current: u64,
    sum: u64,
    limit: u64,
    bin_micros: u64,
    /// Where a burst is configured: bounds what goes at one instant.
    pace: Option<Bucket>,
}

impl Window {
    /// An empty window of `limit` units per `period_micros`. `burst` bounds what goes at one instant; `None`: the whole limit may.
    #[must_use]
    pub fn empty(limit: u64, burst: Option<u64>, period_micros: u64, now: Time) -> Self {
        let bin_micros = (period_micros / BINS_PER_PERIOD).max(1);
        Self {
            bins: Box::new([0; BINS]),
            current: now.as_micros() / bin_micros,
            sum: 0,
            limit,
            bin_micros,
            pace: pace(limit, burst, period_micros, now),
        }
    }

    /// Units that may still go in this window, burst aside; below zero is debt.
    #[must_use]
    pub fn level(&self) -> i64 {
        as_level(self.limit).saturating_sub(as_level(self.sum))
    }

    /// Units per period.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The bin that is current; a refund names the bin that the charge went to.
    #[must_use]
    pub const fn current_bin(&self) -> u64 {
        self.current
    }

    /// Forgets the bins that have left the window. An instant before the current bin changes nothing.
    #[inline]
    pub fn advance(&mut self, now: Time) {
        if let Some(pace) = &mut self.pace {
            pace.refill(now);
        }
        let bin = now.as_micros() / self.bin_micros;
        if bin <= self.current {
            return;
        }
        let gone = bin - self.current;
        if gone >= BINS as u64 {
            self.bins.fill(0);
            self.sum = 0;
        } else {
            for number in self.current + 1..=bin {
                let at = slot(number);
                self.sum = self.sum.saturating_sub(self.bins[at]);
                self.bins[at] = 0;
            }
        }
        self.current = bin;
    }

    /// Whether `cost` fits and leaves `floor` units of the window.
    #[inline]
    pub fn fit(&self, cost: u64, floor: u64, now: Time) -> Fit {
        if cost > self.limit {
            return Fit::Never;
        }
        let needed = cost.saturating_add(floor).min(self.limit);
        let window = if self.sum.saturating_add(needed) <= self.limit { Fit::Now } else { self.later(needed, now) };
        match (&self.pace, window) {
            (None, window) => window,
            (Some(pace), window) => match (pace.fit(cost, 0), window) {
                (Fit::Now | Fit::Never, window) => window,
                (Fit::Later(wait), Fit::Later(other)) => Fit::Later(wait.max(other)),
                (paced, _) => paced,
            },
        }
    }

    fn later(&self, needed: u64, now: Time) -> Fit {
        let must_leave = self.sum.saturating_add(needed) - self.limit;
        let mut left = 0;
        // The oldest first: the bin numbered b leaves when bin b + BINS begins.
        for back in (0..BINS as u64).rev() {
            let Some(number) = self.current.checked_sub(back) else { continue };
            left += self.bins[slot(number)];
            if left >= must_leave {
                let at = Time::from_micros(number.saturating_add(BINS as u64).saturating_mul(self.bin_micros));
                return Fit::Later(Wait::from_micros(at.micros_since(now)));
            }
        }
        Fit::Later(Wait::from_micros(self.bin_micros * BINS as u64))
    }

    /// How long its burst holds back the last of `units`, which need not go at one instant.
    pub(crate) fn paced_micros(&self, units: u64) -> u64 {
        self.pace.as_ref().map_or(0, |pace| pace.micros_until(units))
    }

    /// How many units there will be room for at `then` if nothing else happens.
    #[must_use]
    pub fn level_at(&self, then: Time) -> i64 {
        let mut later = self.clone();
        later.advance(then);
        later.level().min(later.pace.as_ref().map_or(i64::MAX, Bucket::level))
    }

    /// Counts `cost` in the current bin, whatever the level.
    #[inline]
    pub fn charge(&mut self, cost: u64) {
        let at = slot(self.current);
        self.bins[at] = self.bins[at].saturating_add(cost);
        self.sum = self.sum.saturating_add(cost);
        if let Some(pace) = &mut self.pace {
            pace.charge(cost);
        }
    }

    /// Gives back `amount` to the bin it was charged to; nothing if that has left the window.
    #[inline]
    pub fn refund(&mut self, amount: u64, bin: u64) {
        if let Some(pace) = &mut self.pace {
            pace.refund(amount);
        }
        if bin > self.current || self.current - bin >= BINS as u64 {
            return;
        }
        let at = slot(bin);
        let back = amount.min(self.bins[at]);
        self.bins[at] -= back;
        self.sum -= back;
    }

    /// Changes the limit; what was used stays counted.
    pub fn reconfigure(&mut self, limit: u64, burst: Option<u64>, period_micros: u64, now: Time) {
        self.limit = limit;
        match (&mut self.pace, burst) {
            (Some(pace), Some(burst)) => pace.reconfigure(limit, burst),
            (mine, burst) => *mine = pace(limit, burst, period_micros, now),
        }
    }

    /// Forgets everything that was counted.
    pub fn clear(&mut self, now: Time) {
        self.advance(now);
        self.bins.fill(0);
        self.sum = 0;
        if let Some(pace) = &mut self.pace {
            pace.set_level(pace.capacity());
        }
    }

    /// What is counted, as (bins back from now, units); for keeping across a restart.
    pub fn used(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..BINS as u64).filter_map(|back| {
            let units = self.bins[slot(self.current.checked_sub(back)?)];
            (units > 0).then_some((back, units))
        })
    }

    /// Counts `units` as used `bins_back` bins ago; the other half of [`Window::used`].
    pub fn restore(&mut self, bins_back: u64, units: u64) {
        let Some(number) = self.current.checked_sub(bins_back) else { return };
        if bins_back < BINS as u64 {
            let bin = &mut self.bins[slot(number)];
            *bin = bin.saturating_add(units);
            self.sum = self.sum.saturating_add(units);
        }
    }

    /// Length of a bin.
    #[must_use]
    pub const fn bin_micros(&self) -> u64 {
        self.bin_micros
    }
}

fn pace(limit: u64, burst: Option<u64>, period_micros: u64, now: Time) -> Option<Bucket> {
    burst.filter(|burst| *burst < limit).map(|burst| Bucket::full(limit, burst, period_micros, now))
}

fn slot(bin: u64) -> usize {
    usize::try_from(bin % BINS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000_000;

    #[test]
    fn greedy_use_never_exceeds_n_in_any_minute_and_reaches_99_percent_of_it() {
        let limit = 600;
        let mut window = Window::empty(limit, None, MINUTE, Time::ZERO);
        let mut taken: Vec<u64> = Vec::new();
        let mut now = 0;
        while now < 10 * MINUTE {
            window.advance(Time::from_micros(now));
            match window.fit(1, 0, Time::from_micros(now)) {
                Fit::Now => {
                    window.charge(1);
                    taken.push(now);
                    now += 1000;
                }
                Fit::Later(wait) => now += wait.micros(),
                Fit::Never => unreachable!("one fits into 600"),
            }
        }
        for (first, at) in taken.iter().enumerate() {
            let within = taken[first..].iter().take_while(|other| **other < at + MINUTE).count();
            assert!(within <= 600, "{within} from {at}");
        }
        assert!(taken.len() as u64 >= 594 * 9 + 600, "{}", taken.len());
    }

    #[test]
    fn a_refund_frees_the_bin_it_came_from_and_not_a_later_one() {
        let mut window = Window::empty(10, None, MINUTE, Time::ZERO);
        window.charge(6);
        let bin = window.current_bin();
        window.advance(Time::from_secs(30));
        window.charge(4);
        window.refund(6, bin);
        assert_eq!(window.level(), 6);
        window.advance(Time::from_secs(61));
        assert_eq!(window.level(), 6, "the refunded bin must not leave twice");
    }

    #[test]
    fn a_burst_bounds_what_goes_at_one_instant() {
        let mut window = Window::empty(600, Some(10), MINUTE, Time::ZERO);
        for _ in 0..10 {
            assert_eq!(window.fit(1, 0, Time::ZERO), Fit::Now);
            window.charge(1);
        }
        assert_eq!(window.fit(1, 0, Time::ZERO), Fit::Later(Wait::from_micros(100_000)));
    }

    proptest! {
        #[test]
        fn a_granted_wait_suffices_and_one_microsecond_less_does_not(
            charges in proptest::collection::vec((0_u64..20_000_000, 1_u64..50), 1..20), cost in 1_u64..100, floor in 0_u64..20,
        ) {
            let mut window = Window::empty(100, None, MINUTE, Time::ZERO);
            let mut now = 0;
            for (step, units) in charges {
                now += step;
                window.advance(Time::from_micros(now));
                window.charge(units);
            }
            if let Fit::Later(wait) = window.fit(cost, floor, Time::from_micros(now)) {
                let early = Time::from_micros(now + wait.micros() - 1);
                let mut before = window.clone();
                before.advance(early);
                prop_assert_ne!(before.fit(cost, floor, early), Fit::Now);
                let then = Time::from_micros(now) + wait;
                window.advance(then);
                prop_assert_eq!(window.fit(cost, floor, then), Fit::Now);
            }
        }
    }
}
