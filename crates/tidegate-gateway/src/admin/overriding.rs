//! Decides what operators can do to breakers and to the whole: hold, try and close a breaker, pause, resume, reload.

use std::sync::Arc;

use serde::Deserialize;
use tidegate_core::breaker::BreakerState;
use tidegate_watch::audit::{Kind, Record};

use super::Ask;
use super::answer::{Answer, json};
use super::body::{self, Field, Fields};
use crate::operating::{self, Change, Held, Said, to_gate};
use crate::refusal::OwnReply;
use crate::shared::Shared;

/// What may be sent where nothing need be.
const REASON_ONLY: &str = r#"{"reason":"…"} or nothing"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WithReason {
    reason: Option<String>,
}

impl Fields for WithReason {
    fn fields() -> Vec<Field> {
        vec![body::reason_field()]
    }
}

/// No model's name is longer.
const MODEL_CHARS_MAX: usize = 256;

/// What is done to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToBreaker {
    /// Opened, and held so.
    ForceOpen,
    /// Half open: the next calls try it.
    ForceHalfOpen,
    /// Closed, and held so.
    ForceClosed,
    /// Closed and no longer held: it goes on by what it sees.
    Reset,
}

impl ToBreaker {
    const fn word(self) -> &'static str {
        match self {
            Self::ForceOpen => "force-open",
            Self::ForceHalfOpen => "force-half-open",
            Self::ForceClosed => "force-closed",
            Self::Reset => "reset",
        }
    }

    const fn state(self) -> BreakerState {
        match self {
            Self::ForceOpen => BreakerState::ForcedOpen,
            Self::ForceHalfOpen => BreakerState::HalfOpen,
            Self::ForceClosed => BreakerState::ForcedClosed,
            Self::Reset => BreakerState::Closed,
        }
    }
}

/// The reason that a body gives, if it gives one, and nothing else.
pub(super) async fn reason_of(ask: &mut Ask) -> Result<Option<Arc<str>>, Box<OwnReply>> {
    let WithReason { reason } = body::read(ask.request.body_mut(), REASON_ONLY).await?;
    body::reason(reason)
}

/// Changes the state of a breaker by hand.
pub(super) async fn breaker(mut ask: Ask, to: ToBreaker) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let (name, by): (Arc<str>, _) = (ask.name.into(), ask.by);
    let is_new = !breaker_states(&ask.shared).iter().any(|(known, _)| **known == *name);
    let called = name.clone();
    let done = operating::change(&ask.shared, move |shared, standing| {
        let states = breaker_states(shared);
        let holds = matches!(to, ToBreaker::ForceOpen | ToBreaker::ForceClosed);
        let before = match states.iter().find(|(known, _)| **known == *name) {
            Some((_, before)) => *before,
            // Held from the first call on: nobody has to let one through for that.
            None if holds && could_be(shared, &name) => BreakerState::Closed.name(),
            None => {
                let known = states.iter().map(|(known, _)| known.as_str());
                return Err(Box::new(OwnReply::not_known("breaker", &name, known)));
            }
        };
        let record = Record {
            target: Some(name.clone()),
            who: Some(by.clone()),
            why: reason.clone(),
            before: Some(before.into()),
            after: Some(to.state().name().into()),
            ..Record::new(Kind::Override, to.word())
        };
        standing.release(&name);
        if holds {
            let said = Said::now(by, reason);
            standing.breakers.push(Held { name: name.clone(), state: to.state().name().to_owned(), said });
        }
        let act = to_gate(move |gate, now| {
            gate.force_breaker(&name, to.state(), now);
        });
        Ok(Change { record, act })
    });
    let mut done = done.await?;
    if is_new {
        done.warnings
            .push(format!("no call has gone to {called} since the start: make sure that the model's name is right"));
    }
    json(&done)
}

/// Whether calls could go to that: a model, as far as the name says, of an upstream that there is.
fn could_be(shared: &Shared, name: &str) -> bool {
    let upstreams = &shared.settings.load().config.policy.upstreams;
    name.split_once('/').is_some_and(|(upstream, model)| {
        let is_there = upstreams.iter().any(|known| *known.name == *upstream);
        is_there && (1..=MODEL_CHARS_MAX).contains(&model.chars().count()) && !model.chars().any(char::is_control)
    })
}

/// Every breaker, and its state.
fn breaker_states(shared: &Shared) -> Vec<(String, &'static str)> {
    let breakers = shared.driver.with(|gate, now| gate.status(now).breakers);
    breakers.into_iter().map(|breaker| (breaker.name, breaker.state)).collect()
}

/// Refuses new calls.
pub(super) async fn pause(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let by = ask.by;
    let done = operating::change(&ask.shared, move |_, standing| {
        let before = if standing.paused.is_some() { "paused" } else { "running" };
        standing.paused = Some(Said::now(by.clone(), reason.clone()));
        Ok(Change { record: switched("pause", by, reason, before, "paused"), act: None })
    });
    json(&done.await?)
}

/// Takes calls again.
pub(super) async fn resume(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let by = ask.by;
    let done = operating::change(&ask.shared, move |_, standing| {
        let before = if standing.paused.take().is_some() { "paused" } else { "running" };
        Ok(Change { record: switched("resume", by, reason, before, "running"), act: None })
    });
    json(&done.await?)
}

/// Reads the configuration again. The trail has who wants that and why, then what came of it; the answer,
/// what waits for a restart.
pub(super) async fn reload(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let (shared, by) = (ask.shared.clone(), ask.by);
    // To its end, as every change: what the trail tells of is done even where whoever asked for it leaves.
    let reloading = tokio::spawn(async move {
        let record = Record { who: Some(by.clone()), why: reason, ..Record::new(Kind::Override, "reload") };
        let mut done = operating::change(&shared, move |_, _| Ok(Change { record, act: None })).await?;
        match tokio::task::spawn_blocking(move || shared.reread(Some(&by))).await {
            Ok(Ok(waiting)) => {
                done.warnings.extend(waiting);
                Ok(done)
            }
            Ok(Err(why)) => Err(Box::new(OwnReply::not_reloaded(&why))),
            Err(_) => Err(Box::new(OwnReply::draining())),
        }
    });
    json(&reloading.await.unwrap_or_else(|_| Err(Box::new(OwnReply::draining())))?)
}

fn switched(what: &'static str, by: Arc<str>, reason: Option<Arc<str>>, before: &str, after: &str) -> Record {
    Record {
        who: Some(by),
        why: reason,
        before: Some(before.into()),
        after: Some(after.into()),
        ..Record::new(Kind::Override, what)
    }
}
