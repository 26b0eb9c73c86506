//! The layers around a `reqwest::Client`, which is a service already.

use http::HeaderMap;
use reqwest::ResponseBuilderExt as _;
use reqwest::{Body, Request, Response};

use tidegate_core::fault::{Fault, FaultKind};

use super::{AsCall, GuardedBody, Repeatable, Reply};
use crate::call::Call;
use crate::error::BoxError;
use crate::fault::ToFault;

/// Its cost is read from its body, where that is one of OpenAI's and in memory.
impl AsCall for Request {
    async fn call(&self) -> Result<Call, BoxError> {
        Ok(call_of(self))
    }
}

impl Repeatable for Request {
    /// `None`: its body is a stream.
    fn again(&self) -> Option<Self> {
        self.try_clone()
    }
}

pub(crate) fn call_of(request: &Request) -> Call {
    let headers: &HeaderMap = request.headers();
    let body = request.body().and_then(Body::as_bytes).unwrap_or_default();
    Call::of_openai(request.method().as_str(), request.url().path(), body).of_account(headers)
}

impl Reply for Response {
    type Body = Body;
    type Guarded = Self;

    fn into_http(self) -> http::Response<Body> {
        let url = self.url().clone();
        let (mut head, body) = http::Response::<Body>::from(self).into_parts();
        // It is lost on the way otherwise. The builder refuses nothing that has only a URL.
        if let Ok(with_url) = http::response::Builder::new().url(url).body(()) {
            head.extensions.extend(with_url.into_parts().0.extensions);
        }
        http::Response::from_parts(head, body)
    }

    fn from_http(response: http::Response<GuardedBody<Body>>) -> Self {
        Self::from(response.map(Body::wrap))
    }
}

impl ToFault for reqwest::Error {
    fn to_fault(&self) -> Fault {
        let (kind, words) = match self {
            error if error.is_connect() => (FaultKind::Connect, "no connection"),
            error if error.is_timeout() => (FaultKind::Timeout, "no reply in time"),
            error if error.is_builder() => (FaultKind::Invalid, "the request cannot be made"),
            _ => (FaultKind::Broken, "the connection broke off"),
        };
        self.status().map_or_else(|| Fault::new(kind, words), |status| Fault::of_status(status.as_u16()))
    }
}
