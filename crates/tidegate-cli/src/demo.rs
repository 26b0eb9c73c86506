//! `tidegate demo`: the same callers twice, by themselves and behind a gateway, each side with a simulator of its own.
//!
//! Both sides are a plain loop with the official SDKs' rules: two retries, half a second doubled with up to a quarter less,
//! the server's wait where it tells one. Source: openai-python, `_base_client.py`.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::Client;
use tidegate_core::config::{Config, ListenAddr, SecretSource, UpstreamConfig};
use tidegate_gateway::{Gateway, GatewayOptions};
use tidegate_sim::{Options, Scenario, Simulator};
use tokio::task::JoinSet;

use crate::outcome::{Failure, print};
use crate::{serve, sim};

/// What the limit lets through: so many a second, and so many at once at first.
const PER_SECOND: u32 = 4;
const AT_FIRST: u32 = 12;
const SCENARIO: &str =
    "[latency]\nfirst_token = \"200ms\"\nsigma = 0.2\ntokens_per_second = 400.0\n[output]\nmedian = 40\n";
/// Calls that come within [`CALLS_FOR`]: three times what the limit lets through meanwhile.
const CALLS: u32 = 120;
const CALLS_FOR: Duration = Duration::from_secs(10);
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello, tide."}]}"#;
const RETRIES: u32 = 2;

/// `tidegate demo`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate demo    (under a minute; no key, no network)")]
pub(crate) struct DemoArgs {}

/// What has come of one side's calls.
#[derive(Debug, Default)]
struct Side {
    answered: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    met_429: AtomicU64,
    /// From the first call to the last end, in milliseconds.
    took_millis: AtomicU64,
}

/// Shows both.
pub(crate) fn run(_args: &DemoArgs) -> Result<(), Failure> {
    serve::runtime()?.block_on(show())
}

