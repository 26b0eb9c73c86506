//! What survives a restart.

use std::time::Duration;

use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::Usage;
use tidegate_core::fault::{Fault, FaultKind, LimitNumbers};
use tidegate_core::gate::{Snapshot, SnapshotError};
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::outcome::{Ending, Outcome, ServerLimit, ServerLimits};

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const RPD: Dimension = Dimension::RequestsPerDay;

fn restarted(mut before: Bench, clean: bool, after: Duration, policy: Policy) -> Bench {
    let kept = before.gate.snapshot(clean, before.now).to_json().unwrap();
    let mut bench = Bench::new(policy);
    bench.now = before.now + after;
    bench.gate.restore(Snapshot::from_json(&kept).unwrap());
    bench
}

fn limits() -> Vec<tidegate_core::limit::Limit> {
    vec![limit("own", &[Scope::User], &[(RPM, 100), (RPD, 1000)])]
}

#[test]
fn own_levels_and_day_levels_survive_an_orderly_restart() {
    let mut bench = Bench::with_limits(limits());
    for _ in 0..60 {
        bench.admit(call("ada", 1));
    }
    let mut bench = restarted(bench, true, Duration::from_secs(1), policy(limits()));
    bench.admit(call("ada", 1));
    assert_eq!(bench.remaining("own", RPM), 39);
    assert_eq!(bench.remaining("own", RPD), 939);
}

#[test]
fn after_a_crash_a_minutes_level_starts_with_no_more_than_was_refilled_meanwhile() {
    let mut bench = Bench::with_limits(vec![bucket("own", &[], &[(RPM, 60), (RPD, 1000)])]);
    bench.admit(call("ada", 1));
    let mut bench =
        restarted(bench, false, Duration::from_secs(10), policy(vec![bucket("own", &[], &[(RPM, 60), (RPD, 1000)])]));
    bench.admit(call("ada", 1));
    assert_eq!(bench.remaining("own", RPM), 9);
    assert_eq!(bench.remaining("own", RPD), 998);
}

#[test]
fn after_a_crash_a_window_lets_nothing_through_until_its_minute_is_over() {
    let mut bench = Bench::with_limits(limits());
    bench.admit(call("ada", 1));
    let mut bench = restarted(bench, false, Duration::from_secs(10), policy(limits()));
    let ticket = bench.admit(call("ada", 1));
    assert!(!bench.is_granted(ticket));
    bench.run_for(Duration::from_secs(52));
    assert!(bench.is_granted(ticket));
}

#[test]
fn what_was_kept_of_somebody_who_has_not_called_since_survives_the_next_restart_too() {
    let mut bench = Bench::with_limits(limits());
    for _ in 0..100 {
        bench.admit(call("ada", 1));
    }
    let bench = restarted(bench, true, Duration::from_secs(1), policy(limits()));
    let mut bench = restarted(bench, true, Duration::from_secs(1), policy(limits()));
    bench.admit(call("ada", 1));
    assert_eq!(bench.remaining("own", RPD), 900);
}

fn learning() -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: TokenCharge::Learned };
    Policy { upstreams: vec![upstream], ..Policy::default() }
}

#[test]
fn what_was_learned_survives_with_its_level_and_its_age() {
    let mut bench = Bench::new(learning());
    let ticket = bench.admit(call("ada", 10));
    let told = ServerLimit { dimension: RPM, limit: 60, remaining: Some(5) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 10);
    bench.run_for(Duration::from_secs(40));
    let mut bench = restarted(bench, true, Duration::from_secs(3), learning());
    let shown = &bench.gate.status(bench.now).learned[0];
    assert_eq!((shown.name.as_str(), shown.limits[0].limit, shown.limits[0].remaining), ("openai/gpt-4o", 60, 48));
    bench.admit(call("ada", 10));
    let learned = &bench.gate.status(bench.now).learned[0];
    assert_eq!((learned.limits[0].limit, learned.limits[0].remaining), (60, 47));
    assert!((learned.limits[0].age_seconds - 43.0).abs() < 0.1, "{}", learned.limits[0].age_seconds);
    assert_eq!(learned.in_flight_cap, None, "what is known needs no cold start");
}

