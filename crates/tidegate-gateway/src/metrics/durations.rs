//! Durations by bucket: counted without a lock, so that several cores need not wait for each other, and readable by more than a scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use tidegate_watch::alert::Spread;

/// A histogram; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Durations(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    /// In seconds, rising.
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

impl Durations {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { bounds, counts, sum_nanos: AtomicU64::new(0) }))
    }

    /// Counts one of so many seconds.
    pub(crate) fn observe(&self, seconds: f64) {
        let Buckets { bounds, counts, sum_nanos } = &*self.0;
        let bucket = bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        // A float's conversion saturates.
        sum_nanos.fetch_add((seconds * 1e9) as u64, Relaxed);
    }

    /// How many were within each bound.
    pub(super) fn spread(&self) -> Spread {
        Spread::new(self.0.bounds, self.counts())
    }

    fn counts(&self) -> Vec<u64> {
        self.0.counts.iter().map(|count| count.load(Relaxed)).collect()
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let counts = self.counts();
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let sum = self.0.sum_nanos.load(Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_that_holds_it() {
        let durations = Durations::new(&[0.5, 1.0]);
        for seconds in [0.0, 0.5, 0.75, 1.0, 30.0] {
            durations.clone().observe(seconds);
        }
        assert_eq!(durations.spread(), Spread::new(&[0.5, 1.0], vec![2, 2, 1]));
        let mut registry = Registry::default();
        registry.register("wait_seconds", "Waits", durations);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE wait_seconds histogram",
            "wait_seconds_sum 32.25",
            "wait_seconds_count 5",
            "wait_seconds_bucket{le=\"0.5\"} 2",
            "wait_seconds_bucket{le=\"1.0\"} 4",
            "wait_seconds_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing from\n{text}");
        }
    }
}
