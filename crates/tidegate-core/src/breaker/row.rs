//! Decides whether failures came in a row, one after the other as the calls were sent, not as they ended; and what was sent beside them.
//!
//! Failures end sooner than calls that are answered. Of a hundred calls sent together the five that fail are known first, and
//! are no row; five sent one after the other, which all failed, are.

use smallvec::SmallVec;

use super::TENANTS;

/// Failing calls that are looked at, where more than so many are wanted in a row.
const KEPT: usize = 32;

/// Calls that say nothing, of which the numbers are kept.
const IGNORED: usize = 64;

/// The failures since the last success.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    failures: u32,
    /// The numbers of the failed calls that were sent last, in order.
    sent: SmallVec<[u32; 8]>,
    tenants: SmallVec<[u64; TENANTS]>,
    /// Calls that ended meanwhile and said nothing of the service: their numbers, the last of them.
    ignored: SmallVec<[u32; TENANTS]>,
}

impl Row {
    /// The call with this number failed. Of the failed calls the last `wanted` are looked at.
    pub(super) fn failed(&mut self, number: u32, tenant: u64, wanted: u32) {
        self.failures = self.failures.saturating_add(1);
        let place = self.sent.partition_point(|other| *other < number);
        self.sent.insert(place, number);
        if self.sent.len() > usize::try_from(wanted).unwrap_or(KEPT).clamp(1, KEPT) {
            self.sent.remove(0);
        }
        if !self.tenants.contains(&tenant) && self.tenants.len() < TENANTS {
            self.tenants.push(tenant);
        }
    }

    /// The call with this number said nothing of the service: it does not break the row.
    pub(super) fn ignored(&mut self, number: u32) {
        if self.ignored.len() >= IGNORED {
            self.ignored.remove(0);
        }
        self.ignored.push(number);
    }

    /// Failures since the last success.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Tenants whose calls failed.
    pub(super) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// Whether `wanted` calls failed in a row. At most as many others were sent between them, which may yet end well.
    pub(super) fn is_long(&self, wanted: u32) -> bool {
        let (Some(first), Some(last)) = (self.sent.first(), self.sent.last()) else { return false };
        let between = self.ignored.iter().filter(|number| (first..=last).contains(number)).count();
        let sent = last.wrapping_sub(*first).saturating_add(1);
        let sent = sent.saturating_sub(u32::try_from(between).unwrap_or(u32::MAX));
        let failed = u32::try_from(self.sent.len()).unwrap_or(u32::MAX);
        self.failures >= wanted && sent <= failed.saturating_mul(2)
    }
}

/// The calls that were sent beside those that failed: since the first failure of the current bin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside {
    /// The number of that failing call.
    since: Option<u32>,
    /// Those sent from it on that have ended.
    ended: u32,
}

impl Beside {
    /// The call with this number, whose end has been told to [`Beside::ended`], failed.
    pub(super) fn failed(&mut self, number: u32) {
        if self.since.is_none() {
            *self = Self { since: Some(number), ended: 1 };
        }
    }

    /// The call with this number ended.
    pub(super) fn ended(&mut self, number: u32) {
        if self.since.is_some_and(|since| number >= since) {
            self.ended = self.ended.saturating_add(1);
        }
    }

    /// Of `sent` calls in all, those that have not ended.
    pub(super) fn under_way(self, sent: u32) -> u32 {
        let Some(since) = self.since else { return 0 };
        sent.wrapping_sub(since).saturating_add(1).saturating_sub(self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_of(numbers: impl IntoIterator<Item = u32>) -> Row {
        let mut row = Row::default();
        numbers.into_iter().for_each(|number| row.failed(number, 1, 5));
        row
    }

    #[test]
    fn calls_sent_one_after_the_other_are_a_row_in_whatever_order_they_fail() {
        assert!(row_of([4, 1, 3, 2, 5]).is_long(5));
        assert!(!row_of(1..=4).is_long(5));
    }

    #[test]
    fn every_twentieth_of_a_herd_is_no_row_although_nothing_else_has_ended() {
        assert!(!row_of((1..=100).map(|number| number * 20)).is_long(5));
    }

    #[test]
    fn a_call_that_was_sent_long_ago_does_not_hide_the_row_that_follows() {
        assert!(row_of([1, 101, 102, 103, 104, 105]).is_long(5));
    }

    #[test]
    fn calls_that_say_nothing_do_not_break_a_row_and_make_none() {
        let scattered = || row_of([10, 20, 30, 40, 50]);
        let mut row = scattered();
        assert!(!row.is_long(5));
        (11..20).chain(21..30).chain(31..40).chain(41..50).for_each(|number| row.ignored(number));
        assert!(row.is_long(5), "nothing else was sent between them");
        let mut row = scattered();
        (51..151).for_each(|number| row.ignored(number));
        assert!(!row.is_long(5), "those came after");
    }
}
