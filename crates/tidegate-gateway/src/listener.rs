//! Decides where to listen, and hands each connection to `crate::connection`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tidegate_core::config::ListenAddr;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::shared::Phase;

/// Connections that wait to be accepted: a hundred streams may be opened at once.
const BACKLOG: u32 = 4096;
/// Between two failed accepts, which happen when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Ports tried for one that is free on both loopback addresses.
const FREE_PORT_TRIES: u32 = 16;
/// A port that is suggested in the place of one in use is so far from it: those next to it are often in use as well.
const PORTS_APART: u16 = 10;
/// Where one may listen who is not root.
const UNPRIVILEGED: u16 = 8080;

/// Why an address cannot be listened on. Says which flag helps.
#[derive(Debug)]
pub struct ListenError {
    /// The address.
    pub addr: SocketAddr,
    /// Whether it was for the admin listener.
    pub is_admin: bool,
    /// An address that can be: the same with a port that is free and open to everybody. `None`: none of those tried.
    pub free: Option<SocketAddr>,
    /// What the system said.
    pub source: io::Error,
}

impl ListenError {
    /// Looks for an address that is free, where that helps.
    #[must_use]
    pub fn new(addr: SocketAddr, is_admin: bool, source: io::Error) -> Self {
        let first = match source.kind() {
            io::ErrorKind::AddrInUse => addr.port().checked_add(PORTS_APART).unwrap_or(UNPRIVILEGED),
            io::ErrorKind::PermissionDenied => UNPRIVILEGED,
            _ => return Self { addr, is_admin, free: None, source },
        };
        let ports = (first..=u16::MAX).step_by(PORTS_APART.into()).take(FREE_PORT_TRIES as usize);
        let free =
            ports.map(|port| SocketAddr::new(addr.ip(), port)).find(|addr| std::net::TcpListener::bind(addr).is_ok());
        Self { addr, is_admin, free, source }
    }
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (addr, flag) = (self.addr, if self.is_admin { "--admin-listen" } else { "--listen" });
        match self.source.kind() {
            io::ErrorKind::AddrInUse => write!(f, "{addr} is in use")?,
            io::ErrorKind::AddrNotAvailable => return write!(f, "{addr} is no address of this machine; check {flag}"),
            io::ErrorKind::PermissionDenied => write!(f, "may not listen on {addr}: {}", self.source)?,
            _ => write!(f, "cannot listen on {addr}: {}", self.source)?,
        }
        self.free.map_or(Ok(()), |free| write!(f, "; try {flag} {free}"))
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Listens on every one of `addrs`; never none.
pub(crate) fn bind_all(addrs: &[ListenAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::new();
    for addr in addrs {
        match addr {
            ListenAddr::Socket(addr) => listeners.push(bind(*addr, false)?),
            ListenAddr::Localhost(port) => listeners.extend(bind_localhost(*port)?),
        }
    }
    Ok(listeners)
}

/// Listens on `addr`.
pub(crate) fn bind(addr: SocketAddr, is_admin: bool) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart need not wait for the connections of the process before it.
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ListenError::new(addr, is_admin, source))
}

/// Both loopback addresses with one port; the IPv6 one only where the machine has it.
fn bind_localhost(port: u16) -> Result<Vec<TcpListener>, ListenError> {
    let v4 = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let v6 = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    let mut tries = FREE_PORT_TRIES;
    loop {
        let first = bind(v4(port), false)?;
        let found = first.local_addr().map_err(|source| ListenError::new(v4(port), false, source))?;
        match bind(v6(found.port()), false) {
            Ok(second) => return Ok(vec![first, second]),
            Err(error) if error.source.kind() != io::ErrorKind::AddrInUse => {
                tracing::debug!("IPv4 only: {error}");
                return Ok(vec![first]);
            }
            // Of a free port somebody else has the other half: another one.
            Err(_) if port == 0 && tries > 0 => tries -= 1,
            Err(error) => return Err(error),
        }
    }
}

/// Accepts connections until the process closes.
pub(crate) async fn accept(
    listener: TcpListener,
    mut phase: watch::Receiver<Phase>,
    until: Phase,
    serve: impl Fn(TcpStream, watch::Receiver<Phase>),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase >= until) => return,
        };
        match accepted {
            Ok((stream, _)) => serve(stream, phase.clone()),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_is_both_loopback_addresses_with_one_port() {
        let listeners = bind_all(&[ListenAddr::Localhost(0)]).unwrap();
        let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port > 0), "{ports:?}");
        assert!(listeners[0].local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn a_taken_port_suggests_one_beside_it_that_is_free() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let addr = taken.local_addr().unwrap();
        let error = bind(addr, false).unwrap_err();
        let beside = error.free.unwrap();
        assert_eq!(error.to_string(), format!("{addr} is in use; try --listen {beside}"));
        let _taken_too = bind(beside, false).unwrap();
        assert_ne!(bind(addr, false).unwrap_err().free, Some(beside));
    }
}