#[test]
fn a_pace_that_was_found_out_survives() {
    let mut bench = Bench::new(learning());
    let first = bench.admit(call("ada", 10));
    let told = ServerLimit { dimension: RPM, limit: 6000, remaining: Some(5999) };
    bench.gate.observe(first, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(first, 10);
    // There is room in the minute: a shorter window was full.
    let second = bench.admit(call("ada", 10));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.numbers = Some(LimitNumbers { dimension: Some(RPM), limit: 6000, used: Some(100), requested: Some(1) });
    bench.settle(second, &Outcome::of(Ending::Failed(fault)));
    let paced = |bench: &mut Bench| {
        let paced = &bench.gate.status(bench.now).learned[0].paced;
        paced.iter().map(|paced| (paced.dimension, paced.rate, paced.burst)).collect::<Vec<_>>()
    };
    assert_eq!(paced(&mut bench), [("requests_per_minute", 6000, 100)]);
    let mut bench = restarted(bench, true, Duration::from_secs(3), learning());
    assert_eq!(paced(&mut bench), [("requests_per_minute", 6000, 100)], "shown before anybody calls");
    bench.admit(call("ada", 10));
    assert_eq!(paced(&mut bench), [("requests_per_minute", 6000, 100)]);
}

#[test]
fn a_charge_rule_that_a_refusal_only_suggested_is_no_more_than_that_after_a_restart() {
    let refused_as = |bench: &mut Bench, requested: u64| {
        let mut asked = call("ada", 100);
        asked.cost.max_output_tokens = Some(400);
        let ticket = bench.admit(asked);
        let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
        let dimension = Some(Dimension::TokensPerMinute);
        fault.numbers = Some(LimitNumbers { dimension, limit: 60_000, used: Some(60_000), requested: Some(requested) });
        bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
        bench.gate.status(bench.now).learned[0].token_charge
    };
    let mut bench = Bench::new(learning());
    assert_eq!(refused_as(&mut bench, 500), Some("input_plus_max"));
    let mut bench = restarted(bench, true, Duration::from_secs(120), learning());
    assert_eq!(bench.gate.status(bench.now).learned[0].token_charge, Some("input_plus_max"));
    assert_eq!(refused_as(&mut bench, 100), Some("input"), "another refusal may suggest another");
}

#[test]
fn how_long_outputs_are_is_remembered() {
    let tokens = || vec![limit("own", &[], &[(Dimension::TokensPerMinute, 100_000)])];
    let unbounded = |tenant: &str| {
        let mut unbounded = call("ada", 100);
        unbounded.subject.tenant = tenant.into();
        unbounded.cost.max_output_tokens = None;
        unbounded
    };
    let mut bench = Bench::with_limits(tokens());
    for _ in 0..20 {
        for (tenant, output_tokens) in [("terse", 20), ("verbose", 900)] {
            let ticket = bench.admit(unbounded(tenant));
            let usage = Some(Usage { input_tokens: 100, output_tokens });
            bench.settle(ticket, &Outcome { usage, ..success(0) });
        }
    }
    let mut bench = restarted(bench, true, Duration::from_secs(120), policy(tokens()));
    bench.admit(unbounded("terse"));
    assert_eq!(bench.remaining("own", Dimension::TokensPerMinute), 100_000 - 120);
    bench.admit(unbounded("verbose"));
    assert_eq!(bench.remaining("own", Dimension::TokensPerMinute), 100_000 - 120 - 1000);
}

#[test]
fn a_state_of_another_form_is_refused_and_not_misread() {
    assert!(matches!(Snapshot::from_json(b"{"), Err(SnapshotError::Unreadable(_))));
    let other = br#"{"format":99,"taken_at_micros":0,"clean":true,"levels":[],"targets":[]}"#;
    assert_eq!(Snapshot::from_json(other).err(), Some(SnapshotError::Format(99)));
}

#[test]
fn after_a_crash_a_level_that_was_full_when_it_was_saved_does_not_start_full_again() {
    let limits = || vec![bucket("own", &[], &[(RPM, 60)])];
    let bench = Bench::with_limits(limits());
    let mut bench = restarted(bench, false, Duration::from_secs(5), policy(limits()));
    bench.admit(call("ada", 1));
    assert_eq!(bench.remaining("own", RPM), 4);
}
