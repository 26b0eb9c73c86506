//! Legacy completions, at once and as a stream.

use serde_json::{Value, json};

use super::{Context, Reply, Said, chat::usage, script};
use crate::script::Pace;

/// Answers a completions call: each prompt gets as many answers as were wanted.
pub(crate) fn completions(cx: &Context<'_>, said: &[Said], pace: Pace) -> Reply {
    let reply = |choices: Vec<Value>, usage: Option<Value>| {
        let mut reply = json!({
            "id": format!("cmpl-{}", cx.id),
            "object": "text_completion",
            "created": cx.created,
            "model": cx.model,
            "choices": choices,
        });
        if let (Some(fields), Some(usage)) = (reply.as_object_mut(), usage) {
            fields.insert("usage".to_owned(), usage);
        }
        reply
    };
    let choice = |index: usize, text: &str, finish: Option<&str>| json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish});
    let finish = |said: &Said| if matches!(said, Said::Text { cut: true, .. }) { "length" } else { "stop" };
    if !cx.asked.stream {
        let choices = said.iter().enumerate().map(|(i, s)| choice(i, &s.text(), Some(finish(s)))).collect();
        return Reply::Json(reply(choices, Some(usage(cx, said))));
    }
    let mut script = script(pace);
    for (index, said) in said.iter().enumerate() {
        let pieces = said.pieces();
        for (i, chunk) in pieces.chunks(cx.chunk).enumerate() {
            let last = (i + 1) * cx.chunk >= pieces.len();
            let event = reply(vec![choice(index, &chunk.concat(), last.then(|| finish(said)))], None);
            script.event((i * cx.chunk) as u64, &["data: ", &event.to_string()]);
        }
    }
    let longest = said.iter().map(|s| s.pieces().len()).max().unwrap_or(0) as u64;
    if cx.asked.include_usage {
        script.event(longest, &["data: ", &reply(Vec::new(), Some(usage(cx, said))).to_string()]);
    }
    script.event(longest, &["data: [DONE]"]);
    Reply::Stream(script)
}
