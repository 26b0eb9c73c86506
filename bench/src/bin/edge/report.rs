//! What came of one row, and in what it is worse than it may be.

use std::fmt;

use crate::rows::Bounds;
use crate::run::CALLERS;

/// So many calls may be on their way when a wait is told and reach the simulator after the 50 ms that it grants: none did on an idle
/// machine, up to seven where two other processes kept both cores busy.
const ON_THEIR_WAY: u64 = 15;

/// What came of one row.
#[derive(Default)]
pub(crate) struct Report {
    /// Of what was available, in per cent.
    pub(crate) used: f64,
    /// What flowed in vain into a full bucket while calls waited, in per cent of the same.
    pub(crate) held_back: f64,
    pub(crate) too_many: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    /// Calls of which an attempt failed that was worth a retry, and those of them that ended well.
    pub(crate) failed_once: u64,
    pub(crate) mended: u64,
    pub(crate) came_early: u64,
    pub(crate) sent_while_open: u64,
    /// (all, those that waited)
    pub(crate) interactive: Option<(u64, u64)>,
}

impl Report {
    /// In what it is wrong, however busy the machine is.
    pub(crate) fn wrongs(&self) -> impl Iterator<Item = String> {
        let all = [
            (self.served == 0, "served nobody".to_owned()),
            (
                self.too_many > self.failed + self.served + CALLERS as u64,
                format!("met {} 429s, more than one for each call", self.too_many),
            ),
            (
                self.came_early > ON_THEIR_WAY,
                format!("sent {} before a told wait was over, not at most {ON_THEIR_WAY}", self.came_early),
            ),
            (self.sent_while_open > 0, format!("sent {} to an open breaker", self.sent_while_open)),
        ];
        those(all)
    }

    /// In what it is worse than the row may be.
    pub(crate) fn misses(&self, bounds: Bounds) -> impl Iterator<Item = String> {
        let Bounds { used, too_many, held_back, mended, waited } = bounds;
        let ended_well =
            format!("ended {} of {} well that met a failure, not {mended} %", self.mended, self.failed_once);
        let all = [
            (self.used < used, format!("used {:.1} % of what was available, not {used}", self.used)),
            (self.too_many > too_many, format!("met {} 429s, not at most {too_many}", self.too_many)),
            (self.held_back > held_back, format!("held {:.1} % back, not at most {held_back}", self.held_back)),
            ((self.mended as f64) < mended / 100.0 * self.failed_once as f64, ended_well),
            (
                self.interactive.is_some_and(|(_, those)| those > waited),
                format!("let more than {waited} interactive calls wait"),
            ),
        ];
        those(all)
    }
}

fn those<const N: usize>(all: [(bool, String); N]) -> impl Iterator<Item = String> {
    all.into_iter().filter_map(|(holds, text)| holds.then_some(text))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            used, held_back, too_many, served, failed, failed_once, mended, came_early, sent_while_open, ..
        } = self;
        let ended_well = format!("{mended}/{failed_once}");
        write!(f, "{used:>6.1} % {held_back:>7.2} % {too_many:>6} {served:>7} {failed:>7} {ended_well:>11}")?;
        write!(f, " {came_early:>6} {sent_while_open:>5}")?;
        match self.interactive {
            Some((all, waited)) => write!(f, "   {waited} of {all} interactive calls waited"),
            None => Ok(()),
        }
    }
}
