//! Moves virtual time from one thing that happens to the next, and notes what it does to each call.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tidegate_core::call::{Call, RequestType, Subject, WhenOpen};
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::Usage;
use tidegate_core::event::{Event, Interest};
use tidegate_core::gate::{Gate, Output, Ticket};
use tidegate_core::limit::{Allowance, Dimension, Limit};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::time::Time;

use super::report::{Notes, Plan};
use super::start::Start;
use super::trace::{Arrival, Trace};

/// To the first token of a reply.
const FIRST_TOKEN_MICROS: u64 = 300_000;
const TOKEN_MICROS: u64 = 12_500;
/// Calls of one feed of a run that wait at once.
const WAITING_MAX: usize = 128;
/// Where virtual time begins: late enough that nothing lies before it.
const START: u64 = 1_000_000_000_000;

struct World<'t> {
    trace: &'t Trace,
    gate: Gate,
    account: Arc<str>,
    tenants: Vec<Arc<str>>,
    max_wait_micros: u64,
    feeds: Vec<Feed>,
    /// Requests and tokens a second of the tightest limits.
    rates: [f64; 2],
    /// By ticket: which call has it, and of which feed.
    calls: Vec<Option<(Ticket, usize, usize)>>,
    ends: BinaryHeap<Reverse<(u64, usize, usize)>>,
    notes: Notes,
    /// The call that came last.
    came: Option<Ticket>,
    /// Instants that were looked at.
    steps: u64,
}

/// Calls that come one after the other.
struct Feed {
    next: usize,
    end: usize,
    waiting: usize,
    start: Start,
}

/// What `trace` would meet under `policy`.
#[must_use]
pub fn predict(trace: &Trace, policy: &Policy) -> Plan {
    let mut world = World::new(trace, policy.clone());
    world.run();
    world.notes.plan(trace.arrivals.len() as u64)
}

impl<'t> World<'t> {
    fn new(trace: &'t Trace, mut policy: Policy) -> Self {
        let name: Arc<str> = policy.upstreams.first().map_or_else(|| "openai".into(), |upstream| upstream.name.clone());
        // Nothing tells limits here, and nothing tells how tokens are charged: as OpenAI does, by the input.
        policy.upstreams =
            vec![UpstreamPolicy { name: name.clone(), learn_limits: false, token_charge: TokenCharge::Input }];
        let max_wait_micros = u64::try_from(policy.queue.max_wait.as_micros()).unwrap_or(u64::MAX);
        let limits = policy.limits.clone();
        let account: Arc<str> = format!("{name}#plan").into();
        let mut gate = Gate::new(policy, 1);
        gate.listen(Interest::Everything);
        let tenants = trace.users.iter().map(|user| if user.is_empty() { "anonymous".into() } else { user.clone() });
        let span = trace.arrivals.last().map_or(0, |arrival| arrival.at_micros);
        Self {
            trace,
            gate,
            tenants: tenants.collect(),
            max_wait_micros,
            rates: tightest(trace, &limits, &account),
            account,
            feeds: feeds(trace),
            calls: Vec::new(),
            ends: BinaryHeap::new(),
            notes: Notes::new(span, limits),
            came: None,
            steps: 0,
        }
    }

    fn run(&mut self) {
        loop {
            self.steps += 1;
            let (arrives, feed) = self.arrives_at();
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
                self.admit(now, feed);
            }
            self.outputs(now);
        }
    }

    /// When the next call comes, and of which feed.
    fn arrives_at(&self) -> (u64, usize) {
        let at = |feed: &Feed| match self.trace.arrivals.get(feed.next) {
            Some(_) if feed.next == feed.end || self.is_run() && feed.waiting >= WAITING_MAX => u64::MAX,
            Some(_) if self.is_run() => feed.start.next_at(self.rates).max(self.notes.now),
            Some(arrival) => arrival.at_micros,
            None => u64::MAX,
        };
        (0..).zip(&self.feeds).map(|(number, feed)| (at(feed), number)).min().unwrap_or((u64::MAX, 0))
    }

    fn is_run(&self) -> bool {
        self.trace.feeds.is_some()
    }

    fn admit(&mut self, now: u64, feed: usize) {
        let index = self.feeds[feed].next;
        let arrival = &self.trace.arrivals[index];
        let feed_of = &mut self.feeds[feed];
        feed_of.next += 1;
        feed_of.waiting += 1;
        feed_of.start.goes(arrival.cost.input_tokens);
        let is_run = self.is_run();
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
        self.calls[ticket.index()] = Some((ticket, index, feed));
        self.came = Some(ticket);
        if is_run && self.feeds.iter().all(|feed| feed.next == feed.end) {
            self.gate.nothing_follows(Time::from_micros(START + now));
        }
    }

    fn subject(&self, arrival: &Arrival) -> Subject {
        let (user, model) = (arrival.user as usize, usize::from(arrival.model));
        Subject {
            user: Some(self.trace.users[user].clone()).filter(|user| !user.is_empty()),
            request_type: arrival.request_type,
            ..subject(&self.account, &self.trace.models[model], &self.tenants[user])
        }
    }

    fn outputs(&mut self, now: u64) {
        self.notes.now = now;
        let came = self.came.take();
        let mut queued = None;
        while let Some(output) = self.gate.poll_output() {
            match output {
                Output::Granted { ticket, queued_for, .. } => {
                    let Some(Some((_, index, feed))) = self.calls.get(ticket.index()).copied() else { continue };
                    self.feeds[feed].waiting -= 1;
                    let arrival = &self.trace.arrivals[index];
                    let waited = u64::try_from(queued_for.as_micros()).unwrap_or(u64::MAX);
                    // All of a run is there from its beginning.
                    let waited = if self.is_run() { now } else { waited };
                    self.gate.sent(ticket);
                    // One that is queued behind others may go at the same instant all the same.
                    queued = queued.filter(|_| came != Some(ticket));
                    let subject = self.subject(arrival);
                    self.notes.granted(now, waited, arrival, &subject);
                    let takes = FIRST_TOKEN_MICROS + arrival.output_tokens.saturating_mul(TOKEN_MICROS);
                    self.ends.push(Reverse((now + takes, index, ticket.index())));
                }
                Output::Refused { ticket, refusal } => {
                    let Some((_, index, feed)) = self.calls.get_mut(ticket.index()).and_then(Option::take) else {
                        continue;
                    };
                    self.feeds[feed].waiting -= 1;
                    self.notes.refused(self.trace.arrivals[index].priority, refusal.reason.name());
                }
                Output::Event(event) => {
                    if let Event::Queued { limit, dimension, .. } = *event {
                        queued = Some((limit, dimension));
                    }
                }
                _ => {}
            }
        }
        if let Some((limit, dimension)) = queued {
            self.notes.bound(now, &limit, dimension);
        }
    }

    fn ended(&mut self, now: u64, index: usize, place: usize) {
        let Some((ticket, ..)) = self.calls[place].take() else { return };
        self.feeds.iter_mut().for_each(|feed| feed.start.answered(now));
        let Arrival { cost, output_tokens, .. } = self.trace.arrivals[index];
        let usage = Some(Usage { input_tokens: cost.input_tokens, output_tokens });
        let outcome = Outcome { usage, ..Outcome::of(Ending::Success) };
        // Nothing follows on a success.
        let _done = self.gate.settle(ticket, &outcome, Time::from_micros(START + now));
        self.notes.ended_at = now;
    }
}

