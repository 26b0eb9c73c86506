//! Decides what one line of input asks for, or why it asks for nothing that could be sent.
//!
//! Three forms: OpenAI's Batch form, a bare body, and with a prompt's key any object whose text becomes a chat message.
//! Bodies go out as they were written; only a missing model is put in front.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tidegate_core::call::RequestType;
use tidegate_core::cost::Cost;
use tidegate_core::openai::endpoints::{Endpoint, classify_path};
use tidegate_core::openai::estimate::{self, Calibration, Request};

/// Where bodies without a URL of their own go.
const CHAT: &str = "/v1/chat/completions";

/// How lines are read: what the flags fill in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Where bare bodies go. `None`: chat completions.
    pub endpoint: Option<String>,
    /// The model of bodies that name none.
    pub model: Option<String>,
    /// The key of the text that becomes a chat message.
    pub prompt_key: Option<String>,
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) custom_id: String,
    /// As written: `/v1/chat/completions`.
    pub(crate) url: String,
    pub(crate) body: String,
    pub(crate) asking: Asking,
}

/// What is known of a call before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    pub(crate) endpoint: Endpoint,
    pub(crate) request_type: RequestType,
    pub(crate) model: String,
    pub(crate) cost: Cost,
    /// No text takes more tokens than this.
    pub(crate) input_tokens_max: u64,
}

/// A line that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub number: u64,
    /// What its result is called: its own name, where that can be read and is nobody else's, or one that was made up for it.
    pub custom_id: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Deserialize)]
struct Outer<'a> {
    custom_id: Option<Value>,
    method: Option<String>,
    url: Option<String>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

impl Shape {
    /// Reads the line `number` (from 1).
    pub(crate) fn read(&self, number: u64, text: &str) -> Result<Line, BadLine> {
        let mut known_id = None;
        self.read_into(number, text, &mut known_id).map_err(|reason| BadLine { number, custom_id: known_id, reason })
    }

    fn read_into(&self, number: u64, text: &str, known_id: &mut Option<String>) -> Result<Line, String> {
        let outer: Outer<'_> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        *known_id = match outer.custom_id {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) if !id.is_empty() => Some(id),
            Some(_) => return Err("custom_id must be a text that is not empty".to_owned()),
        };
        let custom_id = known_id.clone().unwrap_or_else(|| number.to_string());
        let (url, body) = if let Some(key) = &self.prompt_key {
            (self.bare_url(), self.prompt(key, text)?)
        } else if outer.body.is_some() || outer.url.is_some() {
            let url = outer.url.unwrap_or_else(|| self.bare_url());
            let method = outer.method.unwrap_or_else(|| "POST".to_owned());
            if method != "POST" {
                return Err(format!("method must be POST, not {method}"));
            }
            let body = outer.body.ok_or("a line with url needs a body")?;
            if !body.get().starts_with('{') {
                return Err("body must be an object".to_owned());
            }
            (url, body.get().to_owned())
        } else {
            (self.bare_url(), text.trim().to_owned())
        };
        let (body, asking) = self.asking(&url, body)?;
        Ok(Line { custom_id, url, body, asking })
    }

    fn bare_url(&self) -> String {
        self.endpoint.as_deref().map_or_else(|| CHAT.to_owned(), with_version)
    }

    /// The body of a chat with one message.
    fn prompt(&self, key: &str, text: &str) -> Result<String, String> {
        let object: Value = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        let prompt = match object.get(key) {
            Some(Value::String(prompt)) => prompt,
            Some(_) => return Err(format!("\"{key}\" must be a text")),
            None => return Err(format!("there is no \"{key}\" in it (--prompt-key names the text)")),
        };
        Ok(serde_json::json!({ "messages": [{ "role": "user", "content": prompt }] }).to_string())
    }

    fn asking(&self, url: &str, body: String) -> Result<(String, Asking), String> {
        if !url.starts_with('/') {
            return Err(format!("url must be a path such as {CHAT}, not {url}"));
        }
        let route = classify_path(url);
        if route.endpoint == Endpoint::Unknown {
            return Err(format!("there is no {url} in the API"));
        }
        let mut body = body;
        let first = read_body(route.endpoint, &body)?;
        if first.stream {
            return Err("a line of output holds no stream: leave \"stream\" out".to_owned());
        }
        if first.model.is_none() {
            let model = self.model.as_deref().ok_or("it names no model; --model fills one in")?;
            body = with_first(&body, "model", &Value::from(model));
        }
        let asked = read_body(route.endpoint, &body)?;
        let cost = if route.is_metered("POST") {
            estimate::estimate(&asked, &Calibration::default())
        } else {
            Cost { max_output_tokens: Some(0), ..Cost::default() }
        };
        // Half a token a byte is more than any text takes; each message has a frame of its own.
        let frames = 16 * (1 + body.matches("\"role\"").count() as u64);
        let by_bytes = (asked.text_bytes.saturating_add(asked.tools_bytes)).div_ceil(2).saturating_add(frames);
        let asking = Asking {
            endpoint: route.endpoint,
            request_type: route.endpoint.request_type(),
            model: asked.model.as_deref().unwrap_or("").to_owned(),
            cost,
            input_tokens_max: cost.input_tokens.max(by_bytes),
        };
        if needs_messages(route.endpoint) && !has_key(&body, "messages") {
            let hint = "--prompt-key names a text that becomes one, --endpoint another endpoint";
            return Err(format!("a chat needs \"messages\" ({hint})"));
        }
        drop(asked);
        Ok((body, asking))
    }
}

