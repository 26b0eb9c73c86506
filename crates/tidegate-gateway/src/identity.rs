//! Decides who calls: by key where keys are configured, else by what the call brings along.
//!
//! With keys, organization and project come from the key alone, and the key itself goes no further than here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::header;
use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_core::call::Priority;
use tidegate_core::config::{KeyConfig, KeyPaths};
use tidegate_core::openai::endpoints::{PathClass, Route};

use crate::headers;
use crate::refusal::OwnReply;
use crate::token;

/// Credentials whose tenant is remembered; beyond that all are forgotten at once and named afresh.
const CREDENTIALS_MAX: usize = 4096;
/// What a client sends that must send something.
const NO_CREDENTIAL: &str = "tidegate";
/// How keys of ours begin. One is never forwarded.
const KEY_PREFIX: &str = "tg-";

/// One who calls, as far as all his calls have it in common.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Name of the key.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) tenant: Arc<str>,
    /// SHA-256 of the credential that may be sent on.
    pub(crate) credential: Option<[u8; 32]>,
    organization: Option<Arc<str>>,
    project: Option<Arc<str>>,
    pub(crate) user: Option<Arc<str>>,
    pub(crate) max_priority: Priority,
    pub(crate) default_priority: Priority,
    pub(crate) may_name_users: bool,
    paths: KeyPaths,
    expires: Option<u64>,
}

/// Who makes one call.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) caller: Arc<Caller>,
    pub(crate) organization: Option<Arc<str>>,
    pub(crate) project: Option<Arc<str>>,
}

/// Who may call.
#[derive(Debug)]
pub(crate) struct Callers {
    /// With the key's SHA-256.
    keys: Vec<([u8; 32], Arc<Caller>)>,
    /// False: anybody.
    needs_key: bool,
    anonymous: Arc<Caller>,
    by_credential: Mutex<HashMap<[u8; 32], Arc<Caller>>>,
}

impl Caller {
    fn without_key(tenant: Arc<str>, credential: Option<[u8; 32]>) -> Self {
        Self {
            key: None,
            tenant,
            credential,
            organization: None,
            project: None,
            user: None,
            max_priority: Priority::High,
            default_priority: Priority::Normal,
            may_name_users: true,
            paths: KeyPaths::All,
            expires: None,
        }
    }

    fn with_key(key: &KeyConfig) -> Self {
        Self {
            key: Some(key.name.clone()),
            tenant: key.organization.as_ref().unwrap_or(&key.name).clone(),
            credential: None,
            organization: key.organization.clone(),
            project: key.project.clone(),
            user: key.user.clone(),
            max_priority: key.max_priority,
            default_priority: key.default_priority,
            may_name_users: key.may_name_users,
            paths: key.paths,
            expires: key.expires,
        }
    }

    /// Whether a key of his allows the path.
    pub(crate) fn may_use(&self, route: &Route<'_>, method: &str) -> Result<(), Box<OwnReply>> {
        if self.paths == KeyPaths::All {
            return Ok(());
        }
        let key = self.key.as_deref().unwrap_or("");
        if route.irregular {
            // Another server may read it as another path, one that is not allowed.
            let message = format!("key \"{key}\" may use plain paths only, without dot segments or doubled slashes");
            return Err(Box::new(OwnReply::forbidden(message)));
        }
        if route.class(method) == PathClass::All {
            let path: String = route.path.chars().take(200).collect();
            let message = format!("key \"{key}\" may not use /v1{path}; an operator can allow it with paths.");
            return Err(Box::new(OwnReply::forbidden(message)));
        }
        Ok(())
    }
}

impl Callers {
    pub(crate) fn new(keys: &[KeyConfig], needs_key: bool) -> Self {
        Self {
            needs_key,
            keys: keys.iter().map(|key| (key.sha256, Arc::new(Caller::with_key(key)))).collect(),
            anonymous: Arc::new(Caller::without_key(Arc::from("anonymous"), None)),
            by_credential: Mutex::default(),
        }
    }

    /// Says who makes the call with these headers; takes out of them what may not be sent on. `unix_now`: seconds since 1970.
    pub(crate) fn identify(&self, headers: &mut HeaderMap, unix_now: u64) -> Result<Identity, Box<OwnReply>> {
        if self.needs_key { self.by_key(headers, unix_now) } else { Ok(self.by_headers(headers)) }
    }

    fn by_key(&self, headers: &mut HeaderMap, unix_now: u64) -> Result<Identity, Box<OwnReply>> {
        let shown = credential(headers).map(token::secret_digest);
        let found = shown.and_then(|shown| token::position(&shown, self.keys.iter().map(|(known, _)| known)));
        let Some((_, caller)) = found.and_then(|position| self.keys.get(position)) else {
            let message = if shown.is_some() {
                "unknown key; send a tidegate key (tg-…), not an OpenAI key."
            } else {
                "no key; send a tidegate key (tg-…) as Authorization: Bearer."
            };
            return Err(Box::new(OwnReply::unauthorized(message)));
        };
        if caller.expires.is_some_and(|expires| expires <= unix_now) {
            let key = caller.key.as_deref().unwrap_or("");
            return Err(Box::new(OwnReply::unauthorized(format!("key \"{key}\" has expired"))));
        }
        remove_credentials(headers);
        // They would choose an organization or project of the shared upstream account.
        headers.remove(headers::ORGANIZATION);
        headers.remove(headers::PROJECT);
        Ok(Identity {
            caller: caller.clone(),
            organization: caller.organization.clone(),
            project: caller.project.clone(),
        })
    }

