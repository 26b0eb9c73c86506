//! Decides who asks the admin listener, and whether he may: by the token that he shows.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, header};
use tidegate_core::config::AdminRole;

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
}

/// Who shows a token in these headers.
pub(super) fn authenticated(shared: &Shared, headers: &HeaderMap, peer: IpAddr) -> Result<Who, Box<OwnReply>> {
    let settings = shared.settings.load();
    let admins = &settings.config.admins;
    let known = admins.iter().map(|admin| &admin.sha256).chain([&shared.admin_token]);
    let shown = bearer(headers).map(token::secret_digest);
    let Some(position) = shown.and_then(|shown| token::position(&shown, known)) else {
        return Err(Box::new(OwnReply::unauthorized(
            "the admin listener wants Authorization: Bearer TOKEN; the token is in the state directory's admin-token",
        )));
    };
    let (name, role) = match admins.get(position) {
        Some(admin) => (admin.name.clone(), admin.role),
        None => (LOCAL.into(), AdminRole::Operator),
    };
    Ok(Who { name, role, peer })
}

impl Who {
    /// Lets him past who has the role, or more.
    pub(super) fn check(&self, wanted: AdminRole) -> Result<(), Box<OwnReply>> {
        if self.role >= wanted {
            return Ok(());
        }
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
