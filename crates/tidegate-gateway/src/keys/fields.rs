//! Decides what the fields of a key that is made may be: for the admin listener, and for a command line before anything is sent.
//!
//! An error says what must be written, for whoever knows the field's name to put before it.

use std::time::SystemTime;

use tidegate_core::call::Priority;
use tidegate_core::config::{KeyConfig, KeyPaths};

const NAME_CHARS_MAX: usize = 64;
const TEXT_CHARS_MAX: usize = 256;

/// What a key may be allowed to use, as `paths` names it.
pub const KEY_PATHS: [&str; 2] = ["inference", "all"];

/// A key's name in limits, logs and metrics.
///
/// # Errors
/// What it must be.
pub fn key_name(written: &str) -> Result<&str, String> {
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if written.is_empty() || written.len() > NAME_CHARS_MAX || !written.chars().all(is_allowed) {
        return Err(format!("1 to {NAME_CHARS_MAX} letters, digits, dots, underscores and dashes"));
    }
    Ok(written)
}

/// The organization, project or user of a key's calls, without the blanks around it.
///
/// # Errors
/// What it must be.
pub fn key_text(written: &str) -> Result<&str, String> {
    let trimmed = written.trim();
    if trimmed.is_empty() || trimmed.chars().count() > TEXT_CHARS_MAX || trimmed.chars().any(char::is_control) {
        return Err(format!("one line of 1 to {TEXT_CHARS_MAX} characters"));
    }
    Ok(trimmed)
}

/// Seconds since 1970 from which on a key is refused; a date alone is its first moment, UTC.
///
/// # Errors
/// What it must be.
pub fn key_expires(written: &str) -> Result<u64, String> {
    let full = if written.len() == 10 { format!("{written}T00:00:00Z") } else { written.to_owned() };
    let at = humantime::parse_rfc3339(&full).ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    at.map(|at| at.as_secs()).ok_or_else(|| "a date such as 2027-01-01 or 2027-01-01T12:00:00Z".to_owned())
}

/// The highest priority of a key's calls and that of those which ask for none, where these words are given.
///
/// # Errors
/// What they must be, with the name of the one that is not.
pub fn key_priorities(max: Option<&str>, default: Option<&str>) -> Result<(Priority, Priority), String> {
    let read = |what: &str, word: Option<&str>| {
        let unknown = |word: &str| format!("{what} must be low, normal or high, not {}", quoted(word));
        word.map(|word| Priority::parse(word).ok_or_else(|| unknown(word))).transpose()
    };
    let otherwise = KeyConfig::default();
    let max = read("max_priority", max)?.unwrap_or(otherwise.max_priority);
    match read("default_priority", default)? {
        Some(wanted) if wanted > max => Err(format!(
            "default_priority {} is above max_priority {}; lower it or raise max_priority",
            wanted.name(),
            max.name()
        )),
        wanted => Ok((max, wanted.unwrap_or(otherwise.default_priority.min(max)))),
    }
}

/// What a key may use; without words, what is the default.
///
/// # Errors
/// What they must be.
pub(super) fn key_paths(words: Option<&[String]>) -> Result<KeyPaths, String> {
    let allowed = || format!("paths must be {}", KEY_PATHS.map(|word| format!("[\"{word}\"]")).join(" or "));
    let Some(words) = words else { return Ok(KeyConfig::default().paths) };
    if let Some(other) = words.iter().find(|word| !KEY_PATHS.contains(&word.as_str())) {
        return Err(format!("{}, not [{}]", allowed(), quoted(other)));
    }
    match words {
        [] => Err(format!("{}, not []", allowed())),
        _ if words.iter().any(|word| word == "all") => Ok(KeyPaths::All),
        _ => Ok(KeyPaths::Inference),
    }
}

/// What somebody wrote, to be shown to him: on one line, and not all of what is long.
pub(crate) fn quoted(written: &str) -> String {
    format!("\"{}\"", shortened(written).escape_debug())
}

/// Not all of what is long.
pub(crate) fn shortened(written: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    match written.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &written[..end]),
        None => written.to_owned(),
    }
}
