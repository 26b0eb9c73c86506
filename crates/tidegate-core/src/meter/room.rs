//! Decides whether a call fits into what a meter has left, and if not, what stands in the way and for how long.
//!
//! Looks only: nothing is taken here, and who goes first is for others to say.

use super::{Kind, Meter};
use crate::bucket::{Fit, as_level};
use crate::call::Priority;
use crate::queue::LaneId;
use crate::time::{Time, Wait};

/// Where nothing follows, no more than one part in so many of what waits is kept as a margin: the last calls leave none.
const LAST_MARGIN_PART: u64 = 2;
/// Of the refill of a level below its reserve, lower classes get one part in so many: they are never shut out, and it still fills.
const LOWER_PART: u64 = 8;
/// How soon to look again where another call's earmark is due already.
const EARMARK_DUE_MICROS: u64 = 1000;
/// An earmark that was not used within this of its instant binds nobody: what it was worked out from has changed.
const EARMARK_GRACE_MICROS: u64 = 10_000;

/// Room that the oldest bypassed call has been promised: others may pass only where they cannot delay it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Earmark {
    pub(crate) lane: LaneId,
    pub(crate) at: Time,
    pub(crate) cost: u64,
}

impl Earmark {
    pub(crate) fn is_over(&self, now: Time) -> bool {
        now > self.at.plus_micros(EARMARK_GRACE_MICROS)
    }
}

/// What a meter says to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MeterSays {
    Room,
    /// Not for so long, and why.
    Wait(Wait, Obstacle),
    Never,
}

/// What stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is not enough left.
    Shortage,
    /// What there would be is kept free for higher classes.
    Reserve,
    /// There is, but it has been promised to another.
    Earmark,
}

impl Meter {
    #[inline]
    pub(super) fn plain_fit(&self, cost: u64, floor: u64, now: Time) -> Fit {
        match &self.kind {
            Kind::Bucket(bucket) => bucket.fit(cost, floor),
            Kind::Window(window) => window.fit(cost, floor, now),
            Kind::Credit(credit) => credit.fit(cost, now),
            Kind::Gauge { limit, .. } if cost > *limit => Fit::Never,
            Kind::Gauge { used, limit } if used.saturating_add(cost).saturating_add(floor) <= *limit => Fit::Now,
            Kind::Gauge { .. } => Fit::Later(Wait::UNTIL_EVENT),
        }
    }

    /// Units that grants must leave of it at `now`, whoever asks.
    #[inline]
    fn margin(&self, now: Time) -> u64 {
        let margin = match &self.correction {
            Some(correction) => self.margin.saturating_add(correction.margin(now)),
            None => self.margin,
        };
        if !self.is_last {
            return margin;
        }
        let waiting = self.backlog.iter().fold(0, |sum: u64, units| sum.saturating_add(*units));
        margin.min(waiting / LAST_MARGIN_PART)
    }

    /// Units that a call of `class` must leave for higher classes that were active lately.
    #[inline]
    pub(crate) fn reserve(&self, class: Priority, share_permille: u64, cost: u64, now: Time) -> u64 {
        // What is kept of a shared level is its keeper's to keep.
        let is_own = !matches!(self.kind, Kind::Credit(_));
        if share_permille == 0 || !is_own || class == Priority::High || !self.reserve.is_kept_from(class, now) {
            return 0;
        }
        // A call that needs more than the rest still goes when the level is full.
        self.whole_reserve(share_permille).min(self.capacity().saturating_sub(cost))
    }

    /// The reserve for the lowest class that waits here. 0: nobody waits, or nothing is kept from them.
    pub(crate) fn kept_from_who_waits(&self, share_permille: u64, now: Time) -> u64 {
        self.lot.lowest().map_or(0, |class| self.reserve(class, share_permille, 0, now))
    }

    fn whole_reserve(&self, share_permille: u64) -> u64 {
        let capacity = self.capacity();
        capacity / 1000 * share_permille + capacity % 1000 * share_permille / 1000
    }

    /// Notes whether the level holds what is kept for higher classes.
    #[inline]
    pub(crate) fn note_reserve(&mut self, share_permille: u64, now: Time) {
        if share_permille > 0 && self.reserve.is_shared() && self.dimension.period_micros().is_some() {
            self.reserve.note(self.level(), self.whole_reserve(share_permille), now);
        }
    }

    /// Whether what is left after `cost` is half of the whole reserve at least. Of credit nobody is promised any: never.
    pub(crate) fn leaves_of_reserve(&self, cost: u64, share_permille: u64) -> bool {
        match self.kind {
            Kind::Gauge { .. } => true,
            Kind::Credit(_) => false,
            Kind::Bucket(_) | Kind::Window(_) => {
                self.level().saturating_sub(as_level(cost)) >= as_level(self.whole_reserve(share_permille) / 2)
            }
        }
    }

    /// How long until a lower class has its part of the refill since it last took something. 0: it has.
    pub(crate) fn lower_part_in(&self, cost: u64, now: Time) -> u64 {
        let flow = cost.saturating_mul(LOWER_PART);
        let micros = match &self.kind {
            Kind::Bucket(bucket) => bucket.micros_to_refill(flow),
            Kind::Window(window) => {
                let period = self.dimension.period_micros().unwrap_or(0);
                let micros = u128::from(flow) * u128::from(period) / u128::from(window.limit().max(1));
                u64::try_from(micros).unwrap_or(u64::MAX)
            }
            Kind::Credit(_) | Kind::Gauge { .. } => return u64::MAX,
        };
        self.reserve.lower_at().plus_micros(micros).micros_since(now)
    }

