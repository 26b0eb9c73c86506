//! Keeps how far a call has come, for whoever must tell of it when its time is up.
//!
//! Decides nothing; written by the task that makes the attempts, read once that has been cancelled.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::refusal::Refusal;

use crate::error::{BoxError, Earlier, Error};
use crate::retry::Failure;

/// One call's.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    attempts: AtomicU32,
    last: Mutex<Option<BoxError>>,
    may_be_billed: AtomicBool,
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
        self.may_be_billed.fetch_or(failure.fault.kind.may_be_billed(), Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.into_last());
    }

    /// What is told when a further attempt is refused.
    pub(crate) fn refused(&self, refusal: Box<Refusal>) -> Error {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (attempts, may_be_billed) = (self.attempts(), self.may_be_billed.load(Ordering::Relaxed));
        Error::from(refusal).after(last.map(|last| Earlier { attempts, last, may_be_billed }))
    }

    /// What is told when the call's time, `after`, is up.
    pub(crate) fn timed_out(&self, after: Duration) -> Error {
        let (attempts, last) = (self.attempts(), self.last.lock().unwrap_or_else(PoisonError::into_inner).take());
        // What waits is refused before its time is up: the last attempt was under way.
        Error::Timeout { after, attempts, last, may_be_billed: attempts > 0 }
    }
}
