//! What is most worth seeing of how everything stands: as much as fits a page, however many tenants there are.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::status::{BreakerStatus, LevelStatus, Status};
use super::{Gate, State};
use crate::ledger::{Level, Source};
use crate::time::Time;

/// A [`Status`] that is bounded, and what was left out of it.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// Of levels those that hold calls up, then the fullest; of breakers first those that are not closed, accounts whose breakers of
    /// one name stand alike as one.
    #[serde(flatten)]
    pub status: Status,
    /// Levels in all.
    pub levels: usize,
    /// Those of them that hold calls up.
    pub levels_binding: usize,
    /// Breakers in all, those that stand alike as one.
    pub breakers_in_all: usize,
    /// Accounts and model groups in all.
    pub learned_in_all: usize,
    /// Who waits, and at what: those with most calls.
    pub waiting: Vec<WaitingStatus>,
    /// How many rows that makes in all: each class of each tenant at each limit for itself.
    pub waiting_in_all: usize,
    /// Whose calls wait to be sent again after a failed attempt: those with most calls.
    pub backing_off: Vec<BackingOffStatus>,
}

/// The calls of one class and tenant that one limit holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingStatus {
    /// Whom the queue is fair between.
    pub tenant: String,
    /// Their class.
    pub priority: &'static str,
    /// How many.
    pub calls: usize,
    /// What holds them (`team/acme/tokens_per_minute`); absent where that is a breaker.
    pub limit: Option<String>,
    /// The user whom most of them are for; absent where none is named.
    pub user: Option<String>,
    /// Different users who are named.
    pub users: usize,
}

/// The calls of one tenant that wait to be sent to one target again, after a failure of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackingOffStatus {
    /// Whom the queue is fair between.
    pub tenant: String,
    /// `upstream/model group`.
    pub target: String,
    /// The error class of what they wait after: `rate_limit_exceeded`, ….
    pub after: &'static str,
    /// How many.
    pub calls: usize,
}

impl Gate {
    /// What is most worth seeing at `now`: of everything at most `most`.
    #[must_use]
    pub fn overview(&mut self, now: Time, most: usize) -> Overview {
        let (mut levels, mut levels_binding) = (0, 0);
        let mut status = self.status_with(now, |gate| {
            let mut ranked: Vec<_> = gate.shown_levels().map(|level| (gate.rank(level), level)).collect();
            levels = ranked.len();
            levels_binding = ranked.iter().filter(|(rank, _)| rank.0).count();
            ranked.sort_by_key(|(rank, level)| (Reverse(*rank), level.name.clone(), level.label.clone()));
            ranked.iter().take(most).map(|(_, level)| gate.level_status(level)).collect::<Vec<LevelStatus>>()
        });
        status.breakers = alike(status.breakers);
        let (breakers_in_all, learned_in_all) = (status.breakers.len(), status.learned.len());
        status.breakers.sort_by_key(|breaker| breaker.state == "closed");
        status.breakers.truncate(most);
        status.learned.sort_by_key(|learned| Reverse(learned.in_flight));
        status.learned.truncate(most);
        let (waiting, waiting_in_all) = self.who_waits(most);
        let backing_off = self.who_backs_off(most);
        Overview {
            status,
            levels,
            levels_binding,
            breakers_in_all,
            learned_in_all,
            waiting,
            waiting_in_all,
            backing_off,
        }
    }

    /// Whether a level holds calls up, and by how many thousandths its fullest dimension is used up.
    fn rank(&self, level: &Level) -> (bool, u64) {
        self.shown_meters(level).fold((false, 0), |(binds, most), meter| {
            let limit = meter.limit().max(1);
            let used = i128::from(limit) - i128::from(meter.level());
            let used = u64::try_from(used * 1000 / i128::from(limit)).unwrap_or(0);
            (binds || !meter.lot.is_empty(), most.max(used))
        })
    }

