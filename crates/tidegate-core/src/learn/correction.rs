//! Decides how a mirror level is corrected when a reply says what the server has left.
//!
//! "Remaining less what is in flight" looks right and wastes 8 to 26 %, because nobody knows which of the calls in flight
//! the server has seen. What is compared instead is the server's remaining with our own level *when that call was sent*,
//! allowing for charges within half a second of it in either order.

use std::collections::VecDeque;

use crate::time::Time;

/// Calls sent within this of each other may reach the server in either order.
const REORDER_MICROS: u64 = 500_000;
/// Length of a bin of the charge history.
const BIN_MICROS: u64 = 62_500;
/// Bins kept: 128 s. A reply to a call sent before that corrects nothing.
const BINS: usize = 2048;
/// The level is raised only when every reply for so long …
const EXCESS_FOR_MICROS: u64 = 10_000_000;
/// … and so many of them said that there is more.
const EXCESS_REPLIES: usize = 16;
/// Others' use is averaged over so many seconds, and expected to go on.
const OTHERS_SECONDS: usize = 15;
/// One part in so many of the refill, unexplained, is much.
const MUCH_PART: i64 = 3;
/// Raises one upon the other, nothing having been less than expected between them, that make a limit larger than told …
const RAISES_MIN: u32 = 5;
/// … if there was no longer time between two of them.
const RAISES_WITHIN_MICROS: u64 = 20_000_000;
/// The safety margin that 429s add halves in this time.
const MARGIN_HALVES_MICROS: u64 = 240_000_000;

/// What a reservation notes about a mirror level, to be compared when its reply comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The level just after the charge.
    pub(crate) level: i64,
    /// Sum of the corrections so far.
    pub(crate) fix: i64,
    /// Sum of the charges so far, this one included.
    pub(crate) charged: u64,
    /// This call's own charge.
    pub(crate) own: u64,
}

/// What a reply said, and of which call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// When the call was sent.
    pub(crate) sent_at: Time,
    /// What the server has left.
    pub(crate) remaining: u64,
    /// The reply was a 429, which only ever lowers.
    pub(crate) refused: bool,
}

/// The correction state of one mirror level.
#[derive(Clone, Debug)]
pub(crate) struct Correction {
    /// Sum of the corrections so far.
    fix: i64,
    /// Sum of the charges so far.
    charged: u64,
    /// `charged` at the end of each bin.
    history: Box<[u64]>,
    history_from: Time,
    current_bin: u64,
    /// How far replies exceeded the expectation, while every one of them did.
    excess_since: Option<Time>,
    excesses: VecDeque<i64>,
    /// Raises since the last time that there was less than expected.
    raises: u32,
    raised_at: Time,
    newest_reply_sent_at: Time,
    /// Replies told what is left, not refusals alone.
    heard: bool,
    /// Others' use as seen, by second.
    others: [i64; OTHERS_SECONDS],
    others_second: u64,
    others_at: Time,
    others_remainder: i64,
    /// Margin added by 429s.
    margin: u64,
    margin_at: Time,
    /// No calls follow those that are there.
    is_last: bool,
}

