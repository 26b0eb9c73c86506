//! Decides what of the core's events is logged: throttles, retries, breakers, and what works worse than it should.
//!
//! Of what calls bring about only so many lines a second, since a flood of them is told by its first lines and by how many followed.

use std::time::{Duration, Instant};

use tidegate_watch::audit::{Kind, Record};

/// So many lines of one kind …
const LINES_MAX: u32 = 10;
/// … in so long.
const WINDOW: Duration = Duration::from_secs(1);

/// Logs what the audit trail has records of.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    throttles: Sample,
    retries: Sample,
    missed: Missed,
}

impl EventLog {
    /// Logs a record, if it is worth a line and there are not too many of them.
    pub(crate) fn tell(&mut self, record: &Record, now: Instant) {
        match record.kind {
            Kind::Throttle => {
                tell_rest(self.throttles.roll(now), "calls were held or refused");
                if self.throttles.may_tell() {
                    throttle(record);
                }
            }
            Kind::Retry => {
                tell_rest(self.retries.roll(now), "retries were scheduled, succeeded or gave up");
                if self.retries.may_tell() {
                    retry(record);
                }
            }
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
        tell_rest(self.throttles.roll(now), "calls were held or refused");
        tell_rest(self.retries.roll(now), "retries were scheduled, succeeded or gave up");
    }

    /// Whether lines were left out of which nothing has been said.
    pub(crate) const fn has_rest(&self) -> bool {
        self.throttles.left_out + self.retries.left_out + self.missed.events > 0
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

/// How many lines there were in the present window.
#[derive(Debug, Default)]
struct Sample {
    began_at: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Sample {
    /// Begins another window if this one is over; how many lines were left out of it.
    fn roll(&mut self, now: Instant) -> u64 {
        if self.began_at.is_some_and(|began_at| now.saturating_duration_since(began_at) < WINDOW) {
            return 0;
        }
        let left_out = self.left_out;
        *self = Self { began_at: Some(now), told: 0, left_out: 0 };
        left_out
    }

    fn may_tell(&mut self) -> bool {
        self.told += 1;
        if self.told > LINES_MAX {
            self.left_out += 1;
        }
        self.told <= LINES_MAX
    }
}

fn tell_rest(left_out: u64, what: &str) {
    if left_out > 0 {
        tracing::info!("{left_out} more {what}; of such only {LINES_MAX} a second are logged one by one");
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

fn breaker(record: &Record) {
    let (breaker, from, to) = (record.target.as_deref(), record.before.as_deref(), record.after.as_deref());
    if to.is_some_and(|to| to.ends_with("open") && to != "half_open") {
        tracing::warn!(breaker, from, to, "circuit breaker opened");
    } else {
        tracing::info!(breaker, from, to, "circuit breaker changed its state");
    }
}

fn millis(record: &Record, name: &str) -> Option<f64> {
    record.numbers.get(name).map(|micros| *micros as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_the_first_lines_are_told_and_how_many_followed() {
        let mut sample = Sample::default();
        let start = Instant::now();
        assert_eq!(sample.roll(start), 0);
        assert_eq!((0..100).filter(|_| sample.may_tell()).count(), LINES_MAX as usize);
        assert_eq!(sample.roll(start + WINDOW / 2), 0, "not before the second is over");
        assert_eq!(sample.roll(start + WINDOW), 90);
        assert!(sample.may_tell());
        assert_eq!(sample.roll(start + 2 * WINDOW), 0, "nothing was left out");
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
