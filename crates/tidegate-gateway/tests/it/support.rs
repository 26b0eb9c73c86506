//! Upstreams and clients that speak raw TCP, so that every byte is a test's own.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tidegate_core::config::{Config, SecretSource, UpstreamConfig};
use tidegate_core::limit::{Dimension, Limit, Mode, Rates};
use tidegate_gateway::{Gateway, GatewayOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes so long unless it hangs.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(30);

/// A small chat call.
pub(crate) const CHAT: &str = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}"#;
/// The same as a stream.
pub(crate) const CHAT_STREAM: &str =
    r#"{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// Fails a test that would hang.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANGS_AFTER, future).await.expect("it hangs")
}

/// A configuration with one upstream at `addr`, free ports, and short back-off.
pub(crate) fn config(addr: SocketAddr) -> Config {
    let mut config = Config::default();
    config.set_upstreams(vec![UpstreamConfig {
        base_url: format!("http://{addr}/v1"),
        api_key: Some(SecretSource::Placeholder),
        ..UpstreamConfig::default()
    }]);
    config.server.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.server.admin_listen = "127.0.0.1:0".parse().unwrap();
    config.policy.retry.base_delay = Duration::from_millis(1);
    config
}

/// Starts a gateway.
pub(crate) async fn start(config: Config) -> Gateway {
    let admin_token = Some("operator".to_owned());
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir: None,
        admin_token,
        own_threads: false,
        source: None,
    };
    Gateway::start(options).await.unwrap()
}

/// The same, which keeps what survives a restart in `dir`.
pub(crate) async fn start_in(dir: &std::path::Path, config: Config) -> Gateway {
    let state_dir = Some(dir.to_owned());
    let options = GatewayOptions {
        config,
        allow_anonymous: false,
        state_dir,
        admin_token: None,
        own_threads: false,
        source: None,
    };
    Gateway::start(options).await.unwrap()
}

/// A gateway in front of a scripted upstream.
pub(crate) async fn scripted() -> (Gateway, Script) {
    scripted_with(|_| {}).await
}

/// The same with a change to its configuration.
pub(crate) async fn scripted_with(change: impl FnOnce(&mut Config)) -> (Gateway, Script) {
    let script = Script::listen().await;
    let mut config = config(script.addr);
    change(&mut config);
    (start(config).await, script)
}

/// An upstream that does what the test does.
pub(crate) struct Script {
    listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

impl Script {
    pub(crate) async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    /// The next connection.
    pub(crate) async fn connection(&self) -> Peer {
        let (stream, _) = within(self.listener.accept()).await.unwrap();
        Peer::new(stream)
    }

