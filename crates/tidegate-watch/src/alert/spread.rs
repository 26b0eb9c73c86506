//! How durations are spread: counts of buckets, and the quantile that they give.

/// How many durations were within each bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// The upper bound of each bucket, in seconds, rising; the last bucket has none.
    bounds: &'static [f64],
    counts: Vec<u64>,
}

impl Spread {
    /// The counts of buckets with these bounds: one more than there are bounds, for what is beyond the last.
    #[must_use]
    pub const fn new(bounds: &'static [f64], counts: Vec<u64>) -> Self {
        Self { bounds, counts }
    }

    /// Counts `other` in, which has the same bounds.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            *self = other.clone();
            return;
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bucket| earlier.counts.get(bucket).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate().map(|(bucket, count)| count.saturating_sub(before(bucket)));
        Self { bounds: self.bounds, counts: counts.collect() }
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration, in seconds, that `share` of them stayed within; `None` if there are none.
    ///
    /// As exact as the buckets: within one it is taken to grow evenly, as Prometheus' `histogram_quantile` does, and beyond the last
    /// bound it is that bound.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (bucket, count) in self.counts.iter().enumerate() {
            let count = *count as f64;
            let Some(upper) = self.bounds.get(bucket) else { break };
            if count > 0.0 && below + count >= rank {
                return Some(lower + (upper - lower) * (rank - below).max(0.0) / count);
            }
            (below, lower) = (below + count, *upper);
        }
        (self.count() > 0).then_some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: &[f64] = &[1.0, 2.0, 4.0];

    #[test]
    fn a_quantile_lies_within_its_bucket_as_prometheus_has_it() {
        let spread = Spread::new(BOUNDS, vec![90, 0, 10, 0]);
        assert_eq!(spread.quantile(0.45), Some(0.5));
        assert_eq!(spread.quantile(0.95), Some(3.0));
        assert_eq!(Spread::new(BOUNDS, vec![0, 0, 0, 5]).quantile(0.5), Some(4.0), "no more is known");
        assert_eq!(Spread::new(BOUNDS, vec![0; 4]).quantile(0.5), None);
    }

    #[test]
    fn what_came_since_is_the_difference_and_parts_add_up() {
        let mut all = Spread::default();
        all.add(&Spread::new(BOUNDS, vec![1, 2, 3, 4]));
        all.add(&Spread::new(BOUNDS, vec![1, 0, 0, 0]));
        let since = all.since(&Spread::new(BOUNDS, vec![1, 2, 0, 4]));
        assert_eq!((since, all.count()), (Spread::new(BOUNDS, vec![1, 0, 3, 0]), 11));
        assert_eq!(all.since(&Spread::default()), all);
    }
}
