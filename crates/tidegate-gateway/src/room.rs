//! Decides whether the bodies that are being read may take more memory; those that wait are the core's to count.
//!
//! The two are bounded apart, each by `queue.max_bytes`: a tenant whose calls fill the queue must not keep those out that
//! need not wait.

use std::sync::atomic::{AtomicU64, Ordering};

/// So much of each body is not counted: its connection has a buffer of that size anyway, and most bodies are no larger.
const FREE_BYTES: u64 = 64 << 10;

/// Bytes of all bodies that are being read, beyond what each has free.
#[derive(Debug, Default)]
pub(crate) struct Room(AtomicU64);

impl Room {
    /// For one body, which takes nothing yet; all together may take `bytes_max`.
    pub(crate) const fn for_body(&self, bytes_max: u64) -> Held<'_> {
        Held { room: self, bytes_max, bytes: 0 }
    }
}

/// What one body takes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'r> {
    room: &'r Room,
    bytes_max: u64,
    bytes: u64,
}

impl Held<'_> {
    /// Whether there is room for the body to have `length` bytes. It is never less than before.
    #[must_use]
    pub(crate) fn grow(&mut self, length: u64) -> bool {
        let more = length.saturating_sub(FREE_BYTES).saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        self.bytes += more;
        let all = self.room.0.fetch_add(more, Ordering::Relaxed) + more;
        // One that is larger than the whole room still gets in when it is alone: else it never would.
        all <= self.bytes_max || all == self.bytes
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::default();
        let mut one = room.for_body(1000);
        let mut other = room.for_body(1000);
        assert!(one.grow(FREE_BYTES + 600) && one.grow(FREE_BYTES + 700));
        assert!(other.grow(FREE_BYTES + 300));
        assert!(!other.grow(FREE_BYTES + 301));
        assert!(room.for_body(1000).grow(FREE_BYTES), "small bodies always have room");
        drop(other);
        assert!(one.grow(FREE_BYTES + 5000), "nobody else is there");
        drop(one);
        assert_eq!(room.0.into_inner(), 0);
    }
}
