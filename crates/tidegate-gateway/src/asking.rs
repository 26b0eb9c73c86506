//! Decides what a call asks for, from what was read of it: for whom, how dearly, in which words for the upstream.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Uri};
use tidegate_core::call::Subject;
use tidegate_core::cost::Cost;
use tidegate_core::openai::endpoints::Route;
use tidegate_core::openai::estimate::{self, Calibration, Request as Asked};

use crate::identity::Identity;
use crate::model::Model;
use crate::refusal::OwnReply;
use crate::upstream::Upstream;
use crate::wishes::Wishes;

/// On whose behalf, and at what it is aimed.
pub(crate) fn subject(
    account: Arc<str>,
    model: &Model,
    identity: &Identity,
    wishes: &Wishes,
    asked: &Asked<'_>,
    route: &Route<'_>,
) -> Subject {
    let caller = &identity.caller;
    let named =
        if caller.may_name_users { wishes.user.clone().or_else(|| asked.named_user().map(Arc::from)) } else { None };
    Subject {
        account,
        model: model.group.clone(),
        key: caller.key.clone(),
        organization: identity.organization.clone(),
        project: identity.project.clone(),
        user: named.or_else(|| caller.user.clone()),
        request_type: route.endpoint.request_type(),
        tenant: caller.tenant.clone(),
    }
}

/// What is not metered costs one request and nothing else.
pub(crate) fn cost(
    asked: &Asked<'_>,
    route: &Route<'_>,
    method: &Method,
    calibration: &Calibration,
    declared: u64,
) -> Cost {
    let cost = if route.is_metered(method.as_str()) {
        estimate::estimate(asked, calibration)
    } else {
        Cost { max_output_tokens: Some(0), ..Cost::default() }
    };
    Cost { declared_tokens: declared, ..cost }
}

/// A form, which has no JSON to read.
pub(crate) fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/"))
}

/// Of the encodings that the caller takes, those in which a reply's usage can still be read.
///
/// The only header of a metered call that is changed: under `br` or `zstd` no use could ever be settled.
pub(crate) fn narrow_encodings(headers: &mut HeaderMap) {
    let Some(accepted) = headers.get(header::ACCEPT_ENCODING) else { return };
    let takes_gzip = accepted.to_str().is_ok_and(|accepted| {
        accepted.split(',').any(|coding| {
            let (coding, weight) = coding.split_once(';').unwrap_or((coding, ""));
            coding.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0")
        })
    });
    let narrowed = if takes_gzip { "gzip" } else { "identity" };
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(narrowed));
}

/// Realtime calls name the model in the query.
pub(crate) fn model_in_query<'u>(uri: &'u Uri, route: &Route<'_>) -> Option<&'u str> {
    if !route.path.starts_with("/realtime") {
        return None;
    }
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix("model=")).filter(|model| !model.is_empty())
}

/// What stands for the model where none is named: the resource, and for audio and images which of its endpoints.
pub(crate) fn without_model(route: &Route<'_>) -> String {
    let mut parts = route.path.split('/').filter(|part| !part.is_empty());
    let resource = parts.next().unwrap_or("");
    match (resource, parts.next()) {
        ("audio" | "images", Some(endpoint)) => format!("-/{resource}/{endpoint}"),
        _ => format!("-/{resource}"),
    }
}

/// The body with the model's name as the upstream knows it, where that is another and stands in the body.
pub(crate) fn renamed(
    body: Bytes,
    asked: &Asked<'_>,
    upstream: &Upstream,
    sent: Option<&str>,
) -> Result<Bytes, Box<OwnReply>> {
    let (Some(sent), Some(model)) = (sent, asked.model.as_deref()) else { return Ok(body) };
    if sent == model || upstream.base.names_deployments() {
        return Ok(body);
    }
    crate::body::with_model(&body, sent).ok_or_else(|| Box::new(OwnReply::invalid_body("the model cannot be renamed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encodings_that_can_be_read_are_asked_for() {
        for (given, asked) in [
            ("gzip, deflate, br, zstd", "gzip"),
            ("br;q=1.0, gzip;q=0.8", "gzip"),
            ("br", "identity"),
            ("gzip;q=0, br", "identity"),
            ("*", "identity"),
        ] {
            let mut headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(given))]);
            narrow_encodings(&mut headers);
            assert_eq!(headers[header::ACCEPT_ENCODING], asked, "{given}");
        }
        let mut none = HeaderMap::new();
        narrow_encodings(&mut none);
        assert!(none.is_empty());
    }
}
