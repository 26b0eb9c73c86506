//! Whether one key brings unusually many users that it never named before: each new one has a fresh limit.
//!
//! Usual is what that key itself does: the most new users that it brought within ten minutes of the last day.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::time::Time;

/// New users are counted over so long. The first stretch of a key is only learned from: then all its users are new.
const STRETCH: Duration = Duration::from_secs(600);
/// A day of them.
const STRETCHES_MAX: usize = 144;
/// What was suspected is usual too once so many stretches have passed: growth is no attack for ever.
const SUSPECT_FOR: usize = 6;
/// Fewer new users are nothing unusual.
const NEW_USERS_MIN: u64 = 50;
/// So many times the usual is.
const FACTOR: u64 = 3;
/// A key that names nobody for so long is forgotten.
const IDLE_FOR: Duration = Duration::from_secs(3600);
/// Bits of one filter; with four bits a user, one user in 400 is taken for a known one when it is full.
const BITS: usize = 1 << 16;
/// A filter holds so many users; then the next begins, and the one before the last is forgotten.
const USERS_MAX: usize = 4096;

/// The users that one key has named, as far as is needed to tell new ones. Notes without a lock.
#[derive(Debug)]
pub(super) struct Users {
    /// What is known: the younger filter and the one before it.
    filters: [Filter; 2],
    younger: AtomicUsize,
    /// Users not known before, since the last look.
    new: AtomicU64,
    calls: AtomicU64,
    past: Mutex<Past>,
}

#[derive(Debug)]
struct Filter {
    words: Box<[AtomicU64]>,
    users: AtomicUsize,
}

/// What the looks have seen.
#[derive(Debug, Default)]
struct Past {
    used_at: Option<Time>,
    began_at: Option<Time>,
    /// New users in this stretch.
    new: u64,
    /// Whether this stretch is suspected.
    is_suspected: bool,
    /// New users in the stretches before, and whether they were suspected; the newest first.
    stretches: VecDeque<(u64, bool)>,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            filters: [Filter::empty(), Filter::empty()],
            younger: AtomicUsize::new(0),
            new: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            past: Mutex::default(),
        }
    }
}

impl Users {
    pub(super) fn note(&self, hash: u64) {
        self.calls.fetch_add(1, Relaxed);
        let [first, second] = &self.filters;
        let (younger, older) = if self.younger.load(Relaxed) == 0 { (first, second) } else { (second, first) };
        // Into the younger one also if it is known: who is active is not forgotten.
        if younger.insert(hash) && !older.has(hash) {
            self.new.fetch_add(1, Relaxed);
        }
    }

    /// How many new users there are in this stretch, if that is suspicious and has not been said yet.
    pub(super) fn judge(&self, now: Time) -> Option<u64> {
        let younger = self.younger.load(Relaxed);
        if self.filters[younger].users.load(Relaxed) >= USERS_MAX {
            self.filters[1 - younger].clear();
            self.younger.store(1 - younger, Relaxed);
        }
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.judge(now, self.new.swap(0, Relaxed), self.calls.swap(0, Relaxed) > 0)
    }

    pub(super) fn is_suspected(&self) -> bool {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        // Until the stretch after it has shown that it is over.
        past.is_suspected || past.stretches.front().is_some_and(|(_, was_suspected)| *was_suspected)
    }

    pub(super) fn is_idle(&self, now: Time) -> bool {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.used_at.is_some_and(|used_at| now.since(used_at) >= IDLE_FOR) && self.calls.load(Relaxed) == 0
    }
}

impl Past {
    fn judge(&mut self, now: Time, new: u64, is_used: bool) -> Option<u64> {
        let used_at = self.used_at.get_or_insert(now);
        if is_used {
            *used_at = now;
        }
        let began_at = *self.began_at.get_or_insert(now);
        if now.since(began_at) >= STRETCH {
            self.stretches.push_front((self.new, self.is_suspected));
            self.stretches.truncate(STRETCHES_MAX);
            (self.began_at, self.new, self.is_suspected) = (Some(now), 0, false);
        }
        self.new += new;
        let is_unusual = self.new >= NEW_USERS_MIN && self.usual().is_some_and(|usual| self.new > FACTOR * usual);
        let is_news = is_unusual && !self.is_suspected;
        self.is_suspected |= is_unusual;
        is_news.then_some(self.new)
    }

