use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use Endpoint::{ChatCompletions, Completions, Embeddings, Images, Moderations, Responses};

fn read(endpoint: Endpoint, body: &Value) -> Request<'static> {
    let text = body.to_string();
    let request = parse(endpoint, text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
    request.into_static()
}

impl Request<'_> {
    fn into_static(self) -> Request<'static> {
        let owned = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Request {
            endpoint: self.endpoint,
            model: owned(self.model),
            user: owned(self.user),
            safety_identifier: owned(self.safety_identifier),
            max_output_tokens: self.max_output_tokens,
            choices: self.choices,
            stream: self.stream,
            include_usage: self.include_usage,
            text_chars: self.text_chars,
            text_bytes: self.text_bytes,
            exact_tokens: self.exact_tokens,
            tools_bytes: self.tools_bytes,
            images: self.images,
            continues: self.continues,
        }
    }
}

fn cost(endpoint: Endpoint, body: &Value) -> Cost {
    estimate(&read(endpoint, body), &Calibration::default())
}

fn refused(endpoint: Endpoint, body: &str) -> BodyError {
    parse(endpoint, body.as_bytes()).expect_err(body)
}

#[test]
fn chat_is_read_in_full() {
    let body = json!({
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief.", "name": "uncounted"},
            {"role": "user", "content": [
                {"type": "text", "text": "What is\nthis?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "function": {"arguments": "{}"}}]},
            {"role": "tool", "content": "é中😀", "tool_call_id": "c"},
        ],
        "max_completion_tokens": 100,
        "n": 3,
        "stream": true,
        "stream_options": {"include_usage": true},
        "user": "u-1",
        "safety_identifier": "s-1",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "metadata": {"n": "5", "model": "x"},
    });
    let request = read(ChatCompletions, &body);
    assert_eq!(request.model.as_deref(), Some("gpt-4o"));
    assert_eq!((request.max_output_tokens, request.choices), (Some(100), 3));
    assert!(request.stream && request.include_usage && request.tools_bytes > 0);
    assert_eq!((request.user.as_deref(), request.named_user()), (Some("u-1"), Some("s-1")));
    assert_eq!((request.text_chars, request.text_bytes, request.images), (9 + 13 + 3, 9 + 13 + 9, 1));
    let cost = estimate(&request, &Calibration::default());
    assert_eq!((cost.input_tokens, cost.max_output_tokens), (7 + 2 + 765, Some(300)));
    assert_eq!(request.teaches(), None);
}

#[test]
fn chat_costs_a_quarter_of_its_characters_and_two() {
    let of = |chars: usize| cost(ChatCompletions, &json!({"messages": [{"content": "x".repeat(chars)}]})).input_tokens;
    assert_eq!((of(0), of(1), of(4), of(5), of(1_011)), (2, 3, 3, 4, 255));
    let without_ceiling = cost(ChatCompletions, &json!({"messages": [], "n": 2}));
    assert_eq!(without_ceiling.max_output_tokens, None);
}

#[test]
fn the_larger_of_the_two_ceilings_of_chat_counts() {
    let ceiling = |body: Value| read(ChatCompletions, &body).max_output_tokens;
    assert_eq!(ceiling(json!({"max_tokens": 5, "max_completion_tokens": 9})), Some(9));
    assert_eq!(ceiling(json!({"max_tokens": 9, "max_completion_tokens": null})), Some(9));
    assert_eq!(ceiling(json!({"max_tokens": -1})), None);
    assert_eq!(ceiling(json!({"max_output_tokens": 7})), None);
    assert_eq!(read(Responses, &json!({"max_output_tokens": 7, "max_tokens": 9})).max_output_tokens, Some(7));
    assert_eq!(parse(ChatCompletions, br#"{"max_tokens":1e3}"#).expect("read").max_output_tokens, Some(1_000));
    let huge = format!(r#"{{"max_tokens":{},"n":{}}}"#, "9".repeat(40), "9".repeat(40));
    let request = parse(ChatCompletions, huge.as_bytes()).expect("read");
    assert_eq!(estimate(&request, &Calibration::default()).max_output_tokens, Some(u64::MAX));
}

#[test]
fn responses_cost_about_their_real_tokens_and_a_frame() {
    let text = "x".repeat(400);
    assert_eq!(cost(Responses, &json!({"input": text})).input_tokens, 100 + 19);
    let with_tools = read(Responses, &json!({"input": text, "tools": [{"type": "web_search"}]}));
    assert_eq!(with_tools.tools_bytes, 23);
    assert_eq!(estimate(&with_tools, &Calibration::default()).input_tokens, (400_u64 + 23).div_ceil(4) + 217);
    assert_eq!(cost(Responses, &json!({"input": text, "tools": []})).input_tokens, 119);
    let plain = read(Responses, &json!({"input": text}));
    assert_eq!(estimate(&plain, &Calibration::from_per_mille(1_500)).input_tokens, 150 + 19);
    assert_eq!(plain.teaches(), Some(100));
}

#[test]
fn the_items_of_responses_count_with_all_that_they_say() {
    let body = json!({
        "instructions": "1234",
        "input": [
            {"role": "user", "content": "12345678"},
            {"role": "user", "content": [
                {"type": "input_text", "text": "1234"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                {"type": "input_file", "file_data": "AAAAAAAA"},
            ]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "1234"},
            {"type": "function_call_output", "call_id": "c", "output": "1234"},
            {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "data:x"}},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "1234"}], "encrypted_content": "AAAA"},
            {"type": "something_new", "payload": {"deep": ["uncounted"]}},
            "1234",
        ],
        "previous_response_id": "resp_1",
        "safety_identifier": "",
    });
    let request = read(Responses, &body);
    assert_eq!((request.text_chars, request.images, request.continues), (4 + 8 + 4 + 4 + 4 + 4 + 4, 2, true));
    assert_eq!(request.named_user(), None);
    assert!(!read(Responses, &json!({"previous_response_id": null})).continues);
    assert!(read(Responses, &json!({"conversation": {"id": "c"}})).continues);
}

#[test]
fn embeddings_count_characters_and_given_tokens_exactly() {
    assert_eq!(cost(Embeddings, &json!({"input": "12345"})).input_tokens, 2);
    assert_eq!(cost(Embeddings, &json!({"input": ["1234", "1234", "1"]})).input_tokens, 3);
    assert_eq!(cost(Embeddings, &json!({"input": [1, 2, 3]})).input_tokens, 3);
    assert_eq!(cost(Embeddings, &json!({"input": [[1, 2], [3, 4, 5]]})).input_tokens, 5);
    assert_eq!(cost(Embeddings, &json!({"input": []})).input_tokens, 0);
    assert_eq!(cost(Embeddings, &json!({"input": "x"})).max_output_tokens, Some(0));
}

#[test]
fn completions_write_as_much_as_prompts_and_choices_allow() {
    let output = |body: Value| cost(Completions, &body).max_output_tokens;
    assert_eq!(output(json!({"prompt": "hello", "max_tokens": 10})), Some(10));
    assert_eq!(output(json!({"prompt": "hello", "max_tokens": 10, "n": 2, "best_of": 4})), Some(40));
    assert_eq!(output(json!({"prompt": ["a", "b", "c"], "max_tokens": 10, "n": 2})), Some(60));
    assert_eq!(output(json!({"prompt": [1, 2, 3], "max_tokens": 10})), Some(10));
    assert_eq!(output(json!({"prompt": [[1], [2, 3]], "max_tokens": 10})), Some(20));
    assert_eq!(cost(Completions, &json!({"prompt": ["1234", "12345"]})).input_tokens, 3);
}

#[test]
fn images_cost_a_flat_sum_each() {
    let of = |body: Value| cost(Images, &body);
    assert_eq!((of(json!({"prompt": "1234"})).images, of(json!({"prompt": "1234"})).input_tokens), (1, 766));
    assert_eq!((of(json!({"n": 3})).images, of(json!({"n": 3})).input_tokens), (3, 2_295));
    assert_eq!(of(json!({"n": 0})).images, 1);
    assert_eq!(estimate(&Request::unread(Images), &Calibration::default()).images, 1);
}

#[test]
fn moderations_take_texts_and_images() {
    let body = json!({"input": [{"type": "text", "text": "1234"}, {"type": "image_url", "image_url": {"url": "x"}}]});
    assert_eq!(cost(Moderations, &body).input_tokens, 1 + 765);
    assert_eq!(cost(Moderations, &json!({"input": ["1234", "1234"]})).input_tokens, 2);
}

#[test]
fn fields_that_limits_depend_on_are_given_once() {
    for (body, expected) in [
        (r#"{"model":"a","model":"b"}"#, "model"),
        (r#"{"model":"a","mod\u0065l":"b"}"#, "model"),
        (r#"{"max_tokens":1,"max_tokens":2}"#, "max_tokens"),
        (r#"{"max_completion_tokens":1,"messages":[],"max_completion_tokens":2}"#, "max_completion_tokens"),
        (r#"{"max_output_tokens":1,"max_output_tokens":1}"#, "max_output_tokens"),
        (r#"{"n":1,"n":1}"#, "n"),
        (r#"{"user":"a","user":null}"#, "user"),
        (r#"{"stream":true,"stream":false}"#, "stream"),
    ] {
        match refused(ChatCompletions, body) {
            BodyError::Duplicate { field, at } => {
                assert_eq!((field, at.line), (expected, 1), "{body}");
                assert!(at.offset > 8 && at.offset <= body.len(), "{body} {at}");
            }
            other => panic!("{other:?}"),
        }
    }
    // What only adds to the estimate may repeat, and is added up.
    let twice = parse(ChatCompletions, br#"{"messages":[{"content":"1234"}],"messages":[{"content":"1234"}]}"#);
    assert_eq!(twice.expect("read").text_chars, 8);
}

#[test]
fn a_wrong_type_names_the_field_and_what_it_must_be() {
    for (body, named, expected_words) in [
        (r#"{"model":5}"#, "model", "a string"),
        (r#"{"max_tokens":"100"}"#, "max_tokens", "a whole number"),
        (r#"{"max_tokens":1.5}"#, "max_tokens", "a whole number"),
        (r#"{"n":[]}"#, "n", "a whole number"),
        (r#"{"stream":"true"}"#, "stream", "true or false"),
        (r#"{"stream_options":true}"#, "stream_options", "an object"),
        (r#"{"user":{}}"#, "user", "a string"),
        (r#"{"messages":"hi"}"#, "messages", "an array of objects"),
        (r#"{"messages":{"role":"user"}}"#, "messages", "an array of objects"),
        (r#"{"messages":["hi"]}"#, "messages", "an array of objects"),
        (r#"{"messages":[{"content":5}]}"#, "messages", "a string or an array"),
        (r#"{"messages":[{"content":["hi"]}]}"#, "messages", "an array of objects"),
        ("[]", "the body", "a JSON object"),
        ("\"x\"", "the body", "a JSON object"),
        ("null", "the body", "a JSON object"),
    ] {
        let error = refused(ChatCompletions, body);
        match &error {
            BodyError::WrongType { field, expected, .. } => {
                assert_eq!(*field, named, "{body}");
                assert!(expected.contains(expected_words), "{body}: {expected}");
            }
            other => panic!("{body}: {other:?}"),
        }
        assert!(error.to_string().starts_with(named), "{error}");
    }
    for (endpoint, body, named) in [
        (Embeddings, r#"{"input":{"a":1}}"#, "input"),
        (Responses, r#"{"input":5}"#, "input"),
        (Completions, r#"{"prompt":true}"#, "prompt"),
    ] {
        assert!(matches!(refused(endpoint, body), BodyError::WrongType { field, .. } if field == named), "{body}");
    }
}

#[test]
fn malformed_json_is_told_with_its_place() {
    for (body, line, column, offset) in [
        ("", 1, 0, 0),
        ("{", 1, 1, 0),
        ("{\"model\":\"a\",}", 1, 14, 13),
        ("{\n  \"model\": \"a\"\n  \"n\": 1\n}", 3, 3, 19),
        ("{\"messages\":[{\"content\":\"half", 1, 29, 28),
        ("{} x", 1, 4, 3),
        ("{\"a\":tru}", 1, 9, 8),
    ] {
        match refused(ChatCompletions, body) {
            BodyError::Malformed { what, at } => {
                assert_eq!((at.line, at.column, at.offset), (line, column, offset), "{body:?}: {what}");
                assert!(!what.is_empty() && !what.contains(" line "), "{what}");
            }
            other => panic!("{body:?}: {other:?}"),
        }
    }
    match parse(ChatCompletions, b"{\n\"model\":\"\xff\"}") {
        Err(BodyError::Malformed { at, .. }) => assert_eq!((at.line, at.column, at.offset), (2, 10, 11)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_never_quotes_the_body() {
    for body in [
        r#"{"model":{"secret":1}}"#,
        r#"{"messages":"secret"}"#,
        r#"{"messages":[{"content":"secret"#,
        r#"{"n":"secret"}"#,
        r#"{"model":"secret" secret}"#,
        r#"{"messages":[{"content":[{"text":"secret"},"secret"]}]}"#,
    ] {
        let error = refused(ChatCompletions, body);
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn halves_of_surrogate_pairs_are_counted_not_refused() {
    let body = r#"{"model":"m","user":"u\ud83d","messages":[{"content":"a\ud83d"},{"content":[{"type":"text","text":"\ude00b"}]}],"\ud83d":"\ud83d"}"#;
    let request = parse(ChatCompletions, body.as_bytes()).expect("tolerated");
    assert_eq!(request.text_chars, 4);
    assert!(request.user.is_some_and(|user| user.starts_with('u')));
    let request = parse(Embeddings, r#"{"input":["\ud83d",{"text":"\ud83d"}]}"#.as_bytes()).expect("tolerated");
    assert_eq!(request.text_chars, 2);
}

#[test]
fn deep_nesting_is_no_way_to_exhaust_the_stack() {
    for endpoint in [ChatCompletions, Responses, Embeddings] {
        let deep = "[".repeat(200_000);
        for field in ["messages", "input", "tools", "other", "metadata"] {
            let _ = parse(endpoint, format!("{{\"{field}\":{deep}").as_bytes());
            let closed = format!("{{\"{field}\":{deep}{}}}", "]".repeat(200_000));
            let _ = parse(endpoint, closed.as_bytes());
        }
    }
}

/// Counts as the specification says, over a tree: what the reader must agree with.
fn chars_of_messages(messages: &Value) -> u64 {
    let part = |part: &Value| part["text"].as_str().map_or(0, |text| text.chars().count());
    let content = |message: &Value| match &message["content"] {
        Value::String(text) => text.chars().count(),
        Value::Array(parts) => parts.iter().map(part).sum(),
        _ => 0,
    };
    messages.as_array().map_or(0, |messages| messages.iter().map(content).sum::<usize>()) as u64
}

fn messages() -> impl Strategy<Value = Value> {
    let content = prop_oneof![
        Just(Value::Null),
        ".{0,20}".prop_map(Value::String),
        proptest::collection::vec(".{0,20}".prop_map(|text| json!({"type": "text", "text": text})), 0..4)
            .prop_map(Value::Array),
    ];
    let message = (content, ".{0,5}").prop_map(|(content, role)| json!({"role": role, "content": content}));
    proptest::collection::vec(message, 0..6).prop_map(Value::Array)
}

proptest! {
    #[test]
    fn the_reader_counts_what_a_tree_would_show(messages in messages(), pretty: bool) {
        let body = json!({"messages": messages, "model": "m", "other": messages});
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.expect("written");
        let request = parse(ChatCompletions, text.as_bytes()).expect("read");
        prop_assert_eq!(request.text_chars, chars_of_messages(&messages));
    }

    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for endpoint in [ChatCompletions, Completions, Responses, Embeddings, Moderations, Images] {
            let _ = parse(endpoint, &body);
        }
    }

    #[test]
    fn no_json_panics(tokens in proptest::collection::vec(prop_oneof![
        Just("{"), Just("}"), Just("["), Just("]"), Just(":"), Just(","), Just("\"messages\""), Just("\"content\""), Just("\"input\""),
        Just("\"text\""), Just("\"n\""), Just("\"model\""), Just("null"), Just("1"), Just("-1e9"), Just("\"\\ud83d\""), Just(" \n"),
    ], 0..60)) {
        let body = tokens.concat();
        for endpoint in [ChatCompletions, Completions, Responses, Embeddings] {
            if let Ok(request) = parse(endpoint, body.as_bytes()) {
                let _ = estimate(&request, &Calibration::default());
            }
        }
    }

    #[test]
    fn whatever_is_no_json_for_others_is_none_for_us(body in "\\{(\"(n|x)\":(1|[0-9.eE+-]{1,4}|\"a\"|true|nul|\\[1\\])[,}]{0,2}){0,3}\\}?") {
        // Of the types of fields only we complain, of the syntax both.
        let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok();
        match parse(ChatCompletions, body.as_bytes()) {
            Ok(_) => prop_assert!(theirs),
            Err(BodyError::Malformed { .. }) => prop_assert!(!theirs),
            Err(BodyError::WrongType { .. } | BodyError::Duplicate { .. }) => {}
        }
    }
}
