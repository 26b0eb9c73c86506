//! Decides who seems to go round its limits: a key that brings ever new users, a caller that comes back before the time it was told.
//!
//! A key brings too many where they are many more than it ever brought, or where it throws them away: names 50 within ten minutes no
//! more than twice each, or until a limit of their own refuses them, and then not for five minutes, and nine of ten of its new users so.
//! In the first hour after a start, when every user is new, and where users have no limits, few calls alone say nothing: who was refused
//! and is gone does. A caller comes back too soon by itself, or by turns with others of its tenant.
//!
//! Suspects, and never holds anything back: whoever is told judges. What a call pays is a hash and a few atomics, and that only where
//! it names a user. Memory is bounded: by callers, and by what is kept of each.

mod new_users;
mod returns;
mod thrown_away;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tidegate_core::event::Event;
use tidegate_core::time::Time;

use new_users::Users;
use returns::Returns;

/// Keys whose users are looked at; 25 KiB each. Further ones have to wait until one of them has been idle for an hour.
const CALLERS_MAX: usize = 1024;
/// After a start every user is new, and who comes once an hour looks like one that never comes again.
const ALL_ARE_NEW_FOR: Duration = Duration::from_secs(3600);

/// Looks for callers that go round their limits; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Anomalies(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hasher: RandomState,
    started_at: OnceLock<Time>,
    users: RwLock<HashMap<Arc<str>, Arc<Users>>>,
    returns: Mutex<Returns>,
}

/// A caller that seems to go round its limits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suspicion {
    /// Its key, or the tenant where it has none.
    pub caller: Arc<str>,
    /// `new_users` or `early_returns`.
    pub pattern: &'static str,
    /// New users so far in ten minutes, or those of up to 256 at a time that were thrown away; or returns so far in a minute.
    pub count: u64,
}

impl Suspicion {
    /// What it is about, told to whoever subscribes to events.
    #[must_use]
    pub fn event(&self) -> Event {
        Event::BypassSuspected { caller: self.caller.clone(), pattern: self.pattern, count: self.count }
    }
}

impl Anomalies {
    /// `caller` makes a call for `user`. `users_are_limited`: there are limits with a level for each user.
    pub fn named(&self, caller: &Arc<str>, user: &str, users_are_limited: bool) {
        let hash = self.0.hasher.hash_one(user);
        if let Some(users) = self.0.users.read().unwrap_or_else(PoisonError::into_inner).get(caller) {
            users.note(hash, users_are_limited);
            return;
        }
        let mut all = self.0.users.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() < CALLERS_MAX {
            all.entry(caller.clone()).or_default().note(hash, users_are_limited);
        }
    }

    /// A limit refused a call that `caller` made for `user`; `by_its_own`: a limit with a level for each user.
    pub fn refused(&self, caller: &Arc<str>, user: &str, by_its_own: bool) {
        if let Some(users) = self.0.users.read().unwrap_or_else(PoisonError::into_inner).get(caller) {
            users.refused(self.0.hasher.hash_one(user), by_its_own);
        }
    }

    /// Something happened.
    pub fn take(&self, event: &Event, now: Time) {
        if let Event::Refused { whose, reason: "limit" | "too_large", retry_after, .. } = event {
            self.0.returns.lock().unwrap_or_else(PoisonError::into_inner).refused(whose, *retry_after, now);
        }
    }

    /// Looks at what has come since the last look: whom to suspect from now on. To be asked about once a second.
    #[must_use]
    pub fn judge(&self, now: Time) -> Vec<Suspicion> {
        let started_at = *self.0.started_at.get_or_init(|| now);
        let all_new_until = started_at + ALL_ARE_NEW_FOR;
        // Calls go on meanwhile: they wait only while somebody is forgotten, or is new.
        let all = self.0.users.read().unwrap_or_else(PoisonError::into_inner);
        let has_idle = all.values().any(|users| users.is_idle(now));
        let new_users = all.iter().filter_map(|(caller, users)| {
            let count = users.judge(now, all_new_until)?;
            Some(Suspicion { caller: caller.clone(), pattern: "new_users", count })
        });
        let mut found: Vec<Suspicion> = new_users.collect();
        drop(all);
        if has_idle {
            let mut all = self.0.users.write().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, users| !users.is_idle(now));
        }
        found.extend(self.0.returns.lock().unwrap_or_else(PoisonError::into_inner).judge(now));
        found
    }

    /// Whom it suspects at the moment, and of what: `billing (new_users)`.
    #[must_use]
    pub fn suspected(&self) -> Vec<String> {
        let all = self.0.users.read().unwrap_or_else(PoisonError::into_inner);
        let new_users = all.iter().filter(|(_, users)| users.is_suspected());
        let mut suspected: Vec<String> = new_users.map(|(caller, _)| format!("{caller} (new_users)")).collect();
        drop(all);
        let returns = self.0.returns.lock().unwrap_or_else(PoisonError::into_inner);
        suspected.extend(returns.suspected().into_iter().map(|caller| format!("{caller} (early_returns)")));
        suspected.sort_unstable();
        suspected.dedup();
        suspected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_callers_take_no_more_room() {
        let anomalies = Anomalies::default();
        for number in 0..3 * CALLERS_MAX {
            anomalies.named(&Arc::from(format!("caller-{number}")), "ada", true);
        }
        assert_eq!(anomalies.0.users.read().unwrap().len(), CALLERS_MAX);
        for second in 0..4000 {
            assert_eq!(anomalies.judge(Time::from_secs(second)), []);
        }
        assert_eq!(anomalies.0.users.read().unwrap().len(), 0, "the idle are forgotten");
    }
}
