//! Decides what camelCase names mean: each is its snake_case name, and five are named differently altogether.
//!
//! | written | means |
//! |---|---|
//! | `rateLimit` | `limit.rate_limit`, an own limit with a level for each organization, user and model unless it says `per` |
//! | `modelLimits`, `organizationLimits` in a limit | its overrides `models`, `organizations` |
//! | `circuitBreaker` | `breaker` |
//! | `customRetryStrategies` in `retry` | `strategy` |
//!
//! Tables whose keys are names (of limits, models, organizations, tenants, error codes) keep them as they are.

use super::diagnostic::Report;
use super::tree::{Entries, Entry, Node, Value};

/// The limit that `rateLimit` becomes.
pub(super) const RATE_LIMIT: &str = "rate_limit";

/// Rewrites every camelCase name below `entries`, the whole document, and notes on each entry that it was one.
pub(super) fn fold(entries: &mut Entries, report: &Report<'_>) {
    fold_at(entries, &mut Vec::new(), report);
    let Some(rate_limit) = entries.remove(RATE_LIMIT) else { return };
    if !rate_limit.camel_case {
        // Only the camelCase spelling is an alias; this one is reported as the unknown key that it is.
        entries.insert(RATE_LIMIT.to_owned(), rate_limit);
        return;
    }
    let limits = entries.entry("limit".to_owned()).or_insert_with(|| Entry {
        key_place: rate_limit.key_place,
        camel_case: false,
        node: Node { value: Value::Table(Entries::new()), place: rate_limit.key_place },
    });
    if let Value::Table(limits) = &mut limits.node.value {
        match limits.get(RATE_LIMIT) {
            Some(other) => report.error(
                rate_limit.key_place,
                format!("rateLimit is [limit.{RATE_LIMIT}], which is also at {}", report.name_of(other.key_place)),
                "keep one of them",
            ),
            None => {
                limits.insert(RATE_LIMIT.to_owned(), rate_limit);
            }
        }
    }
}

fn fold_at(entries: &mut Entries, path: &mut Vec<String>, report: &Report<'_>) {
    for (written, mut entry) in std::mem::take(entries) {
        let key = if keys_are_names(path) { written.clone() } else { canonical(&written) };
        entry.camel_case = key != written;
        path.push(key.clone());
        fold_below(&mut entry.node, path, report);
        path.pop();
        if let Some(other) = entries.get(&key) {
            let (first, second) = (entry.key_place.min(other.key_place), entry.key_place.max(other.key_place));
            report.error(
                second,
                format!("{key} is also written at {}, in another spelling", report.name_of(first)),
                "keep one of them",
            );
        } else {
            entries.insert(key, entry);
        }
    }
}

fn fold_below(node: &mut Node, path: &mut Vec<String>, report: &Report<'_>) {
    match &mut node.value {
        Value::Table(entries) => fold_at(entries, path, report),
        Value::Array(items) => items.iter_mut().for_each(|item| fold_below(item, path, report)),
        _ => {}
    }
}

fn keys_are_names(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["limit" | "model_groups"] | ["queue", "weights"] | ["retry", "strategy"] | ["upstream", "models"] => true,
        // In a limit only overrides are tables, and their keys are what is overridden.
        ["limit", _, _] | [RATE_LIMIT, _] => true,
        _ => false,
    }
}

fn canonical(written: &str) -> String {
    if !is_camel_case(written) {
        return written.to_owned();
    }
    let mut snake = String::with_capacity(written.len() + 4);
    for character in written.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    match snake.as_str() {
        "circuit_breaker" => "breaker".to_owned(),
        "model_limits" => "models".to_owned(),
        "organization_limits" => "organizations".to_owned(),
        "custom_retry_strategies" => "strategy".to_owned(),
        _ => snake,
    }
}

fn is_camel_case(written: &str) -> bool {
    written.starts_with(|first: char| first.is_ascii_lowercase())
        && written.contains(|any: char| any.is_ascii_uppercase())
        && written.chars().all(|any| any.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camel_case_becomes_snake_case_and_everything_else_stays() {
        assert_eq!(canonical("requestsPerMinute"), "requests_per_minute");
        assert_eq!(canonical("circuitBreaker"), "breaker");
        assert_eq!(canonical("circuit_breaker"), "circuit_breaker", "only the camelCase spelling is an alias");
        assert_eq!(canonical("Listen"), "Listen");
        assert_eq!(canonical("a-B"), "a-B");
    }
}
