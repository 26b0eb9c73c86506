//! Reads `[queue]`, `[retry]` and `[breaker]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::table::{Field, Table};
use super::tree::Value;
use super::values::{bound, choice, count, duration, integer, list, number, positive, size, some_duration, word};
use crate::call::Priority;
use crate::config::{BreakerConfig, Jitter, QueueConfig, RetryBudgetConfig, RetryConfig, RetryStrategyConfig};

/// More attempts than this are a mistake, not a wish.
const ATTEMPTS_MAX: u64 = 100;

pub(super) fn queue(mut table: Table<'_>) -> QueueConfig {
    let mut queue = QueueConfig::default();
    table.set("max_wait", &mut queue.max_wait, duration);
    table.set("max_waiting", &mut queue.max_waiting, |field| {
        integer(field, 1, 10_000_000).and_then(|calls| usize::try_from(calls).ok())
    });
    table.set("max_bytes", &mut queue.max_bytes, size);
    by_priority(&mut table, "priorities", &mut queue.priorities, count);
    table.set("reserve", &mut queue.reserve, |field| number(field, 0.0..=1.0));
    if let Some(weights) = table.table("weights") {
        queue.weights =
            weights.named_fields().iter().filter_map(|field| Some((Arc::from(field.key), count(field)?))).collect();
    }
    table.finish();
    queue
}

/// Reads `{ high = …, normal = …, low = … }`; what is not named stays as it is.
fn by_priority<T: Copy>(
    table: &mut Table<'_>,
    key: &'static str,
    slots: &mut [T; 3],
    judge: impl Fn(&Field<'_>) -> Option<T>,
) {
    let Some(mut table) = table.table(key) else { return };
    for priority in Priority::ALL {
        table.set(priority.name(), &mut slots[priority.index()], &judge);
    }
    table.finish();
}

pub(super) fn retry(mut table: Table<'_>) -> RetryConfig {
    let mut retry = RetryConfig::default();
    table.set("max_attempts", &mut retry.max_attempts, attempts);
    table.set("attempt_timeout", &mut retry.attempt_timeout, bound);
    table.set("total_timeout", &mut retry.total_timeout, bound);
    table.set("base_delay", &mut retry.base_delay, duration);
    table.set("max_delay", &mut retry.max_delay, some_duration);
    table.set("backoff_multiplier", &mut retry.backoff_multiplier, multiplier);
    table.set("jitter", &mut retry.jitter, jitter);
    table.set("retryable_status_codes", &mut retry.retryable_status_codes, |field| list(field, status));
    table.set("retryable_errors", &mut retry.retryable_errors, |field| {
        list(field, |item| word(item).map(str::to_owned))
    });
    by_priority(&mut table, "priority_factor", &mut retry.priority_factor, |field| positive(field, 100.0));
    if let Some(budget) = table.table("budget") {
        retry.budget = retry_budget(budget, retry.budget);
    }
    if (table.has("base_delay") || table.has("max_delay")) && retry.base_delay > retry.max_delay {
        let field = if table.has("base_delay") { table.field("base_delay") } else { table.field("max_delay") };
        if let Some(field) = field {
            crossed_delays(&field, retry.base_delay, retry.max_delay);
        }
    }
    if let Some(strategies) = table.table("strategy") {
        read_strategies(&strategies, &mut retry);
    }
    table.finish();
    retry
}

fn retry_budget(mut table: Table<'_>, mut budget: RetryBudgetConfig) -> RetryBudgetConfig {
    table.set("ratio", &mut budget.ratio, |field| number(field, 0.0..=10.0));
    table.set("min_per_second", &mut budget.min_per_second, |field| {
        integer(field, 0, 1_000_000).and_then(|retries| u32::try_from(retries).ok())
    });
    table.finish();
    budget
}

/// A strategy that is there by default keeps what is not written anew.
fn read_strategies(table: &Table<'_>, retry: &mut RetryConfig) {
    let mut strategies: BTreeMap<String, RetryStrategyConfig> = std::mem::take(&mut retry.strategies);
    for field in table.named_fields() {
        let Some(mut table) = field.table(format!("[retry.strategy.{}]", field.key)) else { continue };
        let mut strategy = strategies.remove(field.key).unwrap_or_default();
        table.set_some("max_attempts", &mut strategy.max_attempts, attempts);
        table.set_some("base_delay", &mut strategy.base_delay, duration);
        table.set_some("max_delay", &mut strategy.max_delay, some_duration);
        table.set_some("backoff_multiplier", &mut strategy.backoff_multiplier, multiplier);
        let base = strategy.base_delay.unwrap_or(retry.base_delay);
        let max = strategy.max_delay.unwrap_or(retry.max_delay);
        if base > max {
            crossed_delays(&field, base, max);
        }
        table.finish();
        strategies.insert(field.key.to_owned(), strategy);
    }
    retry.strategies = strategies;
}

fn crossed_delays(field: &Field<'_>, base: std::time::Duration, max: std::time::Duration) {
    field.report.error(
        field.place,
        format!(
            "base_delay {} is above max_delay {}",
            humantime::format_duration(base),
            humantime::format_duration(max)
        ),
        "raise max_delay or lower base_delay",
    );
}

fn attempts(field: &Field<'_>) -> Option<u32> {
    if matches!(field.scalar(), Value::Integer(0)) {
        field.error("must be at least 1, not 0", "the first send counts: write 1 for no retries");
        return None;
    }
    integer(field, 1, ATTEMPTS_MAX).and_then(|attempts| u32::try_from(attempts).ok())
}

fn multiplier(field: &Field<'_>) -> Option<f64> {
    number(field, 1.0..=100.0)
}

fn status(field: &Field<'_>) -> Option<u16> {
    integer(field, 400, 599).and_then(|status| u16::try_from(status).ok())
}

fn jitter(field: &Field<'_>) -> Option<Jitter> {
    match field.scalar() {
        Value::Bool(true) => Some(Jitter::Additive),
        Value::Bool(false) => Some(Jitter::None),
        _ => choice(
            field,
            &[
                ("none", Jitter::None),
                ("full", Jitter::Full),
                ("equal", Jitter::Equal),
                ("decorrelated", Jitter::Decorrelated),
                ("additive", Jitter::Additive),
            ],
        ),
    }
}

pub(super) fn breaker(mut table: Table<'_>) -> BreakerConfig {
    let mut breaker = BreakerConfig::default();
    table.set("failure_threshold", &mut breaker.failure_threshold, count);
    table.set("failure_rate", &mut breaker.failure_rate, |field| positive(field, 1.0));
    table.set("monitoring_period", &mut breaker.monitoring_period, some_duration);
    table.set("minimum_calls", &mut breaker.minimum_calls, count);
    table.set("min_tenants", &mut breaker.min_tenants, count);
    table.set("slow_call_duration", &mut breaker.slow_call_duration, bound);
    table.set("slow_call_rate", &mut breaker.slow_call_rate, |field| positive(field, 1.0));
    table.set("recovery_timeout", &mut breaker.recovery_timeout, some_duration);
    table.set("half_open_max_calls", &mut breaker.half_open_max_calls, count);
    table.set("expected_recovery_time", &mut breaker.expected_recovery_time, duration);
    table.finish();
    breaker
}
