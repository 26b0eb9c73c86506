//! What alerts are judged by and what is told of the last minute, read from the series once a second: a call counts nothing twice for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tidegate_watch::alert::{Sample, Spread};

use super::durations::Durations;
use super::{CallEnd, Metrics};

/// All that a call may be refused for.
pub(crate) const REFUSAL_REASONS: [&str; 7] =
    ["limit", "too_large", "queue_full", "breaker", "paused", "draining", "audit"];

/// Sums over all upstreams, models and callers, since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// That ended, however they did.
    pub(crate) calls: u64,
    /// By [`REFUSAL_REASONS`].
    pub(crate) refused: [u64; REFUSAL_REASONS.len()],
    /// At the same upstream.
    pub(crate) retries: u64,
    /// Answers 429 of upstreams.
    pub(crate) too_many_requests: u64,
}

/// The series of each upstream and model that a sample sums up; as bounded as the series are.
#[derive(Debug, Default)]
pub(super) struct Sampled(Mutex<BTreeMap<Name, Target>>);

/// Upstream and model.
type Name = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Target {
    /// By priority and end.
    calls: [[Counter; 5]; 3],
    too_many: Counter,
    first_byte: Durations,
}

impl Sampled {
    pub(super) fn add(
        &self,
        upstream: &Arc<str>,
        model: &Arc<str>,
        calls: &[[Counter; 5]; 3],
        too_many: &Counter,
        first_byte: &Durations,
    ) {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (upstream.clone(), model.clone());
        targets.entry(key).or_insert_with(|| Target {
            calls: calls.clone(),
            too_many: too_many.clone(),
            first_byte: first_byte.clone(),
        });
    }
}

impl Metrics {
    /// How the counters stand that are kept here.
    pub(crate) fn sample(&self) -> Sample {
        let mut sample = Sample {
            held: self.held.count(),
            limited: self.held.by_limit(),
            refused: ["limit", "too_large", "queue_full"].into_iter().map(|reason| self.refusals(reason)).sum(),
            errors: self.refusals("breaker"),
            retries: self.made_retries.get(),
            queue_wait: sum(&self.queue_wait),
            overhead: self.overhead.spread(),
            stores_down: u64::from(self.store_up.get() == 0),
            ..Sample::default()
        };
        for ((upstream, model), target) in self.sampled.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let of_target = sample.failed.entry(format!("{upstream}/{model}").into()).or_default();
            for ends in &target.calls {
                let count = |end: CallEnd| ends[end as usize].get();
                let failed = count(CallEnd::Failed) + count(CallEnd::Broken);
                sample.errors += failed;
                *of_target += failed;
                sample.calls += failed + count(CallEnd::Ok) + count(CallEnd::Refused);
            }
            sample.first_byte.add(&target.first_byte.spread());
        }
        sample
    }

    /// Their sums.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals {
            refused: REFUSAL_REASONS.map(|reason| self.refusals(reason)),
            retries: self.retried.get(),
            ..Totals::default()
        };
        for target in self.sampled.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            totals.calls += target.calls.iter().flatten().map(|count| count.get()).sum::<u64>();
            totals.too_many_requests += target.too_many.get();
        }
        totals
    }
}

fn sum(all: &[Durations]) -> Spread {
    let mut sum = Spread::default();
    all.iter().for_each(|durations| sum.add(&durations.spread()));
    sum
}

#[cfg(test)]
mod tests {
    use tidegate::Driver;
    use tidegate_core::config::Policy;

    use super::*;

    #[tokio::test]
    async fn a_store_out_of_reach_is_what_its_alert_is_judged_by() {
        let metrics = Metrics::new(&Driver::new(Policy::default(), 1), None);
        assert_eq!(metrics.sample().stores_down, 0, "levels are kept in this process");
        metrics.store_up.set(0);
        assert_eq!(metrics.sample().stores_down, 1);
    }
}
