//! Decides how what happened is told: to any number of subscribers, none of whom can slow a call. And how callbacks are called.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use tidegate_core::event::Event;
use tokio::sync::broadcast;

/// Events kept for a subscriber that is slow; beyond that it misses the oldest and is told how many.
const EVENTS_KEPT: usize = 4096;

/// Everything that happens from now on. Whoever falls behind misses the oldest events and is told how many.
pub type Events = broadcast::Receiver<Arc<Event>>;

/// Where one part tells what happens; clones tell to the same subscribers. Nothing is kept ready before the first of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Teller(Arc<OnceLock<broadcast::Sender<Arc<Event>>>>);

impl Teller {
    pub(crate) fn subscribe(&self) -> Events {
        self.0.get_or_init(|| broadcast::channel(EVENTS_KEPT).0).subscribe()
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.0.get().is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// True if anybody listens.
    pub(crate) fn send(&self, event: Arc<Event>) -> bool {
        self.0.get().is_some_and(|sender| sender.send(event).is_ok())
    }

    /// Tells it, if anybody listens: nobody pays for events that nobody reads.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.is_heard() {
            // The last listener may have left just now: that is no failure.
            self.send(Arc::new(event()));
        }
    }

    /// Calls a callback of the program's own. `None`: it panicked, which has been told and stays here.
    pub(crate) fn call<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        contained(&[self], callback, call)
    }
}

/// The same, told by each of `tellers`.
pub(crate) fn contained<T>(tellers: &[&Teller], callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(panic) => {
            for teller in tellers {
                teller.tell(|| Event::CallbackError { callback, message: words_of(panic.as_ref()).into() });
            }
            None
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<&str>().copied();
    words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panicked")
}
