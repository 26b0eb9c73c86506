//! Decides how the rest of a reply goes to the caller: frame by frame as it comes, watched but never changed or kept back.
//! Only a stream that broke off gets a last event of ours, which says so.
//!
//! Whichever way it ends, the attempt is settled: at its regular end, where it breaks off, and, by a drop guard, where the
//! caller leaves, which also closes the upstream's connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tidegate_core::fault::{Fault, FaultKind};
use tokio::time::{Instant, Sleep};

use super::{Held, Settling, Watch, earliest, words_for};
use crate::body::BodyFault;
use crate::client::Place;
use crate::say::Spoken;

/// What our own last event has as its code where the upstream's stream ended before its end.
const BROKEN: &str = "stream_broken";
/// … and where that did not come in time.
const LATE: &str = "upstream_timeout";

/// A reply on its way.
#[derive(Debug)]
pub(crate) struct Passing {
    held: Held,
    rest: Option<Incoming>,
    watch: Watch,
    settling: Option<Settling>,
    /// Silent for so long, it is broken.
    idle: Option<Duration>,
    /// It is cut off here.
    end: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    last_at: Instant,
    /// Gives the place in its client back.
    _place: Option<Place>,
}

impl Passing {
    pub(crate) fn new(
        held: Held,
        rest: Option<Incoming>,
        watch: Watch,
        settling: Option<Settling>,
        (idle, end): (Option<Duration>, Option<Instant>),
        place: Option<Place>,
    ) -> Self {
        let mut passing =
            Self { held, rest, watch, settling, idle, end, timer: None, last_at: Instant::now(), _place: place };
        // A reply without a body (HEAD, 204) is never asked for a piece of it.
        if passing.rest.as_ref().is_none_or(Body::is_end_stream) {
            passing.ended();
        }
        passing
    }

    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if let Some(piece) = self.next_held() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        match Pin::new(&mut *rest).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let is_end = rest.is_end_stream();
                if let Some(piece) = frame.data_ref() {
                    self.saw(piece.clone());
                }
                if is_end {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.ended();
                Poll::Ready(self.next_held().map(|last| Ok(Frame::data(last))))
            }
            Poll::Ready(Some(Err(error))) => {
                let message = format!("the upstream's stream broke off ({})", words_for(&error));
                self.say(BROKEN, &message);
                self.broke_off(Fault::new(FaultKind::Broken, "the reply broke off"));
                self.last_or(BodyFault::Peer(error))
            }
            Poll::Pending => self.poll_timer(context),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.held.pieces.is_empty() && self.rest.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let held = self.held.bytes as u64;
        let Some(rest) = &self.rest else { return SizeHint::with_exact(held) };
        let rest = rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }

    fn next_held(&mut self) -> Option<Bytes> {
        let piece = self.held.pieces.pop_front()?;
        self.held.bytes -= piece.len();
        Some(piece)
    }

    /// Tells the caller why nothing more will come, if it does not know and can be told.
    fn say(&mut self, code: &'static str, what: &str) {
        let Watch::Stream(stream) = &self.watch else { return };
        if stream.meter.has_ended() || stream.meter.fault().is_some() {
            return;
        }
        let message = format!("tidegate: {what}. It is not tried again, since part of it had been passed on.");
        if let Some(event) = stream.last.say(code, &message) {
            self.held.push(event);
        }
    }

    /// What was said in place of what broke off, else that it did.
    fn last_or(&mut self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        Poll::Ready(Some(self.next_held().map(Frame::data).ok_or(fault)))
    }

    fn saw(&mut self, piece: Bytes) {
        self.last_at = Instant::now();
        match &mut self.watch {
            Watch::Nothing => {}
            Watch::Json(plain) => plain.keep(&piece),
            Watch::Stream(stream) => {
                stream.feed(&piece);
                // Clients close after the last event without waiting for the connection's own end: that is no leaving.
                if stream.meter.has_ended() {
                    let usage = stream.meter.used(self.settling.as_ref().map_or(0, |settling| settling.input_tokens));
                    if let Some(settling) = self.settling.take() {
                        settling.succeeded(Some(usage));
                    }
                }
            }
        }
    }

    /// All of it has come.
    fn ended(&mut self) {
        self.rest = None;
        let Some(settling) = self.settling.take() else { return };
        match &mut self.watch {
            Watch::Nothing => settling.succeeded(None),
            Watch::Json(plain) => settling.succeeded(plain.usage()),
            Watch::Stream(stream) => {
                stream.meter.finish();
                let usage = stream.meter.used(settling.input_tokens);
                match stream.meter.fault() {
                    Some(fault) => settling.cut_short(fault.clone(), Some(usage)),
                    None if stream.is_unread() || stream.meter.is_complete() => {
                        settling.succeeded(Some(usage).filter(|_| !stream.is_unread()));
                    }
                    None => {
                        let fault = Fault::new(FaultKind::Broken, "the stream closed before its last event");
                        settling.cut_short(fault, Some(usage));
                        self.say(BROKEN, "the upstream's stream closed before its last event");
                    }
                }
            }
        }
    }

    fn broke_off(&mut self, fault: Fault) {
        self.rest = None;
        let Some(settling) = self.settling.take() else { return };
        let usage = match &self.watch {
            Watch::Stream(stream) if !stream.is_unread() => Some(stream.meter.used(settling.input_tokens)),
            _ => None,
        };
        settling.cut_short(fault, usage);
    }

    /// Nothing has come: has that been so for too long?
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        loop {
            let silent_at = self.idle.map(|idle| self.last_at + idle);
            let Some(due) = earliest([silent_at, self.end]) else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if due > Instant::now() {
                // It was set before the last piece came: one timer for a whole stream, moved only when it rings.
                timer.as_mut().reset(due);
                continue;
            }
            let (fault, error) = match self.idle.filter(|_| silent_at == Some(due)) {
                Some(idle) => {
                    self.say(LATE, &format!("nothing came of the upstream's stream for {}", Spoken(idle)));
                    (Fault::new(FaultKind::Broken, "the reply fell silent"), BodyFault::Silent(idle))
                }
                None => {
                    self.say(LATE, "the call's time was up before its stream had ended");
                    (Fault::new(FaultKind::Timeout, "the call's time was up"), BodyFault::OutOfTime)
                }
            };
            self.broke_off(fault);
            return self.last_or(error);
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let Some(settling) = self.settling.take() else { return };
        let seen = match &self.watch {
            Watch::Stream(stream) if !stream.is_unread() => Some(stream.meter.used(settling.input_tokens)),
            _ => None,
        };
        settling.cancelled(seen);
    }
}
