//! Decides which headers go on from one side to the other.
//!
//! Removes what concerns one connection only (RFC 9110 §7.6.1) and what is tidegate's own; changes nothing else.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use tidegate_core::openai::headers::HeaderLookup;

use crate::refusal::OwnReply;

/// The call's identifier, given by the caller or made here.
pub(crate) const ID: HeaderName = HeaderName::from_static("x-tidegate-id");
/// Sends made.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-tidegate-attempts");
/// Time waited, in milliseconds.
pub(crate) const QUEUED_MS: HeaderName = HeaderName::from_static("x-tidegate-queued-ms");
/// Why a call was refused.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-tidegate-reason");
/// The level that refused it.
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("x-tidegate-limit");
/// What SDKs show of a reply.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What SDKs obey before all other rules of retrying.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// In milliseconds; SDKs read it before `retry-after`.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// OpenAI's organization.
pub(crate) const ORGANIZATION: HeaderName = HeaderName::from_static("openai-organization");
/// OpenAI's project.
pub(crate) const PROJECT: HeaderName = HeaderName::from_static("openai-project");
/// Azure's credential.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// How often the official SDKs have sent a call before.
const SDK_RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

const PREFIX: &str = "x-tidegate-";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What the core asks headers through.
pub(crate) struct Lookup<'h>(pub(crate) &'h HeaderMap);

impl HeaderLookup for Lookup<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        let first = self.0.get(name)?;
        match first.to_str() {
            Ok(text) => Some(text),
            Err(_) => self.0.get_all(name).iter().find_map(|value| value.to_str().ok()),
        }
    }
}

/// The headers that speak of the server's limits. They are asked for by two dozen names, most of which are never there, so
/// that a short list is searched faster than the whole map.
pub(crate) fn of_limits(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().split('-').any(|word| word == "ratelimit"))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect()
}

/// The header's value as text; `None` where it is absent or no text.
pub(crate) fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Which retry of an SDK's own a call is; 0: none.
pub(crate) fn sdk_retries(headers: &HeaderMap) -> u32 {
    text(headers, &SDK_RETRY_COUNT).and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Refuses a request that says twice what it is judged by: the upstream might go by the other one.
pub(crate) fn check_single(headers: &HeaderMap) -> Result<(), Box<OwnReply>> {
    // As many names as values: nothing is there twice.
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    let decides = |name: &HeaderName| {
        [header::AUTHORIZATION, API_KEY, ORGANIZATION, PROJECT, header::CONTENT_TYPE].contains(name) || is_ours(name)
    };
    match headers.keys().find(|name| decides(name) && headers.get_all(*name).iter().nth(1).is_some()) {
        Some(name) => Err(Box::new(OwnReply::bad_request(format!("there is more than one {name} header")))),
        None => Ok(()),
    }
}

/// Takes away what concerns the caller's connection or tidegate alone.
pub(crate) fn clean_request(headers: &mut HeaderMap) {
    clean_hop(headers);
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
    headers.remove(header::PROXY_AUTHORIZATION);
    if headers.keys().any(is_ours) {
        let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with(PREFIX)
}

/// Takes away what concerns the upstream's connection alone.
pub(crate) fn clean_reply(headers: &mut HeaderMap) {
    clean_hop(headers);
}

fn clean_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // A caller must not be able to take away what the call is judged or sent by.
            .filter(|name: &HeaderName| *name != header::AUTHORIZATION && *name != header::CONTENT_TYPE)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TE, header::TRAILER, header::TRANSFER_ENCODING, header::UPGRADE]
    {
        headers.remove(name);
    }
}

/// A number as a header's value.
pub(crate) fn number(number: u64) -> HeaderValue {
    // Almost every call was sent once and did not wait.
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        number => HeaderValue::from(number),
    }
}

