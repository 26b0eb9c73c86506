//! Decides what operators can do to limits: set them back to full, raise them for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tidegate_core::limit::{Limit, Scope, glob_matches};
use tidegate_watch::audit::{Kind, Record};

use super::Ask;
use super::answer::{Answer, json};
use super::body::{self, Field, Fields};
use super::overriding::reason_of;
use crate::keys::quoted;
use crate::operating::{self, Change, Raised, Said, Standing, to_gate};
use crate::refusal::OwnReply;
use crate::shared::Shared;

const BOOST: &str = r#"{"factor":1.5,"for":"10m","match":{"user":"ada"},"reason":"…"}; match and reason may be left out, and factor 1 ends a boost"#;
const FACTOR_MAX: f64 = 1000.0;
const LASTING_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Boosts in force at one time: each is looked at for each new level.
const BOOSTS_MAX: usize = 256;
/// How a limit stands that nobody has raised.
const PLAIN: &str = "× 1";
const PATTERN_CHARS_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoostBody {
    factor: f64,
    #[serde(rename = "for")]
    lasting: Option<String>,
    #[serde(rename = "match", default)]
    matching: BTreeMap<String, String>,
    reason: Option<String>,
}

impl Fields for BoostBody {
    fn fields() -> Vec<Field> {
        let is_names = |value: &Value| value.as_object().is_some_and(|names| names.values().all(Value::is_string));
        vec![
            ("factor", Value::is_number, format!("a number {}", boost_factor(0.0).err().unwrap_or_default())),
            ("for", Value::is_string, boost_lasting("").err().unwrap_or_default()),
            ("match", is_names, r#"names or patterns by what the limit is per, as {"user":"ada"}"#.to_owned()),
            body::reason_field(),
        ]
    }

    const REQUIRED: &'static [&'static str] = &["factor", "match"];
}

/// Sets every level back to full.
pub(super) async fn reset_all(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let by = ask.by.clone();
    let done = operating::change(&ask.shared, move |_, _| {
        let record = Record { who: Some(by), why: reason, ..Record::new(Kind::Override, "reset of all limits") };
        Ok(Change { record, act: to_gate(|gate, now| gate.reset_limits(now)) })
    });
    let mut done = done.await?;
    done.warnings.extend(saved(&ask).await);
    json(&done)
}

/// Sets the levels of one limit back to full.
pub(super) async fn reset(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let (name, by): (Arc<str>, _) = (ask.name.as_str().into(), ask.by.clone());
    let done = operating::change(&ask.shared, move |shared, _| {
        find(&shared.settings.load().config.policy.limits, &name)?;
        let record = Record {
            limit: Some(name.clone()),
            who: Some(by),
            why: reason,
            ..Record::new(Kind::Override, "reset of a limit")
        };
        let act = to_gate(move |gate, now| {
            gate.reset_limit(&name, now);
        });
        Ok(Change { record, act })
    });
    let mut done = done.await?;
    done.warnings.extend(saved(&ask).await);
    json(&done)
}

/// Raises a limit, or some of its levels, for a while.
pub(super) async fn boost(mut ask: Ask) -> Answer {
    let BoostBody { factor, lasting, matching, reason } = body::read(ask.request.body_mut(), BOOST).await?;
    let wrong = |message: String| Err(Box::new(OwnReply::invalid_body(format!("{message}; send {BOOST}"))));
    if let Err(allowed) = boost_factor(factor) {
        return wrong(format!("factor must be {allowed}, not {factor}"));
    }
    let lasting = match lasting.as_deref().map(|written| (written, boost_lasting(written))) {
        Some((_, Ok(lasting))) => lasting,
        None if factor == 1.0 => Duration::ZERO,
        Some((written, Err(allowed))) => return wrong(format!("for must be {allowed}, not {}", quoted(written))),
        None => return wrong("for is missing".to_owned()),
    };
    let reason = body::reason(reason)?;
    let (name, by): (Arc<str>, _) = (ask.name.into(), ask.by);
    let matching: BTreeMap<String, Arc<str>> =
        matching.into_iter().map(|(scope, pattern)| (scope, pattern.into())).collect();
    let ends = factor == 1.0;
    let nobody_yet = (!ends && !fits_any(&ask.shared, &name, &matching))
        .then(|| format!("no level of \"{name}\" that is in use fits this match; it counts for those that will"));
    let done = operating::change(&ask.shared, move |shared, standing| {
        // A limit that is no longer configured may be raised still.
        if !ends || !standing.boosts.iter().any(|raised| raised.limit == name) {
            let settings = shared.settings.load();
            check(find(&settings.config.policy.limits, &name)?, &matching)?;
        }
        let said = Said::now(by.clone(), reason.clone());
        let raised = Raised::new(name.clone(), factor, matching, lasting, said);
        let (before, after) = if ends { end(standing, &raised)? } else { replace(standing, raised) };
        if standing.boosts.len() > BOOSTS_MAX {
            let message = format!("there are {BOOSTS_MAX} boosts already; end one of them with factor 1");
            return Err(Box::new(OwnReply::invalid_body(message)));
        }
        let record = Record {
            limit: Some(name),
            who: Some(by),
            why: reason,
            before: Some(before.into()),
            after: Some(after.into()),
            ..Record::new(Kind::Override, "boost")
        };
        Ok(Change { record, act: None })
    });
    let mut done = done.await?;
    done.warnings.extend(nobody_yet);
    json(&done)
}

