//! Reads what a call asks for out of its body, and what of it is wrong.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::limiter::Charge;
use crate::multipart;
use crate::route::Endpoint;
use crate::scenario::ChargeRule;
use crate::tally::{self, Tally};

/// What an image costs the limiter, whatever is billed.
const IMAGE_TOKENS: u64 = 765;
/// What an answer is assumed to have at most when nobody says so, as the limiter once did.
const ASSUMED_MAX_TOKENS: u64 = 16;
const EMBEDDING_INPUTS_MAX: u64 = 2_048;
const EMBEDDING_TOKENS_MAX: u64 = 300_000;

/// A call that names a model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) user: Option<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Answers wanted, at least 1.
    pub(crate) n: u64,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) input: Tally,
    /// Tokens of the tools' descriptions; absent without tools.
    pub(crate) tool_tokens: Option<u64>,
    pub(crate) form: Form,
    pub(crate) base64: bool,
    pub(crate) dimensions: Option<u64>,
    /// `response_format` of audio and images.
    pub(crate) format: Option<String>,
    /// Fields of a `responses` call that its reply repeats.
    pub(crate) repeated: Vec<(&'static str, Box<RawValue>)>,
}

/// What the answer looks like.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Form {
    #[default]
    Text,
    /// A JSON text: of any object, or of the schema.
    Json(Option<Value>),
    /// A call of this function with arguments of this schema.
    Tool { name: String, parameters: Value },
}

/// What is wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    /// The model, where it could still be read: such a call costs a request all the same.
    pub(crate) model: Option<String>,
}

#[derive(Deserialize)]
struct Json<'a> {
    model: Option<String>,
    user: Option<String>,
    safety_identifier: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    messages: Option<Tally>,
    input: Option<Tally>,
    prompt: Option<Tally>,
    instructions: Option<Tally>,
    encoding_format: Option<String>,
    dimensions: Option<u64>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Reads a call to a metered endpoint.
pub(crate) async fn read(endpoint: &Endpoint, headers: &HeaderMap, body: &Bytes) -> Result<Asked, Wrong> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if matches!(endpoint, Endpoint::ImageEdits | Endpoint::Transcriptions) && kind.starts_with("multipart/") {
        return form(endpoint, kind, body).await;
    }
    json(endpoint, body)
}

fn json(endpoint: &Endpoint, body: &[u8]) -> Result<Asked, Wrong> {
    let json: Json<'_> = serde_json::from_slice(body).map_err(|e| {
        if e.is_data() {
            return wrong(format!("Invalid type in the request body: {e}."), None, Some("invalid_type"), None);
        }
        wrong(format!("We could not parse the JSON body of your request. ({e})"), None, None, None)
    })?;
    let Some(model) = json.model.filter(|m| !m.is_empty()) else {
        return Err(wrong("you must provide a model parameter".to_owned(), None, None, None));
    };
    let missing = |param: &'static str| {
        let message = format!("Missing required parameter: '{param}'.");
        wrong(message, Some(param), Some("missing_required_parameter"), Some(model.clone()))
    };
    let mut input = match endpoint {
        Endpoint::Chat => json.messages.ok_or_else(|| missing("messages"))?,
        Endpoint::Completions => json.prompt.unwrap_or(Tally { items: 1, ..Tally::default() }),
        Endpoint::ImageGenerations | Endpoint::ImageEdits => json.prompt.ok_or_else(|| missing("prompt"))?,
        Endpoint::Transcriptions => return Err(missing("file")),
        Endpoint::Responses | Endpoint::InputTokens => json.input.unwrap_or_default(),
        _ => json.input.ok_or_else(|| missing("input"))?,
    };
    if matches!(endpoint, Endpoint::Chat) && input.items == 0 {
        let message = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty \
                       array instead.";
        return Err(wrong(message.to_owned(), Some("messages"), Some("empty_array"), Some(model)));
    }
    if matches!(endpoint, Endpoint::Embeddings)
        && (input.items > EMBEDDING_INPUTS_MAX || input.tokens > EMBEDDING_TOKENS_MAX)
    {
        let message = format!(
            "Invalid 'input': at most {EMBEDDING_INPUTS_MAX} inputs and {EMBEDDING_TOKENS_MAX} tokens per request, got \
             {} and {}.",
            input.items, input.tokens
        );
        return Err(wrong(message, Some("input"), None, Some(model)));
    }
    if let Some(instructions) = json.instructions {
        input.chars += instructions.chars;
        input.tokens += instructions.tokens;
        input.items += 1;
    }
    let is_responses = matches!(endpoint, Endpoint::Responses);
    let raw_form = if is_responses { text_format(json.text) } else { json.response_format.map(RawValue::get) };
    let repeated = if is_responses {
        let fields = [
            ("tools", json.tools),
            ("tool_choice", json.tool_choice),
            ("text", json.text),
            ("metadata", json.metadata),
        ];
        fields.into_iter().filter_map(|(name, raw)| Some((name, raw?.to_owned()))).collect()
    } else {
        Vec::new()
    };
    let max_tokens = json.max_completion_tokens.or(json.max_tokens).or(json.max_output_tokens);
    Ok(Asked {
        model,
        user: json.user.or(json.safety_identifier),
        stream: json.stream.unwrap_or(false),
        include_usage: json.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        n: json.n.unwrap_or(1).clamp(1, 128),
        max_tokens,
        input,
        tool_tokens: json.tools.map(|t| tally::tokens(t.get())),
        form: form_of(json.tools, json.tool_choice, raw_form),
        base64: json.encoding_format.as_deref() == Some("base64"),
        dimensions: json.dimensions,
        format: json.response_format.and_then(|f| serde_json::from_str(f.get()).ok()),
        repeated,
    })
}

