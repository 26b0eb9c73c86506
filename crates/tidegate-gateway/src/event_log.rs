//! Decides what of the core's events is logged: throttles, retries, breakers, and what works worse than it should.
//!
//! Of what calls bring about only so many lines a second, since a flood of them is told by its first lines and by how many followed.

use std::time::Instant;

use tidegate_watch::audit::{Kind, Record};
use tracing::Level;

use crate::flood::{Sample, WINDOW};

/// Logs what the audit trail has records of.
#[derive(Debug)]
pub(crate) struct EventLog {
    throttles: Sample,
    retries: Sample,
    /// Apart from other changes: those that matter most must find room.
    openings: Sample,
    changes: Sample,
    missed: Missed,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            throttles: Sample::new(Level::INFO, "calls were held or refused"),
            retries: Sample::new(Level::INFO, "retries were scheduled, succeeded or gave up"),
            openings: Sample::new(Level::WARN, "times a circuit breaker opened"),
            changes: Sample::new(Level::INFO, "times a circuit breaker changed its state"),
            missed: Missed::default(),
        }
    }
}

impl EventLog {
    /// Logs a record, if it is worth a line and there are not too many of them.
    pub(crate) fn tell(&mut self, record: &Record, now: Instant) {
        if !self.may_tell(record, now) {
            return;
        }
        match record.kind {
            Kind::Throttle => throttle(record),
            Kind::Retry => retry(record),
            Kind::Breaker => breaker(record),
            Kind::Degradation => {
                tracing::warn!(times = record.numbers.get("times"), "{}", record.what);
            }
            Kind::Anomaly => {
                let (caller, pattern) = (record.tenant.as_deref(), record.why.as_deref());
                tracing::warn!(caller, pattern, count = record.numbers.get("count"), "{}", record.what);
            }
            // Operators' own doing, and what is logged where it happens.
            _ => {}
        }
    }

    fn may_tell(&mut self, record: &Record, now: Instant) -> bool {
        match record.kind {
            Kind::Throttle => self.throttles.may_tell(now),
            Kind::Retry => self.retries.may_tell(now),
            // What an operator does comes singly, and is told whatever else happens.
            Kind::Breaker if record.what == "forced" => true,
            Kind::Breaker if opens(record) => self.openings.may_tell(now),
            Kind::Breaker => self.changes.may_tell(now),
            _ => true,
        }
    }

    /// So many events came faster than they could be taken: logged once a second, for all of it.
    pub(crate) fn missed(&mut self, events: u64, now: Instant) {
        self.missed.events += events;
        self.tell_missed(now);
    }

    fn tell_missed(&mut self, now: Instant) {
        if let Some(events) = self.missed.take(now) {
            tracing::warn!(
                "{events} events came faster than they could be taken: they are missing in logs, series and audit trail"
            );
        }
    }

    /// Says how many lines were left out, once a second has passed since.
    pub(crate) fn tell_rest(&mut self, now: Instant) {
        self.tell_missed(now);
        for sample in [&mut self.throttles, &mut self.retries, &mut self.openings, &mut self.changes] {
            sample.tell_rest(now);
        }
    }

    /// Whether lines were left out of which nothing has been said.
    pub(crate) const fn has_rest(&self) -> bool {
        let breakers = self.openings.left_out() + self.changes.left_out();
        self.throttles.left_out() + self.retries.left_out() + breakers + self.missed.events > 0
    }
}

/// Events that were missed, and not told of yet.
#[derive(Debug, Default)]
struct Missed {
    told_at: Option<Instant>,
    events: u64,
}

impl Missed {
    /// All of them, if it is time to tell of them.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let is_early = self.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < WINDOW);
        if is_early || self.events == 0 {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.events))
    }
}

fn throttle(record: &Record) {
    tracing::info!(
        call = record.call.as_deref(),
        tenant = record.tenant.as_deref(),
        user = record.user.as_deref(),
        target = record.target.as_deref(),
        limit = record.limit.as_deref(),
        reason = record.why.as_deref(),
        allowed = record.numbers.get("allowed"),
        used = record.numbers.get("used"),
        requested = record.numbers.get("requested"),
        waited_ms = millis(record, "waited_us"),
        retry_after_ms = millis(record, "retry_after_us"),
        "call {}",
        record.what
    );
}

fn retry(record: &Record) {
    tracing::info!(
        call = record.call.as_deref(),
        tenant = record.tenant.as_deref(),
        target = record.target.as_deref(),
        fault = record.why.as_deref(),
        attempt = record.numbers.get("attempt").or_else(|| record.numbers.get("attempts")),
        delay_ms = millis(record, "delay_us"),
        reason = record.after.as_deref(),
        "retry {}",
        record.what
    );
}

fn opens(record: &Record) -> bool {
    record.after.as_deref().is_some_and(|to| to.ends_with("open") && to != "half_open")
}

fn breaker(record: &Record) {
    let (breaker, from, to) = (record.target.as_deref(), record.before.as_deref(), record.after.as_deref());
    let why = record.why.as_deref();
    if opens(record) {
        tracing::warn!(breaker, from, to, why, "circuit breaker opened");
    } else {
        tracing::info!(breaker, from, to, why, "circuit breaker changed its state");
    }
}

fn millis(record: &Record, name: &str) -> Option<f64> {
    record.numbers.get(name).map(|micros| *micros as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_of_breakers_only_some_are_told_and_all_that_an_operator_forces() {
        let mut log = EventLog::default();
        let now = Instant::now();
        let change =
            |what: &'static str, after: &str| Record { after: Some(after.into()), ..Record::new(Kind::Breaker, what) };
        let mut told =
            |what, after, times: usize| (0..times).filter(|_| log.may_tell(&change(what, after), now)).count();
        assert_eq!(told("changed", "half_open", 100), 10);
        assert_eq!(told("changed", "open", 100), 10, "they have room of their own");
        assert_eq!((told("forced", "forced_open", 30), told("forced", "closed", 30)), (30, 30));
        assert_eq!((log.changes.left_out(), log.openings.left_out(), log.has_rest()), (90, 90, true));
        log.tell_rest(now + WINDOW);
        assert!(!log.has_rest());
    }

    #[test]
    fn missed_events_are_told_of_once_a_second_and_all_of_them() {
        let mut missed = Missed::default();
        let start = Instant::now();
        let at = |tenths: u32| start + WINDOW * tenths / 10;
        let told = (0..25).filter_map(|tenths| {
            missed.events += 1;
            missed.take(at(tenths))
        });
        assert_eq!(told.collect::<Vec<_>>(), [1, 10, 10]);
        assert_eq!((missed.take(at(30)), missed.take(at(40))), (Some(4), None));
    }
}
