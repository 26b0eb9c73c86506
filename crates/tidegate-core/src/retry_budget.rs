//! Decides whether one more retry keeps retries within their share of calls.
//!
//! Why a budget and not only a number of attempts: when a service is down, every call retries, and three attempts each are
//! three times the load just when it can bear least. A budget bounds the sum. As in Finagle and tower.

use crate::config::RetryBudgetConfig;
use crate::time::Time;

/// One retry, in the unit of the balance; a share of a call can be deposited.
const RETRY: i64 = 1000;
/// Deposits are kept for so many seconds' worth.
const SECONDS_KEPT: i64 = 10;

/// The balance: calls deposit a share, time deposits a minimum, retries withdraw.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    balance: i64,
    deposit: i64,
    per_second: i64,
    cap: i64,
    refilled_at: Time,
}

impl RetryBudget {
    /// A budget with its minimum ready to be spent.
    #[must_use]
    pub fn new(config: RetryBudgetConfig, now: Time) -> Self {
        let per_second = i64::from(config.min_per_second) * RETRY;
        let deposit = (config.ratio.clamp(0.0, 1000.0) * RETRY as f64) as i64;
        Self {
            balance: per_second * SECONDS_KEPT,
            deposit,
            per_second,
            cap: (per_second * SECONDS_KEPT).max(100 * RETRY),
            refilled_at: now,
        }
    }

    fn refill(&mut self, now: Time) {
        let elapsed = now.micros_since(self.refilled_at);
        let flow =
            i64::try_from(u128::from(elapsed) * self.per_second.unsigned_abs() as u128 / 1_000_000).unwrap_or(i64::MAX);
        if flow > 0 || self.per_second == 0 {
            self.refilled_at = now.max(self.refilled_at);
        }
        self.balance = self.balance.saturating_add(flow).min(self.cap);
    }

    /// A call was let through for the first time.
    #[inline]
    pub fn deposit(&mut self) {
        self.balance = (self.balance + self.deposit).min(self.cap);
    }

    /// Takes one retry. False: none is left.
    #[must_use]
    pub fn withdraw(&mut self, now: Time) -> bool {
        self.refill(now);
        let enough = self.balance >= RETRY;
        if enough {
            self.balance -= RETRY;
        }
        enough
    }

    /// Retries left.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        (self.balance / RETRY).max(0).unsigned_abs()
    }

    /// Takes over a new configuration; what is left stays, within the new bound.
    pub fn reconfigure(&mut self, config: RetryBudgetConfig, now: Time) {
        let balance = self.balance;
        *self = Self::new(config, now);
        self.balance = balance.min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_do_not_exceed_their_share_of_calls_beyond_the_minimum() {
        let mut budget = RetryBudget::new(RetryBudgetConfig { ratio: 0.2, min_per_second: 0 }, Time::ZERO);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.withdraw(Time::from_secs(1)));
        }
        assert_eq!(retries, 200);
    }

    #[test]
    fn the_minimum_is_there_however_few_calls_there_are() {
        let mut budget = RetryBudget::new(RetryBudgetConfig { ratio: 0.0, min_per_second: 10 }, Time::ZERO);
        while budget.withdraw(Time::ZERO) {}
        let granted = (0..100).filter(|_| budget.withdraw(Time::from_secs(1))).count();
        assert_eq!(granted, 10);
    }
}
