//! Decides whether one dimension of one level has room for a call, with everything that stands in its way.
//!
//! The levels themselves are in `bucket` and `window`; a meter adds what the queue and the server's answers lay on top:
//! margins, the reserve for higher classes, pauses, earmarks. Never decides who goes first (`queue` does).

use crate::bucket::{Bucket, Fit, as_level};
use crate::call::Priority;
use crate::config::LevelSource;
use crate::credit::Credit;
use crate::learn::correction::{Correction, Seen, Told};
use crate::limit::{Algorithm, Allowance, Dimension};
use crate::queue::{LaneId, Lot};
use crate::reserve::Reserve;
use crate::time::{Time, Wait};
use crate::window::Window;

/// Grants leave so much of a mirror's refill: 1/4 s, against jitter on the way.
const MARGIN_DIVISOR: u64 = 4;
/// Where nothing follows, no more than one part in so many of what waits is kept as a margin: the last calls leave none.
const LAST_MARGIN_PART: u64 = 2;
/// A limit that the server told so long ago no longer makes a request too large; it goes when the level is full.
const STALE_MICROS: u64 = 60_000_000;
/// Of the refill of a level below its reserve, lower classes get one part in so many: they are never shut out, and it still fills.
const LOWER_PART: u64 = 8;
/// How soon to look again where another call's earmark is due already.
const EARMARK_DUE_MICROS: u64 = 1000;
/// An earmark that was not used within this of its instant binds nobody: what it was worked out from has changed.
const EARMARK_GRACE_MICROS: u64 = 10_000;

/// How a meter counts.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Bucket(Bucket),
    Window(Window),
    Credit(Credit),
    Gauge { used: u64, limit: u64 },
}

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

/// One dimension of one level.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    pub(crate) kind: Kind,
    pub(crate) dimension: Dimension,
    /// Tells a reservation whether this is still the meter that it charged.
    pub(crate) epoch: u64,
    pub(crate) level: u32,
    /// False in shadow mode.
    pub(crate) enforce: bool,
    pub(crate) blocked: bool,
    pub(crate) mirror: bool,
    /// Tenants share it, so that their shares of it can be compared.
    pub(crate) shared: bool,
    /// Share of it that one unit takes, in 2^-40.
    pub(crate) share_per_unit: u64,
    margin: u64,
    /// No calls follow those that wait.
    is_last: bool,
    pub(crate) correction: Option<Box<Correction>>,
    reserve: Reserve,
    pub(crate) paused_until: Time,
    /// Until when the server's word for this limit counts; `Time::NEVER` for one that was configured.
    stale_at: Time,
    /// It was told too long ago to call a request too large for it: it may have been nonsense, or have moved.
    pub(crate) is_stale: bool,
    /// It paces calls below what the server tells.
    is_pace: bool,
    /// Calls that shadow mode would have held back.
    pub(crate) would_hold: u64,
    pub(crate) lot: Lot,
    pub(crate) earmark: Option<Earmark>,
    /// Units asked by calls that wait, by class.
    pub(crate) backlog: [u64; 3],
}

/// What a meter is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) dimension: Dimension,
    pub(crate) allowance: Allowance,
    /// The most that may go at one instant, in units of the dimension; `None`: the whole limit.
    pub(crate) burst: Option<u64>,
    pub(crate) algorithm: Algorithm,
    pub(crate) enforce: bool,
    pub(crate) mirror: bool,
    pub(crate) shared: bool,
    pub(crate) source: LevelSource,
    /// It paces calls below what the server tells: nothing that it tells corrects it, and no call is too large for it.
    pub(crate) is_pace: bool,
}

impl Spec {
    /// So many thousandths of it; never less than it.
    pub(crate) fn times(self, permille: u32) -> Self {
        let scaled = |units: u64| {
            let scaled = u128::from(units) * u128::from(permille) / 1000;
            u64::try_from(scaled).unwrap_or(u64::MAX >> 8).max(units)
        };
        let allowance = match self.allowance {
            Allowance::Units(units) => Allowance::of(scaled(units.get())).unwrap_or(self.allowance),
            other => other,
        };
        Self { allowance, burst: self.burst.map(scaled), ..self }
    }
}

