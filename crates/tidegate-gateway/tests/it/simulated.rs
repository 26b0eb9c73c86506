//! Against the simulator: more calls than its limits take at once, and none of its refusals reaches a caller.

use tidegate_sim::{Options, Scenario, Simulator};

use crate::support::*;

const SCENARIO: &str = "
keep_default_models = false
[latency]
first_token = '5ms'
sigma = 0.0
tokens_per_second = 100000.0
tokens_sigma = 0.0
[model.gpt-4o]
rpm = 6000
tpm = 6000000
initial_fill = 0.01
";

async fn simulated() -> (tidegate_gateway::Gateway, Simulator) {
    let scenario = Scenario::from_toml(SCENARIO).unwrap();
    let simulator = Simulator::start(scenario, Options::default(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    (start(config(simulator.addr())).await, simulator)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_beyond_the_upstreams_limit_is_served_whole() {
    let (gateway, simulator) = simulated().await;
    let addr = gateway.api_addrs()[0];
    let calls: Vec<_> = (0..150)
        .map(|number| {
            tokio::spawn(async move {
                let mut client = Peer::connect(addr).await;
                let body = if number % 2 == 0 { CHAT } else { CHAT_STREAM };
                client.post("/v1/chat/completions", "", body).await;
                client.message(false).await.status()
            })
        })
        .collect();
    for call in calls {
        assert_eq!(within(call).await.unwrap(), 200);
    }
    idle(&gateway).await;
    assert_eq!((simulator.stats().admitted, simulator.stats().status_429), (150, 0));
}

#[tokio::test]
async fn every_endpoint_of_the_simulator_is_reached() {
    let (gateway, _simulator) = simulated().await;
    let mut client = client(&gateway).await;
    client.write("GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(client.message(false).await.status(), 200);
    client.post("/v1/responses", "", r#"{"model":"gpt-4o","input":"hi","stream":true}"#).await;
    let reply = client.message(false).await;
    assert!(reply.text().contains("response.completed"), "{}", reply.text());
    let stream_with_usage =
        CHAT_STREAM.replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    client.post("/v1/chat/completions", "", &stream_with_usage).await;
    assert!(client.message(false).await.text().ends_with("data: [DONE]\n\n"));
    idle(&gateway).await;
}
