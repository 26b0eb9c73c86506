//! Decides what one send came to: a reply to pass on, or a fault with whatever the upstream said.
//!
//! Looks at the beginning of a good reply before its status goes to the caller, so that an error which comes in band is still
//! one that can be tried again. Judges nothing itself: `openai::faults` does.

mod last_event;
pub(crate) mod passing;
mod plain;
mod settling;

use std::collections::VecDeque;
use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use http::{HeaderMap, Request, StatusCode, response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use tidegate::Permit;
use tidegate_core::cost::Usage;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::endpoints::Endpoint;
use tidegate_core::openai::stream::StreamMeter;
use tidegate_core::openai::{faults, headers as server_headers, usage};
use tokio::time::Instant;

use crate::body::{Late, SendBody, in_time, next_frame};
use crate::client::Place;
use crate::headers::{Lookup, of_limits};
use crate::reply::ReplyBody;
use crate::shared::unix_now;
use crate::upstream::Upstream;

use last_event::LastEvent;
use plain::Plain;
pub(crate) use settling::Settling;

/// A status is passed on so long after the reply began, whatever has come by then.
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// So much of a reply is held while it is looked at.
const HELD_BYTES_MAX: usize = 64 << 10;
/// So much of it is looked at for the identifier of what it holds, which comes first.
const BEGINNING_BYTES_MAX: usize = 4 << 10;
/// The rest of an error is awaited for so long.
const ERROR_REST_FOR: Duration = Duration::from_secs(5);

/// The part of a reply that has come and not gone on.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Held {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    /// All of it as the body of a reply.
    pub(crate) fn into_body(mut self) -> ReplyBody {
        if self.pieces.len() <= 1 {
            return ReplyBody::Whole(self.pieces.pop_front());
        }
        ReplyBody::full(self.joined())
    }

    fn joined(&self) -> Bytes {
        if let Some(only) = self.pieces.front().filter(|_| self.pieces.len() == 1) {
            return only.clone();
        }
        let mut joined = BytesMut::with_capacity(self.bytes);
        self.pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        joined.freeze()
    }
}

/// What is watched of a reply as it goes by.
#[derive(Debug)]
pub(crate) enum Watch {
    /// Nothing.
    Nothing,
    /// A stream's events.
    Stream(Box<StreamWatch>),
    /// The usage in a reply of JSON.
    Json(Plain),
}

/// A stream and how it is to be read.
#[derive(Debug)]
pub(crate) struct StreamWatch {
    pub(crate) meter: StreamMeter,
    plain: Plain,
    last: LastEvent,
}

impl StreamWatch {
    /// Its bytes cannot be understood, so that nothing is known of it.
    fn is_unread(&self) -> bool {
        self.plain.is_unreadable()
    }

    fn feed(&mut self, piece: &[u8]) {
        let Self { meter, plain, last } = self;
        last.passed(piece);
        plain.feed(piece, |text| meter.feed(text, |_, _| {}));
    }
}

/// A reply to pass on.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: response::Parts,
    pub(crate) held: Held,
    /// `None`: all of it is held.
    pub(crate) rest: Option<Incoming>,
    pub(crate) watch: Watch,
    /// What all of it, if all of it is held, says that it used.
    pub(crate) usage: Option<Usage>,
    pub(crate) place: Option<Place>,
}

impl Reply {
    /// The beginning of what it says, as far as that is held and can be read.
    pub(crate) fn beginning(&self) -> Vec<u8> {
        let mut plain = Plain::of(&self.head.headers);
        let mut text = Vec::new();
        for piece in &self.held.pieces {
            plain.feed(piece, |read| {
                let room = BEGINNING_BYTES_MAX - text.len();
                text.extend_from_slice(&read[..read.len().min(room)]);
            });
        }
        text
    }
}

/// A send that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) fault: Fault,
    /// What the upstream said, if it said anything.
    pub(crate) reply: Option<Box<Reply>>,
    pub(crate) usage: Option<Usage>,
    pub(crate) may_be_billed: bool,
    /// It was the caller's body that broke off.
    pub(crate) by_caller: bool,
}

/// What one send came to.
#[derive(Debug)]
pub(crate) enum Came {
    Reply(Box<Reply>),
    Failed(Box<Failed>),
}

/// What is known of a send before it is made.
#[derive(Debug)]
pub(crate) struct Sending<'s> {
    pub(crate) upstream: &'s Upstream,
    pub(crate) endpoint: Endpoint,
    /// Whether its reply is looked at.
    pub(crate) is_metered: bool,
    /// The attempt ends here.
    pub(crate) attempt_end: Option<Instant>,
    /// The whole call ends here, if its reply has not begun by then.
    pub(crate) call_end: Option<Instant>,
    pub(crate) caller_failed: &'s AtomicBool,
}

