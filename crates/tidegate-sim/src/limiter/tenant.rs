//! Decides when callers that nobody sees take from a limit that is shared with them.

use super::{Charge, MINUTE_MICROS};

/// Someone else who uses the same account: so many calls per minute at random instants, each with the same charge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tenant {
    /// Calls per minute on average, above 0.
    pub calls_per_minute: f64,
    /// What each call takes; a call that does not fit is refused to the tenant and costs nothing.
    pub charge: Charge,
    /// The first instant at which it calls, in the limiter's time.
    pub from_micros: u64,
    /// The instant from which it no longer calls.
    pub until_micros: u64,
}

pub(super) struct Arrivals {
    tenant: Tenant,
    rng: fastrand::Rng,
    next_at_micros: u64,
}

pub(super) fn arrivals(tenants: &[Tenant], seed: u64, now_micros: u64) -> Vec<Arrivals> {
    let calling = tenants.iter().filter(|t| t.calls_per_minute > 0.0).enumerate();
    calling
        .map(|(i, &tenant)| {
            let rng = fastrand::Rng::with_seed(crate::draw::mix(seed, i as u64));
            let mut arrivals = Arrivals { tenant, rng, next_at_micros: now_micros.max(tenant.from_micros) };
            arrivals.step();
            arrivals
        })
        .collect()
}

impl Arrivals {
    pub(super) fn next_at(&self) -> u64 {
        self.next_at_micros
    }

    /// The due call, and moves on to the one after it.
    pub(super) fn arrive(&mut self) -> (u64, Charge) {
        let at = self.next_at_micros;
        self.step();
        (at, self.tenant.charge)
    }

    fn step(&mut self) {
        let mean_micros = MINUTE_MICROS as f64 / self.tenant.calls_per_minute;
        let gap = (-(1.0 - self.rng.f64()).ln() * mean_micros) as u64;
        // At least one microsecond, so that no rate, however absurd, stops time.
        let next = self.next_at_micros.saturating_add(gap.max(1));
        self.next_at_micros = if next < self.tenant.until_micros { next } else { u64::MAX };
    }
}
