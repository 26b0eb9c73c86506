//! Stands where the gateway's crate will: the same names, and a start that says that there is none yet.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use tidegate_core::config::Config;

#[derive(Debug)]
#[expect(dead_code, reason = "nothing reads them yet")]
pub(crate) struct GatewayOptions {
    pub(crate) config: Config,
    pub(crate) allow_anonymous: bool,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) admin_token: Option<String>,
}

/// No value of it can be made.
#[derive(Debug)]
pub(crate) enum Gateway {}

#[derive(Debug)]
pub(crate) struct StartError;

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this build has no gateway yet")
    }
}

impl Gateway {
    pub(crate) async fn start(_options: GatewayOptions) -> Result<Self, StartError> {
        Err(StartError)
    }

    pub(crate) fn api_addrs(&self) -> &[SocketAddr] {
        match *self {}
    }

    pub(crate) fn admin_addr(&self) -> SocketAddr {
        match *self {}
    }

    pub(crate) fn auth(&self) -> &'static str {
        match *self {}
    }

    pub(crate) fn reload(&self, _config: Config) -> Result<(), StartError> {
        match *self {}
    }

    pub(crate) async fn drain(self) {
        match self {}
    }
}
