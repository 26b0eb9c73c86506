//! Decides what follows from a subject: which levels its calls touch, at which target they are aimed, what they cost there.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Gate, Route};
use crate::call::Subject;
use crate::cost::Cost;
use crate::learn::binding::Binding;
use crate::learn::cold_start::ColdStart;
use crate::ledger::{Amounts, START, Source, gauge_spec};
use crate::limit::Dimension;
use crate::target::Target;

/// Routes that are found without hashing.
pub(super) const RECENT: usize = 16;

impl Gate {
    pub(super) fn route(&mut self, subject: &Subject) -> u32 {
        let place = subject.place(RECENT);
        let recent = self.recent_routes[place];
        if self.routes.get(recent).is_some_and(|route| route.subject.is_made_of(subject)) {
            return recent;
        }
        if let Some(route) = self.route_ids.get(subject) {
            self.recent_routes[place] = *route;
            return *route;
        }
        let now = self.clock;
        let (configured, levels) = self.ledger.resolve(subject, now);
        self.restore_levels(&levels);
        let has_mirror = configured.iter().any(|meter| self.ledger.meters[*meter].mirror);
        let target = self.target(subject, has_mirror);
        self.targets[target].routes += 1;
        let route = Route {
            subject: subject.clone(),
            tenant_hash: self.hash(&subject.tenant),
            meters: SmallVec::new(),
            configured,
            levels,
            target,
            target_version: u32::MAX,
            has_mirror,
            lanes: [None; 3],
            entries: 0,
            used_at: now,
        };
        let route = self.routes.insert(route);
        self.route_ids.insert(subject.clone(), route);
        self.refresh_route(route);
        route
    }

    pub(super) fn hash(&self, name: &str) -> u64 {
        use std::hash::BuildHasher;
        self.route_ids.hasher().hash_one(name)
    }

    pub(super) fn target(&mut self, subject: &Subject, has_mirror: bool) -> u32 {
        let key = (subject.account.clone(), subject.model.clone());
        if let Some(target) = self.target_ids.get(&key) {
            return *target;
        }
        let now = self.clock;
        let policy = self.policy.upstreams.iter().find(|policy| &*policy.name == subject.upstream());
        let charge_rule = Target::charge_rule_for(policy);
        let learn_limits = policy.is_none_or(|policy| policy.learn_limits);
        let model = if subject.model.is_empty() { "-" } else { &*subject.model };
        let name: Arc<str> = format!("{}/{model}", subject.upstream()).into();
        let place = self.targets.insert(Target {
            account: subject.account.clone(),
            model: subject.model.clone(),
            name: name.clone(),
            breaker: crate::breaker::Breaker::new(self.breaker_config.clone()),
            learn_limits,
            learned: SmallVec::new(),
            flows: Default::default(),
            paces: SmallVec::new(),
            binding: Binding::default(),
            refused_in_row: 0,
            distrusted: SmallVec::new(),
            version: 0,
            charge_rule,
            typical_output: Default::default(),
            reserved: Default::default(),
            cold_start: (learn_limits && !has_mirror).then(|| ColdStart::new(now)),
            gauge: 0,
            waits_for_breaker: 0,
            peak_in_flight: 0,
            routes: 0,
        });
        let level = self.ledger.add_level(
            format!("{START}|{}|{}", subject.account, subject.model).into(),
            START.into(),
            name,
            Source::Target(place),
        );
        let gauge = self.ledger.put_meter(level, gauge_spec(), now);
        // A lot of its own, with a meter that never binds: the breaker does.
        let breaker_level = self.ledger.add_level(
            format!("breaker|{}|{}", subject.account, subject.model).into(),
            "breaker".into(),
            "".into(),
            Source::Target(place),
        );
        let waits_for_breaker = self.ledger.put_meter(breaker_level, gauge_spec(), now);
        let target = &mut self.targets[place];
        target.gauge = gauge;
        target.waits_for_breaker = waits_for_breaker;
        self.target_ids.insert(key, place);
        self.restore_target(place);
        self.hold_breaker(place);
        place
    }

    /// Brings a route's meters up to date with what has been learned of its target.
    pub(super) fn refresh_route(&mut self, route: u32) {
        let entry = &mut self.routes[route];
        let target = &self.targets[entry.target];
        if entry.target_version == target.version {
            return;
        }
        entry.target_version = target.version;
        entry.meters.clear();
        entry.meters.extend(entry.configured.iter().copied());
        entry.meters.extend(target.learned.iter().map(|learned| learned.meter));
        entry.meters.extend(target.paces.iter().map(|paced| paced.meter));
        entry.meters.push(target.gauge);
    }

    pub(super) fn amounts(&self, route: u32, cost: &Cost, own_request_charged: bool) -> Amounts {
        let route = &self.routes[route];
        let target = &self.targets[route.target];
        let capacity = route
            .meters
            .iter()
            .map(|meter| &self.ledger.meters[*meter])
            .filter(|meter| meter.mirror && meter.dimension == Dimension::TokensPerMinute)
            .map(|meter| meter.limit())
            .min();
        let mirror = target.charge_rule.charge(cost, capacity.unwrap_or(u64::MAX));
        let typical = match cost.max_output_tokens {
            Some(max) => max,
            None => cost.output_or(target.typical_output.expected(route.tenant_hash, route.subject.request_type)),
        };
        let mut amounts = Amounts::new(cost, typical, mirror);
        if own_request_charged {
            amounts.own_requests = 0;
        }
        amounts
    }
}
