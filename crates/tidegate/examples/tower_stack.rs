//! All of it as a tower layer around a `reqwest::Client`, beside other layers.
//!
//! `cargo run -p tidegate --features openai --example tower_stack`

mod common;

use std::error::Error;

use reqwest::{Client, Method, Request};
use tidegate::{RateLimitConfig, Tidegate, TidegateLayer};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let simulator = common::simulator("[[fault]]\nkind = \"error_500\"\nfirst = 1").await?;
    // Whoever encrypts for reqwest is chosen once in a process.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let tidegate = Tidegate::builder().limit(RateLimitConfig::default().with_tokens_per_minute(30_000)).build();
    let service = ServiceBuilder::new()
        .concurrency_limit(16)
        .layer(TidegateLayer::new(tidegate.clone()).map_call(|call| call.with_user("anna")))
        .service(Client::new());

    let mut request = Request::new(Method::POST, format!("{}/chat/completions", simulator.base_url()).parse()?);
    request.headers_mut().insert("authorization", "Bearer simulated".parse()?);
    request.headers_mut().insert("content-type", "application/json".parse()?);
    let body = r#"{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}"#;
    *request.body_mut() = Some(body.into());

    let response = service.oneshot(request).await?;
    println!("{} {}", response.status(), response.text().await?);
    println!("{:?}", tidegate.limiter().info());
    Ok(())
}
