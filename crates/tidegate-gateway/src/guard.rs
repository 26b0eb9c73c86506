//! Decides whether a request may come in at all: a web page must not spend the key through a loopback listener.
//!
//! A page can send requests to `localhost`, and by DNS rebinding under a name of its own; it cannot choose `Host`, `Origin`
//! and `Sec-Fetch-Site`. So a foreign value in any of them, or more than one, is refused, whatever credential comes along.

use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::{HeaderMap, Uri};

use crate::refusal::OwnReply;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whom a listener takes itself for, beside its own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guard {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Guard {
    /// With the values of `allowed_hosts` and `allowed_origins`.
    pub(crate) fn new(hosts: &[String], origins: &[String]) -> Self {
        let lower = |values: &[String]| {
            values.iter().map(|value| value.trim().trim_end_matches('/').to_ascii_lowercase()).collect()
        };
        Self { hosts: lower(hosts), origins: lower(origins) }
    }

    /// Lets a request past that was received at `local`, or says why not.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap, local: IpAddr) -> Result<(), Box<OwnReply>> {
        let host = the_only(headers, &header::HOST, "Host")?;
        let origin = the_only(headers, &header::ORIGIN, "Origin")?;
        let site = the_only(headers, &SEC_FETCH_SITE, "Sec-Fetch-Site")?;
        // In absolute form (and HTTP/2) the target names the host too, and goes before the header.
        for host in [uri.authority().map(http::uri::Authority::as_str), host].into_iter().flatten() {
            if !self.is_own_host(host, local) {
                let host: String = host.chars().take(200).collect();
                return Err(Box::new(OwnReply::forbidden(format!(
                    "Host \"{host}\" is not this server's; an operator can allow it with allowed_hosts"
                ))));
            }
        }
        if let Some(origin) = origin {
            if self.allows_origin(origin) {
                return Ok(());
            }
            let own = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
            let is_own = origin
                .split_once("://")
                .is_some_and(|(_, authority)| own.is_some_and(|own| own.eq_ignore_ascii_case(authority)));
            if !is_own {
                let origin: String = origin.chars().take(200).collect();
                return Err(Box::new(OwnReply::forbidden(format!(
                    "web pages of \"{origin}\" may not call this server; an operator can allow it with allowed_origins"
                ))));
            }
        }
        if site.is_some_and(|site| site.eq_ignore_ascii_case("cross-site")) {
            return Err(Box::new(OwnReply::forbidden("web pages of other sites may not call this server")));
        }
        Ok(())
    }

    /// Whether an operator allowed the pages of `origin`.
    pub(crate) fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    fn is_own_host(&self, host: &str, local: IpAddr) -> bool {
        let name = without_port(host);
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if let Ok(addr) = literal.parse::<IpAddr>() {
            let addr = addr.to_canonical();
            if addr.is_loopback() || addr == local.to_canonical() {
                return true;
            }
        }
        self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }
}

/// The one value of a header. Of several, a good one must not stand for a foreign one behind it; no browser sends them.
fn the_only<'h>(headers: &'h HeaderMap, name: &HeaderName, shown: &str) -> Result<Option<&'h str>, Box<OwnReply>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str().unwrap_or(""));
    if values.next().is_some() {
        return Err(Box::new(OwnReply::bad_request(format!("there is more than one {shown} header"))));
    }
    Ok(first)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn passes(guard: &Guard, local: &str, pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        guard.check(&Uri::from_static("/v1/models"), &headers, local.parse().unwrap()).is_ok()
    }

    #[test]
    fn only_the_listeners_own_names_are_accepted_as_host() {
        let guard = Guard::default();
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "127.0.0.1"] {
            assert!(passes(&guard, "127.0.0.1", &[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example:8080", ""] {
            assert!(!passes(&guard, "127.0.0.1", &[("host", host)]), "{host}");
        }
        assert!(passes(&guard, "10.0.0.1", &[("host", "10.0.0.1:8080")]));
        assert!(!passes(&guard, "127.0.0.1", &[("host", "localhost"), ("host", "localhost")]));
    }

    #[test]
    fn an_operator_can_allow_hosts_and_origins() {
        let guard = Guard::new(&["Gate.Internal".into()], &["https://app.example/".into()]);
        assert!(passes(&guard, "10.0.0.1", &[("host", "gate.internal:443")]));
        let page = [("host", "localhost"), ("origin", "https://app.example"), ("sec-fetch-site", "cross-site")];
        assert!(passes(&guard, "127.0.0.1", &page));
        assert!(!passes(&Guard::default(), "127.0.0.1", &page));
    }

    #[test]
    fn pages_of_other_origins_are_refused_and_the_own_origin_is_not() {
        let guard = Guard::default();
        for origin in ["https://evil.example", "null", "http://localhost:3000", "localhost:8080", ""] {
            assert!(!passes(&guard, "127.0.0.1", &[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        assert!(passes(&guard, "127.0.0.1", &[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(!passes(&guard, "127.0.0.1", &[("host", "localhost"), ("sec-fetch-site", "cross-site")]));
        assert!(passes(&guard, "127.0.0.1", &[("host", "localhost"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn nothing_foreign_passes_behind_what_is_the_listeners_own() {
        let guard = Guard::new(&[], &["https://app.example".into()]);
        let host = ("host", "localhost:8080");
        let own = ("origin", "http://localhost:8080");
        for first in [own, ("origin", "https://app.example")] {
            assert!(passes(&guard, "127.0.0.1", &[host, first]));
            assert!(!passes(&guard, "127.0.0.1", &[host, first, ("origin", "https://evil.example")]), "{first:?}");
        }
        let sites = [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")];
        assert!(!passes(&guard, "127.0.0.1", &[host, own, sites[0], sites[1]]));
    }

    #[test]
    fn the_target_may_not_name_a_foreign_host_either() {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
        let target = Uri::from_static("http://evil.example/v1/models");
        assert!(Guard::default().check(&target, &headers, IpAddr::from([127, 0, 0, 1])).is_err());
    }
}
