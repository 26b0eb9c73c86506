//! Decides what the admin listener can be asked, how, and by whom: a table of its endpoints.

use http::Method;
use tidegate_core::config::AdminRole;

use super::overriding::ToBreaker;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Health,
    Metrics,
    Description,
    Status,
    Events,
    Explain,
    Audit,
    Alerts,
    Breaker(ToBreaker),
    ResetLimits,
    ResetLimit,
    BoostLimit,
    Pause,
    Resume,
    Reload,
    Keys,
    MakeKey,
    RevokeKey,
}

/// How an endpoint is asked, and who may.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) method: Method,
    /// `{}` stands for a name, which may have slashes in it.
    path: &'static str,
    /// `None`: anybody, under any Host.
    pub(super) wants: Option<AdminRole>,
    pub(super) endpoint: Endpoint,
}

const fn row(method: Method, path: &'static str, wants: Option<AdminRole>, endpoint: Endpoint) -> Row {
    Row { method, path, wants, endpoint }
}

const ANYBODY: Option<AdminRole> = None;
const VIEWER: Option<AdminRole> = Some(AdminRole::Viewer);
const OPERATOR: Option<AdminRole> = Some(AdminRole::Operator);

/// All that there is; where two paths match, the first.
static TABLE: &[Row] = &[
    row(Method::GET, "/healthz", ANYBODY, Endpoint::Health),
    row(Method::GET, "/readyz", ANYBODY, Endpoint::Health),
    row(Method::GET, "/admin/v1/openapi.json", ANYBODY, Endpoint::Description),
    row(Method::GET, "/metrics", ANYBODY, Endpoint::Metrics),
    row(Method::GET, "/admin/v1/status", VIEWER, Endpoint::Status),
    row(Method::GET, "/admin/v1/events", VIEWER, Endpoint::Events),
    row(Method::GET, "/admin/v1/explain/{}", VIEWER, Endpoint::Explain),
    row(Method::GET, "/admin/v1/audit", VIEWER, Endpoint::Audit),
    row(Method::GET, "/admin/v1/alerts", VIEWER, Endpoint::Alerts),
    row(Method::POST, "/admin/v1/breakers/{}/force-open", OPERATOR, Endpoint::Breaker(ToBreaker::ForceOpen)),
    row(Method::POST, "/admin/v1/breakers/{}/force-half-open", OPERATOR, Endpoint::Breaker(ToBreaker::ForceHalfOpen)),
    row(Method::POST, "/admin/v1/breakers/{}/force-closed", OPERATOR, Endpoint::Breaker(ToBreaker::ForceClosed)),
    row(Method::POST, "/admin/v1/breakers/{}/reset", OPERATOR, Endpoint::Breaker(ToBreaker::Reset)),
    row(Method::POST, "/admin/v1/limits/reset", OPERATOR, Endpoint::ResetLimits),
    row(Method::POST, "/admin/v1/limits/{}/reset", OPERATOR, Endpoint::ResetLimit),
    row(Method::POST, "/admin/v1/limits/{}/boost", OPERATOR, Endpoint::BoostLimit),
    row(Method::POST, "/admin/v1/pause", OPERATOR, Endpoint::Pause),
    row(Method::POST, "/admin/v1/resume", OPERATOR, Endpoint::Resume),
    row(Method::POST, "/admin/v1/reload", OPERATOR, Endpoint::Reload),
    row(Method::GET, "/admin/v1/keys", VIEWER, Endpoint::Keys),
    row(Method::POST, "/admin/v1/keys", OPERATOR, Endpoint::MakeKey),
    row(Method::DELETE, "/admin/v1/keys/{}", OPERATOR, Endpoint::RevokeKey),
];

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Found<'p> {
    /// An endpoint, and what stands for `{}` in its path, as it was sent.
    Endpoint(&'static Row, &'p str),
    /// The path is there, but not for this method. For `Allow`.
    OtherMethods(String),
    /// There is no such path.
    Nothing,
}

/// The endpoint of that method and path. A `HEAD` is a `GET` whose body nobody sees.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Found<'p> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allowed: Vec<&str> = Vec::new();
    for row in TABLE {
        let Some(name) = name_in(row.path, path) else { continue };
        if row.method == method {
            return Found::Endpoint(row, name);
        }
        if row.method == Method::GET {
            allowed.push("HEAD");
        }
        allowed.push(row.method.as_str());
    }
    if allowed.is_empty() { Found::Nothing } else { Found::OtherMethods(allowed.join(", ")) }
}

/// What stands for `{}` in `path`; empty where the pattern has none.
fn name_in<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = pattern.split_once("{}") else {
        return (pattern == path).then_some("");
    };
    path.strip_prefix(before)?.strip_suffix(after).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_path_may_have_slashes_but_not_be_empty() {
        assert_eq!(name_in("/b/{}/reset", "/b/openai/gpt-4o/reset"), Some("openai/gpt-4o"));
        assert_eq!(name_in("/b/{}", "/b/c"), Some("c"));
        for path in ["/b//reset", "/b/reset", "/b/x", "/c/x/reset"] {
            assert_eq!(name_in("/b/{}/reset", path), None, "{path}");
        }
    }

    #[test]
    fn every_endpoint_is_described() {
        let description: serde_json::Value = serde_json::from_str(super::super::open::DESCRIPTION).unwrap();
        for row in TABLE {
            let path = row.path.replace("{}", "{name}");
            let described = &description["paths"][&path][row.method.as_str().to_lowercase()];
            assert!(described.is_object(), "{} {path} is not in openapi.json", row.method);
            let is_open = described["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(is_open, row.wants.is_none(), "{path}");
            let summary = described["summary"].as_str().unwrap_or_default();
            assert_eq!(summary.ends_with("(operator)"), row.wants == OPERATOR, "{path}");
        }
    }

    #[test]
    fn another_method_is_told_which_ones_there_are() {
        assert!(
            matches!(find(&Method::HEAD, "/metrics"), Found::Endpoint(row, _) if row.endpoint == Endpoint::Metrics)
        );
        assert!(
            matches!(find(&Method::POST, "/admin/v1/status"), Found::OtherMethods(allowed) if allowed == "HEAD, GET")
        );
        assert!(matches!(find(&Method::GET, "/admin/v1/statuses"), Found::Nothing));
    }
}