async fn start_simulator() -> Result<Simulator, Failure> {
    let rpm = 60 * PER_SECOND;
    let fill = f64::from(AT_FIRST) / f64::from(rpm);
    let limits = format!("[model.\"gpt-4o-mini\"]\nrpm = {rpm}\ntpm = 1000000\ninitial_fill = {fill}\n");
    let scenario =
        Scenario::from_toml(&format!("{SCENARIO}{limits}")).map_err(|error| Failure::Failed(error.to_string()))?;
    sim::start(scenario, Options::default(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
}

async fn show() -> Result<(), Failure> {
    let (alone_upstream, gateway_upstream) = (start_simulator().await?, start_simulator().await?);
    let gateway = start_gateway(&gateway_upstream).await?;
    let gateway_url = gateway.api_addrs().first().map(|addr| format!("http://{addr}/v1")).unwrap_or_default();
    // Nothing but loopback is spoken to, but the client wants to know who would encrypt.
    tidegate_bulk::choose_crypto();
    let client = Client::builder().no_proxy().build();
    let client = client.map_err(|error| Failure::Failed(format!("no connections can be made: {error}")))?;
    print(&format!(
        "{CALLS} calls in {} s, {PER_SECOND} a second allowed:\nalone, and through tidegate",
        CALLS_FOR.as_secs()
    ))?;
    let sides = [Arc::new(Side::default()), Arc::new(Side::default())];
    let urls = [alone_upstream.base_url(), gateway_url];
    let mut callers = JoinSet::new();
    for (side, url) in sides.iter().zip(urls) {
        callers.spawn(call_all(client.clone(), format!("{url}/chat/completions"), side.clone()));
    }
    tokio::select! {
        () = async { while callers.join_next().await.is_some() {} } => {}
        () = show_live(&sides) => {}
    }
    say(&sides)?;
    gateway.drain().await;
    gateway_upstream.shutdown().await;
    alone_upstream.shutdown().await;
    Ok(())
}

async fn start_gateway(upstream: &Simulator) -> Result<Gateway, Failure> {
    let mut config = Config::default();
    let free: ListenAddr =
        "127.0.0.1:0".parse().map_err(|error| Failure::Failed(format!("no address to listen on: {error}")))?;
    config.server.listen = vec![free];
    config.server.admin_listen = free.socket();
    config.server.drain_timeout = Duration::from_secs(1);
    config.set_upstreams(vec![UpstreamConfig {
        name: "sim".into(),
        base_url: upstream.base_url(),
        api_key: Some(SecretSource::Placeholder),
        ..UpstreamConfig::default()
    }]);
    // Nobody is to know it: there is nothing to administer.
    let admin_token = Some(format!("{:032x}", fastrand::u128(..)));
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: None,
        admin_token,
        own_threads: false,
        source: None,
    };
    Gateway::start(options).await.map_err(|error| Failure::Failed(error.to_string()))
}

async fn call_all(client: Client, url: String, side: Arc<Side>) {
    let began = Instant::now();
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(CALLS_FOR / CALLS);
    for _ in 0..CALLS {
        ticks.tick().await;
        calls.spawn(call(client.clone(), url.clone(), side.clone()));
    }
    while calls.join_next().await.is_some() {}
    side.took_millis.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
}

/// One call as an official SDK makes it.
async fn call(client: Client, url: String, side: Arc<Side>) {
    for retry in 0..=RETRIES {
        side.sent.fetch_add(1, Relaxed);
        let sent = client.post(&url).header("content-type", "application/json").body(BODY).send().await;
        let mut told = None;
        if let Ok(response) = sent {
            let status = response.status();
            let header = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<f64>().ok();
            told = header("retry-after-ms").map(|millis| millis / 1000.0).or_else(|| header("retry-after"));
            side.met_429.fetch_add(u64::from(status == 429), Relaxed);
            if status.is_success() && response.bytes().await.is_ok() {
                side.answered.fetch_add(1, Relaxed);
                return;
            }
        }
        if retry < RETRIES {
            let own = 0.5 * f64::from(1_u32 << retry) * (1.0 - 0.25 * fastrand::f64());
            let wait = told.filter(|seconds| (0.0..=120.0).contains(seconds)).unwrap_or(own);
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
        }
    }
    side.failed.fetch_add(1, Relaxed);
}

/// Shows both sides as they go; never returns.
async fn show_live(sides: &[Arc<Side>; 2]) {
    let is_terminal = io::stderr().is_terminal();
    let every = if is_terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
    let mut ticks = tokio::time::interval(every);
    // The first tick comes at once, when there is nothing to show.
    ticks.tick().await;
    let lines = is_terminal.then(Lines::new);
    loop {
        ticks.tick().await;
        let [alone, gateway] = sides.each_ref().map(|side| {
            let (answered, failed) = (side.answered.load(Relaxed), side.failed.load(Relaxed));
            format!("{answered:3} done {failed:3} failed {:3} 429s", side.met_429.load(Relaxed))
        });
        match &lines {
            Some(lines) => lines.show([format!("alone    {alone}"), format!("tidegate {gateway}")]),
            // Where standard error is gone there is nobody left to tell.
            None => drop(writeln!(io::stderr(), "alone: {alone}   tidegate: {gateway}")),
        }
    }
}

/// Lines of a terminal that are drawn over, and gone in the end; where it is narrow, with all their rows.
struct Lines {
    all: MultiProgress,
    bars: [ProgressBar; 2],
}

impl Lines {
    fn new() -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bars = [(); 2].map(|()| all.add(ProgressBar::no_length().with_style(style.clone())));
        Self { all, bars }
    }

    fn show(&self, texts: [String; 2]) {
        for (bar, text) in self.bars.iter().zip(texts) {
            bar.set_message(text);
            bar.tick();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // A terminal that is gone needs no cleaning.
        let _ = self.all.clear();
    }
}

fn say(sides: &[Arc<Side>; 2]) -> Result<(), Failure> {
    print("\n                 alone   tidegate")?;
    let row = |name: &str, value: fn(&Side) -> u64| {
        let [alone, gateway] = sides.each_ref().map(|side| value(side));
        print(&format!("{name:<13} {alone:>8} {gateway:>10}"))
    };
    row("answered", |side| side.answered.load(Relaxed))?;
    row("failed", |side| side.failed.load(Relaxed))?;
    row("requests", |side| side.sent.load(Relaxed))?;
    row("429s met", |side| side.met_429.load(Relaxed))?;
    row("seconds", |side| side.took_millis.load(Relaxed) / 1000)?;
    let least = (CALLS - AT_FIRST) / PER_SECOND;
    let failed = sides[0].failed.load(Relaxed);
    print(&format!(
        "\nThe limit allows {CALLS} calls in {least} s at\nbest: {AT_FIRST} at once, then {PER_SECOND} a second.\n\
         Alone, {failed} calls were given up instead."
    ))
}
