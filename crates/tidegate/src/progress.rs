//! Keeps how far a call has come, for whoever must tell of it when its time is up.
//!
//! Decides nothing; written by the task that makes the attempts, read once that has been cancelled.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{BoxError, Error};
use crate::retry::Failure;

/// One call's.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    attempts: AtomicU32,
    last: Mutex<Option<BoxError>>,
}

impl Progress {
    /// Attempts begun.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The attempt of this number begins.
    pub(crate) fn begins(&self, attempt: u32) {
        self.attempts.store(attempt, Ordering::Relaxed);
    }

    /// It failed, and another is waited for.
    pub(crate) fn failed(&self, failure: Failure) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.into_last());
    }

    /// What is told when the call's time, `after`, is up.
    pub(crate) fn timed_out(&self, after: Duration) -> Error {
        let (attempts, last) = (self.attempts(), self.last.lock().unwrap_or_else(PoisonError::into_inner).take());
        // What waits is refused before its time is up: the last attempt was under way.
        Error::Timeout { after, attempts, last, may_be_billed: attempts > 0 }
    }
}
