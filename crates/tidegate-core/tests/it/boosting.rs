//! Limits that an operator raises for a while, and levels that he sets back to full.

use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::breaker::BreakerState;
use tidegate_core::call::Call;
use tidegate_core::event::{Event, Interest};
use tidegate_core::gate::{Boost, Gate, Output, Overrides};
use tidegate_core::limit::{Dimension, Limit, Scope};
use tidegate_core::time::Time;

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const RPD: Dimension = Dimension::RequestsPerDay;

fn boost(limit: &str, permille: u32, until: Time) -> Boost {
    Boost { limit: limit.into(), permille, matching: Vec::new(), until }
}

fn apply(bench: &mut Bench, version: u64, boosts: Vec<Boost>) {
    let overrides = Overrides { version, boosts, ..Overrides::default() };
    assert!(bench.gate.override_with(overrides, bench.now));
    bench.drain();
}

/// How many of `count` calls of `user` that cannot wait go now.
fn go_now(bench: &mut Bench, user: &str, count: u64) -> usize {
    let before = bench.granted.len();
    for _ in 0..count {
        bench.admit(Call { start_by: bench.now, ..call(user, 1) });
    }
    bench.granted.len() - before
}

fn both(per: &[Scope]) -> [Limit; 2] {
    [bucket("team", per, &[(RPM, 10)]), limit("team", per, &[(RPM, 10)])]
}

#[test]
fn a_boosted_limit_allows_so_much_more_and_then_what_it_did_before() {
    for team in both(&[]) {
        let mut bench = Bench::with_limits(vec![team]);
        assert_eq!(go_now(&mut bench, "ada", 100), 10);
        let until = bench.now + Duration::from_secs(600);
        apply(&mut bench, 1, vec![boost("team", 1500, until)]);
        assert_eq!(go_now(&mut bench, "ada", 100), 5, "at once, beside what was used");
        bench.run_for(Duration::from_secs(200));
        assert_eq!(go_now(&mut bench, "ada", 100), 15);
        bench.run_until(until);
        bench.run_for(Duration::from_secs(100));
        assert_eq!(go_now(&mut bench, "ada", 100), 10);
    }
}

#[test]
fn a_level_says_what_a_boost_selects_it_by_whatever_its_names_are() {
    let per = [Scope::Account, Scope::Model, Scope::User];
    let mut bench = Bench::with_limits(vec![bucket("team|a", &per, &[(RPM, 10)])]);
    for (version, user) in (1..).zip(["a/b", "a/bc", "a|user=b", "100%7c%", "-"]) {
        go_now(&mut bench, user, 10);
        let told = bench.gate.status(bench.now).limits;
        let [level] = &told.iter().filter(|level| level.matching["user"] == user).collect::<Vec<_>>()[..] else {
            panic!("{told:?}");
        };
        assert!(level.matching["account"].ends_with("#*"), "a credential's fingerprint is for nobody to see");
        let matching = level.matching.iter().map(|(scope, name)| (Scope::parse(scope).unwrap(), name.as_str().into()));
        let only = Boost { matching: matching.collect(), ..boost("team|a", 2000, bench.now + Duration::from_secs(60)) };
        apply(&mut bench, version, vec![only]);
        let raised = bench.gate.status(bench.now).limits.into_iter().filter(|level| level.boost.is_some());
        assert_eq!(raised.map(|level| level.matching["user"].clone()).collect::<Vec<_>>(), [user]);
    }
}

#[test]
fn who_waits_goes_when_the_limit_is_raised() {
    for team in both(&[]) {
        let mut bench = Bench::with_limits(vec![team]);
        go_now(&mut bench, "ada", 10);
        let waits = bench.admit(call("ada", 1));
        assert!(!bench.is_granted(waits));
        let until = bench.now + Duration::from_secs(600);
        apply(&mut bench, 1, vec![boost("team", 2000, until)]);
        assert!(bench.is_granted(waits));
    }
}

#[test]
fn a_boost_ends_at_its_instant_and_is_told_of_then_whoever_looks() {
    let mut bench = Bench::with_limits(vec![limit("team", &[], &[(RPM, 10)])]);
    bench.gate.listen(Interest::Notable);
    go_now(&mut bench, "ada", 1);
    let until = bench.now + Duration::from_secs(600);
    apply(&mut bench, 1, vec![boost("team", 2000, until)]);
    assert_eq!(bench.gate.wake_at().map(|at| at.max(until)), Some(until), "it wakes for it");
    let told = |gate: &mut Gate| {
        std::iter::from_fn(|| gate.poll_output())
            .filter(|output| matches!(output, Output::Event(event) if matches!(**event, Event::BoostEnded { .. })))
            .count()
    };
    let level = |gate: &mut Gate, now| {
        let level = gate.status(now).limits[0].clone();
        (level.meters[0].limit, level.boost.map(|boost| (boost.factor, boost.ends_in_seconds)))
    };
    let just_before = Time::from_micros(until.as_micros() - 1);
    assert_eq!(level(&mut bench.gate, just_before), (20, Some((2.0, 0.000_001))));
    assert_eq!(told(&mut bench.gate), 0);
    assert_eq!(level(&mut bench.gate, until), (10, None));
    assert_eq!(told(&mut bench.gate), 1);
}

