//! Decides what traffic would meet under limits, in virtual time over the real core: a million requests in seconds.
//!
//! Only the upstream is imagined: it charges its input when it admits, as OpenAI does, never fails, and takes 300 ms and
//! 12.5 ms for each token of output. All limits are unused at first. Everything else is what the gateway and `tidegate run` would
//! do, the careful beginning of a run included, but not what it costs to find out what an upstream does not tell.

mod chart;
mod html;
mod report;
mod start;
mod tiers;
mod trace;
mod used;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
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
    /// When the table of tiers was true; empty: it does not say.
    pub tiers_as_of: String,
    /// Models whose rows are of another time.
    pub models_as_of: BTreeMap<String, String>,
    /// From the smallest tier to the first that is known to be enough.
    pub tiers: Vec<TierAnswer>,
    /// By how much the configured limits would have to be multiplied. Absent: none are configured, or no factor helps.
    pub factor: Option<f64>,
}

/// One tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierAnswer {
    /// Its name.
    pub tier: String,
    /// What would come of it, and where that is not known, what the table says nothing of.
    #[serde(flatten)]
    pub came: TierCame,
}

/// What would come of a tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TierCame {
    /// The table says what it allows of every model.
    Known {
        /// 95 of 100 calls wait no longer, in seconds.
        p95_seconds: f64,
        /// Calls that would be refused.
        refused: u64,
        /// Whether it is enough.
        is_enough: bool,
    },
    /// It does not.
    Unknown {
        /// The models that it says nothing of; an empty name: calls that name none.
        says_nothing_of: Vec<Arc<str>>,
    },
}

impl Answer {
    fn is_enough(&self) -> bool {
        self.tiers.iter().any(|tier| matches!(tier.came, TierCame::Known { is_enough: true, .. }))
    }

    /// From when the table is, and those rows of it that are older.
    fn dated(&self) -> String {
        let table = Some(format!("tiers as of {}", self.tiers_as_of)).filter(|_| !self.tiers_as_of.is_empty());
        let rows = self.models_as_of.iter().map(|(model, as_of)| format!("{model} as of {as_of}"));
        let all: Vec<String> = table.into_iter().chain(rows).collect();
        if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
    }
}

impl fmt::Display for TierCame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { p95_seconds, refused, is_enough } => {
                let verdict = if *is_enough { "is enough" } else { "is not enough" };
                write!(f, "{verdict}: 95 of 100 wait {p95_seconds:.1} s at most, {refused} are refused")
            }
            Self::Unknown { says_nothing_of } => {
                write!(f, "is not known: the table says nothing of {}", tiers::named(says_nothing_of))
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target_p95_seconds;
        write!(f, "for 95 of 100 calls to wait {target} s at most, and none to be refused:")?;
        for TierAnswer { tier, came } in &self.tiers {
            write!(f, "\n  {tier} {came}")?;
        }
        if !self.is_enough() {
            write!(f, "\n  of the tiers that are known, none is enough")?;
        }
        write!(f, "{}", self.dated())?;
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
    let models = trace.models();
    if policy.limits.is_empty() && tiers.tier.iter().all(|tier| !tier.unknown(models).is_empty()) {
        if models.iter().any(|model| model.is_empty()) {
            return Err(
                "nothing to search: the trace names no model, so no tier can be looked up (--model names it), and no \
                        limits are configured"
                    .to_owned(),
            );
        }
        return Err(format!(
            "nothing to search: no tier of the table says something of all of {} (--tiers gives another table), and no \
             limits are configured",
            tiers::named(models)
        ));
    }
    let holds = |plan: &Plan| plan.refused == 0 && plan.all.p95_seconds <= target.as_secs_f64();
    let mut answer = Answer {
        target_p95_seconds: target.as_secs_f64(),
        tiers_as_of: tiers.as_of.clone(),
        models_as_of: BTreeMap::new(),
        tiers: Vec::new(),
        factor: None,
    };
    for tier in &tiers.tier {
        let says_nothing_of = tier.unknown(models);
        let came = if says_nothing_of.is_empty() {
            let limits = tier.limits(models);
            let plan = predict(trace, &Policy { limits, ..policy.clone() });
            answer.models_as_of.extend(tier.dates(models));
            TierCame::Known { p95_seconds: plan.all.p95_seconds, refused: plan.refused, is_enough: holds(&plan) }
        } else {
            TierCame::Unknown { says_nothing_of }
        };
        answer.tiers.push(TierAnswer { tier: tier.name.clone(), came });
        if answer.is_enough() {
            break;
        }
    }
    let holds_at = |factor: f64| holds(&predict(trace, &scaled(policy, factor)));
    answer.factor = (!policy.limits.is_empty()).then(|| smallest(holds_at)).flatten();
    Ok(answer)
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
