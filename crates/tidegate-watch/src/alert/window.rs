//! What happened within the last minute: the value of each signal.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::config::AlertSignal;
use tidegate_core::time::Time;

use super::sample::{Counts, Sample};
use super::spread::Spread;

/// Shares, quantiles and losses are those of the last minute.
pub const WINDOW: Duration = Duration::from_secs(60);
/// A share of fewer calls is none: 1 of 1 is no alarm. Of quantiles it takes so many that one call alone is not the quantile.
pub const CALLS_MIN: u64 = 10;
/// An alert names no more of those whom it is about.
const NAMES_MAX: usize = 10;
/// Where there are more samples than one a second, the newest in between make way.
const SAMPLES_MAX: usize = 128;

/// The samples of the last minute, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<(Time, Sample)>,
}

impl Window {
    pub(super) fn push(&mut self, now: Time, sample: Sample) {
        // The newest of those that are old enough is what the others are compared with.
        while self.samples.get(1).is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_back();
        }
        self.samples.push_back((now, sample));
    }

    /// `None`: too few calls to tell.
    pub(super) fn value(&self, signal: AlertSignal) -> Option<f64> {
        let (_, last) = self.samples.back()?;
        let (_, first) = self.samples.front()?;
        let rise = |of: fn(&Sample) -> u64| of(last).saturating_sub(of(first));
        let calls = rise(|sample| sample.calls);
        let share = |part: u64| (calls >= CALLS_MIN).then(|| part as f64 / calls as f64);
        let percentile = |of: fn(&Sample) -> &Spread, percent: u64| {
            let spread = of(last).since(of(first));
            let is_enough = spread.count() * (100 - percent) >= 100;
            spread.quantile(percent as f64 / 100.0).filter(|_| is_enough)
        };
        match signal {
            AlertSignal::BreakerOpen => Some(last.breakers_open.len() as f64),
            // Who was held ends later than it was let go: more may be held than end.
            AlertSignal::RateLimited => {
                share(rise(|sample| sample.held) + rise(|sample| sample.refused)).map(|share| share.min(1.0))
            }
            AlertSignal::Retries => share(rise(|sample| sample.retries)),
            AlertSignal::ErrorRate => share(rise(|sample| sample.errors)),
            AlertSignal::UpstreamLatency => percentile(|sample| &sample.first_byte, 95),
            AlertSignal::QueueWait => percentile(|sample| &sample.queue_wait, 95),
            AlertSignal::Overhead => percentile(|sample| &sample.overhead, 99),
            // While nothing can be written the records wait, and are not lost yet: that is worth an alarm too.
            AlertSignal::AuditFailed => {
                Some(rise(|sample| sample.audit_lost).max(u64::from(last.audit_is_down)) as f64)
            }
            AlertSignal::StoreDegraded => Some(last.stores_down as f64),
            AlertSignal::BypassSuspected => Some(last.suspected.len() as f64),
        }
    }

    /// How many audit records had been lost at its beginning, and at its end.
    pub(super) fn audit_lost(&self) -> (u64, u64) {
        let of = |sample: Option<&(Time, Sample)>| sample.map_or(0, |(_, sample)| sample.audit_lost);
        (of(self.samples.front()), of(self.samples.back()))
    }

    /// Whom a signal is about, those that most of it is about first.
    pub(super) fn about(&self, signal: AlertSignal) -> Vec<String> {
        let (Some((_, first)), Some((_, last))) = (self.samples.front(), self.samples.back()) else {
            return Vec::new();
        };
        let mut about = match signal {
            AlertSignal::BreakerOpen => last.breakers_open.clone(),
            AlertSignal::BypassSuspected => last.suspected.clone(),
            AlertSignal::RateLimited => most(&first.limited, &last.limited),
            AlertSignal::ErrorRate => most(&first.failed, &last.failed),
            _ => Vec::new(),
        };
        about.truncate(NAMES_MAX);
        about
    }
}

