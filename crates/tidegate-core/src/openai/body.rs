//! Decides what is read of a request's body: one pass over the top level, texts counted where they stand.
//!
//! Builds no tree. What may be of several types is first taken as a slice of the body and then looked at by its first
//! character; the large texts of chat messages are counted as they go by.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::endpoints::Endpoint;
use super::estimate::{BodyError, Place, Request};
use super::text::{Size, size_of_bytes, size_of_json, unquoted};

/// Parts within parts are followed so far; OpenAI's go three deep.
const DEPTH_MAX: u32 = 8;

/// The fields of a body that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Field {
    Model = 1,
    MaxCompletionTokens = 1 << 1,
    MaxTokens = 1 << 2,
    MaxOutputTokens = 1 << 3,
    N = 1 << 4,
    BestOf = 1 << 5,
    Stream = 1 << 6,
    User = 1 << 7,
    SafetyIdentifier = 1 << 8,
    StreamOptions = 1 << 9,
    /// Of these a second mention only adds to the estimate.
    Messages = 1 << 10,
    Input = 1 << 11,
    Text = 1 << 12,
    Tools = 1 << 13,
    Continues = 1 << 14,
    Prompt = 1 << 15,
    Passed = 0,
}

const MAY_REPEAT: u16 = Field::Messages as u16
    | Field::Input as u16
    | Field::Prompt as u16
    | Field::Text as u16
    | Field::Tools as u16
    | Field::Continues as u16
    | Field::StreamOptions as u16;

impl Field {
    fn named(endpoint: Endpoint, name: &[u8]) -> Self {
        let is_responses = matches!(endpoint, Endpoint::Responses | Endpoint::ResponsesCompact);
        match name {
            b"model" => Self::Model,
            b"max_completion_tokens" => Self::MaxCompletionTokens,
            b"max_tokens" => Self::MaxTokens,
            b"max_output_tokens" => Self::MaxOutputTokens,
            b"n" => Self::N,
            b"best_of" => Self::BestOf,
            b"stream" => Self::Stream,
            b"user" => Self::User,
            b"safety_identifier" => Self::SafetyIdentifier,
            b"stream_options" => Self::StreamOptions,
            b"messages" if endpoint == Endpoint::ChatCompletions => Self::Messages,
            b"input" if endpoint != Endpoint::ChatCompletions => Self::Input,
            b"prompt" if endpoint == Endpoint::Completions => Self::Prompt,
            b"prompt" if endpoint == Endpoint::Images => Self::Text,
            b"instructions" if is_responses => Self::Text,
            b"tools" => Self::Tools,
            b"previous_response_id" | b"conversation" if is_responses => Self::Continues,
            _ => Self::Passed,
        }
    }

    /// Its name, and what it must be.
    const fn expectation(self) -> (&'static str, &'static str) {
        const COUNT: &str = "a whole number";
        match self {
            Self::Model => ("model", "a string"),
            Self::MaxCompletionTokens => ("max_completion_tokens", COUNT),
            Self::MaxTokens => ("max_tokens", COUNT),
            Self::MaxOutputTokens => ("max_output_tokens", COUNT),
            Self::N => ("n", COUNT),
            Self::BestOf => ("best_of", COUNT),
            Self::Stream => ("stream", "true or false"),
            Self::User => ("user", "a string"),
            Self::SafetyIdentifier => ("safety_identifier", "a string"),
            Self::StreamOptions => ("stream_options", "an object"),
            Self::Messages => ("messages", "an array of objects, the content of each a string or an array of objects"),
            Self::Input => ("input", "a string or an array"),
            Self::Prompt => ("prompt", "a string or an array"),
            Self::Text | Self::Tools | Self::Continues | Self::Passed => ("the body", "a JSON object"),
        }
    }
}

/// What has been read so far, and what is being read.
struct Reading<'a> {
    request: Request<'a>,
    texts: Size,
    n: u64,
    best_of: u64,
    prompts: u64,
    seen: u16,
}

/// For the words of an error: what was being read when it came.
struct Progress {
    field: Cell<Field>,
    duplicate: Cell<Option<Field>>,
}

pub(super) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Request<'_>, BodyError> {
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => {
            let at = place_of_offset(body, error.valid_up_to());
            return Err(BodyError::Malformed { what: "invalid UTF-8".to_owned(), at });
        }
    };
    let mut reading =
        Reading { request: Request::unread(endpoint), texts: Size::default(), n: 1, best_of: 1, prompts: 1, seen: 0 };
    let progress = Progress { field: Cell::new(Field::Passed), duplicate: Cell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer
        .deserialize_map(Body { reading: &mut reading, progress: &progress })
        .and_then(|()| deserializer.end())
        .map_err(|error| in_our_words(&error, body, &progress))?;
    Ok(reading.finish())
}

