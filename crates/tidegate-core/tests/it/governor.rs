//! The same decisions as `governor` where it can decide at all: one dimension, one unit at a time.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use governor::{Quota, RateLimiter};
use proptest::prelude::*;
use tidegate_core::bucket::{Bucket, Fit};
use tidegate_core::time::Time;

proptest! {
    #[test]
    fn a_bucket_admits_exactly_when_governor_does(
        per_minute in proptest::sample::select(vec![1_u64, 3, 6, 60, 100, 600, 1000, 6000, 60_000]), burst_share in 1_u32..=100, steps in proptest::collection::vec((0_u64..3_000_000, 1_u32..20), 1..60),
    ) {
        // Governor counts in whole nanoseconds for one unit: these rates are the same to both.
        let interval = 60_000_000_000 / per_minute;
        let burst = (per_minute * u64::from(burst_share) / 100).max(1);
        let clock = FakeRelativeClock::default();
        let quota = Quota::with_period(Duration::from_nanos(interval)).unwrap()
            .allow_burst(NonZeroU32::new(u32::try_from(burst).unwrap()).unwrap());
        let oracle = RateLimiter::direct_with_clock(quota, clock.clone());
        let mut bucket = Bucket::full(per_minute, burst, 60_000_000, Time::ZERO);
        let mut now = 0;
        for (step, tries) in steps {
            now += step;
            clock.advance(Duration::from_micros(step));
            bucket.refill(Time::from_micros(now));
            for _ in 0..tries {
                let ours = bucket.fit(1, 0) == Fit::Now;
                if ours {
                    bucket.charge(1);
                }
                prop_assert_eq!(ours, oracle.check().is_ok(), "at {} µs", now);
            }
        }
    }
}
