//! Decides how a WebSocket passes: the upgrade goes to the upstream as one request, and then bytes go both ways unread.
//!
//! Costs one request and holds its slot in flight until it closes. Never retried: nothing of it can be sent again.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::faults;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::attempt::Settling;
use crate::body::{Late, SendBody, in_time};
use crate::candidates::Candidates;
use crate::headers::{self, Lookup};
use crate::leg::Leg;
use crate::order::{Answer, Order, SoFar};
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::{Phase, unix_now};

/// Of an upgrade that is refused, so much is passed on.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
const REFUSAL_FOR: Duration = Duration::from_secs(10);
/// So much is carried on at once.
const CARRIED_BYTES: usize = 8 << 10;

/// A caller's wish to speak another protocol.
pub(crate) struct Upgrade {
    protocol: HeaderValue,
    on: OnUpgrade,
}

impl Upgrade {
    /// `None`: an ordinary request.
    pub(crate) fn of(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = request.headers().get(header::UPGRADE)?;
        if !protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
            return None;
        }
        let asks = request.headers().get_all(header::CONNECTION).iter().any(|value| {
            value.to_str().is_ok_and(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")))
        });
        if !asks {
            return None;
        }
        Some(Self { protocol: protocol.clone(), on: hyper::upgrade::on(request) })
    }

    fn put_on(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }
}

/// Takes the upgrade to the upstream and answers with what it says.
pub(crate) async fn run(
    mut order: Order<'_>,
    mut candidates: Candidates,
    upgrade: Upgrade,
    stamp: &mut Stamp,
) -> Answer {
    let mut so_far = SoFar::default();
    let mut leg = order.first_leg(&mut candidates, &mut so_far)?;
    if let Some(limit) = order.settings.token_limit_on(&leg.subject) {
        return Err(Box::new(OwnReply::forbidden(format!(
            "a WebSocket's tokens cannot be counted against limit \"{limit}\"; use HTTP with stream: true"
        ))));
    }
    let mut permit = match leg.admitted(&order, &so_far, stamp).await {
        Ok(permit) => permit,
        Err(refusal) => {
            let cannot = leg.refused(&order, refusal, &so_far);
            return order.end(&leg, *cannot, so_far, stamp);
        }
    };
    stamp.attempts = 1;
    let mut request = Request::new(SendBody::Whole(None));
    *request.method_mut() = order.method.clone();
    *request.uri_mut() = leg.target.clone();
    *request.headers_mut() = std::mem::take(&mut leg.headers);
    upgrade.put_on(request.headers_mut());
    permit.sent();
    let mut settling = Settling::new(permit, &leg, order.priority, None);
    let deadline = leg.upstream.config.first_byte_timeout.map(|timeout| Instant::now() + timeout);
    let sending = leg.upstream.clients.upgrade(request);
    let fault = match in_time(sending, deadline).await {
        Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            settling.head_came(Instant::now());
            return Ok(switch(&order, &leg, upgrade, response, settling, stamp));
        }
        Ok(Ok(response)) => return Ok(refused(&order, &leg, response, settling, stamp).await),
        Ok(Err(_)) => Fault::new(FaultKind::Connect, "no connection for the WebSocket"),
        Err(Late) => Fault::new(FaultKind::Timeout, "no reply to the WebSocket's handshake"),
    };
    order.shared.metrics.no_reply(&leg.model.metrics, fault.kind.error_class());
    let (kind, message) = (fault.kind, format!("gave up after 1 attempt; last: {}.", fault.summary));
    // Not tried again, whatever the core says: dropping what follows withdraws the call.
    drop(settling.failed(fault, None));
    leg.ended(order.priority, crate::metrics::CallEnd::Failed);
    Err(Box::new(OwnReply::upstream_failed(kind, message, false)))
}

