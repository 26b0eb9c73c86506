//! One call against its limits.

use std::time::Duration;

use tidegate_core::call::RequestType;
use tidegate_core::fault::FaultKind;
use tidegate_core::limit::{Algorithm, Dimension, Limit, Mode, Override, Rates, Scope};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Reason;
use tidegate_core::time::Time;

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

#[test]
fn a_call_takes_from_every_limit_or_from_none() {
    let mut bench = Bench::with_limits(vec![
        bucket("wide", &[], &[(RPM, 100), (TPM, 1000)]),
        bucket("narrow", &[Scope::User], &[(TPM, 50)]),
    ]);
    let first = bench.admit(call("ada", 50));
    assert!(bench.is_granted(first));
    let second = bench.admit(call("ada", 50));
    assert!(!bench.is_granted(second));
    assert_eq!(bench.remaining("wide", TPM), 950, "the second call has taken nothing while it waits");
    assert_eq!(bench.remaining("wide", RPM), 99);
}

#[test]
fn a_waiter_goes_at_the_very_microsecond_its_cost_fits() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 60)])]);
    let started = bench.now;
    bench.admit(call("ada", 60));
    let second = bench.admit(call("ada", 7));
    bench.run_for(Duration::from_micros(6_999_999));
    assert!(!bench.is_granted(second));
    bench.run_for(Duration::from_micros(1));
    assert_eq!(bench.granted[1], (started + Duration::from_secs(7), second));
}

#[test]
fn what_can_never_fit_is_refused_at_once_with_the_numbers() {
    let mut bench = Bench::with_limits(vec![limit("team", &[], &[(TPM, 10_000)])]);
    let ticket = bench.admit(call("ada", 15_000));
    let Reason::TooLarge(report) = &bench.refusal(ticket).unwrap().reason else { panic!() };
    assert_eq!((report.allowed, report.requested, &*report.limit), (10_000, 15_000, "team"));
    assert_eq!(report.path(), "team/tokens_per_minute");
    assert_eq!(bench.refusal(ticket).unwrap().retry_after, None);
}

#[test]
fn a_call_that_cannot_make_its_deadline_is_refused_at_once_with_the_true_wait() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 60)])]);
    bench.admit(call("ada", 60));
    let mut hurried = call("ada", 30);
    hurried.start_by = bench.now + Duration::from_secs(10);
    let ticket = bench.admit(hurried);
    let refusal = bench.refusal(ticket).unwrap().clone();
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(30)));
    assert_eq!(refusal.waited, Duration::ZERO);
    bench.run_for(Duration::from_secs(30));
    let mut again = call("ada", 30);
    again.start_by = bench.now;
    let ticket = bench.admit(again);
    assert!(bench.is_granted(ticket), "who comes back when told to goes at once");
}

#[test]
fn a_refusal_burns_nothing() {
    let mut bench = Bench::with_limits(vec![bucket("wide", &[], &[(RPM, 100)]), bucket("narrow", &[], &[(TPM, 60)])]);
    bench.admit(call("ada", 60));
    for _ in 0..50 {
        let mut hurried = call("ada", 30);
        hurried.start_by = bench.now;
        bench.admit(hurried);
    }
    assert_eq!(bench.refused.len(), 50);
    assert_eq!(bench.remaining("wide", RPM), 99);
}

#[test]
fn unused_estimate_comes_back_when_the_call_settles() {
    let mut bench = Bench::with_limits(vec![limit("team", &[], &[(TPM, 1000)])]);
    let ticket = bench.admit(call("ada", 900));
    assert_eq!(bench.remaining("team", TPM), 100);
    bench.succeed(ticket, 200);
    assert_eq!(bench.remaining("team", TPM), 800);
}

#[test]
fn use_beyond_the_estimate_becomes_debt_that_admits_nothing_until_it_has_refilled() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 60)])]);
    let ticket = bench.admit(call("ada", 30));
    bench.succeed(ticket, 100);
    assert_eq!(bench.remaining("team", TPM), -40);
    let next = bench.admit(call("ada", 1));
    bench.run_for(Duration::from_secs(40));
    assert!(!bench.is_granted(next));
    bench.run_for(Duration::from_secs(1));
    assert!(bench.is_granted(next));
}

