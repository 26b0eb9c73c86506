//! Finds the admin listener of a running gateway, and asks it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::{Client, Method, StatusCode, redirect};
use serde_json::Value;
use tidegate_core::config::parse_base_url;
use tidegate_gateway::{ADMIN_ADDRESS_FILE, ADMIN_TOKEN_FILE};

use super::table::harmless;
use crate::outcome::Failure;
use crate::serve::runtime;
use crate::state_dir::{self, LOCK_FILE, StateDir};

/// Longer than anything takes that the admin listener does.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Where `tidegate serve` listens for operators unless told otherwise.
const DEFAULT_ADMIN: &str = "http://127.0.0.1:8081";

/// How long it is waited for who has the state directory and cannot be asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A gateway of this machine takes a connection by then.
const CONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// After so long it is said that it is waited.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// Which gateway, and what opens it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Reach {
    /// The admin listener, such as http://127.0.0.1:8081 [default: that of the gateway that runs on this machine]
    #[arg(long, value_name = "URL", value_parser = admin_url, global = true)]
    admin: Option<String>,

    /// The token [default: that of the state directory]; other users of the machine can see command lines, but not the environment
    #[arg(long, value_name = "T", env = "TIDEGATE_ADMIN_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,

    /// Where the gateway keeps its state [default: $STATE_DIRECTORY, $XDG_STATE_HOME/tidegate, ~/.local/state/tidegate]
    #[arg(long, value_name = "D", global = true)]
    state_dir: Option<PathBuf>,
}

/// A gateway that can be asked.
#[derive(Debug)]
pub(crate) struct Admin {
    base: String,
    token: String,
}

/// What keys can be made through.
#[derive(Debug)]
pub(crate) enum Reached {
    /// A gateway that runs.
    Gateway(Admin),
    /// None runs: the state directory, this process's alone.
    State(StateDir),
}

/// Who has a state directory.
enum Holder<T> {
    /// A gateway, at this URL.
    Gateway(String),
    /// Nobody.
    Nobody(T),
}

impl Reach {
    /// Where state is kept, if anything tells.
    fn dir(&self) -> Option<PathBuf> {
        self.state_dir.clone().or_else(state_dir::usual_place)
    }

    fn has_token(&self) -> bool {
        self.token.as_ref().is_some_and(|token| !token.trim().is_empty())
    }

    /// The gateway that is meant.
    ///
    /// # Errors
    /// None runs here and none is named, or nothing opens it.
    pub(crate) fn find(&self) -> Result<Admin, Failure> {
        if let Some(url) = &self.admin {
            return self.opened(url.clone());
        }
        let dir = self.dir();
        let nobodys = |dir: &Path| Ok((!state_dir::is_in_use(dir)).then_some(()));
        if let Some(dir) = &dir
            && let Holder::Gateway(url) = holder(dir, nobodys)?
        {
            return self.opened(url);
        }
        // One that keeps no state tells nobody where it is: whoever brings a token means the usual place.
        if self.has_token() {
            return self.opened(DEFAULT_ADMIN.to_owned());
        }
        let place = dir.map_or_else(|| "no state directory".to_owned(), |dir| dir.display().to_string());
        Err(Failure::Failed(format!(
            "no gateway is running with its state in {place}; start one with tidegate serve, or name its --state-dir or its \
             --admin URL"
        )))
    }

    /// The gateway that is meant; where none is named and none runs, the state directory.
    ///
    /// # Errors
    /// Nothing opens the gateway, or there is no directory that can be written, or somebody has it who is no gateway.
    pub(crate) fn gateway_or_state(&self) -> Result<Reached, Failure> {
        if let Some(url) = &self.admin {
            return self.opened(url.clone()).map(Reached::Gateway);
        }
        let Some(dir) = self.dir() else {
            return Err(Failure::Failed(
                "there is no state directory: neither HOME nor STATE_DIRECTORY is set; name a --state-dir".to_owned(),
            ));
        };
        match holder(&dir, StateDir::take_free)? {
            Holder::Nobody(state) => Ok(Reached::State(state)),
            Holder::Gateway(url) => self.opened(url).map(Reached::Gateway),
        }
    }

    /// The gateway at `base`, with what opens it.
    fn opened(&self, base: String) -> Result<Admin, Failure> {
        let kept = || self.dir().and_then(|dir| read(&dir.join(ADMIN_TOKEN_FILE)));
        let token = self.token.clone().filter(|_| self.has_token()).or_else(kept);
        let token = token.ok_or_else(|| {
            Failure::Failed(format!("no token for {base}: set TIDEGATE_ADMIN_TOKEN, or name the gateway's --state-dir"))
        })?;
        Ok(Admin { base, token })
    }
}

