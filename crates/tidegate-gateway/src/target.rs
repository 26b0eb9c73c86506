//! Decides which URI of an upstream a path of ours stands for.
//!
//! The path goes on as it was spelled: byte for byte, without a second reading of it.

use std::net::{IpAddr, SocketAddr};

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tidegate_core::openai::endpoints::Route;

/// The version sent to Azure's deployment paths where the caller names none: the last one that was generally available before
/// the version became part of the path.
const AZURE_API_VERSION: &str = "2024-10-21";
/// What a segment of a path must not hold as it is.
const SEGMENT: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'<').add(b'>').add(b'?').add(b'`');
/// What a value in a query must not hold as it is.
const VALUE: &AsciiSet = &SEGMENT.add(b'&').add(b'+').add(b'=');

/// The base URL of an upstream, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// Without a slash at its end; empty for none.
    path: String,
    /// Azure without `/v1`: models are named by the path.
    names_deployments: bool,
}

impl Base {
    /// `None` where it is no base URL, which validated configurations do not have.
    pub(crate) fn new(base_url: &str, is_azure: bool) -> Option<Self> {
        let parts = base_url.parse::<Uri>().ok()?.into_parts();
        let path = parts.path_and_query.as_ref().map_or("", |path| path.path()).trim_end_matches('/').to_owned();
        let names_deployments = is_azure && !path.ends_with("/v1");
        Some(Self { scheme: parts.scheme?, authority: parts.authority?, path, names_deployments })
    }

    /// True if `other` is served by the same host.
    pub(crate) fn is_at_host_of(&self, other: &Self) -> bool {
        // Authorities compare without regard to case.
        self.authority == other.authority
    }

    /// Whether calls to it would come back in at one of `listeners`.
    pub(crate) fn is_at_one_of(&self, listeners: &[SocketAddr]) -> bool {
        let standard = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        let port = self.authority.port_u16().unwrap_or(standard);
        let host = self.authority.host().trim_matches(['[', ']']);
        let of_port = listeners.iter().filter(|listener| listener.port() == port).map(SocketAddr::ip);
        match host.parse::<IpAddr>() {
            Ok(addr) => of_port.into_iter().any(|own| own == addr || own.is_unspecified() && addr.is_loopback()),
            Err(_) => {
                host.eq_ignore_ascii_case("localhost")
                    && of_port.into_iter().any(|own| own.is_loopback() || own.is_unspecified())
            }
        }
    }

    /// True if calls that name a model in the body need it in the path.
    pub(crate) const fn names_deployments(&self) -> bool {
        self.names_deployments
    }

    /// Where `uri`, read as `route`, goes. `deployment`: the name under which the upstream knows the model, where it is to
    /// stand in the path, or in place of the deployment that stands there.
    pub(crate) fn uri(&self, uri: &Uri, route: &Route<'_>, deployment: Option<&str>) -> Option<Uri> {
        let path = self.path_and_query(uri, route, deployment)?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).ok()
    }

    fn path_and_query(&self, uri: &Uri, route: &Route<'_>, deployment: Option<&str>) -> Option<PathAndQuery> {
        let raw = uri.path();
        let renamed = deployment.filter(|_| route.path.starts_with("/realtime")).and_then(|name| with_model(uri, name));
        if self.path == "/v1" && raw.starts_with("/v1/") && renamed.is_none() {
            // By far the most frequent: nothing changes, nothing is copied.
            return uri.path_and_query().cloned();
        }
        let mut query = renamed.unwrap_or_else(|| uri.query().unwrap_or("").to_owned());
        let path = if let Some(at) = raw.find("/deployments/").filter(|_| route.deployment.is_some()) {
            // `…/openai/v1` and `…/openai` have the same deployments beneath them.
            let resource = self.path.strip_suffix("/v1").unwrap_or(&self.path);
            let (before, named) = raw[at..].split_at("/deployments/".len());
            match deployment {
                None => format!("{resource}{before}{named}"),
                Some(other) => {
                    let rest = named.find('/').map_or("", |end| &named[end..]);
                    format!("{resource}{before}{}{rest}", utf8_percent_encode(other, SEGMENT))
                }
            }
        } else if let Some(deployment) = deployment.filter(|_| self.names_deployments) {
            if !query.split('&').any(|pair| pair.starts_with("api-version=")) {
                let separator = if query.is_empty() { "" } else { "&" };
                query = format!("{query}{separator}api-version={AZURE_API_VERSION}");
            }
            format!("{}/deployments/{}{}", self.path, utf8_percent_encode(deployment, SEGMENT), route.path)
        } else {
            format!("{}{}", self.path, without_version(raw))
        };
        let whole = if query.is_empty() { path } else { format!("{path}?{query}") };
        PathAndQuery::try_from(whole).ok()
    }
}