#[test]
fn of_two_boosts_each_ends_at_its_own_instant_though_nobody_calls() {
    let mut bench = Bench::with_limits(vec![limit("a", &[], &[(RPM, 10)]), limit("b", &[], &[(RPM, 10)])]);
    go_now(&mut bench, "ada", 1);
    let (first, second) = (bench.now + Duration::from_secs(100), bench.now + Duration::from_secs(200));
    apply(&mut bench, 1, vec![boost("b", 2000, second)]);
    apply(&mut bench, 2, vec![boost("b", 2000, second), boost("a", 2000, first)]);
    bench.gate.listen(Interest::Notable);
    for (until, ended) in [(first, "a"), (second, "b")] {
        while let Some(at) = bench.gate.wake_at().filter(|at| *at <= until) {
            bench.gate.advance(at);
        }
        let told: Vec<_> = std::iter::from_fn(|| bench.gate.poll_output()).collect();
        let is_end = |output: &Output| matches!(output, Output::Event(event) if matches!(&**event, Event::BoostEnded { limit } if &**limit == ended));
        assert_eq!(told.iter().filter(|output| is_end(output)).count(), 1, "{told:?}");
    }
}

#[test]
fn a_level_that_nobody_uses_any_more_is_lowered_too() {
    let mut bench = Bench::with_limits(vec![limit("each", &[Scope::User], &[(RPD, 100)])]);
    let until = bench.now + Duration::from_secs(3600);
    apply(&mut bench, 1, vec![boost("each", 1500, until)]);
    go_now(&mut bench, "ada", 1);
    bench.run_for(Duration::from_secs(120));
    // Others' calls bring along that her route is forgotten; her day's level is not.
    go_now(&mut bench, "bob", 10);
    bench.run_until(until);
    let status = bench.gate.status(bench.now);
    assert_eq!(status.limits.iter().map(|level| level.meters[0].limit).collect::<Vec<_>>(), [100, 100]);
    assert!(status.limits.iter().all(|level| level.boost.is_none()));
}

#[test]
fn only_the_levels_that_match_are_raised_and_of_several_boosts_the_strongest_counts() {
    let mut bench = Bench::with_limits(vec![limit("each", &[Scope::User, Scope::Model], &[(RPM, 10)])]);
    let until = bench.now + Duration::from_secs(600);
    let for_user = |user: &str, permille| Boost {
        matching: vec![(Scope::User, user.into()), (Scope::Model, "gpt-4*".into())],
        ..boost("each", permille, until)
    };
    // No level belongs to an organization: such a boost selects none.
    let foreign = Boost { matching: vec![(Scope::Organization, "".into())], ..boost("each", 9000, until) };
    apply(&mut bench, 1, vec![for_user("ada", 2000), for_user("a*", 1200), foreign, boost("other", 9000, until)]);
    assert_eq!(go_now(&mut bench, "ada", 100), 20);
    assert_eq!(go_now(&mut bench, "abe", 100), 12);
    assert_eq!(go_now(&mut bench, "bob", 100), 10);
}

#[test]
fn a_boost_lifts_nothing_that_the_upstream_told() {
    use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
    use tidegate_core::outcome::{ServerLimit, ServerLimits};
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: TokenCharge::Input };
    let limits = vec![bucket("account", &[Scope::Account], &[(RPM, 10)])];
    let mut bench = Bench::new(Policy { limits, upstreams: vec![upstream], ..Policy::default() });
    let first = bench.admit(call("ada", 1));
    let told = ServerLimits([ServerLimit { dimension: RPM, limit: 20, remaining: Some(19) }].into_iter().collect());
    bench.gate.observe(first, &told, bench.now);
    bench.succeed(first, 1);
    let until = bench.now + Duration::from_secs(600);
    apply(&mut bench, 1, vec![boost("account", 10_000, until)]);
    let went = go_now(&mut bench, "ada", 200);
    assert!((10..20).contains(&went), "{went}");
}

