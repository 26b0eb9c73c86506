//! Hours of traffic in virtual time, against an upstream that charges as OpenAI's limiter does, with other tenants on it.
//!
//! Everything is drawn from one seed, which a failure prints: the same seed gives the same run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tidegate_core::call::{Call, Priority};
use tidegate_core::config::{Policy, QueueConfig, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::Usage;
use tidegate_core::fault::{Fault, FaultKind, LimitNumbers};
use tidegate_core::gate::{Gate, Output, Ticket};
use tidegate_core::limit::Dimension;
use tidegate_core::outcome::{Ending, Outcome, ServerLimit, ServerLimits};
use tidegate_core::refusal::Next;
use tidegate_core::time::Time;

use crate::support::call;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

/// The upstream's own bucket; written apart from the core's, in floating point, so that no mistake is shared.
struct Upstream {
    requests: f64,
    tokens: f64,
    rpm: f64,
    tpm: f64,
    at: f64,
}

impl Upstream {
    fn refill(&mut self, now: f64) {
        let elapsed = (now - self.at).max(0.0);
        self.at = self.at.max(now);
        self.requests = (self.requests + elapsed * self.rpm / 60.0).min(self.rpm);
        self.tokens = (self.tokens + elapsed * self.tpm / 60.0).min(self.tpm);
    }

    /// Takes a request; `Err`: refused (OpenAI counts the request all the same).
    fn take(&mut self, now: f64, tokens: f64) -> Result<(), Fault> {
        self.refill(now);
        let refuse = |dimension, limit: f64, level: f64, asked: f64| {
            let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
            fault.wait = Some(Duration::from_secs_f64((asked - level) / (limit / 60.0)));
            fault.numbers = Some(LimitNumbers {
                dimension: Some(dimension),
                limit: limit as u64,
                used: Some((limit - level).max(0.0) as u64),
                requested: Some(asked as u64),
            });
            Err(fault)
        };
        if self.requests < 1.0 {
            return refuse(RPM, self.rpm, self.requests, 1.0);
        }
        self.requests -= 1.0;
        if self.tokens < tokens {
            return refuse(TPM, self.tpm, self.tokens, tokens);
        }
        self.tokens -= tokens;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
    seconds: u64,
    rpm: u64,
    tpm: u64,
    tokens: u64,
    /// Of the upstream's bucket at the start.
    fill: f64,
    /// Share of the limit that others on the same account take, unseen.
    others: f64,
    /// Mean time to the reply.
    latency: f64,
    /// Calls offered, as a share of what the limit takes.
    demand: f64,
}

const BASE: Scenario = Scenario {
    seed: 1,
    seconds: 600,
    rpm: 100_000,
    tpm: 450_000,
    tokens: 2000,
    fill: 1.0,
    others: 0.0,
    latency: 1.0,
    demand: 2.0,
};

#[derive(Debug, Default, PartialEq)]
struct Report {
    used: f64,
    available: f64,
    met_429s: u64,
    done: u64,
    given_up: u64,
    refused: u64,
    order: Vec<u64>,
}

impl Report {
    fn utilisation(&self) -> f64 {
        self.used / self.available
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Arrive,
    Others,
    Reach(Ticket, u64),
    Reply(Ticket, u64, u64, u64),
    Refused429(Ticket, u64),
}

struct World {
    scenario: Scenario,
    gate: Gate,
    upstream: Upstream,
    random: fastrand::Rng,
    heap: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    faults: std::collections::HashMap<u64, Fault>,
    sizes: std::collections::HashMap<Ticket, u64>,
    number: u64,
    report: Report,
}

const START: u64 = 1_000_000_000_000;

impl World {
    fn new(scenario: Scenario, policy: Policy) -> Self {
        let upstream = Upstream {
            requests: scenario.rpm as f64 * scenario.fill,
            tokens: scenario.tpm as f64 * scenario.fill,
            rpm: scenario.rpm as f64,
            tpm: scenario.tpm as f64,
            at: 0.0,
        };
        let mut world = Self {
            scenario,
            gate: Gate::new(policy, scenario.seed),
            upstream,
            random: fastrand::Rng::with_seed(scenario.seed),
            heap: BinaryHeap::new(),
            faults: Default::default(),
            sizes: Default::default(),
            number: 0,
            report: Report::default(),
        };
        world.push(0, Happens::Arrive);
        if scenario.others > 0.0 {
            world.push(0, Happens::Others);
        }
        world
    }

    fn push(&mut self, at: u64, what: Happens) {
        self.number += 1;
        self.heap.push(Reverse((at, self.number, what)));
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - self.random.f64()).ln() * 1e6) as u64
    }

    fn run(mut self) -> Report {
        let end = self.scenario.seconds * 1_000_000;
        loop {
            let next = self.heap.peek().map_or(u64::MAX, |Reverse((at, _, _))| *at);
            let wake = self.gate.wake_at().map_or(u64::MAX, |at| at.as_micros().saturating_sub(START));
            let now = next.min(wake);
            if now >= end {
                break;
            }
            if wake <= next {
                self.gate.advance(Time::from_micros(START + now));
            } else if let Some(Reverse((_, _, what))) = self.heap.pop() {
                self.happen(now, what);
            }
            self.outputs(now);
        }
        // What others took of it was noted as it went.
        let refilled = self.scenario.tpm as f64 / 60.0 * self.scenario.seconds as f64;
        self.report.available += self.scenario.tpm as f64 * self.scenario.fill + refilled;
        self.report
    }

    fn outputs(&mut self, now: u64) {
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Granted { ticket, .. } => {
                    let size = self.sizes[&ticket];
                    let reaches = now + 10_000 + self.random.u64(..190_000);
                    self.gate.sent(ticket);
                    self.push(reaches, Happens::Reach(ticket, size));
                }
                Output::Refused { .. } => self.report.refused += 1,
                Output::Event(_) | Output::Demand(_) => {}
            }
        }
    }

    fn happen(&mut self, now: u64, what: Happens) {
        let at = Time::from_micros(START + now);
        let seconds = now as f64 / 1e6;
        match what {
            Happens::Arrive => {
                let Scenario { tpm, tokens, demand, .. } = self.scenario;
                if self.gate.waiting() < 5000 {
                    let size = self.random.u64(tokens / 2..=tokens * 3 / 2);
                    let priority = [Priority::Low, Priority::Normal, Priority::High][self.random.usize(..3)];
                    let user = format!("user-{}", self.random.u8(..20));
                    let mut made = Call { priority, ..call(&user, size) };
                    made.cost.max_output_tokens = Some(size / 2);
                    let ticket = self.gate.admit(&made, at);
                    self.sizes.insert(ticket, size);
                }
                let gap = self.exponential(60.0 * tokens as f64 / (tpm as f64 * demand));
                self.push(now + gap, Happens::Arrive);
            }
            Happens::Others => {
                let Scenario { tpm, tokens, others, .. } = self.scenario;
                if self.upstream.take(seconds, tokens as f64).is_ok() {
                    self.report.available -= tokens as f64;
                }
                let gap = self.exponential(60.0 * tokens as f64 / (tpm as f64 * others));
                self.push(now + gap, Happens::Others);
            }
            Happens::Reach(ticket, size) => match self.upstream.take(seconds, size as f64) {
                Ok(()) => {
                    self.report.used += size as f64;
                    let (requests, tokens) = (self.upstream.requests as u64, self.upstream.tokens as u64);
                    let took = self.exponential(self.scenario.latency);
                    self.push(now + took, Happens::Reply(ticket, size, requests, tokens));
                }
                Err(fault) => {
                    self.report.met_429s += 1;
                    self.number += 1;
                    self.faults.insert(self.number, fault);
                    let number = self.number;
                    self.push(now + 50_000, Happens::Refused429(ticket, number));
                }
            },
            Happens::Reply(ticket, size, requests, tokens) => {
                let told = |dimension, limit, remaining| ServerLimit { dimension, limit, remaining: Some(remaining) };
                let limits = ServerLimits(smallvec::smallvec![
                    told(RPM, self.scenario.rpm, requests),
                    told(TPM, self.scenario.tpm, tokens),
                ]);
                self.gate.observe(ticket, &limits, at);
                let usage = Usage { input_tokens: size, output_tokens: size / 4 };
                let outcome = Outcome { usage: Some(usage), ..Outcome::of(Ending::Success) };
                assert_eq!(self.gate.settle(ticket, &outcome, at), Next::Done);
                self.report.done += 1;
                self.report.order.push(now);
            }
            Happens::Refused429(ticket, number) => {
                let fault = self.faults.remove(&number).expect("noted");
                match self.gate.settle(ticket, &Outcome::of(Ending::Failed(fault)), at) {
                    Next::Retry { .. } => {}
                    Next::GiveUp(_) | Next::Done => self.report.given_up += 1,
                }
            }
        }
    }
}

