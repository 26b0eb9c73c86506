//! Decides which calls speak of something that one upstream keeps, and remembers which upstream made which response.
//!
//! Bounded, and in memory alone: what is forgotten is looked for at the first upstream.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use memchr::memmem::Finder;
use tidegate_core::openai::endpoints::Route;

/// Responses remembered; of more the oldest are forgotten.
const RESPONSES_MAX: usize = 10_000;
/// No identifier is longer.
const ID_BYTES_MAX: usize = 256;

/// A call that only one upstream can answer: the named one, or where that is not known the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin(pub(crate) Option<Arc<str>>);

/// Which upstream made which response.
#[derive(Debug, Default)]
pub(crate) struct Made(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    upstreams: HashMap<Arc<str>, Arc<str>>,
    oldest_first: VecDeque<Arc<str>>,
}

impl Made {
    /// The response `id` is kept at `upstream`.
    pub(crate) fn remember(&self, id: &str, upstream: &Arc<str>) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id: Arc<str> = Arc::from(id);
        if remembered.upstreams.insert(id.clone(), upstream.clone()).is_some() {
            return;
        }
        remembered.oldest_first.push_back(id);
        if remembered.oldest_first.len() > RESPONSES_MAX
            && let Some(oldest) = remembered.oldest_first.pop_front()
        {
            remembered.upstreams.remove(&oldest);
        }
    }

    fn keeper_of(&self, id: &str) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upstreams.get(id).cloned()
    }

    /// Whether a call speaks of something that is kept. `body`: where it was read.
    pub(crate) fn pin(&self, route: &Route<'_>, body: Option<&[u8]>) -> Option<Pin> {
        let mut path = route.path.split('/').skip(1);
        if let (Some("responses"), Some(id)) = (path.next(), path.next()) {
            return match id {
                "input_tokens" | "compact" => body.and_then(|body| self.pin_in(body)),
                id => Some(Pin(self.keeper_of(id))),
            };
        }
        body.and_then(|body| self.pin_in(body))
    }

    fn pin_in(&self, body: &[u8]) -> Option<Pin> {
        if let Some(id) = PREVIOUS.find_iter(body).find_map(|at| text_after(&body[at + PREVIOUS.needle().len()..])) {
            return Some(Pin(self.keeper_of(id)));
        }
        // Files, conversations and what belongs to them are made by calls that go to the first upstream.
        KEPT.iter()
            .any(|mark| mark.find_iter(body).any(|at| has_value(&body[at + mark.needle().len()..])))
            .then_some(Pin(None))
    }
}

static PREVIOUS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"previous_response_id\""));
static ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"id\""));
/// With their quotes: within a text these would be escaped, so only a key can be followed by a colon.
static KEPT: LazyLock<[Finder<'static>; 4]> =
    LazyLock::new(|| ["\"conversation\"", "\"file_id\"", "\"file_ids\"", "\"vector_store_ids\""].map(Finder::new));

/// The identifier in the beginning of a reply with a response: that of the response comes before all others.
pub(crate) fn id_in(reply: &[u8]) -> Option<&str> {
    ID.find_iter(reply).find_map(|at| text_after(&reply[at + ID.needle().len()..]))
}

/// The text that is the value of the key before `rest`, if it is one that an identifier can be.
fn text_after(rest: &[u8]) -> Option<&str> {
    let value = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let length = value.iter().take(ID_BYTES_MAX + 1).position(|byte| *byte == b'"')?;
    let id = std::str::from_utf8(&value[..length]).ok()?;
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')).then_some(id)
}

/// True if what stands before `rest` is a key with a value other than null.
fn has_value(rest: &[u8]) -> bool {
    let value = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
    value.is_some_and(|value| !value.starts_with(b"null"))
}

#[cfg(test)]
mod tests {
    use tidegate_core::openai::endpoints::classify_path;

    use super::*;

    #[test]
    fn what_one_upstream_keeps_is_seen_in_path_and_body() {
        let made = Made::default();
        made.remember("resp_1", &Arc::from("azure"));
        let pin = |path: &str, body: &str| made.pin(&classify_path(path), Some(body.as_bytes()));
        let at = |name: &str| Some(Pin(Some(Arc::from(name))));
        for (path, body, expected) in [
            ("/v1/responses", r#"{"input":"hi"}"#, None),
            ("/v1/responses", r#"{"previous_response_id" : "resp_1"}"#, at("azure")),
            ("/v1/responses", r#"{"previous_response_id":"resp_2"}"#, Some(Pin(None))),
            ("/v1/responses", r#"{"previous_response_id":null,"conversation":null}"#, None),
            ("/v1/responses", r#"{"conversation":{"id":"conv_1"}}"#, Some(Pin(None))),
            ("/v1/responses", r#"{"input":"say \"file_id\": 1"}"#, None),
            ("/v1/responses/resp_1/input_items", "", at("azure")),
            ("/v1/responses/resp_2", "", Some(Pin(None))),
            ("/v1/responses/compact", r#"{"previous_response_id":"resp_1"}"#, at("azure")),
            ("/v1/chat/completions", r#"{"messages":[{"content":[{"file":{"file_id":"f"}}]}]}"#, Some(Pin(None))),
        ] {
            assert_eq!(pin(path, body), expected, "{path} {body}");
        }
    }

    #[test]
    fn the_first_identifier_in_a_reply_is_the_responses() {
        let json = br#"{ "id": "resp_1", "output": [{"id": "msg_1"}]}"#;
        assert_eq!(id_in(json), Some("resp_1"));
        let stream =
            b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_2\"}}\n\n";
        assert_eq!(id_in(stream), Some("resp_2"));
        for none in [r#"{"id":null}"#, r#"{"id":"a\"b"}"#, r#"{"id":"cut"#, "{}"] {
            assert_eq!(id_in(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn the_oldest_responses_are_forgotten() {
        let made = Made::default();
        let upstream = Arc::from("openai");
        for number in 0..RESPONSES_MAX + 3 {
            made.remember(&format!("resp_{number}"), &upstream);
            made.remember(&format!("resp_{number}"), &upstream);
        }
        assert_eq!((made.keeper_of("resp_2"), made.keeper_of("resp_3")), (None, Some(upstream)));
    }
}
