//! Decides how a gateway starts, takes over a configuration, and ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tidegate::Driver;
use tidegate_core::config::Config;
use tidegate_watch::anomaly::Anomalies;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::alerting::Alerting;
use crate::audit::Audit;
use crate::cores::Cores;
use crate::metrics::Metrics;
use crate::quota::OutOfQuota;
use crate::room::Room;
use crate::shared::{Phase, Settings, Shared, StartError};
use crate::sticky::Made;
use crate::watching::Watching;
use crate::{admin, connection, listener, pages, state, token};

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
}

/// A running gateway. Dropping it cuts everything off; [`Gateway::drain`] does not.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    api_addrs: Vec<SocketAddr>,
    admin_addr: SocketAddr,
    allow_anonymous: bool,
    state_dir: Option<PathBuf>,
    /// The admin listener outlives the API's: `/readyz` and `/metrics` answer to the last.
    admin_phase: watch::Sender<Phase>,
    /// One reload at a time.
    reloading: Mutex<()>,
    /// Serve until the last call has ended.
    _cores: Arc<Cores>,
}

impl Gateway {
    /// Starts listening and serving, on the current tokio runtime unless [`GatewayOptions::own_threads`] says otherwise.
    ///
    /// # Errors
    /// No thread to serve on, an address that cannot be listened on, a configuration that does not hold together, a secret or file that is not there.
    pub async fn start(options: GatewayOptions) -> Result<Self, StartError> {
        let GatewayOptions { config, allow_anonymous, state_dir, admin_token, own_threads } = options;
        let settings = Settings::new(config, None, allow_anonymous)?;
        let listeners = listener::bind_all(&settings.config.server.listen)?;
        let admin_listener = listener::bind(settings.config.server.admin_listen, true)?;
        let api_addrs = listeners.iter().map(local_addr).collect::<Result<Vec<_>, _>>()?;
        let admin_addr = local_addr(&admin_listener)?;
        settings.check_listeners(&api_addrs)?;

        let audit = Audit::start(&settings.config.audit, state_dir.as_deref())?;
        let gate = state::restored(settings.config.policy.clone(), state_dir.as_deref());
        let driver = Driver::with_gate(gate);
        let admin_token = admin_token.unwrap_or_else(|| state::admin_token(state_dir.as_deref()));
        let first_addr = api_addrs.first().map_or_else(|| "localhost:8080".to_owned(), SocketAddr::to_string);
        let alerting = Alerting::new(&settings.alerts);
        let metrics = Metrics::new(&driver, audit.series().into_iter().chain([alerting.series()]));
        let (feed, trail) = audit.feed();
        let anomalies = Anomalies::default();
        let watching = Watching::start(&driver, feed, trail, &metrics, anomalies.clone());
        audit.started(&settings.config);
        let shared = Arc::new(Shared {
            metrics,
            audit,
            watching,
            alerting,
            anomalies,
            room: Room::default(),
            driver: driver.clone(),
            settings: ArcSwap::from_pointee(settings),
            phase: watch::Sender::new(Phase::Serving),
            out_of_quota: OutOfQuota::default(),
            made: Made::default(),
            admin_token: token::secret_digest(admin_token.as_bytes()),
            first_addr,
        });
        Alerting::keep_judging(&shared);
        let cores = if own_threads { Cores::start().map_err(StartError::Threads)? } else { Cores::none() };
        let cores = Arc::new(cores);
        for listener in listeners {
            tokio::spawn(accept_api(listener, shared.clone(), cores.clone()));
        }
        let admin_phase = watch::Sender::new(Phase::Serving);
        tokio::spawn(accept_admin(admin_listener, shared.clone(), admin_phase.subscribe()));
        if let Some(dir) = &state_dir {
            state::keep_saving(&driver, dir);
        }
        Ok(Self {
            shared,
            api_addrs,
            admin_addr,
            allow_anonymous,
            state_dir,
            admin_phase,
            reloading: Mutex::default(),
            _cores: cores,
        })
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
        if !settings.config.keys.is_empty() {
            "keys"
        } else if settings.upstreams.first().is_some_and(|upstream| upstream.shares_credential()) {
            "upstream"
        } else {
            "caller"
        }
    }

    /// Takes over `config` for the calls that come; levels, debts, queues and unchanged upstreams' connections stay.
    ///
    /// Addresses to listen on stay as they are until a restart.
    ///
    /// # Errors
    /// What does not hold together; then nothing has changed.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.settings.load_full();
        let settings = match Settings::new(config, Some(&before), self.allow_anonymous) {
            Ok(settings) => settings,
            Err(error) => {
                self.shared.metrics.reload_successful.set(0);
                return Err(error);
            }
        };
        if let Err(error) = settings.check_listeners(&self.api_addrs) {
            self.shared.metrics.reload_successful.set(0);
            return Err(error);
        }
        // The sockets stay as they are: what may be spent through them must stay guarded as it was.
        if let Some(addr) = self.api_addrs.iter().find(|addr| !addr.ip().is_loopback())
            && settings.is_open_to_all()
            && !self.allow_anonymous
        {
            self.shared.metrics.reload_successful.set(0);
            return Err(StartError::Config(format!(
                "this process still listens on {addr}: without any [[key]] anybody who reaches it could spend the upstream's \
                 api_key; restart it to listen elsewhere"
            )));
        }
        let (old, new) = (&before.config.server, &settings.config.server);
        if old.listen != new.listen || old.admin_listen != new.admin_listen {
            tracing::warn!("addresses to listen on change with a restart only");
        }
        self.shared.audit.reloaded(&before.config, &settings.config);
        let policy = settings.config.policy.clone();
        self.shared.driver.with(|gate, now| gate.reload(policy, now));
        self.shared.alerting.reconfigure(&settings.alerts);
        self.shared.settings.store(Arc::new(settings));
        self.shared.metrics.reload_successful.set(1);
        Ok(())
    }

    /// Notes that a configuration was to be taken over and could not be, or could not even be read; the one in force stays.
    pub fn reload_failed(&self, why: &str) {
        self.shared.metrics.reload_successful.set(0);
        self.shared.audit.not_reloaded(why);
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
        if let Some(dir) = &self.state_dir
            && let Err(error) = self.shared.driver.save_state(dir, true)
        {
            tracing::warn!("levels cannot be saved in {}: {error}", dir.display());
        }
        self.shared.alerting.end();
        self.shared.watching.end().await;
        self.shared.audit.flush().await;
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
    let serve = |stream, phase| {
        let shared = shared.clone();
        let answer = move |local, request| admin::serve(shared.clone(), local, request);
        tokio::spawn(connection::serve(stream, None, phase, answer));
    };
    listener::accept(listener, phase, Phase::Cut, serve).await;
}
