//! Decides which of the core's standings are shown as metrics: read when they are asked for, never kept.
//!
//! One series for an upstream and model, however many accounts are behind it; models without series of their own share one.

use std::collections::BTreeMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tidegate::Driver;

use crate::metrics::Shown;

const STATES: [&str; 5] = ["closed", "open", "half_open", "forced_open", "forced_closed"];

/// Series whose values are those of the core at the moment of the scrape.
#[derive(Debug)]
pub(crate) struct Standing {
    driver: Driver,
    models: Shown,
}

impl Standing {
    pub(crate) const fn new(driver: Driver, models: Shown) -> Self {
        Self { driver, models }
    }

    /// Upstream and model of a target, whose name is `upstream/model group`.
    fn labels<'t>(&self, target: &'t str) -> (&'t str, &'t str) {
        let (upstream, model) = target.split_once('/').unwrap_or((target, ""));
        (upstream, self.models.known(model))
    }
}

/// One series of a family of gauges: labels and value.
type Series<'s> = (Vec<(&'static str, &'s str)>, f64);

impl Collector for Standing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.driver.with(|gate, now| gate.status(now));
        let mut family = |name: &str, help: &str, series: Vec<Series<'_>>| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in series {
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        let waiting = status.queue.waiting.iter().map(|(class, calls)| (vec![("priority", *class)], *calls as f64));
        family("queue_depth", "Calls that wait", waiting.collect())?;
        let mut breakers: BTreeMap<String, [bool; STATES.len()]> = BTreeMap::new();
        for breaker in &status.breakers {
            let (upstream, model) = self.labels(&breaker.name);
            let shown = breakers.entry(format!("{upstream}/{model}")).or_default();
            for (is_in, state) in shown.iter_mut().zip(STATES) {
                *is_in |= breaker.state == state;
            }
        }
        let breakers = breakers.iter().flat_map(|(name, states)| {
            let of = |(is_in, state)| (vec![("breaker", name.as_str()), ("state", state)], f64::from(u8::from(is_in)));
            states.iter().copied().zip(STATES).map(of)
        });
        family("breaker_state", "1 for each state that a circuit breaker of this name is in", breakers.collect())?;
        let mut learned = BTreeMap::new();
        for target in &status.learned {
            let (upstream, model) = self.labels(&target.name);
            for told in &target.limits {
                let lowest = learned.entry((upstream, model, told.dimension)).or_insert(told.limit);
                *lowest = told.limit.min(*lowest);
            }
        }
        let learned = learned.iter().map(|((upstream, model, dimension), limit)| {
            (vec![("upstream", *upstream), ("model", *model), ("dimension", *dimension)], *limit as f64)
        });
        family("learned_limit", "Limits as the upstreams told them, of several the lowest", learned.collect())?;
        let mut used: Vec<(&str, f64)> = Vec::new();
        for level in &status.limits {
            let ratio = |meter: &tidegate_core::gate::MeterStatus| {
                let limit = meter.limit.max(1) as f64;
                1.0 - (meter.remaining as f64 / limit).min(1.0)
            };
            let fullest = level.meters.iter().map(ratio).fold(0.0, f64::max);
            match used.iter_mut().find(|(name, _)| *name == level.limit) {
                Some((_, most)) => *most = most.max(fullest),
                None => used.push((&level.limit, fullest)),
            }
        }
        let used = used.into_iter().map(|(limit, ratio)| (vec![("limit", limit)], ratio));
        family("limit_used_ratio", "How far the fullest level of each limit is used up", used.collect())?;
        let budget = status.retry_budget_remaining as f64;
        family("retry_budget_remaining", "Retries that the budget still allows", vec![(Vec::new(), budget)])
    }
}
