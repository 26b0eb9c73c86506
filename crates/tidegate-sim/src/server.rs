//! Listens, accepts and hands each request to `answer`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::ledger::{Ledger, LogEntry, Stats};
use crate::shared::Shared;
use crate::socket::Socket;
use crate::{Options, Scenario, answer};

/// Connections that wait to be accepted: load tests open many at once.
const BACKLOG: u32 = 4_096;
/// Between two failed accepts, which happen when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A running simulator. Dropping it stops it too, without waiting.
pub struct Simulator {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Simulator {
    /// Starts on the current tokio runtime. Port 0 picks a free one. Errors are those of binding and of creating the
    /// request log.
    pub async fn start(scenario: Scenario, options: Options, listen: SocketAddr) -> io::Result<Simulator> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        let ledger = Ledger::open(options.request_log.as_deref())?;
        let shared = Arc::new(Shared::new(scenario, options, format!("http://{addr}"), ledger));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept(listener, shared.clone(), stopped));
        Ok(Simulator { shared, addr, stop })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a client takes as base URL: `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("{}/v1", self.shared.origin)
    }

    /// Counters up to now.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The newest 200,000 requests that ended, in the order of their ends.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.entries()
    }

    /// Puts another scenario in force for the calls that come. Levels stay, cut to the new limits; faults count anew.
    pub fn set_scenario(&self, scenario: Scenario) {
        self.shared.replace_scenario(scenario);
    }

    /// Closes all connections, streams included, and writes the request log to its end.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // Every connection holds a receiver, so that this waits for the last of them.
        self.stop.closed().await;
        if let Some(writer) = self.shared.with_ledger(Ledger::close_file)
            && tokio::task::spawn_blocking(move || writer.join()).await.is_err()
        {
            tracing::error!("the request log's writer failed");
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, shared.clone(), stopped.clone()));
            }
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counts a connection out however it ends.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.with_ledger(|ledger| ledger.stats.connections_open -= 1);
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    shared.with_ledger(|ledger| {
        ledger.stats.connections += 1;
        ledger.stats.connections_open += 1;
    });
    let _open = Open(shared.clone());
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {e}");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let socket = TokioIo::new(Socket::new(stream, reset.clone()));
    let stop = stopped.clone();
    let service = service_fn(move |request| answer::answer(shared.clone(), reset.clone(), stop.clone(), request));
    // No timer: idle connections are to stay open, as a load test's pool expects.
    let serving = http1::Builder::new().serve_connection(socket, service).with_upgrades();
    tokio::select! {
        served = serving => {
            if let Err(e) = served {
                tracing::debug!("connection ended: {e}");
            }
        }
        _ = stopped.changed() => {}
    }
}
