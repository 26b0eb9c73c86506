//! What the examples share: the simulator of the OpenAI API, in this process, and the plainest way to ask it something.

#![allow(dead_code, reason = "no example needs all of it")]

use std::error::Error;

use tidegate::Fault;
use tidegate_sim::{Options, Scenario, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A simulator on a free port; `scenario` is TOML, and empty for a first-tier account without faults.
pub(crate) async fn simulator(scenario: &str) -> Result<Simulator, Box<dyn Error>> {
    let options = Options { speed: 20.0, ..Options::default() };
    let scenario = Scenario::from_toml(scenario).map_err(|error| error.to_string())?;
    Ok(Simulator::start(scenario, options, ([127, 0, 0, 1], 0).into()).await?)
}

/// One chat completion, by hand: what an operation of your own may be.
pub(crate) async fn chat(simulator: &Simulator) -> Result<String, Fault> {
    let body = r#"{"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: simulator\r\nauthorization: Bearer simulated\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let reply = async {
        let mut connection = TcpStream::connect(simulator.addr()).await?;
        connection.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        connection.read_to_string(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    let reply = reply.await.map_err(|error| tidegate::ToFault::to_fault(&error))?;
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(500);
    if status == 200 { Ok(reply) } else { Err(Fault::of_status(status)) }
}
