//! What the simulator pretends: limits by model, latency, output, other tenants and faults, read from TOML.
//!
//! Everything has a default and unknown keys are errors. Nothing here is scaled or drawn; that is done when a call comes.

mod defaults;
mod fault;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

pub use self::fault::{Fault, FaultKind};
use crate::limiter::{self, Charge, MINUTE_MICROS, Rules};

/// A scenario. [`Scenario::default`] is a first-tier account without faults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// The organization that messages and headers name.
    pub organization: String,
    /// Whether a call without `Authorization` is answered 401.
    pub require_auth: bool,
    /// Whether every credential has limits of its own; else all share one account.
    pub per_key_limits: bool,
    /// Whether a refused call still costs a request.
    pub refused_count: bool,
    /// Which headers of a 429 tell the wait.
    pub retry_after: RetryAfter,
    /// What the message of a 429 tells.
    pub refusal_message: RefusalMessage,
    /// Whether `x-ratelimit-*` headers are sent.
    pub headers: bool,
    /// What headers and messages tell of minute limits, as a multiple of the truth.
    pub told_factor: f64,
    /// The `code` of quota refusals, such as `insufficient_quota` or, since 2026, `credit_balance_exhausted`.
    pub quota_code: String,
    /// Whether the built-in models stay when `model` names others; an entry of the same name replaces the built-in one.
    pub keep_default_models: bool,
    /// How long answers take.
    pub latency: Latency,
    /// How long answers are.
    pub output: Output,
    /// Models by name. The entry `default`, where there is one, stands for every other name.
    pub model: BTreeMap<String, Model>,
    /// Callers that nobody sees.
    pub tenant: Vec<TenantRule>,
    /// What goes wrong, the first match in order.
    pub fault: Vec<Fault>,
}

/// Which headers of a 429 tell the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// `retry-after` in whole seconds, at least 1.
    Seconds,
    /// `retry-after-ms`.
    Ms,
    /// Both.
    Both,
    /// Neither: only the message tells it.
    None,
    /// In turn `retry-after-ms`, neither and `retry-after`.
    Mixed,
}

/// What the message of a 429 tells that was not too large for the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalMessage {
    /// The limit's numbers and the wait, as OpenAI's do.
    #[default]
    Wait,
    /// The limit's numbers.
    Numbers,
    /// Not even which limit it was.
    Nothing,
}

/// How a model charges tokens when it admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeRule {
    /// What was measured on api.openai.com: chat characters / 4 + 2 without tools, responses real input + 19 (217 with
    /// tools), completions the larger of characters / 4 and `max_tokens`, embeddings characters / 4, each image 765,
    /// audio a request only.
    #[default]
    Measured,
    /// Characters / 4.
    Input,
    /// Characters / 4 and the most that the answer may have, times `n`.
    InputPlusMax,
    /// The larger of characters / 4 and the most that the answer may have.
    Max,
    /// Characters / 4 at first; the output is debited when it is complete, into debt if need be.
    Usage,
}

/// One model, or `default`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The limit that it shares; absent: the model's own name.
    pub group: Option<String>,
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Requests per day.
    pub rpd: Option<u64>,
    /// Tokens per day.
    pub tpd: Option<u64>,
    /// Images per minute.
    pub ipm: Option<u64>,
    /// Minute limits are enforced over this too.
    #[serde(deserialize_with = "duration_or_none")]
    pub quantum: Option<Duration>,
    /// How tokens are charged.
    pub charge: ChargeRule,
    /// How full the levels start, 0 to 1; absent: full.
    pub initial_fill: Option<f64>,
    /// Whether the `-requests` headers speak of the day, as some of OpenAI's models do.
    pub rpd_in_headers: bool,
    /// Absent: the scenario's.
    pub latency: Option<Latency>,
    /// Absent: the scenario's.
    pub output: Option<Output>,
}

