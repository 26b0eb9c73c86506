//! Decides how one attempt is sent, and what its reply means. Judges nothing itself: `openai::faults` does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client};
use sha2::{Digest, Sha256};
use tidegate::Permit;
use tidegate_core::call::Priority;
use tidegate_core::config::{ModelMap, UpstreamConfig, UpstreamKind};
use tidegate_core::cost::Usage;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::headers::{HeaderLookup, server_limits};
use tidegate_core::openai::{faults, usage};

use crate::output::Came;

/// What carries the priority to a gateway of ours.
const PRIORITY: &str = "x-tidegate-priority";
/// What every reply of a gateway of ours carries.
const GATEWAY_ID: &str = "x-tidegate-id";
/// Why a gateway of ours refused.
const GATEWAY_REASON: &str = "x-tidegate-reason";

/// Where calls are sent.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    pub(crate) base_url: String,
    pub(crate) name: Arc<str>,
    /// The name and a hash of the credential.
    pub(crate) account: Arc<str>,
    first_byte_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    /// Whether it is, as far as is known, a gateway that understands our wishes. A header of ours goes nowhere else.
    is_gateway: AtomicBool,
}

/// What one attempt came to.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) came: Came,
    /// `None`: it went well.
    pub(crate) fault: Option<Fault>,
    pub(crate) usage: Option<Usage>,
    pub(crate) first_byte_after: Option<Duration>,
}

/// Chooses who encrypts for clients of this process.
pub fn choose_crypto() {
    // Another part of the process may have chosen already: it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

struct Lookup<'h>(&'h HeaderMap);

impl HeaderLookup for Lookup<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.0.get_all(name).iter().find_map(|value| value.to_str().ok())
    }
}

impl Upstream {
    /// Reads the credential and the authorities that `config` names.
    ///
    /// # Errors
    /// What is missing, in words for the user.
    pub fn new(config: &UpstreamConfig) -> Result<Self, String> {
        let named = |problem: String| format!("upstream \"{}\": {problem}", config.name);
        if matches!(config.models, ModelMap::Renames(_)) {
            return Err(named("it renames models, and a run sends them as they are written".to_owned()));
        }
        let is_azure = config.kind == UpstreamKind::Azure;
        if is_azure && !config.base_url.ends_with("/v1") {
            return Err(named("a run needs Azure's base URL that ends in /openai/v1".to_owned()));
        }
        choose_crypto();
        let mut client = Client::builder().connect_timeout(config.connect_timeout).tcp_nodelay(true);
        if let Some(path) = &config.ca_file {
            let pem = std::fs::read(path).map_err(|error| named(format!("cannot read {}: {error}", path.display())))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| named(error.to_string()))?;
            client = client.tls_certs_merge(authorities);
        }
        let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let mut account = format!("{}#none", config.name);
        if let Some(source) = &config.api_key {
            let env = |name: &str| std::env::var(name).ok();
            let secret = source
                .resolve(env, |path: &Path| std::fs::read_to_string(path))
                .map_err(|error| named(error.to_string()))?;
            let value = if is_azure { secret.clone() } else { format!("Bearer {secret}") };
            let mut value = HeaderValue::try_from(value).map_err(|_| named("api_key is no header's value".into()))?;
            value.set_sensitive(true);
            if is_azure {
                headers.insert("api-key", value);
            } else {
                headers.insert(header::AUTHORIZATION, value);
            }
            let digest = Sha256::digest(secret.as_bytes());
            account = format!("{}#{:02x}{:02x}{:02x}{:02x}", config.name, digest[0], digest[1], digest[2], digest[3]);
        }
        for (name, variable) in [("openai-organization", "OPENAI_ORG_ID"), ("openai-project", "OPENAI_PROJECT_ID")] {
            let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        let client = client
            .default_headers(headers)
            .build()
            .map_err(|error| named(format!("no connections can be made: {error}")))?;
        Ok(Self {
            client,
            base_url: config.base_url.clone(),
            name: config.name.clone(),
            account: account.into(),
            first_byte_timeout: config.first_byte_timeout,
            idle_timeout: config.idle_timeout,
            is_gateway: AtomicBool::new(is_loopback(&config.base_url)),
        })
    }

