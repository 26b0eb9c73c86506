//! Decides where in a reply its error is: which field holds the message, the type and the code.
//!
//! Keeps what it has read when the rest cannot be: a body cut off at the bound still tells its type.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What an error is called.
#[derive(Debug, Default)]
pub(super) struct ErrorWords<'a> {
    pub(super) message: Option<Cow<'a, str>>,
    pub(super) kind: Option<Cow<'a, str>>,
    /// A number is kept as its digits.
    pub(super) code: Option<Cow<'a, str>>,
}

impl ErrorWords<'_> {
    fn is_empty(&self) -> bool {
        self.message.is_none() && self.kind.is_none() && self.code.is_none()
    }
}

/// The words of a reply or of a stream's event.
#[derive(Debug, Default)]
pub(super) struct ReplyWords<'a> {
    /// Of the object under `error`, at the top or in `response`.
    error: ErrorWords<'a>,
    /// Of the reply itself.
    top: ErrorWords<'a>,
    /// `status` of a response is `failed`.
    failed: bool,
}

impl<'a> ReplyWords<'a> {
    /// Reads what can be read of `text`.
    pub(super) fn read(text: &'a str) -> Self {
        let mut words = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        // Not JSON, or cut off: what was read before that still counts, and with nothing read the status speaks alone.
        let _incomplete = Top(&mut words).deserialize(&mut deserializer);
        words
    }

    /// The error of a reply whose status says that it is one.
    pub(super) fn of_failed(self) -> ErrorWords<'a> {
        if self.error.is_empty() { self.top } else { self.error }
    }

    /// The error in a reply or event that came with a good status. `None`: there is none.
    pub(super) fn of_good(self) -> Option<ErrorWords<'a>> {
        if !self.error.is_empty() {
            return Some(self.error);
        }
        match self.top.kind.as_deref() {
            Some("error") => Some(ErrorWords { kind: None, ..self.top }),
            Some("response.failed") => Some(ErrorWords::default()),
            _ if self.failed => Some(ErrorWords::default()),
            _ => None,
        }
    }
}

/// A reply: an object, or (as some compatible servers send) a list that holds one.
struct Top<'w, 'a>(&'w mut ReplyWords<'a>);

impl<'de> DeserializeSeed<'de> for Top<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        list.next_element_seed(Object(self.0))?;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Object(self.0).visit_map(map)
    }
}

/// A reply's object, or the `response` in an event.
struct Object<'w, 'a>(&'w mut ReplyWords<'a>);

impl<'de> DeserializeSeed<'de> for Object<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "error" => map.next_value_seed(ErrorValue(&mut self.0.error))?,
                "response" => map.next_value_seed(Object(self.0))?,
                "status" => self.0.failed |= scalar(map.next_value()?).is_some_and(|status| status == "failed"),
                "message" | "detail" => keep(&mut self.0.top.message, map.next_value()?),
                "type" => keep(&mut self.0.top.kind, map.next_value()?),
                "code" | "statusCode" => keep(&mut self.0.top.code, map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// What is under `error`: an object, a text, or null.
struct ErrorValue<'w, 'a>(&'w mut ErrorWords<'a>);

impl<'de> DeserializeSeed<'de> for ErrorValue<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ErrorValue<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.0.message = Some(Cow::Borrowed(text));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.message = Some(Cow::Owned(text.to_owned()));
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "message" => keep(&mut self.0.message, map.next_value()?),
                "type" => keep(&mut self.0.kind, map.next_value()?),
                "code" => keep(&mut self.0.code, map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The later of two wins, but nothing does not win over something.
fn keep<'a>(place: &mut Option<Cow<'a, str>>, value: &'a RawValue) {
    if let Some(text) = scalar(value) {
        *place = Some(text);
    }
}

/// A text that is not empty, or a number's digits. `None` for all else.
fn scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'"') => super::text::unquoted(raw).filter(|text| !text.is_empty()),
        Some(b'0'..=b'9' | b'-') => Some(Cow::Borrowed(raw)),
        _ => None,
    }
}
