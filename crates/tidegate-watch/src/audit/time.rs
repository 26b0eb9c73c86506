//! Decides how instants are written and read: in microseconds since 1970, for people as RFC 3339.

use std::time::{Duration, SystemTime};

/// What humantime can write ends with the year 9999.
const LAST: u64 = 253_402_300_799_999_999;

/// A text that names no instant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no time; write how long ago, such as 90m or 7d, or a date or time such as 2026-11-24T10:00:00Z")]
pub struct NotATime(String);

/// The instant that a person means: `90m` ago, `2026-11-24`, or `2026-11-24T10:00:00Z`. In microseconds since 1970.
///
/// # Errors
/// If it is none of these.
pub fn since(text: &str) -> Result<u64, NotATime> {
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now_micros().saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)));
    }
    let not_a_time = || NotATime(text.to_owned());
    let at = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")))
        .map_err(|_| not_a_time())?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| not_a_time())?;
    u64::try_from(since.as_micros()).map_err(|_| not_a_time())
}

/// Microseconds since 1970.
pub(super) fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// `2026-11-24T11:40:00.000000Z`.
pub(super) fn shown_time(micros: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(micros.min(LAST));
    humantime::format_rfc3339_micros(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_people_write_it() {
        assert_eq!(since("1970-01-02T00:00:01.5Z"), Ok(86_401_500_000));
        assert_eq!(since("1970-01-02"), Ok(86_400_000_000));
        assert_eq!(since(" 1970-01-02 00:00:00 "), Ok(86_400_000_000));
        let hour = now_micros() - since("1h").unwrap();
        assert!(hour.abs_diff(3_600_000_000) < 60_000_000, "{hour}");
        for wrong in ["", "yesterday", "10", "1969-12-31T00:00:00Z"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
        assert!(since("soon").unwrap_err().to_string().starts_with("\"soon\" is no time; write how long ago"));
    }
}
