//! A gate, an upstream and callers in virtual time. Everything is drawn from one seed, which a failure prints.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tidegate_core::breaker::BreakerState;
use tidegate_core::call::{Call, Priority, WhenOpen};
use tidegate_core::config::Policy;
use tidegate_core::cost::{Cost, Usage};
use tidegate_core::event::{Event, Interest};
use tidegate_core::fault::Fault;
use tidegate_core::gate::{Gate, Output, Ticket};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Next;
use tidegate_core::time::Time;

use super::upstream::{Rules, Upstream};
use crate::support::call;

/// What happens in a run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) seconds: u64,
    /// Mean size of a call's input; half of it again may come back.
    pub(super) tokens: u64,
    /// A call's ceiling on its output, as a share of its input. `None`: calls set none.
    pub(super) ceiling: Option<f64>,
    /// Answers that each call asks for.
    pub(super) choices: u64,
    pub(super) rules: Rules,
    /// Share of the limit that others on the same account take, unseen.
    pub(super) others: f64,
    /// Mean seconds to the reply.
    pub(super) latency: f64,
    /// Seconds from a grant to its arrival at the upstream.
    pub(super) way: (f64, f64),
    /// Calls offered, as a share of what the limit takes.
    pub(super) demand: f64,
    /// (from, until): calls come in this time only.
    pub(super) offered: Vec<(f64, f64)>,
    /// Calls of one high-priority person beside them, each second.
    pub(super) interactive: f64,
    /// From this second on.
    pub(super) interactive_from: f64,
    pub(super) when_open: WhenOpen,
    pub(super) priorities: &'static [Priority],
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            seconds: 600,
            tokens: 2000,
            ceiling: Some(0.5),
            choices: 1,
            rules: Rules::default(),
            others: 0.0,
            latency: 1.0,
            way: (0.01, 0.2),
            demand: 2.0,
            offered: vec![(0.0, f64::INFINITY)],
            interactive: 0.0,
            interactive_from: 0.0,
            when_open: WhenOpen::Refuse,
            priorities: &Priority::ALL,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) used: f64,
    pub(super) available: f64,
    pub(super) met_429s: u64,
    /// Seconds into the run of each 429 met.
    pub(super) met_at: Vec<u64>,
    pub(super) done: u64,
    pub(super) given_up: u64,
    pub(super) refused: u64,
    /// Attempts granted while the breaker was open.
    pub(super) sent_while_open: u64,
    /// Attempts granted before the wait that a 429 told was over.
    pub(super) too_early: u64,
    /// Calls that met a fault worth retrying, and those of them that ended well.
    pub(super) failed_once: u64,
    pub(super) mended: u64,
    /// Waits of interactive calls, in microseconds.
    pub(super) interactive_waits: Vec<u64>,
    /// Attempts that met `insufficient_quota`.
    pub(super) met_quota: u64,
    /// Tokens that flowed in vain because the bucket was full.
    pub(super) lost: f64,
    pub(super) order: Vec<u64>,
}

