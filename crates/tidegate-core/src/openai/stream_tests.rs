use proptest::prelude::*;

use super::*;
use StreamEvent::{Content, End, Error, Preamble, UsageOnly};

fn watch(endpoint: Endpoint, stream: &str) -> (StreamMeter, Vec<StreamEvent>) {
    let mut meter = StreamMeter::new(endpoint);
    let mut events = Vec::new();
    meter.feed(stream.as_bytes(), |event, _| events.push(event));
    meter.finish();
    (meter, events)
}

fn chat(events: &[&str]) -> (StreamMeter, Vec<StreamEvent>) {
    watch(Endpoint::ChatCompletions, &events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>())
}

/// Events of responses, with the name that their type says.
fn responses(events: &[&str]) -> (StreamMeter, Vec<StreamEvent>) {
    let stream = events.iter().map(|event| {
        let name =
            serde_json::from_str::<serde_json::Value>(event).expect("an event")["type"].as_str().map(str::to_owned);
        format!("event: {}\ndata: {event}\n\n", name.unwrap_or_default())
    });
    watch(Endpoint::Responses, &stream.collect::<String>())
}

const ROLE: &str =
    r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#;
const HELLO: &str = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"Hello, \"w\"\n"},"logprobs":{"content":[{"token":"Hello","bytes":[72],"top_logprobs":[]}]},"finish_reason":null}],"usage":null}"#;
const STOP: &str = r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
const USAGE: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}"#;

#[test]
fn a_chat_stream_is_read_to_its_end() {
    let (meter, events) = chat(&[ROLE, HELLO, STOP, USAGE, "[DONE]"]);
    assert_eq!(events, [Content, Content, Content, UsageOnly, End]);
    assert_eq!(meter.reported(), Some(Usage { input_tokens: 9, output_tokens: 12 }));
    assert_eq!(meter.used(100), Usage { input_tokens: 9, output_tokens: 12 });
    assert!(meter.is_committed() && meter.is_complete() && meter.has_ended() && meter.fault().is_none());
}

#[test]
fn a_chat_stream_cut_short_is_charged_with_what_was_seen() {
    let (meter, _) = chat(&[ROLE, HELLO, HELLO]);
    assert!(!meter.is_complete() && !meter.has_ended());
    // Twice 11 bytes, without those of the logprobs.
    assert_eq!(meter.used(100), Usage { input_tokens: 100, output_tokens: 22_u64.div_ceil(4) });
    let (meter, _) = chat(&[ROLE, HELLO, STOP]);
    assert!(meter.is_complete() && !meter.has_ended());
}

