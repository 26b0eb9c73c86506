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
    /// The configured credential.
    credential: Option<Credential>,
    /// Whose name its accounts have: that of the first upstream with the same host and credential, which may be its own.
    account_name: Arc<str>,
    /// The account of calls with the configured credential and no organization or project of their own.
    own_account: Arc<str>,
    accounts: Mutex<HashMap<[u8; 32], Arc<str>>>,
    /// Where no credential is configured the caller's is forwarded, but only to the first upstream.
    forwards_credential: bool,
    /// The organization and project that a caller names are ones of the first upstream's host: no other is told of them.
    is_at_first_host: bool,
}

/// A configured credential.
#[derive(Debug, PartialEq, Eq)]
struct Credential {
    /// As its header has it.
    value: HeaderValue,
    /// SHA-256 of the secret.
    digest: [u8; 32],
}

impl Upstream {
    /// Reads the credential and the authorities that `config` names. `before`: the upstreams that come before it.
    pub(crate) fn new(config: UpstreamConfig, before: &[Arc<Self>]) -> Result<Self, String> {
        let named = |problem: String| format!("upstream \"{}\": {problem}", config.name);
        let is_azure = config.kind == UpstreamKind::Azure;
        let base = Base::new(&config.base_url, is_azure).ok_or_else(|| named("base_url is no URL".to_owned()))?;
        let credential = credential(&config).map_err(named)?;
        let is_https = base.scheme == Scheme::HTTPS;
        let clients = Clients::new(is_https, config.connect_timeout, config.ca_file.as_deref()).map_err(named)?;
        let account_name = account_name(&config, &base, credential.as_ref(), before);
        let own_account = match &credential {
            Some(credential) => account(&account_name, &base, &credential.digest),
            None => account(&config.name, &base, &[0; 32]),
        };
        Ok(Self {
            host: HeaderValue::from_str(base.authority.as_str())
                .map_err(|_| named("base_url cannot be sent in a header".to_owned()))?,
            forwards_credential: before.is_empty(),
            is_at_first_host: before.first().is_none_or(|first| first.base.is_at_host_of(&base)),
            base,
            clients,
            models: Models::default(),
            credential,
            account_name,
            own_account,
            accounts: Mutex::default(),
            config,
        })
    }

    /// Whether it is what `config` says behind the upstreams `before` it, the secret included, which may have been renewed where it
    /// is kept.
    pub(crate) fn is_still(&self, config: &UpstreamConfig, before: &[Arc<Self>]) -> bool {
        self.config == *config
            && credential(config).is_ok_and(|credential| credential == self.credential)
            && self.account_name == account_name(config, &self.base, self.credential.as_ref(), before)
            && self.is_at_first_host == before.first().is_none_or(|first| first.base.is_at_host_of(&self.base))
    }

    /// Whether what is sent to either with the configured credential counts against the same limits.
    pub(crate) fn is_same_account(&self, other: &Self) -> bool {
        self.account_name == other.account_name
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
        if !self.is_at_first_host {
            headers.remove(headers::ORGANIZATION);
            headers.remove(headers::PROJECT);
        }
        if let (true, Some(credential)) = (use_own, &self.credential) {
            let name = if self.config.kind == UpstreamKind::Azure { headers::API_KEY } else { header::AUTHORIZATION };
            headers.insert(name, credential.value.clone());
        }
        let own = self.credential.as_ref().filter(|_| use_own).map(|own| own.digest);
        self.account_of(headers, own.or(identity.caller.credential.filter(|_| takes_callers)), use_own)
    }

    /// By the credential (as a hash), organization and project that are really sent.
    fn account_of(&self, headers: &HeaderMap, credential: Option<[u8; 32]>, use_own: bool) -> Arc<str> {
        let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let (organization, project) = (value(headers::ORGANIZATION), value(headers::PROJECT));
        let names_none = organization.is_empty() && project.is_empty();
        if use_own && names_none {
            return self.own_account.clone();
        }
        let digest = match &credential {
            // Known already: hashing is what naming an account costs.
            Some(credential) if names_none => *credential,
            credential => token::digest(&[credential.as_ref().map_or(&b""[..], |hash| hash), organization, project]),
        };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&digest) {
            return account.clone();
        }
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.clear();
        }
        let account = account(&self.account_name, &self.base, &digest);
        accounts.insert(digest, account.clone());
        account
    }
}

