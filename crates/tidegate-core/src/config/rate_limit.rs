//! Decides what one limit by itself is made of, for programs that need no more than one.

use std::num::NonZeroU64;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::limit::{Algorithm, Allowance, Dimension, Limit, Mode, Override, Rates, Scope};

/// One limit, with a level for each organization, user and model unless it says otherwise. The default limits nothing.
///
/// ```
/// use tidegate_core::config::RateLimitConfig;
/// use tidegate_core::limit::Dimension;
///
/// let config = RateLimitConfig::default()
///     .with_requests_per_minute(500)
///     .with_tokens_per_minute(30_000)
///     .with_model("gpt-4o-mini", Dimension::TokensPerMinute, 200_000);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitConfig(Limit);

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self(Limit {
            name: "rate_limit".into(),
            per: vec![Scope::Organization, Scope::User, Scope::Model],
            base: Rates::default(),
            overrides: Vec::new(),
            algorithm: None,
            mode: Mode::Enforce,
        })
    }
}

impl From<Limit> for RateLimitConfig {
    fn from(limit: Limit) -> Self {
        Self(limit)
    }
}

impl RateLimitConfig {
    /// 3500 requests and 90,000 tokens a minute, 10,000 requests a day, 10 requests at one instant.
    #[must_use]
    pub fn openai_paid() -> Self {
        Self::default()
            .with_requests_per_minute(3500)
            .with_tokens_per_minute(90_000)
            .with_requests_per_day(10_000)
            .with_burst_allowance(10)
    }

    /// The name under which refusals and events speak of it: each of several limits needs its own. Absent: `rate_limit`.
    #[must_use]
    pub fn named(mut self, name: impl Into<std::sync::Arc<str>>) -> Self {
        self.0.name = name.into();
        self
    }

    /// Requests per minute. 0: none at all.
    #[must_use]
    pub fn with_requests_per_minute(self, requests: u64) -> Self {
        self.with(Dimension::RequestsPerMinute, requests)
    }

    /// Tokens per minute. 0: none at all.
    #[must_use]
    pub fn with_tokens_per_minute(self, tokens: u64) -> Self {
        self.with(Dimension::TokensPerMinute, tokens)
    }

    /// Requests per day. 0: none at all.
    #[must_use]
    pub fn with_requests_per_day(self, requests: u64) -> Self {
        self.with(Dimension::RequestsPerDay, requests)
    }

    /// So many units of any dimension; calls in flight among them. 0: none at all.
    #[must_use]
    pub fn with(mut self, dimension: Dimension, units: u64) -> Self {
        self.0.base = self.0.base.with(dimension, units);
        self
    }

    /// How much may go at one instant, in requests; all that is counted per minute scales with it. 0: a whole minute's worth.
    #[must_use]
    pub fn with_burst_allowance(mut self, requests: u64) -> Self {
        self.0.base.burst_allowance = NonZeroU64::new(requests);
        self
    }

    /// Other units for a model, or for all whose name fits a pattern such as `gpt-4o*`.
    #[must_use]
    pub fn with_model(self, pattern: &str, dimension: Dimension, units: u64) -> Self {
        self.with_override(Scope::Model, pattern, dimension, units)
    }

    /// Other units for an organization.
    #[must_use]
    pub fn with_organization(self, pattern: &str, dimension: Dimension, units: u64) -> Self {
        self.with_override(Scope::Organization, pattern, dimension, units)
    }

    /// Other units for whatever fits `pattern` in `scope`, which must be one of those that there are levels for.
    #[must_use]
    pub fn with_override(mut self, scope: Scope, pattern: &str, dimension: Dimension, units: u64) -> Self {
        let known = self.0.overrides.iter_mut().find(|known| known.scope == scope && known.pattern == pattern);
        match known {
            Some(known) => known.rates = std::mem::take(&mut known.rates).with(dimension, units),
            None => {
                let rates = Rates::default().with(dimension, units);
                self.0.overrides.push(Override { scope, pattern: pattern.to_owned(), rates });
            }
        }
        self
    }

    /// One level for each combination of these; for none of them: one level for all calls.
    #[must_use]
    pub fn per(mut self, scopes: impl IntoIterator<Item = Scope>) -> Self {
        self.0.per = scopes.into_iter().collect();
        self.0.per.sort_unstable();
        self.0.per.dedup();
        self
    }

    /// How its levels refill. Absent: never more than N in any 60 s.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.0.algorithm = Some(algorithm);
        self
    }

    /// Counts what would have been held back, and holds nothing.
    #[must_use]
    pub fn in_shadow_mode(mut self) -> Self {
        self.0.mode = Mode::Shadow;
        self
    }

    /// The limit that it is.
    #[must_use]
    pub const fn limit(&self) -> &Limit {
        &self.0
    }

    /// The limit that it is.
    #[must_use]
    pub fn into_limit(self) -> Limit {
        self.0
    }
}

impl Serialize for RateLimitConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Limit { per, base, overrides, algorithm, mode, .. } = &self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("per", &per.iter().map(|scope| scope.name()).collect::<Vec<_>>())?;
        if let Some(algorithm) = algorithm {
            map.serialize_entry("algorithm", algorithm.name())?;
        }
        map.serialize_entry("mode", mode.name())?;
        serialize_rates(base, &mut map)?;
        for scope in per {
            let of_scope = overrides.iter().filter(|exception| exception.scope == *scope);
            let exceptions: std::collections::BTreeMap<_, _> =
                of_scope.map(|exception| (&exception.pattern, Written(&exception.rates))).collect();
            if !exceptions.is_empty() {
                map.serialize_entry(&format!("{}s", scope.name()), &exceptions)?;
            }
        }
        map.end()
    }
}

struct Written<'r>(&'r Rates);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        serialize_rates(self.0, &mut map)?;
        map.end()
    }
}

fn serialize_rates<M: SerializeMap>(rates: &Rates, map: &mut M) -> Result<(), M::Error> {
    for dimension in Dimension::ALL {
        match rates.allowance(dimension) {
            None => {}
            Some(Allowance::Units(units)) => map.serialize_entry(dimension.name(), &units)?,
            Some(Allowance::Unlimited) => map.serialize_entry(dimension.name(), "unlimited")?,
            Some(Allowance::Blocked) => map.serialize_entry(dimension.name(), "blocked")?,
        }
    }
    match rates.burst_allowance {
        Some(requests) => map.serialize_entry("burst_allowance", &requests),
        None => Ok(()),
    }
}
