//! Decides what is counted, under which names and labels. Labels are bounded: of models, the first 64 that succeed in being seen.
//!
//! Never waits: counters are atomics, and those of the common path are resolved once and kept (see `crate::model`).

mod declared;
mod durations;
mod held;
mod labels;
mod sampling;
mod shown;
mod transitions;

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tidegate::Driver;
use tidegate_core::call::Priority;

use crate::metrics::declared::Declared;
use crate::metrics::durations::Durations;
pub(crate) use crate::metrics::held::Held;
use crate::metrics::labels::{
    AttemptLabels, CallLabels, LimitedLabels, PriorityLabels, RefusalLabels, RetryLabels, TargetLabels, TenantLabels,
    TokenLabels, UpstreamLabels,
};
use crate::metrics::sampling::Sampled;
pub(crate) use crate::metrics::sampling::{REFUSAL_REASONS, Totals};
pub(crate) use crate::metrics::shown::Shown;
pub(crate) use crate::metrics::transitions::Transitions;
use crate::scrape::Standing;

/// So many tenants have series of their own, where any has.
const TENANTS_MAX: usize = 256;
/// What became of a call that is tried again.
pub(crate) const RETRIED: &str = "retried";
/// What became of a call that a limit let not go.
pub(crate) const REFUSED: &str = "refused";
/// What became of a call that another upstream was asked for.
pub(crate) const FELL_BACK: &str = "fell_back";

/// How a call ended, as `tidegate_calls_total` counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallEnd {
    /// Answered by the upstream as asked.
    Ok,
    /// The upstream's error was passed on, or all attempts failed.
    Failed,
    /// Not let through, by a limit, the queue, a breaker or a pause.
    Refused,
    /// The reply broke off after part of it had gone to the caller.
    Broken,
    /// The caller left.
    Cancelled,
}

impl CallEnd {
    pub(crate) const ALL: [Self; 5] = [Self::Ok, Self::Failed, Self::Refused, Self::Broken, Self::Cancelled];

    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Cancelled => "cancelled",
        }
    }
}

/// In seconds, like all bounds.
const WAITS: &[f64] = &[0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0];
const REPLIES: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const OVERHEADS: &[f64] =
    &[0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

type Spreads<L> = Family<L, Durations, fn() -> Durations>;

/// All that this crate counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    tenants: Family<TenantLabels, Counter>,
    tenants_shown: Shown<TENANTS_MAX>,
    pub(crate) transitions: Transitions,
    attempts: Family<AttemptLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    limited: Family<LimitedLabels, Counter>,
    /// Calls that waited for a limit.
    pub(crate) held: Held,
    /// Calls that were not let through, by why.
    refused: Family<RefusalLabels, Counter>,
    /// All retries that were made, whatever led to them.
    made_retries: Counter,
    /// Those of them at the same upstream.
    retried: Counter,
    sampled: Sampled,
    tokens: Family<TokenLabels, Counter>,
    too_many: Family<TargetLabels, Counter>,
    duration: Spreads<TargetLabels>,
    first_byte: Spreads<TargetLabels>,
    in_flight: Family<UpstreamLabels, Gauge>,
    /// By [`Priority::index`].
    pub(crate) queue_wait: [Durations; 3],
    /// Time in tidegate, waiting excluded.
    pub(crate) overhead: Durations,
    /// 1 while the store of levels can be reached.
    pub(crate) store_up: Gauge,
    /// 1 while the configuration in force is the last one that was asked for.
    pub(crate) reload_successful: Gauge,
    models: Shown,
}

/// The series of one tenant's calls, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct TenantCalls([Counter; 5]);

impl TenantCalls {
    pub(crate) fn ended(&self, end: CallEnd) {
        self.0[end as usize].inc();
    }
}

