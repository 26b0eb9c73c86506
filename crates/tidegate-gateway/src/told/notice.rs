//! Decides how one thing that happened is written down for readers, and what of it they may be told.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde::Serialize;
use tidegate_core::event::Event;
use tidegate_watch::audit::{Feed, Kind, Record};

/// The kind of limits that upstreams told; no record has it.
pub(super) const LEARNED: &str = "learned";

/// One thing that happened.
#[derive(Debug)]
pub(super) struct Notice {
    id: u64,
    event: &'static str,
    said: Said,
    /// Written when the first reader wants it: mostly nobody reads.
    text: OnceLock<String>,
}

#[derive(Debug)]
enum Said {
    Recorded(Box<Record>),
    Unrecorded(Box<Unrecorded>),
    /// So many could not be told.
    Lost(u64),
}

/// What has no record, told as if it had one.
#[derive(Debug, Serialize)]
struct Unrecorded {
    at: String,
    kind: &'static str,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Arc<str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    numbers: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

impl Unrecorded {
    fn new(kind: &'static str, what: &'static str) -> Self {
        Self {
            at: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            kind,
            what,
            call: None,
            tenant: None,
            user: None,
            limit: None,
            target: None,
            numbers: BTreeMap::new(),
            why: None,
        }
    }
}

impl Notice {
    pub(super) fn of_record(id: u64, event: &'static str, record: &Record) -> Self {
        Self::new(id, event, Said::Recorded(Box::new(record.clone().bounded())))
    }

    /// What an event says that has no record. `None`: nothing that anybody is told of.
    pub(super) fn of_event(id: u64, event: &Event, feed: &Feed) -> Option<Self> {
        let said = match event {
            Event::AttemptFailed { call, whose, attempt, kind } => Unrecorded {
                call: Some(call.clone()),
                tenant: whose.as_ref().map(|whose| whose.tenant.clone()),
                user: whose.as_ref().and_then(|whose| feed.shown_user(whose)),
                target: whose.as_ref().map(|whose| whose.target.clone()),
                numbers: [("attempt", u64::from(*attempt))].into(),
                why: Some(kind.error_class()),
                ..Unrecorded::new(Kind::Retry.name(), "attempt failed")
            },
            Event::StreamBroken { call, kind } => Unrecorded {
                call: Some(call.clone()),
                why: Some(kind.error_class()),
                ..Unrecorded::new(Kind::Degradation.name(), "stream broken")
            },
            Event::LimitLearned { target, dimension, limit } => Unrecorded {
                target: Some(target.clone()),
                limit: Some(dimension.name()),
                numbers: [("allowed", *limit)].into(),
                ..Unrecorded::new(LEARNED, "limit learned")
            },
            Event::ProbeStarted { breaker } => {
                Unrecorded { target: Some(breaker.clone()), ..Unrecorded::new(Kind::Breaker.name(), "probe started") }
            }
            // The others are told elsewhere, or what each call brings along.
            _ => return None,
        };
        Some(Self::new(id, name_of(event), Said::Unrecorded(Box::new(said))))
    }

    pub(super) fn lost(id: u64, events: u64) -> Self {
        Self::new(id, "lost", Said::Lost(events))
    }

    fn new(id: u64, event: &'static str, said: Said) -> Self {
        Self { id, event, said, text: OnceLock::new() }
    }

    /// Greater than that of all before it.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// `None`: it tells what could not be told, which concerns everybody.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match &self.said {
            Said::Recorded(record) => Some(record.kind.name()),
            Said::Unrecorded(said) => Some(said.kind),
            Said::Lost(_) => None,
        }
    }

    pub(super) fn call(&self) -> Option<&str> {
        match &self.said {
            Said::Recorded(record) => record.call.as_deref(),
            Said::Unrecorded(said) => said.call.as_deref(),
            Said::Lost(_) => None,
        }
    }

    pub(super) fn user(&self) -> Option<&str> {
        match &self.said {
            Said::Recorded(record) => record.user.as_deref(),
            Said::Unrecorded(said) => said.user.as_deref(),
            Said::Lost(_) => None,
        }
    }

    /// Whether calls bring such things about, so that there may be very many.
    pub(super) fn is_of_call(&self) -> bool {
        self.call().is_some()
    }

    /// As it goes to readers.
    pub(super) fn text(&self) -> &str {
        self.text.get_or_init(|| {
            let data = match &self.said {
                Said::Recorded(record) => serde_json::to_string(record),
                Said::Unrecorded(said) => serde_json::to_string(said),
                Said::Lost(events) => return lost_text(*events),
            };
            // JSON has no line breaks outside of its strings, and escapes them there. These types can always be written.
            format!("id: {}\nevent: {}\ndata: {}\n\n", self.id, self.event, data.unwrap_or_else(|_| "{}".to_owned()))
        })
    }
}

/// The name of an event. Of those that nobody is told of, none.
pub(super) const fn name_of(event: &Event) -> &'static str {
    match event {
        Event::Granted { .. } => "granted",
        Event::Refused { .. } => "refused",
        Event::AttemptSuccess { .. } => "attempt_success",
        Event::AttemptFailed { .. } => "attempt_failed",
        Event::RetryScheduled { .. } => "retry_scheduled",
        Event::OperationFailed { .. } => "operation_failed",
        Event::StreamBroken { .. } => "stream_broken",
        Event::LimitLearned { .. } => "limit_learned",
        Event::RetryBudgetExhausted => "retry_budget_exhausted",
        Event::ProbeStarted { .. } => "probe_started",
        Event::StateChanged { .. } => "state_changed",
        Event::BoostEnded { .. } => "boost_ended",
        Event::BypassSuspected { .. } => "bypass_suspected",
        _ => "other",
    }
}

/// So many events are missing here.
pub(super) fn lost_text(events: u64) -> String {
    format!("event: lost\ndata: {{\"events\":{events}}}\n\n")
}

#[cfg(test)]
mod tests {
    use tidegate_core::limit::Dimension;

    use super::*;

    #[test]
    fn what_happened_is_one_event_with_its_name_and_time() {
        let record = Record {
            call: Some("c-1".into()),
            why: Some("two\nlines".into()),
            ..Record::new(Kind::Throttle, "refused")
        };
        let notice = Notice::of_record(7, "refused", &record);
        let text = notice.text();
        assert!(text.starts_with("id: 7\nevent: refused\ndata: {\"at\":\"20"), "{text}");
        let said = r#""kind":"throttle","what":"refused","call":"c-1","why":"two\nlines"}"#;
        assert!(text.ends_with(&format!("{said}\n\n")), "{text}");
    }

    #[test]
    fn what_has_no_record_is_told_as_if_it_had_one() {
        let event = Event::LimitLearned {
            target: "openai/gpt-4o".into(),
            dimension: Dimension::TokensPerMinute,
            limit: 90_000,
        };
        let notice = Notice::of_event(1, &event, &Feed::new(false, None)).unwrap();
        let said = r#""kind":"learned","what":"limit learned","limit":"tokens_per_minute","target":"openai/gpt-4o","numbers":{"allowed":90000}}"#;
        assert!(
            notice.text().starts_with("id: 1\nevent: limit_learned\n") && notice.text().contains(said),
            "{notice:?}"
        );
        assert!(Notice::of_event(1, &Event::ConfigUpdated, &Feed::new(false, None)).is_none());
    }
}
