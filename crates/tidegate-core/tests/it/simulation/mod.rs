//! Hours of traffic in virtual time, against an upstream that charges as OpenAI's limiter does, with other tenants on it.
//!
//! Each run prints its figures (`-- --nocapture`); docs/benchmarks keeps them.

mod upstream;
mod world;

use std::time::Duration;

use tidegate_core::call::{Priority, WhenOpen};
use tidegate_core::config::{Policy, QueueConfig, TokenCharge, UpstreamPolicy};

use upstream::{Charges, Rules, Tells};
use world::{Report, Scenario, World};

/// Without a reserve: what is kept free for bursts of a higher class is no loss, but it would hide one.
fn learning(charge: TokenCharge) -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: charge };
    let queue = QueueConfig { reserve: 0.0, ..QueueConfig::default() };
    Policy { upstreams: vec![upstream], queue, ..Policy::default() }
}

/// Runs it with everything at its default, the reserve apart, and prints a row of the table.
fn run(name: &str, scenario: Scenario) -> Report {
    run_with(name, scenario, learning(TokenCharge::Learned))
}

fn run_with(name: &str, scenario: Scenario, policy: Policy) -> Report {
    let (report, _) = World::new(scenario, policy).run();
    let Report { met_429s, done, given_up, refused, .. } = report;
    let used = 100.0 * report.utilisation();
    println!("{name:<46} {used:6.2} % used {met_429s:4} 429s {done:6} calls {given_up:3} given up {refused:4} refused");
    report
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let scenario = || Scenario { others: 0.4, seconds: 60, ..Scenario::default() };
    let run = || World::new(scenario(), learning(TokenCharge::Learned)).run().0;
    assert_eq!(run(), run());
}

#[test]
fn a_limit_known_only_from_headers_is_used_to_99_percent_without_429s() {
    for latency in [1.0, 20.0, 70.0] {
        for fill in [1.0, 0.05] {
            let rules = Rules { fill, ..Rules::default() };
            let scenario = Scenario { latency, rules, ..Scenario::default() };
            let name = format!("replies after {latency} s, starts at {fill}");
            let report = run_with(&name, scenario, learning(TokenCharge::Input));
            // With replies after 70 s the first minute goes by before anything is known.
            let floor = if latency > 60.0 {
                0.85
            } else if latency > 10.0 {
                0.95
            } else {
                0.99
            };
            assert!(report.utilisation() >= floor, "{name} {}", report.utilisation());
            assert!(report.met_429s <= 5, "{name} {}", report.met_429s);
            assert_eq!(report.given_up + report.refused, 0);
        }
    }
}

#[test]
fn invisible_tenants_taking_40_percent_are_yielded_to() {
    for latency in [1.0, 20.0] {
        for fill in [1.0, 0.05] {
            let rules = Rules { fill, ..Rules::default() };
            let scenario = Scenario { latency, others: 0.4, rules, ..Scenario::default() };
            let name = format!("others 40 %, replies after {latency} s, starts at {fill}");
            let report = run_with(&name, scenario, learning(TokenCharge::Input));
            assert!(report.utilisation() >= 0.95, "{name} {}", report.utilisation());
            assert!(report.met_429s as f64 <= 0.04 * report.done as f64, "{name} {}", report.met_429s);
            assert_eq!(report.given_up, 0);
        }
    }
}

#[test]
fn six_hours_of_mixed_traffic_stay_within_the_limit_whatever_the_seed() {
    for seed in [11, 12, 13] {
        let rules = Rules { tpm: 90_000.0, rpm: 500.0, ..Rules::default() };
        let scenario = Scenario { seed, seconds: 6 * 3600, rules, ..Scenario::default() };
        let report = run(&format!("six hours, seed {seed}"), scenario);
        assert!(report.utilisation() >= 0.99, "seed {seed}: {}", report.utilisation());
        assert!(report.met_429s <= 5, "seed {seed}: {} 429s", report.met_429s);
        assert_eq!(report.given_up, 0, "seed {seed}");
    }
}

#[test]
fn trial1() {
    let base = Scenario::default;
    let rules = Rules::default;
    let h = |r: &Report| {
        let mut h = std::collections::BTreeMap::<u64, u64>::new();
        for at in &r.met_at {
            *h.entry(at / 10 * 10).or_default() += 1;
        }
        println!("{h:?}");
    };
    h(&run(
        "1 s quantum, small calls",
        Scenario { tokens: 200, rules: Rules { quantum: Some(1.0), ..rules() }, ..base() },
    ));
    h(&run(
        "1 s quantum, large calls",
        Scenario { tokens: 20_000, rules: Rules { quantum: Some(1.0), ..rules() }, ..base() },
    ));
    h(&run("no headers, numbers in 429s", Scenario { rules: Rules { tells: Tells::In429s, ..rules() }, ..base() }));
    h(&run(
        "no headers, no numbers, waits told",
        Scenario { rules: Rules { tells: Tells::Nothing, ..rules() }, ..base() },
    ));
    h(&run(
        "no headers, nothing told",
        Scenario { rules: Rules { tells: Tells::Nothing, tells_wait: false, ..rules() }, ..base() },
    ));
}

