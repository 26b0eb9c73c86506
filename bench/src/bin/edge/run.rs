//! Runs one row: a simulator, a gateway with no limits configured, and callers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{Config, SecretSource, UpstreamConfig};
use tidegate_core::event::Event;
use tidegate_gateway::{Gateway, GatewayOptions};
use tidegate_sim::{Options, Scenario, Simulator};
use tokio::sync::broadcast;

use crate::Failure;
use crate::callers::{Client, Seen};
use crate::report::Report;
use crate::rows::{PLAIN, Row};

/// Tokens a minute that the model takes; a call is about a hundred.
const TPM: f64 = 60_000.0;
/// How often the upstream's bucket is looked at.
const LOOK_EACH: Duration = Duration::from_millis(50);
/// Callers that always have a call waiting.
pub(crate) const CALLERS: usize = 150;

pub(crate) async fn run(row: Row, seconds: f64) -> Result<Report, Failure> {
    let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
    let simulator = Simulator::start(scenario(&row, 1.0, seconds)?, Options::default(), listen).await?;
    let another = match row.falls_back {
        true => Some(Simulator::start(scenario(&PLAIN, 1.0, seconds)?, Options::default(), listen).await?),
        false => None,
    };
    let gateway = gateway(&simulator, another.as_ref(), &row).await?;
    let addr = gateway.api_addrs()[0];
    let (started, seen) = (Instant::now(), Arc::new(Seen::default()));
    let mut callers = tokio::task::JoinSet::new();
    callers.spawn(watch_breaker(gateway.driver().subscribe(), seen.clone()));
    for number in 0..CALLERS {
        let idle = (row.idle.0 * seconds, row.idle.1 * seconds);
        let priority = if row.interactive > 0 { "low" } else { "normal" };
        let client = Client::new(addr, priority, &format!("batch-{}", number % 20), number, &row);
        callers.spawn(client.call_on(started, idle, seen.clone()));
    }
    for number in 0..row.interactive {
        let client = Client::new(addr, "high", &format!("person-{number}"), number, &row);
        callers.spawn(client.ask_now_and_then(row.interactive_after, seen.clone()));
    }
    let mut held_back = HeldBack::default();
    // What flows in, as a multiple of what flows in at the limit of the beginning, and seconds.
    let (mut flows_for, mut at, mut factor) = (0.0, 0.0, 1.0);
    for (share, next) in row.moves.iter().copied().chain([(1.0, 1.0)]) {
        let until = share * seconds;
        held_back.watch(&row, &simulator, &gateway, started + Duration::from_secs_f64(until)).await;
        flows_for += factor * (until - at);
        (at, factor) = (until, next);
        if share < 1.0 {
            simulator.set_scenario(scenario(&row, factor, seconds)?);
        }
    }
    let stats = simulator.stats();
    let group = &stats.groups["m"];
    let level = &group.levels[row.binds];
    let period = if row.binds == "requests_day" { 86_400.0 } else { 60.0 };
    // Of a shorter window that window's worth is there at the beginning.
    let full = if row.model.contains("quantum") { 1.0 } else { period };
    let available = level.limit as f64 * (full + flows_for) / period - level.tenants as f64;
    // Refusals may have been charged a request too.
    let used = if row.binds == "tokens" { level.charged } else { group.admitted };
    callers.shutdown().await;
    drop(gateway);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let interactive = (count(&seen.interactive), count(&seen.interactive_waited));
    Ok(Report {
        used: 100.0 * used as f64 / available,
        held_back: 100.0 * held_back.units / available,
        too_many: stats.status_429,
        served: count(&seen.ok),
        failed: count(&seen.failed),
        failed_once: count(&seen.failed_once),
        mended: count(&seen.mended),
        came_early: stats.came_early,
        sent_while_open: count(&seen.sent_while_open),
        interactive: (row.interactive > 0).then_some(interactive),
    })
}

/// What flowed in vain into the upstream's full bucket while calls waited.
#[derive(Default)]
struct HeldBack {
    units: f64,
    lost: f64,
}

impl HeldBack {
    /// Looks again and again until then.
    async fn watch(&mut self, row: &Row, simulator: &Simulator, gateway: &Gateway, until: Instant) {
        while Instant::now() < until {
            tokio::time::sleep_until((Instant::now() + LOOK_EACH).min(until).into()).await;
            let stats = simulator.stats();
            let Some(group) = stats.groups.get("m") else { continue };
            let lost = group.levels.get(row.binds).map_or(0.0, |level| level.lost);
            if gateway.driver().with(|gate, _| gate.waiting()) > 0 {
                self.units += lost - self.lost;
            }
            self.lost = lost;
        }
    }
}

fn scenario(row: &Row, factor: f64, seconds: f64) -> Result<Scenario, Failure> {
    let mut tables = row.tables.to_owned();
    while let (Some(from), Some(to)) = (tables.find('{'), tables.find('}')) {
        let share: f64 = tables[from + 1..to].parse()?;
        tables.replace_range(from..=to, &format!("{}ms", (share * seconds * 1e3) as u64));
    }
    let text = format!(
        "keep_default_models = false\nretry_after = '{}'\n{}\n[latency]\nfirst_token = '150ms'\nsigma = 0.3\n\
         tokens_per_second = 400.0\n[output]\nmedian = 20\nsigma = 0.3\nmax = 60\n[model.m]\nrpm = {}\ntpm = {}\n{}\n{tables}",
        row.waits,
        row.top,
        row.rpm,
        (TPM * factor) as u64,
        row.model
    );
    Scenario::from_toml(&text).map_err(|error| format!("{error:?} in\n{text}").into())
}

async fn gateway(simulator: &Simulator, another: Option<&Simulator>, row: &Row) -> Result<Gateway, Failure> {
    let mut config = Config::default();
    let upstream = |simulator: &Simulator| UpstreamConfig {
        base_url: simulator.base_url(),
        api_key: Some(SecretSource::Placeholder),
        ..UpstreamConfig::default()
    };
    let another = another.map(|another| UpstreamConfig { name: "another".into(), fallback: true, ..upstream(another) });
    config.set_upstreams([upstream(simulator)].into_iter().chain(another).collect());
    config.server.listen = vec!["127.0.0.1:0".parse().map_err(|_| "no address")?];
    config.server.admin_listen = "127.0.0.1:0".parse().map_err(|_| "no address")?;
    (row.policy)(&mut config.policy);
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: None,
        admin_token: Some("edge".to_owned()),
        own_threads: false,
        source: None,
    };
    Ok(Gateway::start(options).await?)
}

/// Counts the calls that are let through to an upstream whose breaker is open, as the gateway tells it.
async fn watch_breaker(mut events: broadcast::Receiver<Arc<Event>>, seen: Arc<Seen>) {
    let mut open = HashSet::new();
    loop {
        match events.recv().await.as_deref() {
            Ok(Event::StateChanged { breaker, to: BreakerState::Open, .. }) => {
                open.insert(breaker.clone());
            }
            Ok(Event::StateChanged { breaker, .. }) => {
                open.remove(breaker);
            }
            Ok(Event::Granted { whose, .. }) if open.contains(&whose.target) => {
                seen.sent_while_open.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => println!("{missed} events were missed"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