    /// `None`: not known yet.
    fn usual(&self) -> Option<u64> {
        let is_usual = |(age, (_, was_suspected)): &(usize, &(u64, bool))| !was_suspected || *age + 1 >= SUSPECT_FOR;
        self.stretches.iter().enumerate().filter(is_usual).map(|(_, (new, _))| *new).max()
    }
}

impl Filter {
    fn empty() -> Self {
        Self { words: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect(), users: AtomicUsize::new(0) }
    }

    /// Four bits: a word of the hash each.
    fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
        (0..4).map(move |part| {
            let bit = (hash >> (16 * part)) as usize % BITS;
            (bit / 64, 1 << (bit % 64))
        })
    }

    fn has(&self, hash: u64) -> bool {
        Self::bits(hash).all(|(word, bit)| self.words[word].load(Relaxed) & bit != 0)
    }

    /// True if it was not there.
    fn insert(&self, hash: u64) -> bool {
        if self.has(hash) {
            return false;
        }
        for (word, bit) in Self::bits(hash) {
            self.words[word].fetch_or(bit, Relaxed);
        }
        self.users.fetch_add(1, Relaxed);
        true
    }

    fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
        self.users.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    const NEVER: [u64; 0] = [];

    /// A key whose users are numbers; looked at once a second.
    struct Key {
        users: Users,
        hasher: RandomState,
        second: u64,
        next: u64,
    }

    impl Key {
        fn new() -> Self {
            Self { users: Users::default(), hasher: RandomState::new(), second: 0, next: 0 }
        }

        fn call(&self, user: u64) {
            self.users.note(self.hasher.hash_one(user));
        }

        /// So many seconds in which `new` users come each minute, beside ten that always do; when it was suspected, in seconds.
        fn pass(&mut self, seconds: u64, new: u64) -> Vec<u64> {
            let mut suspected = Vec::new();
            for _ in 0..seconds {
                (0..10).for_each(|user| self.call(user));
                let due = |second: u64| second * new / 60;
                for _ in due(self.second)..due(self.second + 1) {
                    self.call(1000 + self.next);
                    self.next += 1;
                }
                if self.users.judge(Time::from_secs(self.second)).is_some() {
                    suspected.push(self.second);
                }
                self.second += 1;
            }
            suspected
        }
    }

    #[test]
    fn many_more_new_users_than_ever_are_suspicious_once() {
        let mut key = Key::new();
        assert_eq!(key.pass(3600, 2), NEVER, "twenty in ten minutes, from the first on");
        let suspected = key.pass(600, 60);
        assert!(suspected.len() == 1 && (3650..3700).contains(&suspected[0]), "{suspected:?}");
        assert!(key.users.is_suspected());
        key.pass(1300, 2);
        assert!(!key.users.is_suspected());
    }

    #[test]
    fn a_key_that_always_brings_new_users_is_not_suspicious() {
        let mut key = Key::new();
        assert_eq!(key.pass(600, 600), NEVER, "all are new at first");
        assert_eq!(key.pass(6 * 3600, 600), NEVER, "36,000 users an hour, far more than are remembered");
        assert_eq!(key.pass(600, 1200), NEVER, "nor at twice the pace");
    }

    #[test]
    fn what_lasts_is_usual_after_an_hour() {
        let mut key = Key::new();
        key.pass(1800, 0);
        let suspected = key.pass(3 * 3600, 60);
        assert_eq!(suspected.len(), 6, "{suspected:?}");
        assert!(!key.users.is_suspected());
    }

    #[test]
    fn the_same_users_are_never_new_again_however_many_others_come() {
        let key = Key::new();
        for user in 0..100 {
            key.call(user);
        }
        for round in 0..10 {
            for other in 0..1000 {
                key.call(10_000 + 1000 * round + other);
                key.call(other % 100);
            }
            key.users.judge(Time::from_secs(round));
        }
        key.users.judge(Time::from_secs(11));
        for user in 0..100 {
            key.call(user);
        }
        assert_eq!(key.users.new.load(Relaxed), 0);
    }
}