#[test]
fn trial() {
    let base = Scenario::default;
    let rules = Rules::default;
    run(
        "halved, doubled",
        Scenario { seconds: 900, rules: Rules { moves: vec![(300.0, 0.5), (600.0, 2.0)], ..rules() }, ..base() },
    );
    run("1 s quantum, small calls", Scenario { tokens: 200, rules: Rules { quantum: Some(1.0), ..rules() }, ..base() });
    run(
        "1 s quantum, large calls",
        Scenario { tokens: 20_000, rules: Rules { quantum: Some(1.0), ..rules() }, ..base() },
    );
    run(
        "1 s quantum, no wait told",
        Scenario { tokens: 200, rules: Rules { quantum: Some(1.0), tells_wait: false, ..rules() }, ..base() },
    );
    run(
        "1 s quantum, others 40 %",
        Scenario { tokens: 200, others: 0.4, rules: Rules { quantum: Some(1.0), ..rules() }, ..base() },
    );
    run("no headers, numbers in 429s", Scenario { rules: Rules { tells: Tells::In429s, ..rules() }, ..base() });
    run("no headers, no numbers, waits told", Scenario { rules: Rules { tells: Tells::Nothing, ..rules() }, ..base() });
    run(
        "no headers, nothing told",
        Scenario { rules: Rules { tells: Tells::Nothing, tells_wait: false, ..rules() }, ..base() },
    );
    run("nonsense", Scenario { rules: Rules { tells: Tells::Nonsense, ..rules() }, ..base() });
    run("told twice", Scenario { rules: Rules { tells: Tells::Headers(2.0), ..rules() }, ..base() });
    run("told half", Scenario { rules: Rules { tells: Tells::Headers(0.5), ..rules() }, ..base() });
    for charges in [Charges::Input, Charges::InputPlusMax, Charges::Max, Charges::Usage] {
        run(&format!("charges {charges:?}"), Scenario { rules: Rules { charges, ..rules() }, ..base() });
    }
    run("refused not counted", Scenario { others: 0.4, rules: Rules { refused_count: false, ..rules() }, ..base() });
    run("rpd nearly spent", Scenario { rules: Rules { rpd: Some((10_000.0, 500.0)), ..rules() }, ..base() });
    run("10x burst after idle", Scenario { demand: 10.0, offered: vec![(0.0, 60.0), (300.0, 600.0)], ..base() });
    let r = run_with(
        "interactive beside batch",
        Scenario { interactive: 1.0, priorities: &[Priority::Low], ..base() },
        Policy { queue: QueueConfig::default(), ..learning(TokenCharge::Learned) },
    );
    println!("   waits {:?} of {}", r.interactive_waits.iter().filter(|w| **w > 0).count(), r.interactive_waits.len());
    for when_open in [WhenOpen::Refuse, WhenOpen::Wait] {
        let r = run(
            &format!("outage {when_open:?}"),
            Scenario {
                demand: 0.8,
                when_open,
                rules: Rules { outages: vec![(200.0, 260.0, 1.0)], ..rules() },
                ..base()
            },
        );
        println!(
            "   open {} early {} failed once {} mended {}",
            r.sent_while_open, r.too_early, r.failed_once, r.mended
        );
        let r = run(
            &format!("flapping {when_open:?}"),
            Scenario {
                demand: 0.8,
                when_open,
                rules: Rules {
                    outages: (0..20).map(|n| (n as f64 * 30.0, n as f64 * 30.0 + 5.0, 1.0)).collect(),
                    ..rules()
                },
                ..base()
            },
        );
        println!(
            "   open {} early {} failed once {} mended {}",
            r.sent_while_open, r.too_early, r.failed_once, r.mended
        );
        let r = run(
            &format!("10 % 503 {when_open:?}"),
            Scenario { demand: 0.8, when_open, rules: Rules { outages: vec![(0.0, 600.0, 0.1)], ..rules() }, ..base() },
        );
        println!(
            "   open {} early {} failed once {} mended {}",
            r.sent_while_open, r.too_early, r.failed_once, r.mended
        );
    }
    let r = run("quota ends", Scenario { rules: Rules { quota_ends: Some(300.0), ..rules() }, ..base() });
    println!("   met quota {}", r.met_quota);
    let r = run("slow_down", Scenario { rules: Rules { slow_down: Some((200.0, 205.0)), ..rules() }, ..base() });
    println!("   met at {:?}", r.met_at);
    let _ = Duration::ZERO;
}
