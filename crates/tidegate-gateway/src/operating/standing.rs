//! Decides what is in force of what operators have said: pauses, breakers that are held, limits that are raised; and how long.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tidegate_core::breaker::BreakerState;
use tidegate_core::gate::{Boost, Overrides};
use tidegate_core::limit::{Limit, Scope};
use tidegate_core::time::Time;

use crate::shared::unix_now;

/// Who said so, when and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) by: Arc<str>,
    /// RFC 3339.
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Arc<str>>,
}

/// A breaker that is held in a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) name: Arc<str>,
    /// `forced_open` or `forced_closed`.
    pub(crate) state: String,
    #[serde(flatten)]
    pub(crate) said: Said,
}

/// A limit that is raised for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Raised {
    pub(crate) limit: Arc<str>,
    pub(crate) factor: f64,
    /// Which of its levels: name or glob by part of the key. Empty: all.
    #[serde(rename = "match")]
    pub(crate) matching: BTreeMap<String, Arc<str>>,
    /// RFC 3339.
    pub(crate) until: String,
    /// Microseconds since 1970.
    pub(crate) until_micros: u64,
    #[serde(flatten)]
    pub(crate) said: Said,
}

/// What operators have said that is still in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Counts up with each change.
    pub(super) version: u64,
    pub(crate) paused: Option<Said>,
    pub(crate) breakers: Vec<Held>,
    pub(crate) boosts: Vec<Raised>,
}

impl Said {
    pub(crate) fn now(by: Arc<str>, reason: Option<Arc<str>>) -> Self {
        Self { by, at: shown(micros(unix_now())), reason }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by {} at {}", self.by, self.at)?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

impl Raised {
    /// Until `until_micros` since 1970.
    pub(crate) fn new(
        limit: Arc<str>,
        factor: f64,
        matching: BTreeMap<String, Arc<str>>,
        lasting: Duration,
        said: Said,
    ) -> Self {
        let until_micros = micros(unix_now().saturating_add(lasting));
        Self { limit, factor, matching, until: shown(until_micros), until_micros, said }
    }

    pub(super) fn is_over(&self) -> bool {
        self.until_micros <= micros(unix_now())
    }

    /// As the trail has it.
    pub(crate) fn shown(&self) -> String {
        let matching: Vec<String> = self.matching.iter().map(|(scope, pattern)| format!("{scope} {pattern}")).collect();
        let whose = if matching.is_empty() { String::new() } else { format!(" for {}", matching.join(", ")) };
        format!("× {}{whose} until {}", self.factor, self.until)
    }

    /// `None`: it selects by something that this version does not know, and must not raise more than was meant.
    fn boost(&self) -> Option<Boost> {
        let matching = self.matching.iter().map(|(scope, pattern)| Some((Scope::parse(scope)?, pattern.clone())));
        Some(Boost {
            limit: self.limit.clone(),
            permille: (self.factor * 1000.0).round() as u32,
            matching: matching.collect::<Option<_>>()?,
            until: Time::from_micros(self.until_micros),
        })
    }
}

impl Standing {
    pub(super) fn overrides(&self) -> Overrides {
        let state = |name: &str| BreakerState::ALL.into_iter().find(|state| state.name() == name);
        Overrides {
            version: self.version,
            paused: self
                .paused
                .as_ref()
                .map(|said| said.reason.clone().unwrap_or_else(|| "no reason was given".into())),
            breakers: self.breakers.iter().filter_map(|held| Some((held.name.clone(), state(&held.state)?))).collect(),
            boosts: self.boosts.iter().filter_map(Raised::boost).collect(),
        }
    }

    /// Lets go of a breaker.
    pub(crate) fn release(&mut self, name: &str) {
        self.breakers.retain(|held| &*held.name != name);
    }

    /// Boosts that raise nothing, as no limit has their name.
    pub(crate) fn without_limit(&self, limits: &[Limit]) -> Vec<String> {
        let is_there = |raised: &&Raised| limits.iter().any(|limit| limit.name == raised.limit);
        let idle = self.boosts.iter().filter(|raised| !is_there(raised)).map(|raised| {
            format!(
                "there is no limit \"{0}\" any more, but a boost of it, {1}, {2}; should the name return, it is raised: \
                 `tidegate admin limits boost {0} --factor 1` ends that",
                raised.limit,
                raised.shown(),
                raised.said
            )
        });
        idle.collect()
    }

    /// Each part of it for people.
    pub(super) fn told(&self) -> Vec<String> {
        let paused = self.paused.iter().map(|said| format!("calls are paused, {said}"));
        let breakers =
            self.breakers.iter().map(|held| format!("breaker {} is held in {}, {}", held.name, held.state, held.said));
        let boosts =
            self.boosts.iter().map(|raised| format!("limit {} is {}, {}", raised.limit, raised.shown(), raised.said));
        paused.chain(breakers).chain(boosts).collect()
    }
}

fn micros(since_1970: Duration) -> u64 {
    u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX)
}

fn shown(micros: u64) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}
