//! `tidegate sim`: the simulator by itself.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_core::config::ListenAddr;
use tidegate_gateway::ListenError;
use tidegate_sim::{Options, Scenario, Simulator};

use crate::config_files::read_text;
use crate::outcome::{Failure, deliver};
use crate::serve;
use crate::signals::Signals;

/// `tidegate sim`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate sim --listen 127.0.0.1:9000 --seed 7 --speed 10\n\
                        Then: curl http://127.0.0.1:9000/v1/models -H 'Authorization: Bearer any'")]
pub(crate) struct SimArgs {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "A", default_value = "127.0.0.1:8082")]
    listen: ListenAddr,

    /// Models, limits, latencies and faults, in TOML; without it, the built-in ones
    #[arg(long, value_name = "F")]
    scenario: Option<PathBuf>,

    /// What randomness is drawn from: the same seed, the same answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// How many times faster it answers; limits are not scaled
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = speed)]
    speed: f64,

    /// Writes a line of JSON for each request
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
}

fn speed(written: &str) -> Result<f64, String> {
    match written.parse::<f64>() {
        Ok(speed) if speed > 0.0 && speed <= 1e6 => Ok(speed),
        _ => Err("must be a number above 0, such as 10".to_owned()),
    }
}

/// Runs the simulator until it is asked to stop.
pub(crate) fn run(args: SimArgs) -> Result<(), Failure> {
    serve::runtime()?.block_on(simulate(args))
}

async fn simulate(args: SimArgs) -> Result<(), Failure> {
    let scenario = args.scenario.as_deref().map_or_else(|| Ok(Scenario::default()), read_scenario)?;
    if let Some(path) = &args.request_log {
        // Tried here, so that it is not taken for a fault of the address.
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", path.display())))?;
    }
    let options = Options { seed: args.seed, speed: args.speed, request_log: args.request_log };
    let mut signals = Signals::new().map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")))?;
    let simulator = start(scenario, options, args.listen.socket()).await?;
    deliver(&format!("tidegate sim ready api={}", simulator.base_url()))?;
    signals.stop().await;
    simulator.shutdown().await;
    Ok(())
}

/// Starts a simulator on `addr`.
pub(crate) async fn start(scenario: Scenario, options: Options, addr: SocketAddr) -> Result<Simulator, Failure> {
    // Said as the gateway says it of its own listeners.
    Simulator::start(scenario, options, addr)
        .await
        .map_err(|source| Failure::Failed(ListenError::new(addr, false, source).to_string()))
}

fn read_scenario(path: &Path) -> Result<Scenario, Failure> {
    let text = read_text(path).map_err(Failure::Usage)?;
    Scenario::from_toml(&text).map_err(|error| Failure::Usage(format!("{}:{error}", path.display())))
}
