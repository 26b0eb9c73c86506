//! Decides when a reply has ended, and tells whoever waits for that: limits, which are then settled, and breakers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tidegate_core::cost::Usage;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::stream::StreamMeter;
use tidegate_core::openai::usage;
use tidegate_core::outcome::{Ending, Outcome};

use super::idle::Idle;
use crate::breaker::BreakerAttempt;
use crate::calibrations::Lesson;
use crate::driver::Permit;
use crate::error::BoxError;

/// Of a reply of JSON that goes by so much is kept to find its usage at the end.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// Of a larger one the end, where embeddings have it.
const TAIL_BYTES: usize = 4 << 10;

/// A body of which a part has been read.
#[derive(Debug)]
pub(crate) struct HeldBody<B> {
    pub(crate) held: VecDeque<Bytes>,
    pub(crate) held_bytes: usize,
    /// What comes after all that is held.
    trailers: Option<HeaderMap>,
    /// `None`: all of it is held.
    pub(crate) rest: Option<Pin<Box<B>>>,
}

impl<B: Body<Data = Bytes>> HeldBody<B> {
    pub(crate) fn new(body: B) -> Self {
        let rest = (!body.is_end_stream()).then(|| Box::pin(body));
        Self { held: VecDeque::new(), held_bytes: 0, trailers: None, rest }
    }

    /// Reads one more frame and holds its data. False: there is none.
    pub(crate) async fn hold_next(&mut self) -> Result<bool, B::Error> {
        let Some(rest) = &mut self.rest else { return Ok(false) };
        match std::future::poll_fn(|context| rest.as_mut().poll_frame(context)).await {
            Some(Ok(frame)) => {
                let is_more = frame.is_data();
                match frame.into_data() {
                    Ok(piece) => {
                        self.held_bytes += piece.len();
                        self.held.push_back(piece);
                    }
                    // Nothing comes after them.
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.rest = None;
                    }
                }
                Ok(is_more)
            }
            Some(Err(error)) => Err(error),
            None => {
                self.rest = None;
                Ok(false)
            }
        }
    }

    /// All that is held, in one piece.
    pub(crate) fn joined(&self) -> Bytes {
        match self.held.front() {
            Some(only) if self.held.len() == 1 => only.clone(),
            _ => join(&self.held),
        }
    }
}

fn join(pieces: &VecDeque<Bytes>) -> Bytes {
    pieces.iter().flat_map(|piece| piece.iter().copied()).collect()
}

/// What is looked for in a reply as it goes by.
#[derive(Debug)]
pub(crate) enum Watch {
    /// Nothing: it tells of no usage.
    Nothing,
    /// Events.
    Stream(Box<StreamMeter>),
    /// Usage, somewhere in it; its end is kept.
    Json(VecDeque<Bytes>, usize),
    /// Its usage is known.
    Read(Option<Usage>),
}

impl Watch {
    /// Takes note of a piece of which nothing has been seen yet.
    pub(crate) fn see(&mut self, piece: &Bytes) {
        match self {
            Self::Nothing | Self::Read(_) => {}
            Self::Stream(meter) => meter.feed(piece, |_, _| {}),
            Self::Json(kept, bytes) => {
                *bytes += piece.len();
                kept.push_back(piece.clone());
                while *bytes > KEPT_BYTES_MAX
                    && let Some(first) = kept.front().filter(|first| *bytes - first.len() >= TAIL_BYTES)
                {
                    *bytes -= first.len();
                    kept.pop_front();
                }
            }
        }
    }
}

/// Whom the end of an attempt is told. Dropped before, the attempt was cancelled.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) permit: Option<Permit>,
    pub(crate) attempt: Option<BreakerAttempt>,
    pub(crate) first_byte_after: Option<Duration>,
    /// What is learned from the use that it tells.
    pub(crate) lesson: Option<Lesson>,
    /// How long the reply may be silent. `None`: for ever.
    pub(crate) idle_timeout: Option<Duration>,
}

impl Guard {
    /// `told`: as the reply says, which `usage` may only estimate.
    pub(crate) fn succeeded(&mut self, usage: Option<Usage>, told: Option<Usage>) {
        if let (Some(permit), Some(told)) = (&self.permit, told)
            && let Some(lesson) = self.lesson.take()
        {
            permit.learn(lesson, told.input_tokens);
        }
        self.end(Ending::Success, usage);
        if let Some(attempt) = self.attempt.take() {
            attempt.succeeded();
        }
    }

    fn cut_short(&mut self, fault: &Fault, usage: Option<Usage>) {
        self.end(Ending::CutShort(fault.clone()), usage);
        if let Some(attempt) = self.attempt.take() {
            attempt.failed(fault);
        }
    }

