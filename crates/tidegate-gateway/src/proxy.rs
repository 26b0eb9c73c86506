//! Decides nothing but the order: who calls, what for, and who may take the call. The beginning of its life.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tidegate_core::openai::endpoints::{Endpoint, Route, classify_path};
use tidegate_core::openai::estimate::{self, Request as Asked};
use tidegate_core::time::Time;
use tokio::time::Instant;

use crate::asking::{is_multipart, model_in_query, narrow_encodings};
use crate::body::{self, Passage};
use crate::candidates::Wanted;
use crate::flood::CallLines;
use crate::headers;
use crate::identity::Identity;
use crate::order::{Answer, Order};
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::{Phase, Settings, Shared, unix_now};
use crate::stopwatch::Stopwatch;
use crate::websocket::{self, Upgrade};
use crate::wishes::Wishes;

/// No model's name is longer.
const MODEL_BYTES_MAX: usize = 256;

static ANSWERED: CallLines = CallLines::new("calls were answered by tidegate itself");

/// Answers one request that came in at `local`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    local: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let watch = Stopwatch::start();
    if let Some(health) = crate::admin::health(&shared, request.method(), request.uri().path()) {
        return Ok(health);
    }
    let mut stamp = Stamp::for_call(request.headers());
    let answer = watch.of(pin!(handle(&shared, local, request, &watch, &mut stamp))).await;
    Ok(answer.unwrap_or_else(|own| {
        if ANSWERED.may_tell() {
            tracing::debug!(status = own.status.as_u16(), reason = own.reason(), "answered by tidegate itself");
        }
        own.into_response(&stamp)
    }))
}

async fn handle(
    shared: &Arc<Shared>,
    local: IpAddr,
    mut request: Request<Incoming>,
    watch: &Stopwatch,
    stamp: &mut Stamp,
) -> Answer {
    let settings = shared.settings.load_full();
    let upgrade = Upgrade::of(&mut request);
    let (parts, body) = request.into_parts();
    let http::request::Parts { method, uri, mut headers, .. } = parts;
    let (route, identity, wishes) = match let_in(shared, &settings, local, &method, &uri, &mut headers) {
        Ok(let_in) => let_in,
        Err(own) => {
            body::drain(body, settings.config.server.max_body);
            return Err(own);
        }
    };
    let sdk_retry = headers::sdk_retries(&headers);
    if sdk_retry > 0 {
        // Somebody behind us retries too: what should be one call counts as several everywhere.
        shared.metrics.retry("sdk", "received");
        tracing::debug!(call = %stamp.id(), retry = sdk_retry, "the caller's SDK has sent this call before");
    }
    headers::clean_request(&mut headers);

    // A form with files has no JSON to read; it streams through and costs what its endpoint costs at least.
    let is_read = route.is_metered(method.as_str()) && !is_multipart(&headers);
    let bytes_max = settings.config.server.max_body;
    let held = shared.room.for_body(settings.config.policy.queue.max_bytes);
    let (bytes, passing) = if is_read {
        narrow_encodings(&mut headers);
        (body::read_whole(body, &mut headers, bytes_max, held).await?, None)
    } else if upgrade.is_none() && body::is_small(&body) {
        // Kept, so that it can be sent again like any other.
        (body::read_small(body, held).await?, None)
    } else {
        (Bytes::new(), Some(body).filter(|body| !body.is_end_stream()))
    };
    let asked = if is_read {
        estimate::parse(route.endpoint, &bytes).map_err(|error| Box::new(OwnReply::invalid_body(error.to_string())))?
    } else {
        Asked::unread(route.endpoint)
    };

    let named = asked.model.as_deref().or(route.deployment.as_deref()).or_else(|| model_in_query(&uri, &route));
    if let Some(name) = named.filter(|name| name.len() > MODEL_BYTES_MAX) {
        let message = format!("model is {} bytes long; a model's name has at most {MODEL_BYTES_MAX}", name.len());
        return Err(Box::new(OwnReply::invalid_body(message)));
    }
    let has_several = settings.upstreams.len() > 1;
    let wanted = Wanted {
        model: named,
        pin: has_several.then(|| shared.made.pin(&route, is_read.then_some(&*bytes))).flatten(),
        is_deployment: route.deployment.is_some(),
        may_fall_back: upgrade.is_none() && makes_something(&route, &method),
    };
    let Some(candidates) = settings.candidates(&wanted) else {
        return Err(Box::new(OwnReply::unserved_model(named.unwrap_or(""))));
    };
    let call_end =
        wishes.timeout.or(settings.config.policy.retry.total_timeout).map(|after| watch.started_at() + after);
    let now = shared.driver.now();
    let end_by = call_end.map_or(Time::NEVER, |end| now + end.saturating_duration_since(Instant::now()));
    let max_wait = wishes.max_wait(settings.config.policy.queue.max_wait);
    let order = Order {
        shared,
        settings: &settings,
        identity: &identity,
        wishes: &wishes,
        route: &route,
        asked: &asked,
        named,
        method,
        uri: &uri,
        headers,
        bytes: bytes.clone(),
        passage: passing.map(|body| Arc::new(Passage::new(body))),
        is_read,
        priority: wishes.priority.unwrap_or(identity.caller.default_priority).min(identity.caller.max_priority),
        watch,
        start_by: (now + max_wait).min(end_by),
        call_end,
        end_by,
        reply_end: wishes.timeout.map(|after| watch.started_at() + after),
    };
    // Last of all: by now it is known whose call for what it is that is refused, and it is counted as such.
    if shared.audit.stands_in_the_way(settings.config.audit.on_failure) {
        return Err(order.unrecorded(candidates));
    }
    match upgrade {
        Some(upgrade) => websocket::run(order, candidates, upgrade, stamp).await,
        None => order.run(candidates, stamp).await,
    }
}

/// Whether a call asks a model for something that any upstream with the model could make, and leaves nothing behind there.
fn makes_something(route: &Route<'_>, method: &Method) -> bool {
    method == Method::POST && (route.endpoint.is_metered() || route.endpoint == Endpoint::Audio)
}

/// Who calls, by which path, and with which wishes; nothing of the body is needed to turn somebody away.
fn let_in<'u>(
    shared: &Shared,
    settings: &Settings,
    local: IpAddr,
    method: &Method,
    uri: &'u Uri,
    headers: &mut HeaderMap,
) -> Result<(Route<'u>, Identity, Wishes), Box<OwnReply>> {
    settings.guard.check(uri, headers, local)?;
    headers::check_single(headers)?;
    if shared.phase() >= Phase::Closing {
        return Err(Box::new(OwnReply::draining()));
    }
    let route = classify_path(uri.path());
    if route.endpoint == Endpoint::Unknown {
        // By the name that the caller knows us by; it is one of ours.
        let host = headers::text(headers, &header::HOST).unwrap_or(&shared.first_addr);
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        return Err(Box::new(OwnReply::unknown_path(uri.path(), &format!("{scheme}://{host}/v1"))));
    }
    let identity = settings.callers.identify(headers, unix_now().as_secs())?;
    identity.caller.may_use(&route, method.as_str())?;
    Ok((route, identity, Wishes::read(headers)?))
}
