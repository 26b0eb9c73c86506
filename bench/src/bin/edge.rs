//! The gateway at the edge, over real HTTP: limits that are wrong, shared, changing or unknown, and upstreams that fail.
//!
//! `edge [SECONDS]` (default 120) runs every scenario, five at a time, each with a simulator, a gateway with nothing
//! configured and its own callers, and prints a row for each. Loopback only; it ends by itself. `edge SECONDS check` fails if
//! a row is worse than it may be; `edge SECONDS WORDS` runs those with such a name. The same scenarios run in virtual time in `tidegate-core/tests/it/simulation`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tidegate_core::breaker::BreakerState;
use tidegate_core::config::{Config, SecretSource, UpstreamConfig};
use tidegate_core::event::Event;
use tidegate_gateway::{Gateway, GatewayOptions};
use tidegate_sim::{Options, Scenario, Simulator};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, broadcast};

/// Tokens a minute that the model takes; a call is about a hundred.
const TPM: f64 = 60_000.0;
/// Callers that always have a call waiting.
const CALLERS: usize = 150;
/// Scenarios that run at the same time: more would measure the scheduler of a small machine.
const AT_A_TIME: usize = 5;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One row.
#[derive(Clone)]
struct Row {
    name: &'static str,
    /// Keys of the scenario, above its tables.
    top: &'static str,
    /// Where a 429 says how long to wait.
    waits: &'static str,
    /// Keys of the model.
    model: &'static str,
    /// Tables after it; `{n}` stands for a fraction of the run in seconds, as `{0.5}`.
    tables: &'static str,
    /// (share of the run, factor): the limit is so many times as large from then on.
    moves: &'static [(f64, f64)],
    /// From when until when, in shares of the run, no calls are made.
    idle: (f64, f64),
    /// High-priority callers beside the others, who are then `low`.
    interactive: usize,
    recovery: Duration,
    /// What `check` holds it to, in a run of 20 s.
    held_to: Bounds,
}

/// The least of what was available that is used, in per cent; the most 429s that the upstream sends. Wide enough for a machine that
/// does other things meanwhile: what no machine excuses is asserted of each row.
#[derive(Clone, Copy)]
struct Bounds(f64, u64);

const PLAIN: Row = Row {
    name: "limit told by headers",
    top: "",
    waits: "both",
    model: "",
    tables: "",
    moves: &[],
    idle: (0.0, 0.0),
    interactive: 0,
    recovery: Duration::from_secs(60),
    held_to: Bounds(84.0, 10),
};