fn feeds(trace: &Trace) -> Vec<Feed> {
    let mut next = 0;
    let lengths = trace.feeds.clone().unwrap_or_else(|| vec![trace.arrivals.len()]);
    let feed = |length: usize| {
        let begin = next;
        next += length;
        Feed { next: begin, end: next, waiting: 0, start: Start::default() }
    };
    lengths.into_iter().map(feed).collect()
}

/// Calls of no user.
fn subject(account: &Arc<str>, model: &Arc<str>, tenant: &Arc<str>) -> Subject {
    Subject {
        account: account.clone(),
        model: model.clone(),
        key: None,
        organization: None,
        project: None,
        user: None,
        request_type: RequestType::Chat,
        tenant: tenant.clone(),
    }
}

/// Requests and tokens a second of the tightest limits on any model; infinite where there is none.
fn tightest(trace: &Trace, limits: &[Limit], account: &Arc<str>) -> [f64; 2] {
    [Dimension::RequestsPerMinute, Dimension::TokensPerMinute].map(|dimension| {
        let units = trace.models.iter().flat_map(|model| {
            let subject = subject(account, model, account);
            limits.iter().filter_map(move |limit| match limit.rates_for(&subject).allowance(dimension) {
                Some(Allowance::Units(units)) => Some(units.get()),
                _ => None,
            })
        });
        units.min().map_or(f64::INFINITY, |units| units as f64 / 60.0)
    })
}

#[cfg(test)]
mod tests {
    use tidegate_core::call::Priority;
    use tidegate_core::config::load;
    use tidegate_core::cost::Cost;

    use super::*;

    /// Looks at instants, and places for calls, that a trace of `calls` takes, which asks for a twentieth more than there is.
    fn taken(calls: u64) -> (u64, usize) {
        let arrival = |number: u64| Arrival {
            at_micros: number * 10_000,
            cost: Cost { input_tokens: 500, max_output_tokens: Some(100), ..Cost::default() },
            output_tokens: 100,
            model: 0,
            user: (number % 50) as u32,
            priority: Priority::ALL[number as usize % 3],
            request_type: RequestType::Chat,
        };
        let trace = Trace {
            arrivals: (0..calls).map(arrival).collect(),
            models: vec!["m".into()],
            users: (0..50).map(|number| format!("u{number}").into()).collect(),
            feeds: None,
        };
        let limits = "[queue]\nmax_waiting = 1000\n[limit.account]\nper = [\"account\"]\nrequests_per_minute = 5700\nburst_allowance = 100\n\
                      [limit.user]\nper = [\"user\"]\nrequests_per_minute = 150\n";
        let policy = load(&[("test.toml".to_owned(), limits.to_owned())], std::iter::empty()).unwrap().config.policy;
        let mut world = World::new(&trace, policy);
        world.run();
        (world.steps, world.calls.len())
    }

    #[test]
    fn what_a_plan_takes_grows_with_the_calls_and_no_faster() {
        for calls in [20_000, 80_000] {
            let (steps, places) = taken(calls);
            // One to come and one to end, and some wake-ups in between.
            assert!(steps < 3 * calls, "{steps} for {calls}");
            // Places are for calls under way: those that may wait and some hundred in flight, however many come in all.
            assert!((1000..1500).contains(&places), "{places} for {calls}");
        }
    }
}
