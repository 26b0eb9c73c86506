//! Reads `[audit]`, `[store]`, `[[alert]]` and `[telemetry]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::table::{Field, Table};
use super::upstreams::secret;
use super::values::{boolean, choice, count, duration, number, optional_text, shared, some_duration, word};
use super::{check_unique, named};
use crate::config::{
    AlertConfig, AlertSignal, AuditConfig, OnAuditFailure, OnStoreFailure, RecordedUsers, SecretUrl, StoreConfig,
    TelemetryConfig, Webhook, WebhookFormat,
};

pub(super) fn audit(mut table: Table<'_>) -> AuditConfig {
    let mut audit = AuditConfig::default();
    table.set("path", &mut audit.path, |field| word(field).map(PathBuf::from));
    table.set("retention", &mut audit.retention, some_duration);
    table.set("on_failure", &mut audit.on_failure, |field| {
        choice(field, &[("continue", OnAuditFailure::Continue), ("refuse", OnAuditFailure::Refuse)])
    });
    table.set("calls", &mut audit.calls, boolean);
    table.set("users", &mut audit.users, |field| {
        choice(field, &[("plain", RecordedUsers::Plain), ("hash", RecordedUsers::Hash)])
    });
    table.finish();
    audit
}

pub(super) fn store(mut table: Table<'_>) -> StoreConfig {
    let mut store = StoreConfig::default();
    table.set_some("url", &mut store.url, store_url);
    table.set("replicas", &mut store.replicas, count);
    table.set("on_failure", &mut store.on_failure, |field| {
        let choices =
            [("local", OnStoreFailure::Local), ("open", OnStoreFailure::Open), ("closed", OnStoreFailure::Closed)];
        choice(field, &choices)
    });
    table.finish();
    store
}

/// It may hold a password, so that what was written is not shown.
fn store_url(field: &Field<'_>) -> Option<SecretUrl> {
    let url = optional_text(field)?;
    let schemes = ["redis://", "rediss://", "valkey://", "valkeys://"];
    if !schemes.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) {
        field.error("must be the URL of a Redis or Valkey server", "write redis://HOST:6379 or valkey://HOST:6379");
        return None;
    }
    Some(SecretUrl::new(url))
}

pub(super) fn alerts(tables: Vec<Table<'_>>) -> Vec<AlertConfig> {
    let mut names = Vec::new();
    let mut alerts = Vec::new();
    for table in tables {
        let (place, report) = (table.place, table.report);
        let Some(alert) = alert(table) else { continue };
        check_unique(&mut names, &alert.name, place, "alert", report);
        alerts.push(alert);
    }
    alerts
}

fn alert(mut table: Table<'_>) -> Option<AlertConfig> {
    let (mut name, mut when): (Option<Arc<str>>, _) = (None, None);
    let (mut above, mut lasting, mut every) = (0.0, Duration::ZERO, Duration::from_secs(600));
    let (mut webhook, mut format) = (None, WebhookFormat::Generic);
    table.set_some("name", &mut name, shared);
    if !table.has("name") {
        table.missing("name", "write name = \"…\"");
    }
    if let Some(name) = &name {
        table = named(table, name);
    }
    let signals = AlertSignal::ALL.map(|signal| (signal.name(), signal));
    table.set_some("when", &mut when, |field| choice(field, &signals));
    if !table.has("when") {
        let words = AlertSignal::ALL.map(AlertSignal::name).join(", ");
        table.missing("when", format!("write one of {words}"));
    }
    let most = when.map_or(1e9, AlertSignal::above_max);
    table.set("above", &mut above, |field| number(field, 0.0..=most));
    table.set("for", &mut lasting, duration);
    table.set("every", &mut every, some_duration);
    table.set_some("webhook", &mut webhook, webhook_source);
    table.set("format", &mut format, |field| {
        choice(field, &[("generic", WebhookFormat::Generic), ("slack", WebhookFormat::Slack)])
    });
    table.finish();
    Some(AlertConfig { name: name?, when: when?, above, lasting, every, webhook, format })
}

fn webhook_source(field: &Field<'_>) -> Option<Webhook> {
    match field.as_text() {
        Some(url) if url.starts_with("https://") || url.starts_with("http://") => {
            Some(Webhook::Url(SecretUrl::new(url)))
        }
        _ => secret(field).map(Webhook::Source),
    }
}

pub(super) fn telemetry(mut table: Table<'_>) -> TelemetryConfig {
    let mut telemetry = TelemetryConfig::default();
    table.set("tenant_metrics", &mut telemetry.tenant_metrics, boolean);
    table.finish();
    telemetry
}
