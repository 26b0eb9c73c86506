//! The life of one call, from its line to its result: a place under the ceiling, its turn, the send, what follows.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate::{Driver, Permit, Settled};
use tidegate_core::call::{Call, Priority, Subject, WhenOpen};
use tidegate_core::config::{Policy, RetryBudgetConfig};
use tidegate_core::cost::Usage;
use tidegate_core::fault::FaultKind;
use tidegate_core::limit::{Allowance, Dimension, Limit, Rates, Scope};
use tidegate_core::openai::models::ModelGroups;
use tidegate_core::outcome::{Ending as Ended, Outcome};
use tidegate_core::refusal::{GiveUp, Reason, Refusal};
use tidegate_core::time::Time;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::account::Note;
use crate::beginning::{Beginning, Verdict};
use crate::ceiling::Ceiling;
use crate::journal::Journal;
use crate::line::{self, Line};
use crate::output::Came;
use crate::progress::Counts;
use crate::quota::Quota;
use crate::send::{Sent, Upstream};
use crate::summary::Ending;
use crate::writer::Row;

/// After an outage is over this is how long it may go unnoticed: the breaker's longest rest is five times its first.
const RECOVERY_TIMEOUT: Duration = Duration::from_millis(400);
/// A call that was turned away for a reason that passes comes again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The limit that flags give.
pub(crate) const GIVEN: &str = "run";

/// The policy of a run: nobody waits for it, so that it waits as long as it takes, and finds out soon that an outage is over.
///
/// `rates` are limits given by flags, as those of the account and each model group.
#[must_use]
pub fn bulk_policy(mut policy: Policy, rates: &Rates) -> Policy {
    policy.breaker.recovery_timeout = policy.breaker.recovery_timeout.min(RECOVERY_TIMEOUT);
    policy.breaker.half_open_max_calls = policy.breaker.half_open_max_calls.min(1);
    policy.breaker.expected_recovery_time = policy.breaker.expected_recovery_time.min(Duration::from_secs(2));
    policy.retry.max_attempts = policy.retry.max_attempts.max(5);
    policy.retry.total_timeout = None;
    policy.retry.budget = RetryBudgetConfig { ratio: 1.0, min_per_second: 1000 };
    policy.retry.strategies.entry("model_overloaded".to_owned()).and_modify(|strategy| strategy.base_delay = None);
    // There are no bursts of others to keep anything free for.
    policy.queue.reserve = 0.0;
    policy.queue.max_waiting = usize::MAX;
    policy.queue.max_bytes = u64::MAX;
    let mut given = Limit {
        name: GIVEN.into(),
        per: vec![Scope::Account, Scope::Model],
        base: rates.clone(),
        overrides: Vec::new(),
        algorithm: None,
        mode: Default::default(),
    };
    let in_flight = given.base.allowances[Dimension::MaxInFlight.index()].take();
    if given.base != Rates::default() {
        policy.limits.push(given.clone());
    }
    if let Some(Allowance::Units(units)) = in_flight {
        let base = Rates::default().with(Dimension::MaxInFlight, units.get());
        policy.limits.push(Limit { name: "run in flight".into(), per: Vec::new(), base, ..given });
    }
    policy
}

/// What all calls of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) driver: Driver,
    pub(crate) upstream: Upstream,
    pub(crate) groups: ModelGroups,
    pub(crate) priority: Priority,
    pub(crate) ceiling: Ceiling,
    pub(crate) quota: Quota,
    pub(crate) beginning: Beginning,
    pub(crate) counts: Counts,
    /// `None`: what is written cannot be gone on from.
    pub(crate) journal: Option<Journal>,
    pub(crate) results: mpsc::Sender<Row>,
    /// Why nothing more is to be sent. `None`: it is.
    pub(crate) ending: watch::Sender<Option<Ending>>,
    pub(crate) calibrations: Mutex<HashMap<Arc<str>, tidegate_core::openai::estimate::Calibration>>,
}

impl Shared {
    /// Nothing more is sent; what is in flight may end. The first reason stays.
    pub(crate) fn end(&self, why: Ending) {
        self.ending.send_if_modified(|ending| {
            let is_first = ending.is_none();
            if is_first {
                *ending = Some(why);
            }
            is_first
        });
    }

    /// Counts a result, and has it written.
    pub(crate) async fn write(&self, row: Row) {
        self.counts.ended(row.failure.is_some());
        if let Some(why) = &row.failure {
            self.counts.failed_with(why.clone());
        }
        // A writer that is gone has said why.
        let _ = self.results.send(row).await;
    }

