//! An upstream whose one stream goes on for as long as the test wants.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const FIRST: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"first\"}}]}\n\n";
const LAST: &str = "data: [DONE]\n\n";

/// Longer than anything takes here; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct HeldStream {
    listener: TcpListener,
    base_url: String,
}

/// A stream of which the first event has arrived.
pub(crate) struct Open {
    caller: TcpStream,
    upstream: TcpStream,
}

impl HeldStream {
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        Self { listener, base_url }
    }

    /// The arguments of a gateway in front of it.
    pub(crate) fn behind_a_gateway(&self) -> [&str; 7] {
        ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", &self.base_url]
    }

    /// Calls through the gateway at `api` and waits for the stream's first event.
    pub(crate) fn open(&self, api: &str) -> Open {
        let (host, path) = api.strip_prefix("http://").and_then(|rest| rest.split_once('/')).unwrap();
        let mut caller = TcpStream::connect(host).unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = r#"{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Hello"}]}"#;
        let length = body.len();
        let request = format!(
            "POST /{path}/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             authorization: Bearer any\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        caller.write_all(request.as_bytes()).unwrap();

        let (mut upstream, _) = self.listener.accept().unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        read_until(&mut upstream, body);
        upstream.write_all(HEAD.as_bytes()).unwrap();
        upstream.write_all(chunk(FIRST).as_bytes()).unwrap();
        read_until(&mut caller, "first");
        Open { caller, upstream }
    }
}

impl Open {
    /// Ends the stream as it should end; what the caller gets from then on.
    pub(crate) fn finish(mut self) -> String {
        self.upstream.write_all(format!("{}0\r\n\r\n", chunk(LAST)).as_bytes()).unwrap();
        let mut rest = String::new();
        self.caller.read_to_string(&mut rest).unwrap();
        rest
    }
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

fn read_until(stream: &mut TcpStream, end: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(end) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {seen:?}");
        seen += &String::from_utf8_lossy(&buffer[..read]);
    }
}
