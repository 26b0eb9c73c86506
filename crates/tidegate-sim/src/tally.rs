//! Counts characters, tokens and images of a request body without keeping its text.
//!
//! The token count is an estimate by a scan over words and punctuation. It stands for the "real" count: what `usage`
//! reports. It is deterministic and needs no vocabulary; it is not what any tokenizer would say.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a piece of a body holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Characters of all texts.
    pub(crate) chars: u64,
    /// Tokens of all texts.
    pub(crate) tokens: u64,
    /// Images that are part of it.
    pub(crate) images: u64,
    /// Elements of the outermost list; 1 for a lone text or a list of token ids.
    pub(crate) items: u64,
}

impl Tally {
    /// Of one text.
    pub(crate) fn of_text(text: &str) -> Self {
        Tally { chars: text.chars().count() as u64, tokens: tokens(text), images: 0, items: 1 }
    }

    fn add(&mut self, other: Tally) {
        self.chars += other.chars;
        self.tokens += other.tokens;
        self.images += other.images;
    }
}

/// Tokens of a text: a word is one for each started six bytes, anything else that is no space is one.
pub(crate) fn tokens(text: &str) -> u64 {
    let (mut tokens, mut word) = (0_u64, 0_u64);
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            word += 1;
            continue;
        }
        tokens += word.div_ceil(6);
        word = 0;
        if !c.is_whitespace() {
            tokens += 1;
        }
    }
    tokens + word.div_ceil(6)
}

impl<'de> Deserialize<'de> for Tally {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Count)
    }
}

struct Count;

impl<'de> Visitor<'de> for Count {
    type Value = Tally;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, token ids, or a list of messages or parts")
    }

    fn visit_str<E>(self, text: &str) -> Result<Tally, E> {
        Ok(Tally::of_text(text))
    }

    fn visit_unit<E>(self) -> Result<Tally, E> {
        Ok(Tally::default())
    }

    fn visit_none<E>(self) -> Result<Tally, E> {
        Ok(Tally::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tally, E> {
        Ok(Tally::default())
    }

    // A token id: four characters as a rule.
    fn visit_u64<E>(self, _: u64) -> Result<Tally, E> {
        Ok(Tally { chars: 4, tokens: 1, images: 0, items: 0 })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tally, E> {
        Ok(Tally::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tally, E> {
        Ok(Tally::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tally, A::Error> {
        let (mut sum, mut elements, mut ids) = (Tally::default(), 0, false);
        while let Some(element) = seq.next_element::<Tally>()? {
            elements += 1;
            ids |= element.items == 0 && element.tokens == 1;
            sum.add(element);
        }
        sum.items = if ids { 1 } else { elements };
        Ok(sum)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tally, A::Error> {
        let mut sum = Tally { items: 1, ..Tally::default() };
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            match key.as_ref() {
                "content" | "text" | "output" | "arguments" | "refusal" | "function" | "tool_calls" => {
                    sum.add(map.next_value::<Tally>()?);
                }
                "image_url" => {
                    map.next_value::<IgnoredAny>()?;
                    sum.images += 1;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(sum)
    }
}

struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(key))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(key.to_owned()))
            }
        }
        deserializer.deserialize_str(Visit).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(json: &str) -> Tally {
        serde_json::from_str(json).expect("valid")
    }

    #[test]
    fn words_punctuation_and_other_scripts_count_as_tokens() {
        assert_eq!(tokens("Hello, world!"), 4);
        assert_eq!(tokens("internationalization"), 4);
        assert_eq!(tokens("한국어"), 3);
        assert_eq!(tokens("  \n "), 0);
    }

    #[test]
    fn message_texts_and_images_count_and_roles_do_not() {
        let messages = r#"[{"role":"system","content":"abcd"},
            {"role":"user","content":[{"type":"text","text":"ef\u00fcgh"},{"type":"image_url","image_url":{"url":"x"}}]},
            {"role":"assistant","content":null}]"#;
        assert_eq!(tally(messages), Tally { chars: 9, tokens: 4, images: 1, items: 3 });
    }

    #[test]
    fn inputs_are_counted_whether_texts_or_token_ids() {
        assert_eq!(tally(r#""abc def""#).items, 1);
        assert_eq!(tally(r#"["abc","def"]"#).items, 2);
        assert_eq!(tally("[1,2,3]"), Tally { chars: 12, tokens: 3, images: 0, items: 1 });
        assert_eq!(tally("[[1,2],[3]]").items, 2);
    }
}
