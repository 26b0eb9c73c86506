//! Decides what is told of the last minute: to whoever looks for the first time too, and to all of them the same.
//!
//! How the counters stand is noted once a second, off the way of calls; what came within the minute is the difference to now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::metrics::{REFUSAL_REASONS, Totals};
use crate::shared::Shared;

/// So far back it looks.
const SPAN: Duration = Duration::from_secs(60);
/// By up to so much it may be more.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How the counters stood, the oldest first: one that is a minute old, or the gateway's start, and those after it.
#[derive(Debug)]
pub(crate) struct LastMinute(Mutex<VecDeque<(Instant, Totals)>>);

/// What came within it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Came {
    /// Less than 60 only while the gateway is younger than that; at least 1.
    seconds: u64,
    /// That ended, however they did.
    calls: u64,
    refused: u64,
    /// Of those refused, by why; what nobody was refused for is left out.
    reasons: BTreeMap<&'static str, u64>,
    retries: u64,
    /// Answers 429 of upstreams.
    too_many_requests: u64,
}

impl LastMinute {
    /// Of a gateway that starts now.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(VecDeque::from([(Instant::now(), Totals::default())])))
    }

    /// Notes how the counters stand again and again, until the gateway is gone.
    pub(crate) fn keep_noting(shared: &Arc<Shared>) {
        tokio::spawn(note(Arc::downgrade(shared)));
    }

    fn note(&self, now: Instant, totals: Totals) {
        let mut noted = self.lock();
        noted.push_back((now, totals));
        while noted.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= SPAN) {
            noted.pop_front();
        }
    }

    /// What came within the minute before `now`, when the counters stand at `totals`.
    pub(crate) fn came(&self, now: Instant, totals: &Totals) -> Came {
        let noted = self.lock();
        let start = (now, totals.clone());
        let (since, before) = noted.front().unwrap_or(&start);
        let reasons = REFUSAL_REASONS.into_iter().zip(totals.refused.iter().zip(&before.refused));
        let reasons = reasons.map(|(reason, (now, before))| (reason, now.saturating_sub(*before)));
        let reasons: BTreeMap<_, _> = reasons.filter(|(_, calls)| *calls > 0).collect();
        Came {
            seconds: now.duration_since(*since).min(SPAN).as_secs().max(1),
            calls: totals.calls.saturating_sub(before.calls),
            refused: reasons.values().sum(),
            reasons,
            retries: totals.retries.saturating_sub(before.retries),
            too_many_requests: totals.too_many_requests.saturating_sub(before.too_many_requests),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Totals)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn note(shared: Weak<Shared>) {
    let mut notes = tokio::time::interval(NOTE_EVERY);
    notes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        notes.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.last_minute.note(Instant::now(), shared.metrics.totals());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(calls: u64) -> Totals {
        let mut totals = Totals { calls, retries: calls / 2, too_many_requests: calls / 4, ..Totals::default() };
        totals.refused[0] = calls;
        totals
    }

    #[tokio::test]
    async fn what_is_older_than_a_minute_is_not_told_and_not_kept() {
        let minute = LastMinute::new();
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let young = minute.came(at(12), &totals(40));
        let reasons = BTreeMap::from([("limit", 40)]);
        assert_eq!(
            young,
            Came { seconds: 12, calls: 40, refused: 40, reasons, retries: 20, too_many_requests: 10 },
            "since the start"
        );
        for second in 1..=600 {
            minute.note(at(second), totals(second * 4));
        }
        let came = minute.came(at(600), &totals(600 * 4 + 4));
        assert_eq!((came.seconds, came.calls, came.retries), (60, 60 * 4 + 4, 122));
        assert!(minute.lock().len() <= 62, "{} are kept", minute.lock().len());
    }

    #[tokio::test]
    async fn who_looks_at_once_does_not_divide_by_nothing() {
        let minute = LastMinute::new();
        let came = minute.came(Instant::now(), &Totals::default());
        assert_eq!((came.seconds, came.calls, came.reasons.len()), (1, 0, 0));
    }
}
