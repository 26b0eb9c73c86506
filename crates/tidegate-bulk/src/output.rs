//! Decides what a line of output looks like: the Batch API's own form, so that what reads those reads these.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_core::cost::Usage;
use tidegate_core::openai::usage;

/// Begins the `id` of a result; the number of its line follows.
const ID: &str = "batch_req_";

/// What came of one call.
#[derive(Clone, Debug)]
pub(crate) enum Came {
    /// An answer, good or not.
    Answer { status: u16, request_id: String, body: String },
    /// There was none.
    Nothing { code: &'static str, message: String },
}

impl Came {
    pub(crate) const fn is_failure(&self) -> bool {
        match self {
            Self::Answer { status, .. } => *status >= 400,
            Self::Nothing { .. } => true,
        }
    }

    /// Why it failed, in two words: `404 model_not_found`. `None`: it did not.
    pub(crate) fn failure(&self) -> Option<String> {
        match self {
            Self::Answer { status, body, .. } if *status >= 400 => {
                let said = serde_json::from_str::<Refusal>(body).ok().map(|said| said.error);
                let code = said.and_then(|error| error.code.or(error.kind));
                Some(code.map_or_else(|| status.to_string(), |code| format!("{status} {code}")))
            }
            Self::Answer { .. } => None,
            Self::Nothing { code, .. } => Some((*code).to_owned()),
        }
    }
}

/// What an error says of itself. Source: OpenAI's error object.
#[derive(Deserialize)]
struct Refusal {
    error: RefusalError,
}

#[derive(Deserialize)]
struct RefusalError {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<Error<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
}

/// The line for line `number` of the input, its end included.
pub(crate) fn line(number: u64, custom_id: &str, came: &Came) -> String {
    let (response, error) = match came {
        Came::Answer { status, request_id, body } => {
            let json = serde_json::from_str::<&RawValue>(body).ok();
            let body = json.map_or(Body::Text(body), Body::Json);
            (Some(Response { status_code: *status, request_id, body }), None)
        }
        Came::Nothing { code, message } => (None, Some(Error { code, message })),
    };
    let row = Row { id: format!("{ID}{number}"), custom_id, response, error };
    // Only maps with keys that are no texts cannot be written, and there are none.
    let mut text = serde_json::to_string(&row).unwrap_or_default();
    if text.contains(['\n', '\r']) {
        // Within texts they are escaped: these stand between values.
        text = text.replace(['\n', '\r'], " ");
    }
    text.push('\n');
    text
}

/// What is read of a line of output to go on from it.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// Of its line of input.
    pub(crate) number: u64,
    pub(crate) failed: bool,
    pub(crate) usage: Option<Usage>,
}

/// `None`: it is no line that was written here.
pub(crate) fn read(text: &str) -> Option<Written> {
    #[derive(Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        id: Cow<'a, str>,
        #[serde(borrow)]
        response: Option<Response<'a>>,
        error: Option<serde::de::IgnoredAny>,
    }
    #[derive(Deserialize)]
    struct Response<'a> {
        status_code: u16,
        #[serde(borrow)]
        body: &'a RawValue,
    }
    let row: Row<'_> = serde_json::from_str(text).ok()?;
    let number = row.id.strip_prefix(ID)?.parse().ok()?;
    let failed = row.error.is_some() || row.response.as_ref().is_none_or(|response| response.status_code >= 400);
    let usage = row.response.and_then(|response| usage::from_json(response.body.get().as_bytes()));
    Some(Written { number, failed, usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stays_as_it_is_and_on_one_line() {
        let body =
            "{\n  \"usage\": {\"prompt_tokens\": 3, \"completion_tokens\": 4},\r\n  \"x\": \"a\\nb\"\n}".to_owned();
        let text = line(5, "a\"b", &Came::Answer { status: 200, request_id: "req_1".into(), body });
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["response"]["body"]["x"], "a\nb");
        assert_eq!((&value["error"], &value["custom_id"]), (&serde_json::Value::Null, &"a\"b".into()));
        let read = read(&text).unwrap();
        assert_eq!((read.number, read.failed), (5, false));
        assert_eq!(read.usage, Some(Usage { input_tokens: 3, output_tokens: 4 }));
    }

    #[test]
    fn an_http_failure_is_a_response_and_what_never_got_one_an_error() {
        let page = Came::Answer { status: 502, request_id: String::new(), body: "<html>".into() };
        let value: serde_json::Value = serde_json::from_str(&line(1, "1", &page)).unwrap();
        assert_eq!((&value["response"]["body"], &value["error"]), (&"<html>".into(), &serde_json::Value::Null));
        let none = Came::Nothing { code: "connection_error", message: "connection refused".into() };
        let text = line(1, "1", &none);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["response"], &value["error"]["code"]),
            (&serde_json::Value::Null, &"connection_error".into())
        );
        assert!(read(&text).unwrap().failed && read("{}").is_none());
    }
}
