//! Decides what follows when the bill or a spending cap ends: nothing more is sent, or one call now and then finds out.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What an exhausted quota means to a run (`--on-quota`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnQuota {
    /// It ends; what was not sent has no result, so that the run can go on later.
    #[default]
    Stop,
    /// It waits, and now and then sends one call, until one goes well: the first after a second, each wait twice as long as the
    /// one before, none longer than this. Whoever has just paid is seen at once, and a night without quota costs little.
    Pause(Duration),
}

/// A pause's first wait.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);

/// Whether there is any quota, as far as is known.
#[derive(Debug)]
pub(crate) struct Quota {
    on: OnQuota,
    /// `None`: there is.
    out: watch::Sender<Option<Out>>,
}

/// There is none.
#[derive(Clone, Copy, Debug)]
struct Out {
    since: Instant,
    /// When the next call finds out. Whoever goes first puts it off for the others, so that it is one at a time, and so that
    /// nothing hangs on what becomes of that one.
    look_at: Instant,
    /// How long it waits before that.
    wait: Duration,
}

impl Quota {
    pub(crate) fn new(on: OnQuota) -> Self {
        Self { on, out: watch::channel(None).0 }
    }

    /// An answer said that the quota is exhausted. Returns whether the run is to end for it.
    #[must_use]
    pub(crate) fn exhausted(&self) -> bool {
        let OnQuota::Pause(longest) = self.on else { return true };
        let (since, wait) = (Instant::now(), FIRST_LOOK_AFTER.min(longest));
        let is_news = self.out.send_if_modified(|out| {
            let is_news = out.is_none();
            out.get_or_insert(Out { since, look_at: since + wait, wait });
            is_news
        });
        if is_news {
            tracing::warn!(
                "the quota is exhausted: paused; one call now and then finds out whether there is some again"
            );
        }
        false
    }

    /// An answer to what was sent at `sent_at` was good. What was in flight when the quota ended says nothing.
    pub(crate) fn fine(&self, sent_at: Instant) {
        if self.out.send_if_modified(|out| out.take_if(|out| out.since < sent_at).is_some()) {
            tracing::info!("there is quota again");
        }
    }

    /// Waits until there is quota, as far as is known, or until it is time to find out.
    pub(crate) async fn may_be_fine(&self) {
        let mut changes = self.out.subscribe();
        loop {
            let Some(Out { look_at, .. }) = *changes.borrow_and_update() else { return };
            tokio::select! {
                // The sender is here: it cannot be gone.
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(look_at) => return,
            }
        }
    }

    /// Whether there is none, as far as is known.
    pub(crate) fn is_out(&self) -> bool {
        self.out.borrow().is_some()
    }

    /// Whether a call may be sent now: there is quota, as far as is known, or it is to find out.
    pub(crate) fn lets_go(&self) -> bool {
        let OnQuota::Pause(longest) = self.on else { return true };
        let now = Instant::now();
        let mut goes = true;
        self.out.send_if_modified(|out| {
            let Some(out) = out else { return false };
            goes = out.look_at <= now;
            if goes {
                out.wait = (out.wait * 2).min(longest);
                out.look_at = now + out.wait;
            }
            goes
        });
        goes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn one_call_each_time_finds_out_for_all() {
        let quota = Quota::new(OnQuota::Pause(LONGEST));
        let began = Instant::now();
        assert!(quota.lets_go() && !quota.exhausted());
        for seconds in [1, 3, 7, 15, 25, 35] {
            assert!(!quota.lets_go());
            quota.may_be_fine().await;
            assert_eq!(began.elapsed(), Duration::from_secs(seconds));
            // What becomes of this one does not matter to the next.
            assert!(quota.lets_go());
        }
        let sent_at = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::join!(quota.may_be_fine(), async { quota.fine(sent_at) });
        assert!(quota.lets_go() && quota.lets_go());
        assert_eq!(began.elapsed(), Duration::from_secs(36));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_in_flight_when_the_quota_ended_says_nothing_of_it() {
        let quota = Quota::new(OnQuota::Pause(LONGEST));
        let sent_at = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!quota.exhausted());
        quota.fine(sent_at);
        assert!(!quota.lets_go());
        assert!(Quota::new(OnQuota::Stop).exhausted());
    }
}
