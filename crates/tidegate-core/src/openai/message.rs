//! Decides what the message of a rate limit says: numbers, dimension, the limit's group, how long to wait.
//!
//! Takes numbers and names only; the text itself goes no further, as it may hold anything.

use std::time::Duration;

use super::durations::parse_duration;
use super::headers::believable;
use crate::fault::LimitNumbers;
use crate::limit::Dimension;

/// Messages are read so far; OpenAI's are a few hundred characters long.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The beginning of a message, as far as it is read.
pub(super) fn beginning(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// `Limit 30000, Used 29937, Requested 385`, also as it was written in 2023: `Limit: 90000 / min. Current: 89003 / min.`
///
/// `None` without a limit, and for the batch queue's `Enqueued token limit reached`, which is no rate.
pub(super) fn numbers(message: &str) -> Option<LimitNumbers> {
    if message.contains("Enqueued token limit") {
        return None;
    }
    Some(LimitNumbers {
        dimension: dimension(message),
        limit: number_after(message, "Limit")?,
        used: number_after(message, "Used").or_else(|| number_after(message, "Current")),
        requested: number_after(message, "Requested"),
    })
}

/// Which dimension a message speaks of: `on tokens per min (TPM)`.
pub(super) fn dimension(message: &str) -> Option<Dimension> {
    const PHRASES: [(&str, Dimension); 12] = [
        ("(TPM)", Dimension::TokensPerMinute),
        ("(RPM)", Dimension::RequestsPerMinute),
        ("(RPD)", Dimension::RequestsPerDay),
        ("(TPD)", Dimension::TokensPerDay),
        ("(IPM)", Dimension::ImagesPerMinute),
        ("tokens per min", Dimension::TokensPerMinute),
        ("requests per min", Dimension::RequestsPerMinute),
        ("requests per day", Dimension::RequestsPerDay),
        ("tokens per day", Dimension::TokensPerDay),
        ("images per min", Dimension::ImagesPerMinute),
        // Azure.
        ("token rate limit", Dimension::TokensPerMinute),
        ("call rate limit", Dimension::RequestsPerMinute),
    ];
    PHRASES.iter().find(|(phrase, _)| message.contains(phrase)).map(|(_, dimension)| *dimension)
}

/// The whole number after `word`, colon and commas allowed, a fraction dropped.
fn number_after(message: &str, word: &str) -> Option<u64> {
    message.match_indices(word).find_map(|(at, _)| {
        let rest = message[at + word.len()..].trim_start_matches([':', ' ']);
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == ',')).unwrap_or(rest.len());
        let digits: String = rest[..end].chars().filter(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

/// `Please try again in 7m12s.`, Azure's `Please retry after 26 seconds.`; capped like the headers' wait, never zero.
pub(super) fn wait(message: &str) -> Option<Duration> {
    let lower = message.to_ascii_lowercase();
    ["try again in ", "retry after ", "try again after ", "retry in "]
        .iter()
        .flat_map(|phrase| lower.match_indices(phrase).map(|(at, phrase)| &lower[at + phrase.len()..]))
        .find_map(first_duration)
        .and_then(believable)
}

fn first_duration(text: &str) -> Option<Duration> {
    let mut words = text.split_whitespace().map(|word| word.trim_end_matches(['.', ',', ';', ')', '!']));
    let first = words.next()?;
    let is_bare = first.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let with_unit =
        if is_bare { words.next().and_then(|unit| parse_duration(&format!("{first}{unit}"))) } else { None };
    with_unit.or_else(|| parse_duration(first))
}

/// The group in `gpt-4.1-2025-04-14 (for limit gpt-4.1)`.
pub(super) fn limit_group(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("(for limit ")?;
    let (group, _) = rest.split_once(')')?;
    plain_word(group)
}

/// `text` if it is a plain name: such a word cannot hold a prompt.
pub(super) fn plain_word(text: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    (!text.is_empty() && text.len() <= 64 && text.bytes().all(plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_are_read_in_every_wording() {
        for (message, millis) in [
            ("Please try again in 644ms. Visit https://x", 644),
            ("Please try again in 7m12s. Visit", 432_000),
            ("Please try again in 20s.", 20_000),
            ("Please try again in 9.816s. Visit", 9_816),
            ("Please try again in 6m0s.", 360_000),
            ("try again in 114h18m0s", 411_480_000),
            ("pricing tier. Please retry after 26 seconds. Please go here: x", 26_000),
            ("Please retry after 1 second.", 1_000),
            ("Rate limit is exceeded. Try again in 5 seconds.", 5_000),
            ("try again in a while, or try again in 3s", 3_000),
            ("Please try again in 2 minutes.", 120_000),
            ("retry after 7", 7_000),
        ] {
            assert_eq!(wait(message), Some(Duration::from_millis(millis)), "{message}");
        }
        for message in ["", "try again in", "try again in 0s.", "try again later", "try again in -3s"] {
            assert_eq!(wait(message), None, "{message}");
        }
    }

    #[test]
    fn numbers_are_read_in_todays_and_older_wordings() {
        let read = |message| numbers(message).map(|n| (n.dimension, n.limit, n.used, n.requested));
        assert_eq!(
            read("on tokens per min (TPM): Limit 30000, Used 29937, Requested 385. Please try again in 644ms."),
            Some((Some(Dimension::TokensPerMinute), 30_000, Some(29_937), Some(385)))
        );
        assert_eq!(
            read("on tokens per min. Limit: 90,000 / min. Current: 89003 / min. Contact us"),
            Some((Some(Dimension::TokensPerMinute), 90_000, Some(89_003), None))
        );
        assert_eq!(
            read("Rate limit reached for tokens. Limit: 150000.000000 / min. Current: 176000.000000 / min."),
            Some((None, 150_000, Some(176_000), None))
        );
        assert_eq!(
            read("m (for limit gpt-image) on input-images per min: Limit 4000, Used 4000, Requested 31"),
            Some((Some(Dimension::ImagesPerMinute), 4_000, Some(4_000), Some(31)))
        );
        assert_eq!(read("Enqueued token limit reached for m in organization o. Limit: 900,000 enqueued tokens."), None);
        assert_eq!(read("Limit 99999999999999999999999"), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(message in "(.|Limit|Used|: |try again in |\\(for limit |[0-9,.hms)]){0,60}") {
            let _ = (numbers(&message), wait(&message), limit_group(&message), beginning(&message));
        }
    }
}
