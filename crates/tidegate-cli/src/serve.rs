//! `tidegate serve`: the gateway, from its flags to its end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use tidegate_core::config::{AlertSignal, Config, ListenAddr, SecretSource, UpstreamConfig, parse_base_url};

use tidegate_gateway::{ConfigSource, Gateway, GatewayOptions, StartError};
use tidegate_sim::{Options, Scenario, Simulator};

use crate::config_files::{ConfigFault, ConfigFiles};
use crate::log;
use crate::outcome::{Failure, deliver};
use crate::signals::{Asked, Signals};
use crate::sim;
use crate::state_dir::StateDir;

/// What the built-in upstream takes for callers that bring no credential.
pub(crate) const API_KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// A token that somebody made up has as many characters at least.
const TOKEN_LENGTH_MIN: usize = 16;
/// Ended by a second signal, as shells report SIGINT.
pub(crate) const INTERRUPTED: i32 = 130;

/// `tidegate serve`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate serve --sim\n\
                        Then: curl http://127.0.0.1:8080/v1/models\n\
                        Configuration: --config, else ./tidegate.toml, $XDG_CONFIG_HOME/tidegate/tidegate.toml,\n\
                        /etc/tidegate/tidegate.toml; TIDEGATE__SERVER__LISTEN=… overrides a key. None is needed.")]
pub(crate) struct ServeArgs {
    /// A configuration file; repeat it to lay one over another, the later wins
    #[arg(long, value_name = "F")]
    config: Vec<PathBuf>,

    /// Where the API is served [default: localhost:8080, both loopback addresses]; port 0 picks a free one
    #[arg(long, value_name = "A")]
    listen: Vec<ListenAddr>,

    /// Where health, metrics and status are served [default: 127.0.0.1:8081]
    #[arg(long, value_name = "A")]
    admin_listen: Option<ListenAddr>,

    /// Base URL of the upstream, such as https://api.openai.com/v1; stands for all that are configured
    #[arg(long, value_name = "URL", value_parser = upstream_url)]
    upstream: Option<String>,

    /// Where levels are kept over a restart [default: $STATE_DIRECTORY, $XDG_STATE_HOME/tidegate, ~/.local/state/tidegate]
    #[arg(long, value_name = "D")]
    state_dir: Option<PathBuf>,

    /// Starts the simulator and makes it the upstream: no key, no network
    #[arg(long, conflicts_with = "upstream")]
    sim: bool,

    /// Lets whoever reaches the listener spend the upstream's credential, also from other machines
    #[arg(long)]
    allow_anonymous: bool,
}

pub(crate) fn upstream_url(written: &str) -> Result<String, String> {
    parse_base_url(written).map_err(|error| error.to_string())
}

/// What the flags say over the configuration; a reload says it again.
struct Flags {
    listen: Vec<ListenAddr>,
    admin_listen: Option<SocketAddr>,
    upstream: Option<UpstreamFlag>,
    /// The state directory, where it cannot be written: a trail that fails there is seen, and alerts tell of it.
    no_trail_in: Option<PathBuf>,
}

enum UpstreamFlag {
    /// `--upstream`.
    Url(String),
    /// `--sim`: the simulator's base URL.
    Simulator(String),
}

/// Runs the gateway until it is asked to stop.
pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    runtime()?.block_on(serve(args))
}

/// The runtime that everything waits in.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))
}

/// What is read and checked, but has no effect in this version: nobody must rely on it unknowingly.
fn warn_of_what_is_not_in_force(config: &Config) {
    let default = Config::default();
    let sections = [("[store]", config.store != default.store)];
    for (section, _) in sections.into_iter().filter(|(_, is_set)| *is_set) {
        tracing::warn!("{section} is configured, but has no effect in this version");
    }
    for alert in config.alerts.iter().filter(|alert| alert.when == AlertSignal::StoreDegraded) {
        tracing::warn!("alert \"{}\" watches [store], which has no effect in this version: it stays quiet", alert.name);
    }
}

async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")))?;
    let files = ConfigFiles::new(args.config);
    let mut config = files.read()?;
    warn_of_what_is_not_in_force(&config);
    let state_dir = StateDir::take(args.state_dir.clone())?;
    let no_trail_in = if state_dir.is_none() { StateDir::unwritable(args.state_dir) } else { None };

    let simulator = if args.sim { Some(start_simulator().await?) } else { None };
    let upstream = match &simulator {
        Some(simulator) => Some(UpstreamFlag::Simulator(simulator.base_url())),
        None => args.upstream.map(UpstreamFlag::Url),
    };
    let admin_listen = args.admin_listen.map(ListenAddr::socket);
    let flags = Flags { listen: args.listen, admin_listen, upstream, no_trail_in };
    flags.lay_on(&mut config)?;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };

    let gateway = Gateway::start(GatewayOptions {
        config,
        allow_anonymous: args.allow_anonymous,
        state_dir: state_dir.as_ref().map(|state_dir| state_dir.path().to_owned()),
        admin_token: admin_token(),
        own_threads: true,
        source: Some(ConfigSource::new(move || read_again(&files, &flags))),
    })
    .await
    .map_err(start_failure)?;
    deliver(&ready_line(&gateway, scheme))?;

    while signals.next().await == Asked::Reload {
        // Logged there, either way.
        let _ = gateway.reread();
    }
    tracing::info!("stopping: calls under way may finish; a second signal stops at once");
    tokio::select! {
        () = gateway.drain() => {}
        () = signals.stop() => {
            tracing::warn!("stopped at once: calls under way were cut off");
            log::exit(INTERRUPTED);
        }
    }
    if let Some(simulator) = simulator {
        simulator.shutdown().await;
    }
    Ok(())
}

