//! A plain HTTP client, and simulators to point it at.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate_sim::{Options, Scenario, Simulator};
use tokio::net::TcpStream;

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body ended as HTTP says it should.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("UTF-8")
    }

    /// The JSON of each `data:` line, without `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))).collect()
    }
}

/// A simulator without latency on a free port.
pub(crate) async fn simulator(scenario: Scenario) -> Simulator {
    simulator_at(scenario, 0.0).await
}

pub(crate) async fn simulator_at(scenario: Scenario, speed: f64) -> Simulator {
    let options = Options { speed, seed: 1, ..Options::default() };
    Simulator::start(scenario, options, ([127, 0, 0, 1], 0).into()).await.expect("a free port")
}

pub(crate) async fn simulator_of(toml: &str) -> Simulator {
    simulator(Scenario::from_toml(toml).expect("a valid scenario")).await
}

/// Sends a request on a connection of its own; an error if no reply came.
pub(crate) async fn open(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>, String> {
    let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|e| e.to_string())
}

pub(crate) async fn send(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply, String> {
    let response = open(addr, request).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let (mut body, mut bytes, mut whole) = (response.into_body(), Vec::new(), true);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().expect("data")),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    Ok(Reply { status, headers, body: bytes.into(), whole })
}

pub(crate) fn request(method: &str, path: &str, kind: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "simulator")
        .header("content-type", kind)
        .body(Full::new(body.into()))
        .expect("a valid request")
}

pub(crate) async fn get(simulator: &Simulator, path: &str) -> Reply {
    send(simulator.addr(), request("GET", path, "text/plain", "")).await.expect("a reply")
}

pub(crate) async fn try_post(simulator: &Simulator, path: &str, body: &Value) -> Result<Reply, String> {
    send(simulator.addr(), request("POST", path, "application/json", body.to_string())).await
}

pub(crate) async fn post(simulator: &Simulator, path: &str, body: &Value) -> Reply {
    try_post(simulator, path, body).await.expect("a reply")
}

/// A chat call with more fields.
pub(crate) fn chat_with(fields: Value) -> Value {
    let mut body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How is the tide?"}]});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

pub(crate) async fn chat(simulator: &Simulator, fields: Value) -> Reply {
    post(simulator, "/v1/chat/completions", &chat_with(fields)).await
}

/// A form with a file in it.
pub(crate) fn form(fields: &[(&str, &str)], file: (&str, &[u8])) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(
            format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").as_bytes(),
        );
    }
    let head = format!(
        "--xyz\r\ncontent-disposition: form-data; name=\"{}\"; filename=\"a.bin\"\r\ncontent-type: \
         application/octet-stream\r\n\r\n",
        file.0
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(file.1);
    body.extend_from_slice(b"\r\n--xyz--\r\n");
    ("multipart/form-data; boundary=xyz".to_owned(), body)
}

pub(crate) async fn post_form(simulator: &Simulator, path: &str, form: (String, Vec<u8>)) -> Reply {
    send(simulator.addr(), request("POST", path, &form.0, form.1)).await.expect("a reply")
}
