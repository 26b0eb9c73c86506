//! Decides what is said where an address cannot be listened on.

use std::io;
use std::net::SocketAddr;

/// Says why `addr` cannot be listened on and which `flag` helps: `127.0.0.1:8080 is in use; try --listen 127.0.0.1:8090`.
pub(crate) fn failure(addr: SocketAddr, error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("{addr} is in use; try {flag} {}", beside(addr)),
        io::ErrorKind::PermissionDenied => {
            let unprivileged = SocketAddr::new(addr.ip(), 8080);
            format!("may not listen on {addr}: {error}; try {flag} {unprivileged}")
        }
        io::ErrorKind::AddrNotAvailable => format!("{addr} is no address of this machine; check {flag}"),
        _ => format!("cannot listen on {addr}: {error}"),
    }
}

/// An address near `addr` that is probably free.
fn beside(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port().checked_add(10).unwrap_or(8090))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_suggests_one_beside_it() {
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        let said = failure("127.0.0.1:8080".parse().unwrap(), &taken, "--listen");
        assert_eq!(said, "127.0.0.1:8080 is in use; try --listen 127.0.0.1:8090");
        assert_eq!(beside("[::1]:65535".parse().unwrap()), "[::1]:8090".parse().unwrap());
    }
}
