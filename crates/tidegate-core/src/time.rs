//! Decides how instants are written down: microseconds since an epoch that the driver chose.
//!
//! Never reads a clock. All arithmetic saturates, so that a clock which jumps or stands still can cause no panic.

use std::num::NonZeroU64;
use std::time::Duration;

/// An instant, in whole microseconds since the epoch of whoever drives the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The epoch itself.
    pub const ZERO: Self = Self(0);
    /// Later than every instant that can occur.
    pub const NEVER: Self = Self(u64::MAX);

    /// The instant `micros` after the epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The instant `seconds` after the epoch.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Microseconds after `earlier`; zero if it is not after it.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant moved on by `micros`.
    #[must_use]
    pub const fn plus_micros(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    /// Moves on by `by`, rounded up to whole microseconds: early is a wasted attempt, late is not.
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros_up(by)))
    }
}

impl std::ops::Add<Wait> for Time {
    type Output = Self;

    fn add(self, by: Wait) -> Self {
        self.plus_micros(by.micros())
    }
}

/// A duration in whole microseconds, rounded up, saturating.
#[must_use]
pub fn micros_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}

/// A wait. Never zero: a zero wait would spin the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wait(NonZeroU64);

impl Wait {
    /// The shortest wait there is.
    pub const SHORTEST: Self = Self(NonZeroU64::MIN);
    /// A wait that nothing but an event of its own ends (a slot given back, a breaker closed).
    pub const UNTIL_EVENT: Self = Self(NonZeroU64::MAX);

    /// A wait of `micros`, or of one microsecond where that is zero.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        match NonZeroU64::new(micros) {
            Some(micros) => Self(micros),
            None => Self::SHORTEST,
        }
    }

    /// The wait in microseconds.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0.get()
    }

    /// The wait as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.0.get())
    }
}

impl From<Duration> for Wait {
    fn from(duration: Duration) -> Self {
        Self::from_micros(micros_up(duration))
    }
}
