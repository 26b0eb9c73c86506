//! Counts what each level of each limit was charged, and decides how full the fullest of a limit was, over all and by interval.
//!
//! By the rules that the core charges by here: of a mirror the input of each request, of our own limits what it used in the end.

use std::collections::HashMap;

use serde::Serialize;
use tidegate_core::call::{RequestType, Subject};
use tidegate_core::limit::{Allowance, Dimension, Limit, Scope};

use super::trace::Arrival;

/// How much of a limit was used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Used {
    /// The limit's name.
    pub limit: String,
    /// The dimension.
    pub dimension: &'static str,
    /// Levels that anything was charged to: one for each combination of the limit's `per`.
    pub levels: usize,
    /// The fullest of them, which the rest speaks of: the key's parts joined by `/`.
    pub key: String,
    /// Units per period.
    pub units: u64,
    /// Of what could go at once at first and the refill until the last call went.
    pub percent: f64,
    /// By interval: units of the minute (or day) until its end as a share of the limit, in the level where that is most. Where a
    /// bucket is full at first, up to twice the limit can go in a minute.
    pub interval_percent: Vec<f64>,
}

impl Used {
    /// Of which level it is told, where there are several.
    pub(crate) fn whose(&self) -> String {
        if self.levels < 2 {
            return String::new();
        }
        format!(" of {}, the fullest of {}", self.key, self.levels)
    }
}

/// One dimension of one level.
#[derive(Debug)]
struct Meter {
    dimension: Dimension,
    units: u64,
    burst: u64,
    gone: u64,
    /// Units that went, in those intervals in which any did.
    by_interval: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Level {
    limit: usize,
    key: String,
    is_mirror: bool,
    meters: Vec<Meter>,
}

/// Everything that is charged.
#[derive(Debug)]
pub(super) struct Levels {
    limits: Vec<Limit>,
    levels: Vec<Level>,
    ids: HashMap<(usize, String), usize>,
    /// By model, user and request type: the levels that such a call is charged to.
    touched: HashMap<(u16, u32, RequestType), Vec<usize>>,
}

impl Levels {
    pub(super) fn new(limits: Vec<Limit>) -> Self {
        Self { limits, levels: Vec::new(), ids: HashMap::new(), touched: HashMap::new() }
    }

    /// A call goes in the interval of this number.
    pub(super) fn charge(&mut self, arrival: &Arrival, subject: &Subject, interval: u64) {
        let kind = (arrival.model, arrival.user, arrival.request_type);
        if !self.touched.contains_key(&kind) {
            let touched = (0..self.limits.len()).filter_map(|limit| self.level(limit, subject)).collect();
            self.touched.insert(kind, touched);
        }
        for id in &self.touched[&kind] {
            let Level { is_mirror, meters, .. } = &mut self.levels[*id];
            for meter in meters {
                let units = charged(meter.dimension, *is_mirror, arrival);
                meter.gone = meter.gone.saturating_add(units);
                match meter.by_interval.last_mut() {
                    Some((number, sum)) if *number == interval => *sum = sum.saturating_add(units),
                    _ => meter.by_interval.push((interval, units)),
                }
            }
        }
    }

    /// Two intervals become one.
    pub(super) fn join(&mut self) {
        for meter in self.levels.iter_mut().flat_map(|level| &mut level.meters) {
            meter.by_interval.iter_mut().for_each(|(number, _)| *number /= 2);
            meter.by_interval.dedup_by(|(number, units), (into, sum)| {
                let is_same = number == into;
                *sum += if is_same { *units } else { 0 };
                is_same
            });
        }
    }

