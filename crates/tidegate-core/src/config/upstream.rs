//! Decides what `[[upstream]]` says: where calls are sent, with which credential, for which models.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{TokenCharge, UpstreamPolicy};
use crate::limit::glob_matches;

/// What kind of API an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UpstreamKind {
    /// OpenAI's own.
    #[default]
    OpenAi,
    /// Azure OpenAI: deployment paths and the `api-key` header.
    Azure,
    /// Another server that speaks OpenAI's protocol.
    Compatible,
}

/// Where a secret is kept. Never the secret itself, so that no configuration can leak one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `env:NAME`: an environment variable.
    Env(String),
    /// `file:PATH`: a file's content, surrounding white space left out.
    File(PathBuf),
}

impl std::fmt::Display for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Which models an upstream serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelMap {
    /// Names or globs; the name is sent on as it is.
    Globs(Vec<String>),
    /// The caller's name → the name that is sent; others are not served.
    Renames(BTreeMap<String, String>),
}

impl Default for ModelMap {
    fn default() -> Self {
        Self::Globs(vec!["*".to_owned()])
    }
}

impl ModelMap {
    /// The name under which the upstream knows `model`; `None` where it does not serve it.
    #[must_use]
    pub fn sent_name<'m>(&'m self, model: &'m str) -> Option<Cow<'m, str>> {
        match self {
            Self::Globs(globs) => globs.iter().any(|glob| glob_matches(glob, model)).then_some(Cow::Borrowed(model)),
            Self::Renames(names) => names.get(model).map(|name| Cow::Borrowed(name.as_str())),
        }
    }
}

/// `[[upstream]]`. The default is the built-in one: OpenAI, with the caller's own credential.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// Its name in accounts, breakers, logs and metrics; unique.
    pub name: Arc<str>,
    /// Up to and including `/v1` (or the provider's equivalent); no slash at the end, no credentials in it.
    pub base_url: String,
    /// What it speaks.
    pub kind: UpstreamKind,
    /// The credential sent there. `None`: the caller's is forwarded (to the first upstream only).
    pub api_key: Option<SecretSource>,
    /// The caller's own credential goes before `api_key`, which is for callers that bring none.
    /// Only so for the upstream that the binary makes when none is configured.
    pub caller_first: bool,
    /// It may take what the ones before it cannot.
    pub fallback: bool,
    /// Share of calls among upstreams that serve the same model and are no fallback; at least 1.
    pub weight: u32,
    /// What it serves.
    pub models: ModelMap,
    /// Bound on name resolution, connection and TLS.
    pub connect_timeout: Duration,
    /// Bound from the request's end to the reply's head. `None`: no bound.
    pub first_byte_timeout: Option<Duration>,
    /// A stream that is silent for so long is broken. `None`: no bound.
    pub idle_timeout: Option<Duration>,
    /// An implicit mirror limit per account and model group follows its headers.
    pub learn_limits: bool,
    /// How it charges tokens when it admits.
    pub token_charge: TokenCharge,
    /// PEM file of further certificate authorities. `None`: the system's alone.
    pub ca_file: Option<PathBuf>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            name: Arc::from("openai"),
            base_url: "https://api.openai.com/v1".to_owned(),
            kind: UpstreamKind::OpenAi,
            api_key: None,
            caller_first: false,
            fallback: false,
            weight: 1,
            models: ModelMap::default(),
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Some(Duration::from_secs(600)),
            idle_timeout: Some(Duration::from_secs(300)),
            learn_limits: true,
            token_charge: TokenCharge::Learned,
            ca_file: None,
        }
    }
}

impl UpstreamConfig {
    /// What the core must know of it.
    #[must_use]
    pub fn policy(&self) -> UpstreamPolicy {
        UpstreamPolicy { name: self.name.clone(), learn_limits: self.learn_limits, token_charge: self.token_charge }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_sends_the_name_on_and_a_table_renames_it() {
        let globs = ModelMap::Globs(vec!["gpt-4o*".to_owned()]);
        assert_eq!(globs.sent_name("gpt-4o-mini").as_deref(), Some("gpt-4o-mini"));
        assert_eq!(globs.sent_name("o3"), None);
        let renames = ModelMap::Renames(BTreeMap::from([("gpt-4o".to_owned(), "prod".to_owned())]));
        assert_eq!(renames.sent_name("gpt-4o").as_deref(), Some("prod"));
        assert_eq!(renames.sent_name("gpt-4o-mini"), None);
    }
}
