//! Decides how a caller's body is taken: metered ones whole and within bounds, all others piece by piece as they come.
//!
//! A compressed body is read decompressed, and goes on so, with `content-encoding` taken away: what is sent is exactly what
//! was judged, so that nothing can hide in a second member or behind trailing bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::HeaderMap;
use http::header;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep};

use crate::refusal::OwnReply;
use crate::room::Held;

/// A caller that sends nothing for so long while its body is awaited is given up.
pub(crate) const BODY_IDLE: Duration = Duration::from_secs(60);
/// Slower than this on the whole, after that, it is not awaited.
const SLOWEST_BYTES_PER_SECOND: usize = 16 << 10;
/// Bodies of calls that are not metered are kept up to this, to be sent again; larger ones stream through.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Reserved at once for a body that says how long it is; the rest as it comes, so that nobody gets memory for a promise.
const RESERVED_MAX: usize = 1 << 20;
/// A compressed body above this is unpacked off the runtime's threads.
const UNPACKED_HERE_MAX: usize = 16 << 10;
/// What is still read of a body whose call is refused, so that the caller gets to see the answer.
const DRAINED_FOR: Duration = Duration::from_secs(5);

/// Why a body broke off.
#[derive(Debug)]
pub(crate) enum BodyFault {
    /// The other side's connection.
    Peer(hyper::Error),
    /// Nothing came for too long.
    Silent(Duration),
    /// The call's own time is up.
    OutOfTime,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(_) => f.write_str("the connection broke off within a body"),
            Self::Silent(idle) => write!(f, "nothing came for {}", crate::say::Spoken(*idle)),
            Self::OutOfTime => f.write_str("the call's time is up"),
        }
    }
}

impl std::error::Error for BodyFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Peer(error) => Some(error),
            Self::Silent(_) | Self::OutOfTime => None,
        }
    }
}

/// The next frame, or nothing by `deadline`. No timer is made where the frame is there already.
pub(crate) async fn next_frame(
    body: &mut Incoming,
    deadline: Option<Instant>,
) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Late> {
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(move |context| {
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) {
            return Poll::Ready(Ok(frame));
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().poll(context).map(|()| Err(Late))
    })
    .await
}

/// What `future` comes to, unless it takes beyond `deadline`.
pub(crate) async fn in_time<F: Future>(future: F, deadline: Option<Instant>) -> Result<F::Output, Late> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.map_err(|_| Late),
    }
}

/// Nothing came in time.
#[derive(Debug)]
pub(crate) struct Late;

/// Reads a metered body whole; decompressed if it is compressed, whose header is then taken away.
pub(crate) async fn read_whole(
    mut body: Incoming,
    headers: &mut HeaderMap,
    bytes_max: u64,
    held: Held<'_>,
) -> Result<Bytes, Box<OwnReply>> {
    let read = if body.size_hint().lower() > bytes_max {
        Err(Stop::Refused(OwnReply::too_large_body(bytes_max)))
    } else {
        collect(&mut body, bytes_max, held).await
    };
    let read = match read {
        Ok(read) => read,
        Err(stop) => return Err(stop.told(body, bytes_max)),
    };
    headers.remove(header::CONTENT_LENGTH);
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(read) };
    match encoding.as_bytes().trim_ascii() {
        encoding if encoding.eq_ignore_ascii_case(b"identity") => {
            headers.remove(header::CONTENT_ENCODING);
            Ok(read)
        }
        encoding if encoding.eq_ignore_ascii_case(b"gzip") || encoding.eq_ignore_ascii_case(b"x-gzip") => {
            headers.remove(header::CONTENT_ENCODING);
            unpack(read, bytes_max).await
        }
        encoding => {
            let encoding: String = String::from_utf8_lossy(encoding).chars().take(40).collect();
            let message = format!("content-encoding \"{encoding}\" cannot be read here; send gzip or none");
            Err(Box::new(OwnReply::invalid_body(message)))
        }
    }
}

/// True if the body tells its length, and that is little enough to be kept for another attempt.
pub(crate) fn is_small(body: &Incoming) -> bool {
    body.size_hint().exact().is_some_and(|length| length <= SMALL_BYTES_MAX)
}