fn rows() -> Vec<Row> {
    let others = "[[tenant]]\nmodel = 'm'\nshare = 0.4\ntokens_per_call = 100\n";
    let soon = Duration::from_secs(2);
    vec![
        PLAIN,
        Row {
            name: "halved after 1/3, back after 2/3",
            moves: &[(0.333, 0.5), (0.667, 1.0)],
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "doubled after 1/3, back after 2/3",
            moves: &[(0.333, 2.0), (0.667, 1.0)],
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row { name: "unseen tenants take 40 %", tables: others, held_to: Bounds(84.0, 60), ..PLAIN },
        Row { name: "enforced by the second", model: "quantum = '1s'", held_to: Bounds(76.0, 90), ..PLAIN },
        Row {
            name: "enforced by the second, wait in the message",
            model: "quantum = '1s'",
            waits: "none",
            held_to: Bounds(76.0, 90),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, others 40 %",
            model: "quantum = '1s'",
            tables: others,
            held_to: Bounds(76.0, 120),
            ..PLAIN
        },
        Row { name: "no headers", top: "headers = false", held_to: Bounds(84.0, 150), ..PLAIN },
        Row {
            name: "unreadable headers",
            tables: "[[fault]]\nkind = 'garbage_headers'\n",
            held_to: Bounds(84.0, 150),
            ..PLAIN
        },
        Row {
            name: "random headers",
            tables: "[[fault]]\nkind = 'random_headers'\n",
            held_to: Bounds(84.0, 180),
            ..PLAIN
        },
        Row { name: "headers tell twice the truth", top: "told_factor = 2.0", held_to: Bounds(84.0, 180), ..PLAIN },
        Row { name: "headers tell half the truth", top: "told_factor = 0.5", held_to: Bounds(34.0, 10), ..PLAIN },
        Row { name: "charges input + max", model: "charge = 'input_plus_max'", held_to: Bounds(82.0, 60), ..PLAIN },
        Row {
            name: "charges the larger of input and max",
            model: "charge = 'max'",
            held_to: Bounds(79.0, 60),
            ..PLAIN
        },
        Row { name: "charges real use", model: "charge = 'usage'", held_to: Bounds(82.0, 60), ..PLAIN },
        Row {
            name: "refused calls not counted, others 40 %",
            top: "refused_count = false",
            tables: others,
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "300 requests left of the day",
            model: "rpd = 300\nrpd_in_headers = true",
            held_to: Bounds(38.0, 10),
            ..PLAIN
        },
        Row { name: "the same, headers silent of the day", model: "rpd = 300", held_to: Bounds(38.0, 90), ..PLAIN },
        Row { name: "all at once after an idle time", idle: (0.2, 0.5), held_to: Bounds(79.0, 10), ..PLAIN },
        Row { name: "50 interactive callers beside a batch job", interactive: 50, held_to: Bounds(69.0, 10), ..PLAIN },
        Row {
            name: "outage of an eighth of the time",
            tables: "[[fault]]\nkind = 'outage'\nclosed = true\nfrom = '{0.375}'\nuntil = '{0.5}'\n",
            recovery: soon,
            held_to: Bounds(82.0, 10),
            ..PLAIN
        },
        Row {
            name: "flapping: 503 for 3 s, four times",
            tables: "[[fault]]\nkind = 'outage'\nfrom = '{0.2}'\nuntil = '{0.225}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.4}'\nuntil = '{0.425}'\n\
                     [[fault]]\nkind = 'outage'\nfrom = '{0.6}'\nuntil = '{0.625}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.8}'\nuntil = '{0.825}'\n",
            recovery: soon,
            held_to: Bounds(76.0, 10),
            ..PLAIN
        },
        Row {
            name: "every 20th call fails",
            tables: "[[fault]]\nkind = 'error_500'\nevery = 20\n",
            held_to: Bounds(79.0, 10),
            ..PLAIN
        },
        Row {
            name: "slow_down for 3 s",
            tables: "[[fault]]\nkind = 'slow_down'\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds(64.0, 60),
            ..PLAIN
        },
        Row {
            name: "the same, as a 503",
            tables: "[[fault]]\nkind = 'slow_down'\nstatus = 503\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds(64.0, 60),
            ..PLAIN
        },
        Row {
            name: "quota ends halfway",
            tables: "[[fault]]\nkind = 'insufficient_quota'\nfrom = '{0.5}'\n",
            held_to: Bounds(64.0, u64::MAX),
            ..PLAIN
        },
    ]
}

#[derive(Default)]
struct Seen {
    ok: AtomicU64,
    failed: AtomicU64,
    interactive: AtomicU64,
    interactive_waited: AtomicU64,
    sent_while_open: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(120.0), |text| text.parse())?;
    let word = std::env::args().nth(2).unwrap_or_default();
    let checks = word == "check";
    println!("{seconds} s each; 429s: sent by the upstream; failed: callers who got no 200");
    println!("early: sent before a wait that the upstream had told was over; open: sent to an open breaker");
    println!("{:<42} {:>8} {:>6} {:>7} {:>7} {:>6} {:>5}", "", "used", "429s", "served", "failed", "early", "open");
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let begin = |row: Row| {
        let places = places.clone();
        let (name, held_to) = (row.name, row.held_to);
        let run = async move {
            let _place = places.acquire().await?;
            run(row, seconds).await
        };
        (name, held_to, tokio::spawn(run))
    };
    let wanted = |row: &Row| checks || row.name.contains(&*word);
    let runs: Vec<_> = rows().into_iter().filter(wanted).map(begin).collect();
    let mut worse = Vec::new();
    for (name, held_to, run) in runs {
        match run.await? {
            Ok(report) => {
                println!("{name:<42} {report}");
                worse.extend(report.misses(held_to).map(|miss| format!("{name}: {miss}")));
            }
            Err(error) => {
                println!("{name:<42} could not be run: {error}");
                worse.push(format!("{name}: {error}"));
            }
        }
    }
    if checks && !worse.is_empty() {
        return Err(worse.join("\n").into());
    }
    Ok(())
}

