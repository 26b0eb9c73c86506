//! What is most worth seeing of how everything stands: as much as fits a page, however many tenants there are.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Gate;
use super::status::{BreakerStatus, LevelStatus, Status};
use crate::ledger::Level;
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
    /// Who waits: those with most calls.
    pub waiting: Vec<WaitingStatus>,
    /// How many wait, each class of each tenant for itself.
    pub waiting_in_all: usize,
}

/// The calls of one class and tenant that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingStatus {
    /// Whom the queue is fair between.
    pub tenant: String,
    /// Their class.
    pub priority: &'static str,
    /// How many.
    pub calls: usize,
    /// What holds most of them (`team/acme/tokens_per_minute`); absent where that is a breaker, a pause, or others' turn.
    pub limit: Option<String>,
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
        Overview { status, levels, levels_binding, breakers_in_all, learned_in_all, waiting, waiting_in_all }
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
        /// Calls of one tenant and class, and those of them in its longest lane, with the meter that this is parked at.
        #[derive(Default)]
        struct Calls {
            all: usize,
            longest: usize,
            meter: Option<u32>,
        }
        let mut by_tenant: HashMap<(u32, &'static str), Calls> = HashMap::new();
        for (lane, calls) in self.queue.busy_lanes() {
            let those = by_tenant.entry((lane.tenant, lane.class.name())).or_default();
            those.all += calls;
            if calls > those.longest {
                (those.longest, those.meter) = (calls, lane.parked_at);
            }
        }
        let in_all = by_tenant.len();
        let mut waiting: Vec<_> = by_tenant
            .into_iter()
            .map(|((tenant, priority), calls)| {
                (Reverse(calls.all), &self.queue.tenant(tenant).name, priority, calls.meter)
            })
            .collect();
        waiting.sort_unstable();
        waiting.truncate(most);
        let shown = waiting.into_iter().map(|(calls, tenant, priority, meter)| WaitingStatus {
            tenant: tenant.to_string(),
            priority,
            calls: calls.0,
            limit: meter.map(|meter| self.ledger.report(meter, 0).path()),
        });
        (shown.collect(), in_all)
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
