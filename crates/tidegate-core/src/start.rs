//! Decides how a flow begins when its limit has just become known, so that a limit of a minute that is enforced by the second is
//! found out by a refusal or two, and not by all who wait.
//!
//! Counts nothing and holds nothing back: the cold start and who feeds a long job do.

use std::time::Duration;

/// So long is looked, once a limit is known, whether it is enforced by the second …
const LOOKS_FOR: Duration = Duration::from_secs(2);
/// … then the pace doubles so often …
const DOUBLES_EVERY: Duration = Duration::from_millis(250);
/// … up to so many times the limit's.
const TIMES_MAX: u32 = 3 << 10;

/// How much of a limit's flow may have gone so long after the limit became known, in time that it takes to flow.
///
/// Half as much again as flows in, for two seconds, which empties a second's window and tells that there is one by a refusal or
/// two; then twice as much every quarter of a second.
#[must_use]
pub fn worth_at_start(since: Duration) -> Duration {
    let looked = since.min(LOOKS_FOR);
    let (mut worth, mut left, mut times) = (looked * 3 / 2, since - looked, 3);
    while !left.is_zero() && times < TIMES_MAX {
        let step = left.min(DOUBLES_EVERY);
        (worth, left, times) = (worth + step * times, left - step, times * 2);
    }
    worth + left * times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_half_as_much_again_as_flows_in_and_doubles_each_quarter_of_a_second_from_the_second_second_on() {
        for (since, worth) in
            [(0, 0), (1000, 1500), (2000, 3000), (2250, 3750), (2500, 5250), (2625, 6750), (3000, 14_250)]
        {
            assert_eq!(worth_at_start(Duration::from_millis(since)), Duration::from_millis(worth), "{since}");
        }
    }

    #[test]
    fn a_second_s_window_is_empty_when_it_begins_to_double() {
        assert!(worth_at_start(LOOKS_FOR) >= LOOKS_FOR + Duration::from_secs(1));
    }

    #[test]
    fn a_whole_minute_has_gone_before_four_seconds_are_over() {
        assert!(worth_at_start(Duration::from_secs(4)) > Duration::from_secs(60));
        assert!(worth_at_start(Duration::from_secs(100_000)) > Duration::from_secs(100_000));
    }
}