/// When the beginning of a reply came, for whoever measures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadTime {
    pub(crate) head: Option<Instant>,
    /// Of a stream: when its first event came, or when none had come for so long that the status was passed on without.
    pub(crate) first_event: Option<Instant>,
}

impl Sending<'_> {
    /// Sends `request` and looks at what comes.
    pub(crate) async fn send(&self, request: Request<SendBody>, permit: &mut Permit, head_at: &mut HeadTime) -> Came {
        let sent_at = Instant::now();
        permit.sent();
        let (sending, place) = self.upstream.clients.send(request);
        let deadline = earliest([
            self.upstream.config.first_byte_timeout.map(|timeout| sent_at + timeout),
            self.attempt_end,
            self.call_end,
        ]);
        let response = match in_time(sending, deadline).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return self.no_reply(&error),
            Err(Late) => return self.timed_out(sent_at.elapsed(), "no reply"),
        };
        let now = Instant::now();
        head_at.head = Some(now);
        let (head, body) = response.into_parts();
        let told = of_limits(&head.headers);
        if !told.is_empty() {
            permit.observe(&server_headers::server_limits(told.as_slice()));
        }
        let reply = Reply { head, held: Held::default(), rest: Some(body), watch: Watch::Nothing, usage: None, place };
        let status = reply.head.status;
        if status.is_client_error() || status.is_server_error() {
            self.refused(reply, now).await
        } else if !self.is_metered || status != StatusCode::OK {
            Came::Reply(Box::new(reply))
        } else if is_event_stream(&reply.head.headers) {
            let came = self.look_at_stream(reply, now).await;
            head_at.first_event = Some(Instant::now());
            came
        } else {
            self.look_at_json(reply, now).await
        }
    }

    /// An error status: its body says which fault it is.
    async fn refused(&self, mut reply: Reply, head_at: Instant) -> Came {
        if hold(&mut reply, head_at + ERROR_REST_FOR).await.is_err() {
            // The status and what came say enough of the fault.
            tracing::debug!("the reply with the error broke off");
        }
        let said = Plain::of(&reply.head.headers).whole(reply.held.joined());
        let status = reply.head.status.as_u16();
        let fault = faults::classify(status, &Lookup(&reply.head.headers), &said, unix_now());
        let fault = fault.unwrap_or_else(|| Fault::new(FaultKind::Server, "an error").with_status(status));
        failed(fault, Some(reply), None)
    }

    async fn look_at_stream(&self, mut reply: Reply, head_at: Instant) -> Came {
        let plain = Plain::of(&reply.head.headers);
        let last = LastEvent::new(self.endpoint, &reply.head.headers);
        let mut stream = Box::new(StreamWatch { meter: StreamMeter::new(self.endpoint), plain, last });
        let commit_at = head_at + COMMIT_AFTER;
        while let Some(body) = &mut reply.rest {
            match next_frame(body, earliest([Some(commit_at), self.attempt_end])).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    stream.feed(&piece);
                    reply.held.push(piece);
                }
                Ok(Some(Err(error))) => return self.broken(&error, stream.meter.reported()),
                Ok(None) => {
                    stream.meter.finish();
                    reply.rest = None;
                }
                Err(Late) if self.is_over() => return self.timed_out(head_at.elapsed(), "no event"),
                Err(Late) => break,
            }
            let cannot_be_known = stream.is_unread() || reply.held.bytes > HELD_BYTES_MAX;
            if stream.meter.is_committed() || cannot_be_known {
                break;
            }
            if let Some(fault) = stream.meter.fault() {
                let (fault, usage) = (fault.clone(), stream.meter.reported());
                if hold(&mut reply, commit_at).await.is_err() {
                    tracing::debug!("the stream broke off after its error");
                }
                return failed(fault, Some(reply), usage);
            }
            if reply.rest.is_none() {
                if stream.meter.is_complete() {
                    break;
                }
                let fault = Fault::new(FaultKind::Broken, "the stream closed before its first event").with_status(200);
                return failed(fault, None, stream.meter.reported());
            }
        }
        reply.usage = stream.meter.reported();
        reply.watch = Watch::Stream(stream);
        Came::Reply(Box::new(reply))
    }

    async fn look_at_json(&self, mut reply: Reply, head_at: Instant) -> Came {
        if let Err(error) = hold(&mut reply, head_at + COMMIT_AFTER).await {
            return self.broken(&error, None);
        }
        let mut plain = Plain::of(&reply.head.headers);
        if reply.rest.is_some() {
            reply.held.pieces.iter().for_each(|piece| plain.keep(piece));
            reply.watch = Watch::Json(plain);
            return Came::Reply(Box::new(reply));
        }
        let said = plain.whole(reply.held.joined());
        reply.usage = usage::from_json(&said);
        match faults::classify_in_band(&said) {
            Some(fault) => {
                let usage = reply.usage;
                failed(fault, Some(reply), usage)
            }
            None => Came::Reply(Box::new(reply)),
        }
    }

    fn is_over(&self) -> bool {
        self.attempt_end.is_some_and(|end| end <= Instant::now())
    }

    fn timed_out(&self, after: Duration, what: &str) -> Came {
        let summary = format!("{what} in {}", crate::say::Spoken(after));
        failed(Fault::new(FaultKind::Timeout, summary), None, None)
    }

    fn broken(&self, error: &hyper::Error, usage: Option<Usage>) -> Came {
        let fault =
            Fault::new(FaultKind::Broken, format!("the reply broke off ({})", words_for(error))).with_status(200);
        failed(fault, None, usage)
    }

    fn no_reply(&self, error: &legacy::Error) -> Came {
        let by_caller = self.caller_failed.load(Ordering::Relaxed);
        let fault = no_reply(error);
        let mut failed = Failed { fault, reply: None, usage: None, may_be_billed: false, by_caller };
        failed.may_be_billed = failed.fault.kind.may_be_billed();
        Came::Failed(Box::new(failed))
    }
}

