//! Runs the simulator until it is interrupted: `cargo run -p tidegate-sim --example simulate -- 127.0.0.1:8090 scenario.toml`.

use std::error::Error;

use tidegate_sim::{Options, Scenario, Simulator};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8090".to_owned()).parse()?;
    let scenario = match args.next() {
        Some(path) => Scenario::from_toml(&std::fs::read_to_string(&path)?).map_err(|e| format!("{path}:{e}"))?,
        None => Scenario::default(),
    };
    let simulator = Simulator::start(scenario, Options::default(), listen).await?;
    println!("{}", simulator.base_url());
    tokio::signal::ctrl_c().await?;
    simulator.shutdown().await;
    Ok(())
}
