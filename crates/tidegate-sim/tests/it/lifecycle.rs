use http_body_util::BodyExt;
use serde_json::json;
use tidegate_sim::{FaultKind, Options, Scenario, Simulator, Stats};

use crate::client::*;

/// Asks for statistics until they are as wanted; each round trip lets the simulator go on.
async fn until(simulator: &Simulator, wanted: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..20_000 {
        let stats = simulator.stats();
        if wanted(&stats) {
            return stats;
        }
        get(simulator, "/sim/stats").await;
    }
    panic!("never came: {:?}", simulator.stats());
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_is_noticed() {
    let simulator = simulator_of("[[fault]]\nkind = \"stall\"\nafter = 2").await;
    let body = chat_with(json!({"stream": true})).to_string();
    let response = open(simulator.addr(), request("POST", "/v1/chat/completions", "application/json", body)).await;
    let mut body = response.expect("headers come").into_body();
    body.frame().await.expect("a frame").expect("no error");
    drop(body);
    let stats = until(&simulator, |s| s.cancelled_streams == 1).await;
    assert_eq!((stats.in_flight, stats.streams_open), (0, 0));
    let entry = simulator.log().pop().expect("an entry");
    assert!(entry.cancelled && entry.stream && entry.admitted);
    assert_eq!((entry.status, entry.fault), (200, Some(FaultKind::Stall)));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_reply_is_noticed() {
    let simulator = simulator_of("[[fault]]\nkind = \"stall\"").await;
    let body = chat_with(json!({})).to_string();
    let addr = simulator.addr();
    let call = tokio::spawn(open(addr, request("POST", "/v1/chat/completions", "application/json", body)));
    until(&simulator, |s| s.in_flight == 1).await;
    call.abort();
    let stats = until(&simulator, |s| s.cancelled_waiting == 1).await;
    assert_eq!(stats.in_flight, 0);
    assert_eq!(simulator.log().pop().expect("an entry").status, 0);
}

#[tokio::test]
async fn the_log_tells_what_became_of_each_call() {
    let toml = "[model.gpt-4o-mini]\nrpm = 2\n[[fault]]\nkind = \"error_500\"\nuser = \"bob\"";
    let simulator = simulator_of(toml).await;
    for user in ["ann", "bob", "cid"] {
        chat(&simulator, json!({"user": user})).await;
    }
    let log = simulator.log();
    let told: Vec<_> = log.iter().map(|e| (e.user.as_deref(), e.status, e.admitted, e.fault)).collect();
    assert_eq!(
        told,
        [
            (Some("ann"), 200, true, None),
            (Some("bob"), 500, true, Some(FaultKind::Error500)),
            (Some("cid"), 429, false, None)
        ]
    );
    assert!(log.iter().all(|e| e.charge.tokens == 6 && e.finished_s >= e.received_s));
    let over_http = get(&simulator, "/sim/log?last=1").await.json();
    assert_eq!((&over_http[0]["user"], &over_http[0]["refused"]), (&json!("cid"), &json!({"short": "requests"})));
    let stats = get(&simulator, "/sim/stats").await.json();
    assert_eq!((&stats["received"], &stats["by_status"]["429"]), (&json!(3), &json!(1)));
    assert_eq!(stats["groups"]["gpt-4o-mini"]["admitted"], 2);
}

#[tokio::test]
async fn the_request_log_is_complete_after_shutdown() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("requests.jsonl");
    let options = Options { speed: 0.0, request_log: Some(path.clone()), ..Options::default() };
    let simulator =
        Simulator::start(Scenario::default(), options, ([127, 0, 0, 1], 0).into()).await.expect("a free port");
    for _ in 0..10 {
        chat(&simulator, json!({})).await;
    }
    simulator.shutdown().await;
    let text = std::fs::read_to_string(path).expect("a log");
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["number"].as_u64().expect("a number")
        })
        .collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn shutdown_ends_streams_and_frees_the_port() {
    let simulator = simulator_of("[[fault]]\nkind = \"stall\"\nafter = 2").await;
    let addr = simulator.addr();
    let body = chat_with(json!({"stream": true})).to_string();
    let response = open(addr, request("POST", "/v1/chat/completions", "application/json", body)).await;
    let mut body = response.expect("headers come").into_body();
    body.frame().await.expect("a frame").expect("no error");
    simulator.shutdown().await;
    assert!(body.frame().await.is_none_or(|frame| frame.is_err()));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn many_streams_run_at_once() {
    let toml =
        "[model.gpt-4o-mini]\n[latency]\nfirst_token = \"20ms\"\ntokens_per_second = 500.0\n[output]\nmedian = 50";
    let simulator = simulator_at(Scenario::from_toml(toml).expect("valid"), 1.0).await;
    let body = chat_with(json!({"stream": true})).to_string();
    let calls = (0..100)
        .map(|_| send(simulator.addr(), request("POST", "/v1/chat/completions", "application/json", body.clone())));
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.into_iter().all(|r| r.expect("a reply").text().ends_with("data: [DONE]\n\n")));
    let stats = simulator.stats();
    assert_eq!((stats.received, stats.in_flight, stats.cancelled_streams), (100, 0, 0));
}
