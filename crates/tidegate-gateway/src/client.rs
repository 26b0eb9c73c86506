//! Decides how connections to an upstream are made, kept and shared.
//!
//! HTTP/2 where TLS agrees on it. One HTTP/2 connection takes a hundred or so streams and makes further ones wait where
//! nobody sees it; so calls spread over several clients, each with connections of its own, the first with room first. Each
//! core has clients of its own: a connection is used by the thread that watches it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Uri};
use hyper::rt::ReadBufCursor;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::body::SendBody;
use crate::cores;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Streams in one client before the next one is used; servers allow 100 and more on one connection.
const STREAMS_PER_CLIENT: usize = 64;
/// Clients for one upstream where HTTP/2 may be spoken.
const CLIENTS_MAX: usize = 32;
/// Unused connections kept to one upstream.
const IDLE_CONNECTIONS_MAX: usize = 1024;
/// An unused connection is closed after so long; OpenAI's side closes after some minutes.
const IDLE_FOR: Duration = Duration::from_secs(90);
/// Without a sign of life for so long, the other side of an HTTP/2 connection is asked for one.
const PING_AFTER: Duration = Duration::from_secs(30);
/// The header of a reply may be so large.
const REPLY_HEAD_BYTES_MAX: usize = 256 << 10;

/// Sends requests to one upstream.
#[derive(Debug)]
pub(crate) struct Clients {
    /// By core.
    clients: Vec<Vec<Counted>>,
    /// Speaks HTTP/1.1 alone: an upgrade is none of HTTP/2's.
    upgrades: Client<Connector, SendBody>,
}

/// A client, and the calls that it is used by.
type Counted = (Client<Connector, SendBody>, Arc<AtomicUsize>);

/// Counts a call in its client until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// For an upstream reached by TLS if `is_https`, trusting the system's authorities and those in `ca_file`.
    pub(crate) fn new(is_https: bool, connect_timeout: Duration, ca_file: Option<&Path>) -> Result<Self, String> {
        let connector = Connector::factory(is_https, connect_timeout, ca_file)?;
        let client = |http2: bool| client(connector(http2));
        let count = if is_https { CLIENTS_MAX } else { 1 };
        let of_core = |_| (0..count).map(|_| (client(true), Arc::new(AtomicUsize::new(0)))).collect();
        let clients = (0..cores::count()).map(of_core).collect();
        Ok(Self { clients, upgrades: client(false) })
    }

    /// Sends `request`; the place is to be kept until its reply has ended.
    pub(crate) fn send(&self, request: Request<SendBody>) -> (ResponseFuture, Option<Place>) {
        match self.clients.get(cores::current()).map_or(&[][..], Vec::as_slice) {
            [only] => (only.0.request(request), None),
            clients => self.send_to_first_with_room(clients, request),
        }
    }

    fn send_to_first_with_room(
        &self,
        clients: &[Counted],
        request: Request<SendBody>,
    ) -> (ResponseFuture, Option<Place>) {
        let with_room = clients.iter().find(|(_, used)| used.load(Ordering::Relaxed) < STREAMS_PER_CLIENT);
        let emptiest = || clients.iter().min_by_key(|(_, used)| used.load(Ordering::Relaxed));
        match with_room.or_else(emptiest) {
            Some((client, used)) => {
                used.fetch_add(1, Ordering::Relaxed);
                (client.request(request), Some(Place(used.clone())))
            }
            None => (self.upgrades.request(request), None),
        }
    }

    /// Sends a request that asks for another protocol.
    pub(crate) fn upgrade(&self, request: Request<SendBody>) -> ResponseFuture {
        self.upgrades.request(request)
    }
}

/// A client by itself, for the few requests that are none of a call's.
pub(crate) fn single(is_https: bool, connect_timeout: Duration) -> Result<Client<Connector, SendBody>, String> {
    Ok(client(Connector::factory(is_https, connect_timeout, None)?(true)))
}

fn client(connector: Connector) -> Client<Connector, SendBody> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http1_max_buf_size(REPLY_HEAD_BYTES_MAX)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Some(PING_AFTER))
        .set_host(false);
    builder.build(connector)
}

/// Connects: name, TCP, a proxy's tunnel, TLS, all within one bound.
#[derive(Clone)]
pub(crate) struct Connector {
    inner: HttpsConnector<Tcp>,
    timeout: Duration,
}

impl Connector {
    /// What makes connectors, with HTTP/2 or without, that trust the system's authorities and those in `ca_file`.
    fn factory(
        is_https: bool,
        connect_timeout: Duration,
        ca_file: Option<&Path>,
    ) -> Result<impl Fn(bool) -> Self, String> {
        let config = if is_https { crate::tls::client_config(ca_file)? } else { crate::tls::no_authorities()? };
        let proxies = Arc::new(Matcher::from_env());
        Ok(move |http2| Self::new(config.clone(), http2, connect_timeout, proxies.clone()))
    }

    fn new(tls: ClientConfig, http2: bool, timeout: Duration, proxies: Arc<Matcher>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        // A small request or event must not wait for the acknowledgement of the one before.
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(60)));
        let tcp = Tcp { http, proxies };
        let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let inner = if http2 {
            builder.enable_all_versions().wrap_connector(tcp)
        } else {
            builder.enable_http1().wrap_connector(tcp)
        };
        Self { inner, timeout }
    }
}

impl Service<Uri> for Connector {
    type Response = <HttpsConnector<Tcp> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let connecting = self.inner.call(target);
        let timeout = self.timeout;
        Box::pin(async move {
            match tokio::time::timeout(timeout, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

/// Connects by TCP, by way of a proxy where the environment names one.
#[derive(Clone)]
pub(crate) struct Tcp {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

/// A connection, and whether requests on it must name the whole target because a proxy reads them.
#[derive(Debug)]
pub(crate) struct TcpIo {
    io: TokioIo<TcpStream>,
    by_proxy: bool,
}

impl Service<Uri> for Tcp {
    type Response = TcpIo;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TcpIo, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        // What runs on this machine is no proxy's business, whether NO_PROXY says so or not.
        let proxy = if is_local(&target) { None } else { self.proxies.intercept(&target) };
        let Some(proxy) = proxy else {
            let connecting = self.http.call(target);
            return Box::pin(async move { Ok(TcpIo { io: connecting.await?, by_proxy: false }) });
        };
        if target.scheme_str() == Some("http") {
            let connecting = self.http.call(proxy.uri().clone());
            return Box::pin(async move { Ok(TcpIo { io: connecting.await?, by_proxy: true }) });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(target);
        Box::pin(async move { Ok(TcpIo { io: connecting.await?, by_proxy: false }) })
    }
}

fn is_local(target: &Uri) -> bool {
    let host = target.host().unwrap_or("").trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|addr| addr.is_loopback())
}

impl Connection for TcpIo {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.by_proxy)
    }
}

impl hyper::rt::Read for TcpIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for TcpIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_to_an_upstream_is_sent_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
        let tls = crate::tls::no_authorities().unwrap();
        let connector = Connector::new(tls, false, Duration::from_secs(5), Arc::new(Matcher::builder().build()));
        let mut tcp = connector.inner;
        std::future::poll_fn(|context| tcp.poll_ready(context)).await.unwrap();
        let hyper_rustls::MaybeHttpsStream::Http(connected) = tcp.call(target).await.unwrap() else {
            panic!("no TLS was asked for");
        };
        assert!(connected.io.inner().nodelay().unwrap());
    }
}
