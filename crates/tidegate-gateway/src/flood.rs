//! Decides how many log lines of one kind there are: so many a second, since a flood is told by its first lines and by how many followed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

/// So many lines of one kind …
const LINES_MAX: u32 = 10;
/// … in so long.
pub(crate) const WINDOW: Duration = Duration::from_secs(1);

/// Lines of one kind, of which one task tells.
#[derive(Debug)]
pub(crate) struct Sample {
    level: Level,
    /// What there were more of.
    what: &'static str,
    began_at: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Sample {
    pub(crate) const fn new(level: Level, what: &'static str) -> Self {
        Self { level, what, began_at: None, told: 0, left_out: 0 }
    }

    /// Whether one more line may be told; if not, it is counted. Says of the window before how many it left out.
    pub(crate) fn may_tell(&mut self, now: Instant) -> bool {
        self.tell_rest(now);
        self.told += 1;
        if self.told > LINES_MAX {
            self.left_out += 1;
        }
        self.told <= LINES_MAX
    }

    /// Says how many lines were left out, once the window is over.
    pub(crate) fn tell_rest(&mut self, now: Instant) {
        let (left_out, what) = (self.roll(now), self.what);
        if left_out == 0 {
            return;
        }
        let text = format!("{left_out} more {what}; of such only {LINES_MAX} a second are logged one by one");
        match self.level {
            Level::WARN => tracing::warn!("{text}"),
            Level::DEBUG => tracing::debug!("{text}"),
            _ => tracing::info!("{text}"),
        }
    }

    /// Of how many lines nothing has been said.
    pub(crate) const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Begins another window if this one is over; how many lines were left out of it.
    fn roll(&mut self, now: Instant) -> u64 {
        if self.began_at.is_some_and(|began_at| now.saturating_duration_since(began_at) < WINDOW) {
            return 0;
        }
        let left_out = self.left_out;
        *self = Self { began_at: Some(now), ..Self::new(self.level, self.what) };
        left_out
    }
}

/// Lines at debug of one kind, of which every call tells: one for the process, as its log is. Costs nothing where debug is not logged.
#[derive(Debug)]
pub(crate) struct CallLines(Mutex<Sample>);

impl CallLines {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self(Mutex::new(Sample::new(Level::DEBUG, what)))
    }

    /// Whether one more line may be told.
    pub(crate) fn may_tell(&'static self) -> bool {
        if !tracing::enabled!(Level::DEBUG) {
            return false;
        }
        let (may_tell, left_out) = {
            let mut sample = self.lock();
            (sample.may_tell(Instant::now()), sample.left_out)
        };
        // The first that is left out sees to it that the rest is told, also when no more follow.
        if !may_tell && left_out == 1 {
            tokio::spawn(async {
                tokio::time::sleep(WINDOW).await;
                self.lock().tell_rest(Instant::now());
            });
        }
        may_tell
    }

    fn lock(&self) -> MutexGuard<'_, Sample> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_the_first_lines_are_told_and_how_many_followed() {
        let mut sample = Sample::new(Level::INFO, "lines");
        let start = Instant::now();
        assert_eq!((0..100).filter(|_| sample.may_tell(start)).count(), LINES_MAX as usize);
        assert_eq!(sample.roll(start + WINDOW / 2), 0, "not before the second is over");
        assert_eq!(sample.roll(start + WINDOW), 90);
        assert!(sample.may_tell(start + WINDOW));
        assert_eq!(sample.roll(start + 2 * WINDOW), 0, "nothing was left out");
    }
}
