//! Decides how a gateway starts, takes over a configuration, and ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tidegate::Driver;
use tidegate_core::config::Config;
use tidegate_watch::anomaly::Anomalies;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::admin::{Attempts, Ends};
use crate::alerting::Alerting;
use crate::audit::Audit;
use crate::cores::Cores;
use crate::kept_models::Saving;
use crate::keys::MadeKeys;
use crate::last_minute::LastMinute;
use crate::metrics::Metrics;
use crate::operating::Operating;
use crate::quota::OutOfQuota;
use crate::reload::{ConfigSource, Reloading};
use crate::room::Room;
use crate::shared::{Phase, Settings, Shared, StartError};
use crate::sticky::Made;
use crate::told::Told;
use crate::watching::Watching;
use crate::{admin, connection, kept_models, listener, pages, state, token};

/// What a gateway is started with.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// What is configured; without an upstream, the built-in one.
    pub config: Config,
    /// Whoever reaches the listener may spend the upstream's credential, also from other machines.
    pub allow_anonymous: bool,
    /// Where levels and the admin token are kept. `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// The admin listener's token. `None`: that of the state directory, made at the first start.
    pub admin_token: Option<String>,
    /// Serves calls on threads of its own, one for each core, which takes the least of the machine. Else on the runtime that starts
    /// the gateway, with whatever clock that has.
    pub own_threads: bool,
    /// Where the configuration is read again. `None`: it is not.
    pub source: Option<ConfigSource>,
}

/// A running gateway. Dropping it cuts everything off; [`Gateway::drain`] does not.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    api_addrs: Vec<SocketAddr>,
    admin_addr: SocketAddr,
    /// The admin listener outlives the API's: `/readyz` and `/metrics` answer to the last.
    admin_phase: watch::Sender<Phase>,
    /// Serve until the last call has ended.
    _cores: Arc<Cores>,
}

impl Gateway {
    /// Starts listening and serving, on the current tokio runtime unless [`GatewayOptions::own_threads`] says otherwise.
    ///
    /// # Errors
    /// No thread to serve on, an address that cannot be listened on, a configuration that does not hold together, a secret or file that is not there.
    pub async fn start(options: GatewayOptions) -> Result<Self, StartError> {
        let GatewayOptions { config, allow_anonymous, state_dir, admin_token, own_threads, source } = options;
        let made_keys = match state_dir.as_deref().map(MadeKeys::load) {
            None => MadeKeys::default(),
            Some(loaded) => loaded.map_err(|fault| StartError::Config(fault.to_string()))?,
        };
        let settings = Settings::new(config, &made_keys, None, allow_anonymous)?;
        let listeners = listener::bind_all(&settings.config.server.listen)?;
        let admin_listener = listener::bind(settings.config.server.admin_listen, true)?;
        let api_addrs = listeners.iter().map(local_addr).collect::<Result<Vec<_>, _>>()?;
        let admin_addr = local_addr(&admin_listener)?;
        settings.check_listeners(&api_addrs)?;

        let told = Told::default();
        let audit = Audit::start(&settings.config.audit, state_dir.as_deref(), told.clone())?;
        let gate = state::restored(settings.config.policy.clone(), state_dir.as_deref());
        let driver = Driver::with_gate(gate);
        let is_own_token = admin_token.is_none();
        let admin_token = admin_token.unwrap_or_else(|| state::admin_token(state_dir.as_deref()));
        let admin_token_hash = token::secret_digest(admin_token.as_bytes());
        // What somebody else wrote into the state directory may be short.
        let unguessable = (is_own_token && admin_token.len() >= state::ADMIN_TOKEN_DIGITS).then_some(admin_token_hash);
        let first_addr = api_addrs.first().map_or_else(|| "localhost:8080".to_owned(), SocketAddr::to_string);
        let alerting = Alerting::new(&settings.alerts);
        let metrics = Metrics::new(&driver, [audit.series(), alerting.series()]);
        let operating = Operating::load(state_dir.as_deref())?;
        let (feed, trail) = audit.feed();
        let anomalies = Anomalies::default();
        let watching = Watching::start(&driver, feed, trail, &metrics, anomalies.clone(), told.clone());
        audit.started(&settings.config);
        audit.first_written().await;
        driver.with(|gate, now| operating.restore(gate, now));
        let shared = Arc::new(Shared {
            metrics,
            last_minute: LastMinute::new(),
            audit,
            watching,
            alerting,
            anomalies,
            told,
            room: Room::default(),
            driver: driver.clone(),
            phase: watch::Sender::new(Phase::Serving),
            out_of_quota: OutOfQuota::default(),
            made: Made::default(),
            admin_token: admin_token_hash,
            attempts: Attempts::new(unguessable),
            reloading: Reloading {
                api_addrs: api_addrs.clone(),
                listen: settings.config.server.listen.clone(),
                admin_listen: settings.config.server.admin_listen,
                allow_anonymous,
                source,
                one_at_a_time: Mutex::default(),
            },
            operating,
            settings: ArcSwap::from_pointee(settings),
            made_keys: ArcSwap::from_pointee(made_keys),
            saving_models: Saving::default(),
            state_dir: state_dir.clone(),
            first_addr,
        });
        if let Some(dir) = &state_dir {
            kept_models::restore(&shared, dir);
        }
        Alerting::keep_judging(&shared);
        LastMinute::keep_noting(&shared);
        Operating::keep_tidy(&shared);
        let cores = if own_threads { Cores::start().map_err(StartError::Threads)? } else { Cores::none() };
        let cores = Arc::new(cores);
        for listener in listeners {
            tokio::spawn(accept_api(listener, shared.clone(), cores.clone()));
        }
        let admin_phase = watch::Sender::new(Phase::Serving);
        tokio::spawn(accept_admin(admin_listener, shared.clone(), admin_phase.subscribe()));
        state::tell_admin_address(state_dir.as_deref(), admin_addr);
        if let Some(dir) = &state_dir {
            state::keep_saving(&driver, dir);
            kept_models::keep_saving(&shared, dir.clone());
        }
        Ok(Self { shared, api_addrs, admin_addr, admin_phase, _cores: cores })
    }

