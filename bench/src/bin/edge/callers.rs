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
use crate::rows::Row;

/// What callers were told, counted.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) ok: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Calls of which an attempt failed that was worth a retry, and those of them that ended well.
    pub(crate) failed_once: AtomicU64,
    pub(crate) mended: AtomicU64,
    pub(crate) interactive: AtomicU64,
    pub(crate) interactive_waited: AtomicU64,
    pub(crate) sent_while_open: AtomicU64,
}

/// What the gateway answered.
struct Answer {
    status: u16,
    /// How long the call waited in the gateway.
    queued_ms: u64,
    /// How often it was sent.
    attempts: u64,
    /// Waiting cannot help.
    is_final: bool,
    /// An error stands in it.
    has_error: bool,
}

impl Answer {
    fn is_good(&self) -> bool {
        self.status == 200 && !self.has_error
    }
}

impl Seen {
    fn note(&self, answer: &Result<Answer, Failure>) {
        let count = |counter: &AtomicU64, is_so: bool| counter.fetch_add(u64::from(is_so), Ordering::Relaxed);
        let is_good = answer.as_ref().is_ok_and(Answer::is_good);
        count(&self.ok, is_good);
        count(&self.failed, !is_good);
        if let Ok(answer) = answer {
            let failed_once = answer.attempts > u64::from(is_good) && !answer.is_final;
            count(&self.failed_once, failed_once);
            count(&self.mended, failed_once && is_good);
        }
    }
}

/// One caller, with its connection.
pub(crate) struct Client {
    addr: SocketAddr,
    priority: &'static str,
    /// One of each size.
    bodies: Vec<Bytes>,
    random: u64,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A caller that is called `user`, in that class, whose calls are as the row says. `seed`: what it draws depends on it.
    pub(crate) fn new(addr: SocketAddr, priority: &'static str, user: &str, seed: usize, row: &Row) -> Self {
        let streams = row.streams;
        let body = |sentences| {
            let text = "The tide waits for nobody, but it comes back. ".repeat(sentences);
            let message = format!(r#"{{"role":"user","content":"{text}"}}"#);
            format!(r#"{{"model":"m","user":"{user}","max_tokens":60,"stream":{streams},"messages":[{message}]}}"#)
                .into()
        };
        Self {
            addr,
            priority,
            bodies: row.sizes.clone().map(body).collect(),
            random: seed as u64 + 1,
            connection: None,
        }
    }

    /// Makes one call after the other while calls are to be made.
    pub(crate) async fn call_on(mut self, started: Instant, idle: (f64, f64), seen: Arc<Seen>) {
        loop {
            let now = started.elapsed().as_secs_f64();
            if (idle.0..idle.1).contains(&now) {
                tokio::time::sleep(Duration::from_secs_f64(idle.1 - now)).await;
            }
            let answer = self.call().await;
            seen.note(&answer);
            if !answer.is_ok_and(|answer| answer.is_good()) {
                // As a caller who is told to come back later does, if not quite so patiently.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    /// Makes a call now and then, as a person does: 50 of them use a fifth of the limit. The first comes `after` so long at the earliest.
    pub(crate) async fn ask_now_and_then(mut self, after: Duration, seen: Arc<Seen>) {
        tokio::time::sleep(after + Duration::from_millis(self.draw(30_000))).await;
        loop {
            if let Some(answer) = self.call().await.ok().filter(Answer::is_good) {
                seen.interactive.fetch_add(1, Ordering::Relaxed);
                seen.interactive_waited.fetch_add(u64::from(answer.queued_ms > 0), Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(10_000 + self.draw(30_000))).await;
        }
    }

    /// A number below `below`. Enough of a generator to spread them.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    async fn call(&mut self) -> Result<Answer, Failure> {
        let which = self.draw(self.bodies.len() as u64);
        let body = self.bodies[which as usize].clone();
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
            .header("x-tidegate-priority", self.priority)
            .body(Full::new(body))?;
        let reply = connection.send_request(request).await?;
        let (head, body) = reply.into_parts();
        let number = |name| head.headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        let body = body.collect().await?.to_bytes();
        let body = String::from_utf8_lossy(&body);
        Ok(Answer {
            status: head.status.as_u16(),
            queued_ms: number("x-tidegate-queued-ms"),
            attempts: number("x-tidegate-attempts"),
            is_final: head.status == 429 && body.contains("insufficient_quota"),
            has_error: body.contains("\"error\""),
        })
    }
}
