//! Everything that happens, as lines of the log (tracing): subscribed to, it slows no call.
//!
//! `RUST_LOG=debug cargo run -p tidegate --example events`

mod common;

use std::error::Error;
use std::time::Duration;

use tidegate::{BreakerConfig, Call, Event, Events, RetryConfig, Tidegate};
use tokio::sync::broadcast::error::RecvError;

async fn log(mut events: Events) {
    loop {
        match events.recv().await {
            Ok(event) => match &*event {
                Event::AttemptFailed { call, attempt, kind, .. } => {
                    tracing::warn!(%call, attempt, ?kind, "attempt failed")
                }
                Event::RetryScheduled { call, delay, .. } => tracing::info!(%call, ?delay, "will be tried again"),
                Event::StateChanged { breaker, from, to, .. } => tracing::info!(%breaker, ?from, ?to, "state changed"),
                event => tracing::debug!(?event),
            },
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "fell behind"),
            Err(RecvError::Closed) => return,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned())).init();
    let simulator = common::simulator("[[fault]]\nkind = \"bad_gateway\"\nfirst = 2").await?;
    let tidegate = Tidegate::builder()
        .retry(RetryConfig::default().with_delays(Duration::from_millis(50), Duration::from_secs(1)))
        .breaker(BreakerConfig::default().with_failure_threshold(10))
        .build();
    let logging = tokio::spawn(log(tidegate.subscribe()));
    tidegate.execute(&Call::new("gpt-4o-mini"), |_attempt| common::chat(&simulator)).await?;
    // With the last handle gone there is nothing more to tell.
    drop(tidegate);
    logging.await?;
    Ok(())
}
