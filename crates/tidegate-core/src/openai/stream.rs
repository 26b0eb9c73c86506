//! Decides what has been seen of a streamed reply as it goes by: use, errors, its end, and when its status is committed.
//!
//! Holds nothing back. A delta costs about 0.2 µs: a few searches for marks and a walk over the strings of its choices; only
//! the event that carries usage or an error is parsed.

use std::sync::LazyLock;

use memchr::{memchr2, memmem::Finder};

use super::endpoints::Endpoint;
use super::faults::classify_in_band;
use super::sse::{SseEvent, SseScanner};
use super::usage;
use crate::cost::Usage;
use crate::fault::{Fault, FaultKind};

struct Marks {
    usage: Finder<'static>,
    error: Finder<'static>,
    choices: Finder<'static>,
    kind: Finder<'static>,
    delta: Finder<'static>,
}

const CHOICES: &str = "\"choices\"";

/// With their quotes: within a text these would be escaped, so only a key (or a whole text) can match.
static MARKS: LazyLock<Marks> = LazyLock::new(|| Marks {
    usage: Finder::new("\"usage\""),
    error: Finder::new("\"error\""),
    choices: Finder::new(CHOICES),
    kind: Finder::new("\"type\""),
    delta: Finder::new("\"delta\""),
});

/// What one event of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Something of the reply.
    Content,
    /// Responses: created, queued or in progress; nothing has been done yet.
    Preamble,
    /// Chat: the chunk without choices that carries the usage.
    UsageOnly,
    /// An error within the stream.
    Error,
    /// The regular end: `[DONE]`, `response.completed`, `response.incomplete`.
    End,
}

/// Watches one streamed reply.
#[derive(Debug)]
pub struct StreamMeter {
    endpoint: Endpoint,
    scanner: SseScanner,
    watched: Watched,
}

#[derive(Debug, Default)]
struct Watched {
    usage: Option<Usage>,
    output_bytes: u64,
    is_committed: bool,
    has_finish_reason: bool,
    has_end: bool,
    fault: Option<Box<Fault>>,
}

impl StreamMeter {
    /// For the reply of a call to `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, scanner: SseScanner::default(), watched: Watched::default() }
    }

    /// Takes the next piece. `seen` is told of each event that ends in it, and where in the piece it ends.
    pub fn feed(&mut self, piece: &[u8], mut seen: impl FnMut(StreamEvent, usize)) {
        let Self { endpoint, scanner, watched } = self;
        scanner.feed(piece, |event| seen(watched.take(*endpoint, event), event.end));
    }

    /// Takes the end of the stream: what only lacked its blank line is looked at too.
    pub fn finish(&mut self) {
        let Self { endpoint, scanner, watched } = self;
        scanner.finish(|event| {
            watched.take(*endpoint, event);
        });
    }

    /// True once the status may be passed on: after the first event that is neither an error nor, for responses, a preamble.
    /// Never true where an error came first.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        self.watched.is_committed
    }

    /// The first error within the stream.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.watched.fault.as_deref()
    }

    /// True once the stream has said that it is over, by its last event, an error, or (as some servers send no `[DONE]`) a
    /// reason why the choice finished. A stream that closes before has broken off.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.watched.has_end || self.watched.has_finish_reason || self.watched.fault.is_some()
    }

    /// True once the last event has come; with usage asked for, it comes before that.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.watched.has_end
    }

    /// The usage as the stream reported it.
    #[must_use]
    pub const fn reported(&self) -> Option<Usage> {
        self.watched.usage
    }

    /// Output tokens as seen go by: a quarter of the bytes of all text, tool arguments and reasoning, rounded up.
    ///
    /// Low where reasoning is not shown; a surrogate pair written as escapes counts as six bytes.
    #[must_use]
    pub const fn seen_output_tokens(&self) -> u64 {
        self.watched.output_bytes.div_ceil(4)
    }

    /// What was used: as reported, else `input_tokens` as estimated and the output as seen.
    #[must_use]
    pub fn used(&self, input_tokens: u64) -> Usage {
        self.reported().unwrap_or(Usage { input_tokens, output_tokens: self.seen_output_tokens() })
    }

    /// Events too large to be looked at.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.scanner.skipped()
    }
}