async fn form(endpoint: &Endpoint, kind: &str, body: &Bytes) -> Result<Asked, Wrong> {
    let form = multipart::read(kind, body.clone()).await.map_err(|message| wrong(message, None, None, None))?;
    let Some(model) = form.text("model") else {
        return Err(wrong("you must provide a model parameter".to_owned(), None, None, None));
    };
    let wanted = if matches!(endpoint, Endpoint::Transcriptions) { "file" } else { "image" };
    if form.file(wanted).is_none() {
        let message = format!("Missing required parameter: '{wanted}'.");
        return Err(wrong(message, Some(wanted), Some("missing_required_parameter"), Some(model)));
    }
    Ok(Asked {
        model,
        user: form.text("user"),
        stream: form.text("stream").as_deref() == Some("true"),
        n: form.text("n").and_then(|n| n.parse().ok()).unwrap_or(1).clamp(1, 10),
        input: form.text("prompt").map(|p| Tally::of_text(&p)).unwrap_or_default(),
        format: form.text("response_format"),
        ..Asked::default()
    })
}

/// `format` inside the `text` of a `responses` call.
fn text_format(text: Option<&RawValue>) -> Option<&str> {
    #[derive(Deserialize)]
    struct Text<'a> {
        #[serde(borrow)]
        format: Option<&'a RawValue>,
    }
    serde_json::from_str::<Text<'_>>(text?.get()).ok()?.format.map(RawValue::get)
}

/// A tool is called when the choice demands it; else the answer is text, or JSON where that is asked for.
fn form_of(tools: Option<&RawValue>, choice: Option<&RawValue>, format: Option<&str>) -> Form {
    if let Some((tools, choice)) = tools.zip(choice) {
        let choice: Value = serde_json::from_str(choice.get()).unwrap_or_default();
        let wanted = choice["function"]["name"].as_str().or(choice["name"].as_str());
        if choice == "required" || wanted.is_some() {
            let tools: Value = serde_json::from_str(tools.get()).unwrap_or_default();
            let functions = tools.as_array().into_iter().flatten().map(|tool| tool.get("function").unwrap_or(tool));
            let mut named = functions.filter_map(|f| Some((f["name"].as_str()?, f)));
            let found = named.find(|(name, _)| wanted.is_none_or(|w| w == *name));
            if let Some((name, function)) = found {
                return Form::Tool { name: name.to_owned(), parameters: function["parameters"].clone() };
            }
        }
    }
    let Some(format) = format.and_then(|f| serde_json::from_str::<Value>(f).ok()) else { return Form::Text };
    match format["type"].as_str() {
        Some("json_object") => Form::Json(None),
        Some("json_schema") => {
            let schema = format["json_schema"].get("schema").or(format.get("schema"));
            Form::Json(schema.cloned())
        }
        _ => Form::Text,
    }
}

fn wrong(message: String, param: Option<&'static str>, code: Option<&'static str>, model: Option<String>) -> Wrong {
    Wrong { status: StatusCode::BAD_REQUEST, message, param, code, model }
}

impl Asked {
    /// What `usage` reports as input.
    pub(crate) fn real_input(&self, endpoint: &Endpoint) -> u64 {
        let texts = self.input.tokens + self.input.images * IMAGE_TOKENS + self.tool_tokens.unwrap_or(0);
        match endpoint {
            // Three tokens frame each message, three more begin the answer.
            Endpoint::Chat => texts + 3 * self.input.items + 3,
            Endpoint::Responses | Endpoint::InputTokens => texts + 3 * self.input.items.max(1) + 3,
            _ => texts,
        }
    }