impl Correction {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            fix: 0,
            charged: 0,
            history: Box::default(),
            history_from: Time::ZERO,
            current_bin: now.as_micros() / BIN_MICROS,
            excess_since: None,
            excesses: VecDeque::new(),
            raises: 0,
            raised_at: Time::ZERO,
            newest_reply_sent_at: Time::ZERO,
            heard: false,
            others: [0; OTHERS_SECONDS],
            others_second: now.as_micros() / 1_000_000,
            others_at: now,
            others_remainder: 0,
            margin: 0,
            margin_at: now,
            is_last: false,
        }
    }

    /// Notes a charge; `level` is what is left after it.
    #[inline]
    pub(crate) fn charged(&mut self, cost: u64, level: i64, now: Time) -> Seen {
        self.advance(now);
        self.charged = self.charged.wrapping_add(cost);
        if let Some(bin) = self.history.get_mut(slot(self.current_bin)) {
            *bin = self.charged;
        }
        Seen { level, fix: self.fix, charged: self.charged, own: cost }
    }

    fn advance(&mut self, now: Time) {
        let bin = now.as_micros() / BIN_MICROS;
        if bin <= self.current_bin {
            return;
        }
        if self.history.is_empty() {
            self.current_bin = bin;
            return;
        }
        let first = (self.current_bin + 1).max(bin.saturating_sub(BINS as u64 - 1));
        for number in first..=bin {
            self.history[slot(number)] = self.charged;
        }
        self.current_bin = bin;
    }

    /// Sum of the charges by the end of the bin of `at`. `None`: too long ago.
    fn charged_by(&self, at: Time) -> Option<u64> {
        let bin = at.as_micros() / BIN_MICROS;
        if bin >= self.current_bin {
            return Some(self.charged);
        }
        (self.current_bin - bin < BINS as u64).then(|| self.history[slot(bin)])
    }

    /// What is to be taken from the level for others' use, expected to go on as it was, since the last call. Negative: given.
    ///
    /// `per_second` is the level's refill.
    pub(crate) fn others_use(&mut self, now: Time, per_second: u64) -> i64 {
        let elapsed = now.micros_since(self.others_at);
        if elapsed == 0 {
            return 0;
        }
        self.others_at = now;
        self.roll_others(now);
        let sum: i64 = self.others.iter().sum();
        let period = OTHERS_SECONDS as i64 * 1_000_000;
        let most = (crate::bucket::as_level(per_second) / 10).saturating_mul(9 * OTHERS_SECONDS as i64);
        // A little more than expected is what others left. Much more, again and again, is a limit that is larger than told.
        if (-most / MUCH_PART..=0).contains(&sum) || sum < 0 && self.raises < RAISES_MIN {
            return 0;
        }
        let flow = i128::from(sum.clamp(-most, most)) * i128::from(elapsed) + i128::from(self.others_remainder);
        let taken = i64::try_from(flow / i128::from(period)).unwrap_or(i64::MAX);
        self.others_remainder = i64::try_from(flow % i128::from(period)).unwrap_or(0);
        self.fix = self.fix.saturating_sub(taken);
        self.note_others(taken, now);
        taken
    }

    fn roll_others(&mut self, now: Time) {
        let second = now.as_micros() / 1_000_000;
        let gone = second.saturating_sub(self.others_second);
        for passed in 1..=gone.min(OTHERS_SECONDS as u64) {
            self.others[others_slot(self.others_second + passed)] = 0;
        }
        self.others_second = self.others_second.max(second);
    }

    fn note_others(&mut self, units: i64, now: Time) {
        self.roll_others(now);
        let at = others_slot(self.others_second);
        self.others[at] = self.others[at].saturating_add(units);
    }

    /// The level was set right by other means than [`Correction::reply`].
    pub(crate) fn shifted(&mut self, change: i64) {
        self.fix = self.fix.saturating_add(change);
    }

    /// What the level must change by, now that a reply to the call noted as `seen` has come. `level` is the level now.
    pub(crate) fn reply(&mut self, seen: Seen, told: Told, level: i64, per_second: u64, now: Time) -> i64 {
        let Told { sent_at, remaining, refused } = told;
        let previous = self.newest_reply_sent_at;
        self.newest_reply_sent_at = previous.max(sent_at);
        self.heard |= !refused;
        self.advance(now);
        if self.history.is_empty() {
            // Made with the first reply: most levels of callers who come once never see one.
            self.history = vec![self.charged; BINS].into_boxed_slice();
            self.history_from = now;
        }
        let since = self.charged.wrapping_sub(seen.charged);
        let is_comparable = sent_at >= self.history_from;
        let (after, before) = if is_comparable {
            let Some(after) = self.charged_by(sent_at.plus_micros(REORDER_MICROS)) else { return 0 };
            let before_at = Time::from_micros(sent_at.as_micros().saturating_sub(REORDER_MICROS));
            let before =
                self.charged_by(before_at).map_or(0, |by| seen.charged.wrapping_sub(seen.own).wrapping_sub(by));
            (after.wrapping_sub(seen.charged), before)
        } else {
            // What went when is not known: all since then may be in the server's number.
            (since, 0)
        };
        let remaining = crate::bucket::as_level(remaining);
        let expect = seen.level.saturating_add(self.fix.saturating_sub(seen.fix));
        let low = expect.min(level).saturating_sub(crate::bucket::as_level(after));
        // The least of several replies is not the one that overtook others: where little is at stake that is certain enough.
        let allowed = if self.is_last { 0 } else { before };
        let high = expect.max(level).saturating_add(crate::bucket::as_level(allowed));
        if remaining < low {
            let less = low - remaining;
            self.raises = 0;
            self.fix = self.fix.saturating_sub(less);
            self.forget_excess();
            // A step is not a rate: one correction speaks for no more than nearly all that flowed in since the reply before.
            let flowed = per_second.saturating_mul(sent_at.micros_since(previous)) / 1_000_000;
            if self.heard {
                // Refusals alone would never say that it is over.
                self.note_others(less.min(crate::bucket::as_level(flowed.saturating_mul(9) / 10)), now);
            }
            return -less;
        }
        if refused || !is_comparable {
            return 0;
        }
        if remaining <= high {
            self.forget_excess();
            return 0;
        }
        let since = *self.excess_since.get_or_insert(now);
        self.excesses.push_back(remaining - high);
        let (replies, micros) = if self.is_last { (1, REORDER_MICROS) } else { (EXCESS_REPLIES, EXCESS_FOR_MICROS) };
        if self.excesses.len() < replies || now.micros_since(since) < micros {
            // Only the smallest matters: keep memory bounded however many replies come within the ten seconds.
            if self.excesses.len() > 2 * EXCESS_REPLIES {
                let smallest = self.excesses.drain(..=EXCESS_REPLIES).min().unwrap_or(0);
                self.excesses.push_front(smallest);
            }
            return 0;
        }
        let more = self.excesses.iter().copied().min().unwrap_or(0);
        self.forget_excess();
        let follows = now.micros_since(self.raised_at) <= RAISES_WITHIN_MICROS;
        self.raises = if follows { self.raises.saturating_add(1) } else { 1 };
        self.raised_at = now;
        self.fix = self.fix.saturating_add(more);
        self.note_others(-more, now);
        more
    }

    fn forget_excess(&mut self) {
        self.excess_since = None;
        self.excesses.clear();
    }

    /// No calls follow those that wait: what is left over after them is of no use to anybody, so that replies which say that
    /// there is more are believed as soon as they cannot be a matter of order.
    pub(crate) fn nothing_follows(&mut self) {
        self.is_last = true;
    }

    /// A 429 was met: one call more of margin, at most a tenth of the capacity.
    pub(crate) fn widen_margin(&mut self, cost: u64, capacity: u64, now: Time) {
        self.margin = self.margin(now).saturating_add(cost).min(capacity / 10);
        self.margin_at = now;
    }

    /// What grants must leave because of 429s met, halving each four minutes.
    #[inline]
    pub(crate) fn margin(&self, now: Time) -> u64 {
        if self.margin == 0 {
            return 0;
        }
        let elapsed = now.micros_since(self.margin_at);
        let halvings = elapsed / MARGIN_HALVES_MICROS;
        let halved = self.margin.checked_shr(u32::try_from(halvings).unwrap_or(64)).unwrap_or(0);
        // Between two halvings a straight line is near enough to the exponential.
        let part =
            u128::from(halved / 2) * u128::from(elapsed % MARGIN_HALVES_MICROS) / u128::from(MARGIN_HALVES_MICROS);
        halved - u64::try_from(part).unwrap_or(halved)
    }
}

