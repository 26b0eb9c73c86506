//! Decides what the admin listener answers: health, metrics, and to who has a token, how everything stands.
//!
//! An endpoint is a variant and a row in `endpoints` (method, path, which role may ask), an arm in [`answer`] below, and a function
//! from [`Ask`] to [`Answer`](answer::Answer) in the file of its group. Who asks has been let past by then: an endpoint checks no token.

mod answer;
mod endpoints;
mod open;
mod standing;
mod who;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use self::answer::Answer;
use self::endpoints::{Endpoint, Found, find};
use crate::audit::page;
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::Shared;
use crate::told;

pub(crate) use self::open::health;

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
    if let Some(health) = health(&shared, request.method(), request.uri().path()) {
        return Ok(health);
    }
    let answer = match let_past(shared, ends, request) {
        Ok((endpoint, ask)) => answer(endpoint, ask).await,
        Err(own) => Err(own),
    };
    Ok(answer.unwrap_or_else(|own| own.into_response(&stamp)))
}

/// One arm for each endpoint.
async fn answer(endpoint: Endpoint, ask: Ask) -> Answer {
    match endpoint {
        Endpoint::Metrics => open::metrics(&ask),
        Endpoint::Status => standing::status(&ask),
        Endpoint::Events => told::answer(&ask.shared, ask.request.uri().query().unwrap_or(""), ask.request.headers()),
        Endpoint::Explain => standing::explain(&ask),
        Endpoint::Audit => {
            page::answer(&ask.shared, ask.request.uri().query().unwrap_or("")).await.map(answer::written)
        }
    }
}

/// The endpoint, if it is there and this caller may ask it.
fn let_past(shared: Arc<Shared>, ends: Ends, request: Request<Incoming>) -> Result<(Endpoint, Ask), Box<OwnReply>> {
    let path = request.uri().path();
    let found = find(request.method(), path);
    let wants = if let Found::Endpoint(row, _) = found { row.wants } else { Some(Default::default()) };
    if let Some(role) = wants {
        shared.settings.load().guard.check(request.uri(), request.headers(), ends.local)?;
        let who = who::authenticated(&shared, request.headers(), ends.peer)?;
        who.check(role)?;
        tracing::debug!("{} at {} asks for {} {path}", who.name, who.peer, request.method());
    }
    let (row, name) = match found {
        Found::Endpoint(row, name) => (row, name),
        Found::OtherMethods(allowed) => return Err(Box::new(OwnReply::wrong_method(request.method(), allowed))),
        Found::Nothing => return Err(Box::new(OwnReply::no_such_admin_path(path))),
    };
    let name = percent_decode_str(name).decode_utf8();
    let name = name.map_err(|_| Box::new(OwnReply::bad_request("the name in the path is no UTF-8")))?.into_owned();
    Ok((row.endpoint, Ask { shared, name, request }))
}
