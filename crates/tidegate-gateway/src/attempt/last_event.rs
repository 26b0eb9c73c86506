//! Decides how the caller of a stream is told that it broke off: by a last event of the kind that its client raises as an error.
//!
//! Only where that can be understood: between two events, uncompressed, in a form that the endpoint's clients know, and where
//! the reply did not say how long it is. Elsewhere the connection breaks off, as the upstream's did.

use bytes::Bytes;
use http::HeaderMap;
use http::header;
use serde::Serialize;
use tidegate_core::openai::endpoints::Endpoint;

/// What has gone by of a stream, as far as it matters to what may follow.
#[derive(Debug)]
pub(crate) struct LastEvent {
    /// `None`: nothing can be added.
    form: Option<Form>,
    /// The last bytes that went by.
    tail: [u8; 4],
}

/// How clients expect an error within a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Chat,
    Responses,
}

/// The type of errors that are not the caller's.
const UNAVAILABLE: &str = "service_unavailable_error";

#[derive(Serialize)]
struct ChatError<'m> {
    error: Inner<'m>,
}

#[derive(Serialize)]
struct ResponsesError<'m> {
    #[serde(rename = "type")]
    kind: &'static str,
    code: &'static str,
    message: &'m str,
    param: Option<()>,
    /// The official SDKs look for this, and raise it, whatever the event's name is.
    error: Inner<'m>,
}

#[derive(Serialize)]
struct Inner<'m> {
    message: &'m str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<()>,
    code: &'static str,
}

impl LastEvent {
    /// For the reply with these headers to a call of `endpoint`.
    pub(crate) fn new(endpoint: Endpoint, headers: &HeaderMap) -> Self {
        let form = match endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions => Some(Form::Chat),
            Endpoint::Responses | Endpoint::ResponsesCompact => Some(Form::Responses),
            _ => None,
        };
        let is_open = ![header::CONTENT_LENGTH, header::CONTENT_ENCODING].iter().any(|name| headers.contains_key(name));
        Self { form: form.filter(|_| is_open), tail: *b"\n\n\n\n" }
    }

    /// A piece of the stream goes by.
    pub(crate) fn passed(&mut self, piece: &[u8]) {
        let new = &piece[piece.len().saturating_sub(self.tail.len())..];
        self.tail.rotate_left(new.len());
        let kept = self.tail.len() - new.len();
        self.tail[kept..].copy_from_slice(new);
    }

    /// The event that says `message`, if one can be added now.
    pub(crate) fn say(&self, code: &'static str, message: &str) -> Option<Bytes> {
        let is_between = matches!(&self.tail, [_, _, b'\n', b'\n'] | [_, _, b'\r', b'\r'] | b"\r\n\r\n");
        let form = self.form.filter(|_| is_between)?;
        let error = Inner { message, kind: UNAVAILABLE, param: None, code };
        let event = match form {
            Form::Chat => format!("data: {}\n\n", serde_json::to_string(&ChatError { error }).ok()?),
            Form::Responses => {
                let error = ResponsesError { kind: "error", code, message, param: None, error };
                format!("event: error\ndata: {}\n\n", serde_json::to_string(&error).ok()?)
            }
        };
        Some(event.into())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tidegate_core::openai::stream::StreamMeter;

    use super::*;

    fn after(pieces: &[&str]) -> Option<Bytes> {
        let mut last = LastEvent::new(Endpoint::ChatCompletions, &HeaderMap::new());
        pieces.iter().for_each(|piece| last.passed(piece.as_bytes()));
        last.say("stream_broken", "it broke")
    }

    #[test]
    fn an_event_is_added_between_two_events_only() {
        for pieces in
            [&[][..], &["data: 1\n\n"], &["data: 1\n", "\n"], &["data: 1\r\n\r", "\n"], &["data: 1\r\r"], &["", "\n"]]
        {
            assert!(after(pieces).is_some(), "{pieces:?}");
        }
        for pieces in [&["data: 1\n"][..], &["data: 1\n\n", "d"], &["data: 1\r\n"], &["data: 1\n\ndata: \\n\\n"]] {
            assert!(after(pieces).is_none(), "{pieces:?}");
        }
    }

    #[test]
    fn nothing_is_added_to_what_is_packed_or_says_its_length_or_is_no_stream_of_text() {
        for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING] {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static("1"))]);
            assert!(LastEvent::new(Endpoint::ChatCompletions, &headers).say("c", "m").is_none());
        }
        assert!(LastEvent::new(Endpoint::Images, &HeaderMap::new()).say("c", "m").is_none());
    }

    #[test]
    fn what_is_added_is_an_error_to_whoever_reads_the_stream() {
        for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses] {
            let event = LastEvent::new(endpoint, &HeaderMap::new()).say("stream_broken", "it \"broke\"").unwrap();
            let mut meter = StreamMeter::new(endpoint);
            meter.feed(&event, |_, _| {});
            assert_eq!(meter.fault().unwrap().code.as_deref(), Some("stream_broken"), "{event:?}");
        }
    }
}