#[test]
fn a_breaker_that_is_not_there_yet_is_held_as_soon_as_it_is() {
    let mut bench = Bench::with_limits(vec![]);
    let held = |version, state: Option<BreakerState>| Overrides {
        version,
        breakers: state.map(|state| ("openai/gpt-4o".into(), state)).into_iter().collect(),
        ..Overrides::default()
    };
    bench.gate.override_with(held(1, Some(BreakerState::ForcedOpen)), bench.now);
    let shown = bench.gate.status(bench.now).breakers;
    assert_eq!((&*shown[0].name, shown[0].state), ("openai/gpt-4o", "forced_open"));
    assert_eq!(go_now(&mut bench, "ada", 1), 0);
    assert_eq!(bench.gate.status(bench.now).breakers.len(), 1);
    // Set by hand meanwhile, it is no longer held: letting go of it changes nothing.
    bench.gate.force_breaker("openai/gpt-4o", BreakerState::HalfOpen, bench.now);
    bench.gate.override_with(held(2, None), bench.now);
    assert_eq!(bench.gate.status(bench.now).breakers[0].state, "half_open");
}

#[test]
fn one_limit_is_set_back_to_full_and_the_others_are_not() {
    let limits = || vec![limit("a", &[Scope::User], &[(RPM, 10)]), limit("ab", &[Scope::User], &[(RPD, 10)])];
    let mut bench = Bench::with_limits(limits());
    go_now(&mut bench, "ada", 4);
    go_now(&mut bench, "bob", 4);
    assert!(!bench.gate.reset_limit("b", bench.now), "there is none");
    assert!(bench.gate.reset_limit("a", bench.now));
    assert_eq!((bench.remaining("a", RPM), bench.remaining("ab", RPD)), (10, 6));
    // Nor does a restart bring back what was forgotten, or forget what was not.
    let kept = bench.gate.snapshot(true, bench.now);
    let mut again = Bench::with_limits(limits());
    again.now = bench.now;
    again.gate.restore(kept);
    assert!(again.gate.reset_limit("ab", again.now));
    go_now(&mut again, "ada", 1);
    assert_eq!((again.remaining("a", RPM), again.remaining("ab", RPD)), (9, 9));
}

proptest! {
    #[test]
    fn whatever_was_raised_and_when_never_more_than_it_allowed_goes_in_any_minute(
        gaps in proptest::collection::vec(0_u64..5_000_000, 1..60),
        boosts in proptest::collection::vec((0_u64..240, 1_u64..120, 1001_u32..4000), 0..4),
    ) {
        let mut bench = Bench::with_limits(vec![limit("team", &[], &[(RPM, 20)])]);
        let start = bench.now;
        for number in 0..2000 {
            bench.admit(call(&format!("u{}", number % 7), 1));
        }
        let mut boosts: Vec<(Time, Boost)> = boosts
            .into_iter()
            .map(|(from, lasting, permille)| {
                let from = start + Duration::from_secs(from);
                (from, boost("team", permille, from + Duration::from_secs(lasting)))
            })
            .collect();
        boosts.sort_by_key(|(from, _)| *from);
        let mut stops: Vec<Time> = Vec::new();
        for gap in gaps {
            stops.push(stops.last().copied().unwrap_or(start) + Duration::from_micros(gap));
        }
        stops.extend(boosts.iter().map(|(from, _)| *from));
        stops.sort();
        stops.push(start + Duration::from_secs(600));
        let mut version = 0;
        for stop in stops {
            bench.run_until(stop);
            let now = bench.now;
            let in_force: Vec<Boost> =
                boosts.iter().filter(|(from, boost)| *from <= now && now < boost.until).map(|(_, boost)| boost.clone()).collect();
            version += 1;
            apply(&mut bench, version, in_force);
        }
        let most = |at: Time| {
            let strongest = boosts.iter().filter(|(from, boost)| *from <= at && at < boost.until).map(|(_, boost)| boost.permille);
            20 * u64::from(strongest.max().unwrap_or(1000)) / 1000
        };
        let times: Vec<Time> = bench.granted.iter().map(|(at, _)| *at).collect();
        for (last, at) in times.iter().enumerate() {
            // What went in the minute that ends with this one, this one included.
            let within = times[..=last].iter().filter(|other| at.micros_since(**other) < 60_000_000).count() as u64;
            prop_assert!(within <= most(*at), "{within} within a minute, of {} at {at:?}", most(*at));
        }
        // And afterwards as much as ever: nobody waits for ever. Where all of a minute goes at once, one of two may have just passed.
        let later = times.iter().filter(|at| **at >= start + Duration::from_secs(480)).count();
        prop_assert!(later >= 20, "{later} in the last two minutes");
    }
}
