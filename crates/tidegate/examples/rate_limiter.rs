//! The rate limiter alone: ten calls come at once, five a second are let through, the urgent ones sooner.
//!
//! `cargo run -p tidegate --example rate_limiter`

mod common;

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use tidegate::{Call, Priority, RateLimitConfig, RateLimiter, Usage};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let simulator = Arc::new(common::simulator("").await?);
    let limits = RateLimitConfig::default().with_requests_per_minute(300).with_burst_allowance(1);
    let limiter = RateLimiter::new(limits);
    let started = Instant::now();
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let (limiter, simulator) = (limiter.clone(), simulator.clone());
            let priority = if number % 5 == 4 { Priority::High } else { Priority::Low };
            tokio::spawn(async move {
                let call = Call::new("gpt-4o-mini").with_tokens(10, 20).with_priority(priority);
                let mut reservation = limiter.reserve(&call).await?;
                reservation.sent();
                let answer = common::chat(&simulator).await;
                reservation.settle(Usage::new(10, 20));
                println!("{:>5} ms  call {number} ({priority:?}): {}", started.elapsed().as_millis(), answer.is_ok());
                Ok::<_, tidegate::Error>(())
            })
        })
        .collect();
    for call in calls {
        call.await??;
    }
    let info = limiter.info();
    println!("{} requests of {:?} a minute", info.requests_in_last_minute, info.requests_per_minute);
    Ok(())
}