    fn end(&mut self, ending: Ending, usage: Option<Usage>) {
        if let Some(permit) = self.permit.take() {
            // Neither ending leaves anything to be done.
            let _done = permit.settle(Outcome { ending, usage, first_byte_after: self.first_byte_after });
        }
    }

    fn is_armed(&self) -> bool {
        self.permit.is_some() || self.attempt.is_some()
    }
}

/// The body of a reply: the same bytes as they come. When it ends, the call is settled; when it is dropped before, the
/// connection is closed and the call charged with what was seen.
///
/// Its error is the upstream's own, or a [`Fault`] where it was silent for longer than a layer allows.
#[derive(Debug)]
pub struct GuardedBody<B> {
    body: HeldBody<B>,
    watch: Watch,
    guard: Guard,
    idle: Idle,
    /// As estimated: what a stream that tells no usage has read.
    input_tokens: u64,
}

impl<B: Body<Data = Bytes>> GuardedBody<B> {
    pub(crate) fn new(body: HeldBody<B>, watch: Watch, guard: Guard, input_tokens: u64) -> Self {
        let idle = Idle::new(guard.idle_timeout);
        let mut guarded = Self { body, watch, guard, idle, input_tokens };
        guarded.settle_if_over();
        if guarded.body.rest.is_none() {
            guarded.ended();
        }
        guarded
    }

    fn seen(&self) -> Option<Usage> {
        match &self.watch {
            Watch::Nothing | Watch::Json(..) => None,
            Watch::Stream(meter) => Some(meter.used(self.input_tokens)),
            Watch::Read(usage) => *usage,
        }
    }

    fn ended(&mut self) {
        self.body.rest = None;
        if !self.guard.is_armed() {
            return;
        }
        match &mut self.watch {
            Watch::Nothing => self.guard.succeeded(None, None),
            Watch::Read(usage) => self.guard.succeeded(*usage, *usage),
            Watch::Json(kept, _) => {
                let usage = usage::from_json(&join(kept));
                self.guard.succeeded(usage, usage);
            }
            Watch::Stream(meter) => {
                meter.finish();
                let used = Some(meter.used(self.input_tokens));
                match meter.fault() {
                    Some(fault) => self.guard.cut_short(fault, used),
                    None if meter.is_complete() => self.guard.succeeded(used, meter.reported()),
                    None => {
                        let fault = Fault::new(FaultKind::Broken, "the stream closed before its last event");
                        self.guard.cut_short(&fault, used);
                    }
                }
            }
        }
    }

    fn saw(&mut self, piece: &Bytes) {
        self.watch.see(piece);
        self.settle_if_over();
    }

    fn broke_off(&mut self, why: impl Into<Box<str>>) -> Fault {
        self.body.rest = None;
        let (fault, seen) = (Fault::new(FaultKind::Broken, why), self.seen());
        self.guard.cut_short(&fault, seen);
        fault
    }

    fn settle_if_over(&mut self) {
        // Clients close after the last event without waiting for the connection's own end: that is no leaving.
        if let Watch::Stream(meter) = &self.watch
            && meter.has_ended()
        {
            let used = Some(meter.used(self.input_tokens));
            match meter.fault() {
                // Some send their last event after an error as well.
                Some(fault) => self.guard.cut_short(fault, used),
                None => self.guard.succeeded(used, meter.reported()),
            }
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(piece) = this.body.held.pop_front() {
            this.body.held_bytes -= piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = this.body.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let Some(rest) = &mut this.body.rest else { return Poll::Ready(None) };
        let Poll::Ready(frame) = rest.as_mut().poll_frame(context) else {
            let after = std::task::ready!(this.idle.poll_over(context));
            let fault = this.broke_off(format!("the reply was silent for {after:?}"));
            return Poll::Ready(Some(Err(fault.into())));
        };
        this.idle.ended();
        match frame {
            Some(Ok(frame)) => {
                let is_end = rest.is_end_stream();
                if let Some(piece) = frame.data_ref() {
                    let piece = piece.clone();
                    this.saw(&piece);
                }
                if is_end {
                    this.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.broke_off("the reply broke off");
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.ended();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.held.is_empty() && self.body.trailers.is_none() && self.body.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.body.held_bytes as u64;
        let Some(rest) = &self.body.rest else { return SizeHint::with_exact(held) };
        let rest = rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

impl<B> Drop for GuardedBody<B> {
    fn drop(&mut self) {
        let seen = match &self.watch {
            Watch::Stream(meter) => Some(meter.used(self.input_tokens)),
            _ => None,
        };
        if let (Some(permit), Some(seen)) = (&mut self.guard.permit, seen) {
            permit.seen(seen);
        }
    }
}
