//! Decides what is left of one dimension of one level, and what a call takes of it and gives back; `room`, whether it fits.
//!
//! The levels themselves are in `bucket` and `window`; a meter adds what the queue and the server's answers lay on top:
//! margins, the reserve for higher classes, pauses, earmarks. Never decides who goes first (`queue` does).

mod room;

pub(crate) use room::{Earmark, MeterSays, Obstacle};

use crate::bucket::{Bucket, Fit, as_level};
use crate::call::Priority;
use crate::config::LevelSource;
use crate::credit::Credit;
use crate::learn::correction::{Correction, Seen, Told};
use crate::limit::{Algorithm, Allowance, Dimension};
use crate::queue::Lot;
use crate::reserve::Reserve;
use crate::time::Time;
use crate::window::Window;

/// Grants leave so much of a mirror's refill: 1/4 s, against jitter on the way.
const MARGIN_DIVISOR: u64 = 4;
/// A limit that the server told so long ago no longer makes a request too large; it goes when the level is full.
const STALE_MICROS: u64 = 60_000_000;

/// How a meter counts.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Bucket(Bucket),
    Window(Window),
    Credit(Credit),
    Gauge { used: u64, limit: u64 },
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