    /// What was used of each limit in each dimension.
    pub(super) fn used(&self, granted_until: u64, intervals: usize, interval_micros: u64) -> Vec<Used> {
        let mut all: Vec<(usize, Used)> = Vec::new();
        for level in &self.levels {
            for meter in &level.meters {
                let percent = meter.percent(granted_until);
                let by_interval = meter.by_interval(intervals, interval_micros);
                let dimension = meter.dimension.name();
                let there = all.iter_mut().find(|(limit, used)| *limit == level.limit && used.dimension == dimension);
                let Some((_, used)) = there else {
                    let limit = self.limits[level.limit].name.to_string();
                    let (key, units) = (level.key.clone(), meter.units);
                    let interval_percent = by_interval;
                    all.push((
                        level.limit,
                        Used { limit, dimension, levels: 1, key, units, percent, interval_percent },
                    ));
                    continue;
                };
                used.levels += 1;
                for (most, percent) in used.interval_percent.iter_mut().zip(by_interval) {
                    *most = most.max(percent);
                }
                if percent > used.percent {
                    (used.percent, used.units, used.key) = (percent, meter.units, level.key.clone());
                }
            }
        }
        all.sort_by(|(_, one), (_, other)| (&one.limit, one.dimension).cmp(&(&other.limit, other.dimension)));
        all.into_iter().map(|(_, used)| used).collect()
    }

    /// `None`: the limit says nothing of such calls.
    fn level(&mut self, limit: usize, subject: &Subject) -> Option<usize> {
        let rates = self.limits[limit].rates_for(subject);
        let meters: Vec<Meter> = Dimension::ALL
            .into_iter()
            .filter(|dimension| *dimension != Dimension::MaxInFlight)
            .filter_map(|dimension| match rates.allowance(dimension) {
                Some(Allowance::Units(units)) => {
                    let burst = rates.burst(dimension).unwrap_or(units.get());
                    Some(Meter { dimension, units: units.get(), burst, gone: 0, by_interval: Vec::new() })
                }
                _ => None,
            })
            .collect();
        if meters.is_empty() {
            return None;
        }
        let (key, is_mirror) = (key(&self.limits[limit].per, subject), self.limits[limit].is_mirror());
        let next = self.levels.len();
        let id = *self.ids.entry((limit, key.clone())).or_insert(next);
        if id == next {
            self.levels.push(Level { limit, key, is_mirror, meters });
        }
        Some(id)
    }
}

impl Meter {
    fn percent(&self, granted_until: u64) -> f64 {
        let there = self.burst as f64 + self.units as f64 * granted_until as f64 / self.period_micros() as f64;
        100.0 * self.gone as f64 / there.max(1.0)
    }

    fn by_interval(&self, intervals: usize, interval_micros: u64) -> Vec<f64> {
        let mut units = vec![0; intervals];
        for (number, sum) in &self.by_interval {
            if let Some(units) = usize::try_from(*number).ok().and_then(|number| units.get_mut(number)) {
                *units = *sum;
            }
        }
        // Whole intervals, so that what they hold and what the limit allows are of the same time.
        let within = (self.period_micros() as f64 / interval_micros as f64).round().max(1.0);
        let allowed = self.units as f64 * within * interval_micros as f64 / self.period_micros() as f64;
        let within = within as usize;
        let mut sum = 0_u64;
        (0..intervals)
            .map(|at| {
                sum += units[at];
                sum -= if at >= within { units[at - within] } else { 0 };
                100.0 * sum as f64 / allowed
            })
            .collect()
    }

    fn period_micros(&self) -> u64 {
        self.dimension.period_micros().unwrap_or(60_000_000)
    }
}

fn charged(dimension: Dimension, is_mirror: bool, arrival: &Arrival) -> u64 {
    match dimension {
        Dimension::RequestsPerMinute | Dimension::RequestsPerDay => 1,
        Dimension::TokensPerMinute | Dimension::TokensPerDay if is_mirror => arrival.cost.input_tokens,
        Dimension::TokensPerMinute | Dimension::TokensPerDay => arrival.cost.input_tokens + arrival.output_tokens,
        Dimension::ImagesPerMinute => u64::from(arrival.cost.images),
        Dimension::MaxInFlight => 0,
    }
}

/// As the core names its levels.
fn key(per: &[Scope], subject: &Subject) -> String {
    let part = |scope: &Scope| match scope {
        Scope::Account => subject.upstream().to_owned(),
        scope => Some(scope.of(subject)).filter(|part| !part.is_empty()).unwrap_or("-").to_owned(),
    };
    per.iter().map(part).collect::<Vec<_>>().join("/")
}