    /// Where the API is served; never empty. For `localhost` the IPv4 address first.
    #[must_use]
    pub fn api_addrs(&self) -> &[SocketAddr] {
        &self.api_addrs
    }

    /// Where health, metrics and status are served.
    #[must_use]
    pub const fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Who pays: `keys` (callers show a tidegate key), `upstream` (a shared credential), `caller` (each its own).
    #[must_use]
    pub fn auth(&self) -> &'static str {
        let settings = self.shared.settings.load();
        if settings.needs_key {
            "keys"
        } else if settings.upstreams.first().is_some_and(|upstream| upstream.shares_credential()) {
            "upstream"
        } else {
            "caller"
        }
    }

    /// Takes over `config` for the calls that come; levels, debts, queues and unchanged upstreams' connections stay.
    ///
    /// Addresses to listen on, and where and how the audit trail is kept, stay as they are until a restart; the log says so.
    ///
    /// # Errors
    /// What does not hold together; then nothing has changed.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        self.shared.take_over(config, None).map(drop)
    }

    /// Reads the configuration again, from [`GatewayOptions::source`], and takes it over. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// Why not; then nothing has changed but that the log and the audit trail tell of it.
    pub fn reread(&self) -> Result<(), String> {
        self.shared.reread(None).map(drop)
    }

    /// Ends: `/readyz` fails at once, after `drain_delay` no further call is taken, those under way have `drain_timeout` to
    /// finish, and what is left then is cut off.
    pub async fn drain(self) {
        let server = self.shared.settings.load().config.server.clone();
        self.shared.phase.send_replace(Phase::Draining);
        if !server.drain_delay.is_zero() {
            tokio::time::sleep(server.drain_delay).await;
        }
        self.shared.driver.with(|gate, _| gate.drain());
        self.shared.phase.send_replace(Phase::Closing);
        // Listeners, connections and WebSockets each hold a receiver: this waits for the last of them.
        if tokio::time::timeout(server.drain_timeout, self.shared.phase.closed()).await.is_err() {
            tracing::warn!("calls under way were cut off after {:?}", server.drain_timeout);
            self.shared.phase.send_replace(Phase::Cut);
            self.shared.phase.closed().await;
        }
        if let Some(dir) = &self.shared.state_dir {
            if let Err(error) = self.shared.driver.save_state(dir, true) {
                tracing::warn!("levels cannot be saved in {}: {error}", dir.display());
            }
            if let Err(error) = kept_models::save_last(&self.shared, dir) {
                tracing::warn!("what was learned of models cannot be saved in {}: {error}", dir.display());
            }
        }
        self.shared.alerting.end();
        self.shared.watching.end().await;
        self.shared.audit.flush().await;
        self.shared.told.end().await;
        self.admin_phase.send_replace(Phase::Cut);
        self.admin_phase.closed().await;
    }

    /// The core's driver, for whoever operates or watches it.
    #[must_use]
    pub fn driver(&self) -> &Driver {
        &self.shared.driver
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Cut);
        self.admin_phase.send_replace(Phase::Cut);
    }
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Config(format!("a listener has no address: {error}")))
}

async fn accept_api(listener: TcpListener, shared: Arc<Shared>, cores: Arc<Cores>) {
    let phase = shared.phase.subscribe();
    let serve = |stream, phase| {
        let tls = shared.settings.load().tls.clone();
        let shared = shared.clone();
        let answer = move |local, request| pages::serve(shared.clone(), local, request);
        cores.serve(stream, move |stream| connection::serve(stream, tls, phase, answer));
    };
    listener::accept(listener, phase, Phase::Closing, serve).await;
}

async fn accept_admin(listener: TcpListener, shared: Arc<Shared>, phase: watch::Receiver<Phase>) {
    let serve = |stream: TcpStream, phase| {
        let shared = shared.clone();
        // Who has left already is answered nothing.
        let Ok(peer) = stream.peer_addr().as_ref().map(SocketAddr::ip) else { return };
        let answer = move |local, request| admin::serve(shared.clone(), Ends { local, peer }, request);
        tokio::spawn(connection::serve(stream, None, phase, answer));
    };
    listener::accept(listener, phase, Phase::Cut, serve).await;
}
