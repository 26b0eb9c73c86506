//! async-openai under tidegate: a chat, and one that streams. Nothing else of a program changes.
//!
//! `cargo run -p tidegate --features openai --example async_openai`

mod common;

use std::error::Error;
use std::io::Write;

use async_openai::config::OpenAIConfig;
use async_openai::types::chat::{ChatCompletionRequestUserMessage, CreateChatCompletionRequestArgs};
use futures_util::StreamExt;
use tidegate::Tidegate;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Refused once for its rate, then down for a moment: neither is seen below.
    let faults =
        "[[fault]]\nkind = \"rate_limit\"\nfirst = 1\nwait = \"100ms\"\n[[fault]]\nkind = \"error_500\"\nfirst = 1";
    let simulator = common::simulator(faults).await?;
    let config = OpenAIConfig::new().with_api_base(simulator.base_url()).with_api_key("simulated");
    let client = tidegate::openai_client(config, &Tidegate::builder().build());

    let hello = ChatCompletionRequestUserMessage::from("Hello, tide.");
    let request = CreateChatCompletionRequestArgs::default()
        .model("gpt-4o-mini")
        .max_completion_tokens(40_u32)
        .messages([hello.into()])
        .build()?;

    let answer = client.chat().create(request.clone()).await?;
    println!("{}", answer.choices[0].message.content.as_deref().unwrap_or_default());

    let mut stream = client.chat().create_stream(request).await?;
    while let Some(chunk) = stream.next().await {
        for choice in chunk?.choices {
            print!("{}", choice.delta.content.unwrap_or_default());
            std::io::stdout().flush()?;
        }
    }
    println!();
    Ok(())
}