/// Who has `dir`. Where somebody has it and no gateway answers where one says it is, that is waited for: another `tidegate key`
/// soon gives it back, and a gateway that starts soon says where it is. `take` says what is done where nobody has it.
fn holder<T>(dir: &Path, take: impl Fn(&Path) -> Result<Option<T>, Failure>) -> Result<Holder<T>, Failure> {
    let (mut told, started) = (false, Instant::now());
    loop {
        if let Some(taken) = take(dir)? {
            return Ok(Holder::Nobody(taken));
        }
        let address = read(&dir.join(ADMIN_ADDRESS_FILE)).and_then(|address| address.parse().ok());
        let waited = started.elapsed();
        match address {
            // One that does not answer until the end is asked: what comes of that is told.
            Some(address) if waited >= PATIENCE || is_listening(address) => {
                return Ok(Holder::Gateway(format!("http://{address}")));
            }
            None if waited >= PATIENCE => return Err(in_the_way(dir)),
            _ => {}
        }
        if !told && waited >= TOLD_AFTER {
            tracing::warn!("{} is in use by another tidegate; waiting for it", dir.display());
            told = true;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn is_listening(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECTED_WITHIN).is_ok()
}

fn in_the_way(dir: &Path) -> Failure {
    Failure::Failed(format!(
        "{0} is in use by another tidegate that does not say where its admin listener is: a tidegate key or run at work, or a \
         gateway that is still starting or cannot write there (lsof {0}/{LOCK_FILE} tells which); try again once it is \
         done, or name a gateway's --admin URL",
        dir.display()
    ))
}

impl Admin {
    /// What it answers.
    ///
    /// # Errors
    /// Nobody answers, or what was refused and why.
    pub(crate) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        runtime()?.block_on(self.exchange(method, path, body))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let failed = |error: reqwest::Error| {
            // It names the URL itself, which is said already.
            let why = error.without_url();
            let cause = std::error::Error::source(&why).map_or_else(String::new, |cause| format!(": {cause}"));
            Failure::Failed(format!("{} does not answer: {why}{cause}", self.base))
        };
        tidegate_bulk::choose_crypto();
        // Not through a proxy: this is a machine's own, or one beside it.
        let client = Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(ANSWERED_WITHIN);
        let client = client.build().map_err(failed)?;
        let mut request = client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let reply = request.send().await.map_err(failed)?;
        let status = reply.status();
        let text = reply.text().await.map_err(failed)?;
        let told: Option<Value> = serde_json::from_str(&text).ok();
        match told {
            Some(told) if status.is_success() => Ok(told),
            told => Err(Failure::Failed(self.refused(status, told.as_ref()))),
        }
    }

    fn refused(&self, status: StatusCode, told: Option<&Value>) -> String {
        let message = told.and_then(|told| told["error"]["message"].as_str());
        let message = message.map(|message| message.trim_start_matches("tidegate: "));
        match (status, message) {
            (StatusCode::UNAUTHORIZED, Some(_)) => format!(
                "{} does not know this token: set TIDEGATE_ADMIN_TOKEN to one that it does, or name the gateway's --state-dir",
                self.base
            ),
            (_, Some(message)) => message.lines().map(harmless).collect::<Vec<_>>().join("\n"),
            (status, None) => format!("{} answers {status}, which no admin listener of tidegate does", self.base),
        }
    }
}

/// Where an admin listener is: a URL, or a host and port as `serve` takes it with `--admin-listen`.
fn admin_url(written: &str) -> Result<String, String> {
    let wrong = |why: String| format!("{why}; write a URL or HOST:PORT, such as {DEFAULT_ADMIN} or 127.0.0.1:8081");
    if written.contains("://") {
        // The words are about upstreams' URLs, but what is wrong with one is the same.
        return parse_base_url(written).map_err(|error| wrong(error.problem.to_owned()));
    }
    // As it is copied from a browser.
    let written = written.trim_end_matches('/');
    let has_port = written.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let url = parse_base_url(&format!("http://{written}")).ok().filter(|_| has_port);
    url.ok_or_else(|| wrong("this is no address".to_owned()))
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A name as one part of a path.
pub(crate) fn in_path(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
