//! Decides how much of a level is kept from lower classes for higher ones, and until when.
//!
//! A share of the level is kept while a higher class has been active lately. Higher classes that take more of it than a burst
//! (beyond what flows in meanwhile) are no interactive traffic beside bulk work but bulk work themselves: then nothing is put
//! aside anew, so that no part of the limit lies idle while there is work, and the classes' shares decide who goes.
//! Never decides whether there is room (`meter` does).

use crate::call::Priority;
use crate::time::Time;

/// How long a higher class counts as active after its last call; and how long a reserve that was spent is not filled again.
const ACTIVE_FOR_MICROS: u64 = 600_000_000;
/// A burst of higher classes above one part in so many of the reserve is more than interactive traffic.
const BURST_PART: u64 = 2;

/// What is kept from one class for those above it.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// The level has held all of the reserve since that was last spent.
    stands: bool,
    spent_until: Time,
    /// Units that higher classes took beyond what flowed in meanwhile.
    drawn: u64,
    drawn_at: Time,
}

/// The reserve of one meter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reserve {
    active_until: [Time; 3],
    /// Classes that were ever here, a bit each: with one alone there is nothing to keep.
    seen: u8,
    /// When a lower class last took something while a higher one was active.
    lower_at: Time,
    /// Kept from `Low`, and from `Normal`.
    kept: [Kept; 2],
}

impl Reserve {
    /// A call of `class` was here, whether or not it has gone.
    pub(crate) fn mark_active(&mut self, class: Priority, now: Time) {
        self.active_until[class.index()] = now.plus_micros(ACTIVE_FOR_MICROS);
        self.seen |= 1 << class.index();
    }

    /// True if several classes were ever here.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.seen.count_ones() > 1
    }

    /// A call of `class` took `cost` of a level into which `inflow` units flow in `inflow_micros`.
    #[inline]
    pub(crate) fn charged(&mut self, class: Priority, cost: u64, (inflow, inflow_micros): (u64, u64), now: Time) {
        self.mark_active(class, now);
        if !self.is_shared() {
            return;
        }
        if self.is_above_active(class, now) {
            self.lower_at = now;
        }
        for lower in 0..class.index() {
            // Without anybody to keep it from there is nothing to count.
            if self.active_until[lower] > now {
                let kept = &mut self.kept[lower];
                let elapsed = now.micros_since(kept.drawn_at);
                let flowed = u128::from(elapsed) * u128::from(inflow) / u128::from(inflow_micros.max(1));
                kept.drawn = kept.drawn.saturating_sub(u64::try_from(flowed).unwrap_or(u64::MAX)).saturating_add(cost);
                kept.drawn_at = now;
            }
        }
    }

    fn is_above_active(&self, class: Priority, now: Time) -> bool {
        self.active_until[class.index() + 1..].iter().any(|until| *until > now)
    }

    /// Whether calls of `class` leave the reserve to higher ones.
    #[inline]
    pub(crate) fn is_kept_from(&self, class: Priority, now: Time) -> bool {
        // What is kept from a class is kept from those below it too: else they would go before it.
        let from = |class: &Priority| self.is_above_active(*class, now) && self.kept[class.index()].spent_until <= now;
        self.is_shared() && [Priority::Low, Priority::Normal].iter().filter(|kept| **kept >= class).any(from)
    }

    /// When a lower class last took something while a higher one was active.
    pub(crate) fn lower_at(&self) -> Time {
        self.lower_at
    }

    /// Compares what is left with the whole reserve: is it there, or has it been spent?
    #[inline]
    pub(crate) fn note(&mut self, level: i64, whole: u64, now: Time) {
        for kept in &mut self.kept {
            if kept.stands && kept.drawn > whole / BURST_PART {
                kept.spend(now);
            } else if !kept.stands && kept.spent_until <= now && level >= crate::bucket::as_level(whole) {
                *kept = Kept { stands: true, spent_until: Time::ZERO, drawn: 0, drawn_at: now };
            }
        }
    }
}

impl Kept {
    fn spend(&mut self, now: Time) {
        self.stands = false;
        self.spent_until = now.plus_micros(ACTIVE_FOR_MICROS);
    }
}
