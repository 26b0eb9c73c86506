//! How everything stands at one instant, for people and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::{Gate, State};
use crate::breaker::{BreakerState, FORCED};
use crate::call::Priority;
use crate::ledger::{LEARNED, Level, Source, key_parts};
use crate::limit::Scope;
use crate::meter::Meter;
use crate::target::Paced;
use crate::time::Time;

/// Everything that a status page shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Levels of configured limits, and bounds that hold while an upstream is starting or recovering.
    pub limits: Vec<LevelStatus>,
    /// The queue.
    pub queue: QueueStatus,
    /// One breaker for each account and model group.
    pub breakers: Vec<BreakerStatus>,
    /// What the upstreams' answers told.
    pub learned: Vec<LearnedStatus>,
    /// Calls granted and not settled.
    pub in_flight: usize,
    /// Retries that the budget still allows.
    pub retry_budget_remaining: u64,
    /// What an operator said when pausing; absent while not paused.
    pub paused: Option<String>,
}

/// One level of one limit.
#[derive(Clone, Debug, Serialize)]
pub struct LevelStatus {
    /// The limit's name.
    pub limit: String,
    /// Whose level: the key's parts joined by `/`.
    pub key: String,
    /// How a boost selects it: the name of each part by what it is (`user`, `model`, …); of an account any credential's of that
    /// upstream. Empty where the limit has one level for all.
    #[serde(rename = "match")]
    pub matching: BTreeMap<&'static str, String>,
    /// `mirror` of the upstream's own limit, or `own`.
    pub kind: &'static str,
    /// `enforce` or `shadow`.
    pub mode: &'static str,
    /// While an operator has raised it; its meters tell the raised limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boost: Option<BoostStatus>,
    /// One for each dimension.
    pub meters: Vec<MeterStatus>,
}

/// By how much a level is raised, and for how long yet.
#[derive(Clone, Debug, Serialize)]
pub struct BoostStatus {
    /// 1.5: half as much again.
    pub factor: f64,
    /// Seconds until it ends by itself.
    pub ends_in_seconds: f64,
}

/// One dimension of a level.
#[derive(Clone, Debug, Serialize)]
pub struct MeterStatus {
    /// `requests_per_minute`, ….
    pub dimension: &'static str,
    /// Units per period.
    pub limit: u64,
    /// Units left; below zero is debt.
    pub remaining: i64,
    /// The most that may go at one instant.
    pub burst: u64,
    /// Calls whose turn this dimension holds up, and that are parked here with all behind them.
    pub binds: bool,
    /// Of what is left so much is kept for higher priorities than the lowest that waits for it (`queue.reserve`). 0: nothing is.
    pub kept: u64,
    /// Calls that shadow mode would have held back.
    pub would_hold: u64,
}

/// The queue.
#[derive(Clone, Debug, Serialize)]
pub struct QueueStatus {
    /// Calls waiting, by priority.
    pub waiting: BTreeMap<&'static str, usize>,
    /// Calls waiting in all.
    pub depth: usize,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// How long the one has waited that waits longest: since it came, or since its last attempt failed. 0 when none waits.
    pub oldest_seconds: f64,
    /// Calls that wait to be sent again after a failed attempt. They are in neither `waiting` nor `depth` before their back-off is
    /// over: then, where they cannot go at once, they are queued.
    pub backing_off: usize,
}

/// One breaker.
#[derive(Clone, Debug, Serialize)]
pub struct BreakerStatus {
    /// `upstream/model group`.
    pub name: String,
    /// `closed`, `open`, `half_open`, `forced_open` or `forced_closed`.
    pub state: &'static str,
    /// What led to it; empty while closed from the start.
    pub cause: String,
    /// Seconds until the next probe, while open.
    pub next_probe_in_seconds: Option<f64>,
    /// Accounts whose breaker stands so: 1 but in an [`Overview`](super::Overview); 0 where nothing has been sent yet.
    pub accounts: usize,
}

/// What is known of one account and model group.
#[derive(Clone, Debug, Serialize)]
pub struct LearnedStatus {
    /// `upstream/model group`.
    pub name: String,
    /// The rule by which it charges tokens; absent while not known.
    pub token_charge: Option<&'static str>,
    /// Its limits, as last told or as measured.
    pub limits: Vec<LearnedLimit>,
    /// Tokens reserved by calls whose use became known.
    pub reserved_tokens: u64,
    /// Sum of how far off those reservations were, in either direction.
    pub reservation_error_tokens: u64,
    /// Dimensions in which calls go at a pace below what is told, because that was refused.
    pub paced: Vec<PaceStatus>,
    /// Calls that may be in flight while nothing is known, or after an outage. Absent: as many as like.
    pub in_flight_cap: Option<u64>,
    /// Calls in flight.
    pub in_flight: u64,
}

