//! Decides at which pace calls go to an upstream that refuses them although the limit it tells has room, or tells none.
//!
//! Three things look alike from outside: a minute's limit that is enforced over a second, a limit that was told wrongly, and
//! one that nobody told. In all of them a refusal marks an instant at which some bucket of the upstream was empty, so that
//! what it let through between two of them is exactly what flowed in: the rate. The pace is first that of the limit told, a
//! second's worth at once; where that is refused too, the rate as measured. Now and then it is tried whether more goes.
//! Knows no levels: the gate keeps a bucket with the rate and burst decided here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{Time, micros_up};

/// Two refusals nearer together than this measure nothing.
const MEASURES_AFTER_MICROS: u64 = 5_000_000;
/// A mark that is older than this is replaced by the next refusal.
const MARK_KEPT_MICROS: u64 = 120_000_000;
/// How soon more is tried while no rate has been measured.
const RISE_EVERY_MICROS: u64 = 5_000_000;
/// By so many per cent more is tried at first, and twice as many each time that it goes well.
const RISE_PERCENT: u64 = 5;
/// How long a measured rate is held the first time, and at most, before more is tried; each time twice as long.
const HOLD_MICROS: u64 = 30_000_000;
const HOLD_MAX_MICROS: u64 = 120_000_000;
/// Two rates are the same that differ by less than one part in so many.
const SAME_PART: u64 = 50;
/// A pace that only spreads the limit as told over shorter times is given up after so long without a refusal.
const GIVE_UP_MICROS: u64 = 300_000_000;
/// … each time twice as long, and at most this.
const GIVE_UP_MAX_MICROS: u64 = 3_600_000_000;
/// A second's worth of a minute's rate goes at once at first …
const BURST_PART: u64 = 60;
/// … and at least 1/16 s worth in the end.
const BURST_PART_MAX: u64 = 960;
/// Where a burst is tried again, it grows by an eighth …
const BURST_GROWTH_PART: u64 = 8;
/// … so often.
const BURST_GROWS_EVERY_MICROS: u64 = 10_000_000;
/// Calls overtake one another on the way by no more than this.
const LAG_MAX_MICROS: u64 = 300_000;
/// What the upstream has left after a refusal is left there, so many microseconds of flow, against calls that come early.
const SLACK_MICROS: u64 = 250_000;
/// After `slow_down` the rate rises over so long from half to all of what it was.
const RAMP_MICROS: u64 = 120_000_000;

/// What became of a pace whose time had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Another rate or burst is in force.
    Changed,
    /// It holds no longer: calls go by the limit told alone.
    GivenUp,
}

/// A refusal, and what is known with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefusedAt {
    /// The limit a minute that headers tell. `None`: they tell none.
    pub(crate) told: Option<u64>,
    /// By what is told there is room: a shorter window was full.
    pub(crate) has_room: bool,
    /// Units admitted before the refused call was sent.
    pub(crate) admitted: u64,
    /// When that was.
    pub(crate) sent_at: Time,
    /// The wait that came with it.
    pub(crate) wait: Option<Duration>,
}

impl RefusedAt {
    /// Units a minute that flowed in since an earlier instant at which the upstream had nothing left. `None`: too short to tell.
    fn rate_since(&self, (at, admitted): (Time, u64)) -> Option<u64> {
        let elapsed = self.sent_at.micros_since(at);
        if elapsed < MEASURES_AFTER_MICROS {
            return None;
        }
        let through = u128::from(self.admitted.wrapping_sub(admitted));
        Some(u64::try_from(through * 60_000_000 / u128::from(elapsed)).unwrap_or(u64::MAX).max(1))
    }
}

/// A second's worth, where the limit is known; half of it where the rate is a guess.
fn burst_at_first(rate: u64, told: Option<u64>) -> u64 {
    (rate / if told.is_some() { BURST_PART } else { 2 * BURST_PART }).max(1)
}

/// What was found out of a pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// The limit a minute that headers told. `None`: they told none.
    told: Option<u64>,
    /// Units a minute.
    rate: u64,
    /// Units at one instant.
    burst: u64,
    /// By how much calls overtake one another on the way.
    lag_micros: u64,
}