/// The names whose counts have risen, the most risen first.
fn most(before: &Counts, now: &Counts) -> Vec<String> {
    let rise = |(name, count): (&Arc<str>, &u64)| {
        let rise = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        (rise > 0).then(|| (Reverse(rise), name.to_string()))
    };
    let mut risen: Vec<_> = now.iter().filter_map(rise).collect();
    risen.sort_unstable();
    risen.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: &[f64] = &[1.0, 10.0];

    fn over(seconds: u64, change: impl Fn(&mut Sample)) -> Window {
        let mut window = Window::default();
        let mut sample = Sample::default();
        window.push(Time::from_secs(0), sample.clone());
        for second in 1..=seconds {
            change(&mut sample);
            window.push(Time::from_secs(second), sample.clone());
        }
        window
    }

    #[test]
    fn a_share_is_that_of_the_last_minute() {
        let mut window = over(300, |sample| {
            sample.calls += 10;
            sample.errors += 5;
            sample.refused += 2;
            sample.held += 1;
            sample.retries += 20;
        });
        assert_eq!(window.samples.len(), 61);
        let values = [AlertSignal::ErrorRate, AlertSignal::RateLimited, AlertSignal::Retries];
        assert_eq!(values.map(|signal| window.value(signal)), [Some(0.5), Some(0.3), Some(2.0)]);
        let (_, mut sample) = window.samples.back().unwrap().clone();
        for second in 301..=360 {
            sample.calls += 10;
            window.push(Time::from_secs(second), sample.clone());
        }
        assert_eq!(window.value(AlertSignal::ErrorRate), Some(0.0), "those have left the window");
    }

    #[test]
    fn who_is_most_of_it_within_the_last_minute_is_named_first() {
        let mut window = over(100, |sample| {
            *sample.limited.entry("team".into()).or_default() += 1;
            *sample.limited.entry("learned".into()).or_default() += 5;
            sample.failed.entry("openai/gpt-4o".into()).or_insert(7);
        });
        assert_eq!(window.about(AlertSignal::RateLimited), ["learned", "team"]);
        assert!(window.about(AlertSignal::ErrorRate).is_empty(), "that was before");
        let (_, mut sample) = window.samples.back().unwrap().clone();
        sample.failed.insert("azure/gpt-4o".into(), 1);
        window.push(Time::from_secs(101), sample);
        assert_eq!(window.about(AlertSignal::ErrorRate), ["azure/gpt-4o"]);
    }

    #[test]
    fn few_calls_say_nothing() {
        let few = over(9, |sample| {
            sample.calls += 1;
            sample.errors += 1;
        });
        assert_eq!(few.value(AlertSignal::ErrorRate), None);
        let spread = |count: u64| {
            over(1, move |sample| {
                sample.queue_wait = Spread::new(BOUNDS, vec![0, count, 0]);
                sample.overhead = Spread::new(BOUNDS, vec![0, count, 0]);
            })
        };
        assert_eq!(spread(19).value(AlertSignal::QueueWait), None);
        assert!(spread(20).value(AlertSignal::QueueWait).is_some());
        assert_eq!(spread(99).value(AlertSignal::Overhead), None);
        assert!(spread(100).value(AlertSignal::Overhead).is_some());
    }

    #[test]
    fn a_trail_that_is_down_counts_before_anything_is_lost() {
        let down = over(1, |sample| sample.audit_is_down = true);
        assert_eq!(down.value(AlertSignal::AuditFailed), Some(1.0));
        let lossy = over(5, |sample| sample.audit_lost += 2);
        assert_eq!(lossy.value(AlertSignal::AuditFailed), Some(10.0));
        assert_eq!(over(1, |_| ()).value(AlertSignal::AuditFailed), Some(0.0));
    }

    #[test]
    fn samples_that_come_too_often_take_no_more_room() {
        let mut window = Window::default();
        for n in 0..10_000 {
            window.push(Time::from_micros(n), Sample { calls: n, errors: n, ..Sample::default() });
        }
        assert!(window.samples.len() <= SAMPLES_MAX);
        assert_eq!(window.value(AlertSignal::ErrorRate), Some(1.0));
    }
}