/// How long answers take. Log-normal around medians; `sigma` is the deviation of the logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// Median time to the first token.
    #[serde(deserialize_with = "duration")]
    pub first_token: Duration,
    /// Its spread; 0 makes it constant.
    pub sigma: f64,
    /// Median of tokens per second.
    pub tokens_per_second: f64,
    /// Its spread; 0 makes it constant.
    pub tokens_sigma: f64,
    /// How long a refusal takes.
    #[serde(deserialize_with = "duration")]
    pub refusal: Duration,
}

/// How long answers are, in tokens. Log-normal around the median.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// Median tokens of an answer.
    pub median: u32,
    /// Its spread; 0 makes it constant.
    pub sigma: f64,
    /// No answer is longer.
    pub max: u32,
    /// Tokens in one streamed chunk.
    pub chunk: u32,
}

/// Someone else who uses the account's limit of one model, at random instants.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRule {
    /// The model whose limit is shared.
    pub model: String,
    /// The share of the limit that it tries to use, 0 to 1.
    pub share: Option<f64>,
    /// Calls per minute.
    pub rpm: Option<f64>,
    /// Tokens per minute.
    pub tpm: Option<f64>,
    /// Tokens of each of its calls; absent: what fits `rpm` and `tpm`, else 1,000.
    pub tokens_per_call: Option<u64>,
    /// When it begins, from the simulator's start.
    #[serde(default, deserialize_with = "duration")]
    pub from: Duration,
    /// When it ends; absent: never.
    #[serde(default, deserialize_with = "duration_or_none")]
    pub until: Option<Duration>,
}

/// What is wrong with a scenario, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ScenarioError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl Scenario {
    /// Reads a scenario. What it does not say is as in [`Scenario::default`]; naming a model replaces all built-in ones
    /// unless `keep_default_models` is set.
    pub fn from_toml(text: &str) -> Result<Scenario, ScenarioError> {
        let mut scenario: Scenario = toml::from_str(text).map_err(|e| {
            let offset = e.span().map_or(0, |span| span.start);
            let (line, column) = position(text, offset);
            ScenarioError { line, column, message: e.message().to_owned() }
        })?;
        scenario.check().map_err(|(near, message)| {
            let (line, column) = position(text, text.find(&near).unwrap_or(0));
            ScenarioError { line, column, message }
        })?;
        if scenario.keep_default_models {
            for (name, model) in defaults::models() {
                scenario.model.entry(name).or_insert(model);
            }
        }
        Ok(scenario)
    }

    /// The entry of a model: its own, that of its family, or `default`.
    pub(crate) fn entry(&self, model: &str) -> Option<(&str, &Model)> {
        let by_name = |name: &str| self.model.get_key_value(name).filter(|(key, _)| *key != "default");
        let found = by_name(model).or_else(|| by_name(family(model))).or_else(|| self.model.get_key_value("default"));
        found.map(|(key, entry)| (key.as_str(), entry))
    }

    /// The name of the limit that a model shares, given its entry.
    pub(crate) fn group<'a>(&self, model: &'a str, key: &'a str, entry: &'a Model) -> &'a str {
        match &entry.group {
            Some(group) => group,
            None if key == "default" => family(model),
            None => key,
        }
    }

    /// The limits of an entry, in the limiter's terms.
    pub(crate) fn rules(&self, entry: &Model) -> Rules {
        Rules {
            rpm: entry.rpm,
            tpm: entry.tpm,
            rpd: entry.rpd,
            tpd: entry.tpd,
            ipm: entry.ipm,
            quantum_micros: entry.quantum.map(micros),
            refused_count: self.refused_count,
            initial_fill: entry.initial_fill.unwrap_or(1.0),
        }
    }

    /// The tenants of a limit, in the limiter's terms.
    pub(crate) fn tenants(&self, group: &str) -> Vec<limiter::Tenant> {
        let of_group = self.tenant.iter().filter_map(|tenant| {
            let (key, entry) = self.entry(&tenant.model)?;
            (self.group(&tenant.model, key, entry) == group).then(|| tenant.arrivals(entry))
        });
        of_group.collect()
    }

    fn check(&self) -> Result<(), (String, String)> {
        for (name, model) in &self.model {
            let limits = [model.rpm, model.tpm, model.rpd, model.tpd, model.ipm];
            if limits.contains(&Some(0)) {
                return Err((
                    name.clone(),
                    format!("model \"{name}\": a limit must be above 0; leave it out to lift it"),
                ));
            }
            if model.quantum.is_some_and(|q| q.is_zero() || micros(q) > MINUTE_MICROS) {
                return Err(("quantum".into(), "quantum must be above 0s and at most 60s".into()));
            }
            if model.initial_fill.is_some_and(|f| !(0.0..=1.0).contains(&f)) {
                return Err(("initial_fill".into(), "initial_fill must be from 0 to 1".into()));
            }
        }
        let latencies = self.model.values().filter_map(|m| m.latency.as_ref()).chain([&self.latency]);
        for latency in latencies {
            if !(latency.tokens_per_second > 0.0 && latency.sigma >= 0.0 && latency.tokens_sigma >= 0.0) {
                return Err(("latency".into(), "latency: tokens_per_second must be above 0, sigmas at least 0".into()));
            }
        }
        let outputs = self.model.values().filter_map(|m| m.output.as_ref()).chain([&self.output]);
        for output in outputs {
            if output.max == 0 || output.chunk == 0 || output.sigma.is_nan() || output.sigma < 0.0 {
                return Err(("output".into(), "output: max and chunk must be above 0, sigma at least 0".into()));
            }
        }
        for tenant in &self.tenant {
            let rates = [tenant.share, tenant.rpm, tenant.tpm];
            if rates.iter().all(Option::is_none) || rates.iter().flatten().any(|r| !(r.is_finite() && *r >= 0.0)) {
                return Err(("tenant".into(), "tenant: set share, rpm or tpm, none below 0".into()));
            }
        }
        self.fault.iter().try_for_each(Fault::check)
    }
}

