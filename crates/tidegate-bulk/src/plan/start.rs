//! Decides when the calls of a run go at its beginning, as `ramp` does it: a few until the first reply, then ever faster.

use std::time::Duration;

use tidegate_core::start::worth_at_start;
use tidegate_core::time::micros_up;

use crate::ramp::{FIRST_CALLS, RAMP_FOR};

const SECOND: u64 = 1_000_000;

/// The beginning of one feed.
#[derive(Clone, Debug, Default)]
pub(super) struct Start {
    /// Calls and tokens that went.
    gone: [u64; 2],
    /// When the first reply came, and what had gone by then.
    rising: Option<(u64, [u64; 2])>,
}

impl Start {
    /// A call goes.
    pub(super) fn goes(&mut self, tokens: u64) {
        self.gone = [self.gone[0] + 1, self.gone[1].saturating_add(tokens)];
    }

    /// The first reply of all has come; later ones change nothing.
    pub(super) fn answered(&mut self, now: u64) {
        self.rising.get_or_insert((now, self.gone));
    }

    /// When the next call may go, which may be past. `rates`: requests and tokens a second; infinite where not limited.
    pub(super) fn next_at(&self, rates: [f64; 2]) -> u64 {
        let Some((since, from)) = self.rising else {
            return (self.gone[0] / FIRST_CALLS) * SECOND;
        };
        let worth = rates.iter().zip(self.gone).zip(from).map(|((rate, gone), from)| (gone - from) as f64 / rate);
        since + micros_until(Duration::from_secs_f64(worth.fold(0.0, f64::max)))
    }
}

/// After how long so much of a flow may have gone.
fn micros_until(worth: Duration) -> u64 {
    let (mut before, mut until) = (0, micros_up(RAMP_FOR));
    if worth > worth_at_start(Duration::from_micros(until)) {
        return until;
    }
    while before < until {
        let middle = (before + until) / 2;
        if worth_at_start(Duration::from_micros(middle)) < worth {
            before = middle + 1;
        } else {
            until = middle;
        }
    }
    until
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_calls_go_before_the_first_reply_and_then_ever_more() {
        let mut start = Start::default();
        let rates = [10.0, f64::INFINITY];
        (0..4).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 1_000_000);
        start.answered(300_000);
        assert_eq!(start.next_at(rates), 300_000);
        // Half as much again as flows in.
        (0..15).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 1_300_000);
        (0..10_000).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 4_300_000);
    }

    #[test]
    fn what_goes_when_is_what_has_gone_by_then() {
        for worth in [0, 1, 1500, 3000, 5250, 60_000].map(Duration::from_millis) {
            let micros = micros_until(worth);
            assert!(worth_at_start(Duration::from_micros(micros)) >= worth, "{worth:?}");
            assert!(micros == 0 || worth_at_start(Duration::from_micros(micros - 1)) < worth, "{worth:?}");
        }
    }
}
