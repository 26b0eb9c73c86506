//! What came of one row, and in what it is worse than it may be.

use std::fmt;

use crate::rows::Bounds;
use crate::run::CALLERS;

/// What came of one row.
#[derive(Default)]
pub(crate) struct Report {
    /// Of what was available, in per cent.
    pub(crate) used: f64,
    pub(crate) too_many: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) came_early: u64,
    pub(crate) sent_while_open: u64,
    /// (all, those that waited)
    pub(crate) interactive: Option<(u64, u64)>,
}

impl Report {
    pub(crate) fn misses(&self, Bounds(used, too_many): Bounds) -> impl Iterator<Item = String> {
        let all = [
            (self.used < used, format!("used {:.1} % of what was available, not {used}", self.used)),
            (self.too_many > too_many, format!("met {} 429s, not at most {too_many}", self.too_many)),
            (self.served == 0, "served nobody".to_owned()),
            (
                self.too_many > self.failed + self.served + CALLERS as u64,
                format!("met {} 429s, more than one for each call", self.too_many),
            ),
            (self.interactive.is_some_and(|(all, waited)| waited * 2 > all), "let interactive calls wait".to_owned()),
            (self.came_early > 0, format!("sent {} before a told wait was over", self.came_early)),
            (self.sent_while_open > 0, format!("sent {} to an open breaker", self.sent_while_open)),
        ];
        all.into_iter().filter_map(|(is_missed, miss)| is_missed.then_some(miss))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, too_many, served, failed, came_early, sent_while_open, interactive } = self;
        write!(f, "{used:>6.1} % {too_many:>6} {served:>7} {failed:>7} {came_early:>6} {sent_while_open:>5}")?;
        match interactive {
            Some((all, waited)) => write!(f, "   {waited} of {all} interactive calls waited"),
            None => Ok(()),
        }
    }
}
