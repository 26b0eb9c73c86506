//! Holds what every call needs: the core's driver, the configuration in force, the series, and whether the process is ending.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tidegate::Driver;
use tidegate_core::config::{AlertConfig, Config};
use tidegate_core::limit::{Dimension, Mode, Scope};
use tidegate_core::openai::models::ModelGroups;
use tidegate_core::retry::RetryPolicy;
use tidegate_watch::anomaly::Anomalies;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::admin::Attempts;
use crate::alerting::{Alerting, Configured, Destination};
use crate::audit::Audit;
use crate::candidates::Shares;
use crate::guard::Guard;
use crate::identity::Callers;
use crate::kept_models::Saving;
use crate::keys::MadeKeys;
use crate::last_minute::LastMinute;
use crate::listener::ListenError;
use crate::metrics::Metrics;
use crate::operating::Operating;
use crate::quota::OutOfQuota;
use crate::reload::Reloading;
use crate::room::Room;
use crate::sticky::Made;
use crate::told::Told;
use crate::upstream::Upstream;
use crate::watching::Watching;

/// Why a gateway cannot start, or cannot take over a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration does not hold together, or names something that is not there.
    #[error("{0}")]
    Config(String),
    /// The system starts no thread.
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
}

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Not at all.
    Serving,
    /// `/readyz` fails; calls are still taken.
    Draining,
    /// No more calls are taken; those under way may finish.
    Closing,
    /// Whatever is left is cut off.
    Cut,
}

/// One configuration, ready for use.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) guard: Guard,
    /// That of the admin listener: no page but its own has anything to ask there.
    pub(crate) admin_guard: Guard,
    pub(crate) callers: Callers,
    /// Whether calls need a key.
    pub(crate) needs_key: bool,
    pub(crate) groups: ModelGroups,
    /// Never empty.
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// Whose turn it is among them.
    pub(crate) shares: Shares,
    pub(crate) retry: RetryPolicy,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Whether replies are to speak of limits of our own.
    pub(crate) has_own_limits: bool,
    /// Whether users have limits of their own, which new ones would be a way round.
    pub(crate) has_user_limits: bool,
    pub(crate) alerts: Vec<Configured>,
}

/// What every call needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) driver: Driver,
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) metrics: Metrics,
    pub(crate) last_minute: LastMinute,
    pub(crate) audit: Audit,
    pub(crate) watching: Watching,
    pub(crate) alerting: Alerting,
    pub(crate) anomalies: Anomalies,
    pub(crate) told: Told,
    /// Of the bodies that are being read.
    pub(crate) room: Room,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) out_of_quota: OutOfQuota,
    /// Which upstream made which response.
    pub(crate) made: Made,
    /// Hash of the token that this process made or was given.
    pub(crate) admin_token: [u8; 32],
    /// Who guesses that.
    pub(crate) attempts: Attempts,
    pub(crate) reloading: Reloading,
    pub(crate) operating: Operating,
    pub(crate) made_keys: ArcSwap<MadeKeys>,
    pub(crate) saving_models: Saving,
    /// Where state is kept. `None`: nowhere.
    pub(crate) state_dir: Option<PathBuf>,
    /// `127.0.0.1:8080`: what a client that names no host is told to use.
    pub(crate) first_addr: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
}

impl Settings {
    /// Makes `config` ready. Upstreams of `before` that have not changed stay, and their connections with them.
    pub(crate) fn new(
        mut config: Config,
        made: &MadeKeys,
        before: Option<&Self>,
        allow_anonymous: bool,
    ) -> Result<Self, StartError> {
        let needs_key = !config.keys.is_empty() || made.are_needed();
        if config.upstreams.is_empty() {
            config.set_upstreams(vec![tidegate_core::config::UpstreamConfig::default()]);
        }
        let groups_changed = before.is_some_and(|before| before.config.model_groups != config.model_groups);
        let mut upstreams = Vec::with_capacity(config.upstreams.len());
        for (position, upstream) in config.upstreams.iter().enumerate() {
            let same = before.and_then(|before| before.upstreams.get(position));
            let upstream = match same.filter(|same| same.is_still(upstream, &upstreams) && !groups_changed) {
                Some(same) => same.clone(),
                None => Arc::new(Upstream::new(upstream.clone(), &upstreams).map_err(StartError::Config)?),
            };
            upstreams.push(upstream);
        }
        if needs_key && let Some(open) = upstreams.iter().find(|upstream| !upstream.shares_credential()) {
            return Err(StartError::Config(format!(
                "calls need a tidegate key, but upstream \"{}\" has no api_key: a tidegate key is never forwarded; set its \
                 api_key to env:NAME or file:PATH",
                open.config.name
            )));
        }
        let beyond = config.server.listen.iter().find(|addr| !addr.is_loopback());
        if let Some(addr) = beyond
            && !needs_key
            && !allow_anonymous
            && upstreams.iter().any(|upstream| upstream.shares_credential())
        {
            return Err(StartError::Config(format!(
                "listening on {addr} would let anybody who reaches it spend the upstream's api_key; configure a \
                 [[key]], listen on localhost, or pass --allow-anonymous"
            )));
        }
        let has_own_limits = config.policy.limits.iter().any(|limit| !limit.is_mirror() && limit.mode == Mode::Enforce);
        let has_user_limits = config.policy.limits.iter().any(|limit| limit.per.contains(&Scope::User));
        let tls = config.server.tls.as_ref().map(crate::tls::acceptor).transpose().map_err(StartError::Config)?;
        let with_destination = |alert: &AlertConfig| Ok((alert.clone(), Destination::of(alert)?));
        let alerts: Result<_, String> = config.alerts.iter().map(with_destination).collect();
        let alerts = alerts.map_err(StartError::Config)?;
        Ok(Self {
            tls,
            admin_guard: Guard::new(&config.server.allowed_hosts, &[]),
            guard: Guard::new(&config.server.allowed_hosts, &config.server.allowed_origins),
            callers: Callers::new(&made.beside(&config.keys), needs_key),
            needs_key,
            groups: ModelGroups::new(&config.model_groups),
            shares: Shares::new(upstreams.iter().map(|upstream| upstream.config.weight)),
            upstreams,
            retry: RetryPolicy::new(Arc::new(config.policy.retry.clone())),
            has_own_limits,
            has_user_limits,
            alerts,
            config,
        })
    }

