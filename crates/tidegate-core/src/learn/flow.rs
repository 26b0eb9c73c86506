//! Counts what an upstream has let through: the evidence from which a rate is worked out where nobody tells it.

use crate::time::Time;

/// Length of a bin.
const BIN_MICROS: u64 = 5_000_000;
/// Bins kept: a minute.
const BINS: usize = 12;
/// After so long without a call an upstream's bucket is taken to be full again.
const IDLE_MICROS: u64 = 60_000_000;
/// A guess from a shorter time than this is none.
const RELIES_AFTER_MICROS: u128 = 15_000_000;

/// Units of one dimension that were sent and not refused.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    sent: u64,
    refused: u64,
    /// Since when it has been busy, and what had been admitted by then.
    busy_since: Time,
    before: u64,
    sent_at: Time,
    bins: [u64; BINS],
    bin: u64,
    bin_ends_at: Time,
}

impl Flow {
    /// Units were sent.
    #[inline]
    pub(crate) fn sent(&mut self, units: u64, now: Time) {
        if now.micros_since(self.sent_at) > IDLE_MICROS {
            self.busy_since = now;
            self.before = self.admitted();
        }
        self.sent_at = now;
        self.sent = self.sent.wrapping_add(units);
        if now >= self.bin_ends_at {
            self.roll(now);
        }
        let bin = &mut self.bins[slot(self.bin)];
        *bin = bin.saturating_add(units);
    }

    /// Of what was sent, so much was refused.
    pub(crate) fn refused(&mut self, units: u64, now: Time) {
        self.refused = self.refused.wrapping_add(units);
        self.roll(now);
        let bin = &mut self.bins[slot(self.bin)];
        *bin = bin.saturating_sub(units);
    }

    fn roll(&mut self, now: Time) {
        let bin = now.as_micros() / BIN_MICROS;
        for passed in (self.bin + 1)..=bin.min(self.bin.saturating_add(BINS as u64)) {
            self.bins[slot(passed)] = 0;
        }
        if bin > self.bin {
            // After a long silence every bin is empty, whichever numbers they had.
            if bin - self.bin > BINS as u64 {
                self.bins = [0; BINS];
            }
            self.bin = bin;
            self.bin_ends_at = Time::from_micros((bin + 1) * BIN_MICROS);
        }
    }

    /// Units sent so far, refused or not; only differences mean something.
    pub(crate) fn total_sent(&self) -> u64 {
        self.sent
    }

    /// Of `sent` units, as they stood at some instant, those that have not been refused as far as is known now.
    pub(crate) fn admitted_of(&self, sent: u64) -> u64 {
        sent.wrapping_sub(self.refused)
    }

    fn admitted(&self) -> u64 {
        self.admitted_of(self.sent)
    }

    /// Units admitted in the last minute.
    pub(crate) fn in_last_minute(&mut self, now: Time) -> u64 {
        self.roll(now);
        self.bins.iter().sum()
    }

    /// Units a minute, as they went in the last minute or since it began to be busy.
    pub(crate) fn per_minute(&mut self, now: Time) -> u64 {
        // The last of the bins has only begun.
        let counted = BIN_MICROS * (BINS as u64 - 1) + now.as_micros() % BIN_MICROS;
        let busy = now.micros_since(self.busy_since).clamp(BIN_MICROS, counted);
        let units = u128::from(self.in_last_minute(now));
        u64::try_from(units * 60_000_000 / u128::from(busy)).unwrap_or(u64::MAX)
    }

    /// Units that had gone since it began to be busy, when `admitted` had gone in all.
    pub(crate) fn busy_with(&self, admitted: u64) -> u64 {
        admitted.wrapping_sub(self.before)
    }

    /// The limit a minute of a bucket that was full when this began to be busy, and is empty now that
    /// `admitted` have gone; and whether that was long enough ago to rely on it, if the bucket was full.
    pub(crate) fn limit_if_empty(&self, admitted: u64, now: Time) -> (u64, bool) {
        let units = u128::from(self.busy_with(admitted));
        let busy = u128::from(now.micros_since(self.busy_since));
        let limit = u64::try_from(units * 60_000_000 / (60_000_000 + busy)).unwrap_or(u64::MAX);
        (limit, busy >= RELIES_AFTER_MICROS)
    }
}

fn slot(bin: u64) -> usize {
    usize::try_from(bin % BINS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_was_full_and_is_empty_now_tells_its_limit() {
        let mut flow = Flow::default();
        let start = Time::from_secs(1000);
        // 60 a minute: the full bucket and what flowed in within 30 s.
        (0..=30).for_each(|second| flow.sent(3, start + std::time::Duration::from_secs(second)));
        flow.refused(3, start + std::time::Duration::from_secs(30));
        assert_eq!(flow.limit_if_empty(flow.admitted(), start + std::time::Duration::from_secs(30)), (60, true));
    }

    #[test]
    fn what_went_more_than_a_minute_ago_is_not_of_the_last_minute() {
        let mut flow = Flow::default();
        flow.sent(100, Time::from_secs(1000));
        flow.sent(7, Time::from_secs(1055));
        assert_eq!(flow.in_last_minute(Time::from_secs(1055)), 107);
        assert_eq!(flow.in_last_minute(Time::from_secs(1062)), 7);
        assert_eq!(flow.in_last_minute(Time::from_secs(5000)), 0);
    }

    #[test]
    fn what_went_within_seconds_is_told_as_what_would_go_in_a_minute() {
        let mut flow = Flow::default();
        let start = Time::from_secs(1000);
        (0..20).for_each(|second| flow.sent(2, start + std::time::Duration::from_secs(second)));
        assert_eq!(flow.per_minute(start + std::time::Duration::from_secs(20)), 120);
        (20..300).for_each(|second| flow.sent(2, start + std::time::Duration::from_secs(second)));
        assert_eq!(flow.per_minute(start + std::time::Duration::from_secs(300)), 120);
    }
}
