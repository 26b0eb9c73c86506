//! Decides what `[server]` says: where to listen, and within which bounds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Somewhere to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// `localhost:PORT`: both loopback addresses, the IPv6 one only where the machine has it. Port 0: one free port for both.
    Localhost(u16),
    /// One address; `0.0.0.0` and `[::]` are all of the machine's. Port 0: a free one.
    Socket(SocketAddr),
}

impl ListenAddr {
    /// True if only this machine can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Localhost(_) => true,
            Self::Socket(addr) => addr.ip().to_canonical().is_loopback(),
        }
    }

    /// The port; 0 for a free one.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Localhost(port) => *port,
            Self::Socket(addr) => addr.port(),
        }
    }

    /// The same with another port.
    #[must_use]
    pub const fn with_port(self, port: u16) -> Self {
        match self {
            Self::Localhost(_) => Self::Localhost(port),
            Self::Socket(addr) => Self::Socket(SocketAddr::new(addr.ip(), port)),
        }
    }

    /// The one address where only one is possible: IPv4 loopback for `localhost`.
    #[must_use]
    pub const fn socket(self) -> SocketAddr {
        match self {
            Self::Localhost(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Self::Socket(addr) => addr,
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Socket(addr) => addr.fmt(f),
        }
    }
}

/// Why a text is no [`ListenAddr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{written}\" is not an address to listen on; write IP:PORT, such as \"127.0.0.1:8080\", or \"localhost:8080\""
)]
pub struct ListenAddrError {
    written: String,
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix("localhost:") {
            Some(port) => port.parse().ok().map(Self::Localhost),
            None => text.parse().ok().map(Self::Socket),
        };
        parsed.ok_or_else(|| ListenAddrError { written: text.to_owned() })
    }
}

/// `server.tls_cert` with `server.tls_key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where the API is served; never empty.
    pub listen: Vec<ListenAddr>,
    /// Where the admin listener is.
    pub admin_listen: SocketAddr,
    /// How long streams may go on after a stop was asked for.
    pub drain_timeout: Duration,
    /// How long new calls are still accepted after `/readyz` began to fail.
    pub drain_delay: Duration,
    /// Largest metered JSON body, in bytes, also after decompression.
    pub max_body: u64,
    /// Values of `Host` that are accepted beside the listener's own names.
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` that are accepted beside the listener's own.
    pub allowed_origins: Vec<String>,
    /// HTTPS. `None`: plain HTTP.
    pub tls: Option<TlsConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::Localhost(8080)],
            admin_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081),
            drain_timeout: Duration::from_secs(25),
            drain_delay: Duration::ZERO,
            max_body: 32 << 20,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            tls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_both_loopback_addresses_and_an_address_is_itself() {
        assert_eq!("localhost:8080".parse(), Ok(ListenAddr::Localhost(8080)));
        let any: ListenAddr = "[::]:80".parse().unwrap();
        assert_eq!((any.to_string(), any.is_loopback()), ("[::]:80".to_owned(), false));
        assert!("[::ffff:127.0.0.1]:80".parse::<ListenAddr>().unwrap().is_loopback());
    }

    #[test]
    fn an_address_without_a_port_is_refused_with_what_to_write() {
        let message = "example.org".parse::<ListenAddr>().unwrap_err().to_string();
        assert!(message.contains("\"example.org\"") && message.contains("127.0.0.1:8080"), "{message}");
    }
}