/// What OpenAI tells of one of its limits, by header.
pub(crate) struct RateLimitNames {
    pub(crate) limit: HeaderName,
    pub(crate) remaining: HeaderName,
    pub(crate) reset: HeaderName,
}

/// Of the limit on requests.
pub(crate) static OF_REQUESTS: RateLimitNames = RateLimitNames {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};
/// Of the limit on tokens.
pub(crate) static OF_TOKENS: RateLimitNames = RateLimitNames {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};
static REQUESTS_ASIDE: RateLimitNames = RateLimitNames {
    limit: HeaderName::from_static("x-tidegate-upstream-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-tidegate-upstream-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-tidegate-upstream-ratelimit-reset-requests"),
};
static TOKENS_ASIDE: RateLimitNames = RateLimitNames {
    limit: HeaderName::from_static("x-tidegate-upstream-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-tidegate-upstream-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-tidegate-upstream-ratelimit-reset-tokens"),
};

/// Moves the upstream's `x-ratelimit-*` aside: OpenAI's names are to speak of our own limits.
pub(crate) fn set_ratelimit_aside(headers: &mut HeaderMap) {
    for (theirs, aside) in [(&OF_REQUESTS, &REQUESTS_ASIDE), (&OF_TOKENS, &TOKENS_ASIDE)] {
        for (name, aside) in
            [(&theirs.limit, &aside.limit), (&theirs.remaining, &aside.remaining), (&theirs.reset, &aside.reset)]
        {
            if let Some(value) = headers.remove(name) {
                headers.insert(aside, value);
            }
        }
    }
    // Some upstreams tell of other limits too.
    let theirs: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-ratelimit-")).cloned().collect();
    for name in theirs {
        let Some(value) = headers.remove(&name) else { continue };
        let aside = name.as_str().replacen("x-ratelimit-", "x-tidegate-upstream-ratelimit-", 1);
        if let Ok(aside) = HeaderName::try_from(aside) {
            headers.insert(aside, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn headers_of_one_connection_do_not_go_on() {
        let mut headers = map(&[
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("host", "127.0.0.1:8080"),
            ("x-stays", "1"),
            ("x-stays", "2"),
        ]);
        clean_request(&mut headers);
        assert_eq!(headers, map(&[("x-stays", "1"), ("x-stays", "2")]));
    }

    #[test]
    fn the_callers_connection_header_cannot_take_the_credential_away() {
        let mut headers = map(&[("connection", "authorization"), ("authorization", "Bearer a")]);
        clean_request(&mut headers);
        assert!(headers.contains_key("authorization"));
    }

    #[test]
    fn tidegates_own_headers_are_not_sent_upstream() {
        let mut headers = map(&[("x-tidegate-priority", "low"), ("X-Tidegate-Anything", "1"), ("user-agent", "a")]);
        clean_request(&mut headers);
        assert_eq!(headers, map(&[("user-agent", "a")]));
    }

    #[test]
    fn the_upstreams_rate_limits_are_set_aside() {
        let of = |prefix: &str| {
            let names = ["limit-requests", "remaining-requests", "reset-requests", "limit-tokens", "remaining-tokens"];
            let mut headers = map(&[("x-request-id", "r")]);
            for name in names.into_iter().chain(["reset-tokens", "limit-images"]) {
                headers
                    .insert(HeaderName::try_from(format!("{prefix}{name}")).unwrap(), HeaderValue::from_static(name));
            }
            headers
        };
        let mut headers = of("x-ratelimit-");
        set_ratelimit_aside(&mut headers);
        assert_eq!(headers, of("x-tidegate-upstream-ratelimit-"));
    }

    #[test]
    fn of_a_header_that_came_twice_the_first_that_is_text_counts() {
        let mut headers = HeaderMap::new();
        headers.append("retry-after", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("retry-after", HeaderValue::from_static("2"));
        headers.append("retry-after", HeaderValue::from_static("3"));
        assert_eq!(Lookup(&headers).header("retry-after"), Some("2"));
    }
}
