//! Decides what is kept of each model at an upstream: the group whose limit it shares, how its tokens are estimated, its series.
//!
//! Bounded: names are the callers' to invent, so that beyond a number of them nothing is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
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
    /// By group; of a group that the upstream said shares the limit of another, that other.
    by_group: HashMap<Box<str>, Arc<Model>>,
}

impl Known {
    fn of_group(&mut self, group: &str, make: impl FnOnce() -> Arc<Model>) -> Arc<Model> {
        if let Some(model) = self.by_group.get(group) {
            return model.clone();
        }
        let model = make();
        if self.by_group.len() < NAMES_MAX {
            self.by_group.insert(group.into(), model.clone());
        }
        model
    }
}

/// What is kept of an upstream's models over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptModels {
    /// Groups that share the limit of another: that other.
    #[serde(default)]
    joined: BTreeMap<String, String>,
    /// By group, real input tokens per thousand estimated.
    #[serde(default)]
    calibration: BTreeMap<String, u32>,
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
        let model = known.of_group(group, || Model::new(group, upstream, metrics));
        if known.by_name.len() < NAMES_MAX {
            known.by_name.insert(name.into(), model.clone());
        }
        model
    }

    /// The upstream said that models of the group `of` share the limit of `with`: from now on they are of that group.
    pub(crate) fn join(&self, of: &str, with: &str, upstream: &Arc<str>, metrics: &Metrics) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let model = known.of_group(with, || Model::new(with, upstream, metrics));
        let Known { by_name, by_group } = &mut *known;
        for other in by_name.values_mut().chain(by_group.values_mut()).filter(|other| &*other.group == of) {
            *other = model.clone();
        }
        // Other names of that group may come.
        if by_group.len() < NAMES_MAX && &*model.group != of {
            by_group.insert(of.into(), model);
        }
    }

    /// Which models share a limit is somebody else's to say from now on.
    pub(crate) fn part(&self) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.by_group.retain(|group, model| **group == *model.group);
        // Names find their groups again.
        known.by_name.clear();
    }

    /// What a restart would lose.
    pub(crate) fn kept(&self) -> KeptModels {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut kept = KeptModels::default();
        for (group, model) in &known.by_group {
            if **group == *model.group {
                kept.calibration.insert(group.to_string(), model.calibration().per_mille());
            } else {
                kept.joined.insert(group.to_string(), model.group.to_string());
            }
        }
        kept.calibration.retain(|_, per_mille| *per_mille != Calibration::default().per_mille());
        kept
    }

    /// Takes over what was kept. To be called before the first call.
    pub(crate) fn restore(&self, kept: &KeptModels, upstream: &Arc<str>, metrics: &Metrics) {
        for (group, per_mille) in &kept.calibration {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let model = known.of_group(group, || Model::new(group, upstream, metrics));
            *model.calibration.lock().unwrap_or_else(PoisonError::into_inner) = Calibration::from_per_mille(*per_mille);
        }
        for (of, with) in &kept.joined {
            self.join(of, with, upstream, metrics);
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
    #[tokio::test]
    async fn what_was_learned_of_models_is_known_to_the_process_that_comes_after() {
        let metrics = Metrics::new(&Driver::new(Policy::default(), 1), None);
        let (before, after) = (Models::default(), Models::default());
        let (groups, upstream) = (ModelGroups::default(), Arc::from("openai"));
        let named = |models: &Models, name: &str| models.named(name, false, &groups, &upstream, &metrics);
        named(&before, "gpt-4o").learn(1000, 2000);
        named(&before, "gpt-4.1-mini");
        before.join("gpt-4.1-mini", "gpt-4.1", &upstream, &metrics);
        let text = serde_json::to_string(&before.kept()).unwrap();
        after.restore(&serde_json::from_str(&text).unwrap(), &upstream, &metrics);
        assert_eq!(named(&after, "gpt-4o-2024-11-20").calibration().per_mille(), 1125);
        assert_eq!(&*named(&after, "gpt-4.1-mini-2025-04-14").group, "gpt-4.1");
        assert_eq!(after.kept(), before.kept());
    }
}