impl Report {
    pub(super) fn utilisation(&self) -> f64 {
        self.used / self.available
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Arrive,
    Interactive,
    Others,
    Reach(Ticket),
    Head(Ticket),
    Failed(Ticket, u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Made {
    cost: Cost,
    output: u64,
    interactive: bool,
    failed: bool,
    not_before: u64,
}

pub(super) struct World {
    scenario: Scenario,
    gate: Gate,
    upstream: Upstream,
    random: fastrand::Rng,
    heap: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    faults: HashMap<u64, Fault>,
    calls: HashMap<Ticket, Made>,
    number: u64,
    breaker: BreakerState,
    others_used: f64,
    report: Report,
}

const START: u64 = 1_000_000_000_000;

impl World {
    pub(super) fn new(scenario: Scenario, policy: Policy) -> Self {
        let mut world = Self {
            gate: Gate::new(policy, scenario.seed),
            upstream: Upstream::new(scenario.rules.clone()),
            random: fastrand::Rng::with_seed(scenario.seed),
            heap: BinaryHeap::new(),
            faults: HashMap::default(),
            calls: HashMap::default(),
            number: 0,
            breaker: BreakerState::Closed,
            others_used: 0.0,
            report: Report::default(),
            scenario,
        };
        world.gate.listen(Interest::Everything);
        world.push(0, Happens::Arrive);
        if world.scenario.others > 0.0 {
            world.push(0, Happens::Others);
        }
        if world.scenario.interactive > 0.0 {
            world.push((world.scenario.interactive_from * 1e6) as u64, Happens::Interactive);
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

    /// Runs to the end. The gate is handed back too, for a look at what it knows.
    pub(super) fn run(mut self) -> (Report, Gate) {
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
        self.upstream.headers(self.scenario.seconds as f64, 0.0);
        self.report.available += self.upstream.flowed - self.others_used;
        self.report.lost = self.upstream.lost;
        (self.report, self.gate)
    }

    fn outputs(&mut self, now: u64) {
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Granted { ticket, queued_for, attempt } => {
                    let (from, to) = self.scenario.way;
                    let reaches = now + ((from + self.random.f64() * (to - from)) * 1e6) as u64;
                    let made = self.calls[&ticket];
                    if made.interactive && attempt == 1 {
                        self.report.interactive_waits.push(queued_for.as_micros() as u64);
                    }
                    self.report.too_early += u64::from(now < made.not_before);
                    self.report.sent_while_open += u64::from(self.breaker == BreakerState::Open);
                    self.gate.sent(ticket);
                    self.push(reaches, Happens::Reach(ticket));
                }
                Output::Refused { ticket, .. } => {
                    self.report.refused += 1;
                    self.ended(ticket, false);
                }
                Output::Event(event) => {
                    if let Event::StateChanged { to, .. } = *event {
                        self.breaker = to;
                    }
                }
                Output::Demand(_) => {}
            }
        }
    }

    fn ended(&mut self, ticket: Ticket, well: bool) {
        if let Some(made) = self.calls.remove(&ticket)
            && made.failed
        {
            self.report.failed_once += 1;
            self.report.mended += u64::from(well);
        }
    }

    fn admit(&mut self, user: &str, size: u64, priority: Priority, interactive: bool, now: u64) {
        let at = Time::from_micros(START + now);
        let mut made = Call { priority, when_open: self.scenario.when_open, ..call(user, size) };
        made.cost.max_output_tokens = self.scenario.ceiling.map(|share| (size as f64 * share) as u64);
        made.cost.choices = self.scenario.choices;
        let known = Made { cost: made.cost, output: size / 4, interactive, ..Made::default() };
        let ticket = self.gate.admit(&made, at);
        self.calls.insert(ticket, known);
    }

    fn happen(&mut self, now: u64, what: Happens) {
        let at = Time::from_micros(START + now);
        let seconds = now as f64 / 1e6;
        match what {
            Happens::Arrive => {
                let Scenario { tokens, demand, ref offered, priorities, .. } = self.scenario;
                let is_offered = offered.iter().any(|(from, until)| (*from..*until).contains(&seconds));
                if is_offered && self.gate.waiting() < 5000 {
                    let size = self.random.u64(tokens / 2..=tokens * 3 / 2);
                    let priority = priorities[self.random.usize(..priorities.len())];
                    let user = format!("user-{}", self.random.u8(..20));
                    self.admit(&user, size, priority, false, now);
                }
                let gap = self.exponential(60.0 * tokens as f64 / (self.scenario.rules.tpm * demand));
                self.push(now + gap, Happens::Arrive);
            }
            Happens::Interactive => {
                let user = format!("person-{}", self.random.u8(..50));
                self.admit(&user, self.scenario.tokens / 2, Priority::High, true, now);
                let gap = self.exponential(1.0 / self.scenario.interactive);
                self.push(now + gap, Happens::Interactive);
            }
            Happens::Others => {
                let Scenario { tokens, others, .. } = self.scenario;
                if self.upstream.take_for_others(seconds, tokens as f64) {
                    self.others_used += tokens as f64;
                }
                let gap = self.exponential(60.0 * tokens as f64 / (self.scenario.rules.tpm * others));
                self.push(now + gap, Happens::Others);
            }
            Happens::Reach(ticket) => {
                let chance = self.random.f64();
                match self.upstream.take(seconds, &self.calls[&ticket].cost, chance) {
                    Ok(charged) => {
                        self.report.used += charged;
                        let took = self.exponential(self.scenario.latency);
                        self.push(now + took, Happens::Head(ticket));
                    }
                    Err(fault) => {
                        if fault.kind.is_rate() {
                            self.report.met_429s += 1;
                            self.report.met_at.push(now / 1_000_000);
                        }
                        self.number += 1;
                        self.faults.insert(self.number, fault);
                        self.push(now + 50_000, Happens::Failed(ticket, self.number));
                    }
                }
            }
            Happens::Head(ticket) => {
                let chance = self.random.f64();
                let made = self.calls[&ticket];
                let limits = self.upstream.headers(seconds, chance);
                self.gate.observe(ticket, &limits, at);
                self.report.used += self.upstream.ended(seconds, made.output);
                let usage = Usage { input_tokens: made.cost.input_tokens, output_tokens: made.output };
                let outcome = Outcome { usage: Some(usage), ..Outcome::of(Ending::Success) };
                assert_eq!(self.gate.settle(ticket, &outcome, at), Next::Done);
                self.report.done += 1;
                self.report.order.push(now);
                self.ended(ticket, true);
            }
            Happens::Failed(ticket, number) => self.failed(ticket, number, now),
        }
    }

    fn failed(&mut self, ticket: Ticket, number: u64, now: u64) {
        let at = Time::from_micros(START + now);
        let fault = self.faults.remove(&number).expect("noted");
        let wait = fault.wait.unwrap_or(Duration::ZERO);
        let is_quota = fault.kind == tidegate_core::fault::FaultKind::QuotaExhausted;
        self.report.met_quota += u64::from(is_quota);
        if let Some(made) = self.calls.get_mut(&ticket) {
            made.failed |= !is_quota;
            made.not_before = now + wait.as_micros() as u64;
        }
        match self.gate.settle(ticket, &Outcome::of(Ending::Failed(fault)), at) {
            Next::Retry { .. } => {}
            Next::GiveUp(_) | Next::Done => {
                self.report.given_up += 1;
                self.ended(ticket, false);
            }
        }
    }
}
