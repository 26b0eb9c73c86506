//! Decides what of a request's body is taken by the admin listener: a small JSON object, or nothing.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::refusal::OwnReply;

const BYTES_MAX: usize = 64 << 10;
/// A body that has not come by then does not.
const WITHIN: Duration = Duration::from_secs(10);
/// A reason is a sentence, which callers may get to see.
const REASON_CHARS_MAX: usize = 500;

/// Reads the body; where there is none, as `{}`. `allowed` shows what may be sent.
pub(super) async fn read<T: DeserializeOwned>(body: &mut Incoming, allowed: &str) -> Result<T, Box<OwnReply>> {
    let collected = tokio::time::timeout(WITHIN, Limited::new(body, BYTES_MAX).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Box::new(OwnReply::too_large_body(BYTES_MAX as u64)));
        }
        Ok(Err(_)) => return Err(Box::new(OwnReply::invalid_body("the connection broke off within the body"))),
        Err(_) => return Err(Box::new(OwnReply::body_stalled(WITHIN))),
    };
    let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes.trim_ascii_start() };
    if text[0] != b'{' {
        // A list of the fields' values would be taken too.
        return Err(Box::new(OwnReply::invalid_body(format!("the body is no JSON object; send {allowed}"))));
    }
    serde_json::from_slice(text).map_err(|error| Box::new(OwnReply::invalid_body(format!("{error}; send {allowed}"))))
}

/// A reason that can be shown on one line.
pub(super) fn reason(given: Option<String>) -> Result<Option<Arc<str>>, Box<OwnReply>> {
    let Some(reason) = given.filter(|reason| !reason.is_empty()) else { return Ok(None) };
    if reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        let message = format!("reason must be one line of at most {REASON_CHARS_MAX} characters");
        return Err(Box::new(OwnReply::invalid_body(message)));
    }
    Ok(Some(reason.trim()).filter(|reason| !reason.is_empty()).map(Into::into))
}