fn failed(fault: Fault, reply: Option<Reply>, usage: Option<Usage>) -> Came {
    let may_be_billed = fault.kind.may_be_billed();
    Came::Failed(Box::new(Failed { fault, reply: reply.map(Box::new), usage, may_be_billed, by_caller: false }))
}

/// Holds what comes of a reply until all of it is there, the bound is passed, or `deadline`.
async fn hold(reply: &mut Reply, deadline: Instant) -> Result<(), hyper::Error> {
    while let Some(body) = &mut reply.rest {
        match next_frame(body, Some(deadline)).await {
            Ok(Some(Ok(frame))) => {
                let is_end = body.is_end_stream();
                if let Ok(piece) = frame.into_data() {
                    reply.held.push(piece);
                }
                if is_end {
                    reply.rest = None;
                } else if reply.held.bytes > HELD_BYTES_MAX {
                    break;
                }
            }
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => reply.rest = None,
            Err(Late) => break,
        }
    }
    Ok(())
}

/// The earliest of those that there are.
pub(crate) fn earliest<const N: usize>(instants: [Option<Instant>; N]) -> Option<Instant> {
    instants.into_iter().flatten().min()
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    kind.get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}

/// Why a request got no reply.
pub(crate) fn no_reply(error: &legacy::Error) -> Fault {
    if error.is_connect() {
        return connect_fault(error);
    }
    let words = error.source().and_then(|source| source.downcast_ref()).map_or("no reply", words_for);
    Fault::new(FaultKind::Broken, words)
}

/// Why there was no connection. Only words of ours: errors of TLS may quote the other side.
fn connect_fault(error: &legacy::Error) -> Fault {
    let mut source = error.source();
    let mut words = "no connection";
    let mut kind = FaultKind::Connect;
    while let Some(cause) = source {
        if cause.to_string().starts_with("dns error") {
            kind = FaultKind::Dns;
            words = "the upstream's name does not resolve";
            break;
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            let innermost = innermost(io);
            if innermost.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                words = "the TLS handshake failed";
                break;
            }
            words = words_for_io(innermost);
        }
        source = cause.source();
    }
    Fault::new(kind, words)
}

/// What an error of I/O that wraps others of its kind is about; `source` passes over the wrapped ones.
fn innermost(error: &io::Error) -> &io::Error {
    let mut error = error;
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        error = inner;
    }
    error
}

fn words_for(error: &hyper::Error) -> &'static str {
    if error.is_parse() {
        return "the reply is no valid HTTP";
    }
    if error.is_incomplete_message() {
        return "connection closed before the reply was complete";
    }
    error.source().and_then(|source| source.downcast_ref::<io::Error>()).map_or("connection lost", words_for_io)
}

fn words_for_io(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
        io::ErrorKind::TimedOut => "connecting timed out",
        io::ErrorKind::UnexpectedEof => "connection closed before the reply was complete",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "the upstream cannot be reached",
        _ => "no connection",
    }
}
