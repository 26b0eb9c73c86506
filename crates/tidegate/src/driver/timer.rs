//! Wakes the core when something is due: one task for all calls, on whichever runtime one of them waits.
//!
//! Decides nothing; holds no driver up, and ends with the last handle on it.

use std::sync::{Arc, Weak};

use tidegate_core::time::Time;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Inner;
use crate::clock::Clock;

/// What the timer's task holds. A driver outlives the runtime that it was made on, as one in a `static` does that several
/// tests use: the task then ends with that runtime, and those who wait on another must hear of it.
pub(super) struct Timer {
    inner: Weak<Inner>,
    sooner: Arc<Notify>,
    clock: Clock,
}

impl Timer {
    fn of(inner: &Arc<Inner>) -> Self {
        Self { inner: Arc::downgrade(inner), sooner: inner.sooner.clone(), clock: inner.clock }
    }

    /// Runs one for `inner` on the runtime of whoever asks. False: there is none.
    pub(super) fn start(inner: &Arc<Inner>) -> bool {
        let Ok(runtime) = Handle::try_current() else { return false };
        drop(runtime.spawn(Self::of(inner).run()));
        true
    }

    pub(super) async fn run(self) {
        loop {
            let due = {
                let Some(inner) = self.inner.upgrade() else { return };
                let mut state = inner.lock();
                let now = self.clock.now();
                state.gate.advance(now);
                // From here on the timer knows what is due; `finish` tells it only of what is due sooner.
                state.timer_at = state.gate.wake_at().unwrap_or(Time::NEVER);
                let due = state.timer_at;
                inner.finish(state);
                due
            };
            let told = self.sooner.notified();
            if due == Time::NEVER {
                told.await;
            } else {
                // Either of the two is a reason to look again.
                let _ = tokio::time::timeout_at(self.clock.instant(due), told).await;
            }
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut state = inner.lock();
        state.has_timer = false;
        // After a panic of the core nobody is woken, lest it come again at once: the next call starts the timer.
        if !std::thread::panicking() {
            state.wake_all();
        }
        inner.finish(state);
    }
}