impl Found {
    /// Nothing tells the limit: the rate is all that is known.
    pub(crate) fn is_guess(&self) -> bool {
        self.told.is_none()
    }

    /// Units a minute.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Units that may go at one instant.
    pub(crate) fn burst(&self) -> u64 {
        self.burst
    }
}

/// The pace of one dimension.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    told: Option<u64>,
    rate: u64,
    burst: u64,
    lag_micros: u64,
    /// An instant at which the upstream had nothing left, and what it had admitted by then.
    mark: (Time, u64),
    /// The same of the refusal before this one.
    last_mark: (Time, u64),
    measured: bool,
    changed_at: Time,
    due_at: Time,
    /// The rate that was held before more was tried.
    held: u64,
    /// When more was tried last, and the rate before.
    rose: Option<(Time, u64)>,
    /// The rate as measured, while the higher one is in force that went before more was tried.
    measured_below: Option<u64>,
    /// What does not go gathers for longer than more is tried: its bucket is a long one.
    gathers: bool,
    /// By how much more is tried next.
    rise_percent: u64,
    hold_micros: u64,
    give_up_micros: u64,
    /// While coming back from `slow_down`: since when.
    ramp_from: Option<Time>,
    /// The burst has grown because it may.
    is_burst_tried: bool,
    /// False: given up, and kept in mind for the next time.
    active: bool,
}

impl Pace {
    /// After the first refusal that the limits known do not explain. `guess`: units a minute where none is told, and whether
    /// that is as good as measured.
    pub(crate) fn new(refused: RefusedAt, guess: (u64, bool), now: Time) -> Self {
        let (guess, measured) = guess;
        let rate = refused.told.unwrap_or(guess).max(1);
        Self {
            told: refused.told,
            rate,
            burst: burst_at_first(rate, refused.told),
            lag_micros: 0,
            mark: (refused.sent_at, refused.admitted),
            last_mark: (refused.sent_at, refused.admitted),
            held: rate,
            rose: None,
            measured_below: None,
            gathers: false,
            rise_percent: RISE_PERCENT,
            measured,
            changed_at: now,
            due_at: now.plus_micros(match (refused.told, measured) {
                (Some(_), _) => GIVE_UP_MICROS,
                (None, true) => HOLD_MICROS,
                (None, false) => RISE_EVERY_MICROS,
            }),
            hold_micros: HOLD_MICROS,
            give_up_micros: GIVE_UP_MICROS,
            ramp_from: None,
            is_burst_tried: false,
            active: true,
        }
    }

    /// As it was found out before a restart.
    pub(crate) fn restored(found: Found, changed_at: Time, now: Time) -> Self {
        let refused = RefusedAt { told: found.told, has_room: false, admitted: 0, sent_at: now, wait: None };
        let Found { rate, burst, lag_micros, .. } = found;
        let lag_micros = lag_micros.min(LAG_MAX_MICROS);
        let pace = Self::new(refused, (rate.max(1), true), now);
        Self { rate: rate.max(1), held: rate.max(1), burst: burst.max(1), lag_micros, changed_at, ..pace }
    }

    /// What of it is to survive a restart.
    pub(crate) fn found(&self, now: Time) -> Found {
        Found { told: self.told, rate: self.rate(now), burst: self.burst, lag_micros: self.lag_micros }
    }

    /// Whether calls go by it.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Units a minute.
    pub(crate) fn rate(&self, now: Time) -> u64 {
        let Some(from) = self.ramp_from else { return self.rate };
        let share = u128::from(now.micros_since(from).min(RAMP_MICROS));
        let half = u128::from(self.rate / 2);
        u64::try_from(half + half * share / u128::from(RAMP_MICROS)).unwrap_or(self.rate).max(1)
    }

    /// Units that may go at one instant.
    pub(crate) fn burst(&self) -> u64 {
        self.burst.max(1)
    }