/// The body with a ceiling on its output that it did not have.
pub(crate) fn with_ceiling(body: &str, endpoint: Endpoint, tokens: u64) -> String {
    let key = match endpoint {
        Endpoint::ChatCompletions => "max_completion_tokens",
        Endpoint::Completions => "max_tokens",
        _ => "max_output_tokens",
    };
    with_first(body, key, &Value::from(tokens))
}

fn with_first(body: &str, key: &str, value: &Value) -> String {
    let rest = body.trim_start().strip_prefix('{').unwrap_or("}");
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    format!("{{\"{key}\":{value}{comma}{rest}")
}

fn read_body(endpoint: Endpoint, body: &str) -> Result<Request<'_>, String> {
    estimate::parse(endpoint, body.as_bytes()).map_err(|error| error.to_string())
}

const fn needs_messages(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions)
}

fn has_key(body: &str, key: &str) -> bool {
    #[derive(Deserialize)]
    struct Keys<'a>(#[serde(borrow)] std::collections::BTreeMap<Cow<'a, str>, serde::de::IgnoredAny>);
    serde_json::from_str::<Keys<'_>>(body).is_ok_and(|keys| keys.0.contains_key(key))
}

/// `chat/completions` and `/chat/completions` are meant as `/v1/chat/completions`.
fn with_version(endpoint: &str) -> String {
    let path = endpoint.trim_start_matches('/');
    if path.starts_with("v1/") || path.starts_with("openai/") { format!("/{path}") } else { format!("/v1/{path}") }
}

/// The reader's words, without the line that they count within a line.
fn malformed(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "it is no complete JSON object: it ends too early".to_owned();
    }
    let said = error.to_string();
    let what = said.split(" at line ").next().unwrap_or("");
    format!("it is no JSON object: {what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(shape: &Shape, text: &str) -> Result<Line, String> {
        shape.read(7, text).map_err(|bad| bad.reason)
    }

    #[test]
    fn the_batch_form_is_taken_as_it_is_written() {
        let text = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"e", "input":"abcd"}}"#;
        let line = read(&Shape::default(), text).unwrap();
        assert_eq!((line.custom_id.as_str(), line.url.as_str()), ("a", "/v1/embeddings"));
        assert_eq!(line.body, r#"{"model":"e", "input":"abcd"}"#);
        assert_eq!((line.asking.model.as_str(), line.asking.cost.input_tokens), ("e", 1));
    }

    #[test]
    fn a_bare_body_is_named_by_its_line_and_filled_in() {
        let shape = Shape { model: Some("m".into()), endpoint: Some("responses".into()), ..Shape::default() };
        let line = read(&shape, r#"{"input":"hello"}"#).unwrap();
        assert_eq!((line.custom_id.as_str(), line.url.as_str()), ("7", "/v1/responses"));
        assert_eq!(line.body, r#"{"model":"m","input":"hello"}"#);
        assert_eq!(read(&shape, "{}").unwrap().body, r#"{"model":"m"}"#);
    }

    #[test]
    fn a_prompt_becomes_a_chat_message() {
        let shape = Shape { model: Some("m".into()), prompt_key: Some("text".into()), ..Shape::default() };
        let line = read(&shape, r#"{"text":"say \"hi\"","other":[1]}"#).unwrap();
        let body: Value = serde_json::from_str(&line.body).unwrap();
        assert_eq!(body["messages"][0]["content"], "say \"hi\"");
        assert_eq!((body["model"].as_str(), line.url.as_str()), (Some("m"), CHAT));
        assert!(read(&shape, r#"{"prompt":"x"}"#).unwrap_err().contains("no \"text\""));
    }

    #[test]
    fn what_cannot_be_sent_says_why() {
        let shape = Shape::default();
        for (text, reason) in [
            ("", "ends too early"),
            ("[1]", "no JSON object"),
            ("{\"custom_id\":\"a\",", "ends too early"),
            (r#"{"custom_id":5,"body":{}}"#, "custom_id must be a text"),
            (r#"{"custom_id":"a","url":"/v1/embeddings"}"#, "needs a body"),
            (r#"{"method":"GET","url":"/v1/models","body":{}}"#, "method must be POST"),
            (r#"{"url":"/v1/nothing","body":{"model":"m"}}"#, "no /v1/nothing"),
            (r#"{"url":"https://x/v1/embeddings","body":{"model":"m"}}"#, "must be a path"),
            (r#"{"messages":[]}"#, "--model"),
            (r#"{"model":"m","stream":true,"messages":[]}"#, "stream"),
            (r#"{"model":"m","input":"x"}"#, "--endpoint"),
            (r#"{"model":"m","model":"n","messages":[]}"#, "twice"),
        ] {
            let said = read(&shape, text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
