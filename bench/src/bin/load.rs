//! Small chat calls against several addresses in turn: CPU time of each process and latency added.
//!
//! `load NAME=ADDRESS[=PID,PID…] … ` — the first is what the others are compared with (the upstream called directly).
//! Loopback only; the number of calls is fixed, and it ends by itself. `bench/gateway.sh` sets everything up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const ROUNDS: usize = 5;
/// Calls per round and target, back to back on each connection.
const CALLS: usize = 8000;
const CONNECTIONS: usize = 16;
/// Calls a second, and seconds, of the latency part of each round.
const RATE: u32 = 200;
const SECONDS: u32 = 4;
/// Clock ticks a second in /proc; fixed on Linux.
const TICKS: f64 = 100.0;
/// Streams' first events at that rate, and for how long in each round.
const STREAM_SECONDS: u32 = 2;
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Say hello to the tide, in one short sentence."}],"max_tokens":8}"#;

/// What is measured of a call.
#[derive(Clone, Copy)]
enum Until {
    /// The end of its reply.
    End,
    /// The first event of a stream.
    FirstEvent,
}

struct Target {
    name: String,
    address: SocketAddr,
    processes: Vec<u32>,
    /// CPU ms per 1,000 calls of each process, by round.
    cpu: Vec<Vec<f64>>,
    latencies: Vec<u64>,
    first_events: Vec<u64>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut targets = std::env::args().skip(1).map(|text| parse(&text)).collect::<Result<Vec<_>, _>>()?;
    if targets.is_empty() {
        return Err("usage: load NAME=ADDRESS[=PID,PID…] …".into());
    }
    for target in &targets {
        // Connections opened, limits learned, code paged in: not what is to be measured.
        back_to_back(target.address, 2000).await?;
    }
    for _ in 0..ROUNDS {
        for target in &mut targets {
            let before: Vec<f64> = target.processes.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
            back_to_back(target.address, CALLS).await?;
            let after: Vec<f64> = target.processes.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
            let each = before.iter().zip(&after).map(|(before, after)| (after - before) * 1e6 / CALLS as f64);
            target.cpu.push(each.collect());
        }
        for target in &mut targets {
            target.latencies.extend(at_a_rate(target.address, SECONDS, Until::End).await?);
            target.first_events.extend(at_a_rate(target.address, STREAM_SECONDS, Until::FirstEvent).await?);
        }
    }
    println!("{:<12} {:>28} {:>22} {:>22}", "", "CPU ms per 1,000 calls", "latency p50 / p99 ms", "added p50 / p99 ms");
    let base = [quantile(&mut targets[0].latencies, 0.5), quantile(&mut targets[0].latencies, 0.99)];
    for target in &mut targets {
        let cpu: Vec<f64> = target.cpu.iter().map(|round| round.iter().sum()).collect();
        let (p50, p99) = (quantile(&mut target.latencies, 0.5), quantile(&mut target.latencies, 0.99));
        let spread =
            median(&cpu).map_or("-".into(), |(least, middle, most)| format!("{middle:.1} ({least:.1} to {most:.1})"));
        let (added50, added99) = (p50 - base[0], p99 - base[1]);
        println!(
            "{:<12} {spread:>28} {:>22} {:>22}",
            target.name,
            format!("{p50:.3} / {p99:.3}"),
            format!("{added50:+.3} / {added99:+.3}")
        );
    }
    println!("first event of a stream, p50 / p99 ms:");
    let base = quantile(&mut targets[0].first_events, 0.5);
    for target in &mut targets {
        let (p50, p99) = (quantile(&mut target.first_events, 0.5), quantile(&mut target.first_events, 0.99));
        println!("{:<12} {p50:.3} / {p99:.3} ({:+.3})", target.name, p50 - base);
    }
    Ok(())
}

fn parse(text: &str) -> Result<Target, Failure> {
    let mut parts = text.split('=');
    let (Some(name), Some(address)) = (parts.next(), parts.next()) else {
        return Err(format!("{text}: not NAME=ADDRESS").into());
    };
    let address: SocketAddr = address.parse()?;
    if !address.ip().is_loopback() {
        return Err(format!("{address} is not a loopback address; load goes nowhere else").into());
    }
    let processes = parts
        .next()
        .unwrap_or("")
        .split(',')
        .filter(|pid| !pid.is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Target {
        name: name.into(),
        address,
        processes,
        cpu: Vec::new(),
        latencies: Vec::new(),
        first_events: Vec::new(),
    })
}

fn cpu_seconds(pid: u32) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rsplit(')').next().unwrap_or("");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / TICKS)
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// How long it took.
async fn call(sender: &mut SendRequest<Full<Bytes>>, until: Until) -> Result<Duration, Failure> {
    sender.ready().await?;
    let asked = match until {
        Until::End => Bytes::from_static(BODY.as_bytes()),
        Until::FirstEvent => BODY.replacen('{', "{\"stream\":true,", 1).into(),
    };
    let request = Request::post("/v1/chat/completions")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .header("authorization", "Bearer simulated")
        .body(Full::new(asked))?;
    let started = Instant::now();
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    let mut body = reply.into_body();
    let mut took = None;
    if let Until::FirstEvent = until {
        body.frame().await.transpose()?;
        took = Some(started.elapsed());
    }
    let body = body.collect().await?.to_bytes();
    let took = took.unwrap_or_else(|| started.elapsed());
    if status != 200 {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(took)
}

async fn back_to_back(address: SocketAddr, calls: usize) -> Result<(), Failure> {
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        tasks.push(tokio::spawn(async move {
            let mut sender = connect(address).await?;
            for _ in 0..calls / CONNECTIONS {
                call(&mut sender, Until::End).await?;
            }
            Ok::<(), Failure>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Latencies in microseconds of calls sent at a fixed rate, whatever became of those before.
async fn at_a_rate(address: SocketAddr, seconds: u32, until: Until) -> Result<Vec<u64>, Failure> {
    let mut idle: Vec<SendRequest<Full<Bytes>>> = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(connect(address).await?);
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut tasks = Vec::new();
    let (back, mut returned) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..RATE * seconds {
        ticks.tick().await;
        while let Ok(sender) = returned.try_recv() {
            idle.push(sender);
        }
        let mut sender = match idle.pop() {
            Some(sender) => sender,
            None => connect(address).await?,
        };
        let back = back.clone();
        tasks.push(tokio::spawn(async move {
            let took = call(&mut sender, until).await?;
            let _ = back.send(sender);
            Ok::<u64, Failure>(u64::try_from(took.as_micros())?)
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.push(task.await??);
    }
    Ok(latencies)
}

/// In milliseconds.
fn quantile(micros: &mut [u64], share: f64) -> f64 {
    micros.sort_unstable();
    let at = ((micros.len().saturating_sub(1)) as f64 * share) as usize;
    micros.get(at).map_or(0.0, |micros| *micros as f64 / 1000.0)
}

fn median(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some((*sorted.first()?, sorted[sorted.len() / 2], *sorted.last()?))
}
