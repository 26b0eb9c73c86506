//! Decides where calls are sent: one upstream with its connections, its credential and the models it is known for.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use http::header;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue};
use tidegate_core::config::{UpstreamConfig, UpstreamKind};

use crate::client::Clients;
use crate::headers;
use crate::identity::Identity;
use crate::model::Models;
use crate::target::Base;
use crate::token;

/// Accounts remembered by name; beyond that all are forgotten at once and named afresh, the same again.
const ACCOUNTS_MAX: usize = 4096;

/// One upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) config: UpstreamConfig,
    pub(crate) base: Base,
    pub(crate) clients: Clients,
    pub(crate) models: Models,
    host: HeaderValue,
    /// The configured credential as its header has it.
    credential: Option<HeaderValue>,
    /// The account of calls with the configured credential and no organization or project of their own.
    own_account: Arc<str>,
    accounts: Mutex<HashMap<[u8; 32], Arc<str>>>,
    /// Where no credential is configured the caller's is forwarded, but only to the first upstream.
    forwards_credential: bool,
}

impl Upstream {
    /// Reads the credential and the authorities that `config` names.
    pub(crate) fn new(config: UpstreamConfig, is_first: bool) -> Result<Self, String> {
        let named = |problem: String| format!("upstream \"{}\": {problem}", config.name);
        let is_azure = config.kind == UpstreamKind::Azure;
        let base = Base::new(&config.base_url, is_azure).ok_or_else(|| named("base_url is no URL".to_owned()))?;
        let credential = credential(&config).map_err(named)?;
        let is_https = base.scheme == Scheme::HTTPS;
        let clients = Clients::new(is_https, config.connect_timeout, config.ca_file.as_deref()).map_err(named)?;
        let own_account = match &credential {
            Some(credential) => account(&config.name, &token::digest(&[credential.as_bytes(), b"", b""])),
            None => Arc::from(format!("{}#none", config.name)),
        };
        Ok(Self {
            host: HeaderValue::from_str(base.authority.as_str())
                .map_err(|_| named("base_url cannot be sent in a header".to_owned()))?,
            base,
            clients,
            models: Models::default(),
            credential,
            own_account,
            accounts: Mutex::default(),
            forwards_credential: is_first,
            config,
        })
    }

    /// Whether it is what `config` says, the secret included, which may have been renewed where it is kept.
    pub(crate) fn is_still(&self, config: &UpstreamConfig) -> bool {
        self.config == *config && credential(config).is_ok_and(|credential| credential == self.credential)
    }

    /// Whether calls without a credential of their own are made with one that all share.
    pub(crate) const fn shares_credential(&self) -> bool {
        self.credential.is_some()
    }

    /// Puts on a cleaned request what this upstream needs, and says on which account the call goes.
    pub(crate) fn address(&self, headers: &mut HeaderMap, identity: &Identity) -> Arc<str> {
        headers.insert(header::HOST, self.host.clone());
        let takes_callers = identity.caller.credential.is_some() && self.forwards_credential;
        let use_own = match &self.credential {
            Some(_) => !(self.config.caller_first && takes_callers),
            None => false,
        };
        if use_own || !takes_callers {
            headers.remove(header::AUTHORIZATION);
            headers.remove(headers::API_KEY);
        }
        if let (true, Some(credential)) = (use_own, &self.credential) {
            let name = if self.config.kind == UpstreamKind::Azure { headers::API_KEY } else { header::AUTHORIZATION };
            headers.insert(name, credential.clone());
        }
        let forwarded = identity.caller.credential.filter(|_| takes_callers && !use_own);
        self.account_of(headers, use_own, forwarded)
    }

    /// By the credential, organization and project that are really sent.
    fn account_of(&self, headers: &HeaderMap, use_own: bool, forwarded: Option<[u8; 32]>) -> Arc<str> {
        let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let (organization, project) = (value(headers::ORGANIZATION), value(headers::PROJECT));
        if use_own && organization.is_empty() && project.is_empty() {
            return self.own_account.clone();
        }
        let digest = match forwarded {
            // Known already: hashing is what naming an account costs.
            Some(credential) if organization.is_empty() && project.is_empty() => credential,
            _ => {
                let authorization = value(header::AUTHORIZATION);
                let credential = if authorization.is_empty() { value(headers::API_KEY) } else { authorization };
                token::digest(&[credential, organization, project])
            }
        };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&digest) {
            return account.clone();
        }
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.clear();
        }
        let account = account(&self.config.name, &digest);
        accounts.insert(digest, account.clone());
        account
    }
}

