//! Decides what goes back to a caller: a body of our own or the upstream's, and the headers that every reply carries.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::body::BodyFault;
use crate::headers;
use crate::say::millis_up;
use crate::told::Telling;

pub(crate) use crate::attempt::passing::Passing;

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// All of it is here.
    Whole(Option<Bytes>),
    /// The upstream's, passed on as it comes.
    Passing(Box<Passing>),
    /// What happens, told as it happens.
    Told(Telling),
}

impl ReplyBody {
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(crate) fn full(body: Bytes) -> Self {
        Self::Whole(Some(body).filter(|body| !body.is_empty()))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Passing(body) => body.poll_frame(context),
            Self::Told(telling) => telling.poll_piece(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Passing(body) => body.is_end_stream(),
            Self::Told(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Passing(body) => body.size_hint(),
            Self::Told(_) => SizeHint::default(),
        }
    }
}

/// What every reply says of its call.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    id: Arc<str>,
    pub(crate) attempts: u32,
    pub(crate) queued_for: Duration,
}

impl Stamp {
    pub(crate) fn new(id: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), attempts: 0, queued_for: Duration::ZERO }
    }

    /// With the caller's own identifier, if it is one, else a made one.
    pub(crate) fn for_call(headers: &HeaderMap) -> Self {
        let given = headers::text(headers, &headers::ID).filter(|id| is_id(id));
        given.map_or_else(|| Self::new(made_id()), Self::new)
    }

    pub(crate) fn id(&self) -> Arc<str> {
        self.id.clone()
    }

    pub(crate) fn id_value(&self) -> HeaderValue {
        // It is letters, digits, `_` and `-`.
        HeaderValue::from_str(&self.id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }

    pub(crate) fn put_on(&self, headers: &mut HeaderMap) {
        headers.insert(headers::ID, self.id_value());
        headers.insert(headers::ATTEMPTS, headers::number(u64::from(self.attempts)));
        let queued_ms = if self.queued_for.is_zero() { 0 } else { millis_up(self.queued_for) };
        headers.insert(headers::QUEUED_MS, headers::number(queued_ms));
    }
}

/// `[A-Za-z0-9_-]{1,64}`.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// `call_` and 22 letters and digits: 130 random bits, so that no two calls of any process share one.
fn made_id() -> Arc<str> {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut id = *b"call_----------------------";
    for letter in &mut id[5..] {
        *letter = LETTERS[fastrand::usize(..LETTERS.len())];
    }
    Arc::from(String::from_utf8_lossy(&id).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_that_is_none_is_replaced() {
        let id_for = |given: &'static str| {
            let headers = HeaderMap::from_iter([(headers::ID, HeaderValue::from_static(given))]);
            Stamp::for_call(&headers).id().to_string()
        };
        assert_eq!(id_for("job_42-a"), "job_42-a");
        for given in ["", "a b", "a/b", &"a".repeat(65)] {
            let given: &'static str = given.to_owned().leak();
            assert!(is_id(&id_for(given)) && id_for(given) != given, "{given}");
        }
    }

    #[test]
    fn made_identifiers_are_valid_and_differ() {
        let (one, other) = (made_id(), made_id());
        assert!(is_id(&one) && is_id(&other) && one != other);
    }
}
