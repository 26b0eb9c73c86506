//! The simulator's own paths, `/sim/…`: for tests and scripts in any language. Not counted, not limited, no faults.

use http::{Method, Response, StatusCode};
use serde_json::json;

use super::{json_reply, reply};
use crate::body::ReplyBody;
use crate::reply::PIXEL;
use crate::scenario::Scenario;
use crate::shared::Shared;

/// `GET /sim/stats`, `GET /sim/log?last=N`, `POST /sim/scenario` (TOML), `GET /sim/pixel.png`.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> Response<ReplyBody> {
    match (method.as_str(), path) {
        ("GET", "/sim/stats") => json_reply(StatusCode::OK, &json!(shared.stats())),
        ("GET", "/sim/log") => {
            let entries = shared.entries();
            let last =
                query.and_then(|q| q.strip_prefix("last=")).and_then(|n| n.parse().ok()).unwrap_or(entries.len());
            json_reply(StatusCode::OK, &json!(entries[entries.len().saturating_sub(last)..]))
        }
        ("POST", "/sim/scenario") => match std::str::from_utf8(body).map(Scenario::from_toml) {
            Ok(Ok(scenario)) => {
                shared.replace_scenario(scenario);
                json_reply(StatusCode::OK, &json!({"ok": true}))
            }
            Ok(Err(e)) => json_reply(StatusCode::BAD_REQUEST, &json!({"ok": false, "error": e.to_string()})),
            Err(e) => json_reply(StatusCode::BAD_REQUEST, &json!({"ok": false, "error": e.to_string()})),
        },
        ("GET", "/sim/pixel.png") => reply(StatusCode::OK, "image/png", &PIXEL[..]),
        _ => json_reply(
            StatusCode::NOT_FOUND,
            &json!({"error": "there are GET /sim/stats, GET /sim/log?last=N and POST /sim/scenario"}),
        ),
    }
}