    fn by_headers(&self, headers: &mut HeaderMap) -> Identity {
        // A key of ours means nothing where none is configured, and to an upstream.
        let forwarded = credential(headers).filter(|secret| !secret.starts_with(KEY_PREFIX.as_bytes()));
        let caller = match forwarded.map(token::secret_digest) {
            Some(digest) => Some(self.with_credential(digest)),
            None => {
                remove_credentials(headers);
                None
            }
        };
        Identity {
            caller: caller.unwrap_or_else(|| self.anonymous.clone()),
            organization: named(headers, &headers::ORGANIZATION),
            project: named(headers, &headers::PROJECT),
        }
    }

    fn with_credential(&self, digest: [u8; 32]) -> Arc<Caller> {
        let mut known = self.by_credential.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = known.get(&digest) {
            return caller.clone();
        }
        if known.len() >= CREDENTIALS_MAX {
            known.clear();
        }
        let tenant = format!("caller-{}", token::fingerprint(&digest));
        let caller = Arc::new(Caller::without_key(tenant.into(), Some(digest)));
        known.insert(digest, caller.clone());
        caller
    }
}

/// A header's value as a name; `None` where it is absent, empty or no text.
pub(crate) fn named(headers: &HeaderMap, name: &HeaderName) -> Option<Arc<str>> {
    headers::text(headers, name).map(str::trim).filter(|value| !value.is_empty()).map(Arc::from)
}

/// The secret that a call brings along, in `Authorization: Bearer` or, as Azure's clients have it, in `api-key`.
fn credential(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(bearer);
    let secret = bearer.or_else(|| headers.get(headers::API_KEY).map(HeaderValue::as_bytes))?;
    let is_none = secret.is_empty() || secret == NO_CREDENTIAL.as_bytes();
    (!is_none).then_some(secret)
}

/// What follows `Bearer`; all of it for other schemes, which are forwarded too.
fn bearer(value: &HeaderValue) -> &[u8] {
    let value = value.as_bytes();
    match value.split_at_checked("bearer ".len()) {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case(b"bearer ") => secret.trim_ascii(),
        _ => value.trim_ascii(),
    }
}

fn remove_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(headers::API_KEY);
}

#[cfg(test)]
mod tests {
    use tidegate_core::openai::endpoints::classify_path;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn billing() -> KeyConfig {
        KeyConfig {
            name: Arc::from("billing"),
            sha256: token::secret_digest(b"tg-secret"),
            organization: Some(Arc::from("acme")),
            expires: Some(1000),
            ..KeyConfig::default()
        }
    }

    #[test]
    fn with_keys_everything_comes_from_the_key_and_nothing_of_it_goes_on() {
        let callers = Callers::new(&[billing()], true);
        let mut headers = map(&[("authorization", "Bearer tg-secret"), ("openai-organization", "org-other")]);
        let identity = callers.identify(&mut headers, 999).unwrap();
        assert_eq!((&*identity.caller.tenant, identity.organization.as_deref()), ("acme", Some("acme")));
        assert!(headers.is_empty() && identity.caller.credential.is_none());
        for (pairs, now) in [
            (map(&[("authorization", "Bearer tg-secret")]), 1000),
            (map(&[("authorization", "Bearer sk-openai")]), 0),
            (map(&[("authorization", "Bearer tidegate")]), 0),
            (map(&[]), 0),
        ] {
            assert!(callers.identify(&mut pairs.clone(), now).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn without_keys_a_credential_makes_a_tenant_and_the_word_tidegate_none() {
        let callers = Callers::new(&[], false);
        let mut headers = map(&[("authorization", "bearer tidegate"), ("openai-project", "p")]);
        let identity = callers.identify(&mut headers, 0).unwrap();
        assert_eq!((&*identity.caller.tenant, identity.project.as_deref()), ("anonymous", Some("p")));
        assert!(!headers.contains_key("authorization"));
        let mut headers = map(&[("authorization", "Bearer tg-secret")]);
        assert!(callers.identify(&mut headers, 0).unwrap().caller.credential.is_none() && headers.is_empty());
        let mut headers = map(&[("authorization", "Bearer sk-1")]);
        let identity = callers.identify(&mut headers, 0).unwrap();
        assert!(identity.caller.credential.is_some() && headers.contains_key("authorization"));
        assert!(identity.caller.tenant.starts_with("caller-") && !identity.caller.tenant.contains("sk-1"));
    }

    #[test]
    fn an_inference_key_reads_no_files_by_any_spelling() {
        let caller = Caller::with_key(&billing());
        assert!(caller.may_use(&classify_path("/v1/chat/completions"), "POST").is_ok());
        assert!(caller.may_use(&classify_path("/v1/models"), "GET").is_ok());
        for (path, method) in [
            ("/v1/files", "GET"),
            ("/v1/models/../files", "GET"),
            ("/v1/chat/completions", "GET"),
            ("/v1/models/ft:x", "DELETE"),
        ] {
            assert!(caller.may_use(&classify_path(path), method).is_err(), "{method} {path}");
        }
    }
}