impl Meter {
    pub(crate) fn new(spec: Spec, level: u32, epoch: u64, now: Time) -> Self {
        let mut meter = Self {
            kind: Kind::fresh(&spec, now),
            dimension: spec.dimension,
            epoch,
            level,
            enforce: spec.enforce,
            blocked: false,
            mirror: spec.mirror,
            shared: spec.shared,
            share_per_unit: 0,
            margin: 0,
            is_last: false,
            correction: None,
            reserve: Reserve::default(),
            paused_until: Time::ZERO,
            stale_at: Time::NEVER,
            is_stale: false,
            is_pace: spec.is_pace,
            would_hold: 0,
            lot: Lot::default(),
            earmark: None,
            backlog: [0; 3],
        };
        meter.apply(spec, now);
        meter
    }

    /// Takes over other words of the configuration; what was used stays used.
    pub(crate) fn reconfigure(&mut self, spec: Spec, now: Time) {
        let units = units(spec.allowance);
        let fresh = Kind::fresh(&spec, now);
        let (used, limit) = (used(self.limit(), self.level()), self.limit());
        match (&mut self.kind, fresh) {
            (Kind::Gauge { limit, .. }, _) => *limit = units,
            (Kind::Bucket(bucket), Kind::Bucket(_)) => bucket.reconfigure(units, spec.burst.unwrap_or(units)),
            (Kind::Window(window), Kind::Window(_)) => {
                window.reconfigure(units, spec.burst, spec.dimension.period_micros().unwrap_or(1), now);
            }
            (Kind::Credit(credit), Kind::Credit(_)) => credit.set_limit(units),
            (kind, mut fresh) => {
                match &mut fresh {
                    Kind::Bucket(bucket) => bucket.charge(used),
                    // What the others had of a shared level is not known here: it starts with what was credited.
                    Kind::Window(window) => window.charge(used.min(limit)),
                    Kind::Credit(_) | Kind::Gauge { .. } => {}
                }
                *kind = fresh;
            }
        }
        self.apply(spec, now);
    }

    fn apply(&mut self, spec: Spec, now: Time) {
        self.enforce = spec.enforce;
        self.blocked = spec.allowance == Allowance::Blocked;
        self.mirror = spec.mirror;
        self.shared = spec.shared;
        self.set_share_and_margin();
        if spec.is_pace {
            self.stale_at = Time::ZERO;
            self.margin = 0;
        } else if self.mirror && matches!(self.kind, Kind::Bucket(_)) {
            self.correction.get_or_insert_with(|| Box::new(Correction::new(now)));
        }
    }

    fn set_share_and_margin(&mut self) {
        self.share_per_unit = (1 << 40) / self.limit().max(1);
        self.margin = if self.mirror { self.per_second() / MARGIN_DIVISOR } else { 0 };
    }

    /// Follows a limit that the server announced; `level` is what it says is left.
    pub(crate) fn follow(&mut self, limit: u64, level: i64) {
        if let Kind::Bucket(bucket) = &mut self.kind {
            bucket.reconfigure(limit, limit);
            bucket.set_level(level);
            self.set_share_and_margin();
        }
    }

    /// The server told this limit at `at`.
    pub(crate) fn told(&mut self, at: Time) {
        self.stale_at = at.plus_micros(STALE_MICROS);
        self.is_stale = false;
    }

    /// Units per period.
    pub(crate) fn limit(&self) -> u64 {
        match &self.kind {
            Kind::Bucket(bucket) => bucket.limit(),
            Kind::Window(window) => window.limit(),
            Kind::Credit(credit) => credit.limit(),
            Kind::Gauge { limit, .. } => *limit,
        }
    }

    /// The most that may go at one instant.
    pub(crate) fn capacity(&self) -> u64 {
        match &self.kind {
            Kind::Bucket(bucket) => bucket.capacity().unsigned_abs(),
            Kind::Window(window) => window.limit(),
            Kind::Credit(credit) => credit.limit(),
            Kind::Gauge { limit, .. } => *limit,
        }
    }

    fn per_second(&self) -> u64 {
        self.dimension.period_micros().map_or(0, |period| self.limit() / (period / 1_000_000))
    }

