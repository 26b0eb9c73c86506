//! Hours of traffic in virtual time, against an upstream that charges as OpenAI's limiter does, with other tenants on it.
//!
//! Each run prints its figures (`-- --nocapture`); docs/benchmarks keeps them.

mod edge;
mod upstream;
mod world;

use tidegate_core::config::{Policy, QueueConfig, TokenCharge, UpstreamPolicy};

use upstream::Rules;
use world::{Report, Scenario, World};

/// Without a reserve: what is kept free for bursts of a higher class is no loss, but it would hide one.
fn learning(charge: TokenCharge) -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: charge };
    let queue = QueueConfig::default().with_reserve(0.0);
    Policy { upstreams: vec![upstream], queue, ..Policy::default() }
}

/// Runs it with everything at its default, the reserve apart, and prints a row of the table.
fn run(name: &str, scenario: Scenario) -> Report {
    run_with(name, scenario, learning(TokenCharge::Learned))
}

fn run_with(name: &str, scenario: Scenario, policy: Policy) -> Report {
    let (report, _) = World::new(scenario, policy).run();
    print(name, &report);
    report
}

fn print(name: &str, report: &Report) {
    let Report { met_429s, done, given_up, refused, .. } = report;
    let used = 100.0 * report.utilisation();
    println!(
        "{name:<46} {used:6.2} % used {met_429s:4} 429s {done:6} calls {given_up:3} given up {refused:4} refused {:.2} % flowed over, first 429s after {:?} s",
        100.0 * report.lost / report.available,
        report.met_at.iter().take(12).collect::<Vec<_>>()
    );
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
            assert!(report.utilisation() >= 0.99, "{name} {}", report.utilisation());
            assert!(report.met_429s <= 5, "{name} {}", report.met_429s);
            assert_eq!(report.given_up + report.refused, 0);
        }
    }
}

#[test]
fn invisible_tenants_taking_40_percent_are_yielded_to() {
    let (mut met, mut done, mut used, mut available) = (0, 0, 0.0, 0.0);
    for seed in 1..=4 {
        for latency in [1.0, 20.0] {
            for fill in [1.0, 0.05] {
                let rules = Rules { fill, ..Rules::default() };
                let scenario = Scenario { seed, latency, others: 0.4, rules, ..Scenario::default() };
                let name = format!("others 40 %, replies after {latency} s, starts at {fill}, seed {seed}");
                let report = run_with(&name, scenario, learning(TokenCharge::Input));
                assert!(report.utilisation() >= 0.985, "{name} {}", report.utilisation());
                assert!(report.met_429s as f64 <= 0.015 * report.done as f64, "{name} {}", report.met_429s);
                assert_eq!(report.given_up, 0);
                (met, done) = (met + report.met_429s, done + report.done);
                (used, available) = (used + report.used, available + report.available);
            }
        }
    }
    let (use_of_all, share) = (used / available, met as f64 / done as f64);
    println!("others 40 %, all of them: {:.2} % used, {:.2} % 429s", 100.0 * use_of_all, 100.0 * share);
    assert!(use_of_all >= 0.99 && share <= 0.01, "{use_of_all} {share}");
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
