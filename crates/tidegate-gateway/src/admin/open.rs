//! Decides what anybody is told, under any Host: whether this process lives and takes calls, and its series.

use http::{Method, Response, StatusCode};

use super::Ask;
use super::answer::{Answer, text};
use crate::exposition::Format;
use crate::refusal::OwnReply;
use crate::reply::ReplyBody;
use crate::shared::{Phase, Shared};

/// OpenAPI: every endpoint, what it takes and what it answers.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

/// `/healthz` and `/readyz`, on either listener. `None`: it is another path.
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
    Some(text(status, "text/plain; charset=utf-8", said))
}

/// The same on this listener.
pub(super) fn health_of(ask: &Ask) -> Answer {
    let (method, path) = (ask.request.method(), ask.request.uri().path());
    health(&ask.shared, method, path).ok_or_else(|| Box::new(OwnReply::no_such_admin_path(path)))
}

/// `/metrics`.
pub(super) fn metrics(ask: &Ask) -> Answer {
    let format = Format::wanted(ask.request.headers());
    let rendered = ask.shared.metrics.render().ok_or_else(|| Box::new(OwnReply::bad_request("no metrics")))?;
    Ok(text(StatusCode::OK, format.content_type(), format.written(rendered)))
}
