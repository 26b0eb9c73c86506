//! Decides how everything stands is told to readers: once for all of them, as much as fits a page, and never so often that calls feel it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tidegate_core::gate::Overview;
use tokio::time::Instant;

use crate::audit::AuditStanding;
use crate::last_minute::Came;
use crate::shared::{Phase, Shared};

/// How often readers are told.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Looking holds up decisions: at most this part of the time.
const LOOKS_ONE_IN: u32 = 50;
/// Of levels, breakers, tenants so many: the page has room for no more, and searches among all by `status`.
const MOST: usize = 50;

/// The last look, which those share who want one at the same time.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Option<Snapshot>>);

#[derive(Debug)]
struct Snapshot {
    looked_at: Instant,
    took: Duration,
    text: Arc<str>,
}

#[derive(Serialize)]
struct View {
    /// RFC 3339.
    at: String,
    version: &'static str,
    state: &'static str,
    #[serde(flatten)]
    core: Overview,
    last_minute: Came,
    audit: AuditStanding,
}

impl Snapshots {
    /// How everything stands, as it goes to readers. None of them is told the same twice: `after` is what it was told last.
    pub(super) fn text(&self, shared: &Shared, after: &mut Option<Instant>) -> Option<Arc<str>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh =
            last.as_ref().is_some_and(|last| last.looked_at.elapsed() < (EVERY / 2).max(last.took * LOOKS_ONE_IN));
        if !is_fresh {
            let looked_at = Instant::now();
            let core = shared.driver.with(|gate, now| gate.overview(now, MOST));
            let took = looked_at.elapsed();
            *last = Some(Snapshot { looked_at, took, text: text(shared, core) });
        }
        let last = last.as_ref().filter(|last| *after != Some(last.looked_at))?;
        *after = Some(last.looked_at);
        Some(last.text.clone())
    }
}

fn text(shared: &Shared, core: Overview) -> Arc<str> {
    let view = View {
        at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        version: env!("CARGO_PKG_VERSION"),
        state: if shared.phase() == Phase::Serving { "serving" } else { "draining" },
        core,
        last_minute: shared.last_minute.came(Instant::now(), &shared.metrics.totals()),
        audit: shared.audit.standing(shared.settings.load().config.audit.on_failure),
    };
    // These types can always be written.
    let data = serde_json::to_string(&view).unwrap_or_else(|_| "{}".to_owned());
    format!("event: status\ndata: {data}\n\n").into()
}