#[test]
fn an_attempt_is_settled_once_however_often_it_is_told() {
    let mut bench = Bench::with_limits(vec![limit("team", &[], &[(TPM, 1000)])]);
    let ticket = bench.admit(call("ada", 900));
    for _ in 0..5 {
        bench.succeed(ticket, 200);
        bench.gate.cancel(ticket, bench.now);
    }
    assert_eq!(bench.remaining("team", TPM), 800);
    assert_eq!(bench.gate.in_flight(), 0);
}

#[test]
fn dropped_before_sending_gives_all_back_and_after_sending_nothing_unless_seen() {
    let limits = || vec![limit("team", &[], &[(RPM, 10), (TPM, 1000)])];
    let mut bench = Bench::with_limits(limits());
    let ticket = bench.admit(call("ada", 900));
    bench.gate.cancel(ticket, bench.now);
    assert_eq!((bench.remaining("team", RPM), bench.remaining("team", TPM)), (10, 1000));

    let ticket = bench.admit(call("ada", 900));
    bench.gate.sent(ticket);
    bench.gate.cancel(ticket, bench.now);
    assert_eq!((bench.remaining("team", RPM), bench.remaining("team", TPM)), (9, 100));

    let mut bench = Bench::with_limits(limits());
    let ticket = bench.admit(call("ada", 900));
    bench.settle(ticket, &Outcome { usage: success(300).usage, ..Outcome::of(Ending::Cancelled) });
    assert_eq!(bench.remaining("team", TPM), 700);
}

#[test]
fn callers_without_a_user_share_one_level() {
    let mut bench = Bench::with_limits(vec![limit("each_user", &[Scope::User], &[(RPM, 1)])]);
    let mut nobody = call("", 1);
    nobody.subject.user = None;
    nobody.start_by = bench.now;
    let first = bench.admit(nobody.clone());
    let second = bench.admit(nobody);
    assert!(bench.is_granted(first));
    assert!(bench.refusal(second).is_some(), "leaving the user out is no way round");
}

#[test]
fn of_overrides_organizations_replace_the_base_and_users_and_models_take_the_lowest() {
    let with =
        |scope, pattern: &str, rpm| Override { scope, pattern: pattern.into(), rates: Rates::default().with(RPM, rpm) };
    let rule = Limit {
        overrides: vec![
            with(Scope::Organization, "acme", 1000),
            with(Scope::User, "ada", 50),
            with(Scope::Model, "gpt-4o*", 200),
            with(Scope::Model, "gpt-4o-mini", 30),
        ],
        ..limit("l", &[Scope::Organization, Scope::User, Scope::Model], &[(RPM, 10), (TPM, 7)])
    };
    let rate = |organization: Option<&str>, user: &str, model: &str| {
        let mut subject = call(user, 1).subject;
        subject.organization = organization.map(Into::into);
        subject.model = model.into();
        rule.rates_for(&subject).allowance(RPM)
    };
    let units = |units| Rates::default().with(RPM, units).allowance(RPM);
    assert_eq!(rate(None, "bob", "o3"), units(10));
    assert_eq!(rate(Some("acme"), "bob", "o3"), units(1000));
    assert_eq!(rate(Some("acme"), "ada", "o3"), units(50));
    assert_eq!(rate(None, "ada", "gpt-4o"), units(50));
    assert_eq!(rate(None, "bob", "gpt-4o-2"), units(200));
    assert_eq!(rate(None, "ada", "gpt-4o-mini"), units(30));
    assert_eq!(rule.rates_for(&call("x", 1).subject).allowance(TPM), Rates::default().with(TPM, 7).allowance(TPM));
}

#[test]
fn every_dimension_binds() {
    for (dimension, units) in [
        (RPM, 3),
        (TPM, 30),
        (Dimension::RequestsPerDay, 3),
        (Dimension::TokensPerDay, 30),
        (Dimension::ImagesPerMinute, 6),
        (Dimension::MaxInFlight, 3),
    ] {
        let mut bench = Bench::with_limits(vec![limit("one", &[Scope::RequestType], &[(dimension, units)])]);
        for _ in 0..4 {
            let mut image = call("ada", 10);
            image.cost.images = 2;
            image.subject.request_type = RequestType::Image;
            bench.admit(image);
        }
        assert_eq!(bench.granted.len(), 3, "{dimension:?}");
    }
}

