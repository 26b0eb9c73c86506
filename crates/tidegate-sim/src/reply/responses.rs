//! The Responses API, at once and as its stream of named events.

use serde_json::{Map, Value, json};

use super::{Context, Reply, Said, script};
use crate::script::{Pace, Script};

/// Answers a responses call.
pub(crate) fn responses(cx: &Context<'_>, said: &Said, pace: Pace) -> Reply {
    if cx.asked.stream {
        return Reply::Stream(stream(cx, said, pace));
    }
    Reply::Json(finished(cx, said))
}

/// A response that failed with this error, as a stream tells it or as a plain reply.
pub(crate) fn failed(cx: &Context<'_>, code: &str, message: &str) -> Value {
    let mut response = response(cx, "failed", json!([]), Value::Null);
    response["error"] = json!({"code": code, "message": message});
    response
}

fn finished(cx: &Context<'_>, said: &Said) -> Value {
    let output = said.tokens();
    let usage = json!({
        "input_tokens": cx.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": cx.input_tokens + output,
    });
    let cut = matches!(said, Said::Text { cut: true, .. });
    let status = if cut { "incomplete" } else { "completed" };
    let mut response = response(cx, status, json!([item(cx, said, status, &said.text())]), usage);
    if cut {
        response["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    response
}

fn response(cx: &Context<'_>, status: &str, output: Value, usage: Value) -> Value {
    let mut response = json!({
        "id": format!("resp_{}", cx.id),
        "object": "response",
        "created_at": cx.created,
        "status": status,
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "max_output_tokens": cx.asked.max_tokens,
        "model": cx.model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "service_tier": "default",
        "store": false,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "user": cx.asked.user,
        "metadata": {},
    });
    for (name, raw) in &cx.asked.repeated {
        match serde_json::from_str::<Value>(raw.get()) {
            Ok(Value::Null) | Err(_) => {}
            Ok(value) => response[*name] = value,
        }
    }
    response
}

fn item(cx: &Context<'_>, said: &Said, status: &str, text: &str) -> Value {
    match said {
        Said::Text { .. } => {
            let content = if status == "in_progress" { json!([]) } else { json!([part(text)]) };
            json!({
                "id": item_id(cx, said), "type": "message", "status": status, "role": "assistant", "content": content
            })
        }
        Said::Tool { name, .. } => json!({
            "id": item_id(cx, said),
            "type": "function_call",
            "status": status,
            "call_id": format!("call_{}", cx.id),
            "name": name,
            "arguments": text,
        }),
    }
}

fn item_id(cx: &Context<'_>, said: &Said) -> String {
    let kind = if matches!(said, Said::Text { .. }) { "msg" } else { "fc" };
    format!("{kind}_{}", cx.id)
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// Numbers the events as they are added.
struct Events {
    script: Script,
    number: u64,
}

impl Events {
    fn add(&mut self, token: u64, kind: &str, fields: Value) {
        let mut event = Map::new();
        event.insert("type".to_owned(), kind.into());
        event.insert("sequence_number".to_owned(), self.number.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.number += 1;
        self.script.event(token, &["event: ", kind, "\ndata: ", &Value::Object(event).to_string()]);
    }
}

fn stream(cx: &Context<'_>, said: &Said, pace: Pace) -> Script {
    let mut events = Events { script: script(pace), number: 0 };
    let begun = response(cx, "in_progress", json!([]), Value::Null);
    events.add(0, "response.created", json!({"response": begun}));
    events.add(0, "response.in_progress", json!({"response": begun}));
    let opened = item(cx, said, "in_progress", "");
    events.add(0, "response.output_item.added", json!({"output_index": 0, "item": opened}));
    let id = item_id(cx, said);
    let last = said.pieces().len() as u64;
    match said {
        Said::Text { .. } => {
            let place = |extra: Value| with(json!({"item_id": id, "output_index": 0, "content_index": 0}), extra);
            events.add(0, "response.content_part.added", place(json!({"part": part("")})));
            for (i, chunk) in said.pieces().chunks(cx.chunk).enumerate() {
                let delta = place(json!({"delta": chunk.concat(), "logprobs": []}));
                events.add((i * cx.chunk) as u64, "response.output_text.delta", delta);
            }
            let text = said.text();
            events.add(last, "response.output_text.done", place(json!({"text": text, "logprobs": []})));
            events.add(last, "response.content_part.done", place(json!({"part": part(&text)})));
        }
        Said::Tool { name, .. } => {
            let place = |extra: Value| with(json!({"item_id": id, "output_index": 0}), extra);
            for (i, chunk) in said.pieces().chunks(cx.chunk).enumerate() {
                let delta = place(json!({"delta": chunk.concat()}));
                events.add((i * cx.chunk) as u64, "response.function_call_arguments.delta", delta);
            }
            let whole = place(json!({"name": name, "arguments": said.text()}));
            events.add(last, "response.function_call_arguments.done", whole);
        }
    }
    let finished = finished(cx, said);
    events.add(last, "response.output_item.done", json!({"output_index": 0, "item": finished["output"][0]}));
    let end = if finished["status"] == "completed" { "response.completed" } else { "response.incomplete" };
    events.add(last, end, json!({"response": finished}));
    events.script
}

fn with(mut fields: Value, extra: Value) -> Value {
    if let (Value::Object(fields), Value::Object(extra)) = (&mut fields, extra) {
        fields.extend(extra);
    }
    fields
}
