//! Answers one request: reads it, asks the faults and the limiter, waits as a model would, replies.

mod control;
mod error;
mod free;
mod metered;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::watch;

use crate::body::{Dropped, ReplyBody};
use crate::draw;
use crate::exchange::Exchange;
use crate::faults::{Facts, Struck, strike};
use crate::headers;
use crate::ledger::LogEntry;
use crate::limiter::{Charge, Remaining};
use crate::route::{Endpoint, NoRoute};
use crate::scenario::{Fault, FaultKind};
use crate::script::{Ending, Script};
use crate::shared::{Running, Shared};
use crate::socket::Reset;

const BODY_BYTES_MAX: usize = 256 << 20;

/// A reply, or the end of the connection.
pub(crate) type Answered = Result<Response<ReplyBody>, Dropped>;

/// A request that was read.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) running: Arc<Running>,
    pub(crate) exchange: Exchange,
    pub(crate) number: u64,
    /// Hexadecimal, the same under the same seed.
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) reset: Reset,
    read_at: Instant,
}

/// Answers a request on any path.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    reset: Reset,
    stop: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Answered {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let collected = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = match collected {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => return Ok(error::too_long()),
        Err(_) => return Err(Dropped),
    };
    if path.starts_with("/sim/") {
        return Ok(control::answer(&shared, &parts.method, &path, parts.uri.query(), &body));
    }
    let endpoint = Endpoint::find(&parts.method, &path);
    if endpoint == Ok(Endpoint::Realtime) {
        let call = Call::read(shared, reset, &parts.method, path, HeaderMap::new(), body);
        return free::realtime(call, &mut parts, stop).await;
    }
    let call = Call::read(shared, reset, &parts.method, path, parts.headers, body);
    if call.running.scenario.require_auth && !call.headers.contains_key(header::AUTHORIZATION) {
        return Ok(call.finish_error(error::no_key()));
    }
    match endpoint {
        Err(NoRoute::Unknown) => {
            let reply = error::unknown_url(&parts.method, &call.path);
            Ok(call.finish_error(reply))
        }
        Err(NoRoute::Method) => {
            let reply = error::wrong_method(&parts.method, &call.path);
            Ok(call.finish_error(reply))
        }
        Ok(endpoint) if endpoint.is_metered() => metered::answer(call, &endpoint).await,
        Ok(endpoint) => free::answer(call, &endpoint).await,
    }
}

impl Call {
    fn read(shared: Arc<Shared>, reset: Reset, method: &Method, path: String, headers: HeaderMap, body: Bytes) -> Call {
        let number = shared.next_number();
        let seed = shared.options.seed;
        let id = format!("{:016x}{:016x}", draw::mix(seed, number), draw::mix(!seed, number));
        let entry = LogEntry {
            number,
            received_s: shared.elapsed().as_secs_f64(),
            finished_s: 0.0,
            method: method.to_string(),
            path: path.clone(),
            model: None,
            user: None,
            request_id: format!("req_{id}"),
            charge: Charge { requests: 0, tokens: 0, images: 0 },
            admitted: false,
            refused: None,
            fault: None,
            status: 0,
            stream: false,
            input_tokens: 0,
            output_tokens: 0,
            cancelled: false,
        };
        let running = shared.running();
        let exchange = Exchange::begin(&shared, entry);
        Call { shared, running, exchange, number, id, path, headers, body, reset, read_at: Instant::now() }
    }

