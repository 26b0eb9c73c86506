//! OpenAI's words: durations, messages and error objects, as its API writes them.
//!
//! Decides nothing; the examples in the tests were seen in the wild.

use serde_json::{Value, json};

use crate::limiter::Refused;
use crate::scenario::RefusalMessage;

const MORE: &str = "Visit https://platform.openai.com/account/rate-limits to learn more.";

/// A duration as Go prints it, to the nearest millisecond: `0s`, `9ms`, `8.64s`, `1m6.779s`, `114h18m0s`.
pub(crate) fn go_duration(micros: u64) -> String {
    let millis = micros.saturating_add(500) / 1_000;
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, fraction) = (millis / 1_000 % 60, millis % 1_000);
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    text.push_str(&seconds.to_string());
    if fraction > 0 {
        text.push_str(format!(".{fraction:03}").trim_end_matches('0'));
    }
    text.push('s');
    text
}

/// The message of a 429 from the limiter. `model` is what was asked for, `group` the limit that it shares.
pub(crate) fn rate_limit_message(
    model: &str,
    group: &str,
    organization: &str,
    refused: &Refused,
    tells: RefusalMessage,
) -> String {
    let name = if model == group { model.to_owned() } else { format!("{model} (for limit {group})") };
    let (words, limit, used, requested) = (refused.dimension.words(), refused.limit, refused.used, refused.requested);
    if refused.too_large {
        return format!(
            "Request too large for {name} in organization {organization} on {words}: Limit {limit}, Requested \
             {requested}. The input or output tokens must be reduced in order to run successfully. {MORE}"
        );
    }
    let reached = format!("Rate limit reached for {name} in organization {organization}");
    let numbers = || format!("{reached} on {words}: Limit {limit}, Used {used}, Requested {requested}");
    match tells {
        RefusalMessage::Wait => {
            format!("{}. Please try again in {}. {MORE}", numbers(), go_duration(refused.announced_micros))
        }
        RefusalMessage::Numbers => format!("{}. {MORE}", numbers()),
        RefusalMessage::Nothing => format!("{reached}. {MORE}"),
    }
}

/// OpenAI's error object. `param` and `code` may be absent: then they are null.
pub(crate) fn error_object(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Charge, Rules, Upstream};

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (micros, text) in [
            (0, "0s"),
            (400, "0s"),
            (9_000, "9ms"),
            (644_000, "644ms"),
            (999_600, "1s"),
            (1_000_000, "1s"),
            (8_640_000, "8.64s"),
            (9_816_000, "9.816s"),
            (20_000_000, "20s"),
            (66_779_000, "1m6.779s"),
            (360_000_000, "6m0s"),
            (432_000_000, "7m12s"),
            (1_252_666_000, "20m52.666s"),
            (411_480_000_000, "114h18m0s"),
        ] {
            assert_eq!(go_duration(micros), text);
        }
    }

    fn refusal(limit: u64, used: u64, requested: u64) -> Refused {
        let mut upstream = Upstream::new(&Rules { tpm: Some(limit), ..Rules::default() }, 0);
        upstream.admit(0, Charge::of_tokens(used)).expect("fits an idle bucket");
        upstream.admit(0, Charge::of_tokens(requested)).expect_err("does not fit")
    }

    #[test]
    fn a_refusal_says_limit_use_request_and_wait() {
        assert_eq!(
            rate_limit_message("gpt-4o", "gpt-4o", "org-sim", &refusal(30_000, 29_937, 385), RefusalMessage::Wait),
            "Rate limit reached for gpt-4o in organization org-sim on tokens per min (TPM): Limit 30000, Used 29937, \
             Requested 385. Please try again in 644ms. Visit https://platform.openai.com/account/rate-limits to learn \
             more."
        );
        let seen =
            rate_limit_message("gpt-4o", "gpt-4o", "o", &refusal(450_000, 379_102, 89_741), RefusalMessage::Wait);
        assert!(seen.contains("Please try again in 2.512s."), "{seen}");
    }

    #[test]
    fn a_refusal_may_keep_the_wait_and_the_numbers_to_itself() {
        let message = |tells| rate_limit_message("gpt-4o", "gpt-4o", "org-sim", &refusal(30_000, 29_937, 385), tells);
        let reached = "Rate limit reached for gpt-4o in organization org-sim";
        assert_eq!(
            message(RefusalMessage::Numbers),
            format!("{reached} on tokens per min (TPM): Limit 30000, Used 29937, Requested 385. {MORE}")
        );
        assert_eq!(message(RefusalMessage::Nothing), format!("{reached}. {MORE}"));
    }

    #[test]
    fn a_snapshot_names_the_limit_that_it_shares() {
        let message = rate_limit_message(
            "gpt-4.1-2025-04-14",
            "gpt-4.1",
            "o",
            &refusal(30_000, 29_937, 385),
            RefusalMessage::Wait,
        );
        assert!(message.starts_with("Rate limit reached for gpt-4.1-2025-04-14 (for limit gpt-4.1) in"), "{message}");
    }

    #[test]
    fn what_can_never_fit_is_told_so_with_the_numbers() {
        let message =
            rate_limit_message("gpt-4o", "gpt-4o", "org-sim", &refusal(30_000, 0, 31_538), RefusalMessage::Wait);
        assert_eq!(
            message,
            "Request too large for gpt-4o in organization org-sim on tokens per min (TPM): Limit 30000, Requested \
             31538. The input or output tokens must be reduced in order to run successfully. Visit \
             https://platform.openai.com/account/rate-limits to learn more."
        );
    }
}