/// Both sides agree: joins them until one closes, or the process ends.
fn switch(
    order: &Order<'_>,
    leg: &Leg,
    upgrade: Upgrade,
    mut response: Response<Incoming>,
    settling: Settling,
    stamp: &Stamp,
) -> Response<ReplyBody> {
    order.shared.metrics.replied(&leg.model.metrics, response.status().as_u16());
    let theirs = hyper::upgrade::on(&mut response);
    let (mut head, _) = response.into_parts();
    headers::clean_reply(&mut head.headers);
    upgrade.put_on(&mut head.headers);
    stamp.put_on(&mut head.headers);
    let mut phase = order.shared.phase.subscribe();
    let ours = upgrade.on;
    tokio::spawn(async move {
        let joined = async {
            let ours = ours.await.map_err(|error| Broke::Caller(io::Error::other(error)))?;
            let theirs = theirs.await.map_err(|error| Broke::Upstream(io::Error::other(error)))?;
            join(ours, theirs).await
        };
        tokio::select! {
            joined = joined => match joined {
                Ok(()) => settling.succeeded(None),
                Err(Broke::Caller(error)) => {
                    tracing::debug!("the caller's side of a WebSocket broke off: {error}");
                    settling.cancelled(None);
                }
                Err(Broke::Upstream(error)) => {
                    tracing::debug!("the upstream's side of a WebSocket broke off: {error}");
                    settling.cut_short(Fault::new(FaultKind::Broken, "the WebSocket broke off"), None);
                }
            },
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => settling.cancelled(None),
        }
    });
    let mut switched = Response::new(ReplyBody::empty());
    *switched.status_mut() = head.status;
    *switched.headers_mut() = head.headers;
    switched
}

/// Whose side of a WebSocket broke off: a caller that leaves, or reads no more, is no fault of the upstream's.
#[derive(Debug)]
enum Broke {
    Caller(io::Error),
    Upstream(io::Error),
}

/// Until either side closes: a WebSocket has no use for half a connection, and its slot would stay taken.
async fn join(ours: Upgraded, theirs: Upgraded) -> Result<(), Broke> {
    let (mut from_caller, mut to_caller) = tokio::io::split(TokioIo::new(ours));
    let (mut from_upstream, mut to_upstream) = tokio::io::split(TokioIo::new(theirs));
    tokio::select! {
        carried = carry(&mut from_caller, Broke::Caller, &mut to_upstream, Broke::Upstream) => carried?,
        carried = carry(&mut from_upstream, Broke::Upstream, &mut to_caller, Broke::Caller) => carried?,
    };
    // One of them is gone already: that is what ended it.
    let (_caller, _upstream) = tokio::join!(to_caller.shutdown(), to_upstream.shutdown());
    Ok(())
}

/// Carries bytes on as they come, until there are no more. Unlike `tokio::io::copy` it tells on which side it failed.
async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    reading: fn(io::Error) -> Broke,
    to: &mut (impl AsyncWrite + Unpin),
    writing: fn(io::Error) -> Broke,
) -> Result<(), Broke> {
    let mut buffer = BytesMut::with_capacity(CARRIED_BYTES);
    while from.read_buf(&mut buffer).await.map_err(reading)? > 0 {
        to.write_all(&buffer).await.map_err(writing)?;
        to.flush().await.map_err(writing)?;
        buffer.clear();
    }
    Ok(())
}

/// The upstream answered, but not with the other protocol.
async fn refused(
    order: &Order<'_>,
    leg: &Leg,
    response: Response<Incoming>,
    settling: Settling,
    stamp: &Stamp,
) -> Response<ReplyBody> {
    let (mut head, body) = response.into_parts();
    let status = head.status.as_u16();
    order.shared.metrics.replied(&leg.model.metrics, status);
    let limited = http_body_util::Limited::new(body, REFUSAL_BYTES_MAX);
    let said = tokio::time::timeout(REFUSAL_FOR, http_body_util::BodyExt::collect(limited)).await;
    let said = said.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    match faults::classify(status, &Lookup(&head.headers), &said, unix_now()) {
        Some(fault) => {
            drop(settling.failed(fault, None));
            leg.ended(order.priority, crate::metrics::CallEnd::Failed);
        }
        None => settling.succeeded(None),
    }
    headers::clean_reply(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(headers::SHOULD_RETRY, HeaderValue::from_static("false"));
    stamp.put_on(&mut head.headers);
    let mut response = Response::new(ReplyBody::full(said));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}
