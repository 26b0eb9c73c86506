//! Decides how long to wait before a retry: exponential, bounded, with jitter.
//!
//! Draws no randomness of its own: the sequence is handed in.

use std::time::Duration;

use crate::config::Jitter;

/// The numbers that a delay is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay before the first retry.
    pub base_delay: Duration,
    /// Bound of the result.
    pub max_delay: Duration,
    /// Growth from retry to retry.
    pub multiplier: f64,
    /// How random it is.
    pub jitter: Jitter,
}

impl Backoff {
    /// The delay before retry number `retry` (1 for the first). `factor` is the priority's; `previous` the delay before.
    ///
    /// Never above `max_delay`, never zero.
    #[must_use]
    pub fn delay(&self, retry: u32, factor: f64, previous: Duration, random: &mut fastrand::Rng) -> Duration {
        let max = self.max_delay.as_secs_f64() * 1e6;
        let base = self.base_delay.as_secs_f64() * 1e6 * factor;
        let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = (base * self.multiplier.powi(exponent)).min(max);
        let micros = match self.jitter {
            Jitter::None => grown,
            Jitter::Full => random.f64() * grown,
            Jitter::Equal => grown / 2.0 + random.f64() * grown / 2.0,
            Jitter::Decorrelated => {
                let upper = (previous.as_secs_f64() * 1e6 * 3.0).max(base);
                base + random.f64() * (upper - base)
            }
            Jitter::Additive => grown * (1.0 + 0.25 * random.f64()),
        };
        Duration::from_micros(micros.min(max).max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(jitter: Jitter) -> Backoff {
        Backoff { base_delay: Duration::from_secs(1), max_delay: Duration::from_secs(30), multiplier: 2.0, jitter }
    }

    #[test]
    fn without_jitter_it_doubles_up_to_the_bound() {
        let random = &mut fastrand::Rng::with_seed(1);
        let delays: Vec<_> =
            (1..=7).map(|retry| backoff(Jitter::None).delay(retry, 1.0, Duration::ZERO, random).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn no_jitter_and_no_priority_factor_exceeds_the_bound() {
        let random = &mut fastrand::Rng::with_seed(7);
        for jitter in [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::Additive] {
            let mut previous = Duration::ZERO;
            for retry in (1..2000).chain([u32::MAX]) {
                previous = backoff(jitter).delay(retry, 1.5, previous, random);
                assert!(previous <= Duration::from_secs(30) && !previous.is_zero(), "{jitter:?} {retry} {previous:?}");
            }
        }
    }

    #[test]
    fn each_jitter_keeps_to_its_range() {
        let random = &mut fastrand::Rng::with_seed(3);
        for _ in 0..1000 {
            let full = backoff(Jitter::Full).delay(3, 1.0, Duration::ZERO, random);
            assert!(full <= Duration::from_secs(4));
            let equal = backoff(Jitter::Equal).delay(3, 1.0, Duration::ZERO, random);
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&equal));
            let additive = backoff(Jitter::Additive).delay(3, 1.0, Duration::ZERO, random);
            assert!((Duration::from_secs(4)..=Duration::from_secs(5)).contains(&additive));
            let decorrelated = backoff(Jitter::Decorrelated).delay(3, 1.0, Duration::from_secs(2), random);
            assert!((Duration::from_secs(1)..=Duration::from_secs(6)).contains(&decorrelated));
        }
    }
}
