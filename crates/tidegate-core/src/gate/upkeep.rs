//! Timers, forgetting what is idle, and taking over another configuration.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Gate, State, Ticket, Timer};
use crate::config::{Policy, TokenCharge};
use crate::event::Event;
use crate::ledger::{Level, Source, is_level_of};
use crate::time::Time;

/// Timers that may lie in the heap before those that are stale are looked for.
pub(super) const TIMERS_KEPT: usize = 1024;
/// A route is forgotten after so long without a call.
const ROUTE_IDLE_MICROS: u64 = 60_000_000;
/// What was learned of a target is forgotten after so long without a call to it.
const TARGET_IDLE_MICROS: u64 = 3_600_000_000;

impl Gate {
    pub(super) fn run_timers(&mut self) {
        let now = self.clock;
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Lot { meter, epoch } => self.lot_is_due(meter, epoch, now),
                Timer::Deadline(ticket) => {
                    // Room may have come in this very instant: those who fit now are not refused.
                    self.serve_stirred();
                    if self.is_in(ticket, State::Waiting) {
                        self.refuse_at_deadline(ticket);
                    }
                }
                // Whoever brings the time ends it.
                Timer::Boost => {}
                Timer::BackOff(ticket) => {
                    if self.is_in(ticket, State::BackingOff) {
                        self.start(ticket);
                    }
                }
            }
        }
        self.drop_stale_timers();
    }

    fn is_in(&self, ticket: Ticket, state: State) -> bool {
        self.entry(ticket).is_some_and(|entry| entry.state == state)
    }

    /// Deadlines of calls that went long ago stay behind in the heap; it must not grow with them.
    pub(super) fn drop_stale_timers(&mut self) {
        if self.timers.len() < self.purge_timers_at {
            return;
        }
        let entries = &self.entries;
        let meters = &self.ledger.meters;
        let boosts_end_at = self.boosts_end_at;
        let is_in = |ticket: Ticket, state: State| {
            entries
                .get(ticket.index())
                .is_some_and(|entry| entry.generation == ticket.generation && entry.state == state)
        };
        self.timers.retain(|Reverse((at, timer))| match timer {
            Timer::Deadline(ticket) => is_in(*ticket, State::Waiting),
            Timer::BackOff(ticket) => is_in(*ticket, State::BackingOff),
            Timer::Boost => *at == boosts_end_at,
            // Kept while the lot counts on it, empty or not: who parks there next relies on it.
            Timer::Lot { meter, epoch } => {
                meters.get(*meter).is_some_and(|meter| meter.epoch == *epoch && meter.lot.wake_at == *at)
            }
        });
        // Not again before it has doubled, so that the search costs each timer a constant.
        self.purge_timers_at = (2 * self.timers.len()).max(TIMERS_KEPT);
    }

    /// Looks at a few routes, levels and targets, and forgets what is idle: memory follows use, at a constant cost a call.
    pub(super) fn sweep(&mut self) {
        let now = self.clock;
        let mut removed = 0;
        // Two for each call, so that it overtakes stores that grow by one for each.
        for _ in 0..2 {
            let route = next_place(&mut self.sweep_at[0], self.routes.places());
            if self
                .routes
                .get(route)
                .is_some_and(|found| found.entries == 0 && now.micros_since(found.used_at) > ROUTE_IDLE_MICROS)
            {
                self.forget_route(route);
            }
            let level = next_place(&mut self.sweep_at[1], self.ledger.levels.places());
            if self
                .ledger
                .levels
                .get(level)
                .is_some_and(|found| matches!(found.source, Source::Configured(_)) && found.routes == 0)
                && self.ledger.is_idle(level, now)
            {
                self.ledger.remove_level(level);
                removed += 1;
            }
        }
        if removed > 0 {
            self.tells_all().then(|| self.emit(|| Event::RecordsCleaned { removed }));
        }
        let target = next_place(&mut self.sweep_at[2], self.targets.places());
        if self.target_is_idle(target, now) {
            self.forget_target(target);
        }
        self.drop_stale_timers();
    }

    fn forget_route(&mut self, id: u32) {
        let route = self.routes.remove(id);
        self.route_ids.remove(&route.subject);
        for level in route.levels {
            self.ledger.levels[level].routes -= 1;
        }
        for lane in route.lanes.into_iter().flatten() {
            if let Some(meter) = self.queue.lane(lane).parked_at {
                self.queue.unpark(lane, &mut self.ledger.meters[meter].lot);
            }
            self.release_lane_earmarks(lane, &route.meters);
            self.queue.close_lane(lane);
        }
        let target = &mut self.targets[route.target];
        target.routes -= 1;
        if target.routes == 0 {
            target.peak_in_flight = 0;
        }
    }

    fn release_lane_earmarks(&mut self, lane: u32, meters: &[u32]) {
        for id in meters {
            if let Some(meter) = self.ledger.meters.get_mut(*id)
                && meter.earmark.is_some_and(|earmark| earmark.lane == lane)
            {
                meter.earmark = None;
                self.stir(*id);
            }
        }
    }

    fn target_is_idle(&self, target: u32, now: Time) -> bool {
        let Some(found) = self.targets.get(target) else { return false };
        let told_at = found.learned.iter().map(|learned| learned.told_at).max().unwrap_or(Time::ZERO);
        found.routes == 0 && found.breaker.is_idle(now) && now.micros_since(told_at) > TARGET_IDLE_MICROS
    }

    fn forget_target(&mut self, id: u32) {
        let target = self.targets.remove(id);
        self.target_ids.remove(&(target.account.clone(), target.model.clone()));
        let mut levels: Vec<u32> = [target.gauge, target.waits_for_breaker]
            .into_iter()
            .chain(target.learned.iter().map(|learned| learned.meter))
            .chain(target.paces.iter().map(|paced| paced.meter))
            .map(|meter| self.ledger.meters[meter].level)
            .collect();
        levels.sort_unstable();
        levels.dedup();
        for level in levels {
            self.ledger.remove_level(level);
        }
    }

    pub(super) fn take_over(&mut self, policy: Policy) {
        let now = self.clock;
        self.retry.reconfigure(Arc::new(policy.retry.clone()));
        self.budget.reconfigure(policy.retry.budget, now);
        self.breaker_config = Arc::new(policy.breaker.clone());
        self.reserve_permille = (policy.queue.reserve.clamp(0.0, 1.0) * 1000.0) as u64;
        self.ledger.limits = policy.limits.clone().into();
        self.ledger.source = policy.level_source;
        self.policy = Arc::new(policy);
        let weights = self.policy.queue.weights.clone();
        self.queue.reweigh(|tenant| weights.get(tenant).copied().unwrap_or(1));
        let targets: Vec<u32> = self.targets.iter().map(|(id, _)| id).collect();
        for id in targets {
            let config = self.breaker_config.clone();
            let target = &mut self.targets[id];
            target.breaker.reconfigure(config);
            target.version = target.version.wrapping_add(1);
            let upstream = target.account.split('#').next().unwrap_or("");
            let policy = self.policy.upstreams.iter().find(|policy| &*policy.name == upstream);
            target.learn_limits = policy.is_none_or(|policy| policy.learn_limits);
            target.charge_rule.reconfigure(policy.map_or(TokenCharge::Learned, |policy| policy.token_charge));
            if !target.learn_limits {
                target.cold_start = None;
                let learned: Vec<u32> = target.learned.drain(..).map(|learned| learned.meter).collect();
                learned.into_iter().for_each(|meter| self.unlearn(meter));
            }
        }
        self.resolve_routes();
        self.emit(|| Event::ConfigUpdated);
    }

    /// Looks anew at which levels each subject's calls touch, and what these allow. What was used stays used.
    pub(super) fn resolve_routes(&mut self) {
        let now = self.clock;
        let routes: Vec<u32> = self.routes.iter().map(|(id, _)| id).collect();
        for id in routes {
            let subject = self.routes[id].subject.clone();
            let (configured, levels) = self.ledger.resolve(&subject, now);
            let has_mirror = configured.iter().any(|meter| self.ledger.meters[*meter].mirror);
            let route = &mut self.routes[id];
            route.configured = configured;
            route.has_mirror = has_mirror;
            route.target_version = u32::MAX - 1;
            let old = std::mem::replace(&mut route.levels, levels);
            for level in old {
                self.ledger.levels[level].routes -= 1;
            }
            self.refresh_route(id);
        }
        self.stir_all();
    }

    fn stir_all(&mut self) {
        let lots: Vec<u32> =
            self.ledger.meters.iter().filter(|(_, meter)| !meter.lot.is_empty()).map(|(id, _)| id).collect();
        self.stirred.extend(lots);
    }

    /// Forgets what was used of one limit, or of all; also what the run before left of levels that nobody has used since.
    pub(super) fn refill(&mut self, limit: Option<&str>) {
        let now = self.clock;
        let is_meant = |level: &Level| {
            limit.is_none_or(|limit| matches!(level.source, Source::Configured(_)) && &*level.name == limit)
        };
        let levels = self.ledger.levels.iter().filter(|(_, level)| is_meant(level));
        let meters: Vec<u32> = levels.flat_map(|(_, level)| level.meters.iter().copied()).collect();
        for id in meters {
            self.ledger.meters[id].empty_usage(now);
        }
        match limit {
            None => {
                self.restored.clear();
                self.crashed_after = None;
            }
            Some(limit) => self.restored.retain(|key, _| !is_level_of(key, limit)),
        }
        self.stir_all();
        self.emit(|| Event::LimitsReset);
    }
}

/// The place to look at next, round and round.
fn next_place(at: &mut u32, places: usize) -> u32 {
    *at += 1;
    if *at as usize >= places {
        *at = 0;
    }
    *at
}
