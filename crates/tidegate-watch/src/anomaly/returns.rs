//! Whether a caller that a limit refused comes back before the time that it was told, again and again: one user, or several of one
//! tenant by turns.
//!
//! Of a tenant with many users each may come back once or twice: an impatient hand, not a loop. By turns is thrice each, on average.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::event::Whose;
use tidegate_core::time::Time;

use super::Suspicion;

/// Early returns are counted over so long.
const STRETCH: Duration = Duration::from_secs(60);
/// So many in it are suspicious: one every two seconds.
const RETURNS_MIN: u64 = 30;
/// Fewer for each user who came back too soon are no loop of their tenant's.
const RETURNS_EACH: u64 = 3;
/// Where waiting cannot help, each return within so long is early.
const NEVER_HELPS_FOR: Duration = Duration::from_secs(60);
/// Callers and users who are remembered; when there are more, those who are to wait no longer are forgotten, if need be all.
const CALLERS_MAX: usize = 4096;

/// Who was told to wait.
#[derive(Debug, Default)]
pub(super) struct Returns {
    told: HashMap<Who, Told>,
    /// All of a tenant, where any came back too soon.
    tenants: HashMap<Arc<str>, Early>,
}

/// Tenant and user.
type Who = (Arc<str>, Option<Arc<str>>);

#[derive(Debug)]
struct Told {
    wait_until: Time,
    early: Early,
}

/// Early returns.
#[derive(Debug)]
struct Early {
    began_at: Time,
    /// In this stretch.
    returns: u64,
    /// By so many users.
    users: u64,
    is_suspected: bool,
    /// Suspected in this stretch, and not yet told.
    is_news: bool,
}

impl Returns {
    /// A limit refused a call of `whose`. `retry_after`: how long it is to wait; `None`: waiting cannot help.
    pub(super) fn refused(&mut self, whose: &Whose, retry_after: Option<Duration>, now: Time) {
        self.make_room(now);
        let who = (whose.tenant.clone(), whose.user.clone());
        let told = self.told.entry(who).or_insert_with(|| Told { wait_until: now, early: Early::new(now) });
        told.early.roll(now);
        if now >= told.wait_until {
            // The first refusal counts: a later one, of a shorter wait, does not allow to come back sooner.
            told.wait_until = now + retry_after.unwrap_or(NEVER_HELPS_FOR);
            return;
        }
        let is_first = told.early.returns == 0;
        told.early.count(is_first);
        let tenant = self.tenants.entry(whose.tenant.clone()).or_insert_with(|| Early::new(now));
        tenant.roll(now);
        tenant.count(is_first);
    }

    fn make_room(&mut self, now: Time) {
        if self.told.len() >= CALLERS_MAX {
            self.told.retain(|_, told| told.wait_until > now || told.early.is_suspected);
            if self.told.len() >= CALLERS_MAX {
                self.told.clear();
            }
        }
        if self.tenants.len() >= CALLERS_MAX {
            self.tenants.retain(|_, early| early.is_suspected);
            if self.tenants.len() >= CALLERS_MAX {
                self.tenants.clear();
            }
        }
    }

    /// Whom to suspect from now on.
    pub(super) fn judge(&mut self, now: Time) -> Vec<Suspicion> {
        self.told.retain(|_, told| {
            told.early.roll(now);
            told.wait_until > now || told.early.is_anything()
        });
        self.tenants.retain(|_, early| {
            early.roll(now);
            early.is_anything()
        });
        let known = |tenants: &HashMap<Arc<str>, Early>, tenant: &Arc<str>| {
            tenants.get(tenant).is_some_and(|early| early.is_suspected && !early.is_news)
        };
        let of_users = self.told.iter_mut().filter_map(|((tenant, _), told)| {
            let is_news = std::mem::take(&mut told.early.is_news) && !known(&self.tenants, tenant);
            is_news.then(|| (tenant.clone(), told.early.returns))
        });
        let mut news: Vec<(Arc<str>, u64)> = of_users.collect();
        news.extend(
            self.tenants.iter_mut().filter_map(|(tenant, early)| {
                std::mem::take(&mut early.is_news).then(|| (tenant.clone(), early.returns))
            }),
        );
        let news = news.into_iter().map(|(caller, count)| Suspicion { caller, pattern: "early_returns", count });
        let mut found: Vec<Suspicion> = news.collect();
        // One for each tenant, however many of its users there are.
        found.sort_unstable();
        found.dedup_by(|next, before| next.caller == before.caller);
        found
    }

    pub(super) fn suspected(&self) -> BTreeSet<&Arc<str>> {
        let users = self.told.iter().filter(|(_, told)| told.early.is_suspected).map(|((tenant, _), _)| tenant);
        users.chain(self.tenants.iter().filter(|(_, early)| early.is_suspected).map(|(tenant, _)| tenant)).collect()
    }
}

