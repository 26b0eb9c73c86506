//! Decides what a configuration is: validated types with the contract's defaults, and how text becomes them.
//!
//! Reads no file, no environment and no secret: text and pairs are handed in, and where a secret is kept
//! ([`SecretSource`]) is all that is known of it. What has been read needs no second check.

mod keys;
mod policy;
mod rate_limit;
mod read;
mod server;
mod upstream;
mod watch;

use std::collections::BTreeMap;

pub use keys::{AdminConfig, AdminRole, KeyConfig, KeyPaths};
pub use policy::{
    BreakerConfig, Jitter, LevelSource, Policy, QueueConfig, RetryBudgetConfig, RetryConfig, RetryStrategyConfig,
    TokenCharge, UpstreamPolicy,
};
pub use rate_limit::RateLimitConfig;
pub use read::{Diagnostic, Loaded, load};
pub use server::{ListenAddr, ServerConfig, TlsConfig};
pub use upstream::{BaseUrlError, ModelMap, SecretError, SecretSource, UpstreamConfig, UpstreamKind, parse_base_url};
pub use watch::{
    AlertConfig, AlertSignal, AuditConfig, OnAuditFailure, OnStoreFailure, RecordedUsers, SecretUrl, StoreConfig,
    TelemetryConfig, Webhook, WebhookFormat,
};

/// Everything that a file can say. The default is that nothing is configured: limits are then learned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[[upstream]]`, in the order in which they are tried; none: the built-in one ([`UpstreamConfig::default`]).
    /// Change it with [`Config::set_upstreams`], which keeps [`Policy::upstreams`] in step.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[[key]]`; none: whoever reaches the listener may call.
    pub keys: Vec<KeyConfig>,
    /// `[model_groups]`: group → names of models, or globs, that share one limit.
    pub model_groups: BTreeMap<String, Vec<String>>,
    /// `[limit.*]`, `[queue]`, `[retry]`, `[breaker]`: what the core decides by.
    pub policy: Policy,
    /// `[audit]`.
    pub audit: AuditConfig,
    /// `[[admin]]`; none: one token, made at the first start.
    pub admins: Vec<AdminConfig>,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[[alert]]`.
    pub alerts: Vec<AlertConfig>,
    /// `[telemetry]`.
    pub telemetry: TelemetryConfig,
}

/// Every setting with its default, as a commented file.
pub const EXAMPLE: &str = include_str!("example.toml");

impl Config {
    /// Replaces the upstreams, and what the core knows of them.
    pub fn set_upstreams(&mut self, upstreams: Vec<UpstreamConfig>) {
        self.policy.upstreams = upstreams.iter().map(UpstreamConfig::policy).collect();
        self.upstreams = upstreams;
    }
}