#[test]
fn tool_arguments_and_reasoning_and_legacy_text_count() {
    for (event, bytes) in [
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#,
            7,
        ),
        (r#"{"choices":[{"delta":{"reasoning_content":"hmm"}}]}"#, 3),
        (r#"{"choices":[{"delta":{"refusal":"no"}}]}"#, 2),
        (r#"{"choices":[{"text":"abcd","index":0,"logprobs":{"tokens":["abcd"]},"finish_reason":null}]}"#, 4),
        (r#"{"choices":[{"delta":{"content":"a"}},{"index":1,"delta":{"content" : "b"}}]}"#, 2),
        (r#"{"choices":[{"delta":{"content":"é中\u4e2d"}}]}"#, 8),
        (r#"{"choices":[{"delta":{"content":"\\\"\\"}}]}"#, 3),
        (r#"{"choices":[{"delta":{"content":null,"role":"assistant"}}]}"#, 0),
        (r#"{"choices":[{"delta":{"content":[{"type":"text","text":"ab"}]}}]}"#, 2),
        (r#"{"choices":[{"delta":{"content":"cut o"#, 5),
    ] {
        assert_eq!(chat(&[event]).0.watched.output_bytes, bytes, "{event}");
    }
}

#[test]
fn words_in_a_text_are_no_marks() {
    let (meter, events) = chat(&[
        r#"{"choices":[{"delta":{"content":"\"error\":{\"code\":1},\"usage\":{\"prompt_tokens\":1}"}}]}"#,
        r#"{"choices":[{"delta":{"content":"error"}}],"usage":{"note":"none"}}"#,
        r#"{"choices":[{"delta":{"content":"usage"}}],"error":null}"#,
    ]);
    assert_eq!(events, [Content; 3]);
    assert_eq!((meter.reported(), meter.fault()), (None, None));
}

#[test]
fn usage_on_every_chunk_is_no_usage_only_chunk() {
    let with_usage = r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#;
    let (meter, events) = chat(&[with_usage, &with_usage.replace(":1}", ":2}")]);
    assert_eq!(events, [Content, Content]);
    assert_eq!(meter.reported().map(|usage| usage.output_tokens), Some(2));
    // Azure begins with a chunk without choices and without usage.
    assert_eq!(chat(&[r#"{"choices":[],"prompt_filter_results":[]}"#]).1, [Content]);
    assert_eq!(chat(&[r#"{"choices": [ ], "usage": {"prompt_tokens": 1}}"#]).1, [UsageOnly]);
}

#[test]
fn an_error_before_anything_commits_nothing() {
    let error = r#"{"error":{"message":"m","type":"tokens","code":"rate_limit_exceeded"}}"#;
    let (meter, events) = chat(&[error, "[DONE]"]);
    assert_eq!(events, [Error, End]);
    assert!(!meter.is_committed() && meter.is_complete());
    assert_eq!(meter.fault().map(|fault| fault.kind), Some(FaultKind::RateLimited));
    let (meter, events) = chat(&[ROLE, error]);
    assert_eq!(events, [Content, Error]);
    assert!(meter.is_committed() && meter.fault().is_some());
    let (meter, events) = watch(Endpoint::ChatCompletions, "event: error\ndata: it broke\n\n");
    assert_eq!((events.as_slice(), meter.fault().map(|fault| fault.kind)), (&[Error][..], Some(FaultKind::Server)));
}

#[test]
fn responses_commit_at_the_first_event_that_is_no_preamble() {
    let created = r#"{"type":"response.created","response":{"status":"in_progress","error":null,"usage":null}}"#;
    let progress = r#"{"type":"response.in_progress","response":{"status":"in_progress","error":null}}"#;
    let (meter, events) = responses(&[created, r#"{"type":"response.queued"}"#, progress]);
    assert_eq!(events, [Preamble; 3]);
    assert!(!meter.is_committed());
    let (meter, events) = responses(&[created, r#"{"type":"response.output_item.added","item":{}}"#]);
    assert_eq!(events, [Preamble, Content]);
    assert!(meter.is_committed() && !meter.is_complete());
    let failed = r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"rate_limit_exceeded","message":"Please try again in 2s."},"usage":{"input_tokens":3}}}"#;
    let (meter, events) = responses(&[created, failed]);
    assert_eq!(events, [Preamble, Error]);
    assert!(!meter.is_committed() && meter.is_complete());
    assert_eq!(meter.fault().map(|fault| fault.kind), Some(FaultKind::RateLimited));
    assert_eq!(meter.reported().map(|usage| usage.input_tokens), Some(3));
    let (meter, events) = responses(&[created, r#"{"type":"error","code":"server_error","message":"m","param":null}"#]);
    assert_eq!((events[1], meter.is_committed()), (Error, false));
}

#[test]
fn a_responses_stream_is_read_to_its_end() {
    let (meter, events) = responses(&[
        r#"{"type":"response.output_text.delta","item_id":"m","delta":"Hello "}"#,
        r#"{"type":"response.function_call_arguments.delta","delta":"{\"a\""}"#,
        r#"{"type":"response.output_text.done","text":"Hello "}"#,
        r#"{"type":"response.audio.delta","delta":"AAAA"}"#,
    ]);
    assert_eq!(events, [Content; 4]);
    assert_eq!(meter.watched.output_bytes, 6 + 4);
    for end in ["completed", "incomplete"] {
        let end = format!(
            r#"{{"type":"response.{end}","response":{{"tools":[{{"error":{{}},"usage":{{"input_tokens":1}}}}],"usage":{{"input_tokens":36,"output_tokens":87}}}}}}"#
        );
        let (meter, events) = responses(&[&end]);
        assert_eq!(
            (events.as_slice(), meter.reported()),
            (&[End][..], Some(Usage { input_tokens: 36, output_tokens: 87 }))
        );
        assert!(meter.is_complete() && meter.fault().is_none());
    }
}

#[test]
fn a_callers_tools_are_taken_for_nothing_else() {
    let tools = r#"{"type":"response.created","response":{"error":null,"tools":[{"parameters":{"properties":{"error":{"type":"object","code":"x"},"usage":{"input_tokens":5}}}}]}}"#;
    let (meter, events) = responses(&[tools]);
    assert_eq!((events.as_slice(), meter.fault(), meter.reported()), (&[Preamble][..], None, None));
}

#[test]
fn an_event_without_a_name_is_known_by_its_type() {
    let stream = "data: {\"sequence_number\":1,\"type\":\"response.created\"}\n\ndata: {\"type\": \"response.output_text.delta\", \"delta\": \"abcd\"}\n\n";
    let (meter, events) = watch(Endpoint::Responses, stream);
    assert_eq!((events.as_slice(), meter.seen_output_tokens()), (&[Preamble, Content][..], 1));
}

#[test]
fn image_streams_end_with_their_completed_event() {
    let stream = "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"AA\"}\n\n\
                  event: image_generation.completed\ndata: {\"type\":\"image_generation.completed\",\"usage\":{\"input_tokens\":5,\"output_tokens\":7}}\n\n";
    let (meter, events) = watch(Endpoint::Images, stream);
    assert_eq!(events, [Content, End]);
    assert_eq!(meter.reported(), Some(Usage { input_tokens: 5, output_tokens: 7 }));
}

#[test]
fn comments_commit_nothing() {
    let (meter, events) = watch(Endpoint::ChatCompletions, ": OPENROUTER PROCESSING\n\n: again\n\n");
    assert!(events.is_empty() && !meter.is_committed());
}

proptest! {
    #[test]
    fn what_is_seen_does_not_depend_on_the_pieces(
        order in proptest::collection::vec(0_usize..6, 0..8),
        size in 1_usize..200,
        windows: bool,
    ) {
        let events = [ROLE, HELLO, STOP, USAGE, "[DONE]", r#"{"error":{"code":"server_error","message":"é"}}"#];
        let end = if windows { "\r\n\r\n" } else { "\n\n" };
        let stream: String = order.iter().map(|at| format!("data: {}{end}", events[*at])).collect();
        let (whole, _) = watch(Endpoint::ChatCompletions, &stream);
        let mut cut = StreamMeter::new(Endpoint::ChatCompletions);
        for piece in stream.as_bytes().chunks(size) {
            cut.feed(piece, |_, _| {});
        }
        cut.finish();
        prop_assert_eq!(format!("{:?}", whole.watched), format!("{:?}", cut.watched));
    }

    #[test]
    fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), words in "(data: |event: |\n|\n\n|\"choices\"|\"usage\"|\"error\"|\"delta\"|\"type\"|:|\\{|\"|\\\\|\\\\u|\\[|\\]|error|[.]delta){0,40}") {
        for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses, Endpoint::Images] {
            for stream in [&noise[..], words.as_bytes()] {
                let mut meter = StreamMeter::new(endpoint);
                meter.feed(stream, |_, _| {});
                meter.finish();
                let _ = meter.used(1);
            }
        }
    }
}
