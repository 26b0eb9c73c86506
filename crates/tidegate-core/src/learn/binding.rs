//! Judges which dimension an upstream refuses for, where neither headers nor its refusals say so.
//!
//! A refusal marks an instant at which some bucket of the upstream was empty, so that what it admitted between two of them
//! flowed in: of the dimension that binds as much as the time between takes, to a call's worth, and of the other one what
//! the calls that happened to come asked for. The dimension whose flow was even binds. Where calls are all alike both are
//! even, and it does not matter which is paced. Holds no rate in force and no level.

use smallvec::SmallVec;

use crate::time::Time;

/// Refusals nearer together than this are one.
const APART_MICROS: u64 = 5_000_000;
/// So many refusals are kept.
const MARKS: usize = 9;
/// After so long without a refusal a bucket may have been full for a while, and some of what flowed in was lost.
const KEPT_MICROS: u64 = 120_000_000;
/// Fewer times between refusals than this say nothing.
const FEW_SPANS: usize = 3;
/// A refused request takes nothing of the limit, or what is left of a request, or a whole one.
const REFUSED_COUNT: [f64; 3] = [0.0, 0.5, 1.0];
/// One flow is even beside another one that is so many times less so …
const EVEN_FACTOR: f64 = 3.0;
/// … and by more than what two calls that come at another instant make, in squares of a call.
const CHANCE: f64 = 2.0;

/// A refusal: when its call was sent, and what had gone by then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) sent_at: Time,
    /// Requests and tokens admitted.
    pub(crate) admitted: [u64; 2],
    /// Requests sent, those refused included: they count too, or some of each does.
    pub(crate) sent: u64,
}

/// The refusals of one account and model group that said nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Binding {
    marks: SmallVec<[Mark; 0]>,
}

impl Binding {
    /// A refusal that says nothing. `current`: the dimension taken to bind so far, 0 for requests and 1 for tokens.
    ///
    /// Returns the rate a minute of the other one, if that binds.
    pub(crate) fn refused(&mut self, current: usize, mark: Mark) -> Option<u64> {
        if let Some(last) = self.marks.last() {
            let since = mark.sent_at.micros_since(last.sent_at);
            if since < APART_MICROS {
                return None;
            }
            if since > KEPT_MICROS {
                self.marks.clear();
            }
        }
        if self.marks.len() == MARKS {
            self.marks.remove(0);
        }
        self.marks.push(mark);
        if self.marks.len() <= FEW_SPANS {
            return None;
        }
        let requests = REFUSED_COUNT.map(|share| self.off(0, share)).into_iter().reduce(f64::min)?;
        let tokens = self.off(1, 0.0);
        let (taken, other) = if current == 0 { (requests, tokens) } else { (tokens, requests) };
        (taken > EVEN_FACTOR * other + CHANCE).then(|| self.rate(1 - current, 0.0) as u64).filter(|rate| *rate > 0)
    }

    /// Units a minute, from the first mark to the last.
    fn rate(&self, which: usize, refused_count: f64) -> f64 {
        let (Some(first), Some(last)) = (self.marks.first(), self.marks.last()) else { return 0.0 };
        60e6 * first.until(last, which, refused_count) / last.sent_at.micros_since(first.sent_at).max(1) as f64
    }

    /// How far what went in each span was off what the time takes, in calls, squared, in all.
    fn off(&self, which: usize, refused_count: f64) -> f64 {
        let rate = self.rate(which, refused_count);
        let each = if which == 0 { 1.0 } else { rate / self.rate(0, 0.0).max(f64::MIN_POSITIVE) };
        let spans = self.marks.iter().zip(&self.marks[1..]);
        let off = spans.map(|(from, to)| {
            let flowed = rate * to.sent_at.micros_since(from.sent_at) as f64 / 60e6;
            ((from.until(to, which, refused_count) - flowed) / each.max(f64::MIN_POSITIVE)).powi(2)
        });
        off.sum()
    }
}

impl Mark {
    /// Units that went until a later one, a share of those refused included.
    fn until(&self, to: &Self, which: usize, refused_count: f64) -> f64 {
        let admitted = to.admitted[which].wrapping_sub(self.admitted[which]) as f64;
        let sent = to.sent.wrapping_sub(self.sent) as f64;
        admitted + if which == 0 { refused_count * (sent - admitted) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refusals after calls of these sizes went, each span as long as its calls take where `binds` does: 60 requests or 60,000
    /// tokens a minute.
    fn judged(current: usize, binds: usize, spans: &[&[u64]]) -> Option<u64> {
        let mut binding = Binding::default();
        let (mut at, mut admitted) = (Time::from_secs(1000), [0; 2]);
        let mut found = binding.refused(current, Mark { sent_at: at, admitted, sent: admitted[0] });
        for sizes in spans {
            let tokens: u64 = sizes.iter().sum();
            let calls = sizes.len() as u64;
            admitted = [admitted[0] + calls, admitted[1] + tokens];
            at = at.plus_micros([calls * 1_000_000, tokens * 1000][binds]);
            found = found.or(binding.refused(current, Mark { sent_at: at, admitted, sent: admitted[0] }));
        }
        found
    }

    const LARGE: &[u64] = &[2000; 10];
    const SMALL: &[u64] = &[500; 20];

    #[test]
    fn requests_bind_where_their_flow_is_even_and_that_of_tokens_is_not() {
        assert_eq!(judged(1, 0, &[LARGE, SMALL, LARGE, SMALL]), Some(60));
    }

    #[test]
    fn tokens_bind_where_their_flow_is_even_and_that_of_requests_is_not() {
        assert_eq!(judged(0, 1, &[LARGE, SMALL, LARGE, SMALL]), Some(60_000));
    }

    #[test]
    fn what_was_taken_to_bind_stays_so_where_it_does() {
        assert_eq!(judged(1, 1, &[LARGE, SMALL, LARGE, SMALL]), None);
        assert_eq!(judged(0, 0, &[LARGE, SMALL, LARGE, SMALL]), None);
    }

    #[test]
    fn calls_that_are_all_alike_say_nothing_of_which_binds() {
        assert_eq!(judged(1, 0, &[LARGE; 8]), None);
        assert_eq!(judged(0, 1, &[LARGE; 8]), None);
    }
}
