//! Decides how many calls may be in flight while nothing is known of the upstream's limits, or has only just become known.
//!
//! 8 at first, one more for each good reply (so that each round of replies doubles it), 8 more for each second without any.
//! Where 16 replies told no limit, nothing but a refusal will, and it must not be met by a herd: from then on each second
//! reply adds one. A limit that becomes known does not let everybody go at once either, as it may be enforced over a second,
//! which a herd would meet as one: from then on as many are added as may have gone at the start (`start`), and four seconds
//! later nothing is bounded any more.

use std::time::Duration;

use crate::start::worth_at_start;
use crate::time::Time;

/// Calls in flight at first.
const FIRST: u64 = 8;
/// What a silent second adds.
const STEP: u64 = 8;
/// Good replies after which one that tells limits is not expected any more.
const TELLING: u64 = 16;
/// Beyond this the bound has no meaning.
const LIFTED_ABOVE: u64 = 8192;
/// Lifted so long after the limits became known …
const LIFTED_AFTER: Duration = Duration::from_secs(4);
/// … and so long after a wait that nothing accounts for.
const BACK_AFTER: Duration = Duration::from_secs(10);

/// The bound for one account and model group.
#[derive(Clone, Debug)]
pub(crate) struct ColdStart {
    cap: u64,
    good: u64,
    counted_at: Time,
    /// When a limit became known, and by how many calls a second the bound grows from then on.
    told: Option<(Time, u64)>,
    /// It was told to stay away: it comes back at half as much again as flows in.
    is_back: bool,
}

impl ColdStart {
    pub(crate) fn new(now: Time) -> Self {
        Self { cap: FIRST, good: 0, counted_at: now, told: None, is_back: false }
    }

    /// After a wait that ends at `now`, of a limit that lets so many calls a second flow.
    pub(crate) fn coming_back(per_second: u64, now: Time) -> Self {
        Self { told: Some((now, per_second)), is_back: true, ..Self::new(now) }
    }

    /// Calls that may be in flight now. `None`: lifted.
    pub(crate) fn cap(&mut self, now: Time) -> Option<u64> {
        let silent = now.micros_since(self.counted_at) / 1_000_000;
        if silent > 0 {
            self.cap = self.cap.saturating_add(silent.saturating_mul(STEP));
            self.counted_at = self.counted_at.plus_micros(silent.saturating_mul(1_000_000));
        }
        let mut cap = self.cap;
        if let Some((at, per_second)) = self.told {
            let since = Duration::from_micros(now.micros_since(at));
            let (lifted_after, worth) =
                if self.is_back { (BACK_AFTER, since * 3 / 2) } else { (LIFTED_AFTER, worth_at_start(since)) };
            if since >= lifted_after {
                return None;
            }
            let flowed = u128::from(per_second) * worth.as_micros() / 1_000_000;
            cap = cap.max(FIRST.saturating_add(u64::try_from(flowed).unwrap_or(u64::MAX)));
        }
        (cap <= LIFTED_ABOVE).then_some(cap)
    }

    /// A call went well.
    pub(crate) fn good_reply(&mut self, now: Time) {
        self.cap(now);
        self.counted_at = now.max(self.counted_at);
        self.good += 1;
        if self.told.is_none() && (self.good <= TELLING || self.good.is_multiple_of(2)) {
            self.cap += 1;
        }
    }

    /// Nothing goes before `until`: that silence adds nothing.
    pub(crate) fn paused(&mut self, until: Time) {
        self.counted_at = until.max(self.counted_at);
    }

    /// A limit became known that lets so many calls a second flow. Of several the lowest counts, from when the first was told.
    pub(crate) fn told(&mut self, per_second: u64, now: Time) {
        let (_, grows) = self.told.get_or_insert((now, u64::MAX));
        *grows = per_second.min(*grows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_good_replies_doubles_it_and_a_silent_second_adds_eight() {
        let mut start = ColdStart::new(Time::ZERO);
        assert_eq!(start.cap(Time::ZERO), Some(8));
        (0..8).for_each(|_| start.good_reply(Time::from_micros(1)));
        assert_eq!(start.cap(Time::from_micros(1)), Some(16));
        assert_eq!(start.cap(Time::from_micros(1_000_001)), Some(24));
        assert_eq!(start.cap(Time::from_micros(3_000_001)), Some(40));
    }

    #[test]
    fn replies_that_tell_nothing_add_a_half_for_each_round() {
        let mut start = ColdStart::new(Time::ZERO);
        (0..16).for_each(|_| start.good_reply(Time::ZERO));
        assert_eq!(start.cap(Time::ZERO), Some(24));
        (0..24).for_each(|_| start.good_reply(Time::ZERO));
        assert_eq!(start.cap(Time::ZERO), Some(36));
    }

    #[test]
    fn the_lowest_limit_that_becomes_known_bounds_how_fast_it_grows() {
        let mut start = ColdStart::new(Time::ZERO);
        (0..20).for_each(|_| start.good_reply(Time::ZERO));
        start.told(1000, Time::ZERO);
        start.told(100, Time::ZERO);
        start.told(500, Time::ZERO);
        assert_eq!(start.cap(Time::ZERO), Some(26));
        (0..26).for_each(|_| start.good_reply(Time::ZERO));
        assert_eq!(start.cap(Time::ZERO), Some(26), "however soon replies come");
        assert_eq!(start.cap(Time::from_micros(1_000_000)), Some(158));
        assert_eq!(start.cap(Time::from_secs(10)), None);
    }

    #[test]
    fn it_is_lifted_when_it_has_outgrown_any_meaning() {
        let mut start = ColdStart::new(Time::ZERO);
        assert_eq!(start.cap(Time::from_secs(100_000)), None);
    }
}
