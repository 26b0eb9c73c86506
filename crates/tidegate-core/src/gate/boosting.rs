//! Decides what a limit allows while an operator has raised it, and that this ends by itself.
//!
//! A boost multiplies what `[limit.NAME]` says; it forgives nothing that was used, and lifts nothing that an upstream told: what was
//! learned binds beside it. Of several for one level the strongest holds; they do not multiply.

use std::sync::Arc;

use super::{Gate, Timer};
use crate::call::Subject;
use crate::event::Event;
use crate::limit::{Limit, Scope, glob_matches};
use crate::time::Time;

/// A configured limit that is raised for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boost {
    /// As in `[limit.NAME]`.
    pub limit: Arc<str>,
    /// Its allowances and its burst, in thousandths: 1500 is half as much again. Less than 1000 changes nothing.
    pub permille: u32,
    /// Which of its levels: every one whose key fits all of these, names or globs as in overrides of limits. Empty: all of them.
    pub matching: Vec<(Scope, Arc<str>)>,
    /// When it ends, on the gate's clock.
    pub until: Time,
}

impl Boost {
    /// Whether it raises what `limit` allows `subject`.
    pub(crate) fn raises(&self, limit: &Limit, subject: &Subject) -> bool {
        let fits = |(scope, pattern): &(Scope, Arc<str>)| {
            limit.per.contains(scope) && glob_matches(pattern, scope.of(subject))
        };
        self.limit == limit.name && self.matching.iter().all(fits)
    }
}

impl Gate {
    /// What operators decided has other boosts than before.
    pub(super) fn take_over_boosts(&mut self) {
        self.ledger.boosts.clone_from(&self.overrides.boosts);
        // Those that are over already end here, and are told of.
        self.end_boosts();
    }

    /// Ends the boosts whose time is over.
    #[cold]
    pub(super) fn end_boosts(&mut self) {
        let now = self.clock;
        let (over, rest) = std::mem::take(&mut self.ledger.boosts).into_iter().partition(|boost| boost.until <= now);
        self.ledger.boosts = rest;
        let end_at = self.ledger.boosts.iter().map(|boost| boost.until).min().unwrap_or(Time::NEVER);
        if std::mem::replace(&mut self.boosts_end_at, end_at) != end_at && end_at < Time::NEVER {
            self.set_timer(end_at, Timer::Boost);
        }
        self.resolve_routes();
        self.ledger.lower_untouched(now);
        for Boost { limit, .. } in over as Vec<Boost> {
            self.emit(|| Event::BoostEnded { limit });
        }
    }
}