    /// The common case, in few steps: nothing is laid on top of the level, and there is enough of it.
    #[inline(always)]
    fn has_room_at_once(&self, cost: u64, now: Time) -> bool {
        let is_plain = !self.blocked & self.enforce & self.earmark.is_none() & !self.reserve.is_shared();
        if !is_plain || self.paused_until > now {
            return false;
        }
        match &self.kind {
            Kind::Bucket(bucket) => {
                cost <= bucket.limit() && bucket.level() >= as_level(cost.saturating_add(self.margin(now)))
            }
            Kind::Gauge { used, limit } => used.saturating_add(cost) <= *limit,
            Kind::Window(_) | Kind::Credit(_) => false,
        }
    }

    /// Whether `cost` may be taken by a call of `class` that waits in `lane` (if it does).
    ///
    /// `reserve_permille`: the share kept for higher classes; 0 where that does not apply.
    // Asked of every level of every call: called as a function it takes a tenth more of a decision's instructions.
    #[inline(always)]
    pub(crate) fn says(
        &self,
        cost: u64,
        class: Priority,
        lane: Option<LaneId>,
        reserve_permille: u64,
        now: Time,
    ) -> MeterSays {
        if self.has_room_at_once(cost, now) {
            return MeterSays::Room;
        }
        if self.blocked {
            return if self.enforce { MeterSays::Never } else { MeterSays::Room };
        }
        if !self.enforce {
            return MeterSays::Room;
        }
        let margin = self.margin(now);
        let reserve = self.reserve(class, reserve_permille, cost.saturating_add(margin), now);
        let fit = self.plain_fit(cost, margin.saturating_add(reserve), now);
        let says = match fit {
            Fit::Never => return MeterSays::Never,
            Fit::Now if self.earmark.is_none() => MeterSays::Room,
            Fit::Now => self.past_earmark(cost, lane, now),
            Fit::Later(wait) if reserve == 0 => MeterSays::Wait(wait, Obstacle::Shortage),
            Fit::Later(wait) => {
                let part_in = self.lower_part_in(cost, now);
                match self.plain_fit(cost, margin, now) {
                    Fit::Now if part_in == 0 => self.past_earmark(cost, lane, now),
                    Fit::Now => MeterSays::Wait(wait.min(Wait::from_micros(part_in)), Obstacle::Reserve),
                    // Its part is due: the others do not take what it waits for.
                    Fit::Later(short) if part_in == 0 => MeterSays::Wait(short, Obstacle::Shortage),
                    Fit::Later(short) => {
                        MeterSays::Wait(wait.min(short.max(Wait::from_micros(part_in))), Obstacle::Reserve)
                    }
                    Fit::Never => MeterSays::Never,
                }
            }
        };
        if self.paused_until <= now {
            return says;
        }
        let paused = Wait::from_micros(self.paused_until.micros_since(now));
        match says {
            MeterSays::Wait(wait, obstacle) if wait > paused => MeterSays::Wait(wait, obstacle),
            _ => MeterSays::Wait(paused, Obstacle::Shortage),
        }
    }

    /// Whether taking `cost` now leaves what another has been promised.
    fn past_earmark(&self, cost: u64, lane: Option<LaneId>, now: Time) -> MeterSays {
        let Some(earmark) = self.earmark else { return MeterSays::Room };
        if lane == Some(earmark.lane) || earmark.is_over(now) {
            return MeterSays::Room;
        }
        let then = earmark.at.max(now);
        let left = match &self.kind {
            Kind::Bucket(bucket) => {
                let mut after = bucket.clone();
                after.charge(cost);
                after.level_at(then)
            }
            Kind::Window(window) => window.level_at(then).saturating_sub(as_level(cost)),
            Kind::Credit(_) | Kind::Gauge { .. } => return MeterSays::Room,
        };
        if left >= as_level(earmark.cost.min(self.capacity())) {
            return MeterSays::Room;
        }
        let wait = earmark.at.micros_since(now).max(EARMARK_DUE_MICROS);
        MeterSays::Wait(Wait::from_micros(wait), Obstacle::Earmark)
    }

    /// What an earmark for `cost` must keep: the cost and the margin that its grant will have to leave.
    pub(crate) fn to_earmark(&self, cost: u64, now: Time) -> u64 {
        cost.saturating_add(self.margin(now))
    }

    /// How long until all that waits and `cost` would have gone at a call of this class's turn. O(1); an estimate.
    ///
    /// `ahead`: units that go before it. `None`: not known (calls in flight end when they end; only a pause has a known end).
    pub(crate) fn predicted_wait_micros(&self, ahead: u64, cost: u64, now: Time) -> Option<u64> {
        let needed = ahead.saturating_add(cost);
        let paused = self.paused_until.micros_since(now);
        let wait = match &self.kind {
            Kind::Gauge { .. } | Kind::Credit(_) => return (paused > 0).then_some(paused),
            Kind::Bucket(bucket) => bucket.micros_until(needed.saturating_add(self.margin(now))),
            Kind::Window(window) => {
                let limit = window.limit().max(1);
                let whole = (needed.saturating_sub(1)) / limit;
                let rest = needed - whole * limit;
                let first = match window.fit(rest.max(1), 0, now) {
                    Fit::Later(wait) => wait.micros(),
                    Fit::Now | Fit::Never => 0,
                };
                // All that go before have to keep to the burst too.
                first.saturating_add(whole.saturating_mul(window.bin_micros() * 242)).max(window.paced_micros(needed))
            }
        };
        Some(wait.max(paused))
    }
}
