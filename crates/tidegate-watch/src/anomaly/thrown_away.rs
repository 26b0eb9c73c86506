//! Whether one key throws its users away: names each once or twice, or until its limit is used up, and then never again.
//!
//! An honest user comes back: it makes a session of several calls, and waits where it was refused. So it is with a thousand users who
//! are all new, on a launch day or after a restart; who goes round a limit has no use for a user that is known.
//! Looks at as many new users of a key at a time as there are places.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use tidegate_core::time::Time;

/// Who is not named for so long is gone. Longer than a pause within a session, and than the wait of a limit by the minute.
const SILENT_FOR: u64 = 300;
/// Who still comes after so long is kept, and its place free.
const LOOKED_AT_FOR: u64 = 600;
/// More calls are a session.
const CALLS_FEW: u32 = 2;
/// How many users of a key are looked at at one time.
const PLACES: usize = 256;

const CALLS: u32 = 0xffff;
/// Named since the last look.
const IS_NAMED: u32 = 1 << 16;
/// A limit refused its last call.
const IS_REFUSED: u32 = 1 << 17;
/// A limit of its own did.
const IS_USED_UP: u32 = 1 << 18;
/// Users had limits of their own when it came.
const IS_LIMITED: u32 = 1 << 19;

/// New users of one key, and what came of them. Notes without a lock.
#[derive(Debug)]
pub(super) struct Places(Box<[Place]>);

#[derive(Debug, Default)]
struct Place {
    /// 0: free.
    hash: AtomicU64,
    state: AtomicU32,
    /// Seconds of the driver's clock; of concern to the looks alone.
    came_at: AtomicU64,
    named_at: AtomicU64,
}

/// What has come of users that were new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) thrown_away: u64,
    pub(super) kept: u64,
    /// Who is looked at yet and makes a session: else those who soon leave would be all that is known at first.
    pub(super) stays: u64,
}

impl Default for Places {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Place::default()).collect())
    }
}

impl Places {
    /// The two places that one may have: with one alone each tenth of fifty would find its own taken.
    fn of(&self, hash: u64) -> [&Place; 2] {
        [&self.0[(hash >> 32) as usize % PLACES], &self.0[(hash >> 48) as usize % PLACES]]
    }

    fn find(&self, hash: u64) -> Option<&Place> {
        self.of(hash).into_iter().find(|place| place.hash.load(Relaxed) == hash.max(1))
    }

    /// One who is looked at makes another call. False: it is not looked at.
    pub(super) fn again(&self, hash: u64) -> bool {
        let Some(place) = self.find(hash) else { return false };
        let more = |state: u32| Some(IS_NAMED | state & IS_LIMITED | (state & CALLS).saturating_add(1).min(CALLS));
        let _ = place.state.fetch_update(Relaxed, Relaxed, more);
        true
    }

    /// A new one makes its first call.
    pub(super) fn comes(&self, hash: u64, is_limited: bool) {
        let is_free = |place: &&Place| place.hash.compare_exchange(0, hash.max(1), Relaxed, Relaxed).is_ok();
        if let Some(place) = self.of(hash).into_iter().find(is_free) {
            place.state.store(1 | IS_NAMED | if is_limited { IS_LIMITED } else { 0 }, Relaxed);
        }
    }

    /// A limit refused a call; `by_its_own`: one that has a level for each user.
    pub(super) fn refused(&self, hash: u64, by_its_own: bool) {
        if let Some(place) = self.find(hash) {
            place.state.fetch_or(if by_its_own { IS_REFUSED | IS_USED_UP } else { IS_REFUSED }, Relaxed);
        }
    }

    /// What has come of some since the last look. Of who came before `all_new_until` few calls alone say nothing.
    pub(super) fn judge(&self, now: Time, all_new_until: Time) -> Came {
        let seconds = |time: Time| time.since(Time::ZERO).as_secs();
        let (now, all_new_until) = (seconds(now), seconds(all_new_until));
        let mut came = Came::default();
        for place in self.0.iter().filter(|place| place.hash.load(Relaxed) != 0) {
            let state = place.state.fetch_and(!IS_NAMED, Relaxed);
            // It is about to come.
            if state == 0 {
                continue;
            }
            if state & IS_NAMED != 0 {
                place.named_at.store(now, Relaxed);
            }
            if place.came_at.load(Relaxed) == 0 {
                place.came_at.store(now.max(1), Relaxed);
            }
            let came_at = place.came_at.load(Relaxed);
            let is_gone = now.saturating_sub(place.named_at.load(Relaxed)) >= SILENT_FOR;
            if is_gone && is_thrown_away(state, came_at < all_new_until) {
                came.thrown_away += 1;
            } else if is_gone || now.saturating_sub(came_at) >= LOOKED_AT_FOR {
                came.kept += 1;
            } else {
                came.stays += u64::from(state & CALLS > CALLS_FEW && state & IS_USED_UP == 0);
                continue;
            }
            place.came_at.store(0, Relaxed);
            place.state.store(0, Relaxed);
            place.hash.store(0, Relaxed);
        }
        came
    }
}

fn is_thrown_away(state: u32, only_refused: bool) -> bool {
    let is_few = state & CALLS <= CALLS_FEW;
    let says_something = state & IS_REFUSED != 0 || !only_refused && state & IS_LIMITED != 0;
    state & IS_USED_UP != 0 || is_few && says_something
}

impl Came {
    /// Out of these, so many and nearly all were thrown away.
    pub(super) fn is_churn(self, thrown_away_min: u64) -> bool {
        self.thrown_away >= thrown_away_min && self.thrown_away > 9 * (self.kept + self.stays)
    }
}

impl std::ops::AddAssign for Came {
    /// What a later look saw.
    fn add_assign(&mut self, more: Self) {
        self.thrown_away += more.thrown_away;
        self.kept += more.kept;
        self.stays = more.stays;
    }
}