/// Without a reserve: what is kept free for bursts of a higher class is no loss, but it would hide one.
fn learning(charge: TokenCharge) -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: charge };
    let queue = QueueConfig { reserve: 0.0, ..QueueConfig::default() };
    Policy { upstreams: vec![upstream], queue, ..Policy::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let scenario = Scenario { others: 0.4, seconds: 60, ..BASE };
    let run = || World::new(scenario, learning(TokenCharge::Learned)).run();
    assert_eq!(run(), run());
}

#[test]
fn a_limit_known_only_from_headers_is_used_to_99_percent_without_429s() {
    println!("latency  start  use      429s  calls");
    for latency in [1.0, 20.0, 70.0] {
        for fill in [1.0, 0.05] {
            let scenario = Scenario { latency, fill, ..BASE };
            let report = World::new(scenario, learning(TokenCharge::Input)).run();
            println!(
                "{latency:5} s  {fill:5}  {:.2} %  {:4}  {}",
                100.0 * report.utilisation(),
                report.met_429s,
                report.done
            );
            // With replies after 70 s the first minute goes by before anything is known.
            let floor = if latency > 60.0 {
                0.85
            } else if latency > 10.0 {
                0.95
            } else {
                0.99
            };
            assert!(report.utilisation() >= floor, "{scenario:?} {}", report.utilisation());
            assert!(report.met_429s <= 5, "{scenario:?} {}", report.met_429s);
            assert_eq!(report.given_up + report.refused, 0);
        }
    }
}

