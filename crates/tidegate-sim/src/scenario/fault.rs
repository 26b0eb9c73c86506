//! What may go wrong with a call, and when: one `[[fault]]` of a scenario.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, duration_or_none};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// 429 `rate_limit_exceeded` as if the limit were used up; the wait is `wait`, else what the charge takes to refill.
    RateLimit,
    /// 429 `slow_down`: the rate grew too fast.
    SlowDown,
    /// 429 `insufficient_quota`; `code`, else the scenario's `quota_code`, tells which of OpenAI's codes.
    InsufficientQuota,
    /// 429 whose wait is 114 hours and 18 minutes, as was once seen.
    RetryAfterAbsurd,
    /// 500 `server_error`.
    #[serde(rename = "error_500")]
    Error500,
    /// 502 with an HTML body, as a proxy in front sends it.
    BadGateway,
    /// 503 without more.
    Unavailable,
    /// 504 with an HTML body.
    GatewayTimeout,
    /// 503 `server_is_overloaded`.
    Overloaded,
    /// 408.
    RequestTimeout,
    /// 409.
    Conflict,
    /// 401 `invalid_api_key`.
    Unauthorized,
    /// 400 `context_length_exceeded`.
    ContextLength,
    /// The connection is reset: before any reply, or in a stream after `after` events.
    Reset,
    /// Nothing comes for `for`: before the reply, or in a stream after `after` events. Then it goes on.
    Stall,
    /// A stream sends an error after `after` events and ends; a plain call is answered 500.
    MidStreamError,
    /// A stream ends after `after` events without its last event; a plain reply is cut in half.
    Truncated,
    /// Status 200, and then an error as the first event, or as the body of a plain reply.
    InBand,
    /// No `x-ratelimit-*`, `x-request-id` or `openai-*` headers.
    MissingHeaders,
    /// Rate-limit headers that make no sense: negative, absurd, repeated, unreadable.
    GarbageHeaders,
    /// Rate-limit headers that could be true and are others with every reply.
    RandomHeaders,
    /// The reply leaves in pieces of `bytes` bytes, so that lines and characters are cut.
    Split,
    /// Every call is refused with 503; with `closed`, its connection is closed without a reply.
    Outage,
}

impl FaultKind {
    /// Whether it only changes how a reply looks; several of these apply to one call, of the others only the first.
    pub(crate) fn is_cosmetic(self) -> bool {
        matches!(
            self,
            FaultKind::MissingHeaders | FaultKind::GarbageHeaders | FaultKind::RandomHeaders | FaultKind::Split
        )
    }

    /// Whether it strikes before the limiter has been asked, unless the scenario says otherwise.
    fn strikes_first(self) -> bool {
        matches!(
            self,
            FaultKind::RateLimit
                | FaultKind::SlowDown
                | FaultKind::InsufficientQuota
                | FaultKind::RetryAfterAbsurd
                | FaultKind::BadGateway
                | FaultKind::Unavailable
                | FaultKind::Overloaded
                | FaultKind::Unauthorized
                | FaultKind::Outage
        )
    }
}

/// One fault: what, for which calls, and when. Filters that are absent match every call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// The chance that a matching call is struck; absent: every one.
    pub probability: Option<f64>,
    /// When it begins, from the simulator's start.
    #[serde(default, deserialize_with = "duration")]
    pub from: Duration,
    /// When it ends; absent: never.
    #[serde(default, deserialize_with = "duration_or_none")]
    pub until: Option<Duration>,
    /// Only so many matching calls, the first ones.
    pub first: Option<u64>,
    /// Only every so manieth matching call.
    pub every: Option<u64>,
    /// The model, or its beginning followed by `*`.
    pub model: Option<String>,
    /// What the path contains.
    pub path: Option<String>,
    /// The body's `user` or `safety_identifier`.
    pub user: Option<String>,
    /// Whether only streams (`true`) or only plain calls (`false`) are struck.
    pub stream: Option<bool>,
    /// Events that a stream sends before it is struck. Absent: a reset or stall comes before the first byte of the reply,
    /// a stream's error or end after 5 events.
    pub after: Option<u32>,
    /// How long a stall lasts; absent: an hour. Not scaled by the speed.
    #[serde(rename = "for", default, deserialize_with = "duration_or_none")]
    pub lasts: Option<Duration>,
    /// The wait that a 429 tells.
    #[serde(default, deserialize_with = "duration_or_none")]
    pub wait: Option<Duration>,
    /// The `retry-after` header as it is, instead of the wait; may be a date or nonsense. Also for 5xx.
    pub retry_after: Option<String>,
    /// The status of an error, instead of the usual one.
    pub status: Option<u16>,
    /// The error code, instead of the usual one.
    pub code: Option<String>,
    /// The value of an `x-should-retry` header.
    pub should_retry: Option<bool>,
    /// Whether the limiter is asked and charged first; absent: as the kind would. Stalls and faults of a reply
    /// are always charged.
    pub charged: Option<bool>,
    /// An outage closes connections instead of answering; a truncated stream ends with the connection.
    #[serde(default)]
    pub closed: bool,
    /// The size of split pieces in bytes; absent: 7.
    pub bytes: Option<u32>,
}

impl Fault {
    /// A fault of this kind that strikes every call; set fields to narrow it.
    pub fn new(kind: FaultKind) -> Self {
        Fault {
            kind,
            probability: None,
            from: Duration::ZERO,
            until: None,
            first: None,
            every: None,
            model: None,
            path: None,
            user: None,
            stream: None,
            after: None,
            lasts: None,
            wait: None,
            retry_after: None,
            status: None,
            code: None,
            should_retry: None,
            charged: None,
            closed: false,
            bytes: None,
        }
    }

    /// Whether the limiter is asked, and charged, before the fault strikes. Always so where the call goes on.
    pub(crate) fn is_charged(&self) -> bool {
        let goes_on = matches!(
            self.kind,
            FaultKind::Stall | FaultKind::Truncated | FaultKind::InBand | FaultKind::MidStreamError
        );
        goes_on || self.charged.unwrap_or(!self.kind.strikes_first())
    }

    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let err = |near: &str, message: &str| Err((near.to_owned(), message.to_owned()));
        if self.probability.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return err("probability", "probability must be from 0 to 1");
        }
        if self.every == Some(0) {
            return err("every", "every must be above 0");
        }
        if self.bytes == Some(0) {
            return err("bytes", "bytes must be above 0");
        }
        if self.until.is_some_and(|until| until <= self.from) {
            return err("until", "until must be after from");
        }
        Ok(())
    }
}
