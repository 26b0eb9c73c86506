//! The gateway at the edge, over real HTTP: limits that are wrong, shared, changing or unknown, and upstreams that fail.
//!
//! `edge [SECONDS]` (default 120) runs every scenario, ten at a time, each with a simulator, a gateway with no limits
//! configured and its own callers, and prints a row for each. Loopback only; it ends by itself. `edge SECONDS check` fails if
//! a row is worse than it may be, and is so again when few others run; what no machine excuses may not happen at all. `edge SECONDS
//! WORDS` runs those with such a name. The same scenarios run in virtual time in `tidegate-core/tests/it/simulation`.

mod callers;
mod report;
mod rows;
mod run;

use std::time::Duration;

use crate::rows::Row;

/// Scenarios that run at the same time. They begin one after the other, evenly: a row's first second, in which a whole bucket is
/// emptied, takes as much of a small machine as the rest of it.
const AT_A_TIME: f64 = 10.0;
/// The same for those that are looked at once more.
const AT_A_TIME_AGAIN: f64 = 2.0;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(120.0), |text| text.parse())?;
    let word = std::env::args().nth(2).unwrap_or_default();
    let checks = word == "check";
    println!("{seconds} s each; used: of what was available; held: of that, what flowed in vain while calls waited");
    println!("429s: sent by the upstream; failed: callers who got no 200; well: of the calls that met a failure");
    println!("early: sent before a wait that the upstream had told was over; open: sent to an open breaker");
    let (well, early) = ("ended well", "early");
    println!(
        "{:<45} {:>8} {:>9} {:>6} {:>7} {:>7} {well:>11} {early:>6} {:>5}",
        "", "used", "held", "429s", "served", "failed", "open"
    );
    let wanted = |row: &Row| checks || row.name.contains(&*word);
    let mut rows: Vec<_> = rows::rows().into_iter().filter(wanted).collect();
    let mut worse = Vec::new();
    // Of the second look each row has its own result alone.
    for look in [Look::First, Look::Second] {
        let (again, misses) = run_all(rows, seconds, look).await?;
        worse.extend(misses);
        if !checks || again.is_empty() {
            break;
        }
        println!("\nonce more, with fewer at a time:");
        rows = again;
    }
    if checks && !worse.is_empty() {
        return Err(worse.join("\n").into());
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    Second,
}

/// Prints what comes of each. Returns those worth another look, and what is wrong however busy the machine is.
async fn run_all(rows: Vec<Row>, seconds: f64, look: Look) -> Result<(Vec<Row>, Vec<String>), Failure> {
    let at_a_time = if look == Look::First { AT_A_TIME } else { AT_A_TIME_AGAIN };
    let begin = |(number, row): (usize, Row)| {
        let (same, after) = (row.clone(), Duration::from_secs_f64(number as f64 * seconds / at_a_time));
        let run = async move {
            tokio::time::sleep(after).await;
            run::run(row, seconds).await
        };
        (same, tokio::spawn(run))
    };
    let runs: Vec<_> = rows.into_iter().enumerate().map(begin).collect();
    let (mut again, mut worse) = (Vec::new(), Vec::new());
    for (row, run) in runs {
        let name = row.name;
        match run.await? {
            Ok(report) => {
                println!("{name:<45} {report}");
                worse.extend(report.wrongs().map(|wrong| format!("{name}: {wrong}")));
                let misses: Vec<_> = report.misses(row.held_to).map(|miss| format!("{name}: {miss}")).collect();
                match look {
                    Look::First if !misses.is_empty() => again.push(row),
                    Look::First => {}
                    Look::Second => worse.extend(misses),
                }
            }
            Err(error) => {
                println!("{name:<45} could not be run: {error}");
                worse.push(format!("{name}: {error}"));
            }
        }
    }
    Ok((again, worse))
}