impl<'a> Reading<'a> {
    fn finish(self) -> Request<'a> {
        let mut request = self.request;
        request.text_chars = self.texts.chars;
        request.text_bytes = self.texts.bytes;
        request.choices = match request.endpoint {
            Endpoint::ChatCompletions => self.n,
            Endpoint::Completions => self.n.max(self.best_of).saturating_mul(self.prompts),
            _ => 1,
        };
        if request.endpoint == Endpoint::Images {
            request.images = u32::try_from(self.n).unwrap_or(u32::MAX);
        }
        request
    }

    /// Reads a value that is short; `None` where its type is wrong.
    fn take(&mut self, field: Field, value: &'a RawValue) -> Option<()> {
        let raw = value.get();
        if raw == "null" {
            return Some(());
        }
        let request = &mut self.request;
        match field {
            Field::Model => request.model = Some(unquoted(raw)?),
            Field::User => request.user = Some(unquoted(raw)?).filter(|user| !user.is_empty()),
            Field::SafetyIdentifier => request.safety_identifier = Some(unquoted(raw)?).filter(|user| !user.is_empty()),
            Field::MaxCompletionTokens | Field::MaxTokens | Field::MaxOutputTokens => {
                let ceiling = whole_number(raw)?;
                let counts = match request.endpoint {
                    Endpoint::ChatCompletions => field != Field::MaxOutputTokens,
                    Endpoint::Completions => field == Field::MaxTokens,
                    _ => field == Field::MaxOutputTokens,
                };
                if counts {
                    request.max_output_tokens = request.max_output_tokens.max(ceiling);
                }
            }
            Field::N => self.n = whole_number(raw)?.unwrap_or(1).max(1),
            Field::BestOf => self.best_of = whole_number(raw)?.unwrap_or(1).max(1),
            Field::Stream => request.stream = truth(raw)?,
            Field::StreamOptions => {
                let options: StreamOptions<'_> = serde_json::from_str(raw).ok()?;
                request.include_usage = options.include_usage.and_then(|value| truth(value.get())).unwrap_or(false);
            }
            Field::Tools => {
                let is_empty = raw.bytes().all(|byte| byte.is_ascii_whitespace() || byte == b'[' || byte == b']');
                request.tools_bytes = if is_empty { 0 } else { raw.len() as u64 };
            }
            Field::Continues => request.continues = true,
            Field::Text => self.walk(raw, 0),
            Field::Messages | Field::Input | Field::Prompt | Field::Passed => {}
        }
        Some(())
    }

    /// Counts the texts, tokens and images of a value of any shape.
    fn walk(&mut self, raw: &str, depth: u32) {
        match raw.as_bytes().first() {
            Some(b'"') => self.texts += size_of_json(raw),
            Some(b'0'..=b'9') => self.request.exact_tokens = self.request.exact_tokens.saturating_add(1),
            Some(b'[' | b'{') if depth < DEPTH_MAX => {
                let mut deserializer = serde_json::Deserializer::from_str(raw);
                // A slice of the body that is known to be JSON: nothing but its shape can be unexpected, and then what was
                // read of it counts.
                let _unexpected = if raw.starts_with('[') {
                    deserializer.deserialize_seq(List { reading: self, depth: depth + 1 })
                } else {
                    deserializer.deserialize_map(Item { reading: self, level: Level::Loose(depth + 1) })
                };
            }
            _ => {}
        }
    }
}

#[derive(serde::Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default)]
    include_usage: Option<&'a RawValue>,
}

/// A whole number; `Some(None)` for a negative one. What is too large to be one is the largest.
fn whole_number(raw: &str) -> Option<Option<u64>> {
    if !matches!(raw.as_bytes().first(), Some(b'0'..=b'9' | b'-')) {
        return None;
    }
    if raw.starts_with('-') {
        return Some(None);
    }
    if raw.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Some(raw.parse().unwrap_or(u64::MAX)));
    }
    // `100.0` and `1e3` are whole numbers to the servers too; the conversion saturates.
    let number: f64 = raw.parse().ok()?;
    (number.fract() == 0.0 || number.is_infinite()).then_some(Some(number as u64))
}

fn truth(raw: &str) -> Option<bool> {
    match raw {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The body's object.
struct Body<'r, 'a> {
    reading: &'r mut Reading<'a>,
    progress: &'r Progress,
}

impl<'de> Visitor<'de> for Body<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reading, progress } = self;
        let endpoint = reading.request.endpoint;
        while let Some(field) = map.next_key_seed(Key(|name: &[u8]| Field::named(endpoint, name)))? {
            let mark = field as u16;
            if reading.seen & mark & !MAY_REPEAT != 0 {
                progress.duplicate.set(Some(field));
                return Err(A::Error::custom(""));
            }
            reading.seen |= mark;
            progress.field.set(field);
            match field {
                Field::Passed => {
                    map.next_value::<IgnoredAny>()?;
                }
                Field::Messages => map.next_value_seed(Content { reading, in_messages: false })?,
                Field::Input | Field::Prompt => map.next_value_seed(Input(reading))?,
                field => {
                    let value = map.next_value::<&'de RawValue>()?;
                    reading.take(field, value).ok_or_else(|| A::Error::custom(""))?;
                }
            }
            progress.field.set(Field::Passed);
        }
        Ok(())
    }
}

/// A key, mapped by a function; read as bytes, so that escapes are undone and anything is tolerated.
struct Key<F>(F);