    fn who_waits(&self, most: usize) -> (Vec<WaitingStatus>, usize) {
        // A lane's calls are of one subject, and all of them wait for what holds its head.
        let mut rows: HashMap<(u32, &'static str, Option<u32>), Calls<'_>> = HashMap::new();
        for (lane, calls) in self.queue.busy_lanes() {
            let row = rows.entry((lane.tenant, lane.class.name(), lane.parked_at)).or_default();
            row.add(self.routes[lane.route].subject.user.as_deref(), calls);
        }
        // Levels of several credentials, or of one target's breakers, are told by one name.
        let mut named: BTreeMap<(&str, &'static str, Option<String>), Calls<'_>> = BTreeMap::new();
        for ((tenant, priority, meter), calls) in rows {
            let limit = meter.and_then(|meter| self.limit_path(meter));
            named.entry((&self.queue.tenant(tenant).name, priority, limit)).or_default().join(calls);
        }
        let in_all = named.len();
        let mut waiting: Vec<_> = named.into_iter().collect();
        waiting.sort_by_key(|(_, calls)| Reverse(calls.all));
        waiting.truncate(most);
        let shown = waiting.into_iter().map(|((tenant, priority, limit), calls)| WaitingStatus {
            tenant: tenant.to_owned(),
            priority,
            calls: calls.all,
            limit,
            user: calls.most_of().map(str::to_owned),
            users: calls.of_users.len(),
        });
        (shown.collect(), in_all)
    }

    /// The limit that a meter is of, as refusals name it; `None`: lanes wait at it for a breaker.
    fn limit_path(&self, meter: u32) -> Option<String> {
        let waits_for_breaker = |place: u32| self.targets.get(place).is_some_and(|it| it.waits_for_breaker == meter);
        let level = &self.ledger.levels[self.ledger.meters[meter].level];
        let is_breaker = matches!(level.source, Source::Target(place) if waits_for_breaker(place));
        (!is_breaker).then(|| self.ledger.report(meter, 0, 0).path())
    }

    fn who_backs_off(&self, most: usize) -> Vec<BackingOffStatus> {
        let mut rows: BTreeMap<(&str, &str, &'static str), usize> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.state == State::BackingOff) {
            let route = &self.routes[entry.route];
            let after = entry.held.as_ref().and_then(|held| held.after()).unwrap_or("");
            let row = (&*route.subject.tenant, &*self.targets[route.target].name, after);
            *rows.entry(row).or_default() += 1;
        }
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|(_, calls)| Reverse(*calls));
        rows.truncate(most);
        let shown = rows.into_iter().map(|((tenant, target, after), calls)| BackingOffStatus {
            tenant: tenant.to_owned(),
            target: target.to_owned(),
            after,
            calls,
        });
        shown.collect()
    }
}

/// Calls that wait, and how many of them are for each user who is named. No more users than the queue holds calls.
#[derive(Debug, Default)]
struct Calls<'u> {
    all: usize,
    of_users: HashMap<&'u str, usize>,
}

impl<'u> Calls<'u> {
    fn add(&mut self, user: Option<&'u str>, calls: usize) {
        self.all += calls;
        if let Some(user) = user {
            *self.of_users.entry(user).or_default() += calls;
        }
    }

    fn join(&mut self, other: Self) {
        self.all += other.all;
        for (user, calls) in other.of_users {
            *self.of_users.entry(user).or_default() += calls;
        }
    }

    /// Of users with equally many the first by name.
    fn most_of(&self) -> Option<&'u str> {
        self.of_users.iter().max_by_key(|(user, calls)| (**calls, Reverse(**user))).map(|(user, _)| *user)
    }
}

/// One for each name and state, with the next of their probes. Sorted by name.
fn alike(breakers: Vec<BreakerStatus>) -> Vec<BreakerStatus> {
    let mut groups: BTreeMap<(String, &'static str), BreakerStatus> = BTreeMap::new();
    for breaker in breakers {
        match groups.entry((breaker.name.clone(), breaker.state)) {
            Entry::Vacant(entry) => drop(entry.insert(breaker)),
            Entry::Occupied(mut entry) => {
                let group = entry.get_mut();
                let accounts = group.accounts + breaker.accounts;
                if sooner(&breaker, group) {
                    *group = breaker;
                }
                group.accounts = accounts;
            }
        }
    }
    groups.into_values().collect()
}

fn sooner(one: &BreakerStatus, other: &BreakerStatus) -> bool {
    let probe = |breaker: &BreakerStatus| breaker.next_probe_in_seconds.unwrap_or(f64::INFINITY);
    probe(one) < probe(other)
}
