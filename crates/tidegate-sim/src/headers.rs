//! The headers of OpenAI's replies.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::limiter::{Gauge, Refused, Remaining};
use crate::scenario::{Fault, FaultKind, RetryAfter};
use crate::wording::go_duration;

/// A wait of 114 hours and 18 minutes was once told to a client that slept it.
pub(crate) const ABSURD_WAIT_MICROS: u64 = (114 * 60 + 18) * 60_000_000;

const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const LIMIT_IMAGES: HeaderName = HeaderName::from_static("x-ratelimit-limit-images");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const REMAINING_IMAGES: HeaderName = HeaderName::from_static("x-ratelimit-remaining-images");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");
const RESET_IMAGES: HeaderName = HeaderName::from_static("x-ratelimit-reset-images");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Adds `x-ratelimit-*`; `by_day` makes the `-requests` ones speak of the day.
pub(crate) fn rate_limits(headers: &mut HeaderMap, remaining: &Remaining, by_day: bool) {
    let requests = if by_day { remaining.requests_day.or(remaining.requests) } else { remaining.requests };
    let triples = [
        (requests, LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS),
        (remaining.tokens, LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS),
        (remaining.images, LIMIT_IMAGES, REMAINING_IMAGES, RESET_IMAGES),
    ];
    for (gauge, limit, left, reset) in triples {
        let Some(Gauge { limit: of, remaining, reset_micros }) = gauge else { continue };
        headers.insert(limit, of.into());
        headers.insert(left, remaining.into());
        headers.insert(reset, value(&go_duration(reset_micros)));
    }
}

/// Adds the wait of a refusal in the forms that the scenario wants. None for what can never fit.
pub(crate) fn refusal(headers: &mut HeaderMap, form: RetryAfter, refused: &Refused) {
    if !refused.too_large {
        wait(headers, form, refused.announced_micros.max(refused.wait_micros));
    }
}

/// Adds a wait: whole seconds, at least one and rounded up, or milliseconds, rounded up, or both.
pub(crate) fn wait(headers: &mut HeaderMap, form: RetryAfter, micros: u64) {
    if matches!(form, RetryAfter::Seconds | RetryAfter::Both) {
        headers.insert(http::header::RETRY_AFTER, micros.div_ceil(1_000_000).max(1).into());
    }
    if matches!(form, RetryAfter::Ms | RetryAfter::Both) {
        headers.insert(RETRY_AFTER_MS, micros.div_ceil(1_000).max(1).into());
    }
}

/// Adds the headers that a fault spells out.
pub(crate) fn of_fault(headers: &mut HeaderMap, fault: &Fault, form: RetryAfter) {
    if fault.kind == FaultKind::RetryAfterAbsurd {
        // Seconds even where the scenario wants none: the absurd wait is the point.
        wait(headers, if form == RetryAfter::None { RetryAfter::Seconds } else { form }, ABSURD_WAIT_MICROS);
    }
    if let Some(text) = &fault.retry_after {
        headers.remove(RETRY_AFTER_MS);
        headers.insert(http::header::RETRY_AFTER, value(text));
    }
    if let Some(should_retry) = fault.should_retry {
        headers.insert("x-should-retry", HeaderValue::from_static(if should_retry { "true" } else { "false" }));
    }
}

/// Replaces the rate-limit headers by ones that make no sense.
pub(crate) fn garbage(headers: &mut HeaderMap) {
    headers.insert(LIMIT_REQUESTS, HeaderValue::from_static("-1"));
    headers.insert(REMAINING_REQUESTS, HeaderValue::from_static("NaN"));
    headers.insert(RESET_REQUESTS, HeaderValue::from_static("-5h3x"));
    headers.insert(LIMIT_TOKENS, HeaderValue::from_static("99999999999999999999999"));
    headers.append(LIMIT_TOKENS, HeaderValue::from_static("0"));
    headers.insert(REMAINING_TOKENS, HeaderValue::from_static("1e400"));
    headers.append(REMAINING_TOKENS, HeaderValue::from_static(""));
    headers.insert(RESET_TOKENS, HeaderValue::from_static("99999999h99999999m"));
    if let Ok(bytes) = HeaderValue::from_bytes(b"\xff\xfe") {
        headers.append(RESET_TOKENS, bytes);
    }
}

/// Replaces the rate-limit headers by numbers that could be true.
pub(crate) fn random(headers: &mut HeaderMap, rng: &mut fastrand::Rng) {
    for (limit, left, reset) in
        [(LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS), (LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS)]
    {
        let of = rng.u64(100..1_000_000);
        let remaining = rng.u64(0..=of);
        headers.insert(limit, of.into());
        headers.insert(left, remaining.into());
        headers.insert(reset, value(&go_duration((of - remaining) * 60_000_000 / of)));
    }
}

/// Removes all that a bare proxy would not send.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with("x-") || n.as_str().starts_with("openai-")).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// A header value; empty where the text cannot be one.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Charge, Rules, Upstream};

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).and_then(|v| v.to_str().ok())
    }

    #[test]
    fn request_headers_speak_of_the_minute_or_of_the_day() {
        let rules = Rules { rpm: Some(500), rpd: Some(10_000), tpm: Some(200_000), ..Rules::default() };
        let remaining = Upstream::new(&rules, 0).admit(0, Charge::of_tokens(30)).expect("fits");
        let (mut minute, mut day) = (HeaderMap::new(), HeaderMap::new());
        rate_limits(&mut minute, &remaining, false);
        rate_limits(&mut day, &remaining, true);
        assert_eq!(text(&minute, "x-ratelimit-remaining-requests"), Some("499"));
        assert_eq!(text(&minute, "x-ratelimit-reset-requests"), Some("120ms"));
        assert_eq!(text(&day, "x-ratelimit-limit-requests"), Some("10000"));
        assert_eq!(text(&day, "x-ratelimit-reset-requests"), Some("8.64s"));
        assert_eq!(text(&day, "x-ratelimit-remaining-tokens"), Some("199970"));
        assert_eq!(text(&day, "x-ratelimit-reset-tokens"), Some("9ms"));
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_rounded_up_and_at_least_one() {
        for (form, seconds, millis) in [
            (RetryAfter::Both, Some("1"), Some("645")),
            (RetryAfter::Seconds, Some("1"), None),
            (RetryAfter::Ms, None, Some("645")),
            (RetryAfter::None, None, None),
        ] {
            let mut headers = HeaderMap::new();
            wait(&mut headers, form, 644_001);
            assert_eq!((text(&headers, "retry-after"), text(&headers, "retry-after-ms")), (seconds, millis));
        }
    }
}
