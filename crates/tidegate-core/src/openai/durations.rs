//! Decides how durations in headers and messages are read: `9ms`, `8.64s`, `1m6.779s`, `114h18m0s`, `26 seconds`.
//!
//! Integers all the way: no float gets the chance to round a wait down.

use std::time::Duration;

const NANOS_PER_SEC: u128 = 1_000_000_000;
/// Digits of a fraction that are looked at; what follows only rounds up.
const FRACTION_DIGITS: usize = 18;

/// Reads a duration as Go prints it: numbers with a unit each (`h`, `m`, `s`, `ms`, `us`, `µs`, `ns`), fractions allowed.
///
/// A bare number is in seconds; days (`d`) and spelled-out units (`26 seconds`) are understood too, as other providers
/// send them. Fractions of a nanosecond round up. `None` for anything else: signs, text, what does not fit a `Duration`.
/// Source: rate-limits guide; recorded replies have `9ms`, `0s`, `8.64s`, `1m6.779s`, `20m52.666s`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| !(c.is_ascii_digit() || c == '.'));
        let after = after.trim_start();
        let (unit, after) = split_where(after, |c| !c.is_alphabetic());
        let unit_nanos = match unit {
            // Only the whole text may be bare: in `1m30` the end of the last number is missing.
            "" if parts == 0 && after.is_empty() => NANOS_PER_SEC,
            unit => unit_nanos(unit)?,
        };
        nanos = nanos.checked_add(scaled(number, unit_nanos)?)?;
        parts += 1;
        rest = after.trim_start();
    }
    from_nanos(nanos)
}

/// `number`, a decimal without sign or exponent, times `unit`, rounded up. `None` if it is no such number or does not fit.
pub(super) fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let (looked_at, beyond) = fraction.split_at(fraction.len().min(FRACTION_DIGITS));
    let denominator = 10_u128.pow(u32::try_from(looked_at.len()).ok()?);
    let mut numerator: u128 = if looked_at.is_empty() { 0 } else { looked_at.parse().ok()? };
    let mut part = numerator.checked_mul(unit)?.div_ceil(denominator);
    if part == 0 && beyond.bytes().any(|byte| byte != b'0') {
        numerator += 1;
        part = numerator.checked_mul(unit)?.div_ceil(denominator);
    }
    whole.checked_mul(unit)?.checked_add(part)
}

/// `None` where it does not fit.
pub(super) fn from_nanos(nanos: u128) -> Option<Duration> {
    let seconds = u64::try_from(nanos / NANOS_PER_SEC).ok()?;
    let rest = u32::try_from(nanos % NANOS_PER_SEC).ok()?;
    Some(Duration::new(seconds, rest))
}

/// The unit that `word` names, in nanoseconds.
fn unit_nanos(word: &str) -> Option<u128> {
    Some(match word {
        "ns" => 1,
        // The micro sign and the Greek letter look alike; Go prints the first and reads both.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => NANOS_PER_SEC,
        "m" | "min" | "mins" | "minute" | "minutes" => 60 * NANOS_PER_SEC,
        "h" | "hour" | "hours" => 3_600 * NANOS_PER_SEC,
        "d" | "day" | "days" => 86_400 * NANOS_PER_SEC,
        _ => return None,
    })
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_documented_and_recorded_form_is_read() {
        for (text, micros) in [
            ("0s", 0),
            ("1s", 1_000_000),
            ("6m0s", 360_000_000),
            ("9ms", 9_000),
            ("8.64s", 8_640_000),
            ("1m6.779s", 66_779_000),
            ("20m52.666s", 1_252_666_000),
            ("2m59.56s", 179_560_000),
            ("114h18m0s", 411_480_000_000),
            ("7m12s", 432_000_000),
            ("1.5ms", 1_500),
            ("250us", 250),
            ("250\u{b5}s", 250),
            ("250\u{3bc}s", 250),
            ("12", 12_000_000),
            ("0.25", 250_000),
            (" 20s ", 20_000_000),
            ("26 seconds", 26_000_000),
            ("1d", 86_400_000_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_duration() {
        for text in ["", " ", "-1s", "+1s", "s", "1x", ".", "1.2.3s", "1m30", "1e3s", "NaN", "inf", "１s", "1s-"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for text in ["99999999999999999999h", "999999999999999999999999999999999999999999s", "18446744073709551616s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn less_than_a_nanosecond_is_not_nothing() {
        assert_eq!(parse_duration("0.0000000001s"), Some(Duration::from_nanos(1)));
        assert_eq!(parse_duration("0.0000000000000000000000001s"), Some(Duration::from_nanos(1)));
        assert_eq!(parse_duration("0.0000000000000000000000000s"), Some(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn what_go_would_print_is_read_back(hours in 0_u64..10_000, minutes in 0_u64..60, millis in 0_u64..60_000) {
            let text = format!("{hours}h{minutes}m{}.{:03}s", millis / 1_000, millis % 1_000);
            let expected = Duration::from_millis(hours * 3_600_000 + minutes * 60_000 + millis);
            prop_assert_eq!(parse_duration(&text), Some(expected));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", near in "[0-9.hmsuµn -]{0,40}") {
            let _ = parse_duration(&text);
            let _ = parse_duration(&near);
        }
    }
}