/// What came of one row.
#[derive(Default)]
struct Report {
    /// Of what was available, in per cent.
    used: f64,
    too_many: u64,
    served: u64,
    failed: u64,
    came_early: u64,
    sent_while_open: u64,
    /// (all, those that waited)
    interactive: Option<(u64, u64)>,
}

impl Report {
    fn misses(&self, Bounds(used, too_many): Bounds) -> impl Iterator<Item = String> {
        let all = [
            (self.used < used, format!("used {:.1} % of what was available, not {used}", self.used)),
            (self.too_many > too_many, format!("met {} 429s, not at most {too_many}", self.too_many)),
            (self.served == 0, "served nobody".to_owned()),
            (
                self.too_many > self.failed + self.served + CALLERS as u64,
                format!("met {} 429s, more than one for each call", self.too_many),
            ),
            (self.interactive.is_some_and(|(all, waited)| waited * 2 > all), "let interactive calls wait".to_owned()),
            (self.came_early > 0, format!("sent {} before a told wait was over", self.came_early)),
            (self.sent_while_open > 0, format!("sent {} to an open breaker", self.sent_while_open)),
        ];
        all.into_iter().filter_map(|(is_missed, miss)| is_missed.then_some(miss))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, too_many, served, failed, came_early, sent_while_open, interactive } = self;
        write!(f, "{used:>6.1} % {too_many:>6} {served:>7} {failed:>7} {came_early:>6} {sent_while_open:>5}")?;
        match interactive {
            Some((all, waited)) => write!(f, "   {waited} of {all} interactive calls waited"),
            None => Ok(()),
        }
    }
}