    /// Units left; below zero is debt.
    pub(crate) fn level(&self) -> i64 {
        match &self.kind {
            Kind::Bucket(bucket) => bucket.level(),
            Kind::Window(window) => window.level(),
            Kind::Credit(credit) => credit.level(),
            Kind::Gauge { used, limit } => as_level(*limit).saturating_sub(as_level(*used)),
        }
    }

    #[inline]
    pub(crate) fn refill(&mut self, now: Time) {
        self.is_stale = now > self.stale_at;
        match &mut self.kind {
            Kind::Bucket(bucket) => {
                bucket.refill(now);
                if let Some(correction) = &mut self.correction {
                    let seconds = self.dimension.period_micros().map_or(60, |period| period / 1_000_000);
                    let per_second = bucket.limit() / seconds.max(1);
                    let taken = correction.others_use(now, per_second);
                    if taken != 0 {
                        bucket.set_level(bucket.level().saturating_sub(taken));
                    }
                }
            }
            Kind::Window(window) => window.advance(now),
            Kind::Credit(credit) => credit.advance(now),
            Kind::Gauge { .. } => {}
        }
    }

    #[inline]
    fn plain_fit(&self, cost: u64, floor: u64, now: Time) -> Fit {
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

    /// No calls follow those that wait: what they leave is lost, and a refusal holds up nobody but them.
    pub(crate) fn nothing_follows(&mut self) {
        self.is_last = true;
        if let Some(correction) = &mut self.correction {
            correction.nothing_follows();
        }
    }

    /// Sets what grants leave of a pace. `slack`: the upstream said that it has nothing left, and is to gather so much first.
    pub(crate) fn set_pace(&mut self, margin: u64, slack: Option<u64>) {
        self.margin = margin;
        if let (Kind::Bucket(bucket), Some(slack)) = (&mut self.kind, slack) {
            bucket.set_level(bucket.level().min(-as_level(slack)));
        }
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

    /// Takes `cost`. Returns the bin that it went to, where there are bins.
    #[inline]
    pub(crate) fn charge(&mut self, cost: u64, class: Priority, now: Time) -> u64 {
        let inflow = (self.limit(), self.dimension.period_micros().unwrap_or(1));
        self.reserve.charged(class, cost, inflow, now);
        if !self.enforce && (self.blocked || self.plain_fit(cost, 0, now) != Fit::Now) {
            // Shadow mode counts what it would have held back, and goes on as if it had.
            self.would_hold += 1;
            return u64::MAX;
        }
        match &mut self.kind {
            Kind::Bucket(bucket) => {
                // What is above a pace's burst goes when that is full: the next one must not come early then.
                let early = if self.is_pace && as_level(cost) > bucket.capacity() { self.margin } else { 0 };
                bucket.charge(cost.saturating_add(early));
                0
            }
            Kind::Window(window) => {
                window.charge(cost);
                window.current_bin()
            }
            Kind::Credit(credit) => credit.charge(cost).as_micros(),
            Kind::Gauge { used, .. } => {
                *used = used.saturating_add(cost);
                0
            }
        }
    }

    /// What a mirror notes of a charge just made, to be compared with the server's reply.
    #[inline]
    pub(crate) fn note(&mut self, cost: u64, now: Time) -> Option<Seen> {
        let level = self.level();
        self.correction.as_mut().map(|correction| correction.charged(cost, level, now))
    }

    /// A class was seen to be active here though nothing was charged (its call waits).
    pub(crate) fn mark_active(&mut self, class: Priority, now: Time) {
        self.reserve.mark_active(class, now);
    }

    /// Gives back `amount` of a charge that went to `bin`.
    #[inline]
    pub(crate) fn refund(&mut self, amount: u64, bin: u64, now: Time) {
        if bin == u64::MAX {
            return;
        }
        match &mut self.kind {
            Kind::Bucket(bucket) => bucket.refund(amount),
            Kind::Window(window) => window.refund(amount, bin),
            Kind::Credit(credit) => credit.refund(amount, Time::from_micros(bin), now),
            Kind::Gauge { used, .. } => *used = used.saturating_sub(amount),
        }
    }

    /// Takes what was used beyond the reservation, whatever is left: into debt if need be.
    pub(crate) fn debit(&mut self, amount: u64, bin: u64) {
        if bin == u64::MAX {
            return;
        }
        match &mut self.kind {
            Kind::Bucket(bucket) => bucket.charge(amount),
            Kind::Window(window) => window.charge(amount),
            Kind::Credit(credit) => {
                credit.charge(amount);
            }
            Kind::Gauge { .. } => {}
        }
    }

    /// A reply to the call noted as `seen` says what the server has left. Returns the correction made.
    pub(crate) fn server_says(&mut self, seen: Seen, told: Told, now: Time) -> i64 {
        self.refill(now);
        let level = self.level();
        let per_second = self.per_second().max(1);
        let Some(correction) = &mut self.correction else { return 0 };
        let change = correction.reply(seen, told, level, per_second, now);
        if change != 0
            && let Kind::Bucket(bucket) = &mut self.kind
        {
            bucket.set_level(level.saturating_add(change));
        }
        change
    }

    /// More, or less, is left than was thought.
    pub(crate) fn shift(&mut self, change: i64) {
        if let Kind::Bucket(bucket) = &mut self.kind {
            bucket.set_level(bucket.level().saturating_add(change));
        }
        if let Some(correction) = &mut self.correction {
            correction.shifted(change);
        }
    }

    /// A 429 was met on this dimension: grants leave one call more from now on, for a while.
    pub(crate) fn widen_margin(&mut self, cost: u64, now: Time) {
        let capacity = self.capacity();
        if let Some(correction) = &mut self.correction {
            correction.widen_margin(cost, capacity, now);
        }
    }

    /// Forgets what was used; calls in flight stay counted.
    pub(crate) fn empty_usage(&mut self, now: Time) {
        match &mut self.kind {
            Kind::Bucket(bucket) => bucket.set_level(bucket.capacity()),
            Kind::Window(window) => window.clear(now),
            Kind::Credit(_) | Kind::Gauge { .. } => {}
        }
        self.paused_until = Time::ZERO;
    }

    /// Nobody waits here, nothing is owed, nothing used: forgetting it loses nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.lot.is_empty() && self.earmark.is_none() && self.is_untouched()
    }

    /// Nothing of it is in use.
    pub(crate) fn is_untouched(&self) -> bool {
        match &self.kind {
            Kind::Bucket(bucket) => bucket.level() >= bucket.capacity(),
            Kind::Window(window) => window.level() >= as_level(window.limit()),
            Kind::Credit(credit) => credit.level() == 0,
            Kind::Gauge { used, .. } => *used == 0,
        }
    }

    /// When it is full again if nothing else is taken; `now` where that is so already, or not known.
    pub(crate) fn full_at(&self, now: Time) -> Time {
        let fit = match &self.kind {
            Kind::Gauge { .. } | Kind::Credit(_) => return now,
            Kind::Bucket(bucket) => bucket.fit(bucket.capacity().unsigned_abs(), 0),
            Kind::Window(window) => window.fit(window.limit(), 0, now),
        };
        match fit {
            Fit::Later(wait) => now + wait,
            Fit::Now | Fit::Never => now,
        }
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

impl Kind {
    /// As `spec` says, with nothing used.
    fn fresh(spec: &Spec, now: Time) -> Self {
        let units = units(spec.allowance);
        match (spec.dimension.period_micros(), spec.source, spec.algorithm) {
            (None, ..) => Self::Gauge { used: 0, limit: units },
            (Some(_), LevelSource::Credit, _) => Self::Credit(Credit::none(units)),
            (Some(period), LevelSource::Rate, Algorithm::TokenBucket) => {
                Self::Bucket(Bucket::full(units, spec.burst.unwrap_or(units), period, now))
            }
            (Some(period), LevelSource::Rate, Algorithm::SlidingWindow) => {
                Self::Window(Window::empty(units, spec.burst, period, now))
            }
        }
    }
}

fn units(allowance: Allowance) -> u64 {
    match allowance {
        Allowance::Units(units) => units.get(),
        Allowance::Unlimited => u64::MAX >> 8,
        Allowance::Blocked => 0,
    }
}

fn used(limit: u64, level: i64) -> u64 {
    u64::try_from(as_level(limit).saturating_sub(level)).unwrap_or(0)
}