    /// Sends `body` to the path `url`, as lines of input spell it, and reads the reply.
    pub(crate) async fn send(&self, url: &str, body: String, priority: Priority, permit: &mut Permit) -> Sent {
        let path = url.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(url);
        let mut request = self.client.post(format!("{}{path}", self.base_url)).body(body);
        if self.is_gateway.load(Ordering::Relaxed) {
            request = request.header(PRIORITY, priority.name());
        }
        let sent_at = Instant::now();
        permit.sent();
        let response = match within(self.first_byte_timeout, request.send()).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return Sent::unanswered(no_reply(&error)),
            None => return Sent::unanswered(Fault::new(FaultKind::Timeout, "no reply in time")),
        };
        let first_byte_after = Some(sent_at.elapsed());
        permit.observe(&server_limits(&Lookup(response.headers())));
        if response.headers().contains_key(GATEWAY_ID) {
            self.is_gateway.store(true, Ordering::Relaxed);
        }
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        match within(self.idle_timeout, response.text()).await {
            Some(Ok(body)) => Sent { first_byte_after, ..answered(status, &headers, body) },
            Some(Err(_)) => Sent::unanswered(Fault::new(FaultKind::Broken, "the reply broke off").with_status(status)),
            None => Sent::unanswered(Fault::new(FaultKind::Timeout, "the reply never ended").with_status(status)),
        }
    }
}

impl Sent {
    fn unanswered(fault: Fault) -> Self {
        let came = Came::Nothing { code: fault.kind.error_class(), message: fault.summary.to_string() };
        Self { came, fault: Some(fault), usage: None, first_byte_after: None }
    }
}

fn answered(status: u16, headers: &HeaderMap, body: String) -> Sent {
    let lookup = Lookup(headers);
    let unix_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let fault = faults::classify(status, &lookup, body.as_bytes(), unix_now)
        .or_else(|| faults::classify_in_band(body.as_bytes()))
        .map(|fault| of_gateway(fault, lookup.header(GATEWAY_REASON)));
    let usage = usage::from_json(body.as_bytes());
    let request_id = lookup.header("x-request-id").unwrap_or("").to_owned();
    let came = Came::Answer { status, request_id, body };
    Sent { came, fault, usage, first_byte_after: None }
}

/// A gateway of ours tells those who are in a hurry not to try again. A run is in none: it waits its turn once more.
fn of_gateway(mut fault: Fault, reason: Option<&str>) -> Fault {
    match reason {
        Some("limit" | "queue_full") => fault.kind = FaultKind::RateLimited,
        Some("breaker" | "paused" | "draining") => fault.kind = FaultKind::Overloaded,
        _ => return fault,
    }
    fault.should_retry = None;
    fault
}

async fn within<F: Future>(bound: Option<Duration>, future: F) -> Option<F::Output> {
    match bound {
        None => Some(future.await),
        Some(bound) => tokio::time::timeout(bound, future).await.ok(),
    }
}

fn no_reply(error: &reqwest::Error) -> Fault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = String::new();
    while let Some(error) = cause {
        innermost = error.to_string();
        cause = error.source();
    }
    // Its number tells nobody more than its words.
    let innermost = innermost.split(" (os error").next().unwrap_or_default().to_owned();
    if !error.is_connect() {
        return Fault::new(FaultKind::Broken, format!("no reply: {innermost}"));
    }
    let is_dns = innermost.contains("lookup") || innermost.contains("resolve") || innermost.contains("dns");
    let kind = if is_dns { FaultKind::Dns } else { FaultKind::Connect };
    Fault::new(kind, format!("no connection: {innermost}"))
}

fn is_loopback(base_url: &str) -> bool {
    let host = reqwest::Url::parse(base_url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|addr| addr.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateways_refusal_for_the_hurried_is_waited_out() {
        let mut fault = Fault::new(FaultKind::RateLimited, "limit").with_status(429);
        fault.should_retry = Some(false);
        assert_eq!(of_gateway(fault.clone(), Some("limit")).should_retry, None);
        assert_eq!(of_gateway(fault.clone(), Some("breaker")).kind, FaultKind::Overloaded);
        assert_eq!(of_gateway(fault, Some("too_large")).should_retry, Some(false));
    }

    #[test]
    fn a_priority_is_told_to_this_machine_and_to_no_other() {
        for (url, is) in [("http://127.0.0.1:8080/v1", true), ("http://[::1]:1/v1", true), ("https://a.b/v1", false)] {
            assert_eq!(is_loopback(url), is, "{url}");
        }
    }
}
