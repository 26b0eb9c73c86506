//! Decides which of the core's standings are shown as metrics: read when they are asked for, never kept.
//!
//! One series for an upstream and model, however many accounts are behind it; models without series of their own share one.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tidegate::Driver;
use tidegate_core::gate::Status;

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
/// The same of counters.
type Counted<'s> = (Vec<(&'static str, &'s str)>, u64);

impl Collector for Standing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (status, shadow) = self.driver.with(|gate, now| (gate.status(now), gate.shadow_held()));
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
        let ages = status.learned.iter().flat_map(|target| {
            let (upstream, model) = self.labels(&target.name);
            target.limits.iter().map(move |told| ((upstream, model, told.dimension), told.age_seconds))
        });
        let mut oldest = BTreeMap::new();
        for (labels, age) in ages {
            let most = oldest.entry(labels).or_insert(0.0_f64);
            *most = most.max(age);
        }
        let oldest = oldest.iter().map(|((upstream, model, dimension), age)| {
            (vec![("upstream", *upstream), ("model", *model), ("dimension", *dimension)], *age)
        });
        family(
            "learned_limit_age_seconds",
            "Since an upstream last told the limit, of several the oldest",
            oldest.collect(),
        )?;
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
        family("retry_budget_remaining", "Retries that the budget still allows", vec![(Vec::new(), budget)])?;
        self.encode_reservations(&status, &shadow, &mut encoder)
    }
}

impl Standing {
    /// How far reservations were from what calls used, and what shadow limits would have held.
    fn encode_reservations(
        &self,
        status: &Status,
        shadow: &BTreeMap<Arc<str>, u64>,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> std::fmt::Result {
        let mut reserved: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for target in &status.learned {
            let sums = reserved.entry(self.labels(&target.name)).or_default();
            sums.0 = sums.0.saturating_add(target.reserved_tokens);
            sums.1 = sums.1.saturating_add(target.reservation_error_tokens);
        }
        let mut family = |name: &str, help: &str, series: Vec<Counted<'_>>| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in series {
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
            Ok::<(), std::fmt::Error>(())
        };
        let of = |which: fn(&(u64, u64)) -> u64| {
            let label = |(upstream, model)| vec![("upstream", upstream), ("model", model)];
            reserved.iter().map(|(names, sums)| (label(*names), which(sums))).collect::<Vec<_>>()
        };
        family("reserved_tokens", "Tokens reserved by calls whose use became known", of(|sums| sums.0))?;
        family(
            "reservation_error_tokens",
            "How far off those reservations were, in either direction",
            of(|sums| sums.1),
        )?;
        let shadow = shadow.iter().map(|(limit, held)| (vec![("limit", &**limit)], *held)).collect();
        family("shadow_held", "Calls that limits in shadow mode would have held back", shadow)
    }
}
