//! Decides what traffic would meet under limits, in virtual time over the real core: a million requests in seconds.
//!
//! Only the upstream is imagined: it charges its input when it admits, as OpenAI does, never fails, and takes 300 ms and
//! 12.5 ms for each token of output. Everything else is what the gateway and `tidegate run` would do.

mod chart;
mod html;
mod report;
mod tiers;
mod trace;
mod used;
mod world;

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tidegate_core::config::Policy;
use tidegate_core::limit::{Allowance, Dimension, Rates};

pub use html::page;
pub use report::{Binding, Interval, Plan, Waits};
pub use tiers::{Tier, Tiers};
pub use trace::{Trace, TraceError};
pub use used::Used;
pub use world::predict;

/// The smallest limits that hold a wait.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The wait that 95 of 100 calls are not to exceed, in seconds.
    pub target_p95_seconds: f64,
    /// When the table of tiers was true.
    pub tiers_as_of: String,
    /// Of the tiers that say something of all models, from the smallest: what the wait would be.
    pub tiers: Vec<TierAnswer>,
    /// By how much the configured limits would have to be multiplied. Absent: none are configured, or no factor helps.
    pub factor: Option<f64>,
}

/// One tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierAnswer {
    /// Its name.
    pub tier: String,
    /// 95 of 100 calls wait no longer, in seconds.
    pub p95_seconds: f64,
    /// Calls that would be refused.
    pub refused: u64,
    /// Whether it is enough.
    pub is_enough: bool,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target_p95_seconds;
        write!(f, "for 95 of 100 calls to wait {target} s at most, and none to be refused:")?;
        for tier in &self.tiers {
            let TierAnswer { tier, p95_seconds, refused, is_enough } = tier;
            let verdict = if *is_enough { "is enough" } else { "is not enough" };
            write!(f, "\n  {tier} {verdict}: 95 of 100 wait {p95_seconds:.1} s at most, {refused} are refused")?;
        }
        let as_of = &self.tiers_as_of;
        match self.tiers.last() {
            None => write!(f, "\n  no tier of the table (as of {as_of}) says something of all models of the trace")?,
            Some(last) if !last.is_enough => {
                write!(f, "\n  no larger tier of the table (as of {as_of}) says something of all models")?
            }
            Some(_) => write!(f, "\n  (tiers as of {as_of})")?,
        }
        match self.factor {
            Some(factor) => write!(f, "\n  the configured limits are enough at {factor:.2} times what they are"),
            None => Ok(()),
        }
    }
}

/// Searches the tiers, then the configured limits, for the smallest that hold `target`.
///
/// # Errors
/// If there is nothing to search.
pub fn search(trace: &Trace, policy: &Policy, tiers: &Tiers, target: Duration) -> Result<Answer, String> {
    if tiers.tier.is_empty() && policy.limits.is_empty() {
        let as_of = &tiers.as_of;
        if trace.models().iter().any(|model| model.is_empty()) {
            return Err(
                "nothing to search: the trace names no model, so no tier can be looked up (--model names it), and no \
                        limits are configured"
                    .to_owned(),
            );
        }
        let models = trace.models().join(", ");
        return Err(format!(
            "nothing to search: no tier of the table (as of {as_of}) says something of all of {models} (--tiers gives \
             another table), and no limits are configured"
        ));
    }
    let holds = |plan: &Plan| plan.refused == 0 && plan.all.p95_seconds <= target.as_secs_f64();
    let mut answers = Vec::new();
    for tier in &tiers.tier {
        let limits = tiers.limits(tier, trace.models());
        let plan = predict(trace, &Policy { limits, ..policy.clone() });
        let is_enough = holds(&plan);
        answers.push(TierAnswer {
            tier: tier.name.clone(),
            p95_seconds: plan.all.p95_seconds,
            refused: plan.refused,
            is_enough,
        });
        if is_enough {
            break;
        }
    }
    let holds_at = |factor: f64| holds(&predict(trace, &scaled(policy, factor)));
    let factor = (!policy.limits.is_empty()).then(|| smallest(holds_at)).flatten();
    let tiers_as_of = tiers.as_of.clone();
    Ok(Answer { target_p95_seconds: target.as_secs_f64(), tiers_as_of, tiers: answers, factor })
}

/// The smallest factor that holds, to 2 %.
fn smallest(holds_at: impl Fn(f64) -> bool) -> Option<f64> {
    let (mut low, mut high) = (1.0 / 64.0, 1.0);
    while !holds_at(high) {
        low = high;
        high *= 4.0;
        if high > 1e6 {
            return None;
        }
    }
    while high / low > 1.02 {
        let middle = (low * high).sqrt();
        if holds_at(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

fn scaled(policy: &Policy, factor: f64) -> Policy {
    let mut policy = policy.clone();
    for limit in &mut policy.limits {
        scale(&mut limit.base, factor);
        limit.overrides.iter_mut().for_each(|other| scale(&mut other.rates, factor));
    }
    policy
}

fn scale(rates: &mut Rates, factor: f64) {
    for dimension in Dimension::ALL {
        if let Some(Allowance::Units(units)) = rates.allowance(dimension) {
            *rates = rates.clone().with(dimension, ((units.get() as f64 * factor).ceil() as u64).max(1));
        }
    }
}
