//! Decides when a reply has been silent for too long: while somebody waits for more of it, not while nobody reads.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

/// A stream that is silent for so long is broken, unless a program says otherwise.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The silence of one reply.
#[derive(Debug)]
pub(super) struct Idle {
    after: Option<Duration>,
    /// Made at the first silence, as most replies have none.
    sleep: Option<Pin<Box<Sleep>>>,
    is_silent: bool,
}

impl Idle {
    pub(super) const fn new(after: Option<Duration>) -> Self {
        Self { after, sleep: None, is_silent: false }
    }

    /// Something came.
    pub(super) const fn ended(&mut self) {
        self.is_silent = false;
    }

    /// Nothing has come. Ready, with the bound, when that has been so for too long.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<Duration> {
        let Some(after) = self.after else { return Poll::Pending };
        if !std::mem::replace(&mut self.is_silent, true) {
            let over_at = Instant::now() + after;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(over_at),
                // Who reads outside of a runtime has no timer: the reply may then be silent for ever.
                None => self.sleep = Handle::try_current().is_ok().then(|| Box::pin(sleep_until(over_at))),
            }
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(context).map(|()| after),
            None => Poll::Pending,
        }
    }
}
