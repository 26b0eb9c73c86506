//! Decides how a call that is not served is answered: status, headers and words, as OpenAI's own errors have them.
//!
//! SDKs print only the message, so it says everything; never what a configuration file holds.

mod admin;

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;
use tidegate_core::fault::FaultKind;
use tidegate_core::gate::Gate;
use tidegate_core::limit::Dimension;
use tidegate_core::refusal::{BreakerReport, GiveUp, LimitReport, Reason, Refusal};
use tidegate_core::time::Time;

pub(crate) use self::admin::unknown_name;
use crate::headers;
use crate::reply::{ReplyBody, Stamp};
use crate::say::{Spoken, millis_up, seconds_up};

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "service_unavailable_error";
/// An SDK that waits longer than this gives up or retries at once instead.
const WORTH_WAITING_MAX: Duration = Duration::from_secs(60);

/// An answer of our own.
#[derive(Debug)]
pub(crate) struct OwnReply {
    pub(crate) status: StatusCode,
    kind: &'static str,
    code: &'static str,
    /// `x-tidegate-reason`.
    reason: &'static str,
    message: String,
    should_retry: bool,
    retry_after: Option<Duration>,
    /// `x-tidegate-limit`.
    limit: Option<String>,
    /// `allow`.
    allow: Option<String>,
    /// The connection cannot be used on: the body was not read.
    closes: bool,
}

