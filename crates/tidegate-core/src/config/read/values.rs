//! Decides what a single value may be: durations, sizes, counts, shares, words, hashes, dates.
//!
//! Each function judges one field: the value, or `None` once what is wrong with it has been reported.

use std::sync::Arc;
use std::time::Duration;

use super::table::{Field, closest};
use super::tree::{Value, parse_loose};
use crate::call::Priority;

/// Longest duration that is taken for meant: ten years.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

pub(super) fn boolean(field: &Field<'_>) -> Option<bool> {
    match field.scalar() {
        Value::Bool(boolean) => Some(*boolean),
        _ => {
            field.wrong("true or false", "");
            None
        }
    }
}

pub(super) fn text<'a>(field: &Field<'a>) -> Option<&'a str> {
    let text = field.as_text();
    if text.is_none() {
        field.wrong("a text", "write it in quotes");
    }
    text
}

/// A text that says something.
pub(super) fn word<'a>(field: &Field<'a>) -> Option<&'a str> {
    let text = text(field)?;
    if text.trim().is_empty() {
        field.error("must not be empty", "");
        return None;
    }
    Some(text)
}

pub(super) fn shared(field: &Field<'_>) -> Option<Arc<str>> {
    word(field).map(Arc::from)
}

/// A text that says something, or `""` for absence.
pub(super) fn optional_text<'a>(field: &Field<'a>) -> Option<&'a str> {
    text(field).filter(|text| !text.is_empty())
}

/// One of `choices`, which are `(word, meaning)`.
pub(super) fn choice<T: Copy>(field: &Field<'_>, choices: &[(&str, T)]) -> Option<T> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let written = field.as_text();
    if let Some((_, meaning)) = choices.iter().find(|(word, _)| Some(*word) == written) {
        return Some(*meaning);
    }
    let hint = match written.and_then(|written| closest(written, &words)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => String::new(),
    };
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    field.wrong(&quoted.join(" or "), hint);
    None
}

pub(super) fn priority(field: &Field<'_>) -> Option<Priority> {
    choice(field, &Priority::ALL.map(|priority| (priority.name(), priority)))
}

/// An integer from `least` to `most`.
pub(super) fn integer(field: &Field<'_>, least: u64, most: u64) -> Option<u64> {
    let Value::Integer(number) = field.scalar() else {
        field.wrong("a whole number", "");
        return None;
    };
    match u64::try_from(*number) {
        Ok(number) if (least..=most).contains(&number) => Some(number),
        Ok(number) if number > most => {
            field.error(format!("must be at most {most}, not {number}"), "");
            None
        }
        _ => {
            field.error(format!("must be at least {least}, not {number}"), "");
            None
        }
    }
}

/// How many: at least 1, at most a million.
pub(super) fn count(field: &Field<'_>) -> Option<u32> {
    integer(field, 1, 1_000_000).and_then(|number| u32::try_from(number).ok())
}

/// A number within `range`.
pub(super) fn number(field: &Field<'_>, range: std::ops::RangeInclusive<f64>) -> Option<f64> {
    let number = match field.scalar() {
        Value::Float(number) => *number,
        // Settings of this kind are small: what an f64 cannot hold exactly is out of range anyway.
        Value::Integer(number) => *number as f64,
        _ => {
            field.wrong("a number", "");
            return None;
        }
    };
    if !range.contains(&number) {
        field.error(format!("must be from {} to {}, not {number}", range.start(), range.end()), "");
        return None;
    }
    Some(number)
}

/// A number above 0, up to `most`.
pub(super) fn positive(field: &Field<'_>, most: f64) -> Option<f64> {
    let number = number(field, 0.0..=most)?;
    if number == 0.0 {
        field.error("must be above 0", "");
        return None;
    }
    Some(number)
}

/// `"250ms"`, `"1m30s"`; in the camelCase spelling bare milliseconds too.
pub(super) fn duration(field: &Field<'_>) -> Option<Duration> {
    let parsed = match field.scalar() {
        Value::Text(text) => match humantime::parse_duration(text.trim()) {
            Ok(duration) => duration,
            Err(_) => {
                field.wrong("a duration", "write one such as \"250ms\", \"30s\" or \"1m30s\"");
                return None;
            }
        },
        Value::Integer(number) if field.camel_case => match u64::try_from(*number) {
            Ok(millis) => Duration::from_millis(millis),
            Err(_) => {
                field.error(format!("must be milliseconds from 0, not {number}"), "");
                return None;
            }
        },
        Value::Integer(number) if *number >= 0 => {
            field.error(
                format!("must be a duration with its unit, not {number}"),
                format!("write \"{number}ms\" or \"{number}s\""),
            );
            return None;
        }
        _ => {
            field.wrong("a duration", "write one such as \"250ms\", \"30s\" or \"1m30s\"");
            return None;
        }
    };
    if parsed > DURATION_MAX {
        field.error("must be at most ten years", "");
        return None;
    }
    Some(parsed)
}

