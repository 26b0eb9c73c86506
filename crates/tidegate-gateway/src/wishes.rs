//! Decides what a call asks of tidegate itself: `x-tidegate-*`, read and checked.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tidegate_core::call::Priority;
use tidegate_core::openai::durations::parse_duration;

use crate::headers;
use crate::refusal::OwnReply;

const PRIORITY: HeaderName = HeaderName::from_static("x-tidegate-priority");
const MAX_WAIT: HeaderName = HeaderName::from_static("x-tidegate-max-wait");
const TIMEOUT: HeaderName = HeaderName::from_static("x-tidegate-timeout");
const ESTIMATED_TOKENS: HeaderName = HeaderName::from_static("x-tidegate-estimated-tokens");
const USER: HeaderName = HeaderName::from_static("x-tidegate-user");
/// The official SDKs tell how long they will wait for the reply, in seconds.
const SDK_READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");

/// Node's tells it under this name.
const SDK_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");

/// The longest wait that can be asked for.
const WISH_MAX: Duration = Duration::from_secs(86_400);

/// What one call asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) priority: Option<Priority>,
    /// How long it may queue. `None`: as configured.
    pub(crate) max_wait: Option<Duration>,
    /// At most this of what is configured: half of what the caller's SDK waits for, so that the other half is the upstream's.
    pub(crate) max_wait_at_most: Option<Duration>,
    /// How long the whole call may take.
    pub(crate) timeout: Option<Duration>,
    pub(crate) declared_tokens: u64,
    pub(crate) user: Option<Arc<str>>,
}

impl Wishes {
    /// Reads them, or says which one cannot be understood.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, Box<OwnReply>> {
        let mut wishes = Self {
            max_wait_at_most: [&SDK_READ_TIMEOUT, &SDK_TIMEOUT]
                .into_iter()
                .find_map(|name| duration(headers, name).filter(|timeout| !timeout.is_zero()))
                .map(|timeout| timeout / 2),
            ..Self::default()
        };
        // Most calls wish for nothing.
        if !headers.keys().any(|name| name.as_str().starts_with("x-tidegate-")) {
            return Ok(wishes);
        }
        wishes.priority = read(headers, &PRIORITY, "low, normal or high", Priority::parse)?;
        wishes.max_wait = read(headers, &MAX_WAIT, "a duration such as 2500ms", parse_duration)?;
        let longer_than_zero = |text: &str| parse_duration(text).filter(|timeout| !timeout.is_zero());
        wishes.timeout = read(headers, &TIMEOUT, "a duration such as 30s", longer_than_zero)?;
        wishes.declared_tokens =
            read(headers, &ESTIMATED_TOKENS, "a whole number", |text| text.parse().ok())?.unwrap_or(0);
        wishes.user = crate::identity::named(headers, &USER);
        for wish in [&mut wishes.max_wait, &mut wishes.timeout] {
            *wish = wish.map(|wish| wish.min(WISH_MAX));
        }
        Ok(wishes)
    }

    /// How long the call may queue where `configured` is what `queue.max_wait` says.
    pub(crate) fn max_wait(&self, configured: Duration) -> Duration {
        self.max_wait.unwrap_or_else(|| self.max_wait_at_most.map_or(configured, |most| most.min(configured)))
    }
}

fn read<T>(
    headers: &HeaderMap,
    name: &HeaderName,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Box<OwnReply>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| parse(text.trim())) {
        Some(value) => Ok(Some(value)),
        None => Err(Box::new(OwnReply::bad_request(format!("{name} must be {expected}")))),
    }
}

fn duration(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    headers::text(headers, name).and_then(parse_duration)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Wishes, Box<OwnReply>> {
        let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Wishes::read(&pairs.collect())
    }

    #[test]
    fn half_of_what_the_sdk_waits_for_is_the_queues_unless_more_was_asked_for() {
        let configured = Duration::from_secs(240);
        let wishes = read(&[("x-stainless-read-timeout", "100.5")]).unwrap();
        assert_eq!(wishes.max_wait(configured), Duration::from_millis(50_250));
        let wishes = read(&[("x-stainless-read-timeout", "600")]).unwrap();
        assert_eq!(wishes.max_wait(configured), configured);
        let wishes = read(&[("x-stainless-read-timeout", "60"), ("x-tidegate-max-wait", "2500ms")]).unwrap();
        assert_eq!(wishes.max_wait(configured), Duration::from_millis(2500));
        assert_eq!(read(&[("x-stainless-read-timeout", "not-given")]).unwrap().max_wait(configured), configured);
    }

    #[test]
    fn a_wish_that_cannot_be_understood_is_refused_by_name() {
        for (name, value) in [
            ("x-tidegate-priority", "urgent"),
            ("x-tidegate-max-wait", "-1s"),
            ("x-tidegate-timeout", "soon"),
            ("x-tidegate-estimated-tokens", "1.5"),
        ] {
            let said = format!("{:?}", read(&[(name, value)]).unwrap_err());
            assert!(said.contains(name), "{said}");
        }
    }
}
