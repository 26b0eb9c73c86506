//! Decides how fast a run begins: a few calls until the first reply has told the limits, then ever faster.
//!
//! A bucket that is told to be full may be enforced by the second all the same; who empties it at once meets a 429 for every
//! call beyond. Beginning somewhat above the pace of its refill finds that out, and loses little: the pace is any after four
//! seconds.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tidegate_core::gate::Gate;
use tidegate_core::limit::{Allowance, Dimension, Limit};
use tidegate_core::start::worth_at_start;
use tokio::time::Instant;

use crate::call::{GIVEN, Shared};
use crate::line::Line;

/// Calls before the first reply; as many more each second, for upstreams that think for long.
pub(crate) const FIRST_CALLS: u64 = 4;
/// After so long the pace is any.
pub(crate) const RAMP_FOR: Duration = Duration::from_secs(4);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The beginning of one feed.
#[derive(Debug)]
pub(crate) struct Ramp {
    began_at: Instant,
    calls: u64,
    tokens: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    First,
    /// Units a second of the limits, of requests and of tokens.
    Rising {
        since: Instant,
        rates: [f64; 2],
        from: [u64; 2],
    },
    Over,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { began_at: Instant::now(), calls: 0, tokens: 0, stage: Stage::First }
    }
}

impl Ramp {
    /// Nothing has been told yet. Small calls find out: what is in flight beside the first to be answered is taken to be as
    /// large as that one, and what was taken too much is made good only slowly.
    pub(crate) const fn is_first(&self) -> bool {
        matches!(self.stage, Stage::First)
    }

    /// Waits until the call may begin to wait for its turn.
    pub(crate) async fn go(&mut self, shared: &Shared, line: &Line) {
        while !self.may_go(shared) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.calls += 1;
        self.tokens = self.tokens.saturating_add(line.asking.cost.input_tokens);
    }

    fn may_go(&mut self, shared: &Shared) -> bool {
        match &self.stage {
            Stage::Over => true,
            Stage::First if shared.counts.answers.load(Relaxed) == 0 => {
                self.calls < FIRST_CALLS * (1 + self.began_at.elapsed().as_secs())
            }
            Stage::First => {
                leave_to_the_upstream(shared);
                self.stage = match rates(shared) {
                    Some(rates) => {
                        let from = [self.calls, self.tokens];
                        Stage::Rising { since: Instant::now(), rates, from }
                    }
                    // The core starts cold by itself.
                    None => Stage::Over,
                };
                true
            }
            Stage::Rising { since, rates, from } => {
                let since = since.elapsed();
                // Once something was refused the core paces what follows.
                if since > RAMP_FOR || shared.counts.met_429.load(Relaxed) > 0 {
                    self.stage = Stage::Over;
                    return true;
                }
                let gone = [self.calls - from[0], self.tokens - from[1]];
                rates.iter().zip(gone).all(|(rate, gone)| gone as f64 <= rate * worth_at_start(since).as_secs_f64())
            }
        }
    }
}

/// Drops limits that were given and are no lower than what the upstream tells of itself.
///
/// They hold nothing back; but beside a mirror of another kind a refusal teaches the core less. With several model groups they
/// stay, since not all may have told theirs.
fn leave_to_the_upstream(shared: &Shared) {
    shared.driver.with(|gate, now| {
        let status = gate.status(now);
        let [only] = status.learned.as_slice() else { return };
        let mut policy = gate.policy().clone();
        let is_moot = |limit: &Limit| {
            let mut given =
                Dimension::ALL.into_iter().filter_map(|dimension| Some((dimension, limit.base.allowance(dimension)?)));
            given.all(|(dimension, allowance)| {
                let mut told = only.limits.iter().filter(|told| told.dimension == dimension.name());
                matches!((allowance, told.next()), (Allowance::Units(units), Some(told)) if told.limit <= units.get())
            })
        };
        let before = policy.limits.len();
        policy.limits.retain(|limit| &*limit.name != GIVEN || !is_moot(limit));
        if policy.limits.len() < before {
            gate.reload(policy, now);
        }
    });
}

/// Requests and tokens a second of the tightest limits that are known; infinite where one is not. `None`: neither is.
fn rates(shared: &Shared) -> Option<[f64; 2]> {
    let status = shared.driver.with(Gate::status);
    let learned = status.learned.iter().flat_map(|learned| &learned.limits);
    let given = status.limits.iter().flat_map(|level| &level.meters);
    let all = learned
        .map(|limit| (limit.dimension, limit.limit))
        .chain(given.map(|meter| (meter.dimension, meter.limit)))
        .collect::<Vec<_>>();
    let tightest = |name: &str| {
        let limits = all.iter().filter(|(dimension, _)| *dimension == name).map(|(_, limit)| *limit as f64 / 60.0);
        limits.fold(f64::INFINITY, f64::min)
    };
    let rates = [tightest("requests_per_minute"), tightest("tokens_per_minute")];
    rates.iter().any(|rate| rate.is_finite()).then_some(rates)
}