/// A duration that is not zero.
pub(super) fn some_duration(field: &Field<'_>) -> Option<Duration> {
    let duration = duration(field)?;
    if duration.is_zero() {
        field.error("must be above 0", "write a duration such as \"5s\"");
        return None;
    }
    Some(duration)
}

/// A duration, where zero stands for none: `Some(None)` then.
pub(super) fn bound(field: &Field<'_>) -> Option<Option<Duration>> {
    duration(field).map(|duration| (!duration.is_zero()).then_some(duration))
}

/// A size in bytes: a bare number or `"32MiB"`. At least one byte, at most 1 TiB.
pub(super) fn size(field: &Field<'_>) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let bytes = match field.scalar() {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) => {
            let (digits, unit) = UNITS
                .iter()
                .find_map(|(unit, factor)| Some((text.trim().strip_suffix(unit)?, *factor)))
                .unwrap_or((text, 1));
            digits.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit))
        }
        _ => None,
    };
    match bytes {
        Some(bytes) if (1..=1 << 40).contains(&bytes) => Some(bytes),
        Some(_) => {
            field.wrong("from 1 byte to 1024GiB", "");
            None
        }
        None => {
            field.wrong("a size", "write one such as \"512KiB\", \"32MiB\" or \"1GiB\"");
            None
        }
    }
}

/// What `judge` makes of each item. From the environment, where there are no brackets, `a,b` is an array of two.
pub(super) fn list<T>(field: &Field<'_>, judge: impl Fn(&Field<'_>) -> Option<T>) -> Option<Vec<T>> {
    let judged: Vec<Option<T>> = match field.value {
        Value::Array(items) => items.iter().map(|item| judge(&field.at(item))).collect(),
        Value::Text(text) | Value::Loose(text, _) if field.report.is_environment(field.place) => text
            .split(',')
            .filter(|item| !item.trim().is_empty())
            .map(|item| {
                let node = parse_loose(item.trim(), field.place.source);
                judge(&Field { value: &node.value, place: field.place, ..*field })
            })
            .collect(),
        _ => {
            let item = field.as_text().map_or_else(|| "…".to_owned(), |text| format!("\"{text}\""));
            field.wrong("an array", format!("write {} = [{item}]", field.key));
            return None;
        }
    };
    // All are judged before any is missed: every fault is reported at once.
    judged.into_iter().collect()
}

/// As [`list`], where a single item may stand without brackets.
pub(super) fn one_or_more<T>(field: &Field<'_>, judge: impl Fn(&Field<'_>) -> Option<T>) -> Option<Vec<T>> {
    match field.value {
        Value::Array(_) => list(field, judge),
        _ if field.report.is_environment(field.place) => list(field, judge),
        _ => judge(field).map(|only| vec![only]),
    }
}

/// SHA-256 as 64 hexadecimal digits. What is written there by mistake may be the secret itself, and is not shown.
pub(super) fn sha256(field: &Field<'_>) -> Option<[u8; 32]> {
    let hash = field.as_text().and_then(|text| hex(text.trim()));
    if hash.is_none() {
        field.error(
            "must be 64 hexadecimal digits, the SHA-256 of the secret",
            "make it with: printf %s \"$SECRET\" | sha256sum",
        );
    }
    hash
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

/// A date or an instant, in seconds since 1970; a date alone is its first moment, UTC.
pub(super) fn instant(field: &Field<'_>) -> Option<u64> {
    let written = match field.scalar() {
        Value::Text(text) | Value::Date(text) => text.trim(),
        _ => "",
    };
    let full = if written.len() == 10 { format!("{written}T00:00:00Z") } else { written.to_owned() };
    let unix = humantime::parse_rfc3339(&full).ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    if unix.is_none() {
        field.wrong("a date", "write one such as \"2027-01-01\" or \"2027-01-01T12:00:00Z\"");
    }
    unix.map(|unix| unix.as_secs())
}