impl TenantRule {
    fn arrivals(&self, entry: &Model) -> limiter::Tenant {
        let limit = |limit: Option<u64>| limit.map(|l| l as f64);
        let (rpm, tpm) = match self.share {
            Some(share) => (limit(entry.rpm).map(|l| l * share), limit(entry.tpm).map(|l| l * share)),
            None => (self.rpm, self.tpm),
        };
        let each = self.tokens_per_call.map(|t| t as f64);
        let (calls_per_minute, tokens) = match (rpm, tpm) {
            (Some(rpm), Some(tpm)) => match each {
                Some(each) => (tpm / each.max(1.0), each),
                None => (rpm, tpm / rpm.max(f64::MIN_POSITIVE)),
            },
            (Some(rpm), None) => (rpm, each.unwrap_or(0.0)),
            (None, Some(tpm)) => (tpm / each.unwrap_or(1_000.0).max(1.0), each.unwrap_or(1_000.0)),
            (None, None) => (0.0, 0.0),
        };
        limiter::Tenant {
            calls_per_minute,
            charge: Charge::of_tokens(tokens.round() as u64),
            from_micros: micros(self.from),
            until_micros: self.until.map_or(u64::MAX, micros),
        }
    }
}

/// The family of a dated snapshot: `gpt-4o-2024-08-06` and `gpt-4-0613` belong to `gpt-4o` and `gpt-4`.
pub(crate) fn family(model: &str) -> &str {
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    let mut parts = model.rsplitn(4, '-');
    let (last, before, third, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    if let (Some(day), Some(month), Some(year), Some(rest)) = (last, before, third, rest)
        && digits(day, 2)
        && digits(month, 2)
        && digits(year, 4)
    {
        return rest;
    }
    match model.rsplit_once('-') {
        Some((rest, last)) if digits(last, 4) => rest,
        _ => model,
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    // humantime knows no bare 0.
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(&text).map_err(|e| {
        serde::de::Error::custom(format!(
            "\"{text}\" is not a duration ({e}); write for example \"250ms\" or \"1m30s\""
        ))
    })
}

pub(crate) fn duration_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