/// The series of one upstream and model, resolved once.
#[derive(Debug)]
pub(crate) struct TargetMetrics {
    upstream: Arc<str>,
    model: Arc<str>,
    calls: [[Counter; 5]; 3],
    attempts_ok: Counter,
    pub(crate) input_tokens: Counter,
    pub(crate) output_tokens: Counter,
    pub(crate) too_many: Counter,
    pub(crate) duration: Durations,
    pub(crate) first_byte: Durations,
    pub(crate) in_flight: Gauge,
}

impl TargetMetrics {
    pub(crate) fn ended(&self, priority: Priority, end: CallEnd) {
        self.calls[priority.index()][end as usize].inc();
    }
}

impl Metrics {
    /// With the series that others keep.
    pub(crate) fn new(driver: &Driver, others: impl IntoIterator<Item = Box<dyn Collector>>) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let wait_family: Spreads<PriorityLabels> = Family::new_with_constructor(|| Durations::new(WAITS));
        let metrics = Self {
            calls: Family::default(),
            tenants: Family::default(),
            tenants_shown: Shown::default(),
            transitions: Transitions::default(),
            store_up: Gauge::default(),
            attempts: Family::default(),
            retries: Family::default(),
            limited: Family::default(),
            held: Held::default(),
            refused: Family::default(),
            made_retries: Counter::default(),
            retried: Counter::default(),
            sampled: Sampled::default(),
            tokens: Family::default(),
            too_many: Family::default(),
            duration: Family::new_with_constructor(|| Durations::new(REPLIES)),
            first_byte: Family::new_with_constructor(|| Durations::new(REPLIES)),
            in_flight: Family::default(),
            queue_wait: Priority::ALL
                .map(|class| wait_family.get_or_create_owned(&PriorityLabels { priority: class.name() })),
            overhead: Durations::new(OVERHEADS),
            reload_successful: Gauge::default(),
            models: Shown::default(),
            registry: Registry::default(),
        };
        let metrics = Self {
            // Under the same names as the breakers' states.
            transitions: Transitions { models: metrics.models.clone(), ..Transitions::default() },
            held: Held::new(metrics.limited.clone(), metrics.models.clone()),
            ..metrics
        };
        metrics.reload_successful.set(1);
        metrics.store_up.set(1);
        registry.register("calls", "Calls that ended", Declared(metrics.calls.clone()));
        registry.register(
            "calls_by_tenant",
            "Calls that ended, where tenants have series",
            Declared(metrics.tenants.clone()),
        );
        registry.register(
            "breaker_transitions",
            "How often circuit breakers changed their state",
            Declared(metrics.transitions.counters.clone()),
        );
        registry.register(
            "store_up",
            "Whether the store of levels can be reached; 1 where they are kept in this process",
            metrics.store_up.clone(),
        );
        registry.register(
            "attempts",
            "Sends to an upstream, by status or kind of failure",
            Declared(metrics.attempts.clone()),
        );
        registry.register(
            "retries",
            "Attempts after the first, by what led to them",
            Declared(metrics.retries.clone()),
        );
        registry.register(
            "rate_limited",
            "Calls that a limit held for a second or more, or refused",
            Declared(metrics.limited.clone()),
        );
        registry.register(
            "refusals",
            "Calls that were not let through, by the reason",
            Declared(metrics.refused.clone()),
        );
        registry.register("tokens", "Tokens used, as reported or as seen go by", Declared(metrics.tokens.clone()));
        registry.register("upstream_429", "Replies 429 of an upstream", Declared(metrics.too_many.clone()));
        registry.register(
            "upstream_duration_seconds",
            "From sending an attempt to the end of its reply",
            Declared(metrics.duration.clone()),
        );
        registry.register(
            "time_to_first_byte_seconds",
            "From sending an attempt to the head of its reply",
            Declared(metrics.first_byte.clone()),
        );
        registry.register("in_flight", "Attempts under way", Declared(metrics.in_flight.clone()));
        registry.register("queue_wait_seconds", "Time that calls waited before they were sent", wait_family);
        registry.register("overhead_seconds", "Time in tidegate, waiting excluded", metrics.overhead.clone());
        registry.register(
            "config_last_reload_successful",
            "Whether the last reload of the configuration took effect",
            metrics.reload_successful.clone(),
        );
        registry.register(
            "build",
            "The version that runs",
            Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        );
        // What a run before learned has its name from the first scrape on, not from its first call.
        for target in driver.with(|gate, now| gate.status(now)).learned {
            let (_, model) = target.name.split_once('/').unwrap_or(("", &target.name));
            metrics.models.bounded(&Arc::from(model));
        }
        registry.register_collector(Box::new(Standing::new(driver.clone(), metrics.models.clone())));
        others.into_iter().for_each(|series| registry.register_collector(series));
        Self { registry, ..metrics }
    }

    /// The text that Prometheus reads; `None` only if it cannot be written, which no series brings about.
    pub(crate) fn render(&self) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).ok()?;
        Some(text)
    }

    /// The series of calls for `model` (its group) at `upstream`.
    pub(crate) fn target(&self, upstream: &Arc<str>, model: &Arc<str>) -> TargetMetrics {
        let model = self.models.bounded(model);
        let labels = TargetLabels { upstream: upstream.clone(), model: model.clone() };
        let tokens = |kind| {
            let labels = TokenLabels { upstream: upstream.clone(), model: model.clone(), kind };
            self.tokens.get_or_create_owned(&labels)
        };
        let calls = Priority::ALL.map(|class| {
            CallEnd::ALL.map(|end| {
                self.calls.get_or_create_owned(&CallLabels {
                    upstream: upstream.clone(),
                    model: model.clone(),
                    priority: class.name(),
                    outcome: end.name(),
                })
            })
        });
        let first_byte = self.first_byte.get_or_create_owned(&labels);
        let too_many = self.too_many.get_or_create_owned(&labels);
        self.sampled.add(upstream, &model, &calls, &too_many, &first_byte);
        TargetMetrics {
            calls,
            attempts_ok: self.attempts.get_or_create_owned(&AttemptLabels {
                upstream: upstream.clone(),
                model: model.clone(),
                status: "200".to_owned(),
            }),
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            too_many,
            duration: self.duration.get_or_create_owned(&labels),
            first_byte,
            in_flight: self.in_flight.get_or_create_owned(&UpstreamLabels { upstream: upstream.clone() }),
            upstream: upstream.clone(),
            model,
        }
    }

    /// The series of `tenant`.
    pub(crate) fn tenant(&self, tenant: &Arc<str>) -> TenantCalls {
        let tenant = self.tenants_shown.bounded(tenant);
        TenantCalls(CallEnd::ALL.map(|end| {
            let labels = TenantLabels { tenant: tenant.clone(), outcome: end.name() };
            self.tenants.get_or_create_owned(&labels)
        }))
    }

    /// An attempt got a reply with `status`.
    pub(crate) fn replied(&self, target: &TargetMetrics, status: u16) {
        if status == 200 {
            target.attempts_ok.inc();
        } else {
            self.attempt(target, status.to_string());
        }
    }

    /// An attempt got no reply: `connection_error`, `timeout`, ….
    pub(crate) fn no_reply(&self, target: &TargetMetrics, class: &str) {
        self.attempt(target, class.to_owned());
    }

    fn attempt(&self, target: &TargetMetrics, status: String) {
        let labels = AttemptLabels { upstream: target.upstream.clone(), model: target.model.clone(), status };
        self.attempts.get_or_create(&labels).inc();
    }

    /// A retry that `reason` (an error class) led to: `retried`, or why there was none.
    pub(crate) fn retry(&self, reason: &'static str, result: &'static str) {
        self.retries.get_or_create(&RetryLabels { reason, result }).inc();
        if result == RETRIED || result == FELL_BACK {
            self.made_retries.inc();
        }
        if result == RETRIED {
            self.retried.inc();
        }
    }

    /// A call was not let through, because of `reason` (`limit`, `breaker`, …).
    pub(crate) fn refused(&self, reason: &'static str) {
        debug_assert!(REFUSAL_REASONS.contains(&reason), "{reason} would be left out where all reasons are told");
        self.refused.get_or_create(&RefusalLabels { reason }).inc();
    }

    fn refusals(&self, reason: &'static str) -> u64 {
        self.refused.get(&RefusalLabels { reason }).map_or(0, |count| count.get())
    }

    /// A limit let a call not go: [`REFUSED`], or where another upstream was asked then, [`FELL_BACK`].
    pub(crate) fn limited(
        &self,
        target: &TargetMetrics,
        limit: &Arc<str>,
        dimension: &'static str,
        action: &'static str,
    ) {
        if action == REFUSED {
            self.held.hit(limit);
        }
        let labels = LimitedLabels { limit: limit.clone(), dimension, model: target.model.clone(), action };
        self.limited.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::{AlertSignal, Policy};

    use super::*;

    #[tokio::test]
    async fn models_beyond_the_bound_share_one_series() {
        let metrics = Metrics::new(&Driver::new(Policy::default(), 1), None);
        for number in 0..200 {
            let target = metrics.target(&Arc::from("openai"), &Arc::from(format!("model-{number}")));
            target.ended(Priority::Normal, CallEnd::Ok);
        }
        let text = metrics.render().unwrap();
        assert!(text.contains("tidegate_calls_total{upstream=\"openai\",model=\"model-63\""));
        assert!(!text.contains("model-64"));
        let other = "tidegate_calls_total{upstream=\"openai\",model=\"other\",priority=\"normal\",outcome=\"ok\"} 136";
        assert!(text.contains(other), "{text}");
    }

    #[test]
    fn no_alert_on_a_percentile_has_a_bound_that_its_histogram_cannot_exceed() {
        let signals = [AlertSignal::UpstreamLatency, AlertSignal::QueueWait, AlertSignal::Overhead];
        let ends = [REPLIES, WAITS, OVERHEADS].map(|bounds| bounds[bounds.len() - 1]);
        assert_eq!(signals.map(AlertSignal::above_max), ends);
    }

    #[tokio::test]
    async fn series_have_the_contracts_names() {
        let metrics = Metrics::new(&Driver::new(Policy::default(), 1), None);
        let target = metrics.target(&Arc::from("openai"), &Arc::from("gpt-4o"));
        metrics.replied(&target, 200);
        metrics.retry("timeout", "retried");
        metrics.tenant(&Arc::from("acme")).ended(CallEnd::Ok);
        metrics.transitions.count("openai/gpt-4o", "closed", "open");
        metrics.limited(&target, &Arc::from("team"), "tokens_per_minute", "refused");
        let text = metrics.render().unwrap();
        for name in [
            "tidegate_calls_total{",
            "tidegate_attempts_total{upstream=\"openai\",model=\"gpt-4o\",status=\"200\"} 1",
            "tidegate_retries_total{reason=\"timeout\",result=\"retried\"} 1",
            "tidegate_rate_limited_total{limit=\"team\",dimension=\"tokens_per_minute\",model=\"gpt-4o\"",
            "tidegate_tokens_total{",
            "tidegate_upstream_429_total{",
            "tidegate_upstream_duration_seconds_bucket{",
            "tidegate_time_to_first_byte_seconds_bucket{",
            "tidegate_in_flight{upstream=\"openai\"} 0",
            "tidegate_queue_wait_seconds_bucket{",
            "tidegate_queue_depth{priority=\"low\"} 0",
            "tidegate_overhead_seconds_bucket{",
            "tidegate_retry_budget_remaining ",
            "tidegate_config_last_reload_successful 1",
            "tidegate_build_info{version=",
            "tidegate_store_up 1",
            "tidegate_calls_by_tenant_total{tenant=\"acme\",outcome=\"ok\"} 1",
            "tidegate_breaker_transitions_total{breaker=\"openai/gpt-4o\",from=\"closed\",to=\"open\"} 1",
        ] {
            assert!(text.contains(name), "{name} is missing from\n{text}");
        }
    }
}
