//! What callers, upstreams and operators say in confidence is found nowhere: planted, then looked for in all that comes out.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::process::{PATIENCE, Place, Running, http};

/// The log at its most talkative: tidegate, and what it is made of.
const EVERYTHING: &str = "trace,h=trace,m=trace,reqwest=trace,rustls=trace,to=trace,tungstenite=trace,want=trace";

const PROMPT: &str = "planted-prompt-7f3a";
const COMPLETION: &str = "planted-completion-91bc";
const UPSTREAM_KEY: &str = "sk-planted-upstream-5d17";
const FOREIGN_KEY: &str = "sk-planted-foreign-2e88";
const ADMIN_TOKEN: &str = "planted-admin-token-66aa";
const WRONG_TOKEN: &str = "planted-wrong-token-0812";
/// Whoever knows it could post there.
const WEBHOOK: &str = "planted-webhook-3c4e";
/// What the webhook has to say, which may be anything.
const WEBHOOK_SAYS: &str = "planted-answer-af19";

const CONFIG: &str = r#"
[[upstream]]
name = "planted"
base_url = "URL"
api_key = "file:upstream-key"
[limit.each]
per = ["user"]
requests_per_day = 3
[retry]
base_delay = "1ms"
[breaker]
failure_threshold = 3
[audit]
calls = true
[[alert]]
name = "generic"
when = "breaker_open"
above = 0
webhook = "HOOK"
[[alert]]
name = "slack"
when = "breaker_open"
above = 0
webhook = "file:hook"
format = "slack"
"#;

/// An upstream that answers well, badly, half or not at all, as the prompt wants it, and each time says what it was told.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    url
}

fn answer(mut stream: TcpStream) {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    while !request.contains("\"end\"") {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => request += &String::from_utf8_lossy(&buffer[..read]),
            _ => return,
        }
    }
    assert!(request.contains(UPSTREAM_KEY), "{request}");
    let said = format!("{COMPLETION} {PROMPT} {UPSTREAM_KEY}");
    let whole = |status: &str, body: String| {
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        format!("{head}\r\nconnection: close\r\n\r\n{body}")
    };
    let reply = match () {
        () if request.contains("want-failure") => whole(
            "503 Service Unavailable",
            format!(r#"{{"error":{{"message":"{said}","type":"{said}","code":"{said}"}}}}"#),
        ),
        () if request.contains("want-nothing") => String::new(),
        () if request.contains("want-half") => format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{said}\"}}}}]}}\n\n"
        ),
        () => whole(
            "200 OK",
            format!(
                r#"{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"{said}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":3}}}}"#
            ),
        ),
    };
    // Whoever has left needs no answer.
    let _ = stream.write_all(reply.as_bytes());
}

/// A webhook that takes nothing, and what was posted to it.
fn webhook() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/{WEBHOOK}?key={WEBHOOK}", listener.local_addr().unwrap());
    let (send, posted) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut post, mut buffer) = (stream.unwrap(), String::new(), [0; 4096]);
            while !post.ends_with('}') {
                match stream.read(&mut buffer) {
                    Ok(read) if read > 0 => post += &String::from_utf8_lossy(&buffer[..read]),
                    _ => break,
                }
            }
            let (head, body) = post.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(WEBHOOK), "{head}");
            let _ = send.send(body.to_owned());
            let body = format!("{WEBHOOK} {WEBHOOK_SAYS}");
            let head = format!("HTTP/1.1 500 {WEBHOOK_SAYS}\r\nlocation: /{WEBHOOK}\r\ncontent-length: {}", body.len());
            let _ = stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes());
        }
    });
    (url, posted)
}

fn call(gateway: &Running, key: &str, user: &str, wants: &str, more: &str) -> (u16, String) {
    let body = format!(
        r#"{{"model":"gpt-4o-mini",{more}"messages":[{{"role":"user","content":"{PROMPT} {wants}"}}],"metadata":{{"end":"end"}}}}"#
    );
    let headers = [
        &*format!("authorization: Bearer {key}"),
        &*format!("x-tidegate-user: {user}"),
        "x-tidegate-max-wait: 10ms",
        &*format!("x-tidegate-id: {user}"),
    ];
    http("POST", &format!("{}/chat/completions", gateway.announced("api")), &headers, &body)
}

/// All files below.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
    found
}