/// The query with `model` as the model that it names. `None`: it names that one or none.
fn with_model(uri: &Uri, model: &str) -> Option<String> {
    let query = uri.query()?;
    let named = format!("model={}", utf8_percent_encode(model, VALUE));
    let is_other = |pair: &str| pair.starts_with("model=") && pair != named;
    if !query.split('&').any(is_other) {
        return None;
    }
    let pairs: Vec<&str> = query.split('&').map(|pair| if is_other(pair) { &*named } else { pair }).collect();
    Some(pairs.join("&"))
}

/// The path beneath `/v1`, `/openai/v1` or `/openai`, as it was spelled.
fn without_version(raw: &str) -> &str {
    let below =
        |path: &'_ str, prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/')).map(str::len);
    let cut = |path: &'static str| below(raw, path);
    let rest = cut("/openai/v1").or_else(|| cut("/v1")).or_else(|| cut("/openai"));
    rest.map_or(raw, |length| &raw[raw.len() - length..])
}

#[cfg(test)]
mod tests {
    use tidegate_core::openai::endpoints::classify_path;

    use super::*;

    fn goes(base: &str, is_azure: bool, path: &str, deployment: Option<&str>) -> String {
        let base = Base::new(base, is_azure).unwrap();
        let uri: Uri = path.parse().unwrap();
        base.uri(&uri, &classify_path(uri.path()), deployment).unwrap().to_string()
    }

    #[test]
    fn paths_go_beneath_the_base_url_as_they_were_spelled() {
        for (base, path, expected) in [
            ("https://api.openai.com/v1", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1", "/chat/completions?a=b", "https://api.openai.com/v1/chat/completions?a=b"),
            ("http://h:1/api/openai/v1", "/v1/files/a%2Fb?x=%20", "http://h:1/api/openai/v1/files/a%2Fb?x=%20"),
            ("http://h", "/v1/models", "http://h/models"),
            ("http://h/v1/", "/openai/v1/models", "http://h/v1/models"),
        ] {
            assert_eq!(goes(base, false, path, None), expected);
        }
    }

    #[test]
    fn realtime_names_the_model_in_the_query_as_the_upstream_knows_it() {
        for (model, expected) in [("gpt-realtime", "model=gpt-realtime"), ("my own", "model=my%20own")] {
            let sent = goes("http://h/v1", false, "/v1/realtime?intent=x&model=gpt-realtime", Some(model));
            assert_eq!(sent, format!("http://h/v1/realtime?intent=x&{expected}"));
        }
        assert_eq!(goes("http://h/v1", false, "/v1/realtime", Some("m")), "http://h/v1/realtime");
    }

    #[test]
    fn azure_has_the_model_in_the_path_and_a_version_in_the_query() {
        let base = "https://r.openai.azure.com/openai";
        for (path, deployment, expected) in [
            (
                "/v1/chat/completions",
                Some("my gpt"),
                "https://r.openai.azure.com/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21",
            ),
            (
                "/v1/embeddings?api-version=2024-02-01",
                Some("e"),
                "https://r.openai.azure.com/openai/deployments/e/embeddings?api-version=2024-02-01",
            ),
            (
                "/openai/deployments/d/chat/completions?api-version=2024-02-01",
                None,
                "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-02-01",
            ),
            (
                "/openai/deployments/theirs/chat/completions",
                Some("ours"),
                "https://r.openai.azure.com/openai/deployments/ours/chat/completions",
            ),
            ("/v1/files?api-version=1", None, "https://r.openai.azure.com/openai/files?api-version=1"),
        ] {
            assert_eq!(goes(base, true, path, deployment), expected);
        }
        let versioned = "https://r.openai.azure.com/openai/v1";
        assert_eq!(
            goes(versioned, true, "/v1/chat/completions", Some("d")),
            "https://r.openai.azure.com/openai/v1/chat/completions"
        );
    }
}