/// The credential that `config` names.
fn credential(config: &UpstreamConfig) -> Result<Option<Credential>, String> {
    let Some(source) = &config.api_key else { return Ok(None) };
    let env = |name: &str| std::env::var(name).ok();
    let file = |path: &Path| std::fs::read_to_string(path);
    let secret = source.resolve(env, file).map_err(|error| error.to_string())?;
    let digest = token::secret_digest(secret.as_bytes());
    let value = if config.kind == UpstreamKind::Azure { secret } else { format!("Bearer {secret}") };
    let mut value = HeaderValue::try_from(value).map_err(|_| "api_key cannot be sent in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(Some(Credential { value, digest }))
}

/// Several names may lead to one account, which then has one level of each limit and one breaker: under the first of them.
fn account_name(
    config: &UpstreamConfig,
    base: &Base,
    credential: Option<&Credential>,
    before: &[Arc<Upstream>],
) -> Arc<str> {
    let is_same = |other: &&Arc<Upstream>| {
        let shown = other.credential.as_ref().map(|credential| &credential.digest);
        shown.is_some() && shown == credential.map(|credential| &credential.digest) && other.base.is_at_host_of(base)
    };
    before.iter().find(is_same).map_or_else(|| config.name.clone(), |first| first.account_name.clone())
}

/// With the host: under the same name and credential, what is somewhere else has limits of its own.
fn account(upstream: &str, base: &Base, digest: &[u8; 32]) -> Arc<str> {
    let host = base.authority.as_str().to_ascii_lowercase();
    Arc::from(format!("{upstream}#{}", token::fingerprint(&token::digest(&[host.as_bytes(), digest]))))
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::SecretSource;

    use super::*;
    use crate::identity::Callers;

    fn config(api_key: bool, base_url: &str) -> UpstreamConfig {
        let api_key = api_key.then_some(SecretSource::Placeholder);
        UpstreamConfig { base_url: base_url.to_owned(), api_key, ..UpstreamConfig::default() }
    }

    fn upstream(api_key: bool, caller_first: bool, kind: UpstreamKind, before: &[Arc<Upstream>]) -> Upstream {
        let config = UpstreamConfig { caller_first, kind, ..config(api_key, "http://127.0.0.1:1/v1") };
        Upstream::new(config, before).unwrap()
    }

    fn sent(upstream: &Upstream, bearer: &'static str) -> (HeaderMap, Arc<str>) {
        let mut headers = HeaderMap::new();
        if !bearer.is_empty() {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(bearer));
        }
        let identity = Callers::new(&[], false).identify(&mut headers, 0).unwrap();
        let account = upstream.address(&mut headers, &identity);
        (headers, account)
    }

    fn authorization(headers: &HeaderMap) -> Option<&str> {
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
    }

    #[tokio::test]
    async fn the_configured_credential_replaces_the_callers() {
        let shared = upstream(true, false, UpstreamKind::OpenAi, &[]);
        let (headers, account) = sent(&shared, "Bearer sk-caller");
        assert_eq!(authorization(&headers), Some("Bearer sk-tidegate-sim"));
        assert_eq!(sent(&shared, "").1, account);
        let azure = upstream(true, false, UpstreamKind::Azure, &[]);
        let (headers, _) = sent(&azure, "Bearer sk-caller");
        assert_eq!((authorization(&headers), headers.get("api-key").is_some()), (None, true));
    }

    #[tokio::test]
    async fn callers_with_their_own_credentials_have_accounts_of_their_own() {
        let forwards = upstream(false, false, UpstreamKind::OpenAi, &[]);
        let (headers, one) = sent(&forwards, "Bearer sk-one");
        assert_eq!(authorization(&headers), Some("Bearer sk-one"));
        let (_, other) = sent(&forwards, "Bearer sk-other");
        assert!(one != other && one.starts_with("openai#") && !one.contains("sk-"));
        let first = upstream(true, true, UpstreamKind::OpenAi, &[]);
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
        let upstream = Upstream::new(config.clone(), &[]).unwrap();
        assert!(upstream.is_still(&config, &[]));
        std::fs::write(&path, "sk-new").unwrap();
        assert!(!upstream.is_still(&config, &[]));
    }

    #[tokio::test]
    async fn only_the_first_upstream_sees_a_callers_credential_and_none_a_key_of_ours() {
        let first = Arc::new(upstream(false, false, UpstreamKind::OpenAi, &[]));
        assert_eq!(authorization(&sent(&first, "Bearer tg-secret").0), None);
        let second = upstream(false, false, UpstreamKind::OpenAi, &[first]);
        let (headers, account) = sent(&second, "Bearer sk-one");
        assert_eq!((authorization(&headers), account), (None, sent(&second, "").1));
    }

    #[tokio::test]
    async fn names_that_lead_to_one_account_share_it_under_the_first_of_them() {
        let named = |name: &str, base_url: &str, before: &[Arc<Upstream>]| {
            let config = UpstreamConfig { name: name.into(), ..config(true, base_url) };
            Arc::new(Upstream::new(config, before).unwrap())
        };
        let first = named("first", "http://Host:1/v1", &[]);
        let again = named("again", "http://host:1/openai/v1", std::slice::from_ref(&first));
        let other = named("other", "http://host:2/v1", &[first.clone(), again.clone()]);
        let accounts = [&first, &again, &other].map(|upstream| sent(upstream, "").1);
        assert_eq!(accounts[0], accounts[1]);
        assert!(accounts[0].starts_with("first#") && accounts[2].starts_with("other#"), "{accounts:?}");
        assert!(again.is_still(&again.config, &[first]) && !again.is_still(&again.config, &[other]));
    }

    #[tokio::test]
    async fn under_the_same_name_and_credential_another_host_is_another_account() {
        let at = |base_url: &str| sent(&Upstream::new(config(true, base_url), &[]).unwrap(), "").1;
        let account = at("http://host:1/v1");
        assert_eq!(account, at("https://HOST:1/openai/v1"));
        assert_ne!(account, at("http://other:1/v1"));
    }

    #[tokio::test]
    async fn the_organization_that_a_caller_names_is_told_to_no_other_host() {
        let first = Arc::new(upstream(false, false, UpstreamKind::OpenAi, &[]));
        for (base_url, is_told) in [("http://127.0.0.1:1/other/v1", true), ("http://127.0.0.1:2/v1", false)] {
            let upstream = Upstream::new(config(true, base_url), std::slice::from_ref(&first)).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(headers::ORGANIZATION, HeaderValue::from_static("org-1"));
            headers.insert(headers::PROJECT, HeaderValue::from_static("proj-1"));
            let identity = Callers::new(&[], false).identify(&mut headers, 0).unwrap();
            upstream.address(&mut headers, &identity);
            let told = [headers::ORGANIZATION, headers::PROJECT].map(|name| headers.contains_key(name));
            assert_eq!(told, [is_told; 2], "{base_url}");
        }
    }
}
