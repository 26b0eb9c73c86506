//! Decides what time it is: one clock for all parts, tokio's, so that it can be paused.

use std::time::{Duration, SystemTime};

use tidegate_core::time::Time;
use tokio::time::Instant;

/// Microseconds that go on from run to run, as the wall clock did at the start, and never jump meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_micros: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_micros: u64::try_from(unix.as_micros()).unwrap_or(u64::MAX) }
    }

    pub(crate) fn now(&self) -> Time {
        let elapsed = Instant::now().saturating_duration_since(self.started);
        Time::from_micros(self.started_micros).plus_micros(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    pub(crate) fn instant(&self, at: Time) -> Instant {
        // A bound far away instead of an overflow: the timer looks again then.
        let ahead = Duration::from_micros(at.as_micros().saturating_sub(self.started_micros))
            .min(Duration::from_secs(86_400 * 365));
        self.started + ahead
    }
}

/// The wall clock at `at`, as far as it has not been set since the start.
pub(crate) fn system_time(at: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(at.as_micros())
}
