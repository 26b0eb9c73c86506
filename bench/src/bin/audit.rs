//! How many records a second the audit trail keeps up with, at a given rate and as fast as it can; how long a record is not on disk yet,
//! which is what `kill -9` loses; how long `verify` takes.
//!
//! `cargo run --release -p tidegate-bench --bin audit -- 30 20000`: seconds, and records a second that come.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tidegate_watch::audit::{self, Kind, Record, Trail, TrailOptions};

/// How often records come: as many at once as have become due.
const TICK: Duration = Duration::from_millis(1);
/// As fast as it can: never more than so many wait.
const WAITING: u64 = 8000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(30), |text| text.parse())?;
    let rate: u64 = args.next().map_or(Ok(20_000), |text| text.parse())?;
    let dir = std::env::temp_dir().join(format!("tidegate-audit-{}", std::process::id()));
    for rate in [Some(rate), None] {
        fs::create_dir_all(&dir)?;
        let ran = run(&dir.join("audit.db"), Duration::from_secs(seconds), rate);
        fs::remove_dir_all(&dir)?;
        ran?;
    }
    Ok(())
}

fn run(path: &Path, lasting: Duration, rate: Option<u64>) -> Result<(), Box<dyn Error>> {
    let trail = Trail::start(TrailOptions::new(path))?;
    trail.flush()?;
    let (started, cpu_before) = (Instant::now(), cpu_seconds());
    let mut handed_over: u64 = 0;
    // What was handed over at which instant and is not on disk; how long it took of what is.
    let mut under_way: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut ages: Vec<Duration> = Vec::new();
    let (mut seen, mut commits) = (trail.status().written, 0_u64);
    while started.elapsed() < lasting {
        let due = match rate {
            Some(rate) => (started.elapsed().as_secs_f64() * rate as f64) as u64,
            None => trail.status().written + WAITING,
        };
        if handed_over < due {
            under_way.push_back((due, Instant::now()));
        }
        while handed_over < due {
            trail.append(record(handed_over));
            handed_over += 1;
        }
        thread::sleep(TICK);
        let status = trail.status();
        commits += u64::from(status.written > seen);
        seen = status.written;
        // Lost ones and what tells of them aside: where there are any, that is told.
        while under_way.front().is_some_and(|(sequence, _)| *sequence <= seen + status.lost) {
            ages.extend(under_way.pop_front().map(|(_, since)| since.elapsed()));
        }
    }
    trail.flush()?;
    let took = started.elapsed().as_secs_f64();
    let (status, cpu) = (trail.status(), cpu_seconds() - cpu_before);
    drop(trail);
    let bytes = fs::metadata(path)?.len();
    let per_record = |total: f64| total / status.written as f64;
    println!(
        "{}: {:.0} records/s for {took:.1} s, {} lost, {:.1} µs CPU and {:.0} bytes each",
        rate.map_or_else(|| "as fast as it can".to_owned(), |rate| format!("{rate} records/s come")),
        status.written as f64 / took,
        status.lost,
        per_record(cpu * 1e6),
        per_record(bytes as f64),
    );
    ages.sort_unstable();
    let age = |share: f64| ages.get((ages.len() as f64 * share) as usize).or(ages.last()).copied().unwrap_or_default();
    println!(
        "  on disk after {:.1} ms (median), {:.1} ms (99 %), {:.1} ms (all); {:.0} commits/s; {:.1} % of a core",
        age(0.5).as_secs_f64() * 1e3,
        age(0.99).as_secs_f64() * 1e3,
        age(1.0).as_secs_f64() * 1e3,
        commits as f64 / took,
        cpu / took * 100.0
    );
    let verifying = Instant::now();
    let verified = audit::verify(path)?;
    println!(
        "  verified: {} records, {} faults, {:.0} ms for 100,000",
        verified.records,
        verified.fault_count,
        verifying.elapsed().as_secs_f64() * 1e3 / (verified.records as f64 / 1e5)
    );
    Ok(())
}

/// A refusal as the gateway records it.
fn record(n: u64) -> Record {
    Record {
        call: Some(format!("call-{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()),
        tenant: Some("acme".into()),
        user: Some(format!("user-{}", n % 10_000).into()),
        limit: Some("team/acme/tokens_per_minute".into()),
        target: Some("openai/gpt-4o".into()),
        ..Record::new(Kind::Throttle, "refused")
    }
    .with("limit", 90_000)
    .with("used", 89_210)
    .with("requested", 1500)
    .with("waited_us", 2_500_000)
}

/// What this process has used, threads together. Source: proc(5), fields 14 and 15, in hundredths of a second; elsewhere 0.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}