/// One limit that the server told.
#[derive(Clone, Debug, Serialize)]
pub struct LearnedLimit {
    /// `requests_per_minute`, ….
    pub dimension: &'static str,
    /// Units per period.
    pub limit: u64,
    /// Units left as far as we know.
    pub remaining: i64,
    /// `headers`, `refusals` where only 429s tell it, or `measured` where nothing does.
    pub source: &'static str,
    /// Seconds since a reply last told it; of a measured one, since it was last refused or raised.
    pub age_seconds: f64,
    /// Calls wait for it, or for the pace below it.
    pub binds: bool,
    /// Of what is left so much is kept for higher priorities than the lowest that waits for it (`queue.reserve`). 0: nothing is.
    pub kept: u64,
}

/// A dimension that is paced.
#[derive(Clone, Debug, Serialize)]
pub struct PaceStatus {
    /// `requests_per_minute`, ….
    pub dimension: &'static str,
    /// Units per period.
    pub rate: u64,
    /// Units that may go at one instant.
    pub burst: u64,
}

impl Gate {
    /// How everything stands at `now`.
    #[must_use]
    pub fn status(&mut self, now: Time) -> Status {
        self.status_with(now, |gate| gate.shown_levels().map(|level| gate.level_status(level)).collect())
    }

    /// The same with the levels that `limits` picks.
    pub(super) fn status_with(&mut self, now: Time, limits: impl FnOnce(&Self) -> Vec<LevelStatus>) -> Status {
        self.tick(now);
        let clock = self.clock;
        for (_, meter) in self.ledger.meters.iter_mut() {
            meter.refill(clock);
        }
        let queued = self.entries.iter().filter(|entry| entry.state == State::Waiting);
        let oldest = queued.map(|entry| entry.waits_since).min();
        Status {
            limits: limits(self),
            queue: QueueStatus {
                waiting: Priority::ALL.iter().map(|class| (class.name(), self.queue.waiting[class.index()])).collect(),
                depth: self.queue.total_waiting(),
                bytes: self.queue.waiting_bytes,
                oldest_seconds: oldest.map_or(0.0, |at| clock.since(at).as_secs_f64()),
                backing_off: self.entries.iter().filter(|entry| entry.state == State::BackingOff).count(),
            },
            breakers: self
                .targets
                .iter()
                .map(|(_, target)| {
                    let report = target.breaker.report(target.name.clone());
                    BreakerStatus {
                        name: target.name.to_string(),
                        state: report.state,
                        cause: report.cause.to_string(),
                        next_probe_in_seconds: report.next_probe_at.map(|at| at.since(clock).as_secs_f64()),
                        accounts: 1,
                    }
                })
                .chain(self.held_without_target())
                .collect(),
            learned: self.learned_statuses(),
            in_flight: self.in_flight,
            retry_budget_remaining: self.budget.remaining(),
            paused: self.paused.as_deref().map(str::to_owned),
        }
    }

    /// Breakers that operators hold, and that nothing was sent through since the start.
    fn held_without_target(&self) -> impl Iterator<Item = BreakerStatus> {
        let is_there = |name: &str| self.targets.iter().any(|(_, target)| &*target.name == name);
        self.overrides.breakers.iter().filter(move |(name, _)| !is_there(name)).map(|(name, state)| BreakerStatus {
            name: name.to_string(),
            state: state.name(),
            cause: FORCED.to_owned(),
            next_probe_in_seconds: None,
            accounts: 0,
        })
    }

    /// Names of the breakers that let nothing through, or probes alone: open, half open, or forced open.
    #[must_use]
    pub fn open_breakers(&self) -> BTreeSet<Arc<str>> {
        let lets_through = |state| matches!(state, BreakerState::Closed | BreakerState::ForcedClosed);
        let open = self.targets.iter().filter(|(_, target)| !lets_through(target.breaker.state()));
        open.map(|(_, target)| target.name.clone()).collect()
    }

    /// How many calls each limit in shadow mode would have held back.
    #[must_use]
    pub fn shadow_held(&self) -> BTreeMap<Arc<str>, u64> {
        self.ledger.shadow_held()
    }

    /// The levels of limits that are configured. What a reload took away may still be charged by calls under way, but binds nobody.
    pub(super) fn shown_levels(&self) -> impl Iterator<Item = &Level> {
        let is_there = |level: &Level| {
            let scopes = || key_parts(&level.key).map(|(scope, _)| scope);
            self.ledger.limits.iter().any(|limit| limit.name == level.name && scopes().eq(limit.per.iter().copied()))
        };
        let of_limits = |level: &&Level| matches!(level.source, Source::Configured(_));
        self.ledger.levels.iter().map(|(_, level)| level).filter(of_limits).filter(move |level| is_there(level))
    }

