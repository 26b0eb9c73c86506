//! Decides what the admin listener answers: health, metrics, and to who has the token, how everything stands.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tidegate_core::gate::{Explanation, Status};

use crate::audit::page;
use crate::exposition::Format;
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::{Phase, Shared};
use crate::{token, told};

/// Followed by a call's id.
const EXPLAIN: &str = "/admin/v1/explain/";

/// `/healthz` and `/readyz`, on either listener and for any Host. `None`: it is another path.
///
/// Ready unless the process is ending; never unready because an upstream is down.
pub(crate) fn health(shared: &Shared, method: &Method, path: &str) -> Option<Response<ReplyBody>> {
    let is_ready = match path {
        "/healthz" => true,
        "/readyz" => shared.phase() == Phase::Serving,
        _ => return None,
    };
    if method != Method::GET && method != Method::HEAD {
        return None;
    }
    let (status, said) =
        if is_ready { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") };
    Some(text(status, "text/plain; charset=utf-8", said.into()))
}

/// Answers one request of the admin listener.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    local: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    if let Some(health) = health(&shared, request.method(), request.uri().path()) {
        return Ok(health);
    }
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => metrics(&shared, Format::wanted(request.headers())),
        (&Method::GET, "/admin/v1/audit") => match authorized(&shared, local, &request) {
            Ok(()) => page::answer(&shared, request.uri().query().unwrap_or("")).await.map(json),
            Err(own) => Err(own),
        },
        (method, path) => authorized(&shared, local, &request).and_then(|()| match (method, path) {
            (&Method::GET, "/admin/v1/status") => status(&shared),
            (&Method::GET, "/admin/v1/events") => {
                told::answer(&shared, request.uri().query().unwrap_or(""), request.headers())
            }
            (&Method::GET, path) if path.starts_with(EXPLAIN) => explain(&shared, &path[EXPLAIN.len()..]),
            _ => Err(Box::new(OwnReply::no_such_admin_path(path))),
        }),
    };
    Ok(answer.unwrap_or_else(|own| own.into_response(&Stamp::for_call(request.headers()))))
}

fn metrics(shared: &Shared, format: Format) -> Result<Response<ReplyBody>, Box<OwnReply>> {
    let rendered = shared.metrics.render().ok_or_else(|| Box::new(OwnReply::bad_request("no metrics")))?;
    Ok(text(StatusCode::OK, format.content_type(), format.written(rendered).into()))
}

fn authorized(shared: &Shared, local: IpAddr, request: &Request<Incoming>) -> Result<(), Box<OwnReply>> {
    let settings = shared.settings.load();
    settings.guard.check(request.uri(), request.headers(), local)?;
    let shown = bearer(request.headers()).map(token::secret_digest);
    let known = settings.config.admins.iter().map(|admin| &admin.sha256).chain([&shared.admin_token]);
    match shown.and_then(|shown| token::position(&shown, known)) {
        Some(_) => Ok(()),
        None => Err(Box::new(OwnReply::unauthorized(
            "the admin listener wants Authorization: Bearer TOKEN; the token is in the state directory's admin-token",
        ))),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, secret) = value.split_at_checked("bearer ".len())?;
    let secret = secret.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !secret.is_empty()).then_some(secret)
}

#[derive(Serialize)]
struct StatusView<'s> {
    version: &'static str,
    state: &'static str,
    upstreams: Vec<UpstreamView<'s>>,
    #[serde(flatten)]
    core: Status,
}

#[derive(Serialize)]
struct UpstreamView<'s> {
    name: &'s str,
    base_url: &'s str,
    fallback: bool,
}

fn status(shared: &Shared) -> Result<Response<ReplyBody>, Box<OwnReply>> {
    let settings = shared.settings.load();
    let view = StatusView {
        version: env!("CARGO_PKG_VERSION"),
        state: if shared.phase() == Phase::Serving { "serving" } else { "draining" },
        upstreams: settings
            .upstreams
            .iter()
            .map(|upstream| UpstreamView {
                name: &upstream.config.name,
                base_url: &upstream.config.base_url,
                fallback: upstream.config.fallback,
            })
            .collect(),
        core: shared.driver.with(|gate, now| gate.status(now)),
    };
    let body = serde_json::to_vec(&view)
        .map_err(|error| Box::new(OwnReply::bad_request(format!("the status cannot be written: {error}"))))?;
    Ok(text(StatusCode::OK, "application/json", body.into()))
}

/// An explanation, with its time as people write it.
#[derive(Serialize)]
struct Explained {
    /// RFC 3339.
    at: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Why a call was held or refused.
fn explain(shared: &Shared, call: &str) -> Result<Response<ReplyBody>, Box<OwnReply>> {
    let explanation = shared.driver.with(|gate, _| gate.explain(call));
    let explanation = explanation.ok_or_else(|| Box::new(OwnReply::unexplained(call)))?;
    // The driver's clock counts from the Unix epoch.
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(explanation.at.as_micros());
    let told = Explained { at: humantime::format_rfc3339_millis(at).to_string(), explanation };
    let body = serde_json::to_vec(&told)
        .map_err(|error| Box::new(OwnReply::bad_request(format!("the explanation cannot be written: {error}"))))?;
    Ok(text(StatusCode::OK, "application/json", body.into()))
}

fn json(body: Bytes) -> Response<ReplyBody> {
    text(StatusCode::OK, "application/json", body)
}

fn text(status: StatusCode, kind: &'static str, body: Bytes) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
