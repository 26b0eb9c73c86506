//! Decides how much of a call's time was tidegate's own: all in which there was something to do but to wait.
//!
//! What a call waits for, its place in the queue, a back-off, its caller's body or an upstream's reply, is not told apart here: time
//! counts while the call is being worked on, and not from where it stops for others until they let it go on.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Measures one call.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    started_at: Instant,
    waited_nanos: AtomicU64,
}

impl Stopwatch {
    /// The call has just come.
    pub(crate) fn start() -> Self {
        Self { started_at: Instant::now(), waited_nanos: AtomicU64::new(0) }
    }

    /// When the call came.
    pub(crate) const fn started_at(&self) -> Instant {
        self.started_at
    }

    /// Goes on with `work` to its end, and notes how long it waits.
    pub(crate) async fn of<W: Future>(&self, mut work: Pin<&mut W>) -> W::Output {
        let mut waits_since: Option<Instant> = None;
        poll_fn(|context| {
            if let Some(since) = waits_since.take() {
                let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.waited_nanos.fetch_add(nanos, Relaxed);
            }
            let polled = work.as_mut().poll(context);
            waits_since = polled.is_pending().then(Instant::now);
            polled
        })
        .await
    }

    /// The time until now without that in which the call waited.
    pub(crate) fn worked(&self) -> Duration {
        self.started_at.elapsed().saturating_sub(Duration::from_nanos(self.waited_nanos.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_does_not_count() {
        let watch = Stopwatch::start();
        let waits = pin!(async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        });
        watch.of(waits).await;
        assert_eq!((watch.started_at().elapsed(), watch.worked()), (Duration::from_secs(30), Duration::ZERO));
    }

    #[tokio::test]
    async fn what_is_worked_does() {
        let watch = Stopwatch::start();
        let busy = Duration::from_millis(2);
        let works = pin!(async {
            for _ in 0..3 {
                let began = Instant::now();
                while began.elapsed() < busy {}
                tokio::task::yield_now().await;
            }
        });
        watch.of(works).await;
        assert!(watch.worked() >= 3 * busy, "{:?}", watch.worked());
    }
}
