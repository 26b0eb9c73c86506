//! A rate limiter by itself: requests, tokens and images at once, for each user, organization and model, in order.
//!
//! Decides nothing itself: the core's gate does, with neither breaker nor retry in play.

use std::time::{Duration, SystemTime};

use tidegate_core::call as core;
use tidegate_core::config::{Policy, QueueConfig, RateLimitConfig, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::Usage;
use tidegate_core::gate::Check as Looked;
use tidegate_core::limit::{Allowance, Dimension, Limit};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::LimitReport;

use crate::call::Call;
use crate::clock::system_time;
use crate::driver::{Driver, Permit};
use crate::error::Error;
use crate::events::Events;
use crate::retry::seed;

/// Keeps calls within limits; clones share them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tidegate::Error> {
/// use tidegate::{Call, RateLimitConfig, RateLimiter, Usage};
///
/// let limiter = RateLimiter::new(RateLimitConfig::default().with_tokens_per_minute(1000));
/// let call = Call::new("gpt-4o").with_user("anna").with_tokens(200, 500);
///
/// let mut reservation = limiter.reserve(&call).await?;
/// reservation.sent();
/// // … the call itself …
/// reservation.settle(Usage::new(190, 60));
///
/// assert_eq!(limiter.check(&call).remaining_tokens, Some(750));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RateLimiter {
    driver: Driver,
}

/// What binds a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitType {
    /// Nothing does.
    None,
    /// A number of requests.
    Requests,
    /// A number of tokens.
    Tokens,
    /// A number of images.
    Images,
    /// A number of calls at one instant.
    InFlight,
}

/// How limits stand for one call. A look reserves nothing: whoever comes next may take what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// It could go now.
    pub allowed: bool,
    /// How long it would wait; zero if it could go now. `None`: not known, or for ever, where it is too large.
    pub wait_time: Option<Duration>,
    /// Requests left, this one not yet taken. `None`: not limited.
    pub remaining_requests: Option<u64>,
    /// Tokens left, this call's not yet taken. `None`: not limited.
    pub remaining_tokens: Option<u64>,
    /// When the limit that is in the way, else the tightest, is unused again if nothing else is taken.
    pub reset_at: SystemTime,
    /// What is in the way.
    pub limit_type: LimitType,
    /// Which limit that is, and its numbers. `None`: none.
    pub limit: Option<LimitReport>,
}

/// What is limited, and how much of it is in use by all calls together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitInfo {
    /// Where no override says otherwise; of several limits the lowest. `None`: not limited.
    pub requests_per_minute: Option<u64>,
    /// Where no override says otherwise; of several limits the lowest. `None`: not limited.
    pub tokens_per_minute: Option<u64>,
    /// Where no override says otherwise; of several limits the lowest. `None`: not limited.
    pub requests_per_day: Option<u64>,
    /// In use; 0 where it is not limited, as nobody counts it then.
    pub requests_in_last_minute: u64,
    /// In use; 0 where it is not limited.
    pub tokens_in_last_minute: u64,
    /// In use within the last 24 hours; 0 where it is not limited.
    pub requests_today: u64,
    /// When all of it is unused again if nothing else is taken.
    pub next_reset_at: SystemTime,
}

impl RateLimiter {
    /// Keeps to one limit.
    #[must_use]
    pub fn new(limit: RateLimitConfig) -> Self {
        Self::with_limits([limit])
    }

    /// Keeps to several limits at once: a call takes from all that it matches, or from none. Of those that have one name the
    /// later ones get a number after it: `rate_limit_2`.
    #[must_use]
    pub fn with_limits(limits: impl IntoIterator<Item = RateLimitConfig>) -> Self {
        let limits = limits.into_iter().map(RateLimitConfig::into_limit).collect();
        Self::with_policy(limits, QueueConfig::default())
    }

