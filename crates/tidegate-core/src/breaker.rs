//! Decides whether calls may go to a service that has been failing: closed, open, half-open.
//!
//! Two signals open it, as in linkerd2 (a row of failures, or a rate once enough calls were seen), and slow calls if asked.
//! Only faults of the service count: rate limits, callers' mistakes, callers' disconnects and their own timeouts never do.
//! Every permit carries the generation it was given in, so that a late result of an older state counts for nothing.

mod row;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use self::row::{Beside, Row};
use crate::config::BreakerConfig;
use crate::fault::Fault;
use crate::refusal::BreakerReport;
use crate::time::{Time, micros_up};

/// Bins of the monitoring period.
const BINS: usize = 10;
/// Tenants remembered at once; more than enough to tell one from several.
const TENANTS: usize = 8;
/// Unused for so long, it knows nothing that still counts.
const IDLE_FOR: Duration = Duration::from_secs(3600);
/// Reopened again and again, it stays open at most so many times as long as the first time.
const LONGEST_OPEN: u64 = 4;
/// And longer by a part of a quarter that is another each time: in 2^-10, the golden ratio's, which falls in step with nothing.
/// Multiples of one time would meet an outage that comes back every minute for ever.
const SPREAD: u64 = 633;

/// The cause of a state that somebody set by hand.
pub(crate) const FORCED: &str = "forced by an operator";

/// The state that people and metrics see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls go.
    Closed,
    /// None goes.
    Open,
    /// A few go, to try.
    HalfOpen,
    /// Closed by an operator: calls go whatever happens.
    ForcedClosed,
    /// Opened by an operator: none goes until told otherwise.
    ForcedOpen,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Closed, Self::Open, Self::HalfOpen, Self::ForcedClosed, Self::ForcedOpen];

    /// The word used in status, events and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedClosed => "forced_closed",
            Self::ForcedOpen => "forced_open",
        }
    }
}

/// Leave to make one attempt. Must come back through [`Breaker::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPermit {
    generation: u32,
    /// Counts attempts in the order in which they went.
    number: u32,
    probe: bool,
}

impl BreakerPermit {
    /// True if the attempt is a probe of a half-open breaker.
    #[must_use]
    pub const fn is_probe(self) -> bool {
        self.probe
    }
}

/// What the breaker says to one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerSays {
    /// It may go.
    Go,
    /// Not before this instant.
    NotBefore(Time),
    /// Not before something changes: a probe ends, or an operator says so.
    NotUntilChange,
}

/// How an attempt ended, to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerResult {
    /// The service did its part.
    Good {
        /// To the first byte.
        first_byte_after: Option<Duration>,
    },
    /// The service failed.
    Bad,
    /// It says nothing of the service: a rate limit, a caller's mistake, a caller who left.
    Ignored,
}

/// One breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    config: Arc<BreakerConfig>,
    state: BreakerState,
    generation: u32,
    row: Row,
    /// Attempts let go so far.
    sent: u32,
    bins: [Counts; BINS],
    bin: u64,
    active: SmallVec<[(u64, Time); TENANTS]>,
    failing: SmallVec<[(u64, Time); TENANTS]>,
    opened_at: Time,
    open_until: Time,
    times_opened: u64,
    last_open_micros: u64,
    closed_at: Option<Time>,
    probes: u32,
    probe_successes: u32,
    /// Attempts of this generation that have not ended, of those sent since a failure.
    beside: Beside,
    cause: Arc<str>,
    /// `, last 503`, or in words; empty where there is nothing to say.
    last: Box<str>,
    used_at: Time,
    /// Calls that left the monitoring period since that was last asked.
    passed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    good: u32,
    bad: u32,
    slow: u32,
}

