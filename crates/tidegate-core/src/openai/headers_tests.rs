use proptest::prelude::*;

use super::*;
use Dimension::{ImagesPerMinute, RequestsPerDay, RequestsPerMinute, TokensPerDay, TokensPerMinute};

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn limits(headers: &[(&str, &str)]) -> Vec<(Dimension, u64, Option<u64>)> {
    server_limits(headers).0.iter().map(|limit| (limit.dimension, limit.limit, limit.remaining)).collect()
}

/// A family of `x-ratelimit-*` headers.
fn family<'v>(name: &str, limit: &'v str, remaining: &'v str, reset: &'v str) -> [(&'static str, &'v str); 3] {
    match name {
        "requests" => [
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
        ],
        "tokens" => [
            ("x-ratelimit-limit-tokens", limit),
            ("x-ratelimit-remaining-tokens", remaining),
            ("x-ratelimit-reset-tokens", reset),
        ],
        other => panic!("no such family in these tests: {other}"),
    }
}

#[test]
fn the_usual_headers_speak_of_a_minute() {
    let headers = [family("requests", "5000", "4999", "12ms"), family("tokens", "450000", "449975", "3ms")].concat();
    assert_eq!(limits(&headers), [(RequestsPerMinute, 5_000, Some(4_999)), (TokensPerMinute, 450_000, Some(449_975))]);
}

#[test]
fn requests_are_per_day_when_the_reset_time_says_so() {
    for (limit, remaining, reset) in [
        ("10000", "9999", "8.64s"),
        ("200", "197", "20m52.666s"),
        ("200", "0", "24h0m0s"),
        ("14400", "14370", "2m59.56s"),
        ("10000", "10000", "1.2s"),
    ] {
        let expected = [(RequestsPerDay, limit.parse().unwrap(), Some(remaining.parse().unwrap()))];
        assert_eq!(limits(&family("requests", limit, remaining, reset)), expected, "{limit} {remaining} {reset}");
    }
}

#[test]
fn requests_are_per_minute_when_the_reset_time_says_so_or_says_nothing() {
    for (limit, remaining, reset) in
        [("10000", "9999", "6ms"), ("3", "2", "20s"), ("3", "0", "1m0s"), ("500", "500", "0s"), ("500", "499", "junk")]
    {
        let expected = [(RequestsPerMinute, limit.parse().unwrap(), Some(remaining.parse().unwrap()))];
        assert_eq!(limits(&family("requests", limit, remaining, reset)), expected, "{limit} {remaining} {reset}");
    }
}

#[test]
fn tokens_are_per_day_only_when_the_numbers_fit_a_day() {
    assert_eq!(limits(&family("tokens", "200000", "100000", "12h0m0s")), [(TokensPerDay, 200_000, Some(100_000))]);
    // As in Groq's documentation; it is a limit per minute.
    assert_eq!(limits(&family("tokens", "18000", "17997", "7.66s")), [(TokensPerMinute, 18_000, Some(17_997))]);
}

#[test]
fn of_organization_project_and_usage_based_tokens_the_tighter_counts() {
    let headers = [
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-tokens", "1999000"),
        ("x-ratelimit-limit-project-tokens", "100000"),
        ("x-ratelimit-remaining-project-tokens", "90000"),
        ("x-ratelimit-limit-tokens_usage_based", "500000"),
        ("x-ratelimit-remaining-tokens_usage_based", "80000"),
        ("x-ratelimit-limit-input-images", "4000"),
        ("x-ratelimit-remaining-input-images", "3999"),
    ];
    assert_eq!(limits(&headers), [(TokensPerMinute, 100_000, Some(80_000)), (ImagesPerMinute, 4_000, Some(3_999))]);
}

#[test]
fn azures_bare_resets_are_resolved_by_the_renewal_period() {
    let mut headers = family("requests", "120", "119", "500").to_vec();
    assert_eq!(limits(&headers), [(RequestsPerMinute, 120, Some(119))], "milliseconds, no period told");
    headers.push(("x-ratelimit-renewalperiod-requests", "60"));
    assert_eq!(limits(&headers), [(RequestsPerMinute, 120, Some(119))]);
    headers.pop();
    headers.push(("x-ratelimit-renewalperiod-requests", "86400"));
    assert_eq!(limits(&headers), [(RequestsPerDay, 120, Some(119))]);
    assert_eq!(limits(&family("requests", "5", "4", "12")), [(RequestsPerMinute, 5, Some(4))]);
    assert_eq!(limits(&family("requests", "100", "99", "864")), [(RequestsPerDay, 100, Some(99))]);
    // An instant since 1970, in seconds or milliseconds, says nothing of the period.
    assert_eq!(limits(&family("requests", "100", "99", "1800000060")), [(RequestsPerMinute, 100, Some(99))]);
}

