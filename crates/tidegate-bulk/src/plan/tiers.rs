//! Decides what a tier allows: a table that ships with the program, dated, or one of the user's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tidegate_core::limit::{Dimension, Limit, Mode, Override, Rates, Scope, glob_matches};

/// Tiers from the smallest to the largest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiers {
    /// When it was true; empty: it does not say.
    #[serde(default)]
    pub as_of: String,
    /// Where it is from; empty: it does not say.
    #[serde(default)]
    pub source: String,
    /// The tiers.
    #[serde(default)]
    pub tier: Vec<Tier>,
}

/// One tier.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// By model group, or a glob of some.
    pub model: BTreeMap<String, ModelRates>,
}

/// What a tier allows of one model group; absent: not limited.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRates {
    rpm: Option<u64>,
    tpm: Option<u64>,
    rpd: Option<u64>,
    tpd: Option<u64>,
    ipm: Option<u64>,
    /// When this was true, where that is not when the table was.
    as_of: Option<String>,
}

impl Tiers {
    /// Reads a table; the error says where it is wrong.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tiers: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if tiers.tier.is_empty() {
            return Err("there is no [[tier]] in it".to_owned());
        }
        Ok(tiers)
    }

    /// The table that ships with the program.
    ///
    /// # Errors
    /// None, as long as its test passes.
    pub fn shipped() -> Result<Self, String> {
        Self::parse(include_str!("tiers.toml"))
    }
}

impl Tier {
    /// The name itself before a glob, longer globs before shorter, as in the configuration.
    fn rates(&self, model: &str) -> Option<&ModelRates> {
        let globs = || self.model.iter().filter(|(pattern, _)| pattern.contains('*') && glob_matches(pattern, model));
        self.model.get(model).or_else(|| globs().max_by_key(|(pattern, _)| pattern.len()).map(|(_, rates)| rates))
    }

    /// The models that it says nothing of.
    pub(crate) fn unknown(&self, models: &[Arc<str>]) -> Vec<Arc<str>> {
        models.iter().filter(|model| self.rates(model).is_none()).cloned().collect()
    }

    /// Models whose rows have a date of their own.
    pub(crate) fn dates(&self, models: &[Arc<str>]) -> Vec<(String, String)> {
        let date = |model: &Arc<str>| Some((model.to_string(), self.rates(model)?.as_of.clone()?));
        models.iter().filter_map(date).collect()
    }

    /// Its limits for `models`.
    pub(crate) fn limits(&self, models: &[Arc<str>]) -> Vec<Limit> {
        let rates = |rates: &ModelRates| {
            [
                (Dimension::RequestsPerMinute, rates.rpm),
                (Dimension::TokensPerMinute, rates.tpm),
                (Dimension::RequestsPerDay, rates.rpd),
                (Dimension::TokensPerDay, rates.tpd),
                (Dimension::ImagesPerMinute, rates.ipm),
            ]
            .into_iter()
            .filter_map(|(dimension, units)| Some((dimension, units?)))
            .fold(Rates::default(), |rates, (dimension, units)| rates.with(dimension, units))
        };
        let overrides = models.iter().filter_map(|model| {
            let rates = rates(self.rates(model)?);
            Some(Override { scope: Scope::Model, pattern: model.to_string(), rates })
        });
        vec![Limit {
            name: self.name.as_str().into(),
            per: vec![Scope::Account, Scope::Model],
            base: Rates::default(),
            overrides: overrides.collect(),
            algorithm: None,
            mode: Mode::Enforce,
        }]
    }
}

/// Models as one reads them out.
pub(crate) fn named(models: &[Arc<str>]) -> String {
    let name = |model: &Arc<str>| if model.is_empty() { "calls without a model".to_owned() } else { model.to_string() };
    models.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_is_whole_and_dated() {
        let tiers = Tiers::shipped().unwrap();
        let names: Vec<&str> = tiers.tier.iter().map(|tier| tier.name.as_str()).collect();
        assert_eq!(names, ["free", "tier 1", "tier 2", "tier 3", "tier 4", "tier 5"]);
        assert!(
            humantime::parse_rfc3339_weak(&format!("{} 00:00:00", tiers.as_of)).is_ok() && !tiers.source.is_empty()
        );
        let known = |model: &str| tiers.tier.iter().filter(|tier| tier.unknown(&[model.into()]).is_empty()).count();
        for (model, tiers) in [
            ("gpt-5.5", 5),
            ("gpt-5.6-luna", 2),
            ("o3", 2),
            ("o4-mini", 2),
            ("gpt-realtime", 2),
            ("gpt-image-2", 2),
            ("text-embedding-3-small", 1),
            ("gpt-4o", 1),
            ("gpt-4o-mini", 1),
            ("gpt-3.5-turbo", 1),
            ("nobody", 0),
        ] {
            assert_eq!(known(model), tiers, "{model}");
        }
        let limits = tiers.tier[1].limits(&["gpt-4o".into()]);
        assert!(limits[0].overrides[0].rates.allowance(Dimension::TokensPerMinute).is_some());
        assert_eq!(tiers.tier[1].dates(&["gpt-4o".into()]), [("gpt-4o".to_owned(), "late 2024".to_owned())]);
    }

    #[test]
    fn a_table_of_ones_own_needs_no_date_has_globs_and_says_where_it_is_wrong() {
        let tiers = Tiers::parse(
            "[[tier]]\nname = \"a\"\nmodel.\"gpt-4o*\" = { rpm = 1 }\nmodel.\"gpt-4o-m*\" = { rpm = 2 }\n",
        );
        let rpm = |model| tiers.as_ref().unwrap().tier[0].rates(model).and_then(|rates| rates.rpm);
        assert_eq!([rpm("gpt-4o"), rpm("gpt-4o-mini"), rpm("o3")], [Some(1), Some(2), None]);
        let wrong = |text: &str| Tiers::parse(text).unwrap_err();
        let nameless = wrong("[[tier]]\nname = \"a\"\nmodel.m = { rpm = 1 }\n\n[[tier]]\nmodel.m = { rpm = 1 }\n");
        assert!(nameless.contains("line 5") && nameless.contains("missing field `name`"), "{nameless}");
        assert!(wrong("").contains("no [[tier]]"));
    }
}