    /// Limits or groups are configured by model: which models share a limit is the operator's to say, not an upstream's.
    pub(crate) fn tells_groups(&self) -> bool {
        let mut limits = self.config.policy.limits.iter();
        !self.config.model_groups.is_empty() || limits.any(|limit| limit.per.contains(&Scope::Model))
    }

    /// True if whoever reaches the listener spends a credential of ours.
    pub(crate) fn is_open_to_all(&self) -> bool {
        !self.needs_key && self.upstreams.iter().any(|upstream| upstream.shares_credential())
    }

    /// What listening at `addrs` does not go together with.
    ///
    /// # Errors
    /// An upstream is one of them: each call would come in again and again.
    pub(crate) fn check_listeners(&self, addrs: &[SocketAddr]) -> Result<(), StartError> {
        if let Some(own) = self.upstreams.iter().find(|upstream| upstream.base.is_at_one_of(addrs)) {
            return Err(StartError::Config(format!(
                "upstream \"{}\" at {} is this gateway itself: set base_url (or --upstream) to where its calls are to go",
                own.config.name, own.config.base_url
            )));
        }
        if self.config.server.allowed_hosts.is_empty() && addrs.iter().any(|addr| !addr.ip().is_loopback()) {
            tracing::info!(
                "listening beyond this machine: clients that reach it by a name, not by its IP address, need that name in \
                 server.allowed_hosts"
            );
        }
        Ok(())
    }

    /// Whether `[limit.NAME]` is a limit of our own: it follows a call wherever that goes.
    pub(crate) fn is_own_limit(&self, name: &str) -> bool {
        self.config.policy.limits.iter().any(|limit| &*limit.name == name && !limit.is_mirror())
    }

    /// Whether `[limit.NAME]` has a level for each user.
    pub(crate) fn is_user_limit(&self, name: &str) -> bool {
        self.config.policy.limits.iter().any(|limit| &*limit.name == name && limit.per.contains(&Scope::User))
    }

    /// The first enforced limit of our own on tokens that `subject` falls under.
    pub(crate) fn token_limit_on(&self, subject: &tidegate_core::call::Subject) -> Option<&str> {
        let on_tokens = |limit: &&tidegate_core::limit::Limit| {
            let rates = limit.rates_for(subject);
            let bounds = |dimension| {
                let allowance = rates.allowance(dimension);
                allowance.is_some_and(|allowance| allowance != tidegate_core::limit::Allowance::Unlimited)
            };
            !limit.is_mirror()
                && limit.mode == Mode::Enforce
                && (bounds(Dimension::TokensPerMinute) || bounds(Dimension::TokensPerDay))
        };
        self.config.policy.limits.iter().find(on_tokens).map(|limit| &*limit.name)
    }
}

/// Since 1970.
pub(crate) fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::{KeyConfig, SecretSource, UpstreamConfig};

    use super::*;

    fn with_upstreams(upstreams: Vec<UpstreamConfig>) -> Config {
        let mut config = Config::default();
        config.set_upstreams(upstreams);
        config
    }

    fn upstream(name: &str) -> UpstreamConfig {
        UpstreamConfig { name: name.into(), base_url: "http://127.0.0.1:1/v1".to_owned(), ..UpstreamConfig::default() }
    }

    #[tokio::test]
    async fn keys_need_an_upstream_with_a_credential_and_a_shared_one_needs_keys_beyond_loopback() {
        let open = with_upstreams(vec![upstream("a")]);
        let keyed = Config { keys: vec![KeyConfig::default()], ..open.clone() };
        assert!(Settings::new(keyed, &MadeKeys::default(), None, false).is_err());
        let shared = UpstreamConfig { api_key: Some(SecretSource::Placeholder), ..upstream("a") };
        let mut config = with_upstreams(vec![shared]);
        assert!(Settings::new(config.clone(), &MadeKeys::default(), None, false).is_ok());
        config.server.listen = vec!["0.0.0.0:0".parse().unwrap()];
        assert!(Settings::new(config.clone(), &MadeKeys::default(), None, false).is_err());
        assert!(Settings::new(config.clone(), &MadeKeys::default(), None, true).is_ok());
        config.keys = vec![KeyConfig::default()];
        assert!(Settings::new(config, &MadeKeys::default(), None, false).is_ok());
    }
}
