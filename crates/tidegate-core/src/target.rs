//! One account and model group of an upstream: its breaker, what has been learned of it, how fast it may start.
//!
//! Holds state and small decisions; the gate asks them, the ledger holds the levels.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::breaker::Breaker;
use crate::config::{TokenCharge, UpstreamPolicy};
use crate::learn::binding::Binding;
use crate::learn::charge::ChargeRule;
use crate::learn::cold_start::ColdStart;
use crate::learn::flow::Flow;
use crate::learn::output::TypicalOutput;
use crate::learn::pace::Pace;
use crate::limit::Dimension;
use crate::time::Time;

/// A limit that the server announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learned {
    pub(crate) dimension: Dimension,
    pub(crate) meter: u32,
    /// Headers tell it; else only refusals do, who have no reason to as long as it is kept.
    pub(crate) by_headers: bool,
    /// When a reply last told it.
    pub(crate) told_at: Time,
    /// Replies since that told other limits and not this one.
    pub(crate) missed: u32,
    /// How often it has moved lately.
    pub(crate) moves: u32,
    /// While calls are under way that were sent before it was known.
    pub(crate) early: Option<Early>,
}

/// What replies to calls that were sent together, before a limit was known, say of it together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Early {
    /// When they were sent.
    pub(crate) sent_at: Time,
    /// The least that any of them said was left.
    pub(crate) found: i64,
    /// What each of those calls took, as far as is known.
    pub(crate) each: u64,
    /// At most so many have not been answered: the server may not have counted them yet.
    pub(crate) under_way: u64,
}

impl Early {
    /// What was left when the last of them had been counted.
    pub(crate) fn level(&self) -> i64 {
        self.found.saturating_sub(crate::bucket::as_level(self.each.saturating_mul(self.under_way)))
    }
}

/// How well reservations meet use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reserved {
    /// Tokens reserved by calls whose use is known.
    pub(crate) tokens: u64,
    /// Sum of how far off each was, in either direction.
    pub(crate) error: u64,
}

/// A dimension that is paced below what is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Paced {
    pub(crate) dimension: Dimension,
    pub(crate) meter: u32,
    pub(crate) pace: Pace,
}

#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) account: Arc<str>,
    pub(crate) model: Arc<str>,
    /// `upstream/model group`: what people see; holds no trace of the credential.
    pub(crate) name: Arc<str>,
    pub(crate) breaker: Breaker,
    pub(crate) learn_limits: bool,
    pub(crate) learned: SmallVec<[Learned; 4]>,
    /// What has gone to it: requests, tokens.
    pub(crate) flows: [Flow; 2],
    pub(crate) paces: SmallVec<[Paced; 1]>,
    pub(crate) binding: Binding,
    /// Refusals that the limits known explain, since a call last went well.
    pub(crate) refused_in_row: u32,
    /// Dimensions whose headers are not believed, and until when.
    pub(crate) distrusted: SmallVec<[(Dimension, Time); 1]>,
    /// Counts changes of `learned` and `paces`, so that routes notice.
    pub(crate) version: u32,
    pub(crate) charge_rule: ChargeRule,
    pub(crate) typical_output: TypicalOutput,
    pub(crate) reserved: Reserved,
    /// `None`: limits are known, or not to be learned.
    pub(crate) cold_start: Option<ColdStart>,
    /// The meter that counts calls in flight; bounded while starting cold or coming back after an outage.
    pub(crate) gauge: u32,
    /// The meter in whose lot calls wait for the breaker.
    pub(crate) waits_for_breaker: u32,
    /// The most calls that were in flight at once before the breaker opened.
    pub(crate) peak_in_flight: u64,
    pub(crate) routes: u32,
}

impl Target {
    pub(crate) fn charge_rule_for(policy: Option<&UpstreamPolicy>) -> ChargeRule {
        ChargeRule::new(policy.map_or(TokenCharge::Learned, |policy| policy.token_charge))
    }

    /// Calls that may be in flight at `now`. `None`: as many as like.
    pub(crate) fn in_flight_cap(&mut self, now: Time) -> Option<u64> {
        let cold = match &mut self.cold_start {
            Some(start) => start.cap(now),
            None => None,
        };
        let share = self.breaker.ramp_share(now);
        let ramp = (share < 1.0).then(|| {
            let (_, probes) = self.breaker.report(self.name.clone()).probes;
            u64::from(probes).max((self.peak_in_flight as f64 * share) as u64).max(1)
        });
        match (cold, ramp) {
            (Some(cold), Some(ramp)) => Some(cold.min(ramp)),
            (cold, ramp) => cold.or(ramp),
        }
    }
}
