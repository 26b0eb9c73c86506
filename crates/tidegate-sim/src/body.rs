//! The body of a reply: whole, cut short on purpose, or a script that is played in time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::exchange::Exchange;
use crate::script::{Ending, Played};
use crate::socket::Reset;

/// A reply's body.
pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    /// The bytes, and then the connection is closed although more was announced.
    Cut {
        bytes: Option<Bytes>,
        written: bool,
    },
    Stream(Box<Stream>),
}

/// The connection is to end here: on purpose.
#[derive(Debug)]
pub(crate) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed by a fault of the scenario")
    }
}

impl std::error::Error for Dropped {}

/// A script being played. Dropped before its end it counts as cancelled by the client.
pub(crate) struct Stream {
    played: Played,
    next: usize,
    sent: usize,
    start: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    exchange: Option<Exchange>,
    reset: Reset,
    yielded: bool,
}

impl ReplyBody {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        ReplyBody::Whole(Some(bytes.into()))
    }

    /// The bytes of a body that is whole and not sent yet.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            ReplyBody::Whole(bytes) => bytes.take(),
            _ => None,
        }
    }

    pub(crate) fn stream(played: Played, exchange: Exchange, reset: Reset) -> Self {
        ReplyBody::Stream(Box::new(Stream {
            played,
            next: 0,
            sent: 0,
            start: Instant::now(),
            sleep: None,
            exchange: Some(exchange),
            reset,
            yielded: false,
        }))
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = Dropped;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Dropped>>> {
        match &mut *self {
            ReplyBody::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            ReplyBody::Cut { bytes, written } => match bytes.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None if *written => Poll::Ready(Some(Err(Dropped))),
                None => written_out(written, cx),
            },
            ReplyBody::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ReplyBody::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Dropped>>> {
        let Some(&(end, due)) = self.played.steps.get(self.next) else {
            if self.played.ending != Ending::Clean && !self.yielded {
                return written_out(&mut self.yielded, cx);
            }
            return Poll::Ready(self.finish());
        };
        let elapsed = self.start.elapsed();
        if due > elapsed {
            ready!(self.wait(due, cx));
        }
        if self.played.apart && self.sent > 0 && !self.yielded {
            return written_out(&mut self.yielded, cx);
        }
        self.yielded = false;
        let mut end = end;
        self.next += 1;
        while let Some(&(further, due)) = self.played.steps.get(self.next)
            && due <= elapsed
            && !self.played.apart
        {
            end = further;
            self.next += 1;
        }
        let frame = self.played.bytes.slice(self.sent..end);
        self.sent = end;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn wait(&mut self, due: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.start + due;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }

    fn finish(&mut self) -> Option<Result<Frame<Bytes>, Dropped>> {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
        match self.played.ending {
            Ending::Clean => None,
            Ending::Closed => Some(Err(Dropped)),
            Ending::Reset => {
                self.reset.store(true, Ordering::Relaxed);
                Some(Err(Dropped))
            }
        }
    }
}

/// Pending for one turn: the server then writes out what it has, so that it leaves before what follows.
fn written_out<T>(done: &mut bool, cx: &mut Context<'_>) -> Poll<T> {
    *done = true;
    cx.waker().wake_by_ref();
    Poll::Pending
}
