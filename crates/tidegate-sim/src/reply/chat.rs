//! Chat completions, at once and as a stream of chunks.

use serde_json::{Value, json};

use super::{Context, Reply, Said, quoted, script};
use crate::script::{Pace, Script};

/// Answers a chat call, one answer for each that was wanted.
pub(crate) fn chat(cx: &Context<'_>, said: &[Said], pace: Pace) -> Reply {
    if cx.asked.stream {
        return Reply::Stream(stream(cx, said, pace));
    }
    let choices: Vec<Value> = said.iter().enumerate().map(|(i, said)| choice(cx, i, said)).collect();
    Reply::Json(json!({
        "id": format!("chatcmpl-{}", cx.id),
        "object": "chat.completion",
        "created": cx.created,
        "model": cx.model,
        "choices": choices,
        "usage": usage(cx, said),
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }))
}

pub(super) fn usage(cx: &Context<'_>, said: &[Said]) -> Value {
    let output: u64 = said.iter().map(Said::tokens).sum();
    json!({
        "prompt_tokens": cx.input_tokens,
        "completion_tokens": output,
        "total_tokens": cx.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
        },
    })
}

fn choice(cx: &Context<'_>, index: usize, said: &Said) -> Value {
    let message = match said {
        Said::Text { .. } => {
            json!({"role": "assistant", "content": said.text(), "refusal": null, "annotations": []})
        }
        Said::Tool { name, .. } => json!({
            "role": "assistant",
            "content": null,
            "refusal": null,
            "annotations": [],
            "tool_calls": [{
                "id": call_id(cx, index),
                "type": "function",
                "function": {"name": name, "arguments": said.text()},
            }],
        }),
    };
    json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish_reason(said)})
}

fn finish_reason(said: &Said) -> &'static str {
    match said {
        Said::Text { cut: false, .. } => "stop",
        Said::Text { cut: true, .. } => "length",
        Said::Tool { .. } => "tool_calls",
    }
}

fn call_id(cx: &Context<'_>, index: usize) -> String {
    format!("call_{}{index}", &cx.id[..cx.id.len().min(20)])
}

/// Chunks are written by hand: they are most of what the simulator does, and their shape never changes.
fn stream(cx: &Context<'_>, said: &[Said], pace: Pace) -> Script {
    let mut script = script(pace);
    let head = format!(
        "data: {{\"id\":\"chatcmpl-{}\",\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},\
         \"service_tier\":\"default\",\"system_fingerprint\":\"fp_simulated\",\"choices\":[",
        cx.id,
        cx.created,
        quoted(cx.model)
    );
    let tail = if cx.asked.include_usage { "],\"usage\":null}" } else { "]}" };
    let mut chunk = |token: usize, index: usize, delta: &str, finish: &str| {
        let open = format!("{{\"index\":{index},\"delta\":{{");
        script.event(token as u64, &[&head, &open, delta, "},\"logprobs\":null,\"finish_reason\":", finish, "}", tail]);
    };
    for (index, said) in said.iter().enumerate() {
        let first = match said {
            Said::Text { .. } => "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null".to_owned(),
            Said::Tool { name, .. } => format!(
                "\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"index\":0,\"id\":\"{}\",\"type\":\
                 \"function\",\"function\":{{\"name\":{},\"arguments\":\"\"}}}}]",
                call_id(cx, index),
                quoted(name)
            ),
        };
        chunk(0, index, &first, "null");
    }
    let longest = said.iter().map(|s| s.pieces().len()).max().unwrap_or(0);
    for start in (0..longest).step_by(cx.chunk) {
        for (index, said) in said.iter().enumerate() {
            let pieces = said.pieces();
            if start >= pieces.len() {
                continue;
            }
            let text = quoted(&pieces[start..(start + cx.chunk).min(pieces.len())].concat());
            let delta = match said {
                Said::Text { .. } => format!("\"content\":{text}"),
                Said::Tool { .. } => format!("\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":{text}}}}}]"),
            };
            chunk(start, index, &delta, "null");
        }
    }
    for (index, said) in said.iter().enumerate() {
        chunk(longest, index, "", &quoted(finish_reason(said)));
    }
    if cx.asked.include_usage {
        let usage = usage(cx, said).to_string();
        script.event(longest as u64, &[&head, "],\"usage\":", &usage, "}"]);
    }
    script.event(longest as u64, &["data: [DONE]"]);
    script
}
