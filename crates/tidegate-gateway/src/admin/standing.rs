//! Decides what a viewer is told of how everything stands, and why a call was held or refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tidegate_core::gate::{Explanation, Status};

use super::Ask;
use super::answer::{Answer, json};
use crate::audit::AuditStanding;
use crate::operating::Standing;
use crate::refusal::OwnReply;
use crate::shared::Phase;

#[derive(Serialize)]
struct StatusView<'s> {
    version: &'static str,
    state: &'static str,
    upstreams: Vec<UpstreamView<'s>>,
    #[serde(flatten)]
    core: Status,
    /// What operators have said that is in force.
    overrides: Arc<Standing>,
    audit: AuditStanding,
}

#[derive(Serialize)]
struct UpstreamView<'s> {
    name: &'s str,
    base_url: &'s str,
    fallback: bool,
}

/// How everything stands.
pub(super) fn status(ask: &Ask) -> Answer {
    let settings = ask.shared.settings.load();
    json(&StatusView {
        version: env!("CARGO_PKG_VERSION"),
        state: if ask.shared.phase() == Phase::Serving { "serving" } else { "draining" },
        upstreams: settings
            .upstreams
            .iter()
            .map(|upstream| UpstreamView {
                name: &upstream.config.name,
                base_url: &upstream.config.base_url,
                fallback: upstream.config.fallback,
            })
            .collect(),
        core: ask.shared.driver.with(|gate, now| gate.status(now)),
        overrides: ask.shared.operating.now(),
        audit: ask.shared.audit.standing(settings.config.audit.on_failure),
    })
}

/// An explanation, with its time as people write it.
#[derive(Serialize)]
struct Explained {
    /// RFC 3339.
    at: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Why a call was held or refused.
pub(super) fn explain(ask: &Ask) -> Answer {
    let explanation = ask.shared.driver.with(|gate, _| gate.explain(&ask.name));
    let explanation = explanation.ok_or_else(|| Box::new(OwnReply::unexplained(&ask.name)))?;
    // The driver's clock counts from the Unix epoch.
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(explanation.at.as_micros());
    json(&Explained { at: humantime::format_rfc3339_millis(at).to_string(), explanation })
}
