//! Decides what a reply says that it used.

use std::fmt;

use memchr::memmem;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::cost::Usage;

/// So far from a reply's end its usage is looked for before the whole of it is read.
const TAIL_BYTES: usize = 1024;

/// The usage in the body of a reply, as the upstream reported it.
///
/// Reads the last `usage` of the top level: `prompt_tokens` and `completion_tokens` (chat, completions), `input_tokens` and
/// `output_tokens` (responses, images, audio), `prompt_tokens` alone or `total_tokens` (embeddings). `None` where there is
/// none, it is null, or it counts no tokens (audio counts seconds), and for what is no JSON object.
#[must_use]
pub fn from_json(body: &[u8]) -> Option<Usage> {
    if let Some(usage) = at_the_end(body) {
        return Some(usage);
    }
    memmem::find(body, b"\"usage\"")?;
    top_level(body, None)
}

/// The usage in an event of a responses stream that ends it: that of its `response`.
pub(super) fn of_response_event(event: &[u8]) -> Option<Usage> {
    top_level(event, Some(b"response"))
}

/// The usage if it is the last field of the reply, as in embeddings, whose vectors take long to read over.
///
/// What is followed by nothing but the brace that closes the reply can only be of the top level.
fn at_the_end(body: &[u8]) -> Option<Usage> {
    let tail = &body[body.len().saturating_sub(TAIL_BYTES)..];
    let at = memmem::rfind(tail, b"\"usage\"")?;
    let value = tail[at + b"\"usage\"".len()..].trim_ascii_start().strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<Numbers>();
    let numbers = values.next()?.ok()?;
    let rest = value.get(values.byte_offset()..)?.trim_ascii();
    if rest == b"}" { numbers.usage() } else { None }
}

/// The last usage of an object, or of the object that it has under `within`.
fn top_level(json: &[u8], within: Option<&'static [u8]>) -> Option<Usage> {
    let mut found = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Object { found: &mut found, within }.deserialize(&mut deserializer).ok()?;
    found
}

struct Object<'f> {
    found: &'f mut Option<Usage>,
    within: Option<&'static [u8]>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let wanted = self.within.unwrap_or(b"usage");
        while let Some(is_wanted) = map.next_key_seed(Is(wanted))? {
            match (is_wanted, self.within) {
                (true, Some(_)) => map.next_value_seed(Object { found: &mut *self.found, within: None })?,
                (true, None) => {
                    let value = map.next_value::<&RawValue>()?.get();
                    // Other servers may put anything there.
                    *self.found = serde_json::from_str::<Numbers>(value).ok().and_then(|numbers| numbers.usage());
                }
                (false, _) => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a key is this one.
struct Is(&'static [u8]);

impl<'de> DeserializeSeed<'de> for Is {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Is {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// What is under `usage`; of each number that it may lack, and of which some servers send floats.
#[derive(serde::Deserialize)]
struct Numbers {
    #[serde(default, deserialize_with = "tokens")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "tokens")]
    completion_tokens: Option<u64>,
    #[serde(default, deserialize_with = "tokens")]
    input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "tokens")]
    output_tokens: Option<u64>,
    #[serde(default, deserialize_with = "tokens")]
    total_tokens: Option<u64>,
}

impl Numbers {
    fn usage(&self) -> Option<Usage> {
        let input = self.input_tokens.or(self.prompt_tokens);
        let output = self.output_tokens.or(self.completion_tokens);
        let (input_tokens, output_tokens) = match (input, output, self.total_tokens) {
            (None, None, total) => (total?, 0),
            (Some(input), output, _) => (input, output.unwrap_or(0)),
            (None, Some(output), total) => (total.unwrap_or(0).saturating_sub(output), output),
        };
        Some(Usage { input_tokens, output_tokens })
    }
}

/// A number of tokens; `None` for null, negative numbers and all that is no number.
fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
    if !raw.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(None);
    }
    // The conversion saturates.
    Ok(raw.parse().ok().or_else(|| raw.parse::<f64>().ok().map(|number| number as u64)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn used(body: &str) -> Option<(u64, u64)> {
        from_json(body.as_bytes()).map(|usage| (usage.input_tokens, usage.output_tokens))
    }

    #[test]
    fn every_endpoints_usage_is_read() {
        for (body, expected) in [
            (
                r#"{"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21},"system_fingerprint":"f"}"#,
                (9, 12),
            ),
            (
                r#"{"object":"response","usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":0},"output_tokens":87,"total_tokens":123},"user":null}"#,
                (36, 87),
            ),
            (r#"{"object":"list","data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#, (8, 0)),
            (r#"{"usage":{"total_tokens":8}}"#, (8, 0)),
            (r#"{"usage":{"completion_tokens":3,"total_tokens":8}}"#, (5, 3)),
            (r#"{"usage" : {"prompt_tokens": 9.0, "completion_tokens": null} } "#, (9, 0)),
            (r#"{"\u0075sage":{"prompt_tokens":1}, "usage":null, "usage":{"prompt_tokens":2},"z":1}"#, (2, 0)),
        ] {
            assert_eq!(used(body), Some(expected), "{body}");
        }
    }

    #[test]
    fn only_the_top_levels_usage_counts() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"usage":null}"#,
            r#"{"usage":{}}"#,
            r#"{"usage":5}"#,
            r#"{"usage":{"type":"duration","seconds":7}}"#,
            r#"{"usage":{"prompt_tokens":-4}}"#,
            r#"{"choices":[{"usage":{"prompt_tokens":9}}]}"#,
            r#"{"metadata":{"usage":{"prompt_tokens":9}}}"#,
            r#"{"a":"\"usage\":{\"prompt_tokens\":9}}"}"#,
            r#"{"usage":{"prompt_tokens":9}"#,
        ] {
            assert_eq!(used(body), None, "{body}");
        }
        let own = r#"{"usage":{"prompt_tokens":1},"metadata":{"usage":{"prompt_tokens":9}}}"#;
        assert_eq!(used(own), Some((1, 0)));
    }

    #[test]
    fn a_responses_usage_is_within_its_response() {
        let event = br#"{"type":"response.completed","usage":{"input_tokens":1},"response":{"tools":[{"parameters":{"usage":{"input_tokens":7}}}],"usage":{"input_tokens":36,"output_tokens":87}}}"#;
        assert_eq!(of_response_event(event), Some(Usage { input_tokens: 36, output_tokens: 87 }));
        assert_eq!(of_response_event(br#"{"response":{"usage":null}}"#), None);
        assert_eq!(of_response_event(br#"{"response":null}"#), None);
    }

    proptest! {
        #[test]
        fn usage_is_found_wherever_it_stands(before in ".{0,30}", after in ".{0,30}", filler in 0_usize..3_000, input: u32, output: u32, last: bool) {
            let usage = json!({"prompt_tokens": input, "completion_tokens": output});
            let vectors = " ".repeat(filler);
            let (before, after) = (json!(before), json!(after));
            let body = if last {
                format!(r#"{{"a":{before},"data":[{vectors}],"usage":{usage}}}"#)
            } else {
                format!(r#"{{"a":{before},"usage":{usage},"data":[{vectors}],"b":{after}}}"#)
            };
            prop_assert_eq!(used(&body), Some((u64::from(input), u64::from(output))));
        }

        #[test]
        fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..100), body in "(\"usage\"|:|\\{|\\}|\"prompt_tokens\"|9|-|,|\"response\"){0,20}") {
            let _ = (from_json(&noise), of_response_event(&noise));
            let _ = (from_json(body.as_bytes()), of_response_event(body.as_bytes()));
        }
    }
}
