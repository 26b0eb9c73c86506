//! Decides what follows when the bill or a spending cap ends: nothing more is sent, or one call now and then finds out.

use std::time::Duration;

use tokio::sync::watch;

/// While paused, one call finds out each time this has passed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What an exhausted quota means to a run (`--on-quota`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnQuota {
    /// It ends; what was not sent has no result, so that the run can go on later.
    #[default]
    Stop,
    /// It waits, and sends one call a minute until one goes well.
    Pause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fine,
    Exhausted,
}

/// Whether there is any quota, as far as is known.
#[derive(Debug)]
pub(crate) struct Quota {
    on: OnQuota,
    state: watch::Sender<State>,
}

/// What the one that met the end of the quota is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The run ends.
    Stop,
    /// Wait and find out, on behalf of all.
    LookAfter(Duration),
    /// Wait until another has found out.
    Wait,
}

impl Quota {
    pub(crate) fn new(on: OnQuota) -> Self {
        Self { on, state: watch::channel(State::Fine).0 }
    }

    /// An answer said that the quota is exhausted. `looked`: to one that was to find out.
    pub(crate) fn exhausted(&self, looked: bool) -> Next {
        let before = self.state.send_replace(State::Exhausted);
        match self.on {
            OnQuota::Stop => Next::Stop,
            OnQuota::Pause if before == State::Fine || looked => Next::LookAfter(LOOK_EVERY),
            OnQuota::Pause => Next::Wait,
        }
    }

    /// An answer was good.
    pub(crate) fn fine(&self) {
        self.state.send_if_modified(|state| std::mem::replace(state, State::Fine) == State::Exhausted);
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        *self.state.borrow() == State::Exhausted
    }

    /// Waits until there is quota, as far as is known.
    pub(crate) async fn is_fine(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.state.subscribe().wait_for(|state| *state == State::Fine).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_finds_out_for_all() {
        let quota = Quota::new(OnQuota::Pause);
        assert_eq!(quota.exhausted(false), Next::LookAfter(LOOK_EVERY));
        assert_eq!(quota.exhausted(false), Next::Wait);
        assert_eq!(quota.exhausted(true), Next::LookAfter(LOOK_EVERY));
        quota.fine();
        assert!(!quota.is_exhausted());
        assert_eq!(Quota::new(OnQuota::Stop).exhausted(false), Next::Stop);
    }
}
