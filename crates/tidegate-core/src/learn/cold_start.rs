//! Decides how many calls may be in flight while nothing is known of the upstream's limits.
//!
//! 8 at first, doubled by the first 8 good replies, 8 more for each second without any; lifted when limits become known. Where
//! those replies told none, nothing but a refusal will, and it must not be met by a herd: from then on a half more for each
//! round of replies.

use crate::time::Time;

/// Calls in flight at first.
const FIRST: u64 = 8;
/// Good replies that double it at first, and what a silent second adds.
const STEP: u64 = 8;
/// Beyond this the bound has no meaning.
const LIFTED_ABOVE: u64 = 8192;

/// The bound for one account and model group.
#[derive(Clone, Debug)]
pub(crate) struct ColdStart {
    cap: u64,
    good: u64,
    counted_at: Time,
}

impl ColdStart {
    pub(crate) fn new(now: Time) -> Self {
        Self { cap: FIRST, good: 0, counted_at: now }
    }

    /// Calls that may be in flight now. `None`: lifted.
    pub(crate) fn cap(&mut self, now: Time) -> Option<u64> {
        let silent = now.micros_since(self.counted_at) / 1_000_000;
        if silent > 0 {
            self.cap = self.cap.saturating_add(silent.saturating_mul(STEP));
            self.counted_at = self.counted_at.plus_micros(silent.saturating_mul(1_000_000));
        }
        (self.cap <= LIFTED_ABOVE).then_some(self.cap)
    }

    /// A call went well.
    pub(crate) fn good_reply(&mut self, now: Time) {
        self.cap(now);
        self.counted_at = now;
        self.good += 1;
        if self.good == STEP {
            self.cap = self.cap.saturating_mul(2);
        } else if self.good > STEP && self.good.is_multiple_of(2) {
            self.cap += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_good_replies_double_it_and_a_silent_second_adds_eight() {
        let mut start = ColdStart::new(Time::ZERO);
        assert_eq!(start.cap(Time::ZERO), Some(8));
        for _ in 0..8 {
            start.good_reply(Time::from_micros(1));
        }
        assert_eq!(start.cap(Time::from_micros(1)), Some(16));
        assert_eq!(start.cap(Time::from_micros(1_000_001)), Some(24));
        assert_eq!(start.cap(Time::from_micros(3_000_001)), Some(40));
    }

    #[test]
    fn a_round_of_replies_that_told_nothing_adds_a_half() {
        let mut start = ColdStart::new(Time::ZERO);
        (0..8).for_each(|_| start.good_reply(Time::ZERO));
        (0..16).for_each(|_| start.good_reply(Time::ZERO));
        assert_eq!(start.cap(Time::ZERO), Some(24));
        (0..24).for_each(|_| start.good_reply(Time::ZERO));
        assert_eq!(start.cap(Time::ZERO), Some(36));
    }

    #[test]
    fn it_is_lifted_when_it_has_outgrown_any_meaning() {
        let mut start = ColdStart::new(Time::ZERO);
        assert_eq!(start.cap(Time::from_secs(100_000)), None);
    }
}