    /// The next connection and the request on it.
    pub(crate) async fn request(&self) -> (Peer, Message) {
        let mut peer = self.connection().await;
        let request = peer.message(false).await;
        (peer, request)
    }
}

/// One end of a connection.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

/// A request or reply, taken apart.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) start: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A field of the error envelope.
    pub(crate) fn error(&self, field: &str) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"][field].as_str().unwrap_or_default().to_owned()
    }
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }

    /// The next request, on this connection or, if the gateway let go of it, on a new one.
    pub(crate) async fn again(mut self, upstream: &Script) -> Self {
        tokio::select! {
            came = async { while !self.read.windows(4).any(|four| four == b"\r\n\r\n") { if !self.more().await { return false } } true } => {
                if came {
                    self.message(false).await;
                    return self;
                }
            }
            (peer, _) = upstream.request() => return peer,
        }
        upstream.request().await.0
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Writes `piece` again and again until nobody takes more of it; how many bytes that were.
    pub(crate) async fn flood(&mut self, piece: &[u8]) -> usize {
        let (mut written, mut refused) = (0, 0);
        // As long as anybody could still read, the sockets are looked at several times.
        while refused < 1000 {
            match self.stream.try_write(&piece[written % piece.len()..]) {
                Ok(taken) => (written, refused) = (written + taken, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => refused += 1,
                Err(_) => break,
            }
            tokio::task::yield_now().await;
        }
        written
    }

    /// Writes a POST with a JSON body.
    pub(crate) async fn post(&mut self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             {headers}\r\n{body}"
        );
        self.write(request).await;
    }

    /// Writes a reply with a JSON body.
    pub(crate) async fn reply(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.write(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        ))
        .await;
    }

    /// Writes the head of a stream of events.
    pub(crate) async fn begin_stream(&mut self) {
        self.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    }

    /// Writes one chunk.
    pub(crate) async fn chunk(&mut self, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk).await;
    }

    pub(crate) async fn end_stream(&mut self) {
        self.write("0\r\n\r\n").await;
    }

    /// Reads a whole message. `to_close`: one without a length goes on until the connection closes.
    pub(crate) async fn message(&mut self, to_close: bool) -> Message {
        let (start, headers) = self.head().await;
        let mut message = Message { start, headers, body: Vec::new() };
        if let Some(length) = message.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            self.fill(length).await;
            message.body = self.read.drain(..length).collect();
        } else if message.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.next_chunk().await {
                message.body.extend(chunk);
            }
        } else if to_close {
            while self.more().await {}
            message.body = std::mem::take(&mut self.read);
        }
        message
    }

    /// Reads a head alone.
    pub(crate) async fn head(&mut self) -> (String, Vec<(String, String)>) {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(self.more().await, "closed within a head: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        (start, headers)
    }

    /// The next chunk of a chunked body; `None` at its end.
    pub(crate) async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let line_end = loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                break end;
            }
            assert!(self.more().await, "closed within a chunked body");
        };
        let line: Vec<u8> = self.read.drain(..line_end + 2).collect();
        let length = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
        self.fill(length + 2).await;
        let mut chunk: Vec<u8> = self.read.drain(..length + 2).collect();
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// Reads exactly these bytes.
    pub(crate) async fn expect(&mut self, bytes: &[u8]) {
        self.fill(bytes.len()).await;
        let read: Vec<u8> = self.read.drain(..bytes.len()).collect();
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
    }

    /// True once the other side has closed, whatever it sent before.
    pub(crate) async fn closed(&mut self) -> bool {
        while self.more().await {}
        true
    }

    async fn fill(&mut self, length: usize) {
        while self.read.len() < length {
            assert!(self.more().await, "closed within a body");
        }
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        // A reset is a close too.
        let read = within(self.stream.read(&mut buffer)).await.unwrap_or(0);
        self.read.extend_from_slice(&buffer[..read]);
        read > 0
    }
}

/// A client's connection to the API.
pub(crate) async fn client(gateway: &Gateway) -> Peer {
    Peer::connect(gateway.api_addrs()[0]).await
}

/// One call and its whole answer.
pub(crate) async fn call(gateway: &Gateway, request: impl AsRef<[u8]>) -> Message {
    let mut client = client(gateway).await;
    client.write(request).await;
    client.message(true).await
}

/// Waits until nothing is in flight: what was reserved has been settled.
pub(crate) async fn idle(gateway: &Gateway) {
    until(|| gateway.driver().with(|gate, _| gate.in_flight() == 0 && gate.waiting() == 0)).await;
}

/// Waits until `condition` holds, giving way to everything else between two looks.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Lets so much time pass at once for everything that waits.
pub(crate) async fn let_pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// What Prometheus would read.
pub(crate) async fn metrics(gateway: &Gateway) -> String {
    call_admin(gateway, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.text()
}

/// One call to the admin listener and its whole answer.
pub(crate) async fn call_admin(gateway: &Gateway, request: &str) -> Message {
    let mut client = Peer::connect(gateway.admin_addr()).await;
    client.write(request).await;
    client.message(true).await
}

/// `[limit.team]` with so many tokens a minute for all.
pub(crate) fn team_limit(tokens_per_minute: u64) -> Limit {
    Limit {
        name: "team".into(),
        per: Vec::new(),
        base: Rates::default().with(Dimension::TokensPerMinute, tokens_per_minute),
        overrides: Vec::new(),
        algorithm: None,
        mode: Mode::Enforce,
    }
}
