//! Decides what a reply means before it goes to the caller: a good one, or a fault that may be tried again.
//!
//! Judges nothing itself: `openai::faults` does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::endpoints::Endpoint;
use tidegate_core::openai::headers::{HeaderLookup, server_limits};
use tidegate_core::openai::stream::StreamMeter;
use tidegate_core::openai::{faults, usage};
use tidegate_core::outcome::ServerLimits;
use tokio::time::Instant;

use super::guard::{HeldBody, Watch};
use crate::error::{BoxError, Error};
use crate::retry::Failure;

/// A status is passed on so long after the reply began, whatever has come by then.
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// So much of a reply is held while it is looked at.
const HELD_BYTES_MAX: usize = 64 << 10;
/// The rest of an error is awaited for so long.
const ERROR_REST_FOR: Duration = Duration::from_secs(5);

/// A reply and what was found in it.
pub(super) struct Looked<B> {
    pub(super) response: http::Response<HeldBody<B>>,
    pub(super) watch: Watch,
    /// It says that the attempt failed.
    pub(super) fault: Option<Fault>,
}

type Found = (Watch, Option<Fault>);

struct Lookup<'h>(&'h HeaderMap);

impl HeaderLookup for Lookup<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.0.get_all(name).iter().find_map(|value| value.to_str().ok())
    }
}

/// What the head of a reply tells of the server's limits.
pub(super) fn limits(headers: &HeaderMap) -> ServerLimits {
    server_limits(&Lookup(headers))
}

/// Looks into a reply to a call of `endpoint` (`None`: one that costs no tokens).
pub(super) async fn look<B>(
    mut response: http::Response<HeldBody<B>>,
    endpoint: Option<Endpoint>,
) -> Result<Looked<B>, Failure>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let status = response.status();
    let is_plain = !response.headers().contains_key(header::CONTENT_ENCODING);
    let is_stream = is_event_stream(response.headers());
    let body = response.body_mut();
    let (watch, fault) = match endpoint {
        _ if status.is_client_error() || status.is_server_error() => {
            // Where the rest of it does not come, the status and what came say enough.
            let _ = hold(body, Instant::now() + ERROR_REST_FOR).await;
            let said = body.joined();
            let fault = faults::classify(status.as_u16(), &Lookup(response.headers()), &said, unix_now());
            (Watch::Nothing, fault)
        }
        Some(endpoint) if status == StatusCode::OK && is_plain && is_stream => look_at_stream(body, endpoint).await?,
        Some(_) if status == StatusCode::OK && is_plain => look_at_json(body).await?,
        _ => (Watch::Nothing, None),
    };
    Ok(Looked { response, watch, fault })
}

async fn look_at_stream<B>(body: &mut HeldBody<B>, endpoint: Endpoint) -> Result<Found, Failure>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut meter = Box::new(StreamMeter::new(endpoint));
    let commit_at = Instant::now() + COMMIT_AFTER;
    while !meter.is_committed() && body.held_bytes <= HELD_BYTES_MAX {
        match tokio::time::timeout_at(commit_at, body.hold_next()).await {
            Err(_) => break,
            Ok(next) => {
                let is_more = next.map_err(broken)?;
                if let Some(piece) = body.held.back().filter(|_| is_more) {
                    meter.feed(piece, |_, _| {});
                } else if !is_more {
                    meter.finish();
                    if !meter.is_complete() {
                        return Err(broken("the stream closed before its first event"));
                    }
                    break;
                }
            }
        }
        if let Some(fault) = meter.fault() {
            let fault = Some(fault.clone());
            // The caller may be given it after all: with what follows it.
            let _ = hold(body, commit_at).await;
            return Ok((Watch::Nothing, fault));
        }
    }
    Ok((Watch::Stream(meter), None))
}

async fn look_at_json<B>(body: &mut HeldBody<B>) -> Result<Found, Failure>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    hold(body, Instant::now() + COMMIT_AFTER).await.map_err(broken)?;
    if body.rest.is_some() {
        let mut watch = Watch::Json(Default::default(), 0);
        body.held.iter().for_each(|piece| watch.see(piece));
        return Ok((watch, None));
    }
    let said = body.joined();
    Ok((Watch::Read(usage::from_json(&said)), faults::classify_in_band(&said)))
}

/// Holds what comes until all of it is there, the bound is passed, or `deadline`.
async fn hold<B: Body<Data = Bytes>>(body: &mut HeldBody<B>, deadline: Instant) -> Result<(), B::Error> {
    while body.held_bytes <= HELD_BYTES_MAX {
        match tokio::time::timeout_at(deadline, body.hold_next()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
    }
    Ok(())
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    kind.get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}

fn broken(error: impl Into<BoxError>) -> Failure {
    Failure { fault: Box::new(Fault::new(FaultKind::Broken, "the reply broke off")), error: Ok(error.into()) }
}

impl Failure {
    /// The one there is, or that of a reply that says what `fault` does.
    pub(super) fn of(fault: Fault, failure: Option<Self>) -> Self {
        failure.unwrap_or_else(|| Self { error: Ok(fault.clone().into()), fault: Box::new(fault) })
    }

    /// As an error that was not, or cannot be, retried.
    pub(super) fn into_upstream(self) -> Error {
        self.into_error(1, tidegate_core::refusal::GiveUpReason::NotRetryable)
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
