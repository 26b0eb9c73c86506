use super::*;

const SECOND: u64 = 1_000_000;

fn tpm(limit: u64) -> Upstream {
    Upstream::new(&Rules { tpm: Some(limit), ..Rules::default() }, 0)
}

/// What a bucket of this limit says to `requested` when `used` were just used.
fn refusal_after(limit: u64, used: u64, requested: u64) -> Refused {
    let mut upstream = tpm(limit);
    upstream.admit(0, Charge::of_tokens(used)).expect("fits an idle bucket");
    upstream.admit(0, Charge::of_tokens(requested)).expect_err("does not fit")
}

#[test]
fn waits_are_the_documented_ones() {
    for (limit, used, requested, micros) in
        [(30_000, 29_937, 385, 644_000), (10_000, 8_554, 3_082, 9_816_000), (450_000, 379_102, 89_741, 2_512_400)]
    {
        let refused = refusal_after(limit, used, requested);
        assert_eq!((refused.limit, refused.used, refused.requested), (limit, used, requested));
        assert_eq!(refused.announced_micros, micros);
        assert_eq!(refused.dimension, Dimension::Tokens);
        assert!(!refused.too_large);
    }
}

#[test]
fn a_day_of_200_requests_gives_the_201st_a_wait_of_432_seconds() {
    let mut upstream = Upstream::new(&Rules { rpd: Some(200), ..Rules::default() }, 0);
    for _ in 0..200 {
        upstream.admit(0, Charge::of_tokens(1)).expect("within the day");
    }
    let refused = upstream.admit(0, Charge::of_tokens(1)).expect_err("the day is used up");
    assert_eq!((refused.used, refused.requested), (200, 1));
    assert_eq!(refused.announced_micros, 432 * SECOND);
    assert_eq!(refused.dimension, Dimension::RequestsDay);
}

#[test]
fn three_requests_a_minute_give_the_fourth_a_wait_of_twenty_seconds() {
    let mut upstream = Upstream::new(&Rules { rpm: Some(3), ..Rules::default() }, 0);
    for _ in 0..3 {
        upstream.admit(0, Charge::of_tokens(1)).expect("within the minute");
    }
    assert_eq!(upstream.admit(0, Charge::of_tokens(1)).expect_err("used up").announced_micros, 20 * SECOND);
}

#[test]
fn the_exact_wait_suffices_and_one_microsecond_less_does_not() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..2_000 {
        let limit = rng.u64(1..100_000);
        let (first, second) = (rng.u64(0..=limit), rng.u64(1..=limit));
        let start = rng.u64(0..10 * SECOND);
        let mut early = Upstream::new(&Rules { tpm: Some(limit), initial_fill: rng.f64(), ..Rules::default() }, 0);
        let _ = early.admit(start, Charge::of_tokens(first));
        let Err(refused) = early.admit(start, Charge::of_tokens(second)) else { continue };
        let at = start + refused.wait_micros;
        assert!(early.admit(at - 1, Charge::of_tokens(second)).is_err(), "limit {limit}, {first} then {second}");
        assert!(early.admit(at, Charge::of_tokens(second)).is_ok(), "limit {limit}, {first} then {second}");
    }
}

#[test]
fn what_is_above_the_limit_is_too_large_and_takes_no_tokens() {
    let mut upstream = tpm(30_000);
    let refused = upstream.admit(0, Charge::of_tokens(31_538)).expect_err("too large");
    assert!(refused.too_large);
    assert_eq!((refused.limit, refused.requested, refused.wait_micros), (30_000, 31_538, 0));
    assert_eq!(upstream.look(0).tokens.expect("limited").remaining, 30_000);
}

#[test]
fn a_refusal_takes_no_tokens_but_costs_a_request_when_refusals_count() {
    for (refused_count, left) in [(true, 8), (false, 9)] {
        let rules = Rules { rpm: Some(10), tpm: Some(100), refused_count, ..Rules::default() };
        let mut upstream = Upstream::new(&rules, 0);
        upstream.admit(0, Charge::of_tokens(60)).expect("fits");
        assert!(upstream.admit(0, Charge::of_tokens(60)).is_err(), "tokens are short");
        let remaining = upstream.look(0);
        assert_eq!(remaining.requests.expect("limited").remaining, left);
        assert_eq!(remaining.tokens.expect("limited").remaining, 40);
    }
}

#[test]
fn hammering_keeps_the_bucket_empty_but_digs_no_hole() {
    let mut upstream = Upstream::new(&Rules { rpm: Some(60), initial_fill: 0.0, ..Rules::default() }, 0);
    for i in 1..=100 {
        assert!(upstream.admit(i * SECOND / 2, Charge::of_tokens(0)).is_err());
    }
    assert!(upstream.admit(51 * SECOND, Charge::of_tokens(0)).is_ok());
}

#[test]
fn reset_is_the_time_to_full() {
    let mut upstream = Upstream::new(&Rules { rpd: Some(10_000), tpm: Some(30_000), ..Rules::default() }, 0);
    let left = upstream.admit(0, Charge::of_tokens(15_000)).expect("fits");
    assert_eq!(
        left.requests_day,
        Some(Gauge { limit: 10_000, remaining: 9_999, reset_micros: 8_640_000 }),
        "8.64s, as measured"
    );
    assert_eq!(left.tokens.expect("limited").reset_micros, 30 * SECOND);
    assert_eq!(left.requests, None);
}

