//! Decides what `[audit]`, `[store]`, `[[alert]]` and `[telemetry]` say: all that records, shares and watches.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::SecretSource;

/// What happens to calls while the audit trail cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnAuditFailure {
    /// They go on; the gap is counted.
    #[default]
    Continue,
    /// They are refused.
    Refuse,
}

/// How users appear in the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RecordedUsers {
    /// By name.
    #[default]
    Plain,
    /// As a hash.
    Hash,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The trail's file; relative to the state directory.
    pub path: PathBuf,
    /// How long records are kept.
    pub retention: Duration,
    /// What happens to calls while it cannot be written.
    pub on_failure: OnAuditFailure,
    /// Whether each admitted call is a record, not just a count.
    pub calls: bool,
    /// How users appear.
    pub users: RecordedUsers,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("audit.db"),
            retention: Duration::from_secs(90 * 86_400),
            on_failure: OnAuditFailure::Continue,
            calls: false,
            users: RecordedUsers::Plain,
        }
    }
}

/// A URL that may hold a password, which no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Keeps `url` out of sight.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL, password and all: to connect with, never to show.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.split_once("://").map_or("", |(scheme, _)| scheme);
        write!(f, "{scheme}://…")
    }
}

/// What happens while the store of levels cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnStoreFailure {
    /// This replica's share of each limit applies.
    #[default]
    Local,
    /// Shared limits hold nobody back.
    Open,
    /// Calls under shared limits are refused.
    Closed,
}

/// `[store]`: where levels are kept that several replicas share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// `redis://…` or `valkey://…`. `None`: in this process.
    pub url: Option<SecretUrl>,
    /// How many replicas there are; without `url` each takes its part of configured limits. At least 1.
    pub replicas: u32,
    /// What happens while it cannot be reached.
    pub on_failure: OnStoreFailure,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: None, replicas: 1, on_failure: OnStoreFailure::Local }
    }
}

/// What an alert watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertSignal {
    /// How many breakers are open.
    BreakerOpen,
    /// Share of calls that were held or refused by a limit.
    RateLimited,
    /// Retries as a share of calls.
    Retries,
    /// Share of calls that failed.
    ErrorRate,
    /// 95th percentile of the upstream's time to its first byte, in seconds.
    UpstreamLatency,
    /// 95th percentile of the time in the queue, in seconds.
    QueueWait,
    /// 99th percentile of the time spent in tidegate, waiting left out, in seconds.
    Overhead,
    /// How many audit records could not be written.
    AuditFailed,
    /// How many stores are out of reach.
    StoreDegraded,
    /// How often callers seem to go round their limits.
    BypassSuspected,
}

impl AlertSignal {
    /// Every signal.
    pub const ALL: [Self; 10] = [
        Self::BreakerOpen,
        Self::RateLimited,
        Self::Retries,
        Self::ErrorRate,
        Self::UpstreamLatency,
        Self::QueueWait,
        Self::Overhead,
        Self::AuditFailed,
        Self::StoreDegraded,
        Self::BypassSuspected,
    ];

    /// The word in `when = …`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BreakerOpen => "breaker_open",
            Self::RateLimited => "rate_limited",
            Self::Retries => "retries",
            Self::ErrorRate => "error_rate",
            Self::UpstreamLatency => "upstream_latency",
            Self::QueueWait => "queue_wait",
            Self::Overhead => "overhead",
            Self::AuditFailed => "audit_failed",
            Self::StoreDegraded => "store_degraded",
            Self::BypassSuspected => "bypass_suspected",
        }
    }

    /// True if it is a share, from 0 to 1.
    #[must_use]
    pub const fn is_share(self) -> bool {
        matches!(self, Self::RateLimited | Self::Retries | Self::ErrorRate)
    }

    /// The largest bound that makes sense: no share exceeds 1, and no percentile the last bucket of the histogram that it is taken from.
    #[must_use]
    pub const fn above_max(self) -> f64 {
        match self {
            Self::RateLimited | Self::Retries | Self::ErrorRate => 1.0,
            Self::UpstreamLatency => 600.0,
            Self::QueueWait => 240.0,
            Self::Overhead => 5.0,
            Self::BreakerOpen | Self::AuditFailed | Self::StoreDegraded | Self::BypassSuspected => 1e9,
        }
    }
}

/// Where an alert is posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Webhook {
    /// The URL itself.
    Url(SecretUrl),
    /// Where the URL is kept.
    Source(SecretSource),
}

/// How an alert is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WebhookFormat {
    /// A JSON object with every number.
    #[default]
    Generic,
    /// A Slack message.
    Slack,
}

/// `[[alert]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertConfig {
    /// Its name; unique.
    pub name: Arc<str>,
    /// What it watches.
    pub when: AlertSignal,
    /// It fires above this: a count, a share or seconds, as the signal has it.
    pub above: f64,
    /// … once that has lasted so long (`for`).
    pub lasting: Duration,
    /// How often it is repeated while it lasts.
    pub every: Duration,
    /// Where it is posted. `None`: it is only logged.
    pub webhook: Option<Webhook>,
    /// How it is written down.
    pub format: WebhookFormat,
}

/// `[telemetry]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Bounded series per tenant on `/metrics`.
    pub tenant_metrics: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        let store = StoreConfig { url: Some(SecretUrl::new("redis://:hunter2@host")), ..StoreConfig::default() };
        let shown = format!("{store:?}");
        assert!(shown.contains("redis://") && !shown.contains("hunter2") && !shown.contains("host"), "{shown}");
    }
}
