//! Calls that a limit held or refused. That one was held is known once it is let go, from the core's events: the counters of the way
//! itself see only that it waited.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tidegate_core::event::Event;
use tidegate_core::limit::Dimension;
use tidegate_watch::alert::Counts;

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
    by_limit: Arc<Mutex<Counts>>,
}

impl Held {
    pub(super) fn new(limited: Family<LimitedLabels, Counter>, models: Shown) -> Self {
        Self { limited, models, ..Self::default() }
    }

    /// All that were held, and those that were refused with them, by limit. As many as there are limits.
    pub(super) fn by_limit(&self) -> Counts {
        self.by_limit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a call that `limit` held or refused.
    pub(super) fn hit(&self, limit: &Arc<str>) {
        let mut counts = self.by_limit.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(limit.clone()).or_default() += 1;
    }

    /// All that were held.
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
        let limit = Arc::from(limit);
        self.hit(&limit);
        let labels = LimitedLabels {
            limit,
            dimension: dimension.name(),
            model: Arc::from(self.models.known(model)),
            action: "held",
        };
        self.limited.get_or_create(&labels).inc();
    }
}