    /// The same with other rules for those that wait.
    #[must_use]
    pub fn with_policy(mut limits: Vec<Limit>, queue: QueueConfig) -> Self {
        name_apart(&mut limits);
        let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: false, token_charge: TokenCharge::Input };
        let policy = Policy { limits, queue, upstreams: vec![upstream], ..Policy::default() };
        Self::of(Driver::new(policy, seed()))
    }

    /// The limits of a driver that does more than limiting.
    pub(crate) const fn of(driver: Driver) -> Self {
        Self { driver }
    }

    /// How limits stand for `call`.
    ///
    /// To keep to them use [`RateLimiter::reserve`]: of several that look and then go, all may see the same room.
    #[must_use]
    pub fn check(&self, call: &Call) -> Check {
        let call = self.timed(call);
        let looked = self.driver.with(|gate, now| gate.check(&call, now));
        let Looked { allowed, wait, remaining_requests, remaining_tokens, full_at, limit } = looked;
        Check {
            allowed,
            wait_time: wait,
            remaining_requests,
            remaining_tokens,
            reset_at: system_time(full_at),
            limit_type: limit.as_ref().map_or(LimitType::None, |limit| LimitType::of(limit.dimension)),
            limit,
        }
    }

    /// How long `call` would wait; zero if it could go now. `None`: not known, or for ever, where it is too large.
    #[must_use]
    pub fn wait_time(&self, call: &Call) -> Option<Duration> {
        self.check(call).wait_time
    }

    /// Waits for the turn of `call`, by priority, fairly between organizations, and takes from every limit that it matches.
    ///
    /// Dropping the future gives back what was taken.
    ///
    /// # Errors
    /// [`Error::Refused`] if there will be no room before the call's `max_wait` is over: told at once where that can be foreseen,
    /// those that wait already counted, and else when it is over, as with a limit on calls at one instant, whose ends nobody knows;
    /// [`Error::TooLarge`] if there never will; [`Error::QueueFull`].
    pub async fn reserve(&self, call: &Call) -> Result<Reservation, Error> {
        let permit = self.driver.admit(self.timed(call)).await?;
        Ok(Reservation { permit })
    }

    /// Takes from every limit that `call` matches if there is room now.
    ///
    /// # Errors
    /// [`Error::Refused`] with the wait, [`Error::TooLarge`].
    pub fn try_reserve(&self, call: &Call) -> Result<Reservation, Error> {
        let permit = self.driver.try_admit(self.timed(call))?;
        Ok(Reservation { permit })
    }

    /// Counts a call that happened elsewhere, whatever is left: into debt if need be.
    pub fn record(&self, call: &Call) {
        let call = self.timed(call);
        self.driver.with(|gate, now| gate.record(&call, now));
    }

    /// Forgets what was used. Calls under way stay counted as such.
    pub fn reset(&self) {
        self.driver.with(|gate, now| gate.reset_limits(now));
    }

    /// What is limited, and how much of it is in use.
    #[must_use]
    pub fn info(&self) -> LimitInfo {
        self.driver.with(|gate, now| {
            let next_reset_at = system_time(gate.full_at(now));
            let lowest = |dimension| {
                let limits = gate.policy().limits.iter();
                let units = limits.filter_map(|limit| match limit.base.allowance(dimension)? {
                    Allowance::Units(units) => Some(units.get()),
                    Allowance::Blocked => Some(0),
                    Allowance::Unlimited => None,
                });
                units.min()
            };
            let [rpm, tpm, rpd] = [Dimension::RequestsPerMinute, Dimension::TokensPerMinute, Dimension::RequestsPerDay];
            let limits = [rpm, tpm, rpd].map(lowest);
            let levels = gate.status(now).limits;
            let in_use = |dimension: Dimension| {
                // Each limit counts the same calls: the one that counts most of them has counted all that are limited.
                let mut by_limit: Vec<(&str, u64)> = Vec::new();
                for level in &levels {
                    for meter in level.meters.iter().filter(|meter| meter.dimension == dimension.name()) {
                        let full = i64::try_from(meter.burst).unwrap_or(i64::MAX);
                        let used = u64::try_from(full.saturating_sub(meter.remaining)).unwrap_or(0);
                        match by_limit.iter_mut().find(|(limit, _)| *limit == level.limit) {
                            Some((_, sum)) => *sum += used,
                            None => by_limit.push((&level.limit, used)),
                        }
                    }
                }
                by_limit.iter().map(|(_, sum)| *sum).max().unwrap_or(0)
            };
            LimitInfo {
                requests_per_minute: limits[0],
                tokens_per_minute: limits[1],
                requests_per_day: limits[2],
                requests_in_last_minute: in_use(rpm),
                tokens_in_last_minute: in_use(tpm),
                requests_today: in_use(rpd),
                next_reset_at,
            }
        })
    }

    /// Everything that happens from now on; it never slows a call.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.driver.subscribe()
    }

    /// How far estimates of the calls that it limits are off.
    #[cfg(feature = "tower")]
    pub(crate) fn calibrations(&self) -> &crate::calibrations::Calibrations {
        self.driver.calibrations()
    }

    /// Calls a callback of the program's own. `None`: it panicked, which subscribers have been told.
    #[cfg(feature = "tower")]
    pub(crate) fn contained<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        self.driver.contained(callback, call)
    }

    fn timed(&self, call: &Call) -> core::Call {
        call.at(self.driver.now(), self.driver.max_wait(), None)
    }
}

/// Levels go by the names of their limits: two of one name would be one limit, and only the later would bind.
pub(crate) fn name_apart(limits: &mut [Limit]) {
    for at in 1..limits.len() {
        let (earlier, rest) = limits.split_at_mut(at);
        let is_taken = |name: &str| earlier.iter().any(|limit| &*limit.name == name);
        let name = rest[0].name.clone();
        let numbered = (2..).map(|number| format!("{name}_{number}")).find(|name| !is_taken(name));
        if let Some(numbered) = numbered.filter(|_| is_taken(&name)) {
            rest[0].name = numbered.into();
        }
    }
}

impl LimitType {
    const fn of(dimension: Dimension) -> Self {
        match dimension {
            Dimension::RequestsPerMinute | Dimension::RequestsPerDay => Self::Requests,
            Dimension::TokensPerMinute | Dimension::TokensPerDay => Self::Tokens,
            Dimension::ImagesPerMinute => Self::Images,
            Dimension::MaxInFlight => Self::InFlight,
        }
    }
}

/// What a call has taken. Settle it when the use is known.
///
/// Dropped before [`Reservation::sent`], all comes back. Dropped after, it is charged whole: leaving early must not be a way to
/// get free tokens.
#[derive(Debug)]
#[must_use = "dropped, it gives back what it has taken"]
pub struct Reservation {
    permit: Permit,
}

impl Reservation {
    /// From now on the upstream may have seen the call.
    pub fn sent(&mut self) {
        self.permit.sent();
    }

    /// What is behind it.
    #[cfg(feature = "tower")]
    pub(crate) fn into_permit(self) -> Permit {
        self.permit
    }

    /// How long it has waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.permit.queued_for()
    }

    /// Charges what was really used: the rest comes back, more than was reserved is owed.
    pub fn settle(self, usage: Usage) {
        // A success leaves nothing to be done.
        let _done = self.permit.settle(Outcome { usage: Some(usage), ..Outcome::of(Ending::Success) });
    }
}
