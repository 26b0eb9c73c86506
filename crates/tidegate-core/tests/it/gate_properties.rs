//! Laws of the gate under random interleavings of everything that can happen to it.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_core::call::{Call, Priority, WhenOpen};
use tidegate_core::fault::FaultKind;
use tidegate_core::gate::{Boost, Overrides, Ticket};
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Next;

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

#[derive(Clone, Debug)]
enum Step {
    Admit { user: u8, tokens: u64, priority: u8, patience: Option<u64>, waits: bool },
    Succeed { which: usize, used: u64 },
    Fail { which: usize, kind: u8 },
    Leave { which: usize },
    Cancel { which: usize },
    Pass { micros: u64 },
    Reload { tokens: u64 },
    Boost { permille: u32, seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..5, 1_u64..400, 0_u8..3, proptest::option::of(0_u64..90), any::<bool>())
            .prop_map(|(user, tokens, priority, patience, waits)| Step::Admit { user, tokens, priority, patience, waits }),
        3 => (any::<usize>(), 0_u64..600).prop_map(|(which, used)| Step::Succeed { which, used }),
        2 => (any::<usize>(), 0_u8..6).prop_map(|(which, kind)| Step::Fail { which, kind }),
        1 => any::<usize>().prop_map(|which| Step::Leave { which }),
        1 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        3 => (0_u64..20_000_000).prop_map(|micros| Step::Pass { micros }),
        1 => (500_u64..2000).prop_map(|tokens| Step::Reload { tokens }),
        1 => (1000_u32..3000, 0_u64..120).prop_map(|(permille, seconds)| Step::Boost { permille, seconds }),
    ]
}

fn limits(tokens: u64) -> Vec<tidegate_core::limit::Limit> {
    vec![
        bucket("account", &[Scope::Account, Scope::Model], &[(RPM, 60), (TPM, tokens)]),
        limit("team", &[Scope::User], &[(RPM, 30), (TPM, 600)]),
        limit("slots", &[], &[(Dimension::MaxInFlight, 8)]),
    ]
}

const KINDS: [(FaultKind, u16); 6] = [
    (FaultKind::RateLimited, 429),
    (FaultKind::Server, 500),
    (FaultKind::Invalid, 400),
    (FaultKind::Timeout, 0),
    (FaultKind::Connect, 0),
    (FaultKind::QuotaExhausted, 429),
];

/// Every call that was admitted, and whether it still is one.
#[derive(Default)]
struct Calls {
    live: Vec<Ticket>,
    granted: HashMap<Ticket, u32>,
}

fn run(steps: Vec<Step>) -> (Bench, Calls) {
    let mut bench = Bench::with_limits(limits(1000));
    let mut calls = Calls::default();
    let mut overrides = Overrides::default();
    let mut seen_granted = 0;
    let mut seen_refused = 0;
    let mut take = |bench: &Bench, calls: &mut Calls| {
        for (_, ticket) in &bench.granted[seen_granted..] {
            calls.granted.insert(*ticket, 1);
        }
        for (_, ticket, _) in &bench.refused[seen_refused..] {
            calls.live.retain(|other| other != ticket);
            calls.granted.remove(ticket);
        }
        seen_granted = bench.granted.len();
        seen_refused = bench.refused.len();
    };
    for step in steps {
        match step {
            Step::Admit { user, tokens, priority, patience, waits } => {
                let mut made = call(&format!("user-{user}"), tokens);
                made.priority = Priority::ALL[usize::from(priority)];
                if let Some(seconds) = patience {
                    made.start_by = bench.now + Duration::from_secs(seconds);
                }
                made.when_open = if waits { WhenOpen::Wait } else { WhenOpen::Refuse };
                let ticket = bench.admit(made);
                calls.live.push(ticket);
            }
            Step::Succeed { which, used } => end(&mut bench, &mut calls, which, &success(used)),
            Step::Fail { which, kind } => {
                let (kind, status) = KINDS[usize::from(kind)];
                end(&mut bench, &mut calls, which, &failed(kind, status));
            }
            Step::Leave { which } => end(&mut bench, &mut calls, which, &Outcome::of(Ending::Cancelled)),
            Step::Cancel { which } => {
                if !calls.live.is_empty() {
                    let ticket = calls.live.swap_remove(which % calls.live.len());
                    calls.granted.remove(&ticket);
                    bench.gate.cancel(ticket, bench.now);
                    bench.drain();
                }
            }
            Step::Pass { micros } => bench.run_for(Duration::from_micros(micros)),
            Step::Reload { tokens } => {
                bench.gate.reload(policy(limits(tokens)), bench.now);
                bench.drain();
            }
            Step::Boost { permille, seconds } => {
                overrides.version += 1;
                let until = bench.now + Duration::from_secs(seconds);
                overrides.boosts.push(Boost { limit: "team".into(), permille, matching: Vec::new(), until });
                bench.gate.override_with(overrides.clone(), bench.now);
                bench.drain();
            }
        }
        take(&bench, &mut calls);
        assert!(bench.gate.in_flight() <= 8, "more in flight than the limit allows");
    }
    (bench, calls)
}

