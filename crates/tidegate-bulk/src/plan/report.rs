//! Decides what is said of a plan: waits by priority, what was used, what bound, and when.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate_core::call::{Priority, Subject};
use tidegate_core::limit::{Dimension, Limit};

use super::trace::Arrival;
use super::used::{Levels, Used};
use crate::summary::Spoken;

/// Intervals that a plan is told in, at most.
const INTERVALS: u64 = 120;
/// Upper bounds of the histogram's rows, in seconds.
const ROWS: [f64; 7] = [0.001, 0.1, 1.0, 10.0, 60.0, 600.0, f64::INFINITY];

/// How long calls waited that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Calls that went.
    pub calls: u64,
    /// Calls that were refused: how long they would have waited is in none of the waits.
    pub refused: u64,
    /// Half waited no longer, in seconds; likewise below.
    pub p50_seconds: f64,
    /// 95 of 100.
    pub p95_seconds: f64,
    /// 99 of 100.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

/// What made calls wait.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Binding {
    /// The limit's name.
    pub limit: String,
    /// The dimension.
    pub dimension: String,
    /// Calls that began to wait for it.
    pub calls: u64,
}

/// One piece of the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// Its beginning, in seconds.
    pub at_seconds: f64,
    /// Longest wait of those that went in it, in seconds, for low, normal and high; absent where none went.
    pub wait_seconds: [Option<f64>; 3],
    /// Requests that went.
    pub requests: u64,
    /// Their input and output tokens.
    pub tokens: u64,
    /// What began to bind most; empty: nothing.
    pub binds: String,
}

/// What traffic would meet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Calls in the trace.
    pub calls: u64,
    /// Calls that would be refused.
    pub refused: u64,
    /// By reason.
    pub refusals: BTreeMap<String, u64>,
    /// From the first arrival to the last reply.
    pub makespan_seconds: f64,
    /// Of all calls.
    pub all: Waits,
    /// By priority; those without calls are left out.
    pub by_priority: BTreeMap<&'static str, Waits>,
    /// Rows of the histogram: upper bound in seconds (absent: none), calls.
    pub histogram: Vec<(Option<f64>, u64)>,
    /// By limit and dimension.
    pub used: Vec<Used>,
    /// By limit and dimension, the most frequent first.
    pub binds: Vec<Binding>,
    /// The length of an interval.
    pub interval_seconds: f64,
    /// What happened when.
    pub intervals: Vec<Interval>,
}

/// Calls that began to wait, by limit and dimension.
type Bound = BTreeMap<(Arc<str>, &'static str), u64>;

/// What is noted while virtual time goes by.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) now: u64,
    pub(super) ended_at: u64,
    granted_until: u64,
    interval_micros: u64,
    /// In milliseconds, by priority.
    waits: [Vec<u32>; 3],
    /// By priority.
    refused: [u64; 3],
    refusals: BTreeMap<String, u64>,
    binds: Bound,
    intervals: Vec<(Interval, Bound)>,
    levels: Levels,
}

impl Notes {
    pub(super) fn new(span_micros: u64, limits: Vec<Limit>) -> Self {
        Self {
            now: 0,
            ended_at: 0,
            granted_until: 0,
            interval_micros: (span_micros / INTERVALS).max(1_000_000),
            waits: Default::default(),
            refused: [0; 3],
            refusals: BTreeMap::new(),
            binds: BTreeMap::new(),
            intervals: Vec::new(),
            levels: Levels::new(limits),
        }
    }

    /// The interval that `now` is in; where there get to be too many, two become one.
    fn interval(&mut self, now: u64) -> &mut (Interval, Bound) {
        while now / self.interval_micros >= 2 * INTERVALS {
            self.interval_micros *= 2;
            self.levels.join();
            let old = std::mem::take(&mut self.intervals);
            for (number, (interval, binds)) in old.into_iter().enumerate() {
                if number % 2 == 0 {
                    self.intervals.push((interval, binds));
                } else if let Some((into, all)) = self.intervals.last_mut() {
                    join(into, &interval);
                    binds.into_iter().for_each(|(what, calls)| *all.entry(what).or_default() += calls);
                }
            }
        }
        let at = usize::try_from(now / self.interval_micros).unwrap_or(usize::MAX);
        if self.intervals.len() <= at {
            self.intervals.resize_with(at + 1, Default::default);
        }
        &mut self.intervals[at]
    }

    pub(super) fn granted(&mut self, now: u64, waited_micros: u64, arrival: &Arrival, subject: &Subject) {
        let class = arrival.priority.index();
        self.waits[class].push(u32::try_from(waited_micros / 1000).unwrap_or(u32::MAX));
        self.granted_until = now;
        let (interval, _) = self.interval(now);
        interval.requests += 1;
        interval.tokens += arrival.cost.input_tokens + arrival.output_tokens;
        let waited = waited_micros as f64 / 1e6;
        interval.wait_seconds[class] = Some(interval.wait_seconds[class].map_or(waited, |other| other.max(waited)));
        self.levels.charge(arrival, subject, now / self.interval_micros);
    }

    pub(super) fn refused(&mut self, priority: Priority, reason: &'static str) {
        self.refused[priority.index()] += 1;
        *self.refusals.entry(reason.to_owned()).or_default() += 1;
    }

