//! Counts how often breakers changed their state.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::Shown;
use super::labels::TransitionLabels;

/// How often breakers changed their state. The names are as bounded as those of models.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transitions {
    pub(super) counters: Family<TransitionLabels, Counter>,
    pub(super) models: Shown,
}

impl Transitions {
    /// `breaker` is `upstream/model group`.
    pub(crate) fn count(&self, breaker: &str, from: &'static str, to: &'static str) {
        let (upstream, model) = breaker.split_once('/').unwrap_or((breaker, ""));
        let breaker = format!("{upstream}/{}", self.models.known(model));
        self.counters.get_or_create(&TransitionLabels { breaker, from, to }).inc();
    }
}
