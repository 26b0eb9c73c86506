//! Decides which limit a run is measured against: what the upstream tells of itself, or what was given where that is tighter.

use std::collections::BTreeMap;

use tidegate_core::gate::Status;

/// A limit in one dimension, of all model groups of the run together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Units per period.
    pub(crate) limit: u64,
    /// Units left.
    pub(crate) remaining: u64,
}

impl Known {
    /// `None`: nothing is known of this dimension.
    pub(crate) fn of(status: &Status, dimension: &str) -> Option<Self> {
        let told = status.learned.iter().flat_map(|learned| &learned.limits);
        let told = told.filter(|told| told.dimension == dimension).map(|told| ("", told.limit, told.remaining));
        let given = status.limits.iter().filter(|level| level.kind == "mirror");
        let given = given.flat_map(|level| level.meters.iter().map(|meter| (level.limit.as_str(), meter)));
        let given = given.filter(|(_, meter)| meter.dimension == dimension);
        let given = given.map(|(name, meter)| (name, meter.limit, meter.remaining));
        let mut sums: BTreeMap<&str, Self> = BTreeMap::new();
        for (name, limit, remaining) in told.chain(given) {
            let sum = sums.entry(name).or_default();
            sum.limit = sum.limit.saturating_add(limit);
            sum.remaining = sum.remaining.saturating_add(u64::try_from(remaining).unwrap_or(0));
        }
        sums.into_values().min_by_key(|known| known.limit)
    }
}
