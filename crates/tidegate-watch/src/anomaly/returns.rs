//! Whether a caller that a limit refused comes back before the time that it was told, again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::event::Whose;
use tidegate_core::time::Time;

use super::Suspicion;

/// Early returns are counted over so long.
const STRETCH: Duration = Duration::from_secs(60);
/// So many in it are suspicious: one every two seconds.
const RETURNS_MIN: u64 = 30;
/// Where waiting cannot help, each return within so long is early.
const NEVER_HELPS_FOR: Duration = Duration::from_secs(60);
/// Callers and users who are remembered; when there are more, those who are to wait no longer are forgotten, if need be all.
const CALLERS_MAX: usize = 4096;

/// Who was told to wait.
#[derive(Debug, Default)]
pub(super) struct Returns(HashMap<Who, Told>);

/// Tenant and user.
type Who = (Arc<str>, Option<Arc<str>>);

#[derive(Debug)]
struct Told {
    wait_until: Time,
    began_at: Time,
    /// Early returns in this stretch.
    early: u64,
    is_suspected: bool,
    /// Suspected in this stretch, and not yet told.
    is_news: bool,
}

impl Returns {
    /// A limit refused a call of `whose`. `retry_after`: how long it is to wait; `None`: waiting cannot help.
    pub(super) fn refused(&mut self, whose: &Whose, retry_after: Option<Duration>, now: Time) {
        if self.0.len() >= CALLERS_MAX {
            self.0.retain(|_, told| told.wait_until > now || told.is_suspected);
            if self.0.len() >= CALLERS_MAX {
                self.0.clear();
            }
        }
        let who = (whose.tenant.clone(), whose.user.clone());
        let told = self.0.entry(who).or_insert(Told {
            wait_until: now,
            began_at: now,
            early: 0,
            is_suspected: false,
            is_news: false,
        });
        told.roll(now);
        if now < told.wait_until {
            told.early += 1;
            if told.early >= RETURNS_MIN && !told.is_suspected {
                (told.is_suspected, told.is_news) = (true, true);
            }
        } else {
            // The first refusal counts: a later one, of a shorter wait, does not allow to come back sooner.
            told.wait_until = now + retry_after.unwrap_or(NEVER_HELPS_FOR);
        }
    }

    /// Whom to suspect from now on.
    pub(super) fn judge(&mut self, now: Time) -> Vec<Suspicion> {
        self.0.retain(|_, told| {
            told.roll(now);
            told.wait_until > now || told.early > 0 || told.is_suspected
        });
        let news = self.0.iter_mut().filter_map(|((tenant, _), told)| {
            let is_news = std::mem::take(&mut told.is_news);
            is_news.then(|| Suspicion { caller: tenant.clone(), pattern: "early_returns", count: told.early })
        });
        let mut found: Vec<Suspicion> = news.collect();
        // One for each tenant, however many of its users there are.
        found.sort_unstable();
        found.dedup_by(|next, before| next.caller == before.caller);
        found
    }

    pub(super) fn suspected(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().filter(|(_, told)| told.is_suspected).map(|((tenant, _), _)| tenant)
    }
}

impl Told {
    /// Begins another stretch if this one is over. Suspicion ends with the first that is calm.
    fn roll(&mut self, now: Time) {
        if now.since(self.began_at) >= STRETCH {
            self.is_suspected &= self.early >= RETURNS_MIN;
            (self.began_at, self.early) = (now, 0);
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
        assert_eq!(returns.suspected().count(), 1);
        for second in 200..320 {
            assert_eq!(returns.judge(Time::from_secs(second)), []);
        }
        assert_eq!(returns.suspected().count(), 0);
    }

    #[test]
    fn who_waits_as_it_was_told_is_not_suspected() {
        let mut returns = Returns::default();
        for second in 0..600 {
            let now = Time::from_secs(second);
            returns.refused(&whose("ada"), Some(Duration::from_secs(1)), now);
            assert_eq!(returns.judge(now), []);
        }
        assert_eq!(returns.suspected().count(), 0);
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
        assert!(returns.0.len() <= CALLERS_MAX);
        assert_eq!(returns.judge(Time::from_secs(61)), []);
        assert!(returns.0.is_empty());
    }
}
