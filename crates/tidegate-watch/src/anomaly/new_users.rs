//! Whether one key brings unusually many users that it never named before, or throws them away: each new one has a fresh limit.
//!
//! Usual is what that key itself does: the most new users that it brought within ten minutes of the last day, and the most that it
//! threw away and was suspected of for an hour. Where nothing is usual yet none is to be thrown away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::time::Time;

use super::thrown_away::{Came, Places};

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
    places: Places,
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
    /// This stretch so far.
    this: Stretch,
    /// Those before; the newest first.
    stretches: VecDeque<Stretch>,
}

#[derive(Debug, Default)]
struct Stretch {
    /// New users.
    new: u64,
    /// What came of new users in it.
    came: Came,
    is_suspected: bool,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            filters: [Filter::empty(), Filter::empty()],
            younger: AtomicUsize::new(0),
            new: AtomicU64::new(0),
            places: Places::default(),
            calls: AtomicU64::new(0),
            past: Mutex::default(),
        }
    }
}

impl Users {
    /// A call for one of them. `are_limited`: users have limits of their own, so that a new one is worth something.
    pub(super) fn note(&self, hash: u64, are_limited: bool) {
        self.calls.fetch_add(1, Relaxed);
        let is_looked_at = self.places.again(hash);
        let [first, second] = &self.filters;
        let (younger, older) = if self.younger.load(Relaxed) == 0 { (first, second) } else { (second, first) };
        // Into the younger one also if it is known: who is active is not forgotten.
        if younger.insert(hash) && !older.has(hash) && !is_looked_at {
            self.places.comes(hash, are_limited);
            if are_limited {
                self.new.fetch_add(1, Relaxed);
            }
        }
    }

    /// A limit refused a call for one of them; `by_its_own`: one that has a level for each user.
    pub(super) fn refused(&self, hash: u64, by_its_own: bool) {
        self.places.refused(hash, by_its_own);
    }

    /// How many users are new in this stretch, or were thrown away in it, if that is suspicious and has not been said yet.
    /// `all_new_until`: of who came before it only who was refused counts as thrown away.
    pub(super) fn judge(&self, now: Time, all_new_until: Time) -> Option<u64> {
        let younger = self.younger.load(Relaxed);
        if self.filters[younger].users.load(Relaxed) >= USERS_MAX {
            self.filters[1 - younger].clear();
            self.younger.store(1 - younger, Relaxed);
        }
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let came = self.places.judge(now, all_new_until);
        past.judge(now, self.new.swap(0, Relaxed), came, self.calls.swap(0, Relaxed) > 0)
    }

    pub(super) fn is_suspected(&self) -> bool {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        // Until the stretch after it has shown that it is over.
        past.this.is_suspected || past.stretches.front().is_some_and(|before| before.is_suspected)
    }

    pub(super) fn is_idle(&self, now: Time) -> bool {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.used_at.is_some_and(|used_at| now.since(used_at) >= IDLE_FOR) && self.calls.load(Relaxed) == 0
    }
}

impl Past {
    fn judge(&mut self, now: Time, new: u64, came: Came, is_used: bool) -> Option<u64> {
        let used_at = self.used_at.get_or_insert(now);
        if is_used {
            *used_at = now;
        }
        let began_at = *self.began_at.get_or_insert(now);
        if now.since(began_at) >= STRETCH {
            self.began_at = Some(now);
            self.stretches.push_front(std::mem::take(&mut self.this));
            self.stretches.truncate(STRETCHES_MAX);
        }
        self.this.new += new;
        self.this.came += came;
        let Stretch { new, came, .. } = self.this;
        let brings = new >= NEW_USERS_MIN && self.usually_new().is_some_and(|usual| new > FACTOR * usual);
        let throws_away = came.is_churn(NEW_USERS_MIN) && came.thrown_away > FACTOR * self.usually_thrown_away();
        let is_news = (brings || throws_away) && !self.this.is_suspected;
        self.this.is_suspected |= is_news;
        is_news.then_some(if brings { new } else { came.thrown_away })
    }

    /// `None`: not known yet.
    fn usually_new(&self) -> Option<u64> {
        let is_usual = |(age, past): &(usize, &Stretch)| !past.is_suspected || is_old(*age);
        self.stretches.iter().enumerate().filter(is_usual).map(|(_, past)| past.new).max()
    }

    /// What was told of, and lasts.
    fn usually_thrown_away(&self) -> u64 {
        let is_usual = |(age, past): &(usize, &Stretch)| past.is_suspected && is_old(*age);
        let thrown_away = |(_, past): (usize, &Stretch)| past.came.thrown_away;
        self.stretches.iter().enumerate().filter(is_usual).map(thrown_away).max().unwrap_or(0)
    }
}

/// What was suspected, if anything was, was suspected long enough. The newest stretch before this has the age 0.
fn is_old(age: usize) -> bool {
    age + 1 >= SUSPECT_FOR
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
    /// Here it is not looked at who is thrown away.
    const NO_MATTER: Time = Time::from_secs(1 << 40);

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
            self.users.note(self.hasher.hash_one(user), true);
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
                if self.users.judge(Time::from_secs(self.second), NO_MATTER).is_some() {
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
            key.users.judge(Time::from_secs(round), NO_MATTER);
        }
        key.users.judge(Time::from_secs(11), NO_MATTER);
        for user in 0..100 {
            key.call(user);
        }
        assert_eq!(key.users.new.load(Relaxed), 0);
    }
}
