//! Who calls, and what they are told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Failure;

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) ok: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) interactive: AtomicU64,
    pub(crate) interactive_waited: AtomicU64,
    pub(crate) sent_while_open: AtomicU64,
}

/// Makes one call after the other while calls are to be made.
pub(crate) async fn call_on(
    addr: SocketAddr,
    started: Instant,
    idle: (f64, f64),
    priority: &str,
    number: usize,
    seen: Arc<Seen>,
) {
    let mut client = Client::new(addr, priority, format!("batch-{}", number % 20));
    loop {
        let now = started.elapsed().as_secs_f64();
        if (idle.0..idle.1).contains(&now) {
            tokio::time::sleep(Duration::from_secs_f64(idle.1 - now)).await;
        }
        match client.call().await {
            Ok((200, _)) => seen.ok.fetch_add(1, Ordering::Relaxed),
            // As a caller who is told to come back later does, if not quite so patiently.
            _ => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                seen.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Makes a call now and then, as a person does: 50 of them use a fifth of the limit.
pub(crate) async fn ask_now_and_then(addr: SocketAddr, number: usize, seen: Arc<Seen>) {
    let mut client = Client::new(addr, "high", format!("person-{number}"));
    let mut random = number as u64 + 1;
    loop {
        // Enough of a generator to spread them.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(10_000 + (random >> 33) % 30_000)).await;
        if let Ok((200, queued_ms)) = client.call().await {
            seen.interactive.fetch_add(1, Ordering::Relaxed);
            seen.interactive_waited.fetch_add(u64::from(queued_ms > 0), Ordering::Relaxed);
        }
    }
}

struct Client {
    addr: SocketAddr,
    body: Bytes,
    priority: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    fn new(addr: SocketAddr, priority: &str, user: String) -> Self {
        let text = "The tide waits for nobody, but it comes back. ".repeat(9);
        let body = format!(
            r#"{{"model":"m","user":"{user}","max_tokens":60,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        );
        Self { addr, body: body.into(), priority: priority.to_owned(), connection: None }
    }

    /// One call: status, and how long it waited in the gateway.
    async fn call(&mut self) -> Result<(u16, u64), Failure> {
        let connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.addr).await?;
                stream.set_nodelay(true)?;
                let (send, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                send
            }
        };
        let connection = self.connection.insert(connection);
        connection.ready().await?;
        let request = Request::post("/v1/chat/completions")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("x-tidegate-priority", &self.priority)
            .body(Full::new(self.body.clone()))?;
        let reply = connection.send_request(request).await?;
        let status = reply.status().as_u16();
        let queued = reply.headers().get("x-tidegate-queued-ms").and_then(|value| value.to_str().ok()?.parse().ok());
        reply.into_body().collect().await?;
        Ok((status, queued.unwrap_or(0)))
    }
}
