//! Decides how an answer of the admin listener is written: JSON mostly, never kept by anybody on the way.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::refusal::OwnReply;
use crate::reply::ReplyBody;

/// What an endpoint answers.
pub(super) type Answer = Result<Response<ReplyBody>, Box<OwnReply>>;

/// `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value)
        .map_err(|error| Box::new(OwnReply::bad_request(format!("the answer cannot be written: {error}"))))?;
    Ok(written(body))
}

/// JSON that is written already.
pub(super) fn written(body: impl Into<Bytes>) -> Response<ReplyBody> {
    text(StatusCode::OK, "application/json", body)
}

/// A body of any kind.
pub(super) fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