fn end(bench: &mut Bench, calls: &mut Calls, which: usize, outcome: &Outcome) {
    let mut granted: Vec<Ticket> = calls.granted.keys().copied().collect();
    granted.sort();
    if granted.is_empty() {
        return;
    }
    let ticket = granted[which % granted.len()];
    calls.granted.remove(&ticket);
    if !matches!(bench.settle(ticket, outcome), Next::Retry { .. }) {
        calls.live.retain(|other| *other != ticket);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_leaked_and_everybody_gets_an_answer(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut bench, mut calls) = run(steps);
        // Everything under way ends well; whoever waits goes, one after the other, for as long as it takes.
        for _ in 0..2000 {
            let granted: Vec<Ticket> = calls.granted.drain().map(|(ticket, _)| ticket).collect();
            let before = (bench.granted.len(), bench.refused.len());
            for ticket in granted {
                bench.settle(ticket, &success(1));
                calls.live.retain(|other| *other != ticket);
            }
            if calls.live.is_empty() {
                break;
            }
            bench.run_for(Duration::from_secs(1));
            for (_, ticket) in &bench.granted[before.0..] {
                calls.granted.insert(*ticket, 1);
            }
            for (_, ticket, _) in &bench.refused[before.1..] {
                calls.live.retain(|other| other != ticket);
            }
        }
        prop_assert!(calls.live.is_empty(), "{} calls never got an answer", calls.live.len());
        prop_assert_eq!(bench.gate.in_flight(), 0);
        prop_assert_eq!(bench.gate.waiting(), 0);
        prop_assert_eq!(bench.gate.status(bench.now).queue.bytes, 0);
        // With nothing under way every level fills up again: nothing is held for ever.
        bench.run_for(Duration::from_secs(3600));
        for level in bench.gate.status(bench.now).limits {
            for meter in level.meters {
                prop_assert_eq!(meter.remaining, meter.limit.cast_signed(), "{}/{} {}", level.limit, level.key, meter.dimension);
            }
        }
    }

    #[test]
    fn units_are_conserved_while_time_stands_still(
        ends in proptest::collection::vec((1_u64..50, 0_u64..200, 0_u8..7), 1..40),
    ) {
        let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 100), (TPM, 5000)])]);
        let (mut spent_tokens, mut spent_requests) = (0, 0);
        let mut held = Vec::new();
        for (asked, used, ending) in ends {
            let ticket = bench.admit(call("ada", asked));
            prop_assume!(bench.is_granted(ticket));
            let (tokens, requests) = match ending {
                0 => { bench.succeed(ticket, used); (used, 1) }
                1 => { bench.settle(ticket, &Outcome::of(Ending::Unsent)); (0, 0) }
                2 => { bench.settle(ticket, &failed(FaultKind::Invalid, 400)); (0, 1) }
                3 => { bench.settle(ticket, &Outcome::of(Ending::Cancelled)); (asked, 1) }
                4 => { bench.gate.cancel(ticket, bench.now); (0, 0) }
                5 => { bench.settle(ticket, &failed(FaultKind::QuotaExhausted, 429)); (0, 1) }
                _ => { held.push(asked); (asked, 1) }
            };
            spent_tokens += tokens;
            spent_requests += requests;
            prop_assert_eq!(bench.remaining("team", TPM), 5000 - i64::try_from(spent_tokens).unwrap());
            prop_assert_eq!(bench.remaining("team", RPM), 100 - requests_as_level(spent_requests));
        }
        prop_assert_eq!(bench.gate.in_flight(), held.len());
    }

    #[test]
    fn never_more_than_n_in_any_minute_with_a_sliding_window_and_99_percent_of_it_under_demand(
        gaps in proptest::collection::vec(0_u64..400_000, 50..400), limit_of in 10_u64..80,
    ) {
        let mut bench = Bench::with_limits(vec![limit("own", &[], &[(RPM, limit_of)])]);
        // Enough is asked at once to keep somebody waiting for five minutes.
        for number in 0..limit_of * 6 {
            let made = Call { priority: Priority::ALL[(number % 3) as usize], ..call(&format!("u{}", number % 7), 1) };
            bench.admit(made);
        }
        for gap in gaps {
            bench.run_for(Duration::from_micros(gap));
        }
        bench.run_for(Duration::from_secs(300));
        let times: Vec<u64> = bench.granted.iter().map(|(at, _)| at.as_micros()).collect();
        for (first, at) in times.iter().enumerate() {
            let within = times[first..].iter().take_while(|other| **other < at + 60_000_000).count() as u64;
            prop_assert!(within <= limit_of, "{} within a minute", within);
        }
        let in_five_minutes = times.iter().filter(|at| **at < times[0] + 300_000_000).count() as u64;
        prop_assert!(in_five_minutes * 1000 >= limit_of * 5 * 990, "{} of {}", in_five_minutes, limit_of * 5);
    }
}

fn requests_as_level(requests: u64) -> i64 {
    i64::try_from(requests).unwrap()
}
