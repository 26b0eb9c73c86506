//! Decides who asks the admin listener, and whether he may: by the token that he shows.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Request, header};
use hyper::body::Incoming;
use tidegate_core::config::AdminRole;
use tidegate_watch::audit::{Kind, Record};

use crate::refusal::OwnReply;
use crate::shared::Shared;
use crate::token;

/// Who has the token that this process made or was given.
const LOCAL: &str = "local";

/// One who showed a token that is known.
#[derive(Clone, Debug)]
pub(super) struct Who {
    /// As in `[[admin]]`; `local` with the state directory's token or `TIDEGATE_ADMIN_TOKEN`.
    pub(super) name: Arc<str>,
    pub(super) role: AdminRole,
    /// Where he asks from.
    pub(super) peer: IpAddr,
    /// Hash of the token that he showed.
    pub(super) shown: [u8; 32],
}

/// Who shows a token in these headers. One who guesses is held up, and the trail tells of him.
pub(super) fn authenticated(shared: &Shared, request: &Request<Incoming>, peer: IpAddr) -> Result<Who, Box<OwnReply>> {
    let Some(shown) = bearer(request.headers()).map(token::secret_digest) else {
        return Err(Box::new(OwnReply::unauthorized(
            "the admin listener wants Authorization: Bearer TOKEN; the token is in the state directory's admin-token",
        )));
    };
    let owner = owner(shared, &shown);
    if let Err(wait) = shared.attempts.check(peer, owner.as_ref().map(|_| &shown)) {
        denied(shared, request, peer, None);
        return Err(Box::new(OwnReply::too_many_attempts(wait)));
    }
    let Some((name, role)) = owner else {
        denied(shared, request, peer, Some(&shown));
        return Err(Box::new(OwnReply::unauthorized("this token is none that the admin listener knows")));
    };
    shared.attempts.succeeded(peer, &shown);
    Ok(Who { name, role, peer, shown })
}

/// Whose token has this hash now.
pub(super) fn owner(shared: &Shared, shown: &[u8; 32]) -> Option<(Arc<str>, AdminRole)> {
    let settings = shared.settings.load();
    let admins = &settings.config.admins;
    let known = admins.iter().map(|admin| &admin.sha256).chain([&shared.admin_token]);
    let position = token::position(shown, known)?;
    Some(match admins.get(position) {
        Some(admin) => (admin.name.clone(), admin.role),
        None => (LOCAL.into(), AdminRole::Operator),
    })
}

/// Tells the trail and the log of a token that is none.
fn denied(shared: &Shared, request: &Request<Incoming>, peer: IpAddr, shown: Option<&[u8; 32]>) {
    let attempts = shared.attempts.failed(peer, shown);
    if attempts == 0 {
        return;
    }
    let why = format!("wrong token for {}", said(request));
    tracing::warn!("admin listener: {why}, from {peer}, {attempts} times");
    let who = Some(peer.to_string().into());
    let record = Record { who, why: Some(why.into()), ..Record::new(Kind::Override, "denied") };
    shared.audit.note(record.with("attempts", attempts));
}

fn said(request: &Request<Incoming>) -> String {
    let path: String = request.uri().path().chars().take(120).collect();
    format!("{} {path}", request.method())
}

impl Who {
    /// Lets him past who has the role, or more.
    pub(super) fn check(
        &self,
        wanted: AdminRole,
        shared: &Shared,
        request: &Request<Incoming>,
    ) -> Result<(), Box<OwnReply>> {
        if self.role >= wanted {
            return Ok(());
        }
        let why = format!("the role {} is too little for {}", self.role.name(), said(request));
        let (who, why) = (Some(self.name.clone()), Some(why.into()));
        shared.audit.note(Record { who, why, ..Record::new(Kind::Override, "denied") });
        Err(Box::new(OwnReply::forbidden(format!(
            "\"{}\" has the role {}; this wants {}, which its [[admin]] can be given",
            self.name,
            self.role.name(),
            wanted.name()
        ))))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, secret) = value.split_at_checked("bearer ".len())?;
    let secret = secret.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !secret.is_empty()).then_some(secret)
}