impl OwnReply {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, reason: &'static str, message: String) -> Self {
        Self {
            status,
            kind,
            code,
            reason,
            message: format!("tidegate: {message}"),
            should_retry: false,
            retry_after: None,
            limit: None,
            allow: None,
            closes: false,
        }
    }

    /// 400: the body cannot be taken.
    pub(crate) fn invalid_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_body", "bad_request", message.into())
    }

    /// 400: something beside the body is wrong.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_request", "bad_request", message.into())
    }

    /// 408: the body did not come.
    pub(crate) fn body_stalled(waited: Duration) -> Self {
        let message = format!("the body stopped arriving; nothing came for {}", Spoken(waited));
        Self { closes: true, ..Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "invalid_body", "bad_request", message) }
    }

    /// 413.
    pub(crate) fn too_large_body(bytes_max: u64) -> Self {
        let message = format!("the body is larger than the {bytes_max} bytes that are allowed here");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self { closes: true, ..Self::new(status, INVALID, "request_too_large", "bad_request", message) }
    }

    /// 429: there is no room to read the body in.
    pub(crate) fn no_room() -> Self {
        let again = Duration::from_secs(1);
        let message = format!(
            "too much is being read already: no room for a body of this size. Please try again in {}.",
            Spoken(again)
        );
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self {
            should_retry: true,
            retry_after: Some(again),
            closes: true,
            ..Self::new(status, "requests", "rate_limit_exceeded", "queue_full", message)
        }
    }

    /// 404: no such path.
    pub(crate) fn unknown_path(path: &str, base_url: &str) -> Self {
        // What a client shows should stay one line.
        let path: String = path.chars().take(200).collect();
        let path = if path.is_empty() { "none is named" } else { path.as_str() };
        let message = format!("no such path: {path}; set the client's base_url to {base_url}");
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", "bad_request", message)
    }

    /// 404: nobody serves the model.
    pub(crate) fn unserved_model(model: &str) -> Self {
        let model: String = model.chars().take(200).collect();
        let message = format!("no upstream serves the model \"{model}\"");
        Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", "bad_request", message)
    }

    /// 401: the key is not known.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", "auth", message.into())
    }

    /// 403: known, but not for this.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID, "forbidden", "auth", message.into())
    }

    /// 503: the process is about to end.
    pub(crate) fn draining() -> Self {
        let message = "this process is about to end; another one may take the call".to_owned();
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let reply = Self::new(status, UNAVAILABLE, "draining", "draining", message);
        Self { should_retry: true, closes: true, ..reply }
    }

    /// 503: so many read already what happens.
    pub(crate) fn too_many_readers(places: usize, whose: &str) -> Self {
        let message = format!("{places} {whose} are told already what happens; close one of them");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { should_retry: true, ..Self::new(status, UNAVAILABLE, "too_many_readers", "queue_full", message) }
    }

    /// 503: what happens now would leave no trace in the audit trail.
    pub(crate) fn unrecorded() -> Self {
        let message = "the audit trail cannot be written, and calls are not let through without it".to_owned();
        let reply = Self::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, "audit_unavailable", "audit", message);
        Self { should_retry: true, retry_after: Some(Duration::from_secs(1)), ..reply }
    }

    /// 429: its turn came, but only when nobody waited for it any more. No limit has a number to tell.
    pub(crate) fn too_late(elapsed: Duration) -> Self {
        let message = format!("the call's time was up before it could be sent, after {}.", Spoken(elapsed));
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded", "limit", message)
    }

    /// What the core's refusal of a call says, at `now` on the driver's clock.
    pub(crate) fn refused(refusal: &Refusal, now: Time) -> Self {
        let wait = refusal.retry_after;
        let again = wait.map_or_else(String::new, |wait| format!(" Please try again in {}.", Spoken(wait)));
        match &refusal.reason {
            Reason::Limit(report) => Self::limit(report, refusal, &again),
            Reason::TooLarge(report) if report.allowed == 0 => Self::blocked(report, refusal),
            Reason::TooLarge(report) => Self::too_large(report),
            Reason::QueueFull { waiting } => {
                let message = format!("{waiting} calls are already waiting.{again}");
                let status = StatusCode::TOO_MANY_REQUESTS;
                Self {
                    should_retry: wait.is_some_and(|wait| wait <= WORTH_WAITING_MAX),
                    retry_after: wait,
                    ..Self::new(status, "requests", "rate_limit_exceeded", "queue_full", message)
                }
            }
            Reason::Breaker(report) => Self::breaker(report, wait, now),
            Reason::Paused { reason } => {
                let message = format!("paused by an operator: {reason}");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, "paused", "paused", message)
            }
            Reason::Draining => Self { closes: false, retry_after: wait, ..Self::draining() },
        }
    }

    fn limit(report: &LimitReport, refusal: &Refusal, again: &str) -> Self {
        let model = of_model(refusal);
        let waited =
            if refusal.waited.is_zero() { String::new() } else { format!(" Waited {}.", Spoken(refusal.waited)) };
        let message = format!(
            "limit \"{}\" reached{model} on {}: Limit {}, Used {}, Requested {}{}.{waited}{again}",
            report.limit,
            report.dimension.openai_phrase(),
            report.allowed,
            report.used,
            report.requested,
            kept(report),
        );
        let kind = kind_of(report.dimension);
        Self {
            retry_after: refusal.retry_after,
            limit: Some(report.path()),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, kind, "rate_limit_exceeded", "limit", message)
        }
    }

    /// A limit of 0: less would not be let through either.
    fn blocked(report: &LimitReport, refusal: &Refusal) -> Self {
        let by_whom = if &*report.limit == Gate::learned_name() {
            "the upstream tells this limit, and whoever holds the account there can have it raised"
        } else {
            "an operator has set it to 0, and can allow it"
        };
        let message = format!(
            "limit \"{}\" allows nothing{} on {}: Limit 0, Requested {}. Waiting cannot help; {by_whom}.",
            report.limit,
            of_model(refusal),
            report.dimension.openai_phrase(),
            report.requested,
        );
        Self::never(report, message)
    }

    fn too_large(report: &LimitReport) -> Self {
        let phrase = report.dimension.openai_phrase();
        let short = phrase.find('(').map_or_else(|| format!("({phrase})"), |at| phrase[at..].to_owned());
        let remedy = if report.dimension.counts_tokens() {
            "lower max_completion_tokens or the input"
        } else {
            "ask for less at once"
        };
        let message = format!(
            "request too large for limit \"{}\" {short}: Limit {}, Requested {}. Waiting cannot help; {remedy}.",
            report.limit, report.allowed, report.requested,
        );
        Self::never(report, message)
    }

    /// 429: waiting cannot help.
    fn never(report: &LimitReport, message: String) -> Self {
        let kind = kind_of(report.dimension);
        Self {
            limit: Some(report.path()),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, kind, "rate_limit_exceeded", "too_large", message)
        }
    }

    fn breaker(report: &BreakerReport, wait: Option<Duration>, now: Time) -> Self {
        let probe_in = report.next_probe_at.map(|at| at.since(now)).filter(|wait| !wait.is_zero());
        let cause = if report.cause.is_empty() { String::new() } else { format!(" ({})", report.cause) };
        let message = match (report.state, probe_in) {
            ("half_open", _) => {
                let (under_way, allowed) = report.probes;
                format!("circuit breaker is half-open for {}, {under_way} of {allowed} probes under way.", report.name)
            }
            ("forced_open", _) => format!("circuit breaker is forced open for {} by an operator.", report.name),
            (_, Some(probe_in)) => {
                format!("circuit breaker is open for {}{cause}. Next probe in {}.", report.name, Spoken(probe_in))
            }
            (_, None) => format!("circuit breaker is open for {}{cause}.", report.name),
        };
        Self {
            retry_after: wait.or(probe_in),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, "circuit_open", "breaker", message)
        }
    }

    /// No upstream answered: what was tried and how it last failed.
    pub(crate) fn gave_up(given_up: &GiveUp, may_be_billed: bool) -> Self {
        let attempts = match given_up.max_attempts {
            0 => given_up.attempts.to_string(),
            allowed => format!("{} of {}", given_up.attempts, allowed.max(given_up.attempts)),
        };
        let plural = if attempts == "1" { "attempt" } else { "attempts" };
        let elapsed = Duration::from_millis(millis_up(given_up.elapsed).div_ceil(100) * 100);
        let elapsed = Spoken(elapsed);
        let message = format!("gave up after {attempts} {plural} in {elapsed}; last: {}.", given_up.last.summary);
        Self { retry_after: given_up.retry_after, ..Self::upstream_failed(given_up.last.kind, message, may_be_billed) }
    }

    /// The one attempt that could be made failed.
    pub(crate) fn upstream_failed(kind: FaultKind, mut message: String, may_be_billed: bool) -> Self {
        if may_be_billed {
            message.push_str(" The last attempt may have been billed.");
        }
        let (status, code) = match kind {
            FaultKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            _ => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
        };
        Self::new(status, UNAVAILABLE, code, "upstream", message)
    }

    /// `x-tidegate-reason`.
    pub(crate) const fn reason(&self) -> &'static str {
        self.reason
    }

    /// As it goes to the caller.
    pub(crate) fn into_response(self, stamp: &Stamp) -> Response<ReplyBody> {
        let body =
            Envelope { error: EnvelopeError { message: &self.message, kind: self.kind, param: None, code: self.code } };
        let body = Bytes::from(serde_json::to_vec(&body).unwrap_or_default());
        let mut response = Response::new(ReplyBody::full(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(headers::REASON, HeaderValue::from_static(self.reason));
        let should_retry = if self.should_retry { "true" } else { "false" };
        headers.insert(headers::SHOULD_RETRY, HeaderValue::from_static(should_retry));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds_up(wait).max(1)));
            headers.insert(headers::RETRY_AFTER_MS, HeaderValue::from(millis_up(wait).max(1)));
        }
        if let Some(limit) = self.limit.and_then(|limit| HeaderValue::from_str(&limit).ok()) {
            headers.insert(headers::LIMIT, limit);
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(headers::REQUEST_ID, stamp.id_value());
        stamp.put_on(headers);
        response
    }
}