/// All of a body that [`is_small`], as it comes.
pub(crate) async fn read_small(mut body: Incoming, held: Held<'_>) -> Result<Bytes, Box<OwnReply>> {
    match collect(&mut body, SMALL_BYTES_MAX, held).await {
        Ok(read) => Ok(read),
        Err(stop) => Err(stop.told(body, SMALL_BYTES_MAX)),
    }
}

/// Why a body is not read to its end.
enum Stop {
    /// More of it may come, but is not wanted.
    Refused(OwnReply),
    /// No more of it comes.
    Broken(OwnReply),
}

impl Stop {
    /// The answer; its sender gets to see it.
    fn told(self, body: Incoming, bytes_max: u64) -> Box<OwnReply> {
        match self {
            Self::Refused(own) => {
                drain(body, bytes_max);
                Box::new(own)
            }
            Self::Broken(own) => Box::new(own),
        }
    }
}

async fn collect(body: &mut Incoming, bytes_max: u64, mut held: Held<'_>) -> Result<Bytes, Stop> {
    let mut first: Option<Bytes> = None;
    let mut joined: Option<BytesMut> = None;
    let mut length = 0;
    let started_at = Instant::now();
    loop {
        // Only made into a timer where the body is not here yet.
        let deadline = (!body.is_end_stream()).then(|| {
            // A client that sends a byte now and then must not hold memory for as long as it likes.
            let at_least_so_fast = BODY_IDLE + Duration::from_secs((length / SLOWEST_BYTES_PER_SECOND) as u64);
            (Instant::now() + BODY_IDLE).min(started_at + at_least_so_fast)
        });
        let frame = match next_frame(body, deadline).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(Stop::Broken(OwnReply::invalid_body("the connection broke off within the body")));
            }
            Err(Late) => return Err(Stop::Broken(OwnReply::body_stalled(BODY_IDLE))),
        };
        let Ok(piece) = frame.into_data() else { continue };
        length += piece.len();
        if length as u64 > bytes_max {
            return Err(Stop::Refused(OwnReply::too_large_body(bytes_max)));
        }
        if !held.grow(length as u64) {
            return Err(Stop::Refused(OwnReply::no_room()));
        }
        match (&mut first, &mut joined) {
            (None, _) => first = Some(piece),
            (Some(_), Some(joined)) => joined.extend_from_slice(&piece),
            (Some(first), None) => {
                let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
                let mut buffer = BytesMut::with_capacity(length.saturating_add(expected).min(RESERVED_MAX).max(length));
                buffer.extend_from_slice(first);
                buffer.extend_from_slice(&piece);
                joined = Some(buffer);
            }
        }
    }
    Ok(joined.map(BytesMut::freeze).or(first).unwrap_or_default())
}

async fn unpack(packed: Bytes, bytes_max: u64) -> Result<Bytes, Box<OwnReply>> {
    if packed.len() <= UNPACKED_HERE_MAX {
        return unpack_now(&packed, bytes_max);
    }
    let unpacked = tokio::task::spawn_blocking(move || unpack_now(&packed, bytes_max)).await;
    unpacked.unwrap_or_else(|_| Err(Box::new(OwnReply::invalid_body("the body could not be unpacked"))))
}

fn unpack_now(packed: &[u8], bytes_max: u64) -> Result<Bytes, Box<OwnReply>> {
    let mut unpacked = Vec::new();
    // One more than allowed shows that there is more, however much that would be.
    let read = MultiGzDecoder::new(packed).take(bytes_max.saturating_add(1)).read_to_end(&mut unpacked);
    match read {
        Ok(length) if length as u64 > bytes_max => Err(Box::new(OwnReply::too_large_body(bytes_max))),
        Ok(_) => Ok(unpacked.into()),
        Err(_) => Err(Box::new(OwnReply::invalid_body("the body says content-encoding: gzip but is no valid gzip"))),
    }
}

/// Reads on for a while beside the answer: a connection that is closed with unread data is reset, and the answer with it.
pub(crate) fn drain(mut body: Incoming, bytes_max: u64) {
    if body.is_end_stream() {
        return;
    }
    let mut left = bytes_max.max(1 << 20);
    let read_on = async move {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            if left == 0 {
                return;
            }
        }
    };
    // Whether it ends in time makes no difference: the connection is closed either way.
    tokio::spawn(tokio::time::timeout(DRAINED_FOR, read_on));
}