/// Counts the calls that are let through while the breaker is open, as the gateway tells it.
async fn watch_breaker(mut events: broadcast::Receiver<Arc<Event>>, seen: Arc<Seen>) {
    let mut is_open = false;
    loop {
        match events.recv().await.as_deref() {
            Ok(Event::StateChanged { to, .. }) => is_open = *to == BreakerState::Open,
            Ok(Event::Granted { .. }) if is_open => {
                seen.sent_while_open.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => println!("{missed} events were missed"),
            Err(broadcast::error::RecvError::Closed) => return,
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
         tokens_per_second = 400.0\n[output]\nmedian = 20\nsigma = 0.3\nmax = 60\n[model.m]\nrpm = 100000\ntpm = {}\n{}\n{tables}",
        row.waits,
        row.top,
        (TPM * factor) as u64,
        row.model
    );
    Scenario::from_toml(&text).map_err(|error| format!("{error:?} in\n{text}").into())
}

async fn run(row: Row, seconds: f64) -> Result<Report, Failure> {
    let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
    let simulator = Simulator::start(scenario(&row, 1.0, seconds)?, Options::default(), listen).await?;
    let gateway = gateway(&simulator, row.recovery).await?;
    let addr = gateway.api_addrs()[0];
    let (started, seen) = (Instant::now(), Arc::new(Seen::default()));
    let mut callers = tokio::task::JoinSet::new();
    callers.spawn(watch_breaker(gateway.driver().subscribe(), seen.clone()));
    for number in 0..CALLERS {
        let idle = (row.idle.0 * seconds, row.idle.1 * seconds);
        let priority = if row.interactive > 0 { "low" } else { "normal" };
        callers.spawn(call_on(addr, started, idle, priority, number, seen.clone()));
    }
    for number in 0..row.interactive {
        callers.spawn(ask_now_and_then(addr, number, seen.clone()));
    }
    let mut available = TPM;
    let (mut at, mut factor) = (0.0, 1.0);
    for (share, next) in row.moves.iter().copied().chain([(1.0, 1.0)]) {
        let until = share * seconds;
        tokio::time::sleep_until((started + Duration::from_secs_f64(until)).into()).await;
        available += TPM * factor * (until - at) / 60.0;
        (at, factor) = (until, next);
        if share < 1.0 {
            simulator.set_scenario(scenario(&row, factor, seconds)?);
        }
    }
    let stats = simulator.stats();
    let tokens = &stats.groups["m"].levels["tokens"];
    if row.model.contains("quantum") {
        available -= TPM - TPM / 60.0;
    }
    let used = tokens.charged as f64 / (available - tokens.tenants as f64);
    callers.shutdown().await;
    drop(gateway);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let interactive = (count(&seen.interactive), count(&seen.interactive_waited));
    Ok(Report {
        used: 100.0 * used,
        too_many: stats.status_429,
        served: count(&seen.ok),
        failed: count(&seen.failed),
        came_early: stats.came_early,
        sent_while_open: count(&seen.sent_while_open),
        interactive: (row.interactive > 0).then_some(interactive),
    })
}

async fn gateway(simulator: &Simulator, recovery: Duration) -> Result<Gateway, Failure> {
    let mut config = Config::default();
    config.set_upstreams(vec![UpstreamConfig {
        base_url: simulator.base_url(),
        api_key: Some(SecretSource::Placeholder),
        ..UpstreamConfig::default()
    }]);
    config.server.listen = vec!["127.0.0.1:0".parse().map_err(|_| "no address")?];
    config.server.admin_listen = "127.0.0.1:0".parse().map_err(|_| "no address")?;
    config.policy.breaker.recovery_timeout = recovery;
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

/// Makes one call after the other while calls are to be made.
async fn call_on(addr: SocketAddr, started: Instant, idle: (f64, f64), priority: &str, number: usize, seen: Arc<Seen>) {
    let mut client = Client::new(addr, priority, format!("batch-{}", number % 20));
    loop {
        let now = started.elapsed().as_secs_f64();
        if (idle.0..idle.1).contains(&now) {
            tokio::time::sleep(Duration::from_secs_f64(idle.1 - now)).await;
        }
        match client.call().await {
            Ok((200, _)) => seen.ok.fetch_add(1, Ordering::Relaxed),
            // As a caller who is told to come back later does, if not quite so patiently.
            _ => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                seen.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Makes a call now and then, as a person does: 50 of them use a fifth of the limit.
async fn ask_now_and_then(addr: SocketAddr, number: usize, seen: Arc<Seen>) {
    let mut client = Client::new(addr, "high", format!("person-{number}"));
    let mut random = number as u64 + 1;
    loop {
        // Enough of a generator to spread them.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(10_000 + (random >> 33) % 30_000)).await;
        if let Ok((200, queued_ms)) = client.call().await {
            seen.interactive.fetch_add(1, Ordering::Relaxed);
            seen.interactive_waited.fetch_add(u64::from(queued_ms > 0), Ordering::Relaxed);
        }
    }
}

struct Client {
    addr: SocketAddr,
    body: Bytes,
    priority: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    fn new(addr: SocketAddr, priority: &str, user: String) -> Self {
        let text = "The tide waits for nobody, but it comes back. ".repeat(9);
        let body = format!(
            r#"{{"model":"m","user":"{user}","max_tokens":60,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        );
        Self { addr, body: body.into(), priority: priority.to_owned(), connection: None }
    }

    /// One call: status, and how long it waited in the gateway.
    async fn call(&mut self) -> Result<(u16, u64), Failure> {
        let connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.addr).await?;
                stream.set_nodelay(true)?;
                let (send, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                send
            }
        };
        let connection = self.connection.insert(connection);
        connection.ready().await?;
        let request = Request::post("/v1/chat/completions")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("x-tidegate-priority", &self.priority)
            .body(Full::new(self.body.clone()))?;
        let reply = connection.send_request(request).await?;
        let status = reply.status().as_u16();
        let queued = reply.headers().get("x-tidegate-queued-ms").and_then(|value| value.to_str().ok()?.parse().ok());
        reply.into_body().collect().await?;
        Ok((status, queued.unwrap_or(0)))
    }
}