#[test]
fn other_providers_name_the_period_themselves() {
    let cerebras = [
        ("x-ratelimit-limit-requests-day", "14400"),
        ("x-ratelimit-remaining-requests-day", "14399"),
        ("x-ratelimit-reset-requests-day", "33011.382867"),
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-tokens-minute", "59950.5"),
    ];
    assert_eq!(limits(&cerebras), [(RequestsPerDay, 14_400, Some(14_399)), (TokensPerMinute, 60_000, Some(59_950))]);
    let anthropic = [
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "2026-11-23T21:00:00Z"),
        ("anthropic-ratelimit-tokens-limit", "40000"),
        ("anthropic-ratelimit-input-tokens-limit", "30000"),
    ];
    assert_eq!(limits(&anthropic), [(RequestsPerMinute, 50, Some(49)), (TokensPerMinute, 30_000, None)]);
    // What is left without the limit it is left of is of no use.
    assert_eq!(limits(&[("x-ratelimit-remaining-tokens-minute", "500000")]), []);
}

#[test]
fn nonsense_is_ignored_a_dimension_at_a_time() {
    let good = family("tokens", "1000", "900", "6s");
    for (limit, remaining) in [
        ("-1", "0"),
        ("0", "-1"),
        ("-1", "-1"),
        ("0", "0"),
        ("100", "101"),
        ("100", "-5"),
        ("100", "abc"),
        ("1000000000001", "1"),
        ("99999999999999999999999", "1"),
        ("1e3", "1"),
        ("", ""),
        ("10,000", "1"),
    ] {
        let headers = [family("requests", limit, remaining, "1s"), good].concat();
        assert_eq!(limits(&headers), [(TokensPerMinute, 1_000, Some(900))], "{limit} {remaining}");
    }
    assert_eq!(limits(&[]), []);
}

#[test]
fn milliseconds_come_before_seconds_unless_they_are_zero() {
    let both = [("retry-after", "20"), ("retry-after-ms", "1500.25")];
    assert_eq!(requested_wait(&both, NOW), Some(Duration::from_micros(1_500_250)));
    // Azure.
    let zero = [("retry-after-ms", "0"), ("retry-after", "1")];
    assert_eq!(requested_wait(&zero, NOW), Some(Duration::from_secs(1)));
    let junk = [("retry-after-ms", "soon"), ("Retry-After", "2.5")];
    assert_eq!(requested_wait(&junk, NOW), Some(Duration::from_millis(2_500)));
}

#[test]
fn a_date_is_a_wait_until_it_has_passed() {
    let ahead = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(90));
    assert_eq!(requested_wait(&[("retry-after", ahead.as_str())], NOW), Some(Duration::from_secs(90)));
    let later = NOW + Duration::from_millis(500);
    assert_eq!(requested_wait(&[("retry-after", ahead.as_str())], later), Some(Duration::from_millis(89_500)));
    let past = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + NOW - Duration::from_secs(1));
    assert_eq!(requested_wait(&[("retry-after", past.as_str())], NOW), None);
    assert_eq!(requested_wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], NOW), None);
}

#[test]
fn waits_are_never_zero_and_never_beyond_the_ceiling() {
    for text in ["0", "0.0", "-1", "-0", "NaN", "inf", "", "soon"] {
        assert_eq!(requested_wait(&[("retry-after", text)], NOW), None, "{text}");
    }
    assert_eq!(requested_wait(&[("retry-after", "0.0000001")], NOW), Some(Duration::from_micros(1)));
    let hours_114 = Duration::from_secs(114 * 3_600 + 18 * 60);
    assert_eq!(requested_wait(&[("retry-after", "411480")], NOW), Some(hours_114));
    for text in ["99999999", "18446744073709551615", "Fri, 31 Dec 9999 23:59:59 GMT"] {
        assert_eq!(requested_wait(&[("retry-after", text)], NOW), Some(MAX_WAIT), "{text}");
    }
    assert_eq!(requested_wait(&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Duration::MAX), None);
}

#[test]
fn only_true_and_false_say_whether_to_retry() {
    for (text, expected) in
        [("true", Some(true)), ("false", Some(false)), (" False", Some(false)), ("1", None), ("", None)]
    {
        assert_eq!(should_retry(&[("x-should-retry", text)]), expected, "{text}");
    }
    assert_eq!(should_retry(&[]), None);
}

proptest! {
    #[test]
    fn no_header_value_panics(limit in ".*", remaining in "[0-9.-]{0,30}", reset in "[0-9.hms]{0,30}", after in ".{0,40}") {
        let mut headers = family("requests", &limit, &remaining, &reset).to_vec();
        headers.extend([("retry-after", after.as_str()), ("retry-after-ms", &reset), ("x-should-retry", &limit)]);
        let _ = (server_limits(headers.as_slice()), requested_wait(headers.as_slice(), NOW), should_retry(headers.as_slice()));
    }

    #[test]
    fn the_period_is_found_from_any_state_of_the_bucket(limit in 1_u64..1_000_000, share in 0.0_f64..1.0, day: bool) {
        let period_micros: u64 = if day { 86_400_000_000 } else { 60_000_000 };
        let used = ((limit as f64 * share) as u64).max(1);
        let reset = format!("{}us", u128::from(period_micros) * u128::from(used) / u128::from(limit));
        let remaining = (limit - used).to_string();
        let limit_text = limit.to_string();
        let found = server_limits(family("requests", &limit_text, &remaining, &reset).as_slice());
        prop_assert_eq!(found.0[0].dimension, if day { RequestsPerDay } else { RequestsPerMinute });
    }
}
