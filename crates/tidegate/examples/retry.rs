//! Retrying alone: the API fails twice, and the caller never learns of it.
//!
//! `cargo run -p tidegate --example retry`

mod common;

use std::error::Error;
use std::time::Duration;

use tidegate::{Call, Retry, RetryConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let simulator = common::simulator("[[fault]]\nkind = \"error_500\"\nfirst = 2").await?;
    let retry = Retry::new(RetryConfig::default().with_delays(Duration::from_millis(50), Duration::from_secs(1)));
    let mut events = retry.subscribe();
    let call = Call::new("gpt-4o-mini").with_timeout(Duration::from_secs(30));
    let answer = retry.execute(&call, || common::chat(&simulator)).await?;
    println!("{}", answer.lines().next().unwrap_or_default());
    while let Ok(event) = events.try_recv() {
        println!("  {event:?}");
    }
    Ok(())
}