    /// Units that the upstream is given time to gather after it had nothing left.
    pub(crate) fn slack(&self) -> u64 {
        let units = u128::from(self.rate) * u128::from(SLACK_MICROS) / 60_000_000;
        u64::try_from(units).unwrap_or(u64::MAX).max(1)
    }

    /// Units that grants leave, because calls overtake one another on the way.
    pub(crate) fn margin(&self) -> u64 {
        let units = u128::from(self.rate) * u128::from(self.lag_micros) / 60_000_000;
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// True if it was measured: nothing tells it.
    pub(crate) fn is_guess(&self) -> bool {
        self.told.is_none()
    }

    /// When its rate or burst last changed.
    pub(crate) fn changed_at(&self) -> Time {
        self.changed_at
    }

    /// When something is to be decided again.
    #[inline]
    pub(crate) fn due_at(&self) -> Time {
        self.due_at
    }

    /// Another refusal. True: rate or burst are others now.
    pub(crate) fn refused(&mut self, refused: RefusedAt, now: Time) -> bool {
        if refused.sent_at < self.changed_at {
            // News of the pace before.
            return false;
        }
        if !self.active {
            self.active = true;
            self.begin_measuring(refused);
            self.changed_at = now;
            self.give_up_micros = (self.give_up_micros * 2).min(GIVE_UP_MAX_MICROS);
            self.due_at = now.plus_micros(self.give_up_micros);
            return true;
        }
        self.changed_at = now;
        if refused.has_room {
            self.shorten(refused.wait, now);
            return true;
        }
        let Some(long) = refused.rate_since(self.mark) else {
            self.refused_again(now);
            return true;
        };
        self.measured_below = None;
        let lately = refused.rate_since(self.last_mark);
        let mut measured = match lately {
            // What flowed lately is far from what flowed in all: the limit has moved.
            Some(lately) if lately.abs_diff(long) > long / 6 => {
                self.mark = self.last_mark;
                lately
            }
            _ => long,
        };
        if lately.is_some() {
            self.last_mark = (refused.sent_at, refused.admitted);
        }
        let rose = self.rose.is_some();
        if let Some(before) = self.rose.take().filter(|(at, _)| now.micros_since(*at) < 2 * RISE_EVERY_MICROS) {
            // Of a long bucket the same is measured again, whatever was tried.
            self.gathers &= measured <= self.held + self.held / SAME_PART;
            if !self.gathers && before.1 > measured {
                // More was too much at once, so what went before may not have been: of a short window some had flowed over unused.
                self.measured_below = Some(measured);
                measured = before.1;
            }
            self.begin_measuring(refused);
        } else if refused.sent_at.micros_since(self.mark.0) > MARK_KEPT_MICROS {
            self.begin_measuring(refused);
        }
        let has_moved = measured.abs_diff(self.held) > self.held / 12;
        if has_moved {
            self.hold_micros = HOLD_MICROS;
        } else if rose {
            self.hold_micros = (self.hold_micros * 2).min(HOLD_MAX_MICROS);
        }
        self.hold(measured, now);
        true
    }

    /// A refusal that comes too soon after another one to measure anything.
    fn refused_again(&mut self, now: Time) {
        if let Some(measured) = self.measured_below.take() {
            // What went before more was tried was too much as well: it had only used up what had gathered until then.
            self.hold(measured, now);
            self.gathers = true;
        } else {
            self.rate = (self.rate - self.rate / 4).max(1);
            self.due_at = now.plus_micros(RISE_EVERY_MICROS);
        }
    }

    /// A rate was measured.
    fn hold(&mut self, rate: u64, now: Time) {
        self.rate = self.told.unwrap_or(u64::MAX).min(rate);
        self.held = self.rate;
        self.burst = burst_at_first(self.rate, self.told);
        self.rise_percent = RISE_PERCENT;
        self.measured = true;
        self.due_at = now.plus_micros(self.hold_micros);
    }

    fn begin_measuring(&mut self, refused: RefusedAt) {
        self.mark = (refused.sent_at, refused.admitted);
        self.last_mark = self.mark;
    }

    /// All of the limit may flow, but less at once: the window is shorter than thought, or the way is uneven.
    fn shorten(&mut self, wait: Option<Duration>, now: Time) {
        if self.is_burst_tried {
            self.burst -= self.burst / (BURST_GROWTH_PART + 1);
            self.is_burst_tried = false;
        } else {
            self.burst = (self.burst / 2).max(self.rate / BURST_PART_MAX).max(1);
            let late = wait.map_or(LAG_MAX_MICROS / 8, micros_up);
            // It came that much too early although it was held back by the lag known so far.
            self.lag_micros = self.lag_micros.saturating_add(late).min(LAG_MAX_MICROS);
        }
        self.due_at = now.plus_micros(self.give_up_micros);
        self.give_up_micros = (self.give_up_micros * 2).min(GIVE_UP_MAX_MICROS);
    }

    /// At most so many a minute went so far: that is what there is to halve.
    pub(crate) fn limit_to(&mut self, went: u64) {
        self.rate = self.rate.min(went).max(1);
        self.held = self.rate;
    }

    /// `slow_down`: half of what went, and up again slowly.
    pub(crate) fn slow_down(&mut self, now: Time) {
        self.active = true;
        let is_new = self.ramp_from.is_none_or(|from| now.micros_since(from) > RAMP_MICROS / 60);
        if is_new {
            self.rate = self.rate(now).max(1);
            self.changed_at = now;
            self.due_at = now.plus_micros(RAMP_MICROS / 60);
        }
        self.ramp_from = Some(now);
    }

    /// Its time has come. `is_binding`: calls wait for it. `None`: nothing changes but the next time.
    pub(crate) fn due(&mut self, is_binding: bool, now: Time) -> Option<Due> {
        if let Some(from) = self.ramp_from {
            if now.micros_since(from) < RAMP_MICROS {
                self.due_at = now.plus_micros(RAMP_MICROS / 60);
                return Some(Due::Changed);
            }
            self.ramp_from = None;
        }
        let at_limit = self.told.is_some_and(|told| self.rate >= told);
        if at_limit && self.burst < self.rate {
            self.burst = self.burst.saturating_add((self.burst / BURST_GROWTH_PART).max(1)).min(self.rate);
            self.is_burst_tried = true;
            self.changed_at = now;
            self.due_at = now.plus_micros(BURST_GROWS_EVERY_MICROS);
            return Some(Due::Changed);
        }
        if at_limit {
            self.active = false;
            self.due_at = Time::NEVER;
            return Some(Due::GivenUp);
        }
        if self.measured && self.rate < self.held {
            // It was lowered for calls that came too early.
            self.rate = self.held;
            self.due_at = now.plus_micros(self.hold_micros);
            self.changed_at = now;
            return Some(Due::Changed);
        }
        self.due_at = now.plus_micros(RISE_EVERY_MICROS);
        if !is_binding {
            return None;
        }
        self.rose = Some((now, self.rate));
        let percent = if self.measured { self.rise_percent } else { 100 };
        self.rise_percent = (self.rise_percent * 2).min(100);
        let more = u64::try_from(u128::from(self.rate) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        self.rate = self.rate.saturating_add(more.max(1)).min(self.told.unwrap_or(u64::MAX));
        self.burst = burst_at_first(self.rate, self.told);
        if self.told.is_some_and(|told| self.rate >= told) {
            self.due_at = now.plus_micros(self.give_up_micros);
        }
        self.changed_at = now;
        Some(Due::Changed)
    }

    /// Headers tell a limit now, or another one.
    ///
    /// True: rate or burst are others now.
    pub(crate) fn told(&mut self, limit: u64, now: Time) -> bool {
        if self.told == Some(limit) {
            return false;
        }
        if self.told.is_none() && !self.measured {
            // Better than a guess from the first moments; if it is not so either, the next refusal says so.
            self.rate = limit.max(1);
            self.due_at = now.plus_micros(self.give_up_micros);
        }
        self.told = Some(limit);
        self.rate = self.rate.min(limit).max(1);
        self.burst = burst_at_first(self.rate, self.told).min(self.burst.max(self.rate / BURST_PART));
        self.changed_at = now;
        true
    }
}
