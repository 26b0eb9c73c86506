//! Decides how who asks the admin listener for what cannot be had is answered.

use std::time::Duration;

use http::{Method, StatusCode};
use tidegate_watch::audit::StoreError;

use super::{INVALID, OwnReply};
use crate::say::Spoken;

/// So many names are listed for one that is not known.
const KNOWN_SHOWN_MAX: usize = 40;

/// That there is no such thing, and which there are.
pub(crate) fn unknown_name<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let name: String = name.chars().take(200).collect();
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    known.dedup();
    let more = known.len().saturating_sub(KNOWN_SHOWN_MAX);
    known.truncate(KNOWN_SHOWN_MAX);
    let list = match (known.is_empty(), more) {
        (true, _) => "there is none yet".to_owned(),
        (false, 0) => format!("there are: {}", known.join(", ")),
        (false, more) => format!("there are: {} and {more} more", known.join(", ")),
    };
    format!("no {what} \"{name}\"; {list}")
}

impl OwnReply {
    /// 404: the admin listener has no such path.
    pub(crate) fn no_such_admin_path(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let message = format!("the admin listener has no {path}");
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", "bad_request", message)
    }

    /// 405: the path is there, but only for the methods `allowed`.
    pub(crate) fn wrong_method(method: &Method, allowed: String) -> Self {
        let method: String = method.as_str().chars().take(32).collect();
        let message = format!("{method} is none of this path's methods: {allowed}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self { allow: Some(allowed), ..Self::new(status, INVALID, "method_not_allowed", "bad_request", message) }
    }

    /// 404: there is no such thing, but there are others.
    pub(crate) fn not_known<'k>(what: &str, name: &str, known: impl Iterator<Item = &'k str>) -> Self {
        let message = unknown_name(what, name, known);
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", "bad_request", message)
    }

    /// 409: it does not go together with how things are.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, INVALID, "conflict", "bad_request", message.into())
    }

    /// 409: the configuration cannot be taken over.
    pub(crate) fn not_reloaded(why: &str) -> Self {
        let message = format!("the configuration was not reloaded, the one before stays in force: {why}");
        Self::new(StatusCode::CONFLICT, INVALID, "invalid_config", "bad_request", message)
    }

    /// 404: nothing is kept of the call.
    pub(crate) fn unexplained(call: &str) -> Self {
        let call: String = call.chars().take(64).collect();
        let message = format!(
            "nothing is kept of a call \"{call}\": only calls that waited for a second or were refused are, and of those the last 2,048"
        );
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", "bad_request", message)
    }

    /// 503: what an operator wants would leave no trace in the audit trail.
    pub(crate) fn unchanged(why: &str) -> Self {
        Self { message: format!("tidegate: {why}; nothing has changed"), ..Self::unrecorded() }
    }

    /// 503: what the audit trail says cannot be told.
    pub(crate) fn unreadable(error: &StoreError) -> Self {
        Self { message: format!("tidegate: the audit trail cannot be read: {error}"), ..Self::unrecorded() }
    }

    /// 429: too many tokens were guessed.
    pub(crate) fn too_many_attempts(wait: Duration) -> Self {
        let message = format!("too many wrong tokens were shown. Please try again in {}.", Spoken(wait));
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { retry_after: Some(wait), ..Self::new(status, "requests", "rate_limit_exceeded", "auth", message) }
    }
}