    pub(super) fn bound(&mut self, now: u64, limit: &Arc<str>, dimension: Option<Dimension>) {
        let what = (limit.clone(), dimension.map_or("breaker", Dimension::name));
        *self.binds.entry(what.clone()).or_default() += 1;
        *self.interval(now).1.entry(what).or_default() += 1;
    }

    pub(super) fn plan(mut self, calls: u64) -> Plan {
        let mut all: Vec<u32> = self.waits.concat();
        let refused = self.refused.iter().sum();
        let mut by_priority = BTreeMap::new();
        for ((priority, millis), refused) in Priority::ALL.into_iter().zip(&mut self.waits).zip(self.refused) {
            if !millis.is_empty() || refused > 0 {
                by_priority.insert(priority.name(), waits(millis, refused));
            }
        }
        let mut histogram: Vec<(Option<f64>, u64)> =
            ROWS.iter().map(|bound| (Some(*bound).filter(|bound| bound.is_finite()), 0)).collect();
        for wait in &all {
            let row = ROWS.iter().position(|bound| f64::from(*wait) / 1000.0 <= *bound).unwrap_or(ROWS.len() - 1);
            histogram[row].1 += 1;
        }
        let mut binds: Vec<Binding> = self
            .binds
            .iter()
            .map(|((limit, dimension), calls)| Binding {
                limit: limit.to_string(),
                dimension: (*dimension).to_owned(),
                calls: *calls,
            })
            .collect();
        binds.sort_by_key(|binding| std::cmp::Reverse(binding.calls));
        let used = self.levels.used(self.granted_until, self.intervals.len(), self.interval_micros);
        let interval_seconds = self.interval_micros as f64 / 1e6;
        let intervals = (0_u32..).zip(self.intervals).map(|(number, (interval, binds))| {
            let most = binds.into_iter().max_by_key(|(_, calls)| *calls);
            let binds = most.map(|((limit, dimension), _)| format!("{limit} {dimension}")).unwrap_or_default();
            Interval { at_seconds: f64::from(number) * interval_seconds, binds, ..interval }
        });
        Plan {
            calls,
            refused,
            refusals: self.refusals,
            makespan_seconds: self.ended_at as f64 / 1e6,
            all: waits(&mut all, refused),
            by_priority,
            histogram,
            used,
            binds,
            interval_seconds,
            intervals: intervals.collect(),
        }
    }
}

fn join(into: &mut Interval, other: &Interval) {
    into.requests += other.requests;
    into.tokens += other.tokens;
    for (mine, theirs) in into.wait_seconds.iter_mut().zip(other.wait_seconds) {
        *mine = match (*mine, theirs) {
            (Some(mine), Some(theirs)) => Some(mine.max(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }
}

fn waits(millis: &mut [u32], refused: u64) -> Waits {
    millis.sort_unstable();
    let at = |share: f64| {
        let place = (millis.len() as f64 * share).ceil() as usize;
        millis.get(place.saturating_sub(1)).map_or(0.0, |millis| f64::from(*millis) / 1000.0)
    };
    Waits {
        calls: millis.len() as u64,
        refused,
        p50_seconds: at(0.5),
        p95_seconds: at(0.95),
        p99_seconds: at(0.99),
        max_seconds: at(1.0),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spoken = |seconds: f64| Spoken(Duration::from_secs_f64(seconds)).to_string();
        let done = spoken(self.makespan_seconds);
        writeln!(
            f,
            "{} calls, {} refused, done after {done}, if all limits are unused at first",
            self.calls, self.refused
        )?;
        for (reason, calls) in &self.refusals {
            writeln!(f, "  refused: {calls} for {reason}")?;
        }
        writeln!(f, "\npriority     went  refused      p50      p95      p99      max   (waits of those that went)")?;
        for priority in Priority::ALL.into_iter().rev().map(Priority::name) {
            let Some(waits) = self.by_priority.get(priority) else { continue };
            let Waits { calls, refused, p50_seconds, p95_seconds, p99_seconds, max_seconds } = *waits;
            let [p50, p95, p99, max] = [p50_seconds, p95_seconds, p99_seconds, max_seconds].map(spoken);
            writeln!(f, "{priority:<8} {calls:8} {refused:8} {p50:>8} {p95:>8} {p99:>8} {max:>8}")?;
        }
        writeln!(f, "\nwaited")?;
        let most = self.histogram.iter().map(|(_, calls)| *calls).max().unwrap_or(0).max(1);
        for (bound, calls) in &self.histogram {
            let bound = match bound {
                Some(bound) if *bound < 0.01 => "not at all".to_owned(),
                Some(bound) => format!("≤ {bound} s"),
                None => "longer".to_owned(),
            };
            let bar = "█".repeat((calls * 40).div_ceil(most) as usize);
            writeln!(f, "{bound:>10} {calls:8} {bar}")?;
        }
        for used in &self.used {
            let Used { limit, dimension, units, percent, .. } = used;
            write!(f, "\nused: {percent:5.1} % of {limit} {dimension} ({units}){}", used.whose())?;
        }
        for binding in &self.binds {
            write!(f, "\nbinds: {} {} made {} calls wait", binding.limit, binding.dimension, binding.calls)?;
        }
        Ok(())
    }
}