    /// The dimensions of a level that bound anything.
    pub(super) fn shown_meters(&self, level: &Level) -> impl Iterator<Item = &Meter> {
        level.meters.iter().map(|meter| &self.ledger.meters[*meter]).filter(|meter| meter.limit() < u64::MAX >> 8)
    }

    pub(super) fn level_status(&self, level: &Level) -> LevelStatus {
        let first = level.meters.first().map(|meter| &self.ledger.meters[*meter]);
        let (mirror, enforce) = first.map_or((false, true), |meter| (meter.mirror, meter.enforce));
        LevelStatus {
            limit: level.name.to_string(),
            key: level.label.to_string(),
            matching: key_parts(&level.key).map(|(scope, name)| (scope.name(), selecting(scope, name))).collect(),
            kind: if mirror { "mirror" } else { "own" },
            boost: level.boosted.as_ref().map(|boosted| BoostStatus {
                factor: f64::from(boosted.permille) / 1000.0,
                ends_in_seconds: boosted.until.since(self.clock).as_secs_f64(),
            }),
            mode: if enforce { "enforce" } else { "shadow" },
            meters: self
                .shown_meters(level)
                .map(|meter| MeterStatus {
                    dimension: meter.dimension.name(),
                    limit: meter.limit(),
                    remaining: meter.level(),
                    burst: meter.capacity(),
                    binds: !meter.lot.is_empty(),
                    kept: meter.kept_from_who_waits(self.reserve_permille, self.clock),
                    would_hold: meter.would_hold,
                })
                .collect(),
        }
    }

    fn learned_statuses(&mut self) -> Vec<LearnedStatus> {
        let (clock, reserve_permille) = (self.clock, self.reserve_permille);
        let meters = &self.ledger.meters;
        let restored = self.restored_targets.values().map(|kept| kept.status(clock));
        self.targets
            .iter_mut()
            .map(|(_, target)| LearnedStatus {
                name: target.name.to_string(),
                token_charge: target.charge_rule.rule().map(crate::config::TokenCharge::name),
                reserved_tokens: target.reserved.tokens,
                reservation_error_tokens: target.reserved.error,
                limits: target
                    .learned
                    .iter()
                    .map(|learned| {
                        let meter = &meters[learned.meter];
                        let paces = target.paces.iter().filter(|paced| paced.dimension == learned.dimension);
                        let is_held = |paced: &Paced| !paced.pace.is_guess() && !meters[paced.meter].lot.is_empty();
                        LearnedLimit {
                            dimension: learned.dimension.name(),
                            limit: meter.limit(),
                            remaining: meter.level(),
                            source: if learned.by_headers { "headers" } else { "refusals" },
                            age_seconds: clock.since(learned.told_at).as_secs_f64(),
                            binds: !meter.lot.is_empty() || paces.into_iter().any(is_held),
                            kept: meter.kept_from_who_waits(reserve_permille, clock),
                        }
                    })
                    .chain(target.paces.iter().filter(|paced| paced.pace.is_active() && paced.pace.is_guess()).map(
                        |paced| {
                            let meter = &meters[paced.meter];
                            LearnedLimit {
                                dimension: paced.dimension.name(),
                                limit: paced.pace.rate(clock),
                                remaining: meter.level(),
                                source: "measured",
                                age_seconds: clock.since(paced.pace.changed_at()).as_secs_f64(),
                                binds: !meter.lot.is_empty(),
                                kept: meter.kept_from_who_waits(reserve_permille, clock),
                            }
                        },
                    ))
                    .collect(),
                paced: target
                    .paces
                    .iter()
                    .filter(|paced| paced.pace.is_active())
                    .map(|paced| PaceStatus {
                        dimension: paced.dimension.name(),
                        rate: paced.pace.rate(clock),
                        burst: paced.pace.burst(),
                    })
                    .collect(),
                in_flight_cap: target.in_flight_cap(clock),
                in_flight: match meters[target.gauge].kind {
                    crate::meter::Kind::Gauge { used, .. } => used,
                    _ => 0,
                },
            })
            .chain(restored)
            .collect()
    }

    /// The name under which an upstream's own limits appear in refusals.
    #[must_use]
    pub const fn learned_name() -> &'static str {
        LEARNED
    }
}

/// What selects the part of a key that is called `name`. The fingerprint of a credential is for nobody to see.
fn selecting(scope: Scope, name: String) -> String {
    match (scope, name.split_once('#')) {
        (Scope::Account, Some((upstream, _))) => format!("{upstream}#*"),
        _ => name,
    }
}