    /// Writes to the journal, if there is one. False: it cannot be written, and the run ends.
    fn notes(&self, note: Note) -> bool {
        let noted = self.journal.as_ref().map_or(Ok(()), |journal| journal.note(note));
        if let Err(error) = &noted {
            self.end(Ending::Unwritable(format!("cannot write the journal: {error}")));
        }
        noted.is_ok()
    }

    /// Waits until nothing more is to be sent.
    pub(crate) async fn ended(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.ending.subscribe().wait_for(Option::is_some).await;
    }

    fn call(&self, number: u64, line: &Line, group: &Arc<str>) -> Call {
        let mut cost = line.asking.cost;
        if line.asking.request_type == tidegate_core::call::RequestType::Chat {
            let calibrations = self.calibrations.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(calibration) = calibrations.get(group).filter(|_| line.url.ends_with("/responses")) {
                cost.input_tokens = calibration.apply(cost.input_tokens);
            }
        }
        Call {
            id: Arc::from(format!("line_{number}")),
            subject: Subject {
                account: self.upstream.account.clone(),
                model: group.clone(),
                key: None,
                organization: None,
                project: None,
                user: None,
                request_type: line.asking.request_type,
                tenant: Arc::from("run"),
            },
            cost,
            priority: self.priority,
            start_by: Time::NEVER,
            end_by: Time::NEVER,
            when_open: WhenOpen::Wait,
            body_bytes: line.body.len() as u64,
            own_charged: false,
        }
    }

    /// Whether the breaker of a model group lets calls through as usual.
    fn is_closed(&self, group: &str) -> bool {
        let name = format!("{}/{group}", self.upstream.name);
        self.driver.with(|gate, now| {
            gate.status(now).breakers.iter().all(|breaker| breaker.name != name || breaker.state == "closed")
        })
    }
}

type Turn = Pin<Box<dyn Future<Output = Result<Permit, Box<Refusal>>> + Send>>;

/// What follows on an attempt or a refusal.
enum Then {
    /// The call has its result.
    Result(Came),
    /// It waits for its next attempt.
    Wait(Turn),
    /// It begins again, after a while, when there may be quota.
    Again(Duration),
    /// It is left without a result.
    Leave,
}

/// Makes one call. `place`: held until its first turn, so that only so many wait.
pub(crate) async fn make(shared: Arc<Shared>, number: u64, line: Line, place: OwnedSemaphorePermit) {
    if let Some(came) = attempts(&shared, number, &line, place).await {
        match shared.beginning.result(&came, Row::new(number, &line.custom_id, &came)) {
            Verdict::Keep => {}
            Verdict::End(why) => shared.end(Ending::TurnedAway(why)),
            Verdict::Write(rows) => {
                for row in rows {
                    shared.write(row).await;
                }
            }
        }
    }
}

/// `None`: the run ends before the call has a result.
async fn attempts(shared: &Arc<Shared>, number: u64, line: &Line, place: OwnedSemaphorePermit) -> Option<Came> {
    let group: Arc<str> = shared.groups.group_of(&line.asking.model).into();
    let mut place = Some(place);
    let mut may_be_billed = false;
    let mut turn: Turn = Box::pin(shared.driver.admit(shared.call(number, line, &group)));
    loop {
        // Set aside before its turn: a call that has its turn must not wait for others to end.
        let held = tokio::select! {
            held = shared.ceiling.hold(line.asking.input_tokens_max, line.asking.cost.max_output_tokens) => held,
            () = shared.ended() => return None,
        };
        let Some(held) = held else {
            shared.end(Ending::Ceiling);
            return None;
        };
        let permit = tokio::select! {
            biased;
            () = shared.ended() => None,
            permit = &mut turn => Some(permit),
        };
        let (then, used) = match permit {
            None => (Then::Leave, 0),
            Some(Err(refusal)) => (refused(&refusal), 0),
            Some(Ok(unsent)) if !shared.quota.lets_go() => {
                // Now, not after the wait for quota: the one that finds out needs a place in flight.
                drop(unsent);
                (Then::Again(Duration::ZERO), 0)
            }
            Some(Ok(mut permit)) => {
                drop(place.take());
                let body = match held.output_ceiling {
                    Some(tokens) => line::with_ceiling(&line.body, line.asking.endpoint, tokens),
                    None => line.body.clone(),
                };
                let _one_try = tokio::select! {
                    one_try = shared.beginning.may_send() => one_try,
                    () = shared.ended() => return None,
                };
                if !shared.notes(Note::Sends { number, tokens_max: held.tokens }) {
                    return None;
                }
                let (going, sent_at) = (shared.counts.sends(line.asking.cost.input_tokens), Instant::now());
                let sent = shared.upstream.send(&line.url, body, shared.priority, &mut permit).await;
                drop(going);
                // Before it is counted as an answer, which lets others go.
                if let Some(why) = shared.beginning.attempt(&sent.came, sent.fault.as_ref()) {
                    let base_url = &shared.upstream.base_url;
                    shared.end(Ending::Unreachable(format!("nobody answers at {base_url}: {why}")));
                }
                let is_answer = matches!(sent.came, Came::Answer { .. });
                shared.counts.answers.fetch_add(u64::from(is_answer), Relaxed);
                let billed = sent.fault.as_ref().is_some_and(|fault| fault.kind.may_be_billed());
                let known = sent.usage.map(Usage::total).or((sent.fault.is_some() && !billed).then_some(0));
                let used = known.unwrap_or(held.tokens);
                let then = settle(shared, &group, line, permit, sent, sent_at);
                may_be_billed |= used > 0;
                // If it cannot be noted the run ends for it, and the call is counted as one that may have been billed.
                shared.notes(match may_be_billed {
                    false => Note::Over { number },
                    true => Note::Used { number, tokens: used },
                });
                (then, used)
            }
        };
        shared.ceiling.give_back(held, used);
        match then {
            Then::Result(came) => return Some(came),
            Then::Leave => return None,
            Then::Wait(next) => turn = next,
            Then::Again(after) => {
                // Whoever waits for quota keeps no place in the queue, but those behind it need none either.
                let quota = async {
                    tokio::time::sleep(after).await;
                    shared.quota.may_be_fine().await;
                };
                tokio::select! {
                    () = quota => {}
                    () = shared.ended() => return None,
                }
                turn = Box::pin(shared.driver.admit(shared.call(number, line, &group)));
            }
        }
    }
}