#[test]
fn a_burst_inside_one_quantum_fails_though_the_minute_has_room() {
    let rules = Rules { rpm: Some(600), quantum_micros: Some(SECOND), refused_count: false, ..Rules::default() };
    let mut upstream = Upstream::new(&rules, 0);
    let admitted = (0..600).filter(|_| upstream.admit(0, Charge::of_tokens(0)).is_ok()).count();
    assert_eq!(admitted, 10);
    assert!(upstream.look(0).requests.expect("limited").remaining > 0);
    assert!(upstream.admit(SECOND / 10, Charge::of_tokens(0)).is_ok(), "a tenth of a second later one fits again");
}

#[test]
fn what_a_full_quantum_could_not_hold_is_lost_though_the_minute_has_room() {
    let rules = Rules { rpm: Some(600), quantum_micros: Some(SECOND), ..Rules::default() };
    let mut upstream = Upstream::new(&rules, 0);
    for _ in 0..10 {
        upstream.admit(0, Charge::of_tokens(0)).expect("a second's worth");
    }
    assert_eq!(upstream.levels(SECOND)["requests"].lost, 0.0);
    assert_eq!(upstream.levels(3 * SECOND)["requests"].lost, 20.0);
}

#[test]
fn a_charge_above_the_quantum_goes_when_the_quantum_is_full_and_is_paid_back() {
    let rules = Rules { tpm: Some(6_000), quantum_micros: Some(SECOND), ..Rules::default() };
    let mut upstream = Upstream::new(&rules, 0);
    assert!(upstream.admit(0, Charge::of_tokens(500)).is_ok());
    let refused = upstream.admit(0, Charge::of_tokens(100)).expect_err("in debt");
    assert_eq!(refused.wait_micros, 5 * SECOND);
    assert_eq!(refused.announced_micros, 5 * SECOND);
}

#[test]
fn a_debit_is_debt_that_has_to_refill() {
    let mut upstream = tpm(6_000);
    upstream.admit(0, Charge::of_tokens(6_000)).expect("fits");
    upstream.debit(0, 3_000);
    let refused = upstream.admit(0, Charge::of_tokens(100)).expect_err("in debt");
    assert_eq!(refused.used, 9_000);
    assert_eq!(refused.wait_micros, 31 * SECOND);
    assert_eq!(upstream.look(0).tokens.expect("limited").remaining, 0);
}

#[test]
fn nothing_goes_over_the_limit_whatever_comes() {
    let mut rng = fastrand::Rng::with_seed(5);
    let rules = Rules { rpm: Some(120), tpm: Some(9_000), initial_fill: 0.3, refused_count: false, ..Rules::default() };
    let mut upstream = Upstream::new(&rules, 0);
    let (mut now, mut tokens, mut calls) = (0, 0_u64, 0_u64);
    for _ in 0..50_000 {
        now += rng.u64(0..200_000);
        let charge = Charge::of_tokens(rng.u64(0..400));
        if upstream.admit(now, charge).is_ok() {
            tokens += charge.tokens;
            calls += 1;
        }
    }
    let minutes = now as f64 / MINUTE_MICROS as f64;
    assert!(tokens as f64 <= 9_000.0 * (0.3 + minutes));
    assert!(calls as f64 <= 120.0 * (0.3 + minutes));
    assert!(tokens as f64 >= 9_000.0 * minutes * 0.9, "most of the refill was used");
}

#[test]
fn a_reload_keeps_levels_and_cuts_them_to_the_new_limit() {
    let mut upstream = tpm(10_000);
    upstream.admit(0, Charge::of_tokens(2_000)).expect("fits");
    upstream.reload(&Rules { tpm: Some(5_000), ..Rules::default() }, 0);
    assert_eq!(upstream.look(0).tokens.expect("limited").remaining, 5_000);
    upstream.reload(&Rules { tpm: Some(20_000), ..Rules::default() }, 0);
    assert_eq!(upstream.look(0).tokens.expect("limited").remaining, 5_000);
}

#[test]
fn time_may_go_backwards_without_making_credit() {
    let mut upstream = tpm(60);
    upstream.admit(10 * SECOND, Charge::of_tokens(60)).expect("fits");
    assert!(upstream.admit(0, Charge::of_tokens(1)).is_err());
    assert!(upstream.admit(10 * SECOND, Charge::of_tokens(1)).is_err());
    assert!(upstream.admit(11 * SECOND, Charge::of_tokens(1)).is_ok());
}

#[test]
fn tenants_take_their_share_and_the_same_under_the_same_seed() {
    let taken = |seed| {
        let tenant = Tenant {
            calls_per_minute: 200.0,
            charge: Charge::of_tokens(200),
            from_micros: 60 * SECOND,
            until_micros: 660 * SECOND,
        };
        let rules = Rules { tpm: Some(100_000), ..Rules::default() };
        let mut upstream = Upstream::new(&rules, 0).with_tenants(&[tenant], seed);
        let early = upstream.levels(60 * SECOND)["tokens"].tenants;
        (early, upstream.levels(3_600 * SECOND)["tokens"].tenants)
    };
    let (early, all) = taken(1);
    assert_eq!(early, 0);
    assert!((360_000..440_000).contains(&all), "{all} of about 400000");
    assert_eq!(taken(1), taken(1));
    assert_ne!(taken(1), taken(2));
}