impl Watched {
    fn take(&mut self, endpoint: Endpoint, event: SseEvent<'_>) -> StreamEvent {
        let kind = match endpoint {
            _ if event.data == b"[DONE]" => StreamEvent::End,
            Endpoint::Responses | Endpoint::ResponsesCompact => self.responses(event),
            Endpoint::ChatCompletions | Endpoint::Completions => self.chat(event),
            _ => self.other(event),
        };
        self.has_end |= kind == StreamEvent::End;
        self.is_committed |= self.fault.is_none() && !matches!(kind, StreamEvent::Error | StreamEvent::Preamble);
        kind
    }

    fn chat(&mut self, event: SseEvent<'_>) -> StreamEvent {
        let data = event.data;
        let Some(at) = MARKS.choices.find(data) else {
            if self.is_error(event) {
                return StreamEvent::Error;
            }
            self.read_usage(data);
            return StreamEvent::Content;
        };
        // Nearly every event is a delta: the marks are searched in what stands before its choices, and the walk over these meets
        // them in what follows.
        let (before, choices) = (&data[..at], &data[at + CHOICES.len()..]);
        let seen = texts_of_choices(choices);
        if (event.name == b"error" || seen.has_error || MARKS.error.find(before).is_some()) && self.is_error(event) {
            return StreamEvent::Error;
        }
        let reports = (seen.has_usage || MARKS.usage.find(before).is_some()) && self.read_usage(data);
        if reports && is_empty_list(choices) {
            return StreamEvent::UsageOnly;
        }
        self.output_bytes = self.output_bytes.saturating_add(seen.bytes);
        self.has_finish_reason |= seen.has_finish_reason;
        StreamEvent::Content
    }

    fn responses(&mut self, event: SseEvent<'_>) -> StreamEvent {
        // The events that repeat the whole response also repeat the caller's tools, which may have any keys: marks prove
        // nothing there, the name of the event does.
        match name_of(event) {
            b"response.created" | b"response.queued" | b"response.in_progress" => StreamEvent::Preamble,
            b"response.completed" | b"response.incomplete" => {
                self.usage = usage::of_response_event(event.data).or(self.usage);
                StreamEvent::End
            }
            b"response.failed" | b"error" => {
                self.usage = usage::of_response_event(event.data).or(self.usage);
                self.fail(classify_in_band(event.data));
                StreamEvent::Error
            }
            name if name.ends_with(b".delta") => {
                self.output_bytes = self.output_bytes.saturating_add(bytes_of_delta(name, event.data));
                StreamEvent::Content
            }
            // A server that answers a responses call as chat does.
            b"" if self.is_error(event) => StreamEvent::Error,
            _ => StreamEvent::Content,
        }
    }

    /// Images, audio.
    fn other(&mut self, event: SseEvent<'_>) -> StreamEvent {
        if self.is_error(event) {
            return StreamEvent::Error;
        }
        self.read_usage(event.data);
        let name = name_of(event);
        if name.ends_with(b".completed") || name.ends_with(b".done") { StreamEvent::End } else { StreamEvent::Content }
    }

    fn is_error(&mut self, event: SseEvent<'_>) -> bool {
        let is_named = event.name == b"error";
        let is_marked = || {
            let after = |at: usize| value_after(&event.data[at + "\"error\"".len()..]);
            MARKS.error.find_iter(event.data).filter_map(after).any(|value| matches!(value.first(), Some(b'{' | b'"')))
        };
        if !is_named && !is_marked() {
            return false;
        }
        let fault = classify_in_band(event.data);
        if fault.is_none() && !is_named {
            return false;
        }
        self.fail(fault);
        true
    }

