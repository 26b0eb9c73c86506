//! The circuit breaker alone: an outage opens it, nothing more is sent, a probe finds out that it is over.
//!
//! `cargo run -p tidegate --example circuit_breaker`

mod common;

use std::error::Error;
use std::time::Duration;

use tidegate::{BreakerConfig, BreakerState, Call, CircuitBreaker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let simulator = common::simulator("[[fault]]\nkind = \"outage\"\nfirst = 3").await?;
    let config = BreakerConfig::default()
        .with_failure_threshold(3)
        .with_recovery_timeout(Duration::from_millis(300))
        .with_half_open_max_calls(1);
    let breaker = CircuitBreaker::new(config);
    breaker.on_state_change(|state| println!("  now {}", state.name()));
    let call = Call::new("gpt-4o-mini");
    for number in 1.. {
        match breaker.execute(&call, || common::chat(&simulator)).await {
            Ok(_) => println!("{number}: answered"),
            Err(error) => println!("{number}: {error}"),
        }
        if number > 3 && breaker.state() == BreakerState::Closed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{} calls reached the API", simulator.log().len());
    Ok(())
}
