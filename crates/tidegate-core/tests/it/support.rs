//! What the tests share: short ways to say calls, limits and outcomes, and to run a gate by hand.

use std::time::Duration;

use tidegate_core::call::{Call, Priority, RequestType, Subject, WhenOpen};
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::{Cost, Usage};
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::gate::{Demand, Gate, Output, Ticket};
use tidegate_core::limit::{Algorithm, Dimension, Limit, Mode, Rates, Scope};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Refusal;
use tidegate_core::time::Time;

/// A call of `user` that asks for `tokens` of input and no output.
pub(crate) fn call(user: &str, tokens: u64) -> Call {
    Call {
        id: "call".into(),
        subject: Subject {
            account: "openai#1".into(),
            model: "gpt-4o".into(),
            key: None,
            organization: None,
            project: None,
            user: Some(user.into()),
            request_type: RequestType::Chat,
            tenant: user.into(),
        },
        cost: Cost { input_tokens: tokens, max_output_tokens: Some(0), choices: 1, images: 0, declared_tokens: 0 },
        priority: Priority::Normal,
        start_by: Time::NEVER,
        end_by: Time::NEVER,
        when_open: WhenOpen::Refuse,
        body_bytes: 0,
        own_charged: false,
    }
}

/// A limit with one level for each combination of `per`.
pub(crate) fn limit(name: &str, per: &[Scope], dimensions: &[(Dimension, u64)]) -> Limit {
    let mut base = Rates::default();
    for (dimension, units) in dimensions {
        base = base.with(*dimension, *units);
    }
    Limit { name: name.into(), per: per.to_vec(), base, overrides: Vec::new(), algorithm: None, mode: Mode::Enforce }
}

/// The same as a token bucket.
pub(crate) fn bucket(name: &str, per: &[Scope], dimensions: &[(Dimension, u64)]) -> Limit {
    Limit { algorithm: Some(Algorithm::TokenBucket), ..limit(name, per, dimensions) }
}

/// A policy with these limits that learns nothing and charges mirrors the input.
pub(crate) fn policy(limits: Vec<Limit>) -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: false, token_charge: TokenCharge::Input };
    Policy { limits, upstreams: vec![upstream], ..Policy::default() }
}

/// A gate, and what it has decided by ticket.
pub(crate) struct Bench {
    pub(crate) gate: Gate,
    pub(crate) now: Time,
    pub(crate) granted: Vec<(Time, Ticket)>,
    pub(crate) refused: Vec<(Time, Ticket, Refusal)>,
    pub(crate) demands: Vec<Demand>,
}

impl Bench {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            gate: Gate::new(policy, 1),
            now: Time::from_secs(1_000_000),
            granted: Vec::new(),
            refused: Vec::new(),
            demands: Vec::new(),
        }
    }

    pub(crate) fn with_limits(limits: Vec<Limit>) -> Self {
        Self::new(policy(limits))
    }

    pub(crate) fn admit(&mut self, call: Call) -> Ticket {
        let ticket = self.gate.admit(&call, self.now);
        self.drain();
        ticket
    }

    /// Takes what was decided.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Granted { ticket, .. } => self.granted.push((self.now, ticket)),
                Output::Refused { ticket, refusal } => self.refused.push((self.now, ticket, *refusal)),
                Output::Demand(demand) => self.demands.push(demand),
                Output::Event(_) => {}
            }
        }
    }

    /// Runs virtual time on to `until`, stopping wherever the gate wants to be woken.
    pub(crate) fn run_until(&mut self, until: Time) {
        let mut wakes = 0;
        while let Some(at) = self.gate.wake_at().filter(|at| *at <= until) {
            wakes += 1;
            assert!(wakes < 1_000_000, "the gate wants to be woken for ever: {:?}", self.gate.status(self.now));
            self.now = self.now.max(at);
            self.gate.advance(self.now);
            self.drain();
        }
        self.now = self.now.max(until);
        self.gate.advance(self.now);
        self.drain();
    }

    pub(crate) fn run_for(&mut self, by: Duration) {
        let until = self.now + by;
        self.run_until(until);
    }

    pub(crate) fn is_granted(&self, ticket: Ticket) -> bool {
        self.granted.iter().any(|(_, granted)| *granted == ticket)
    }

    pub(crate) fn refusal(&self, ticket: Ticket) -> Option<&Refusal> {
        self.refused.iter().find(|(_, refused, _)| *refused == ticket).map(|(_, _, refusal)| refusal)
    }

    pub(crate) fn settle(&mut self, ticket: Ticket, outcome: &Outcome) -> tidegate_core::refusal::Next {
        self.gate.sent(ticket);
        let next = self.gate.settle(ticket, outcome, self.now);
        self.drain();
        next
    }

    pub(crate) fn succeed(&mut self, ticket: Ticket, tokens: u64) {
        self.settle(ticket, &success(tokens));
    }

    /// Remaining of the first level of `limit` in `dimension`.
    pub(crate) fn remaining(&mut self, limit: &str, dimension: Dimension) -> i64 {
        self.find_remaining(limit, dimension).unwrap_or_else(|| panic!("no level of {limit}"))
    }

    /// The same; `None` where there is no such level yet.
    pub(crate) fn find_remaining(&mut self, limit: &str, dimension: Dimension) -> Option<i64> {
        let status = self.gate.status(self.now);
        status
            .limits
            .iter()
            .filter(|level| level.limit == limit)
            .flat_map(|level| &level.meters)
            .find(|meter| meter.dimension == dimension.name())
            .map(|meter| meter.remaining)
    }
}

pub(crate) fn success(tokens: u64) -> Outcome {
    Outcome {
        ending: Ending::Success,
        usage: Some(Usage { input_tokens: tokens, output_tokens: 0 }),
        first_byte_after: Some(Duration::from_millis(1)),
    }
}

pub(crate) fn failed(kind: FaultKind, status: u16) -> Outcome {
    Outcome::of(Ending::Failed(Fault::new(kind, "fault").with_status(status)))
}
