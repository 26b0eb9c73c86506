//! Decides what is kept of each model at an upstream: the group whose limit it shares, how its tokens are estimated, its series.
//!
//! Bounded: names are the callers' to invent, so that beyond a number of them nothing is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tidegate_core::openai::estimate::Calibration;
use tidegate_core::openai::models::ModelGroups;

use crate::metrics::{Metrics, TargetMetrics};

/// Names kept for one upstream; OpenAI lists about a hundred.
const NAMES_MAX: usize = 1024;

/// One model group at one upstream.
#[derive(Debug)]
pub(crate) struct Model {
    /// Whose limit it shares; empty for calls without a model.
    pub(crate) group: Arc<str>,
    pub(crate) metrics: TargetMetrics,
    calibration: Mutex<Calibration>,
}

impl Model {
    fn new(group: &str, upstream: &Arc<str>, metrics: &Metrics) -> Arc<Self> {
        let group: Arc<str> = Arc::from(group);
        let metrics = metrics.target(upstream, &group);
        Arc::new(Self { group, metrics, calibration: Mutex::default() })
    }

    /// How far estimates are off at the moment.
    pub(crate) fn calibration(&self) -> Calibration {
        *self.calibration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from a call that was estimated at `estimated` tokens and took `real` ones.
    pub(crate) fn learn(&self, estimated: u64, real: u64) {
        self.calibration.lock().unwrap_or_else(PoisonError::into_inner).learn(estimated, real);
    }
}

/// The models of one upstream.
#[derive(Debug, Default)]
pub(crate) struct Models(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By the names that callers use.
    by_name: HashMap<Box<str>, Arc<Model>>,
    /// Groups that the upstream said share the limit of another.
    joined: HashMap<Box<str>, Arc<Model>>,
}

impl Known {
    fn of_group(&self, group: &str) -> Option<Arc<Model>> {
        let has_group = |model: &&Arc<Model>| &*model.group == group;
        self.joined.get(group).or_else(|| self.by_name.values().find(has_group)).cloned()
    }
}

impl Models {
    /// What is kept of `name`; made on its first use. `deployment`: it is an Azure deployment's name.
    pub(crate) fn named(
        &self,
        name: &str,
        deployment: bool,
        groups: &ModelGroups,
        upstream: &Arc<str>,
        metrics: &Metrics,
    ) -> Arc<Model> {
        if let Some(model) = self.0.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name) {
            return model.clone();
        }
        let group = if deployment { groups.group_of_deployment(name) } else { groups.group_of(name) };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Snapshots of one family share what was learned of it.
        let model = known.of_group(group).unwrap_or_else(|| Model::new(group, upstream, metrics));
        if known.by_name.len() < NAMES_MAX {
            known.by_name.insert(name.into(), model.clone());
        }
        model
    }

    /// The upstream said that models of the group `of` share the limit of `with`: from now on they are of that group.
    pub(crate) fn join(&self, of: &str, with: &str, upstream: &Arc<str>, metrics: &Metrics) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let model = known.of_group(with).unwrap_or_else(|| Model::new(with, upstream, metrics));
        let Known { by_name, joined } = &mut *known;
        for other in by_name.values_mut().chain(joined.values_mut()).filter(|other| &*other.group == of) {
            *other = model.clone();
        }
        // Other names of that group may come.
        if joined.len() < NAMES_MAX && &*model.group != of {
            joined.insert(of.into(), model);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate::Driver;
    use tidegate_core::config::Policy;

    use super::*;

    #[tokio::test]
    async fn snapshots_share_what_was_learned_of_their_family_and_invented_names_take_no_room() {
        let metrics = Metrics::new(&Driver::new(Policy::default(), 1), None);
        let (models, groups, upstream) = (Models::default(), ModelGroups::default(), Arc::from("openai"));
        let named = |name: &str| models.named(name, false, &groups, &upstream, &metrics);
        named("gpt-4o-2024-08-06").learn(1000, 2000);
        assert_eq!(named("gpt-4o").calibration().per_mille(), 1125);
        models.join("gpt-4o", "gpt-shared", &upstream, &metrics);
        for name in ["gpt-4o-2024-08-06", "gpt-4o", "gpt-4o-2024-11-20"] {
            assert_eq!(&*named(name).group, "gpt-shared", "{name}");
        }
        assert_eq!(&*named("gpt-4.1").group, "gpt-4.1");
        for number in 0..2 * NAMES_MAX {
            named(&format!("invented-{number}"));
        }
        assert_eq!(models.0.read().unwrap().by_name.len(), NAMES_MAX);
    }
}
