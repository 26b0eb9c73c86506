//! Decides what whoever asks is told of how the audit trail stands.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tidegate_core::config::OnAuditFailure;

use super::Audit;

/// How the trail stands, as `status` has it.
#[derive(Debug, Serialize)]
pub(crate) struct AuditStanding {
    /// `well`, `failing` (it is not being written) or `off` (it has no place).
    state: &'static str,
    /// Records that could not be kept since the start.
    lost: u64,
    /// What becomes of calls while it is not written: `continue` or `refuse`.
    on_failure: &'static str,
    /// Since when it cannot be written, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// Why it cannot be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Audit {
    /// How it stands, where calls are held to `on_failure`.
    pub(crate) fn standing(&self, on_failure: OnAuditFailure) -> AuditStanding {
        let said = match on_failure {
            OnAuditFailure::Continue => "continue",
            OnAuditFailure::Refuse => "refuse",
        };
        let Some(kept) = &self.kept else {
            return AuditStanding { state: "off", lost: 0, on_failure: said, since: None, why: None };
        };
        let status = kept.trail.status();
        // What refuses calls is told although nothing has failed: records that found no room, or a start that waits for the disk.
        let is_failing = status.failing_since.is_some() || self.stands_in_the_way(on_failure);
        AuditStanding {
            state: if is_failing { "failing" } else { "well" },
            lost: status.lost,
            on_failure: said,
            since: status.failing_since.map(shown),
            why: status.error.filter(|_| is_failing),
        }
    }
}

/// Microseconds since 1970 as people write them.
fn shown(micros: u64) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}