/// The configured credential as its header has it.
fn credential(config: &UpstreamConfig) -> Result<Option<HeaderValue>, String> {
    let Some(source) = &config.api_key else { return Ok(None) };
    let env = |name: &str| std::env::var(name).ok();
    let file = |path: &Path| std::fs::read_to_string(path);
    let secret = source.resolve(env, file).map_err(|error| error.to_string())?;
    let value = if config.kind == UpstreamKind::Azure { secret } else { format!("Bearer {secret}") };
    let mut value = HeaderValue::try_from(value).map_err(|_| "api_key cannot be sent in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn account(upstream: &str, digest: &[u8; 32]) -> Arc<str> {
    Arc::from(format!("{upstream}#{}", token::fingerprint(digest)))
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::SecretSource;

    use super::*;
    use crate::identity::Callers;

    fn upstream(api_key: bool, caller_first: bool, kind: UpstreamKind, is_first: bool) -> Upstream {
        let config = UpstreamConfig {
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            api_key: api_key.then_some(SecretSource::Placeholder),
            caller_first,
            kind,
            ..UpstreamConfig::default()
        };
        Upstream::new(config, is_first).unwrap()
    }

    fn sent(upstream: &Upstream, bearer: &'static str) -> (HeaderMap, Arc<str>) {
        let mut headers = HeaderMap::new();
        if !bearer.is_empty() {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(bearer));
        }
        let identity = Callers::new(&[]).identify(&mut headers, 0).unwrap();
        let account = upstream.address(&mut headers, &identity);
        (headers, account)
    }

    fn authorization(headers: &HeaderMap) -> Option<&str> {
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
    }

    #[tokio::test]
    async fn the_configured_credential_replaces_the_callers() {
        let shared = upstream(true, false, UpstreamKind::OpenAi, true);
        let (headers, account) = sent(&shared, "Bearer sk-caller");
        assert_eq!(authorization(&headers), Some("Bearer sk-tidegate-sim"));
        assert_eq!(sent(&shared, "").1, account);
        let azure = upstream(true, false, UpstreamKind::Azure, true);
        let (headers, _) = sent(&azure, "Bearer sk-caller");
        assert_eq!((authorization(&headers), headers.get("api-key").is_some()), (None, true));
    }

    #[tokio::test]
    async fn callers_with_their_own_credentials_have_accounts_of_their_own() {
        let forwards = upstream(false, false, UpstreamKind::OpenAi, true);
        let (headers, one) = sent(&forwards, "Bearer sk-one");
        assert_eq!(authorization(&headers), Some("Bearer sk-one"));
        let (_, other) = sent(&forwards, "Bearer sk-other");
        assert!(one != other && one.starts_with("openai#") && !one.contains("sk-"));
        let first = upstream(true, true, UpstreamKind::OpenAi, true);
        assert_eq!(authorization(&sent(&first, "Bearer sk-one").0), Some("Bearer sk-one"));
        assert_eq!(authorization(&sent(&first, "Bearer tidegate").0), Some("Bearer sk-tidegate-sim"));
    }

    #[tokio::test]
    async fn a_renewed_secret_makes_another_upstream_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-old").unwrap();
        let config = UpstreamConfig {
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            api_key: Some(SecretSource::File(path.clone())),
            ..UpstreamConfig::default()
        };
        let upstream = Upstream::new(config.clone(), true).unwrap();
        assert!(upstream.is_still(&config));
        std::fs::write(&path, "sk-new").unwrap();
        assert!(!upstream.is_still(&config));
    }

    #[tokio::test]
    async fn only_the_first_upstream_sees_a_callers_credential_and_none_a_key_of_ours() {
        let second = upstream(false, false, UpstreamKind::OpenAi, false);
        let (headers, account) = sent(&second, "Bearer sk-one");
        assert_eq!((authorization(&headers), account), (None, sent(&second, "").1));
        let first = upstream(false, false, UpstreamKind::OpenAi, true);
        assert_eq!(authorization(&sent(&first, "Bearer tg-secret").0), None);
    }
}
