//! Decides when an amount fits into one bucket that refills continuously.
//!
//! Amounts are kept multiplied by the period, so that a microsecond refills exactly `limit` and nothing is ever rounded.

use super::{Gauge, Level};

/// The level of one limit.
pub(super) struct Bucket {
    limit: u64,
    period_micros: u64,
    capacity: i128,
    level: i128,
    at_micros: u64,
    charged: u64,
    tenants: u64,
    lost: i128,
}

impl Bucket {
    /// `window_micros` is how much refill fits: the period itself, or a quantum of it.
    pub(super) fn new(limit: u64, period_micros: u64, window_micros: u64, fill: f64, now_micros: u64) -> Self {
        let unit = i128::from(period_micros);
        // A quantum that holds less than one unit would never let anything through.
        let capacity = (i128::from(limit) * i128::from(window_micros)).max(unit);
        let parts_per_million = (fill.clamp(0.0, 1.0) * 1e6) as i128;
        Bucket {
            limit,
            period_micros,
            capacity,
            level: capacity * parts_per_million / 1_000_000,
            at_micros: now_micros,
            charged: 0,
            tenants: 0,
            lost: 0,
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn refill(&mut self, now_micros: u64) {
        let Some(passed) = now_micros.checked_sub(self.at_micros) else { return };
        self.at_micros = now_micros;
        self.level += i128::from(self.limit) * i128::from(passed);
        if self.level > self.capacity {
            self.lost += self.level - self.capacity;
            self.level = self.capacity;
        }
    }

    /// Microseconds until the amount fits, zero if it fits now. What is above the capacity goes when the bucket is full.
    pub(super) fn wait_micros(&self, amount: u64) -> u64 {
        let needed = (i128::from(amount) * self.unit()).min(self.capacity);
        let missing = needed - self.level;
        if missing <= 0 {
            return 0;
        }
        let per_micro = i128::from(self.limit.max(1));
        u64::try_from((missing + per_micro - 1) / per_micro).unwrap_or(u64::MAX)
    }

    pub(super) fn take(&mut self, amount: u64) {
        self.level -= i128::from(amount) * self.unit();
        self.charged += amount;
    }

    pub(super) fn take_for_tenant(&mut self, amount: u64) {
        self.level -= i128::from(amount) * self.unit();
        self.tenants += amount;
    }

    /// Takes the amount, or what there is of it: a storm of refusals empties the bucket but does not dig a hole.
    pub(super) fn take_what_is_there(&mut self, amount: u64) {
        let wanted = i128::from(amount) * self.unit();
        self.level -= wanted.min(self.level.max(0));
        self.charged += amount;
    }

    /// Units used, rounded up.
    pub(super) fn used(&self) -> u64 {
        let used = i128::from(self.limit) * self.unit() - self.level;
        u64::try_from((used + self.unit() - 1).max(0) / self.unit()).unwrap_or(u64::MAX)
    }

    pub(super) fn gauge(&self) -> Gauge {
        let remaining = u64::try_from(self.level.max(0) / self.unit()).unwrap_or(u64::MAX);
        let missing = u128::from(self.limit.saturating_sub(remaining));
        let reset = missing * u128::from(self.period_micros) / u128::from(self.limit.max(1));
        Gauge { limit: self.limit, remaining, reset_micros: u64::try_from(reset).unwrap_or(u64::MAX) }
    }

    /// Goes on from the level and the counts of the bucket that this one replaces.
    pub(super) fn inherit(&mut self, before: &Bucket) {
        self.level = before.level.min(self.capacity);
        self.at_micros = before.at_micros;
        self.charged = before.charged;
        self.tenants = before.tenants;
        self.lost = before.lost;
    }

    pub(super) fn report(&self) -> Level {
        let unit = self.period_micros as f64;
        Level {
            limit: self.limit,
            level: self.level as f64 / unit,
            charged: self.charged,
            tenants: self.tenants,
            lost: self.lost as f64 / unit,
        }
    }

    fn unit(&self) -> i128 {
        i128::from(self.period_micros)
    }
}