fn refused(refusal: &Refusal) -> Then {
    match &refusal.reason {
        Reason::Limit(report) | Reason::TooLarge(report) if report.allowed == 0 => Then::Result(Came::Nothing {
            code: "blocked",
            message: format!("not sent: limit \"{}\" allows no {}", report.limit, report.dimension.openai_phrase()),
        }),
        Reason::TooLarge(report) => Then::Result(Came::Nothing {
            code: "request_too_large",
            message: format!(
                "not sent: it asks for {} of {}, limit \"{}\" holds {}",
                report.requested,
                report.dimension.openai_phrase(),
                report.limit,
                report.allowed
            ),
        }),
        _ => Then::Again(refusal.retry_after.unwrap_or(AGAIN_AFTER).max(AGAIN_AFTER)),
    }
}

fn settle(shared: &Shared, group: &Arc<str>, line: &Line, permit: Permit, sent: Sent, sent_at: Instant) -> Then {
    let Sent { came, fault, usage, first_byte_after } = sent;
    let Some(fault) = fault else {
        shared.quota.fine(sent_at);
        if let Some(usage) = usage {
            shared.counts.used(usage);
            if line.url.ends_with("/responses") {
                let mut calibrations = shared.calibrations.lock().unwrap_or_else(PoisonError::into_inner);
                let estimated = line.asking.cost.input_tokens;
                calibrations.entry(group.clone()).or_default().learn(estimated, usage.input_tokens);
            }
        }
        // Nothing is left to be done after a success.
        let _done = permit.settle(Outcome { ending: Ended::Success, usage, first_byte_after });
        return Then::Result(came);
    };
    // Some say it with status 200, and mean the same.
    if fault.status == Some(429) || fault.kind.is_rate() {
        let counts = &shared.counts;
        let met = if fault.status == Some(429) { &counts.met_429 } else { &counts.met_in_band };
        met.fetch_add(1, Relaxed);
        shared.counts.sent_tokens.fetch_sub(line.asking.cost.input_tokens, Relaxed);
    }
    let kind = fault.kind;
    if kind.is_service_fault() {
        let mut last = shared.counts.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(fault.summary.to_string());
    }
    match permit.settle(Outcome { ending: Ended::Failed(fault), usage, first_byte_after }) {
        Settled::Retry(waiting) => Then::Wait(Box::pin(waiting)),
        Settled::Done => Then::Result(came),
        Settled::GiveUp(given_up) => given_up_on(shared, group, kind, &given_up, came),
    }
}

fn given_up_on(shared: &Shared, group: &str, kind: FaultKind, given_up: &GiveUp, came: Came) -> Then {
    if kind == FaultKind::QuotaExhausted {
        if !shared.quota.exhausted() {
            return Then::Again(Duration::ZERO);
        }
        shared.end(Ending::Quota);
        return Then::Leave;
    }
    let wait = given_up.retry_after.unwrap_or(AGAIN_AFTER);
    // A limit is no fault of the call's, and neither is an outage: it is there for all, and for as long as it takes.
    if kind.is_rate() || (kind.is_service_fault() && !shared.is_closed(group)) {
        return Then::Again(wait);
    }
    Then::Result(came)
}
