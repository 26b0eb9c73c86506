//! Decides how one section is read by itself, from any format that serde reads: by the rules of a file, in the words of a file.
//!
//! So `retryable_errors` misspelt in somebody's JSON is told as it would be in `tidegate.toml`, and camelCase names mean the same.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::diagnostic::{Diagnostic, Place, Report};
use super::table::Table;
use super::tree::{Entries, Entry, Node, Value};
use super::{limits, policy, seed_names};
use crate::config::{BreakerConfig, RateLimitConfig, RetryConfig};

impl<'de> Deserialize<'de> for RetryConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        section(deserializer, "retry", |mut document| document.table("retry").map(policy::retry))
    }
}

impl<'de> Deserialize<'de> for BreakerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        section(deserializer, "breaker", |mut document| document.table("breaker").map(policy::breaker))
    }
}

impl<'de> Deserialize<'de> for RateLimitConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        section(deserializer, "rateLimit", |mut document| {
            limits::limits(&document.table("limit")?).pop().map(RateLimitConfig::from)
        })
    }
}

fn section<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    key: &str,
    read: impl FnOnce(Table<'_>) -> Option<T>,
) -> Result<T, D::Error> {
    let node = Node::deserialize(deserializer)?;
    let report = Report::new(Vec::new());
    let mut document = Entries::from([(key.to_owned(), Entry { key_place: node.place, camel_case: false, node })]);
    seed_names::fold(&mut document, &report);
    let section = read(Table::document(&document, &report));
    match (section, report.finish().0) {
        (Some(section), errors) if errors.is_empty() => Ok(section),
        (_, errors) => Err(D::Error::custom(errors.iter().map(words).collect::<Vec<_>>().join(". "))),
    }
}

fn words(Diagnostic { message, hint, .. }: &Diagnostic) -> String {
    if hint.is_empty() { message.clone() } else { format!("{message}; {hint}") }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(AnyValue)?;
        Ok(Self { value, place: Place::default() })
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Value, E> {
        Ok(Value::Bool(boolean))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Value, E> {
        Ok(Value::Integer(integer.into()))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Value, E> {
        Ok(Value::Integer(integer.into()))
    }

    fn visit_f64<E>(self, float: f64) -> Result<Value, E> {
        // JavaScript has no other numbers: 1000 may come as 1000.0.
        let is_whole = float.fract() == 0.0 && float.abs() < 1e15;
        Ok(if is_whole { Value::Integer(float as i128) } else { Value::Float(float) })
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element()? {
            nodes.push(node);
        }
        Ok(Value::Array(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Entries::new();
        while let Some(key) = map.next_key::<String>()? {
            // `null` is absence.
            if let Some(node) = map.next_value::<Option<Node>>()? {
                entries.insert(key, Entry { key_place: node.place, camel_case: false, node });
            }
        }
        Ok(Value::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Jitter;
    use crate::limit::{Allowance, Dimension, Scope};

    #[test]
    fn camel_case_in_any_format_is_read_with_bare_milliseconds() {
        let retry: RetryConfig = serde_json::from_str(
            r#"{"maxAttempts": 2, "baseDelay": 500, "maxDelay": 5000.0, "jitter": true, "retryableStatusCodes": [503],
                "customRetryStrategies": {"model_overloaded": {"maxAttempts": 7}}, "attemptTimeout": null}"#,
        )
        .unwrap();
        assert_eq!((retry.max_attempts, retry.base_delay), (2, Duration::from_millis(500)));
        assert_eq!((retry.max_delay, retry.jitter), (Duration::from_secs(5), Jitter::Additive));
        assert_eq!(retry.strategies["model_overloaded"].max_attempts, Some(7));
        let breaker: BreakerConfig = serde_json::from_str(
            r#"{"failureThreshold": 3, "recoveryTimeout": 30000, "monitoringPeriod": 60000,
                "expectedRecoveryTime": 10000, "halfOpenMaxCalls": 2}"#,
        )
        .unwrap();
        assert_eq!((breaker.failure_threshold, breaker.recovery_timeout), (3, Duration::from_secs(30)));
    }

    #[test]
    fn a_rate_limit_has_a_level_for_each_organization_user_and_model() {
        let config: RateLimitConfig = serde_json::from_str(
            r#"{"requestsPerMinute": 60, "tokensPerMinute": 40000, "modelLimits": {"gpt-4o": {"requestsPerMinute": 5}}}"#,
        )
        .unwrap();
        let limit = config.limit();
        assert_eq!(limit.per, [Scope::Organization, Scope::User, Scope::Model]);
        assert_eq!(limit.base.allowance(Dimension::RequestsPerMinute), Allowance::of(60));
        assert_eq!(limit.overrides[0].rates.allowance(Dimension::RequestsPerMinute), Allowance::of(5));
    }

    #[test]
    fn what_is_wrong_is_told_as_in_a_file() {
        let told = |json| serde_json::from_str::<RetryConfig>(json).unwrap_err().to_string();
        assert_eq!(
            told(r#"{"max_atempts": 2, "base_delay": 500}"#),
            "base_delay must be a duration with its unit, not 500; write \"500ms\" or \"500s\". \
             unknown key \"max_atempts\" in [retry]; did you mean \"max_attempts\"?"
        );
        assert!(told("7").contains("must be a table"), "{}", told("7"));
        assert!(serde_json::from_str::<RateLimitConfig>(r#"{"requests_per_minute": 0}"#).is_err());
    }

    #[test]
    fn what_was_written_is_read_back_as_it_was() {
        let mut retry = RetryConfig { jitter: Jitter::Equal, attempt_timeout: None, ..RetryConfig::default() };
        retry.priority_factor[0] = 2.5;
        let written = serde_json::to_string(&retry).unwrap();
        assert_eq!(serde_json::from_str::<RetryConfig>(&written).unwrap(), retry, "{written}");
        let breaker =
            BreakerConfig { slow_call_duration: Some(Duration::from_millis(1500)), ..BreakerConfig::default() };
        let written = serde_json::to_string(&breaker).unwrap();
        assert_eq!(serde_json::from_str::<BreakerConfig>(&written).unwrap(), breaker, "{written}");
        for config in [RateLimitConfig::default(), RateLimitConfig::openai_paid()] {
            let config = config.with_model("gpt-4o*", Dimension::TokensPerMinute, 5).per([Scope::Model, Scope::User]);
            let written = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<RateLimitConfig>(&written).unwrap(), config, "{written}");
        }
    }
}
