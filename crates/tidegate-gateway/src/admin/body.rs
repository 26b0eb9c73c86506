//! Decides what of a request's body is taken by the admin listener: a small JSON object, or nothing.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::keys::{quoted, shortened};
use crate::refusal::OwnReply;

const BYTES_MAX: usize = 64 << 10;
/// A body that has not come by then does not.
const WITHIN: Duration = Duration::from_secs(10);
/// A reason is a sentence, which callers may get to see.
const REASON_CHARS_MAX: usize = 500;

/// A body whose faults can be told by its fields.
pub(super) trait Fields: DeserializeOwned {
    /// Each field: whether a value that is not `null` is of its kind, and what it must be.
    fn fields() -> Vec<Field>;
    /// Those that may not be `null` either.
    const REQUIRED: &'static [&'static str] = &[];
}

/// One field: its name, whether a value is of its kind, what it must be.
pub(super) type Field = (&'static str, fn(&Value) -> bool, String);

/// The field of an operator's reason.
pub(super) fn reason_field() -> Field {
    ("reason", Value::is_string, format!("one line of at most {REASON_CHARS_MAX} characters"))
}

/// Reads the body; where there is none, as `{}`. `allowed` shows what may be sent.
pub(super) async fn read<T: Fields>(body: &mut Incoming, allowed: &str) -> Result<T, Box<OwnReply>> {
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
    serde_json::from_slice(text).map_err(|error| {
        let said = error.to_string();
        // Where it is JSON, line and column help nobody: a field is named.
        let said = if error.is_data() { said.split(" at line ").next().unwrap_or_default() } else { &said };
        let fault = wrong_field::<T>(text).unwrap_or_else(|| said.to_owned());
        Box::new(OwnReply::invalid_body(format!("{fault}; send {allowed}")))
    })
}

/// The first field that is of another kind than it must be, what it must be and what it is.
fn wrong_field<T: Fields>(text: &[u8]) -> Option<String> {
    let sent: serde_json::Map<String, Value> = serde_json::from_slice(text).ok()?;
    T::fields().into_iter().find_map(|(name, is_its_kind, allowed)| {
        let value = sent.get(name)?;
        let is_well = is_its_kind(value) || (value.is_null() && !T::REQUIRED.contains(&name));
        (!is_well).then(|| format!("{name} must be {allowed}, not {}", shortened(&value.to_string())))
    })
}

/// The reason that a body gives, if it gives one.
pub(super) fn reason(given: Option<String>) -> Result<Option<Arc<str>>, Box<OwnReply>> {
    let Some(given) = given else { return Ok(None) };
    let reason = reason_line(&given).map_err(|allowed| {
        Box::new(OwnReply::invalid_body(format!("reason must be {allowed}, not {}", quoted(&given))))
    })?;
    Ok(reason.map(Into::into))
}

/// Why an operator does something, without the blanks around it; it can be shown on one line. `None`: it is empty.
///
/// # Errors
/// What it must be.
pub fn reason_line(given: &str) -> Result<Option<&str>, String> {
    if given.chars().count() > REASON_CHARS_MAX || given.chars().any(char::is_control) {
        return Err(format!("one line of at most {REASON_CHARS_MAX} characters"));
    }
    Ok(Some(given.trim()).filter(|reason| !reason.is_empty()))
}