#[test]
fn a_blocked_dimension_lets_nothing_through() {
    let mut bench = Bench::with_limits(vec![limit("none", &[], &[(RPM, 0)])]);
    let ticket = bench.admit(call("ada", 1));
    assert!(matches!(bench.refusal(ticket).unwrap().reason, Reason::TooLarge(_)));
}

#[test]
fn shadow_mode_counts_what_it_would_have_held_and_holds_nothing() {
    let shadow = Limit { mode: Mode::Shadow, ..limit("trial", &[], &[(RPM, 3)]) };
    let mut bench = Bench::with_limits(vec![shadow]);
    for _ in 0..10 {
        bench.admit(call("ada", 1));
    }
    assert_eq!(bench.granted.len(), 10);
    let status = bench.gate.status(bench.now);
    assert_eq!(status.limits[0].meters[0].would_hold, 7);
    assert_eq!(status.limits[0].mode, "shadow");
}

#[test]
fn several_answers_at_once_are_expected_to_be_as_long_as_as_many_calls() {
    let mut bench = Bench::with_limits(vec![limit("own", &[], &[(TPM, 100_000)])]);
    let asking = |choices| {
        let mut asking = call("ada", 100);
        (asking.cost.max_output_tokens, asking.cost.choices) = (None, choices);
        asking
    };
    for _ in 0..20 {
        let ticket = bench.admit(asking(4));
        let usage = Some(tidegate_core::cost::Usage { input_tokens: 100, output_tokens: 4 * 500 });
        bench.settle(ticket, &Outcome { usage, ..success(0) });
    }
    bench.run_for(Duration::from_secs(120));
    bench.admit(asking(3));
    assert_eq!(bench.remaining("own", TPM), 100_000 - 100 - 3 * 500);
    bench.admit(asking(0));
    assert_eq!(bench.remaining("own", TPM), 100_000 - 100 - 3 * 500 - 600);
}

#[test]
fn idle_levels_are_forgotten() {
    let mut bench = Bench::with_limits(vec![bucket("each", &[Scope::User], &[(RPM, 60)])]);
    for user in 0..5000 {
        let ticket = bench.admit(call(&format!("user-{user}"), 1));
        bench.succeed(ticket, 1);
        bench.run_for(Duration::from_millis(100));
    }
    let levels = bench.gate.status(bench.now).limits.len();
    assert!(levels < 2000, "{levels} levels are kept of 5000");
}

#[test]
fn what_a_shadow_limit_would_have_held_is_counted_on_when_levels_are_forgotten() {
    let shadow = Limit { mode: Mode::Shadow, ..bucket("trial", &[Scope::User], &[(RPM, 60), (TPM, 1)]) };
    let mut bench = Bench::with_limits(vec![shadow]);
    let mut counted = 0;
    for user in 0..3000 {
        let ticket = bench.admit(call(&format!("user-{user}"), 2));
        bench.succeed(ticket, 2);
        bench.run_for(Duration::from_millis(100));
        let now = bench.gate.shadow_held()["trial"];
        assert!(now > counted, "{now} after {counted}");
        counted = now;
    }
    assert_eq!(counted, 3000);
    assert!(bench.gate.status(bench.now).limits.len() < 2000, "none was forgotten");
}

#[test]
fn a_clock_that_jumps_back_gives_no_credit_and_does_no_harm() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 60)])]);
    bench.admit(call("ada", 60));
    let waiting = bench.admit(call("ada", 10));
    bench.gate.advance(Time::ZERO);
    bench.gate.advance(Time::from_secs(5));
    bench.drain();
    assert!(!bench.is_granted(waiting));
    bench.run_for(Duration::from_secs(10));
    assert!(bench.is_granted(waiting));
}

#[test]
fn reload_keeps_what_was_used() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 100)])]);
    bench.admit(call("ada", 100));
    let waiting = bench.admit(call("ada", 60));
    bench.gate.reload(policy(vec![bucket("team", &[], &[(TPM, 150)])]), bench.now);
    bench.drain();
    assert_eq!(bench.remaining("team", TPM), 50, "raised, it adds the room and resets nothing");
    assert!(!bench.is_granted(waiting));
    bench.gate.reload(policy(vec![bucket("team", &[], &[(TPM, 160)])]), bench.now);
    bench.drain();
    assert!(bench.is_granted(waiting), "the room that a reload makes is given to those who wait");
}

