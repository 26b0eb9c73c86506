//! Decides what web pages of `server.allowed_origins` are told, so that their browser lets them call and read (CORS).
//!
//! Answers a browser's preflight, which carries no credential, and names the page's origin on every reply to it: never `*`, and
//! nobody else's. Who may call at all is for `guard`, which refuses all other pages, and for the credential.
//! Source: Fetch standard, §3.3 (<https://fetch.spec.whatwg.org/#http-cors-protocol>).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::guard::Guard;
use crate::proxy;
use crate::reply::ReplyBody;
use crate::shared::Shared;

/// What a page may read of a reply beside its content type.
const EXPOSED: &str = "retry-after, retry-after-ms, x-request-id, x-should-retry, x-tidegate-id, x-tidegate-attempts, \
                       x-tidegate-queued-ms, x-tidegate-reason, x-tidegate-limit, x-ratelimit-limit-requests, \
                       x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, \
                       x-ratelimit-reset-requests, x-ratelimit-reset-tokens";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
/// Seconds for which a browser need not ask again: an origin that is taken off the list is refused by the call itself.
const PREFLIGHT_HOLDS_FOR: &str = "600";

/// Answers one request of the API listener.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    local: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    // Few calls are a page's.
    if !request.headers().contains_key(header::ORIGIN) {
        return proxy::serve(shared, local, request).await;
    }
    let settings = shared.settings.load_full();
    let Some(page) = Page::of(&settings.guard, request.headers()) else {
        return proxy::serve(shared, local, request).await;
    };
    if is_preflight(&request) && settings.guard.check(request.uri(), request.headers(), local).is_ok() {
        return Ok(page.may_ask(request.headers()));
    }
    let mut reply = proxy::serve(shared, local, request).await?;
    page.may_read(reply.headers_mut());
    Ok(reply)
}

/// A page of an allowed origin.
#[derive(Debug)]
struct Page {
    origin: HeaderValue,
}

impl Page {
    /// `None`: the request is nobody's page, or one of another origin.
    fn of(guard: &Guard, headers: &HeaderMap) -> Option<Self> {
        let origin = headers.get(header::ORIGIN)?;
        guard.allows_origin(origin.to_str().ok()?).then(|| Self { origin: origin.clone() })
    }

    /// The answer to a preflight: any method, and whatever headers it wants to send.
    fn may_ask(self, asked: &HeaderMap) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        // By name: `*` would not stand for `authorization`.
        if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_HOLDS_FOR));
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        response
    }

    /// Lets the page read a reply, ours or the upstream's, which cannot know of the page.
    fn may_read(self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        headers.append(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

/// A browser asks on a page's behalf whether it may call.
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}
