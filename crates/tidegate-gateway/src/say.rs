//! Decides how durations are written for people and in headers: as OpenAI writes them, never early.

use std::fmt;
use std::time::Duration;

/// `473ms`, `2.5s`, `7m12s`, `114h18m0s`: rounded up to milliseconds below a minute, to seconds above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken(pub(crate) Duration);

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = millis_up(self.0);
        if millis == 0 {
            return f.write_str("0s");
        }
        if millis < 1000 {
            return write!(f, "{millis}ms");
        }
        if millis < 60_000 {
            let (seconds, rest) = (millis / 1000, millis % 1000);
            return match rest {
                0 => write!(f, "{seconds}s"),
                rest if rest % 100 == 0 => write!(f, "{seconds}.{}s", rest / 100),
                rest if rest % 10 == 0 => write!(f, "{seconds}.{:02}s", rest / 10),
                rest => write!(f, "{seconds}.{rest:03}s"),
            };
        }
        let seconds = seconds_up(self.0);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 { write!(f, "{hours}h{minutes}m{seconds}s") } else { write!(f, "{minutes}m{seconds}s") }
    }
}

/// Whole milliseconds, rounded up.
pub(crate) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whole seconds, rounded up.
pub(crate) fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_openai_writes_them_and_are_never_early() {
        for (micros, text) in [
            (0, "0s"),
            (1, "1ms"),
            (472_001, "473ms"),
            (999_999, "1s"),
            (2_500_000, "2.5s"),
            (9_816_000, "9.816s"),
            (8_640_000, "8.64s"),
            (59_999_001, "1m0s"),
            (432_000_000, "7m12s"),
            (411_480_000_000, "114h18m0s"),
        ] {
            assert_eq!(Spoken(Duration::from_micros(micros)).to_string(), text);
        }
    }
}