/// Whether a level of the limit fits; also where all of them are meant.
fn fits_any(shared: &Shared, name: &str, matching: &BTreeMap<String, Arc<str>>) -> bool {
    if matching.is_empty() {
        return true;
    }
    let levels = shared.driver.with(|gate, now| gate.status(now).limits);
    levels.iter().filter(|level| level.limit == name).any(|level| {
        let fits = |(scope, whose): (&&str, &String)| {
            // An account's name ends in `*`, for a credential that nobody is to see.
            matching.get(*scope).is_none_or(|pattern| glob_matches(pattern, whose) || glob_matches(whose, pattern))
        };
        level.matching.iter().all(fits)
    })
}

/// By what a limit may be raised for a while; 1 ends that.
///
/// # Errors
/// What it must be.
pub fn boost_factor(factor: f64) -> Result<f64, String> {
    if (1.0..=FACTOR_MAX).contains(&factor) { Ok(factor) } else { Err(format!("from 1 to {FACTOR_MAX}")) }
}

/// For how long a limit may be raised, as people write it: `10m`.
///
/// # Errors
/// What it must be.
pub fn boost_lasting(written: &str) -> Result<Duration, String> {
    let lasting = humantime::parse_duration(written).ok();
    let is_allowed = |lasting: &Duration| (Duration::from_secs(1)..=LASTING_MAX).contains(lasting);
    lasting.filter(is_allowed).ok_or_else(|| "a duration from 1s to 30d".to_owned())
}

/// Puts a boost in the place of one that selects the same levels; how these stood before, and how they will.
fn replace(standing: &mut Standing, raised: Raised) -> (String, String) {
    let is_same = |other: &Raised| other.limit == raised.limit && other.matching == raised.matching;
    let before = standing.boosts.iter().find(|other| is_same(other)).map_or_else(|| PLAIN.to_owned(), Raised::shown);
    standing.boosts.retain(|other| !is_same(other));
    let after = raised.shown();
    standing.boosts.push(raised);
    (before, after)
}

/// Ends the boost that selects the same levels, or, where none are selected, all of the limit; how it stood before, and how it will.
fn end(standing: &mut Standing, raised: &Raised) -> Result<(String, String), Box<OwnReply>> {
    let boosts = std::mem::take(&mut standing.boosts);
    let (of_limit, others): (Vec<_>, Vec<_>) = boosts.into_iter().partition(|other| other.limit == raised.limit);
    let is_meant = |other: &Raised| raised.matching.is_empty() || other.matching == raised.matching;
    let (over, rest): (Vec<_>, Vec<_>) = of_limit.into_iter().partition(is_meant);
    let shown = |boosts: &[Raised]| boosts.iter().map(Raised::shown).collect::<Vec<_>>().join("; ");
    let still = shown(&rest);
    if over.is_empty() && !rest.is_empty() {
        let message = format!(
            "no boost of \"{}\" has this match, so none was ended; in force: {still}; without match all of them end",
            raised.limit
        );
        return Err(Box::new(OwnReply::conflict(message)));
    }
    standing.boosts = others.into_iter().chain(rest).collect();
    let before = if over.is_empty() { PLAIN.to_owned() } else { shown(&over) };
    Ok((before, PLAIN.to_owned()))
}

fn find<'l>(limits: &'l [Limit], name: &str) -> Result<&'l Limit, Box<OwnReply>> {
    limits
        .iter()
        .find(|limit| &*limit.name == name)
        .ok_or_else(|| Box::new(OwnReply::not_known("limit", name, limits.iter().map(|limit| &*limit.name))))
}

/// A boost selects levels by what the limit has them for.
fn check(limit: &Limit, matching: &BTreeMap<String, Arc<str>>) -> Result<(), Box<OwnReply>> {
    let foreign = matching.keys().find(|scope| Scope::parse(scope).is_none_or(|scope| !limit.per.contains(&scope)));
    if let Some(foreign) = foreign {
        let foreign: String = foreign.chars().take(64).collect();
        let per: Vec<&str> = limit.per.iter().map(|scope| scope.name()).collect();
        let has =
            if per.is_empty() { "one level for all".to_owned() } else { format!("a level per {}", per.join(", ")) };
        let message = format!("match may not name \"{foreign}\": the limit \"{}\" has {has}", limit.name);
        return Err(Box::new(OwnReply::invalid_body(message)));
    }
    let is_wrong = |pattern: &str| pattern.chars().count() > PATTERN_CHARS_MAX || pattern.chars().any(char::is_control);
    if let Some((scope, pattern)) = matching.iter().find(|(_, pattern)| is_wrong(pattern)) {
        let message = format!(
            "{scope} in match must be one line of at most {PATTERN_CHARS_MAX} characters, not {}",
            quoted(pattern)
        );
        return Err(Box::new(OwnReply::invalid_body(message)));
    }
    Ok(())
}

/// Saves levels at once: a process that dies now must not bring back what was forgotten. What went wrong, if anything did.
async fn saved(ask: &Ask) -> Option<String> {
    let dir = ask.shared.state_dir.clone()?;
    let driver = ask.shared.driver.clone();
    let saved = tokio::task::spawn_blocking(move || driver.save_state(&dir, false)).await;
    saved.ok()?.err().map(|error| format!("levels cannot be saved: {error}; after a crash they are as they were"))
}