/// `body`, a JSON object, with `model` as its model. `None` if it is no object, which a body that was read cannot be.
///
/// Every other value stays as it was written; keys come out in another order.
pub(crate) fn with_model(body: &[u8], model: &str) -> Option<Bytes> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).ok()?;
    fields.insert("model".to_owned(), serde_json::value::to_raw_value(model).ok()?);
    serde_json::to_vec(&fields).ok().map(Bytes::from)
}

/// What is sent to an upstream.
#[derive(Debug)]
pub(crate) enum SendBody {
    /// All of it is here.
    Whole(Option<Bytes>),
    /// The caller's, passed on as it comes.
    Passing(Box<PassingUp>),
}

/// A caller's body that is passed on as it comes, as whoever has it sent sees it.
#[derive(Debug)]
pub(crate) struct Passage {
    /// Set where it was the caller that broke off, so that the upstream is not blamed.
    pub(crate) caller_failed: AtomicBool,
    /// The body, until it is sent, and again where that ended before anything of it was asked for.
    unbegun: Mutex<Option<Incoming>>,
}

impl Passage {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { caller_failed: AtomicBool::new(false), unbegun: Mutex::new(Some(body)) }
    }

    /// True while nothing of it has been sent, so that it can be sent elsewhere.
    pub(crate) fn is_unbegun(&self) -> bool {
        self.unbegun.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn put(&self, body: Option<Incoming>) -> Option<Incoming> {
        std::mem::replace(&mut *self.unbegun.lock().unwrap_or_else(PoisonError::into_inner), body)
    }
}

/// A caller's body on its way.
#[derive(Debug)]
pub(crate) struct PassingUp {
    /// `None`: it has begun before, and ends here.
    body: Option<Incoming>,
    is_begun: bool,
    timer: Option<Pin<Box<Sleep>>>,
    passage: Arc<Passage>,
}

impl Drop for PassingUp {
    fn drop(&mut self) {
        if !self.is_begun {
            self.passage.put(self.body.take());
        }
    }
}

impl SendBody {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self::Whole(Some(body).filter(|body| !body.is_empty()))
    }

    /// Passes on what comes through `passage`.
    pub(crate) fn passing(passage: &Arc<Passage>) -> Self {
        let body = passage.put(None);
        Self::Passing(Box::new(PassingUp { body, is_begun: false, timer: None, passage: passage.clone() }))
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Passing(passing) => passing.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Passing(passing) => passing.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Passing(passing) => passing.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
        }
    }
}

impl PassingUp {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        self.is_begun = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(frame) => {
                self.timer = None;
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|error| {
                        self.passage.caller_failed.store(true, Ordering::Relaxed);
                        BodyFault::Peer(error)
                    })
                }))
            }
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_IDLE)));
                timer.as_mut().poll(context).map(|()| {
                    self.passage.caller_failed.store(true, Ordering::Relaxed);
                    Some(Err(BodyFault::Silent(BODY_IDLE)))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_small_body_that_unpacks_to_a_huge_one_is_refused() {
        let bomb = packed(&vec![b' '; 1 << 20]);
        assert!(bomb.len() < 8192);
        assert_eq!(unpack_now(&bomb, 4096).unwrap_err().status, 413);
        assert_eq!(unpack_now(&bomb, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn only_the_model_changes_when_it_is_renamed() {
        let body = br#"{"model":"gpt-4o","seed":12345678901234567890,"x":{"b":1.0,"a":[1e3]}}"#;
        let renamed = with_model(body, "my \"deployment\"").unwrap();
        let expected = r#"{"model":"my \"deployment\"","seed":12345678901234567890,"x":{"b":1.0,"a":[1e3]}}"#;
        assert_eq!(renamed, expected);
    }

    #[test]
    fn every_member_is_read_and_a_broken_one_is_an_error() {
        let two = [packed(b"{\"a\":"), packed(b"1}")].concat();
        assert_eq!(unpack_now(&two, 100).unwrap(), "{\"a\":1}");
        assert_eq!(unpack_now(&two[..two.len() - 3], 100).unwrap_err().status, 400);
        assert_eq!(unpack_now(b"{}", 100).unwrap_err().status, 400);
    }
}
