//! Decides how many may read along at a time, and that those who only look leave room for those who act.

use std::sync::Arc;

use tidegate_core::config::AdminRole;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many read at a time: each costs a little for every event.
const READERS_MAX: usize = 32;
/// So many of them may be viewers: whatever these do, operators see what happens.
const VIEWERS_MAX: usize = 24;

/// The places for readers.
#[derive(Debug)]
pub(super) struct Places {
    readers: Arc<Semaphore>,
    viewers: Arc<Semaphore>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _reader: OwnedSemaphorePermit,
    _viewer: Option<OwnedSemaphorePermit>,
}

/// There is none left: how many have one, and who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken(pub(super) usize, pub(super) &'static str);

impl Default for Places {
    fn default() -> Self {
        let of = |places| Arc::new(Semaphore::new(places));
        Self { readers: of(READERS_MAX), viewers: of(VIEWERS_MAX) }
    }
}

impl Places {
    /// A place for one of this role.
    pub(super) fn take(&self, role: AdminRole) -> Result<Place, Taken> {
        let viewer = match role {
            AdminRole::Operator => None,
            AdminRole::Viewer => {
                Some(self.viewers.clone().try_acquire_owned().map_err(|_| Taken(VIEWERS_MAX, "viewers"))?)
            }
        };
        let reader = self.readers.clone().try_acquire_owned().map_err(|_| Taken(READERS_MAX, "readers"))?;
        Ok(Place { _reader: reader, _viewer: viewer })
    }

    /// Returns once nobody has a place.
    pub(super) async fn all_left(&self) {
        // Nobody closes it.
        let _ = self.readers.acquire_many(READERS_MAX as u32).await;
    }
}