    /// The faults that strike this call; counted and noted.
    fn strike<'a>(&mut self, running: &'a Running, model: &str, user: Option<&str>, stream: bool) -> Struck<'a> {
        let faults = &running.scenario.fault;
        if faults.is_empty() {
            return Struck::default();
        }
        let facts = Facts { at: self.shared.elapsed(), model, path: &self.path, user, stream };
        // Twice the number: faults and answers draw from streams of their own.
        let mut rng = draw::of_call(self.shared.options.seed, 2 * self.number);
        strike(faults, &running.matched, &facts, &mut rng)
    }

    /// Counts a fault that takes effect.
    fn count_fault(&mut self, kind: FaultKind) {
        self.shared.with_ledger(|ledger| *ledger.stats.faults.entry(kind).or_default() += 1);
        if !kind.is_cosmetic() {
            self.exchange.note(|entry| entry.fault = Some(kind));
        }
    }

    /// The randomness of this call's answer.
    fn rng(&self) -> fastrand::Rng {
        draw::of_call(self.shared.options.seed, 2 * self.number + 1)
    }

    /// Adds the headers that every reply of OpenAI has.
    fn dress(&self, response: &mut Response<ReplyBody>, remaining: Option<&Remaining>, by_day: bool) {
        let scenario = &self.running.scenario;
        let headers = response.headers_mut();
        if let Some(remaining) = remaining.filter(|_| scenario.headers) {
            headers::rate_limits(headers, &remaining.told(scenario.told_factor), by_day);
        }
        headers.insert("openai-organization", headers::value(&scenario.organization));
        headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
        let millis = u64::try_from(self.read_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        headers.insert("openai-processing-ms", millis.max(1).into());
        headers.insert("x-request-id", headers::value(&format!("req_{}", self.id)));
    }

    /// Applies the faults that only change how the reply looks.
    fn disfigure(&mut self, response: &mut Response<ReplyBody>, struck: &Struck<'_>) {
        if struck.garbage_headers {
            self.count_fault(FaultKind::GarbageHeaders);
            headers::garbage(response.headers_mut());
        }
        if struck.random_headers {
            self.count_fault(FaultKind::RandomHeaders);
            headers::random(response.headers_mut(), &mut self.rng());
        }
        if struck.missing_headers {
            self.count_fault(FaultKind::MissingHeaders);
            headers::strip(response.headers_mut());
        }
    }

    /// Ends the exchange with this reply.
    fn finish(mut self, response: Response<ReplyBody>) -> Response<ReplyBody> {
        let status = response.status().as_u16();
        self.exchange.note(|entry| entry.status = status);
        self.exchange.finish();
        response
    }

    /// Ends the exchange with an error that has nothing to do with limits.
    fn finish_error(self, mut response: Response<ReplyBody>) -> Response<ReplyBody> {
        self.dress(&mut response, None, false);
        self.finish(response)
    }

    /// Ends the connection without a reply, with a reset or quietly.
    fn hang_up(self, reset: bool) -> Dropped {
        self.reset.store(reset, std::sync::atomic::Ordering::Relaxed);
        self.exchange.finish();
        Dropped
    }

    /// Ends the exchange with this reply, in pieces or cut short if a fault says so.
    fn finish_plain(mut self, mut response: Response<ReplyBody>, struck: &Struck<'_>) -> Response<ReplyBody> {
        self.disfigure(&mut response, struck);
        let Some(bytes) = response.body_mut().take_whole() else { return self.finish(response) };
        if struck.is(FaultKind::Truncated) {
            response.headers_mut().insert(header::CONTENT_LENGTH, bytes.len().into());
            *response.body_mut() = ReplyBody::Cut { bytes: Some(bytes.slice(..bytes.len() / 2)), written: false };
        } else if let Some(piece) = struck.split {
            self.count_fault(FaultKind::Split);
            let status = response.status().as_u16();
            self.exchange.note(|entry| entry.status = status);
            let played = Script::of_bytes(&bytes).play(Some(piece));
            return response.map(|_| ReplyBody::stream(played, self.exchange, self.reset));
        } else {
            *response.body_mut() = ReplyBody::whole(bytes);
        }
        self.finish(response)
    }

    /// Sends a stream, as its faults have it.
    fn finish_stream(mut self, script: Script, mut response: Response<ReplyBody>, struck: &Struck<'_>) -> Answered {
        self.disfigure(&mut response, struck);
        if struck.split.is_some() {
            self.count_fault(FaultKind::Split);
        }
        let status = response.status().as_u16();
        self.exchange.note(|entry| entry.status = status);
        self.exchange.streaming();
        let played = script.play(struck.split);
        Ok(response.map(|_| ReplyBody::stream(played, self.exchange, self.reset)))
    }
}

/// Pauses, cuts or ends a stream as a fault of its connection says.
fn edit_connection(script: &mut Script, fault: &Fault) {
    match (fault.kind, fault.after) {
        (FaultKind::Stall, Some(after)) => script.pause(after as usize, error::stall(fault)),
        (FaultKind::Reset, Some(after)) => {
            script.cut(after as usize);
            script.end_with(Ending::Reset);
        }
        (FaultKind::Truncated, after) => {
            script.cut(after.unwrap_or(error::EVENTS_BEFORE_FAULT) as usize);
            if fault.closed {
                script.end_with(Ending::Closed);
            }
        }
        _ => {}
    }
}

fn json_reply(status: StatusCode, value: &Value) -> Response<ReplyBody> {
    reply(status, "application/json", value.to_string())
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
