//! Decides what the admin listener answers: health, metrics, and to who has a token, how everything stands.
//!
//! An endpoint is a variant and a row in `endpoints` (method, path, which role may ask), an arm in [`answer`] below, and a function
//! from [`Ask`] to [`Answer`](answer::Answer) in the file of its group. Who asks has been let past by then: an endpoint checks no token.

mod answer;
mod attempts;
mod body;
mod endpoints;
mod keys;
mod limits;
mod open;
mod overriding;
mod standing;
mod who;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tidegate_core::config::AdminRole;

use self::answer::Answer;
use self::endpoints::{Endpoint, Found, find};
use crate::alerting;
use crate::audit::page;
use crate::dashboard;
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::Shared;
use crate::told;

pub(crate) use self::attempts::Attempts;
pub use self::body::reason_line;
pub use self::limits::{boost_factor, boost_lasting};
pub(crate) use self::open::health;

/// What who shows a token may do, on every answer that it got him: a page offers nobody what it would be refused for.
const ROLE: HeaderName = HeaderName::from_static("x-tidegate-role");

/// Between whom a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) local: IpAddr,
    pub(crate) peer: IpAddr,
}

/// One request that may be answered.
#[derive(Debug)]
pub(super) struct Ask {
    shared: Arc<Shared>,
    /// Who asks, as in `[[admin]]`; empty where anybody may.
    by: Arc<str>,
    /// The role that he has; the least where anybody may ask.
    role: AdminRole,
    /// Hash of the token that he showed; zeros where anybody may ask.
    shown: [u8; 32],
    /// What stands for `{}` in the endpoint's path.
    name: String,
    request: Request<Incoming>,
}

/// Answers one request of the admin listener.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    ends: Ends,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let stamp = Stamp::for_call(request.headers());
    let file = dashboard::file(request.method(), request.uri().path(), request.headers());
    let mut role = None;
    let answer = match file {
        Some(file) => Ok(file),
        None => match let_past(shared, ends, request) {
            Ok((endpoint, ask)) => {
                role = (!ask.by.is_empty()).then_some(ask.role);
                answer(endpoint, ask).await
            }
            Err(own) => Err(own),
        },
    };
    let mut response = answer.unwrap_or_else(|own| own.into_response(&stamp));
    if response.status() == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Bearer realm=\"tidegate admin\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    if let Some(role) = role {
        response.headers_mut().insert(ROLE, HeaderValue::from_static(role.name()));
    }
    secure(response.headers_mut());
    Ok(response)
}

/// What tells browsers to do nothing with an answer but show it to who asked. A page brings a policy of its own along.
fn secure(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// One arm for each endpoint.
async fn answer(endpoint: Endpoint, ask: Ask) -> Answer {
    match endpoint {
        Endpoint::Health => open::health_of(&ask),
        Endpoint::Description => Ok(answer::written(open::DESCRIPTION)),
        Endpoint::Metrics => open::metrics(&ask),
        Endpoint::Status => standing::status(&ask),
        Endpoint::Events => {
            let (shared, shown) = (ask.shared.clone(), ask.shown);
            let still_may = move || who::owner(&shared, &shown).is_some();
            let query = ask.request.uri().query().unwrap_or("");
            told::answer(&ask.shared, query, ask.request.headers(), ask.role, still_may)
        }
        Endpoint::Explain => standing::explain(&ask),
        Endpoint::Audit => {
            page::answer(&ask.shared, ask.request.uri().query().unwrap_or("")).await.map(answer::written)
        }
        Endpoint::Alerts => alerting::answer(&ask.shared).map(answer::written),
        Endpoint::Breaker(to) => overriding::breaker(ask, to).await,
        Endpoint::ResetLimits => limits::reset_all(ask).await,
        Endpoint::ResetLimit => limits::reset(ask).await,
        Endpoint::BoostLimit => limits::boost(ask).await,
        Endpoint::Pause => overriding::pause(ask).await,
        Endpoint::Resume => overriding::resume(ask).await,
        Endpoint::Reload => overriding::reload(ask).await,
        Endpoint::Keys => keys::list(&ask),
        Endpoint::MakeKey => keys::make(ask).await,
        Endpoint::RevokeKey => keys::revoke(ask).await,
    }
}

/// The endpoint, if it is there and this caller may ask it.
fn let_past(shared: Arc<Shared>, ends: Ends, request: Request<Incoming>) -> Result<(Endpoint, Ask), Box<OwnReply>> {
    let path = request.uri().path();
    let found = find(request.method(), path);
    let wants = if let Found::Endpoint(row, _) = found { row.wants } else { Some(Default::default()) };
    let (mut by, mut role, mut shown) = <(Arc<str>, AdminRole, [u8; 32])>::default();
    if let Some(wanted) = wants {
        shared.settings.load().admin_guard.check(request.uri(), request.headers(), ends.local)?;
        let who = who::authenticated(&shared, &request, ends.peer)?;
        who.check(wanted, &shared, &request)?;
        tracing::debug!("{} at {} asks for {} {path}", who.name, who.peer, request.method());
        (by, role, shown) = (who.name, who.role, who.shown);
    }
    let (row, name) = match found {
        Found::Endpoint(row, name) => (row, name),
        Found::OtherMethods(allowed) => return Err(Box::new(OwnReply::wrong_method(request.method(), allowed))),
        Found::Nothing if dashboard::has(path) => {
            return Err(Box::new(OwnReply::wrong_method(request.method(), "HEAD, GET".to_owned())));
        }
        Found::Nothing => return Err(Box::new(OwnReply::no_such_admin_path(path))),
    };
    let name = percent_decode_str(name).decode_utf8();
    let name = name.map_err(|_| Box::new(OwnReply::bad_request("the name in the path is no UTF-8")))?.into_owned();
    Ok((row.endpoint, Ask { shared, by, role, shown, name, request }))
}
