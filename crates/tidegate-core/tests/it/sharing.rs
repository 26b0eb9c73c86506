//! Levels that are shared with other processes: credit, cool-downs, overrides.

use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{LevelSource, Policy};
use tidegate_core::gate::{LevelKey, Overrides};
use tidegate_core::limit::{Dimension, Limit, Scope};
use tidegate_core::refusal::Reason;
use tidegate_core::time::{Time, Wait};

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

fn shared(limits: Vec<Limit>) -> Bench {
    Bench::new(Policy { level_source: LevelSource::Credit, ..policy(limits) })
}

/// The only want of the demand made last.
fn wanted(bench: &Bench) -> (LevelKey, u64) {
    bench.demands.last().expect("something was demanded").wants[0].clone()
}

fn credit(bench: &mut Bench, level: &LevelKey, amount: u64, seconds: u64) {
    let expires_at = bench.now + Duration::from_secs(seconds);
    assert!(bench.gate.credit(level, amount, expires_at, bench.now));
    bench.drain();
}

#[test]
fn a_call_on_a_shared_level_waits_for_credit_and_goes_when_it_comes() {
    let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
    let ticket = bench.admit(call("ada", 100));
    assert!(!bench.is_granted(ticket));
    let (level, units) = wanted(&bench);
    assert_eq!((&*level.level, level.dimension, units), ("team", TPM, 100));
    credit(&mut bench, &level, 250, 5);
    assert!(bench.is_granted(ticket));
    // What is left over serves the next one without asking.
    let next = bench.admit(call("ada", 100));
    assert!(bench.is_granted(next));
    assert_eq!(bench.demands.len(), 1);
}

#[test]
fn those_that_wait_behind_are_asked_for_together() {
    let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
    let tickets: Vec<_> = (0..5).map(|_| bench.admit(call("ada", 100))).collect();
    let (level, units) = wanted(&bench);
    assert_eq!(units, 500);
    credit(&mut bench, &level, 500, 5);
    assert!(tickets.iter().all(|ticket| bench.is_granted(*ticket)));
}

#[test]
fn what_has_lapsed_is_not_spent() {
    let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
    bench.admit(call("ada", 100));
    let (level, _) = wanted(&bench);
    credit(&mut bench, &level, 500, 5);
    bench.run_for(Duration::from_secs(5));
    let late = bench.admit(call("ada", 100));
    assert!(!bench.is_granted(late));
    assert_eq!(bench.demands.len(), 2);
}

#[test]
fn a_refused_demand_is_made_again_after_its_wait_and_one_that_nobody_answers_too() {
    let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
    let ticket = bench.admit(call("ada", 100));
    let (level, _) = wanted(&bench);
    assert!(bench.gate.credit_refused(&level, Wait::from_micros(3_000_000), bench.now));
    bench.run_for(Duration::from_millis(2999));
    assert_eq!(bench.demands.len(), 1);
    bench.run_for(Duration::from_millis(1));
    assert_eq!(bench.demands.len(), 2);
    bench.run_for(Duration::from_secs(1));
    assert_eq!(bench.demands.len(), 3, "nobody answered for a second");
    credit(&mut bench, &level, 100, 5);
    assert!(bench.is_granted(ticket));
}

#[test]
fn a_refund_goes_into_the_credit_that_it_came_from() {
    let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
    let ticket = bench.admit(call("ada", 100));
    let (level, _) = wanted(&bench);
    credit(&mut bench, &level, 100, 5);
    assert!(bench.is_granted(ticket));
    bench.succeed(ticket, 40);
    assert_eq!(bench.remaining("team", TPM), 60);
    bench.run_for(Duration::from_secs(5));
    assert_eq!(bench.remaining("team", TPM), 0);
}

#[test]
fn a_cooldown_told_by_another_process_holds_until_the_latest_instant() {
    let mut bench = Bench::with_limits(vec![bucket("account", &[Scope::Account], &[(RPM, 600)])]);
    let now = bench.now;
    let until = |seconds| now + Duration::from_secs(seconds);
    assert!(!bench.gate.cooldown("openai#1", "gpt-4o", until(9), now), "nothing was sent there yet");
    let first = bench.admit(call("ada", 1));
    bench.succeed(first, 1);
    assert!(bench.gate.cooldown("openai#1", "gpt-4o", until(9), now));
    assert!(bench.gate.cooldown("openai#1", "gpt-4o", until(3), now));
    let held = bench.admit(call("ada", 1));
    bench.run_for(Duration::from_millis(8999));
    assert!(!bench.is_granted(held));
    bench.run_for(Duration::from_secs(2));
    assert!(bench.is_granted(held));
}

#[test]
fn an_override_is_in_force_until_a_newer_one() {
    let mut bench = Bench::with_limits(vec![]);
    let first = bench.admit(call("ada", 1));
    bench.succeed(first, 1);
    let overrides = |version, paused: Option<&str>, state: Option<BreakerState>| Overrides {
        version,
        paused: paused.map(Into::into),
        breakers: state.map(|state| ("openai/gpt-4o".into(), state)).into_iter().collect(),
        boosts: Vec::new(),
    };
    let now = bench.now;
    assert!(bench.gate.override_with(overrides(2, Some("maintenance"), None), now));
    assert!(!bench.gate.override_with(overrides(1, None, None), now), "older");
    let paused = bench.admit(call("ada", 1));
    assert!(matches!(bench.refusal(paused).unwrap().reason, Reason::Paused { .. }));
    assert!(bench.gate.override_with(overrides(3, None, Some(BreakerState::ForcedOpen)), now));
    let open = bench.admit(call("ada", 1));
    assert!(matches!(bench.refusal(open).unwrap().reason, Reason::Breaker(_)));
    assert!(bench.gate.override_with(overrides(4, None, None), now));
    let goes = bench.admit(call("ada", 1));
    assert!(bench.is_granted(goes));
}

proptest! {
    #[test]
    fn whatever_is_left_or_granted_was_credited_and_has_not_lapsed(
        steps in proptest::collection::vec((0_u8..3, 1_u64..300, 0_u64..3_000_000), 1..150),
    ) {
        let mut bench = shared(vec![bucket("team", &[], &[(TPM, 1000)])]);
        // (lapses at, units): everything that was credited; and the units of each call, in the order of their arrival.
        let mut credited: Vec<(Time, u64)> = Vec::new();
        let mut asked = Vec::new();
        let mut answered = 0;
        for (what, units, micros) in steps {
            match what {
                0 => {
                    let ticket = bench.admit(call("ada", units));
                    asked.push((ticket, units));
                }
                1 => {
                    if let Some(demand) = bench.demands[answered..].last().cloned() {
                        answered = bench.demands.len();
                        let (level, wanted) = demand.wants[0].clone();
                        let amount = wanted.min(units);
                        credit(&mut bench, &level, amount, 2);
                        credited.push((bench.now + Duration::from_secs(2), amount));
                    }
                }
                _ => bench.run_for(Duration::from_micros(micros)),
            }
            let given: u64 = credited.iter().map(|(_, units)| units).sum();
            let live: u64 = credited.iter().filter(|(at, _)| *at > bench.now).map(|(_, units)| units).sum();
            let spent: u64 = asked.iter().filter(|(ticket, _)| bench.is_granted(*ticket)).map(|(_, units)| units).sum();
            let level = bench.find_remaining("team", TPM).unwrap_or(0);
            prop_assert!(level >= 0 && level.unsigned_abs() <= live, "{} left of {}", level, live);
            prop_assert!(spent + level.unsigned_abs() <= given, "{} spent of {}", spent, given);
        }
    }
}
