//! Decides how what happened is told: to any number of subscribers, none of whom can slow a call. And how callbacks are called.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tidegate_core::event::Event;
use tokio::sync::broadcast;

/// Events kept for a subscriber that is slow; beyond that it misses the oldest and is told how many.
pub(crate) const EVENTS_KEPT: usize = 4096;

/// Everything that happens from now on. Whoever falls behind misses the oldest events and is told how many.
pub type Events = broadcast::Receiver<Arc<Event>>;

/// Where one part tells what happens.
#[derive(Clone, Debug)]
pub(crate) struct Teller(broadcast::Sender<Arc<Event>>);

impl Default for Teller {
    fn default() -> Self {
        Self(broadcast::channel(EVENTS_KEPT).0)
    }
}

impl Teller {
    /// One that tells to the subscribers of something else.
    pub(crate) const fn of(sender: broadcast::Sender<Arc<Event>>) -> Self {
        Self(sender)
    }

    pub(crate) fn subscribe(&self) -> Events {
        self.0.subscribe()
    }

    /// Tells it, if anybody listens: nobody pays for events that nobody reads.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // The last listener may have left just now: that is no failure.
            let _ = self.0.send(Arc::new(event()));
        }
    }

    /// Calls a callback of the program's own. `None`: it panicked, which has been told and stays here.
    pub(crate) fn call<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(value) => Some(value),
            Err(panic) => {
                self.tell(|| Event::CallbackError { callback, message: words_of(panic.as_ref()).into() });
                None
            }
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<&str>().copied();
    words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panicked")
}