#[test]
fn no_secret_prompt_or_completion_is_in_any_log_metric_event_record_error_page_or_file() {
    let place = Place::new();
    place.file("upstream-key", UPSTREAM_KEY);
    let (hook, posted) = webhook();
    place.file("hook", &hook);
    place.file("tidegate.toml", &CONFIG.replace("URL", &upstream()).replace("HOOK", &hook));
    let made = place.run(&["key", "new", "caller"]);
    let key = made.stdout.trim().to_owned();
    assert!(key.starts_with("tg-"), "{made:?}");
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.env("RUST_LOG", EVERYTHING).env("TIDEGATE_ADMIN_TOKEN", ADMIN_TOKEN);
    let mut gateway = Running::start(command);
    let admin = gateway.announced("admin");
    // What is told and is not what a caller was sent of his own call.
    let mut told: Vec<(String, Vec<u8>)> = Vec::new();
    let authorization = format!("authorization: Bearer {ADMIN_TOKEN}");
    // Events come for as long as somebody listens; it ends with the gateway.
    let mut events = TcpStream::connect(admin.strip_prefix("http://").unwrap()).unwrap();
    write!(events, "GET /admin/v1/events HTTP/1.1\r\nhost: localhost\r\n{authorization}\r\n\r\n").unwrap();

    assert_eq!(call(&gateway, &key, "good", "", "").0, 200);
    call(&gateway, &key, "half", "want-half", "\"stream\":true,");
    assert_eq!(call(&gateway, &key, "refused", "", "").0, 200);
    (0..2).for_each(|_| drop(call(&gateway, &key, "refused", "", "")));
    let (status, body) = call(&gateway, &key, "refused", "", "");
    assert_eq!(status, 429, "{body}");
    told.push(("a refusal".to_owned(), body.into()));
    for (user, wants) in [("fails", "want-failure"), ("nothing", "want-nothing"), ("nothing-2", "want-nothing")] {
        let (status, body) = call(&gateway, &key, user, wants, "");
        assert!(status >= 500, "{body}");
        if wants == "want-nothing" {
            told.push(("an upstream that said nothing".to_owned(), body.into()));
        }
    }
    for (key, more, what) in [
        (FOREIGN_KEY, "", "a foreign key"),
        (&key, "\"max_tokens\":\"planted-prompt-7f3a\",", "a bad field"),
        (&key, "planted-prompt-7f3a", "no JSON"),
        (&key, "\"model\":\"planted-prompt-7f3a\",", "a field twice"),
    ] {
        let (status, body) = call(&gateway, key, "wrong", "", more);
        assert!((400..600).contains(&status), "{what}: {body}");
        told.push((what.to_owned(), body.into()));
    }
    // The failures have opened a breaker, of which both webhooks are to be told.
    told.extend((0..2).map(|_| ("what is posted".to_owned(), posted.recv_timeout(PATIENCE).unwrap().into())));
    (0..2).for_each(|_| gateway.logs("could not be delivered"));
    for (method, path, header, body) in [
        ("POST", "/admin/v1/pause", format!("authorization: Bearer {WRONG_TOKEN}"), ""),
        ("POST", "/admin/v1/pause", format!("x-other: {ADMIN_TOKEN}"), ""),
        ("POST", "/admin/v1/limits/each/boost", authorization.clone(), r#"{"factor":2,"for":"1h"}"#),
        ("POST", "/admin/v1/breakers/planted/gpt-4o-mini/force-open", authorization.clone(), r#"{"reason":"a test"}"#),
        ("POST", "/admin/v1/pause", authorization.clone(), r#"{"reason":"a test"}"#),
        ("POST", "/admin/v1/reload", authorization.clone(), ""),
        ("GET", "/admin/v1/status", authorization.clone(), ""),
        ("GET", "/admin/v1/audit", authorization.clone(), ""),
        ("GET", "/admin/v1/keys", authorization.clone(), ""),
        ("GET", "/admin/v1/alerts", authorization.clone(), ""),
        ("GET", "/admin/v1/explain/refused", authorization.clone(), ""),
        ("GET", "/metrics", String::new(), ""),
        ("GET", "/", String::new(), ""),
        ("GET", "/admin/v1/openapi.json", String::new(), ""),
    ] {
        let header = if header.is_empty() { "x-nothing: 1" } else { &header };
        told.push((path.to_owned(), http(method, &format!("{admin}{path}"), &[header], body).1.into()));
    }
    // The dashboard's files: each that its page wants, and that these want.
    let mut files_wanted = vec!["/".to_owned()];
    for at in 0.. {
        let Some(path) = files_wanted.get(at).cloned() else { break };
        let file = http("GET", &format!("{admin}{path}"), &[&*authorization], "").1;
        for text in file.split('"') {
            let wanted = text.strip_prefix("./").map_or_else(|| text.to_owned(), |name| format!("/dashboard/{name}"));
            if wanted.starts_with("/dashboard/") && !files_wanted.contains(&wanted) {
                files_wanted.push(wanted);
            }
        }
        told.push((format!("the dashboard's {path}"), file.into()));
    }
    assert!(files_wanted.iter().any(|path| path.ends_with("/views.js")), "{files_wanted:?}");
    for args in [
        &["admin", "status"][..],
        &["admin", "status", "--json"],
        &["admin", "breaker"],
        &["key", "list"],
        &["audit", "query"],
        &["audit", "export"],
        &["check", "tidegate.toml"],
    ] {
        told.push((args.join(" "), said_by(&place, args, Some(ADMIN_TOKEN))));
    }
    told.push(("paused".to_owned(), call(&gateway, &key, "paused", "", "").1.into()));

    // Once as it lies there while the gateway runs, and once as it leaves it.
    let state = place.path().join(".local/state/tidegate");
    told.extend(files(&state));
    gateway.signal("TERM");
    let ended = gateway.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("TRACE") && ended.stderr.contains("overhead_us"), "everything was logged");
    told.push(("the log".to_owned(), ended.stderr.into()));
    told.push(("standard output".to_owned(), ended.stdout.into()));
    let mut heard = Vec::new();
    // A connection that is cut off has told what it had to tell.
    let _ = events.read_to_end(&mut heard);
    told.push(("events".to_owned(), heard));
    told.extend(files(&state));

    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    // What is no secret is found in all of these: it is looked for in the right places.
    for place in [
        "/metrics",
        "/admin/v1/audit",
        "/admin/v1/status",
        "events",
        "what is posted",
        "admin breaker",
        "audit query",
        "the log",
        "audit.db",
        "levels.json",
        "overrides.json",
    ] {
        let is_told = |(what, bytes): &(String, Vec<u8>)| what.contains(place) && has(bytes, "gpt-4o-mini");
        assert!(told.iter().any(is_told), "{place} tells nothing of the model");
    }
    for secret in [PROMPT, COMPLETION, UPSTREAM_KEY, FOREIGN_KEY, &key, ADMIN_TOKEN, WRONG_TOKEN, WEBHOOK, WEBHOOK_SAYS]
    {
        is_nowhere(secret, &told);
    }
}

#[test]
fn the_token_that_a_gateway_makes_for_itself_is_in_its_own_file_alone() {
    let place = Place::new();
    let mut command = place.command(&["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.env("RUST_LOG", EVERYTHING);
    let mut gateway = Running::start(command);
    let state = place.path().join(".local/state/tidegate");
    let token = std::fs::read_to_string(state.join("admin-token")).unwrap().trim().to_owned();
    assert!(token.len() >= 32, "{token}");
    let mut told = vec![("the ready line".to_owned(), gateway.ready.clone().into_bytes())];
    for args in [&["admin", "pause", "--reason", "a test"][..], &["admin", "status"], &["admin", "resume"]] {
        told.push((args.join(" "), said_by(&place, args, None)));
    }
    told.push(("refused".to_owned(), said_by(&place, &["admin", "breaker", "reset", "none"], None)));
    let authorization = format!("authorization: Bearer {token}");
    for path in ["/", "/metrics", "/admin/v1/status", "/admin/v1/audit", "/admin/v1/alerts", "/admin/v1/keys"] {
        let url = format!("{}{path}", gateway.announced("admin"));
        told.push((path.to_owned(), http("GET", &url, &[&*authorization], "").1.into()));
    }
    gateway.signal("TERM");
    let ended = gateway.end();
    assert!(ended.stderr.contains("DEBUG") && ended.stderr.contains("pause"), "{}", ended.stderr);
    told.push(("the log".to_owned(), ended.stderr.into()));
    told.extend(files(&state).into_iter().filter(|(name, _)| !name.ends_with("/admin-token")));
    is_nowhere(&token, &told);
}

/// All that a mode says, and logs at its most talkative.
fn said_by(place: &Place, args: &[&str], token: Option<&str>) -> Vec<u8> {
    let mut command = place.command(args);
    command.env("RUST_LOG", EVERYTHING).envs(token.map(|token| ("TIDEGATE_ADMIN_TOKEN", token)));
    let ended = Running::spawn(command).end();
    format!("{}\n{}", ended.stdout, ended.stderr).into_bytes()
}

fn is_nowhere(secret: &str, told: &[(String, Vec<u8>)]) {
    for (what, bytes) in told {
        let found = bytes.windows(secret.len()).position(|window| window == secret.as_bytes());
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(200)..(at + 100).min(bytes.len())];
            panic!("{secret} is in {what}: {}", String::from_utf8_lossy(around));
        }
    }
}