pub(crate) async fn start_simulator() -> Result<Simulator, Failure> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let simulator = sim::start(Scenario::default(), Options::default(), addr).await?;
    tracing::info!("the simulator is the upstream, at {}", simulator.base_url());
    Ok(simulator)
}

impl Flags {
    /// Lays the flags over `config`, and the built-in upstream where there is none.
    fn lay_on(&self, config: &mut Config) -> Result<(), Failure> {
        if !self.listen.is_empty() {
            config.server.listen.clone_from(&self.listen);
        }
        if let Some(addr) = self.admin_listen {
            config.server.admin_listen = addr;
        }
        if let Some(dir) = &self.no_trail_in {
            config.audit.path = dir.join(&config.audit.path);
        }
        match &self.upstream {
            Some(UpstreamFlag::Simulator(base_url)) => {
                config.set_upstreams(vec![UpstreamConfig {
                    name: "sim".into(),
                    base_url: base_url.clone(),
                    api_key: Some(SecretSource::Placeholder),
                    ..UpstreamConfig::default()
                }]);
            }
            Some(UpstreamFlag::Url(base_url)) => {
                if !base_url.ends_with("/v1") {
                    tracing::warn!("--upstream {base_url} does not end in /v1, as most base URLs do");
                }
                let first = config.upstreams.first().cloned();
                let upstream = first.map_or_else(|| built_in(config), Ok)?;
                config.set_upstreams(vec![UpstreamConfig { base_url: base_url.clone(), ..upstream }]);
            }
            None if config.upstreams.is_empty() => {
                let upstream = built_in(config)?;
                config.set_upstreams(vec![upstream]);
            }
            None => {}
        }
        Ok(())
    }
}

/// The upstream where none is configured: the caller's own credential goes first, else `OPENAI_API_KEY`.
fn built_in(config: &Config) -> Result<UpstreamConfig, Failure> {
    let is_set = std::env::var(API_KEY_VARIABLE).is_ok_and(|key| !key.trim().is_empty());
    if !config.keys.is_empty() && !is_set {
        return Err(Failure::Usage(format!(
            "[[key]] is configured, and a tidegate key is never forwarded: set {API_KEY_VARIABLE}, or write an [[upstream]] \
             with its api_key"
        )));
    }
    Ok(UpstreamConfig {
        api_key: is_set.then(|| SecretSource::Env(API_KEY_VARIABLE.to_owned())),
        caller_first: config.keys.is_empty(),
        ..UpstreamConfig::default()
    })
}

fn ready_line(gateway: &Gateway, scheme: &str) -> String {
    // Of several addresses the first is told: for localhost the IPv4 one, which every client can reach.
    let api = gateway.api_addrs().first().map(ToString::to_string).unwrap_or_default();
    format!("tidegate ready api={scheme}://{api}/v1 admin=http://{} auth={}", gateway.admin_addr(), gateway.auth())
}

/// The token that the environment has, if any.
fn admin_token() -> Option<String> {
    let token = std::env::var("TIDEGATE_ADMIN_TOKEN").ok().filter(|token| !token.trim().is_empty())?;
    if token.trim().len() < TOKEN_LENGTH_MIN {
        tracing::warn!(
            "TIDEGATE_ADMIN_TOKEN has fewer than {TOKEN_LENGTH_MIN} characters, and whoever guesses it operates this gateway: \
             `openssl rand -hex 32` makes one that nobody does"
        );
    }
    Some(token)
}

/// Reads the configuration again and lays the flags over it.
fn read_again(files: &ConfigFiles, flags: &Flags) -> Result<Config, String> {
    let mut config = files.read().map_err(|fault| match fault {
        ConfigFault::Unreadable(message) => message,
        ConfigFault::Wrong(diagnostics) => diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    })?;
    match flags.lay_on(&mut config) {
        Ok(()) => Ok(config),
        Err(Failure::Usage(message) | Failure::Failed(message)) => Err(message),
        Err(Failure::Told | Failure::Ended(_)) => Err(String::new()),
    }
}

fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Config(message) => Failure::Usage(message),
        other => Failure::Failed(other.to_string()),
    }
}
