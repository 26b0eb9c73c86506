//! The provider: a message goes out, its answer comes back in chunks, and the log tells how it went.
//!
//! `RUST_LOG=debug cargo run -p tidegate --features openai --example provider`

mod common;

use std::error::Error;
use std::io::Write;

use async_openai::config::OpenAIConfig;
use futures_util::StreamExt;
use tidegate::{Message, MessageRequest, Priority, Provider, RateLimitConfig, Tidegate};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "tidegate=debug".to_owned()))
        .init();
    let simulator = common::simulator("[[fault]]\nkind = \"error_500\"\nfirst = 1").await?;
    let config = OpenAIConfig::new().with_api_base(simulator.base_url()).with_api_key("simulated");
    let tidegate = Tidegate::builder().limit(RateLimitConfig::openai_paid().with_burst_allowance(0)).build();
    let provider = Provider::new(config, tidegate);

    let request = MessageRequest {
        id: Some("greeting-1".to_owned()),
        user: Some("anna".to_owned()),
        max_tokens: Some(40),
        priority: Priority::High,
        ..MessageRequest::new("gpt-4o-mini", [Message::system("You are a tide."), Message::user("Hello.")])
    };
    let mut answer = provider.send_message(request);
    while let Some(chunk) = answer.next().await {
        let chunk = chunk?;
        print!("{}", chunk.delta);
        std::io::stdout().flush()?;
        if let Some(usage) = chunk.usage {
            println!("\n{} tokens", usage.total());
        }
    }
    Ok(())
}
