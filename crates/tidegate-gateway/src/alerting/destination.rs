//! Where alerts are posted. The URL is a secret: whoever has it can post there too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use tidegate_core::config::{AlertConfig, Webhook, WebhookFormat};
use tidegate_core::fault::FaultKind;

use crate::attempt::no_reply;
use crate::body::SendBody;
use crate::client::{self, Connector};

/// A webhook that does not answer for so long is taken for dead.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A receiver's own wish to be left alone is honoured up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A webhook, ready to be posted to.
#[derive(Clone)]
pub(crate) struct Destination {
    uri: Uri,
    host: HeaderValue,
    pub(super) format: WebhookFormat,
    client: Arc<Client<Connector, SendBody>>,
}

/// Why a notice was not taken.
#[derive(Debug)]
pub(super) struct NotTaken {
    /// For operators; nothing of the URL is in it.
    pub(super) why: String,
    /// It would not be taken later either.
    pub(super) is_final: bool,
    /// How long the receiver wants to be left alone.
    pub(super) pause: Option<Duration>,
}

impl Destination {
    /// Where `alert` says, the URL looked up where it is kept. `None`: it is posted nowhere.
    pub(crate) fn of(alert: &AlertConfig) -> Result<Option<Self>, String> {
        let failed = |why: &str| format!("alert \"{}\": webhook: {why}", alert.name);
        let url = match &alert.webhook {
            None => return Ok(None),
            Some(Webhook::Url(url)) => url.expose().to_owned(),
            Some(Webhook::Source(source)) => {
                let resolved = source.resolve(|name| std::env::var(name).ok(), |path| std::fs::read_to_string(path));
                resolved.map_err(|error| failed(&error.to_string()))?
            }
        };
        let wrong = || failed("is no http:// or https:// URL without user and password");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?;
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(wrong()),
        };
        let client = client::single(is_https, TIMEOUT).map_err(|why| failed(&why))?;
        Ok(Some(Self { uri, host, format: alert.format, client: Arc::new(client) }))
    }

    /// Whether what is posted is the same, in the same form and to the same place.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.uri == other.uri && self.format == other.format
    }

    /// Scheme and host: all of the URL that may be shown.
    pub(super) fn shown(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or("");
        format!("{scheme}://{}/…", self.uri.authority().map_or("", |authority| authority.as_str()))
    }

    /// Posts one notice. Redirections are not followed: they would lead a secret astray.
    pub(super) async fn post(&self, body: Bytes) -> Result<(), NotTaken> {
        let mut request = Request::new(SendBody::whole(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION"))));
        let passing = |why: String| NotTaken { why, is_final: false, pause: None };
        let reply = match tokio::time::timeout(TIMEOUT, self.client.request(request)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                let fault = no_reply(&error);
                let is_unknown = fault.kind == FaultKind::Dns;
                return Err(passing(if is_unknown {
                    "its name does not resolve".into()
                } else {
                    fault.summary.into()
                }));
            }
            Err(_) => return Err(passing(format!("no reply in {}s", TIMEOUT.as_secs()))),
        };
        let status = reply.status();
        if status.is_success() {
            return Ok(());
        }
        let pause = reply.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Err(NotTaken {
            why: format!("it answered {status}"),
            is_final: !(status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)),
            pause: pause.map(|seconds| Duration::from_secs(seconds).min(PAUSE_MAX)),
        })
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}