impl Counts {
    const fn calls(self) -> u32 {
        self.good.saturating_add(self.bad)
    }
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: Arc<BreakerConfig>) -> Self {
        Self {
            config,
            state: BreakerState::Closed,
            generation: 0,
            row: Row::default(),
            sent: 0,
            bins: [Counts::default(); BINS],
            bin: 0,
            active: SmallVec::new(),
            failing: SmallVec::new(),
            opened_at: Time::ZERO,
            open_until: Time::ZERO,
            times_opened: 0,
            last_open_micros: 0,
            closed_at: None,
            probes: 0,
            probe_successes: 0,
            beside: Beside::default(),
            cause: "".into(),
            last: "".into(),
            used_at: Time::ZERO,
            passed: 0,
        }
    }

    /// The state at `now`; an open breaker whose time is over is still `open` until somebody asks to go.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether an attempt may go at `now`.
    #[must_use]
    pub fn says(&self, now: Time) -> BreakerSays {
        match self.state {
            BreakerState::Closed | BreakerState::ForcedClosed => BreakerSays::Go,
            BreakerState::ForcedOpen => BreakerSays::NotUntilChange,
            BreakerState::Open if now >= self.open_until => BreakerSays::Go,
            BreakerState::Open => BreakerSays::NotBefore(self.open_until),
            BreakerState::HalfOpen if self.probes < self.config.half_open_max_calls => BreakerSays::Go,
            BreakerState::HalfOpen => BreakerSays::NotUntilChange,
        }
    }

    /// Takes leave for an attempt after [`Breaker::says`] said go. An open breaker whose time is over becomes half-open.
    pub fn permit(&mut self, now: Time) -> BreakerPermit {
        self.used_at = now;
        if self.state == BreakerState::Open && now >= self.open_until {
            self.enter(BreakerState::HalfOpen, now);
        }
        let probe = self.state == BreakerState::HalfOpen;
        if probe {
            self.probes += 1;
        }
        self.sent = self.sent.wrapping_add(1);
        BreakerPermit { generation: self.generation, number: self.sent, probe }
    }

    /// An attempt has ended, in whatever way. Returns the state before, if it changed.
    pub fn record(
        &mut self,
        permit: BreakerPermit,
        tenant: u64,
        result: BreakerResult,
        fault: Option<&Fault>,
        now: Time,
    ) -> Option<BreakerState> {
        if permit.generation != self.generation {
            return None;
        }
        if permit.probe {
            self.probes = self.probes.saturating_sub(1);
        }
        self.beside.ended(permit.number);
        let before = self.state;
        match (self.state, result) {
            (BreakerState::Closed, BreakerResult::Good { first_byte_after }) => {
                if self.row.failures() > 0 {
                    self.row = Row::default();
                }
                let slow = self.is_slow(first_byte_after);
                self.note_tenant(tenant, now, false);
                let counts = self.counts(now);
                counts.good += 1;
                counts.slow += u32::from(slow);
                if slow {
                    self.open_if_too_slow(now);
                }
            }
            (BreakerState::Closed, BreakerResult::Bad) => {
                self.note_fault(fault);
                self.note_tenant(tenant, now, true);
                self.counts(now);
                self.beside.failed(permit.number);
                self.row.failed(permit.number, tenant, self.config.failure_threshold);
                self.counts(now).bad += 1;
                self.open_if_failing(now);
            }
            (BreakerState::HalfOpen, BreakerResult::Good { first_byte_after }) if !self.is_slow(first_byte_after) => {
                self.probe_successes += 1;
                if self.probe_successes >= self.config.half_open_max_calls {
                    self.enter(BreakerState::Closed, now);
                }
            }
            (BreakerState::HalfOpen, BreakerResult::Good { .. } | BreakerResult::Bad) => {
                self.note_fault(fault);
                self.cause = format!("a probe failed{}", self.last).into();
                self.enter(BreakerState::Open, now);
            }
            (BreakerState::Closed, BreakerResult::Ignored) if self.row.failures() > 0 => {
                self.row.ignored(permit.number);
            }
            (_, BreakerResult::Ignored)
            | (BreakerState::ForcedClosed | BreakerState::ForcedOpen | BreakerState::Open, _) => {}
        }
        (self.state != before).then_some(before)
    }

    fn is_slow(&self, first_byte_after: Option<Duration>) -> bool {
        matches!((self.config.slow_call_duration, first_byte_after), (Some(bound), Some(took)) if took > bound)
    }

    fn counts(&mut self, now: Time) -> &mut Counts {
        let length = (micros_up(self.config.monitoring_period) / BINS as u64).max(1);
        let bin = now.as_micros() / length;
        if bin > self.bin {
            let before = self.totals().calls();
            for passed in 1..=(bin - self.bin).min(BINS as u64) {
                self.bins[bin_slot(self.bin + passed)] = Counts::default();
            }
            if bin - self.bin > BINS as u64 {
                self.bins = [Counts::default(); BINS];
            }
            self.passed = self.passed.saturating_add(u64::from(before - self.totals().calls()));
            self.bin = bin;
            self.beside = Beside::default();
        }
        &mut self.bins[bin_slot(self.bin)]
    }

    fn totals(&self) -> Counts {
        self.bins.iter().fold(Counts::default(), |sum, bin| Counts {
            good: sum.good.saturating_add(bin.good),
            bad: sum.bad.saturating_add(bin.bad),
            slow: sum.slow.saturating_add(bin.slow),
        })
    }

    fn note_tenant(&mut self, tenant: u64, now: Time, failed: bool) {
        note(&mut self.active, tenant, now);
        if failed {
            note(&mut self.failing, tenant, now);
        }
    }

    /// One tenant's poison cannot open it for all: where several were active, several must have failed.
    fn enough_tenants(&self, failed: usize, now: Time) -> bool {
        let active = recent(&self.active, now, self.config.monitoring_period);
        failed >= active.min(self.config.min_tenants as usize)
    }

    fn note_fault(&mut self, fault: Option<&Fault>) {
        self.last = match fault.map(|fault| (fault.status, &fault.summary)) {
            Some((Some(status), _)) => format!(", last {status}").into(),
            Some((None, summary)) => format!(", last {summary}").into(),
            None => "".into(),
        };
    }

    fn open_if_failing(&mut self, now: Time) {
        let last = &self.last;
        if self.row.is_long(self.config.failure_threshold) && self.enough_tenants(self.row.tenants(), now) {
            self.cause = format!("{} failures in a row{last}", self.row.failures()).into();
            self.enter(BreakerState::Open, now);
            return;
        }
        let counts = self.totals();
        let calls = counts.calls();
        let failed = recent(&self.failing, now, self.config.monitoring_period);
        // Failures end sooner than calls that are answered: those sent beside them may yet end well.
        if calls >= self.config.minimum_calls
            && f64::from(counts.bad)
                >= self.config.failure_rate * f64::from(calls.saturating_add(self.beside.under_way(self.sent)))
            && self.enough_tenants(failed, now)
        {
            self.cause = format!("{} of {calls} calls failed{last}", counts.bad).into();
            self.enter(BreakerState::Open, now);
        }
    }

    fn open_if_too_slow(&mut self, now: Time) {
        let counts = self.totals();
        let calls = counts.calls();
        if calls >= self.config.minimum_calls && f64::from(counts.slow) >= self.config.slow_call_rate * f64::from(calls)
        {
            self.cause = format!("{} of {calls} calls were slow", counts.slow).into();
            self.enter(BreakerState::Open, now);
        }
    }

    fn enter(&mut self, state: BreakerState, now: Time) {
        let has_served = self.ramp_share(now) >= 1.0 || self.totals().good >= self.config.minimum_calls;
        if self.state == BreakerState::Closed && state == BreakerState::Open && has_served {
            // It had held for its whole ramp, or served some calls at least: the next outage is a new one.
            self.times_opened = 0;
        }
        self.state = state;
        self.generation = self.generation.wrapping_add(1);
        self.probes = 0;
        self.probe_successes = 0;
        self.beside = Beside::default();
        self.row = Row::default();
        match state {
            BreakerState::Open => {
                if self.times_opened == 0 {
                    self.opened_at = now;
                }
                let first = micros_up(self.config.recovery_timeout).max(1);
                let factor = 1_u64.checked_shl(u32::try_from(self.times_opened).unwrap_or(63)).unwrap_or(u64::MAX);
                let open_for = first.saturating_mul(factor.min(LONGEST_OPEN));
                let spread = open_for / 4096 * (self.times_opened * SPREAD % 1024);
                self.open_until = now.plus_micros(open_for.saturating_add(spread));
                self.times_opened = self.times_opened.saturating_add(1).min(32);
                self.closed_at = None;
            }
            BreakerState::Closed => {
                self.cause = "".into();
                self.last_open_micros = now.micros_since(self.opened_at);
                self.closed_at = Some(now);
                self.bins = [Counts::default(); BINS];
                self.failing.clear();
            }
            BreakerState::HalfOpen | BreakerState::ForcedClosed | BreakerState::ForcedOpen => {}
        }
    }

    /// How much of the traffic may be back at `now`, 0 to 1: after closing it grows along a straight line.
    #[must_use]
    pub fn ramp_share(&self, now: Time) -> f64 {
        let Some(closed_at) = self.closed_at else { return 1.0 };
        let over = micros_up(self.config.expected_recovery_time).min(self.last_open_micros);
        let elapsed = now.micros_since(closed_at);
        if elapsed >= over { 1.0 } else { elapsed as f64 / over as f64 }
    }

    /// When the next probe may go, while open.
    #[must_use]
    pub fn next_probe_at(&self) -> Option<Time> {
        (self.state == BreakerState::Open).then_some(self.open_until)
    }

    /// Sets the state by hand. `Closed` also forgets what led to any other state. Returns the state before, if it changed.
    pub fn force(&mut self, state: BreakerState, now: Time) -> Option<BreakerState> {
        let before = self.state;
        if state == BreakerState::Closed {
            self.times_opened = 0;
            self.last_open_micros = 0;
            self.opened_at = now;
        }
        // Closed it goes on by what it sees: nobody holds it.
        self.cause = if state == BreakerState::Closed { "".into() } else { FORCED.into() };
        self.enter(state, now);
        (state != before).then_some(before)
    }

    /// Takes over a new configuration; the state stays.
    pub fn reconfigure(&mut self, config: Arc<BreakerConfig>) {
        self.config = config;
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures_in_a_row(&self) -> u32 {
        self.row.failures()
    }

    /// How many calls left the monitoring period since this was last asked.
    pub fn take_passed(&mut self) -> u64 {
        std::mem::take(&mut self.passed)
    }

    /// What opened it, for people. Empty where it is closed.
    #[must_use]
    pub fn cause(&self) -> Arc<str> {
        self.cause.clone()
    }

    /// How it stands, for a refusal or a status page.
    #[must_use]
    pub fn report(&self, name: Arc<str>) -> BreakerReport {
        BreakerReport {
            name,
            state: self.state.name(),
            cause: self.cause.clone(),
            next_probe_at: self.next_probe_at(),
            probes: (self.probes, self.config.half_open_max_calls),
        }
    }

    /// True if nobody has used it for so long that what it knows is worth nothing. What an operator forced is kept.
    #[must_use]
    pub fn is_idle(&self, now: Time) -> bool {
        let forced = matches!(self.state, BreakerState::ForcedClosed | BreakerState::ForcedOpen);
        !forced && self.probes == 0 && now.since(self.used_at) > IDLE_FOR
    }
}

fn bin_slot(bin: u64) -> usize {
    usize::try_from(bin % BINS as u64).unwrap_or(0)
}

fn note(tenants: &mut SmallVec<[(u64, Time); TENANTS]>, tenant: u64, now: Time) {
    if let Some((_, at)) = tenants.iter_mut().find(|(known, _)| *known == tenant) {
        *at = now;
    } else if tenants.len() < TENANTS {
        tenants.push((tenant, now));
    } else if let Some(oldest) = tenants.iter_mut().min_by_key(|(_, at)| *at) {
        *oldest = (tenant, now);
    }
}

fn recent(tenants: &[(u64, Time)], now: Time, within: Duration) -> usize {
    tenants.iter().filter(|(_, at)| now.since(*at) < within).count()
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