    /// What the limiter takes when it admits this call.
    pub(crate) fn charge(&self, endpoint: &Endpoint, rule: ChargeRule) -> Charge {
        let images = IMAGE_TOKENS * self.input.images;
        let input = self.input.chars / 4 + images;
        let most = self.max_tokens.unwrap_or(ASSUMED_MAX_TOKENS).saturating_mul(self.n);
        let tokens = match endpoint {
            Endpoint::Speech | Endpoint::Transcriptions | Endpoint::InputTokens => 0,
            Endpoint::ImageGenerations | Endpoint::ImageEdits => IMAGE_TOKENS,
            Endpoint::Embeddings | Endpoint::Moderations => input.max(1),
            Endpoint::Chat | Endpoint::Completions | Endpoint::Responses => match rule {
                ChargeRule::Input | ChargeRule::Usage => input,
                ChargeRule::InputPlusMax => input + most,
                ChargeRule::Max => input.max(most),
                ChargeRule::Measured => match endpoint {
                    Endpoint::Completions => input.max(most),
                    Endpoint::Responses if self.tool_tokens.is_some() => self.real_input(endpoint) + 217,
                    Endpoint::Responses => self.real_input(endpoint) + 19,
                    _ => input + 2,
                },
            },
            _ => 0,
        };
        let made = matches!(endpoint, Endpoint::ImageGenerations | Endpoint::ImageEdits);
        Charge { requests: 1, tokens, images: if made { self.n } else { 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Asked {
        json(&Endpoint::Chat, body.as_bytes()).expect("valid")
    }

    #[test]
    fn chat_is_charged_by_characters_without_tools_or_max_tokens() {
        let text = "x".repeat(1_011);
        let body = format!(
            r#"{{"model":"gpt-4o","max_tokens":500,"messages":[{{"role":"user","content":"{text}"}}],
                "tools":[{{"type":"function","function":{{"name":"f","description":"{text}"}}}}]}}"#
        );
        let asked = chat(&body);
        assert_eq!(asked.charge(&Endpoint::Chat, ChargeRule::Measured), Charge::of_tokens(254));
        assert!(asked.real_input(&Endpoint::Chat) > 300, "tools are billed though not admitted by");
    }

    #[test]
    fn each_rule_charges_what_it_says() {
        let text = "x".repeat(72);
        let body =
            format!(r#"{{"model":"m","n":2,"max_tokens":100,"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let asked = chat(&body);
        for (rule, tokens) in [
            (ChargeRule::Input, 18),
            (ChargeRule::Usage, 18),
            (ChargeRule::InputPlusMax, 218),
            (ChargeRule::Max, 200),
            (ChargeRule::Measured, 20),
        ] {
            assert_eq!(asked.charge(&Endpoint::Chat, rule).tokens, tokens, "{rule:?}");
        }
    }

    #[test]
    fn responses_are_charged_by_real_input_and_a_constant() {
        for (tools, extra) in [("", 19), (r#","tools":[]"#, 217)] {
            let body = format!(r#"{{"model":"m","input":"one two three","max_output_tokens":900{tools}}}"#);
            let asked = json(&Endpoint::Responses, body.as_bytes()).expect("valid");
            let real = asked.real_input(&Endpoint::Responses);
            assert_eq!(asked.charge(&Endpoint::Responses, ChargeRule::Measured).tokens, real + extra);
        }
    }

    #[test]
    fn a_tool_is_called_only_when_the_choice_demands_it() {
        let with = |choice: &str| {
            chat(&format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"tool_choice":{choice},
                    "tools":[{{"type":"function","function":{{"name":"a"}}}},{{"type":"function","function":{{"name":"b"}}}}]}}"#
            ))
            .form
        };
        let tool = |name: &str| Form::Tool { name: name.to_owned(), parameters: Value::Null };
        assert_eq!(with(r#""auto""#), Form::Text);
        assert_eq!(with(r#""required""#), tool("a"));
        assert_eq!(with(r#"{"type":"function","function":{"name":"b"}}"#), tool("b"));
    }

    #[test]
    fn a_broken_body_is_told_apart_from_a_missing_parameter() {
        let fail = |body: &str| json(&Endpoint::Chat, body.as_bytes()).expect_err("wrong");
        assert!(fail("{\"model\":").message.contains("could not parse the JSON body"));
        assert!(fail("{}").message.contains("model parameter"));
        let missing = fail(r#"{"model":"gpt-4o"}"#);
        assert_eq!((missing.param, missing.model.as_deref()), (Some("messages"), Some("gpt-4o")));
        assert_eq!(fail(r#"{"model":"m","messages":[],"n":"two"}"#).code, Some("invalid_type"));
    }
}