/// ` for gpt-4o`.
fn of_model(refusal: &Refusal) -> String {
    if refusal.model.is_empty() { String::new() } else { format!(" for {}", refusal.model) }
}

/// What it would have had to leave for others, where that is anything.
fn kept(report: &LimitReport) -> String {
    if report.kept == 0 {
        return String::new();
    }
    format!(", and {} are kept for calls of higher priority", report.kept)
}

fn kind_of(dimension: Dimension) -> &'static str {
    if dimension.counts_tokens() { "tokens" } else { "requests" }
}

#[derive(Serialize)]
struct Envelope<'m> {
    error: EnvelopeError<'m>,
}

#[derive(Serialize)]
struct EnvelopeError<'m> {
    message: &'m str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<()>,
    code: &'static str,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_core::fault::Fault;
    use tidegate_core::refusal::GiveUpReason;

    use super::*;

    fn report(dimension: Dimension, used: u64, requested: u64) -> LimitReport {
        LimitReport {
            limit: Arc::from("team"),
            key: Arc::from("acme"),
            dimension,
            allowed: 90_000,
            used,
            requested,
            kept: 0,
        }
    }

    fn refusal(reason: Reason, retry_after_ms: u64) -> Refusal {
        let retry_after = (retry_after_ms > 0).then(|| Duration::from_millis(retry_after_ms));
        Refusal { reason, model: Arc::from("gpt-4o"), waited: Duration::from_millis(2500), retry_after }
    }

    fn header<'r>(response: &'r Response<ReplyBody>, name: &str) -> Option<&'r str> {
        response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn a_limit_says_every_number_and_when_to_try_again() {
        let reason = Reason::Limit(report(Dimension::TokensPerMinute, 89_210, 1500));
        let reply = OwnReply::refused(&refusal(reason, 473), Time::ZERO);
        assert_eq!(
            reply.message,
            "tidegate: limit \"team\" reached for gpt-4o on tokens per min (TPM): Limit 90000, Used 89210, \
             Requested 1500. Waited 2.5s. Please try again in 473ms."
        );
        let held = LimitReport { kept: 45_000, ..report(Dimension::TokensPerMinute, 45_210, 1500) };
        let message = OwnReply::refused(&refusal(Reason::Limit(held), 473), Time::ZERO).message;
        assert!(
            message.contains("Used 45210, Requested 1500, and 45000 are kept for calls of higher priority. Waited"),
            "{message}"
        );
        let response = reply.into_response(&Stamp::new("abc"));
        assert_eq!(response.status(), 429);
        for (name, value) in [
            ("retry-after", "1"),
            ("retry-after-ms", "473"),
            ("x-should-retry", "false"),
            ("x-tidegate-reason", "limit"),
            ("x-tidegate-limit", "team/acme/tokens_per_minute"),
            ("x-tidegate-id", "abc"),
            ("x-request-id", "abc"),
            ("x-tidegate-attempts", "0"),
            ("x-tidegate-queued-ms", "0"),
        ] {
            assert_eq!(header(&response, name), Some(value), "{name}");
        }
    }

    #[test]
    fn what_never_fits_has_no_retry_after() {
        let reason = Reason::TooLarge(report(Dimension::TokensPerMinute, 0, 120_000));
        let reply = OwnReply::refused(&refusal(reason, 0), Time::ZERO);
        assert_eq!(
            reply.message,
            "tidegate: request too large for limit \"team\" (TPM): Limit 90000, Requested 120000. Waiting cannot \
             help; lower max_completion_tokens or the input."
        );
        let response = reply.into_response(&Stamp::new("abc"));
        assert_eq!((header(&response, "retry-after"), header(&response, "x-should-retry")), (None, Some("false")));
    }

    #[test]
    fn a_limit_of_nothing_says_who_set_it_and_does_not_ask_for_less() {
        let told = |limit: &str| {
            let report = LimitReport { limit: limit.into(), allowed: 0, ..report(Dimension::RequestsPerMinute, 0, 1) };
            OwnReply::refused(&refusal(Reason::TooLarge(report), 0), Time::ZERO)
        };
        assert_eq!(
            told("off").message,
            "tidegate: limit \"off\" allows nothing for gpt-4o on requests per min (RPM): Limit 0, Requested 1. Waiting \
             cannot help; an operator has set it to 0, and can allow it."
        );
        assert!(told("learned").message.ends_with(
            "Waiting cannot help; the upstream tells this limit, and whoever holds the account there can have it raised."
        ));
        let response = told("off").into_response(&Stamp::new("abc"));
        assert_eq!(response.status(), 429);
        assert_eq!((header(&response, "retry-after"), header(&response, "x-should-retry")), (None, Some("false")));
        assert_eq!(header(&response, "x-tidegate-reason"), Some("too_large"));
    }

    #[test]
    fn a_full_queue_is_worth_another_try_only_if_it_moves_soon() {
        for (millis, retry, seconds) in [(12_000, "true", "12"), (61_000, "false", "61")] {
            let reply = OwnReply::refused(&refusal(Reason::QueueFull { waiting: 10_000 }, millis), Time::ZERO);
            assert!(reply.message.starts_with("tidegate: 10000 calls are already waiting. Please try again in "));
            let response = reply.into_response(&Stamp::new("abc"));
            assert_eq!(header(&response, "x-should-retry"), Some(retry));
            assert_eq!(header(&response, "retry-after"), Some(seconds));
        }
    }

    #[test]
    fn an_open_breaker_says_why_and_when_it_is_tried_next() {
        let breaker = BreakerReport {
            name: Arc::from("openai/gpt-4o"),
            state: "open",
            cause: Arc::from("5 failures in a row, last 503"),
            next_probe_at: Some(Time::from_secs(141)),
            probes: (0, 3),
        };
        let now = Time::from_secs(100);
        let reply = OwnReply::refused(&refusal(Reason::Breaker(breaker.clone()), 0), now);
        assert_eq!(
            reply.message,
            "tidegate: circuit breaker is open for openai/gpt-4o (5 failures in a row, last 503). Next probe in 41s."
        );
        let half_open = BreakerReport { state: "half_open", probes: (3, 3), ..breaker };
        let reply = OwnReply::refused(&refusal(Reason::Breaker(half_open), 0), now);
        assert_eq!(reply.message, "tidegate: circuit breaker is half-open for openai/gpt-4o, 3 of 3 probes under way.");
        assert_eq!(reply.into_response(&Stamp::new("a")).status(), 503);
    }

    #[test]
    fn giving_up_tells_attempts_time_and_what_may_be_billed() {
        let given_up = GiveUp {
            reason: GiveUpReason::AttemptsExhausted,
            attempts: 3,
            max_attempts: 3,
            last: Fault::new(FaultKind::Connect, "connection reset"),
            elapsed: Duration::from_millis(12_345),
            retry_after: None,
        };
        let reply = OwnReply::gave_up(&given_up, true);
        assert_eq!(
            reply.message,
            "tidegate: gave up after 3 of 3 attempts in 12.4s; last: connection reset. The last attempt may have \
             been billed."
        );
        assert_eq!((reply.status, reply.code), (StatusCode::BAD_GATEWAY, "upstream_unreachable"));
    }
}
