//! Moves virtual time from one thing that happens to the next, and notes what it does to each call.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tidegate_core::call::{Call, Subject, WhenOpen};
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::Usage;
use tidegate_core::event::{Event, Interest};
use tidegate_core::gate::{Gate, Output, Ticket};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::time::Time;

use super::report::{Notes, Plan};
use super::trace::{Arrival, Trace};

/// To the first token of a reply.
const FIRST_TOKEN_MICROS: u64 = 300_000;
const TOKEN_MICROS: u64 = 12_500;
/// Calls of a run that wait at once.
const WAITING_MAX: usize = 128;
/// Where virtual time begins: late enough that nothing lies before it.
const START: u64 = 1_000_000_000_000;

struct World<'t> {
    trace: &'t Trace,
    gate: Gate,
    account: Arc<str>,
    tenants: Vec<Arc<str>>,
    max_wait_micros: u64,
    next: usize,
    /// By ticket: which call has it.
    calls: Vec<Option<(Ticket, usize)>>,
    ends: BinaryHeap<Reverse<(u64, usize, usize)>>,
    notes: Notes,
}

/// What `trace` would meet under `policy`.
#[must_use]
pub fn predict(trace: &Trace, policy: &Policy) -> Plan {
    let mut policy = policy.clone();
    let name: Arc<str> = policy.upstreams.first().map_or_else(|| "openai".into(), |upstream| upstream.name.clone());
    // Nothing tells limits here, and nothing tells how tokens are charged: as OpenAI does, by the input.
    policy.upstreams =
        vec![UpstreamPolicy { name: name.clone(), learn_limits: false, token_charge: TokenCharge::Input }];
    let max_wait_micros = u64::try_from(policy.queue.max_wait.as_micros()).unwrap_or(u64::MAX);
    let limits = policy.limits.clone();
    let mut gate = Gate::new(policy, 1);
    gate.listen(Interest::Everything);
    let tenants = trace.users.iter().map(|user| if user.is_empty() { "anonymous".into() } else { user.clone() });
    let span = trace.arrivals.last().map_or(0, |arrival| arrival.at_micros);
    let world = World {
        trace,
        gate,
        account: format!("{name}#plan").into(),
        tenants: tenants.collect(),
        max_wait_micros,
        next: 0,
        calls: Vec::new(),
        ends: BinaryHeap::new(),
        notes: Notes::new(span, limits),
    };
    world.run()
}

impl World<'_> {
    fn run(mut self) -> Plan {
        loop {
            let arrives = self.arrives_at();
            let ends = self.ends.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
            let wakes = self.gate.wake_at().map_or(u64::MAX, |at| at.as_micros().saturating_sub(START));
            // The core's own upkeep alone is nothing to wait for.
            if arrives == u64::MAX && ends == u64::MAX && self.gate.waiting() == 0 {
                break;
            }
            let now = arrives.min(ends).min(wakes);
            if now == u64::MAX {
                break;
            }
            if wakes <= now {
                self.gate.advance(Time::from_micros(START + now));
            } else if ends <= now {
                if let Some(Reverse((_, index, place))) = self.ends.pop() {
                    self.ended(now, index, place);
                }
            } else {
                self.admit(now);
            }
            self.outputs(now);
        }
        self.notes.plan(self.trace.arrivals.len() as u64)
    }

    fn arrives_at(&self) -> u64 {
        match self.trace.arrivals.get(self.next) {
            None => u64::MAX,
            Some(_) if self.trace.is_run && self.gate.waiting() >= WAITING_MAX => u64::MAX,
            Some(arrival) => arrival.at_micros.max(if self.trace.is_run { self.notes.now } else { 0 }),
        }
    }

    fn admit(&mut self, now: u64) {
        let index = self.next;
        self.next += 1;
        let arrival = &self.trace.arrivals[index];
        let is_run = self.trace.is_run;
        let start_by =
            if is_run { Time::NEVER } else { Time::from_micros(START + now).plus_micros(self.max_wait_micros) };
        let call = Call {
            id: Arc::from(""),
            subject: self.subject(arrival),
            cost: arrival.cost,
            priority: arrival.priority,
            start_by,
            end_by: Time::NEVER,
            when_open: WhenOpen::Wait,
            body_bytes: 0,
            own_charged: false,
        };
        let ticket = self.gate.admit(&call, Time::from_micros(START + now));
        if self.calls.len() <= ticket.index() {
            self.calls.resize(ticket.index() + 1, None);
        }
        self.calls[ticket.index()] = Some((ticket, index));
        if is_run && self.next == self.trace.arrivals.len() {
            self.gate.nothing_follows(Time::from_micros(START + now));
        }
    }

    fn subject(&self, arrival: &Arrival) -> Subject {
        let user = &self.trace.users[arrival.user as usize];
        Subject {
            account: self.account.clone(),
            model: self.trace.models[usize::from(arrival.model)].clone(),
            key: None,
            organization: None,
            project: None,
            user: Some(user.clone()).filter(|user| !user.is_empty()),
            request_type: arrival.request_type,
            tenant: self.tenants[arrival.user as usize].clone(),
        }
    }

    fn outputs(&mut self, now: u64) {
        self.notes.now = now;
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Granted { ticket, queued_for, .. } => {
                    let Some(Some((_, index))) = self.calls.get(ticket.index()).copied() else { continue };
                    let arrival = &self.trace.arrivals[index];
                    let waited = u64::try_from(queued_for.as_micros()).unwrap_or(u64::MAX);
                    // All of a run is there from its beginning.
                    let waited = if self.trace.is_run { now } else { waited };
                    self.gate.sent(ticket);
                    let subject = self.subject(arrival);
                    self.notes.granted(now, waited, arrival, &subject);
                    let takes = FIRST_TOKEN_MICROS + arrival.output_tokens.saturating_mul(TOKEN_MICROS);
                    self.ends.push(Reverse((now + takes, index, ticket.index())));
                }
                Output::Refused { ticket, refusal } => {
                    let Some((_, index)) = self.calls.get_mut(ticket.index()).and_then(Option::take) else { continue };
                    self.notes.refused(self.trace.arrivals[index].priority, refusal.reason.name());
                }
                Output::Event(event) => {
                    if let Event::Queued { limit, dimension, .. } = *event {
                        self.notes.bound(now, &limit, dimension);
                    }
                }
                _ => {}
            }
        }
    }

    fn ended(&mut self, now: u64, index: usize, place: usize) {
        let Some((ticket, _)) = self.calls[place].take() else { return };
        let Arrival { cost, output_tokens, .. } = self.trace.arrivals[index];
        let usage = Some(Usage { input_tokens: cost.input_tokens, output_tokens });
        let outcome = Outcome { usage, ..Outcome::of(Ending::Success) };
        // Nothing follows on a success.
        let _done = self.gate.settle(ticket, &outcome, Time::from_micros(START + now));
        self.notes.ended_at = now;
    }
}
