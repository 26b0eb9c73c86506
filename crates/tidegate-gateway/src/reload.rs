//! Decides whether another configuration is taken over while the process runs, and does it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::config::{Config, ListenAddr};

use crate::kept_models;
use crate::keys::MadeKeys;
use crate::shared::{Settings, Shared, StartError};

/// Reads the configuration again; an error says what is wrong with it.
#[derive(Clone)]
pub struct ConfigSource(Arc<dyn Fn() -> Result<Config, String> + Send + Sync>);

impl ConfigSource {
    /// One that reads with `read`, which may block.
    #[must_use]
    pub fn new(read: impl Fn() -> Result<Config, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConfigSource")
    }
}

/// What another configuration has to get along with.
#[derive(Debug)]
pub(crate) struct Reloading {
    pub(crate) api_addrs: Vec<SocketAddr>,
    /// What the start was told of where to listen; no reload changes it.
    pub(crate) listen: Vec<ListenAddr>,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) allow_anonymous: bool,
    pub(crate) source: Option<ConfigSource>,
    pub(crate) one_at_a_time: Mutex<()>,
}

impl Shared {
    /// Reads the configuration again and takes it over, for the operator `who`, where one wants it. Says what of it waits for a
    /// restart. Blocks: not for a thread that serves calls.
    ///
    /// # Errors
    /// Why not; the one before stays in force, and log and trail tell of it.
    pub(crate) fn reread(&self, who: Option<&Arc<str>>) -> Result<Vec<String>, String> {
        let source = self.reloading.source.as_ref();
        let read = source.map_or_else(|| Err("this process reads no configuration".to_owned()), |source| (source.0)());
        let taken = read.and_then(|config| self.take_over(config, who).map_err(|error| error.to_string()));
        match &taken {
            Ok(_) => tracing::info!("configuration reloaded"),
            Err(why) => {
                tracing::error!("configuration not reloaded, the one before stays in force: {why}");
                self.metrics.reload_successful.set(0);
                self.audit.not_reloaded(why, who);
            }
        }
        taken
    }

    /// Takes over `config` for the calls that come, as `who` wants it. Says what of it waits for a restart.
    ///
    /// # Errors
    /// What does not hold together; then nothing has changed.
    pub(crate) fn take_over(&self, config: Config, who: Option<&Arc<str>>) -> Result<Vec<String>, StartError> {
        let _one_at_a_time = self.reloading.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.try_take_over(config, who);
        self.metrics.reload_successful.set(i64::from(taken.is_ok()));
        taken
    }

    /// Has other keys than before: for the calls that come, and those of the next start.
    ///
    /// # Errors
    /// What they do not go together with, or that they cannot be kept; then nothing has changed.
    pub(crate) fn take_over_keys(&self, mut made: MadeKeys) -> Result<(), String> {
        let _one_at_a_time = self.reloading.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.settings.load_full();
        let settings = Settings::new(before.config.clone(), &made, Some(&before), self.reloading.allow_anonymous);
        let settings = settings.map_err(|error| error.to_string())?;
        if let Some(dir) = &self.state_dir {
            made.save(dir).map_err(|fault| fault.to_string())?;
        }
        self.made_keys.store(Arc::new(made));
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    fn try_take_over(&self, config: Config, who: Option<&Arc<str>>) -> Result<Vec<String>, StartError> {
        let Reloading { api_addrs, allow_anonymous, .. } = &self.reloading;
        let before = self.settings.load_full();
        let settings = Settings::new(config, &self.made_keys.load(), Some(&before), *allow_anonymous)?;
        settings.check_listeners(api_addrs)?;
        // The sockets stay as they are: what may be spent through them must stay guarded as it was.
        if let Some(addr) = api_addrs.iter().find(|addr| !addr.ip().is_loopback())
            && settings.is_open_to_all()
            && !allow_anonymous
        {
            return Err(StartError::Config(format!(
                "this process still listens on {addr}: without any [[key]] anybody who reaches it could spend the upstream's \
                 api_key; restart it to listen elsewhere"
            )));
        }
        let mut waiting = self.waits_for_restart(&settings.config);
        waiting.extend(self.operating.now().without_limit(&settings.config.policy.limits));
        for what in &waiting {
            tracing::warn!("{what}");
        }
        self.audit.reloaded(&before.config, &settings.config, who);
        kept_models::carry_over(&before, &settings, &self.metrics);
        let policy = settings.config.policy.clone();
        self.driver.with(|gate, now| gate.reload(policy, now));
        self.alerting.reconfigure(self.driver.now(), &settings.alerts, &self.audit);
        self.settings.store(Arc::new(settings));
        Ok(waiting)
    }

    /// What `config` has otherwise than this process was started with, and no reload changes; compared with the start, for what
    /// waits since an earlier reload waits still.
    fn waits_for_restart(&self, config: &Config) -> Vec<String> {
        let Reloading { listen, admin_listen, .. } = &self.reloading;
        let listening = [
            ("server.listen", *listen != config.server.listen),
            ("server.admin_listen", *admin_listen != config.server.admin_listen),
        ];
        let listening = listening.into_iter().filter(|(_, is_other)| *is_other).map(|(name, _)| name);
        let others: Vec<&str> = listening.chain(self.audit.waits_for_restart(&config.audit)).collect();
        if others.is_empty() {
            return Vec::new();
        }
        vec![format!("not in force before a restart: {}", others.join(", "))]
    }
}