impl Early {
    fn new(now: Time) -> Self {
        Self { began_at: now, returns: 0, users: 0, is_suspected: false, is_news: false }
    }

    fn count(&mut self, is_of_another: bool) {
        self.returns += 1;
        self.users += u64::from(is_of_another);
        if self.is_loop() && !self.is_suspected {
            (self.is_suspected, self.is_news) = (true, true);
        }
    }

    fn is_loop(&self) -> bool {
        self.returns >= RETURNS_MIN && self.returns >= RETURNS_EACH * self.users
    }

    fn is_anything(&self) -> bool {
        self.returns > 0 || self.is_suspected
    }

    /// Begins another stretch if this one is over. Suspicion ends with the first that is calm.
    fn roll(&mut self, now: Time) {
        if now.since(self.began_at) >= STRETCH {
            self.is_suspected &= self.is_loop();
            (self.began_at, self.returns, self.users) = (now, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(user: &str) -> Whose {
        Whose { tenant: "acme".into(), user: Some(user.into()), target: "openai/gpt-4o".into() }
    }

    #[test]
    fn who_comes_back_too_soon_again_and_again_is_suspected_once_until_it_stops() {
        let mut returns = Returns::default();
        let mut found = Vec::new();
        for second in 0..200 {
            let now = Time::from_secs(second);
            returns.refused(&whose("ada"), Some(Duration::from_secs(600)), now);
            found.extend(returns.judge(now).into_iter().map(|suspicion| (second, suspicion.count)));
        }
        assert_eq!(found, [(30, 30)]);
        assert_eq!(returns.suspected().len(), 1);
        for second in 200..320 {
            assert_eq!(returns.judge(Time::from_secs(second)), []);
        }
        assert_eq!(returns.suspected().len(), 0);
    }

    #[test]
    fn who_waits_as_it_was_told_is_not_suspected() {
        let mut returns = Returns::default();
        for second in 0..600 {
            let now = Time::from_secs(second);
            returns.refused(&whose("ada"), Some(Duration::from_secs(1)), now);
            assert_eq!(returns.judge(now), []);
        }
        assert_eq!(returns.suspected().len(), 0);
    }

    #[test]
    fn where_waiting_cannot_help_each_return_is_early() {
        let mut returns = Returns::default();
        (0..31).for_each(|second| returns.refused(&whose("ada"), None, Time::from_secs(second)));
        assert_eq!(returns.judge(Time::from_secs(31)).len(), 1);
    }

    #[test]
    fn users_beyond_the_bound_take_no_more_room() {
        let mut returns = Returns::default();
        for number in 0..3 * CALLERS_MAX {
            returns.refused(&whose(&format!("user-{number}")), Some(Duration::from_secs(60)), Time::ZERO);
        }
        assert!(returns.told.len() <= CALLERS_MAX);
        assert_eq!(returns.judge(Time::from_secs(61)), []);
        assert!(returns.told.is_empty());
        for number in 0..3 * CALLERS_MAX {
            let whose = Whose { tenant: format!("tenant-{number}").into(), ..whose("ada") };
            let wait = Some(Duration::from_secs(60));
            (0..2).for_each(|_| returns.refused(&whose, wait, Time::from_secs(100)));
        }
        assert!(returns.tenants.len() <= CALLERS_MAX && returns.told.len() <= CALLERS_MAX);
        assert_eq!(returns.judge(Time::from_secs(161)), []);
        assert!(returns.tenants.is_empty() && returns.told.is_empty());
    }

    /// `users` of one tenant who each come back `each` times a minute, by turns, though all are to wait; who is suspected.
    fn by_turns(users: u64, each: u64) -> Vec<Suspicion> {
        let mut returns = Returns::default();
        let mut found = Vec::new();
        let calls = users * (each + 1);
        for call in 0..calls {
            let now = Time::from_micros(call * 59_000_000 / calls);
            returns.refused(&whose(&format!("user-{}", call % users)), Some(Duration::from_secs(600)), now);
            found.extend(returns.judge(now));
        }
        found
    }

    #[test]
    fn a_loop_is_found_though_it_changes_its_user_and_many_impatient_users_are_none() {
        for (users, each, is_found) in [(10, 6, true), (20, 12, true), (50, 4, true), (1, 40, true)] {
            let found = by_turns(users, each);
            assert_eq!(found.len(), usize::from(is_found), "{users} users, {each} times each: {found:?}");
        }
        for (users, each) in [(1000, 1), (500, 2), (20, 1), (4, 5)] {
            assert_eq!(by_turns(users, each), [], "{users} users, {each} times each");
        }
    }
}
