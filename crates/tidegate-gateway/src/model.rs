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
    /// How far estimates are off at the moment.
    pub(crate) fn calibration(&self) -> Calibration {
        *self.calibration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from a call that was estimated at `estimated` tokens and took `real` ones.
    pub(crate) fn learn(&self, estimated: u64, real: u64) {
        self.calibration.lock().unwrap_or_else(PoisonError::into_inner).learn(estimated, real);
    }
}

/// The models of one upstream, by the names that callers use.
#[derive(Debug, Default)]
pub(crate) struct Models {
    by_name: RwLock<HashMap<Box<str>, Arc<Model>>>,
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
        if let Some(model) = self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return model.clone();
        }
        let group = if deployment { groups.group_of_deployment(name) } else { groups.group_of(name) };
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        // Snapshots of one family share what was learned of it.
        let known = by_name.values().find(|model| &*model.group == group).cloned();
        let model = known.unwrap_or_else(|| {
            let group: Arc<str> = Arc::from(group);
            let metrics = metrics.target(upstream, &group);
            Arc::new(Model { group, metrics, calibration: Mutex::default() })
        });
        if by_name.len() < NAMES_MAX {
            by_name.insert(name.into(), model.clone());
        }
        model
    }

    /// The upstream said that models of the group `of` share the limit of `with`: from now on they are of that group.
    pub(crate) fn join(&self, of: &str, with: &str, upstream: &Arc<str>, metrics: &Metrics) {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let known = by_name.values().find(|model| &*model.group == with).cloned();
        let joined = known.unwrap_or_else(|| {
            let group: Arc<str> = Arc::from(with);
            let metrics = metrics.target(upstream, &group);
            Arc::new(Model { group, metrics, calibration: Mutex::default() })
        });
        for model in by_name.values_mut().filter(|model| &*model.group == of) {
            *model = joined.clone();
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
        assert_eq!(&*named("gpt-4o-2024-08-06").group, "gpt-shared");
        assert_eq!(&*named("gpt-4.1").group, "gpt-4.1");
        for number in 0..2 * NAMES_MAX {
            named(&format!("invented-{number}"));
        }
        assert_eq!(models.by_name.read().unwrap().len(), NAMES_MAX);
    }
}
