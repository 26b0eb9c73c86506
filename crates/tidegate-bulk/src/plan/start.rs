//! Decides when the calls of a run go at its beginning, as `ramp` does it: a few until the first reply, then faster second by
//! second.

/// Calls before the first reply, and as many more each second.
pub(super) const FIRST_CALLS: u64 = 4;
/// After so long the pace is any.
const RAMP_MICROS: u64 = 7_000_000;
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
        let waits = rates
            .iter()
            .zip(self.gone)
            .zip(from)
            .map(|((rate, gone), from)| seconds_until((gone - from) as f64 / rate));
        let wait = waits.fold(0.0, f64::max) * SECOND as f64;
        since + (wait as u64).min(RAMP_MICROS)
    }
}

/// When a pace that begins at 1 and doubles each second has let `gone` by.
fn seconds_until(gone: f64) -> f64 {
    let whole = (gone + 1.0).log2().floor();
    whole + (gone + 1.0) / 2_f64.powf(whole) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_doubles_each_second_after_the_first_reply() {
        for (gone, seconds) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 1.5), (7.0, 3.0)] {
            assert!((seconds_until(gone) - seconds).abs() < 1e-9, "{gone}");
        }
        let mut start = Start::default();
        let rates = [10.0, f64::INFINITY];
        (0..4).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 1_000_000);
        start.answered(300_000);
        assert_eq!(start.next_at(rates), 300_000);
        (0..10).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 1_300_000);
        (0..10_000).for_each(|_| start.goes(1000));
        assert_eq!(start.next_at(rates), 7_300_000);
    }
}
