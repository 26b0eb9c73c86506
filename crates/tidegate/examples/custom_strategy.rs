//! A rule of one's own for a class of errors: an overloaded model is asked again quickly, but only twice.
//!
//! `cargo run -p tidegate --example custom_strategy`

mod common;

use std::error::Error;
use std::time::Duration;

use tidegate::{Call, Fault, RateLimitConfig, RetryStrategy, Tidegate};

#[derive(Debug)]
struct Hurried;

impl RetryStrategy for Hurried {
    fn should_retry(&self, fault: &Fault, attempt: u32) -> bool {
        println!("  attempt {attempt} failed: {fault}");
        attempt < 3
    }

    fn delay(&self, attempt: u32) -> Duration {
        Duration::from_millis(20) * attempt
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let simulator = common::simulator("[[fault]]\nkind = \"overloaded\"\nfirst = 2").await?;
    let tidegate = Tidegate::builder()
        .limit(RateLimitConfig::default().with_requests_per_minute(60))
        .strategy("model_overloaded", Hurried)
        .build();
    let answer = tidegate.execute(&Call::new("gpt-4o-mini"), |_attempt| common::chat(&simulator)).await?;
    println!("{}", answer.lines().next().unwrap_or_default());
    Ok(())
}