#[test]
fn invisible_tenants_taking_40_percent_are_yielded_to() {
    println!("latency  start  use      429s  calls");
    for latency in [1.0, 20.0] {
        for fill in [1.0, 0.05] {
            let scenario = Scenario { latency, fill, others: 0.4, ..BASE };
            let report = World::new(scenario, learning(TokenCharge::Input)).run();
            println!(
                "{latency:5} s  {fill:5}  {:.2} %  {:4}  {}",
                100.0 * report.utilisation(),
                report.met_429s,
                report.done
            );
            assert!(report.utilisation() >= 0.95, "{scenario:?} {}", report.utilisation());
            assert!(report.met_429s as f64 <= 0.04 * report.done as f64, "{scenario:?} {}", report.met_429s);
            assert_eq!(report.given_up, 0);
        }
    }
}

#[test]
fn six_hours_of_mixed_traffic_stay_within_the_limit_whatever_the_seed() {
    for seed in [11, 12, 13] {
        let scenario = Scenario { seed, seconds: 6 * 3600, tpm: 90_000, rpm: 500, ..BASE };
        let report = World::new(scenario, learning(TokenCharge::Learned)).run();
        let utilisation = report.utilisation();
        println!("seed {seed}: {:.2} % used, {} 429s in {} calls", 100.0 * utilisation, report.met_429s, report.done);
        assert!(utilisation >= 0.99, "seed {seed}: {utilisation}");
        assert!(report.met_429s <= 5, "seed {seed}: {} 429s", report.met_429s);
        assert_eq!(report.given_up, 0, "seed {seed}");
    }
}
