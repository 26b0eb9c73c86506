//! Decides what `[[upstream]]` says: where calls are sent, with which credential, for which models.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
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
    /// A text that opens nothing, for an upstream that asks for a credential and takes any: the simulator. In no file.
    Placeholder,
}

impl SecretSource {
    /// What [`SecretSource::Placeholder`] stands for.
    pub const PLACEHOLDER: &'static str = "sk-tidegate-sim";

    /// The secret itself, by way of `env`, which looks a variable up, and `file`, which reads a file's text.
    ///
    /// # Errors
    /// Where it should have been, why it is not there, and what to do; never what was found.
    pub fn resolve(
        &self,
        env: impl FnOnce(&str) -> Option<String>,
        file: impl FnOnce(&Path) -> std::io::Result<String>,
    ) -> Result<String, SecretError> {
        let found = match self {
            Self::Env(name) => env(name).ok_or_else(|| format!("environment variable {name} is not set"))?,
            Self::File(path) => file(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?,
            Self::Placeholder => Self::PLACEHOLDER.to_owned(),
        };
        let secret = found.trim();
        if secret.is_empty() {
            return Err(SecretError(format!("{self} is empty")));
        }
        // It becomes a header's value; a line break within would not be one.
        if secret.chars().any(char::is_control) {
            return Err(SecretError(format!("{self} holds more than one line")));
        }
        Ok(secret.to_owned())
    }
}

/// Why a secret could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(String);

impl From<String> for SecretError {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Placeholder => f.write_str("a placeholder"),
        }
    }
}

/// Why a text is no base URL: `{problem}; {hint}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {hint}")]
pub struct BaseUrlError {
    /// What is the matter. Never shows credentials.
    pub problem: &'static str,
    /// What to write.
    pub hint: &'static str,
}

/// `written` as a base URL: `http` or `https`, host and path alone; the slash at its end is dropped.
///
/// Whether it ends in `/v1` is left to the caller: only some upstreams' do.
///
/// # Errors
/// What is the matter and what to write.
pub fn parse_base_url(written: &str) -> Result<String, BaseUrlError> {
    const EXAMPLE: &str = "write SCHEME://HOST/v1, such as \"https://api.openai.com/v1\"";
    let url = written.trim_end_matches('/');
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return Err(BaseUrlError { problem: "must begin with https:// or http://", hint: EXAMPLE });
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(BaseUrlError {
            problem: "must not hold credentials",
            hint: "write them as api_key = \"env:NAME\" of an [[upstream]]",
        });
    }
    let unusable = |any: char| any.is_whitespace() || any.is_control() || matches!(any, '?' | '#' | '"' | '<' | '>');
    if !is_authority(authority) || path.contains(unusable) {
        return Err(BaseUrlError { problem: "must be a URL of scheme, host and path alone", hint: EXAMPLE });
    }
    Ok(url.to_owned())
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

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn is_authority(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|any| any.is_ascii_alphanumeric() || "-._".contains(any)),
    };
    host_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
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

    #[test]
    fn authorities_are_hosts_with_or_without_a_port() {
        for good in ["api.openai.com", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:80", "my_host"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in ["", ":80", "host:", "host:0", "host:99999", "a b", "[::1", "::1"] {
            assert!(!is_authority(bad), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_one_line_and_errors_do_not_show_it() {
        let from_file =
            |text: &'static str| SecretSource::File(PathBuf::from("k")).resolve(|_| None, move |_| Ok(text.to_owned()));
        assert_eq!(from_file(" sk-1\n").unwrap(), "sk-1");
        assert_eq!(from_file("\n").unwrap_err().to_string(), "file:k is empty");
        assert_eq!(from_file("sk-1\nsk-2").unwrap_err().to_string(), "file:k holds more than one line");
        let unset = SecretSource::Env("NAME".to_owned()).resolve(|_| None, |_| Ok(String::new()));
        assert_eq!(unset.unwrap_err().to_string(), "environment variable NAME is not set");
    }
}