    fn fail(&mut self, fault: Option<Fault>) {
        if self.fault.is_none() {
            let unsaid = || Fault::new(FaultKind::Server, "error within a stream").with_status(200);
            self.fault = Some(Box::new(fault.unwrap_or_else(unsaid)));
        }
    }

    /// Whether the event carries usage.
    fn read_usage(&mut self, data: &[u8]) -> bool {
        let after = |at: usize| value_after(&data[at + "\"usage\"".len()..]);
        // All chunks but one say `"usage":null`.
        if !MARKS.usage.find_iter(data).filter_map(after).any(|value| value.first() == Some(&b'{')) {
            return false;
        }
        let usage = usage::from_json(data);
        self.usage = usage.or(self.usage);
        usage.is_some()
    }
}

/// The event's name, else the `type` in its data, which stands first.
fn name_of<'e>(event: SseEvent<'e>) -> &'e [u8] {
    if !event.name.is_empty() {
        return event.name;
    }
    let Some(at) = MARKS.kind.find(event.data) else { return b"" };
    let Some(value) = value_after(&event.data[at + "\"type\"".len()..]) else { return b"" };
    value.strip_prefix(b"\"").map_or(b"", |text| &text[..text_end(text).0])
}

/// What follows a key's colon.
fn value_after(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

fn is_empty_list(after_key: &[u8]) -> bool {
    value_after(after_key)
        .and_then(|value| value.strip_prefix(b"["))
        .is_some_and(|list| list.trim_ascii_start().starts_with(b"]"))
}

/// Where a JSON text ends that begins here, and its size in bytes, about: an escape of one character counts one, of the form
/// `\uXXXX` three.
fn text_end(text: &[u8]) -> (usize, u64) {
    let mut at = 0;
    let mut less = 0;
    while let Some(length) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += length;
        if text[at] == b'"' {
            return (at, (at - less) as u64);
        }
        let is_long = text.get(at + 1) == Some(&b'u');
        less += if is_long { 3 } else { 1 };
        at += if is_long { 6 } else { 2 };
    }
    (text.len(), text.len().saturating_sub(less) as u64)
}

#[derive(Default)]
struct Texts {
    bytes: u64,
    has_finish_reason: bool,
    /// There is a key `usage`, at whatever depth, whose value is not null.
    has_usage: bool,
    /// The same for `error`.
    has_error: bool,
}

/// Walks over the strings of a chunk's choices; a string before a colon is a key, the others are values of the last key.
fn texts_of_choices(mut rest: &[u8]) -> Texts {
    let mut texts = Texts::default();
    let mut key: &[u8] = b"";
    // What is between strings is so short that a search made for long texts would take longer.
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let text = &rest[start + 1..];
        let (length, bytes) = text_end(text);
        rest = text.get(length + 1..).unwrap_or_default();
        if let Some(value) = value_after(rest) {
            key = &text[..length];
            texts.has_usage |= key == b"usage" && value.first() != Some(&b'n');
            texts.has_error |= key == b"error" && value.first() != Some(&b'n');
            continue;
        }
        match key {
            b"content" | b"arguments" | b"text" | b"refusal" | b"reasoning_content" | b"reasoning" => {
                texts.bytes = texts.bytes.saturating_add(bytes);
            }
            b"finish_reason" => texts.has_finish_reason = true,
            _ => {}
        }
    }
    texts
}

/// The size of the `delta` in an event of responses; sound is none.
fn bytes_of_delta(name: &[u8], data: &[u8]) -> u64 {
    if name.ends_with(b".audio.delta") {
        return 0;
    }
    let Some(at) = MARKS.delta.find(data) else { return 0 };
    let value = value_after(&data[at + "\"delta\"".len()..]).and_then(|value| value.strip_prefix(b"\""));
    value.map_or(0, |text| text_end(text).1)
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
