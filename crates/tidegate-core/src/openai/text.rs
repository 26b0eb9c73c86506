//! Decides how large a JSON text is once decoded, without decoding it.

use std::borrow::Cow;
use std::ops::AddAssign;

use memchr::memchr;

/// How large texts are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// Unicode characters; half of a surrogate pair that stands alone counts as one.
    pub(super) chars: u64,
    /// Bytes in UTF-8.
    pub(super) bytes: u64,
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.chars = self.chars.saturating_add(other.chars);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The size of text in UTF-8, in which halves of surrogate pairs may stand alone (as serde_json hands them out).
pub(super) fn size_of_bytes(text: &[u8]) -> Size {
    // Most texts are ASCII, and that is found out much faster than anything is counted.
    let chars = if text.is_ascii() { text.len() } else { text.iter().filter(|byte| !is_continuation(**byte)).count() };
    Size { chars: chars as u64, bytes: text.len() as u64 }
}

const fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The decoded size of a JSON text, given with its quotes and known to be well-formed.
pub(super) fn size_of_json(quoted: &str) -> Size {
    let quoted = quoted.as_bytes();
    let mut rest = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    let mut size = Size::default();
    while let Some(at) = memchr(b'\\', rest) {
        size += size_of_bytes(&rest[..at]);
        let (escaped, length) = escape(&rest[at..]);
        size += escaped;
        rest = rest.get(at + length..).unwrap_or_default();
    }
    size += size_of_bytes(rest);
    size
}

/// What an escape stands for, and how many bytes it takes up.
fn escape(text: &[u8]) -> (Size, usize) {
    if text.get(1) != Some(&b'u') {
        return (Size { chars: 1, bytes: 1 }, 2);
    }
    match code_unit(text) {
        Some(0..=0x7f) => (Size { chars: 1, bytes: 1 }, 6),
        Some(0x80..=0x7ff) => (Size { chars: 1, bytes: 2 }, 6),
        Some(0xd800..=0xdbff) if matches!(text.get(6..).and_then(code_unit), Some(0xdc00..=0xdfff)) => {
            (Size { chars: 1, bytes: 4 }, 12)
        }
        _ => (Size { chars: 1, bytes: 3 }, 6),
    }
}

/// The number in an escape of the form `\uXXXX`.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A JSON text given with its quotes, decoded; borrowed where nothing in it is escaped.
///
/// Halves of surrogate pairs that stand alone become U+FFFD. `None` if it is no JSON text.
pub(super) fn unquoted(quoted: &str) -> Option<Cow<'_, str>> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    if let Ok(text) = serde_json::from_str::<String>(quoted) {
        return Some(Cow::Owned(text));
    }
    let mut deserializer = serde_json::Deserializer::from_str(quoted);
    let bytes = serde::Deserializer::deserialize_bytes(&mut deserializer, Bytes).ok()?;
    Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Takes a JSON text as bytes: the one way to get at it if it is no Unicode.
struct Bytes;

impl serde::de::Visitor<'_> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(json: &str) -> (u64, u64) {
        let size = size_of_json(json);
        (size.chars, size.bytes)
    }

    #[test]
    fn an_escape_is_as_large_as_what_it_stands_for() {
        assert_eq!(size(r#""""#), (0, 0));
        assert_eq!(size(r#""abc""#), (3, 3));
        assert_eq!(size(r#""a\nb\"""#), (4, 4));
        assert_eq!(size(r#""\\\\""#), (2, 2));
        assert_eq!(size(r#""\u0041\u00e9\u4e2d""#), (3, 6));
        assert_eq!(size(r#""\ud83d\ude00""#), (1, 4));
        assert_eq!(size("\"é中😀\""), (3, 9));
    }

    #[test]
    fn half_a_surrogate_pair_counts_as_one_character() {
        assert_eq!(size(r#""\ud83d""#), (1, 3));
        assert_eq!(size(r#""\ude00x""#), (2, 4));
        assert_eq!(size(r#""\ud83d\ud83d\ude00""#), (2, 7));
        assert_eq!(size(r#""\ud83d\n""#), (2, 4));
        assert!(unquoted(r#""a\ud83d""#).is_some_and(|text| text.starts_with('a')));
    }

    proptest! {
        #[test]
        fn the_size_is_that_of_the_decoded_text(text in "\\PC*|[\"\\\\/\n\t\u{1}é中😀a]{0,40}") {
            let json = serde_json::to_string(&text).expect("a text can be written");
            prop_assert_eq!(size(&json), (text.chars().count() as u64, text.len() as u64));
            let decoded = unquoted(&json);
            prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
        }

        #[test]
        fn no_text_panics(text in ".*", escapes in "\"(\\\\u?[0-9a-fd]{0,4}){0,8}\"?") {
            let _ = (size_of_json(&text), unquoted(&text), size_of_json(&escapes), unquoted(&escapes));
        }
    }
}