fn slot(bin: u64) -> usize {
    usize::try_from(bin % BINS as u64).unwrap_or(0)
}

fn others_slot(second: u64) -> usize {
    usize::try_from(second % OTHERS_SECONDS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_SECOND: u64 = 1000;

    /// One that has had its first reply.
    fn compared_from(start: Time) -> Correction {
        let mut correction = Correction::new(start);
        correction.reply(Seen::default(), Told { sent_at: start, remaining: 0, refused: true }, 0, PER_SECOND, start);
        correction
    }

    #[test]
    fn a_server_that_has_less_than_we_thought_lowers_the_level_at_once() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        let seen = correction.charged(10, 990, start);
        let change = correction.reply(
            seen,
            Told { sent_at: start, remaining: 500, refused: false },
            990,
            PER_SECOND,
            start + std::time::Duration::from_secs(1),
        );
        assert_eq!(change, -490);
    }

    #[test]
    fn charges_sent_just_after_explain_a_lower_remaining() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        let seen = correction.charged(10, 990, start);
        correction.charged(100, 890, start.plus_micros(200_000));
        let change = correction.reply(
            seen,
            Told { sent_at: start, remaining: 890, refused: false },
            990,
            PER_SECOND,
            start.plus_micros(400_000),
        );
        assert_eq!(change, 0, "the server may have seen the second call first");
    }

    #[test]
    fn one_reply_with_more_than_expected_changes_nothing_and_ten_seconds_of_them_do() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        let mut change = 0;
        for second in 0..16_u64 {
            let now = start.plus_micros(second * 1_000_000);
            let seen = correction.charged(10, 500, now);
            assert_eq!(change, 0, "after {second} replies");
            change = correction.reply(
                seen,
                Told { sent_at: now, remaining: 700 + second, refused: false },
                500,
                PER_SECOND,
                now.plus_micros(1000),
            );
        }
        assert_eq!(change, 200);
    }

    #[test]
    fn where_nothing_follows_half_a_second_of_replies_with_more_raises_the_level() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        correction.nothing_follows();
        let changes = [0, 250_000, 500_000].map(|micros| {
            let now = start.plus_micros(micros);
            let seen = correction.charged(10, 500, now);
            let told = Told { sent_at: now, remaining: 700, refused: false };
            correction.reply(seen, told, 500, PER_SECOND, now.plus_micros(1000))
        });
        assert_eq!(changes, [0, 0, 200]);
    }

    #[test]
    fn a_refusal_never_raises_the_level() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        for second in 0..30_u64 {
            let now = start.plus_micros(second * 1_000_000);
            let seen = correction.charged(10, 500, now);
            assert_eq!(
                correction.reply(seen, Told { sent_at: now, remaining: 900, refused: true }, 500, PER_SECOND, now),
                0
            );
        }
    }

    #[test]
    fn steady_use_by_others_is_expected_to_go_on() {
        let start = Time::from_secs(1000);
        let mut correction = compared_from(start);
        let mut level = 10_000_i64;
        for second in 1..=30_u64 {
            let now = start.plus_micros(second * 1_000_000);
            level -= correction.others_use(now, PER_SECOND);
            level += 400;
            let seen = correction.charged(10, level, now);
            level += correction.reply(
                seen,
                Told { sent_at: now, remaining: (level - 400).unsigned_abs(), refused: false },
                level,
                PER_SECOND,
                now,
            );
        }
        let taken = correction.others_use(start.plus_micros(31_000_000), PER_SECOND);
        assert!((200..=900).contains(&taken), "{taken}");
    }

    #[test]
    fn the_margin_halves_each_four_minutes_and_is_bounded_by_a_tenth() {
        let start = Time::from_secs(1);
        let mut correction = compared_from(start);
        correction.widen_margin(1000, 100_000, start);
        assert_eq!(correction.margin(start), 1000);
        assert_eq!(correction.margin(start.plus_micros(240_000_000)), 500);
        assert_eq!(correction.margin(start.plus_micros(u64::MAX / 2)), 0);
        correction.widen_margin(50_000, 100_000, start);
        assert_eq!(correction.margin(start), 10_000);
    }
}
