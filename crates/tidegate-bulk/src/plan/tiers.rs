//! Decides what a tier allows: a table that ships with the program, dated, or one of the user's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tidegate_core::limit::{Dimension, Limit, Mode, Override, Rates, Scope};

/// Tiers from the smallest to the largest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiers {
    /// When it was true.
    pub as_of: String,
    /// Where it is from.
    pub source: String,
    /// The tiers.
    pub tier: Vec<Tier>,
}

/// One tier.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// By model group.
    pub model: BTreeMap<String, ModelRates>,
}

/// What a tier allows of one model group; absent: not limited.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRates {
    rpm: Option<u64>,
    tpm: Option<u64>,
    rpd: Option<u64>,
}

impl Tiers {
    /// Reads a table; the error says where it is wrong.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The table that ships with the program.
    ///
    /// # Errors
    /// None, as long as its test passes.
    pub fn shipped() -> Result<Self, String> {
        Self::parse(include_str!("tiers.toml"))
    }

    /// The tiers that say something of every one of `models`.
    #[must_use]
    pub fn for_models(mut self, models: &[Arc<str>]) -> Self {
        self.tier.retain(|tier| models.iter().all(|model| tier.model.contains_key(&**model)));
        self
    }

    /// The limits of `tier` for `models`.
    pub(crate) fn limits(&self, tier: &Tier, models: &[Arc<str>]) -> Vec<Limit> {
        let rates = |rates: &ModelRates| {
            [
                (Dimension::RequestsPerMinute, rates.rpm),
                (Dimension::TokensPerMinute, rates.tpm),
                (Dimension::RequestsPerDay, rates.rpd),
            ]
            .into_iter()
            .filter_map(|(dimension, units)| Some((dimension, units?)))
            .fold(Rates::default(), |rates, (dimension, units)| rates.with(dimension, units))
        };
        let overrides = models.iter().filter_map(|model| {
            let rates = rates(tier.model.get(&**model)?);
            Some(Override { scope: Scope::Model, pattern: model.to_string(), rates })
        });
        vec![Limit {
            name: tier.name.as_str().into(),
            per: vec![Scope::Account, Scope::Model],
            base: Rates::default(),
            overrides: overrides.collect(),
            algorithm: None,
            mode: Mode::Enforce,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_is_whole_and_dated() {
        let tiers = Tiers::shipped().unwrap();
        assert_eq!(tiers.tier.len(), 5);
        assert!(
            humantime::parse_rfc3339_weak(&format!("{} 00:00:00", tiers.as_of)).is_ok() && !tiers.source.is_empty()
        );
        let limits = tiers.limits(&tiers.tier[0], &["gpt-4o".into()]);
        assert!(limits[0].overrides[0].rates.allowance(Dimension::TokensPerMinute).is_some());
        assert_eq!(tiers.clone().for_models(&["o3".into()]).tier.len(), 2);
        assert!(tiers.for_models(&["nobody".into()]).tier.is_empty());
    }
}
