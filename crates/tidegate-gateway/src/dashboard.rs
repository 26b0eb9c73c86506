//! Decides how the dashboard's files are served: built in, to anybody under any Host, and allowed nothing beyond themselves.
//!
//! They hold no data: the page asks for that with a token, as any client of the admin listener.
//! Source: Content Security Policy Level 3 (<https://www.w3.org/TR/CSP3/>).

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};

use crate::reply::ReplyBody;
use crate::token::{digest, fingerprint};

/// One file.
struct File {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! file {
    ($path:literal, $kind:literal, $name:literal) => {
        File { path: $path, kind: $kind, bytes: include_bytes!(concat!("../dashboard/", $name)) }
    };
}

const FILES: [File; 15] = [
    file!("/", "text/html; charset=utf-8", "index.html"),
    file!("/dashboard/style.css", "text/css; charset=utf-8", "style.css"),
    file!("/dashboard/icon.svg", "image/svg+xml", "icon.svg"),
    file!("/dashboard/app.js", "text/javascript; charset=utf-8", "app.js"),
    file!("/dashboard/charts.js", "text/javascript; charset=utf-8", "charts.js"),
    file!("/dashboard/dom.js", "text/javascript; charset=utf-8", "dom.js"),
    file!("/dashboard/link.js", "text/javascript; charset=utf-8", "link.js"),
    file!("/dashboard/orders.js", "text/javascript; charset=utf-8", "orders.js"),
    file!("/dashboard/refused.js", "text/javascript; charset=utf-8", "refused.js"),
    file!("/dashboard/theme.js", "text/javascript; charset=utf-8", "theme.js"),
    file!("/dashboard/trail.js", "text/javascript; charset=utf-8", "trail.js"),
    file!("/dashboard/verdict.js", "text/javascript; charset=utf-8", "verdict.js"),
    file!("/dashboard/views.js", "text/javascript; charset=utf-8", "views.js"),
    file!("/dashboard/uPlot.js", "text/javascript; charset=utf-8", "uplot/uPlot.iife.min.js"),
    file!("/dashboard/uPlot.css", "text/css; charset=utf-8", "uplot/uPlot.min.css"),
];

/// Nothing from elsewhere, nothing within the page's text, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Whether there is a file at `path`.
pub(crate) fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The file at `path`. `None`: there is none, or it is not to be read.
pub(crate) fn file(method: &Method, path: &str, headers: &HeaderMap) -> Option<Response<ReplyBody>> {
    let file = FILES.iter().find(|file| file.path == path)?;
    if method != Method::GET && method != Method::HEAD {
        return None;
    }
    let tag = HeaderValue::try_from(format!("\"{}\"", fingerprint(&digest(&[file.bytes])))).ok()?;
    let is_known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag);
    let body = if is_known { ReplyBody::empty() } else { ReplyBody::full(Bytes::from_static(file.bytes)) };
    let mut response = Response::new(body);
    *response.status_mut() = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let head = response.headers_mut();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.kind));
    // Another version may answer next: it is asked each time, and says mostly that nothing has changed.
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.insert(header::ETAG, tag);
    head.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    head.insert(OPENER, HeaderValue::from_static("same-origin"));
    Some(response)
}