impl<'de, T, F: FnOnce(&[u8]) -> T> DeserializeSeed<'de> for Key<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<T, F: FnOnce(&[u8]) -> T> Visitor<'_> for Key<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<T, E> {
        Ok((self.0)(name))
    }
}

/// `messages`, or the `content` of one: null, a text (only as content), or a list of objects. Read as it goes by.
struct Content<'r, 'a> {
    reading: &'r mut Reading<'a>,
    in_messages: bool,
}

impl<'de> DeserializeSeed<'de> for Content<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Content<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // The one call that takes texts and lists alike, and texts that are no Unicode.
        deserializer.deserialize_bytes(self)
    }

    fn visit_bytes<E: serde::de::Error>(self, text: &[u8]) -> Result<(), E> {
        if !self.in_messages {
            return Err(E::custom(""));
        }
        self.reading.texts += size_of_bytes(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let level = if self.in_messages { Level::Part } else { Level::Message };
        while list.next_element_seed(Item { reading: &mut *self.reading, level })?.is_some() {}
        Ok(())
    }
}

/// `input`, or `prompt`: a text or a list of texts, tokens, lists of tokens, items.
struct Input<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for Input<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Input<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_bytes(self)
    }

    fn visit_bytes<E>(self, text: &[u8]) -> Result<(), E> {
        self.0.texts += size_of_bytes(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut prompts: u64 = 0;
        while let Some(value) = list.next_element::<&'de RawValue>()? {
            // A list of numbers is one prompt.
            let is_number = value.get().starts_with(|first: char| first.is_ascii_digit());
            prompts += u64::from(prompts == 0 || !is_number);
            self.0.walk(value.get(), 0);
        }
        self.0.prompts = self.0.prompts.max(prompts);
        Ok(())
    }
}

/// A list within a value of any shape.
struct List<'r, 'a> {
    reading: &'r mut Reading<'a>,
    depth: u32,
}

impl<'de> Visitor<'de> for List<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(value) = list.next_element::<&'de RawValue>()? {
            self.reading.walk(value.get(), self.depth);
        }
        Ok(())
    }
}

/// Where an object stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// A chat message.
    Message,
    /// A part of a chat message's content.
    Part,
    /// An item or part of any shape, so deep.
    Loose(u32),
}

/// A message, an item of responses, a part of a content.
struct Item<'r, 'a> {
    reading: &'r mut Reading<'a>,
    level: Level,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ItemField {
    Content,
    /// What is said, read or called.
    Words,
    Type,
    Image,
    Passed,
}

impl Level {
    fn field(self, name: &[u8]) -> ItemField {
        match name {
            b"content" => ItemField::Content,
            b"text" | b"refusal" if self != Self::Message => ItemField::Words,
            b"output" | b"arguments" | b"input" | b"summary" if matches!(self, Self::Loose(_)) => ItemField::Words,
            b"type" if self != Self::Message => ItemField::Type,
            b"image_url" if self != Self::Message => ItemField::Image,
            _ => ItemField::Passed,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Item<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Item<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reading, level } = self;
        let depth = if let Level::Loose(depth) = level { depth } else { 0 };
        let mut is_image = false;
        while let Some(field) = map.next_key_seed(Key(|name: &[u8]| level.field(name)))? {
            match field {
                ItemField::Content if level == Level::Message => {
                    map.next_value_seed(Content { reading: &mut *reading, in_messages: true })?;
                }
                ItemField::Content | ItemField::Words => {
                    let value = map.next_value::<&'de RawValue>()?;
                    reading.walk(value.get(), depth);
                }
                ItemField::Type => {
                    let kind = map.next_value::<&'de RawValue>()?.get();
                    is_image |= matches!(kind, "\"image_url\"" | "\"input_image\"" | "\"computer_screenshot\"");
                }
                ItemField::Image => {
                    is_image = true;
                    map.next_value::<IgnoredAny>()?;
                }
                ItemField::Passed => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        reading.request.images = reading.request.images.saturating_add(u32::from(is_image));
        Ok(())
    }
}

fn in_our_words(error: &serde_json::Error, body: &[u8], progress: &Progress) -> BodyError {
    let at = place(body, error.line(), error.column());
    if let Some(field) = progress.duplicate.get() {
        return BodyError::Duplicate { field: field.expectation().0, at };
    }
    if error.is_data() {
        let (field, expected) = progress.field.get().expectation();
        return BodyError::WrongType { field, expected, at };
    }
    // Errors of syntax name what was expected and quote nothing; where, is said by `at`.
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned();
    BodyError::Malformed { what, at }
}

fn place(body: &[u8], line: usize, column: usize) -> Place {
    let mut start = 0;
    for _ in 1..line {
        start = memchr::memchr(b'\n', &body[start..]).map_or(body.len(), |at| start + at + 1);
    }
    Place { line, column, offset: (start + column.saturating_sub(1)).min(body.len()) }
}

fn place_of_offset(body: &[u8], offset: usize) -> Place {
    let before = &body[..offset];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
    Place { line: memchr::memchr_iter(b'\n', before).count() + 1, column: offset - line_start + 1, offset }
}
