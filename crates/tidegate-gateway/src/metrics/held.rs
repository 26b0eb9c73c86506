//! Calls that a limit held: known once they are let go, from the core's events, since the counters of the way itself see only that
//! they waited.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tidegate_core::event::Event;
use tidegate_core::limit::Dimension;

use super::Shown;
use super::labels::LimitedLabels;

/// As in the audit trail: a shorter wait is none that anybody asks about.
const HELD_FROM: Duration = Duration::from_secs(1);

/// How many calls were held, by which limit; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    limited: Family<LimitedLabels, Counter>,
    models: Shown,
    calls: Counter,
}

impl Held {
    pub(super) fn new(limited: Family<LimitedLabels, Counter>, models: Shown) -> Self {
        Self { limited, models, calls: Counter::default() }
    }

    /// All of them.
    pub(super) fn count(&self) -> u64 {
        self.calls.get()
    }

    /// Counts the call that `event` is about, if it was held. Once: later attempts wait for their back-off.
    pub(crate) fn take(&self, event: &Event) {
        let Event::Granted { whose, attempt: 1, queued_for, limit: Some(path), .. } = event else { return };
        if *queued_for < HELD_FROM {
            return;
        }
        self.calls.inc();
        let (limit, _) = path.split_once('/').unwrap_or((path, ""));
        let is_named = |dimension: &&Dimension| path.rsplit('/').next() == Some(dimension.name());
        let Some(dimension) = Dimension::ALL.iter().find(is_named) else { return };
        let (_, model) = whose.target.split_once('/').unwrap_or(("", &whose.target));
        let labels = LimitedLabels {
            limit: Arc::from(limit),
            dimension: dimension.name(),
            model: Arc::from(self.models.known(model)),
            action: "held",
        };
        self.limited.get_or_create(&labels).inc();
    }
}