#[test]
fn a_limit_that_a_reload_removes_holds_nobody_up_any_longer() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(Dimension::MaxInFlight, 1)])]);
    bench.admit(call("ada", 1));
    let waiting = bench.admit(call("ada", 1));
    bench.gate.reload(policy(Vec::new()), bench.now);
    bench.drain();
    assert!(bench.is_granted(waiting));
}

#[test]
fn own_levels_tell_the_tightest_limit() {
    let mut bench = Bench::with_limits(vec![
        limit("wide", &[], &[(RPM, 1000), (TPM, 1000)]),
        limit("narrow", &[Scope::User], &[(RPM, 10)]),
    ]);
    let ticket = bench.admit(call("ada", 100));
    let own = bench.gate.own_levels(ticket, bench.now).unwrap();
    assert_eq!(own.requests, Some((10, 9, 6_000_000)));
    assert_eq!(own.tokens, Some((1000, 900, 6_000_000)));
}

#[test]
fn use_beyond_the_estimate_is_owed_however_long_nobody_looked() {
    for algorithm in [Algorithm::TokenBucket, Algorithm::SlidingWindow] {
        let rule = Limit { algorithm: Some(algorithm), ..limit("own", &[], &[(TPM, 6000)]) };
        let mut bench = Bench::with_limits(vec![rule]);
        let ticket = bench.admit(call("ada", 100));
        bench.now = bench.now + Duration::from_secs(90);
        bench.succeed(ticket, 6000);
        let remaining = bench.remaining("own", TPM);
        assert!(remaining <= 100, "{algorithm:?} {remaining}");
    }
}

#[test]
fn a_usage_that_no_call_can_have_is_not_believed() {
    let mut bench = Bench::with_limits(vec![limit("own", &[], &[(TPM, 6000)])]);
    let ticket = bench.admit(call("ada", 100));
    bench.succeed(ticket, u64::MAX);
    assert_eq!(bench.remaining("own", TPM), 5900, "what was reserved is charged");
    bench.run_for(Duration::from_secs(100));
    assert_eq!(bench.remaining("own", TPM), 6000);
}

#[test]
fn a_reload_that_takes_a_dimension_from_a_mirror_does_no_harm() {
    let mirror = |dimensions: &[(Dimension, u64)]| policy(vec![bucket("account", &[Scope::Account], dimensions)]);
    let mut bench = Bench::new(mirror(&[(RPM, 100), (TPM, 1000)]));
    bench.admit(call("ada", 10));
    bench.gate.reload(mirror(&[(RPM, 100)]), bench.now);
    bench.run_for(Duration::from_secs(1));
    let ticket = bench.admit(call("ada", 100_000));
    assert!(bench.is_granted(ticket));
}

#[test]
fn a_request_is_charged_once_also_when_a_later_attempt_never_reached_the_upstream() {
    let mut bench = Bench::with_limits(vec![limit("own", &[], &[(Dimension::RequestsPerDay, 10)])]);
    let ticket = bench.admit(call("ada", 1));
    for (kind, status) in [(FaultKind::Server, 500), (FaultKind::Connect, 0)] {
        bench.settle(ticket, &failed(kind, status));
        bench.run_for(Duration::from_secs(60));
    }
    assert_eq!(bench.granted.len(), 3);
    bench.succeed(ticket, 1);
    assert_eq!(bench.remaining("own", Dimension::RequestsPerDay), 9);
}

#[test]
fn a_decision_on_a_call_that_need_not_wait_allocates_nothing() {
    let mut bench = Bench::with_limits(vec![
        bucket("account", &[Scope::Account], &[(RPM, 100_000), (TPM, 10_000_000)]),
        limit("each", &[Scope::User], &[(RPM, 100_000), (TPM, 10_000_000)]),
    ]);
    let (made, outcome) = (call("ada", 10), success(7));
    let one = |bench: &mut Bench| {
        let ticket = bench.gate.admit(&made, bench.now);
        assert!(matches!(bench.gate.poll_output(), Some(tidegate_core::gate::Output::Granted { .. })));
        bench.gate.sent(ticket);
        let _ = bench.gate.settle(ticket, &outcome, bench.now);
    };
    // The first calls of a caller make its levels.
    (0..10).for_each(|_| one(&mut bench));
    let made = allocation_counter::measure(|| (0..1000).for_each(|_| one(&mut bench)));
    assert_eq!(made.count_total, 0);
}
