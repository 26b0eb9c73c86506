//! What layers learn from replies: the upstream's limits, and how far estimates are off.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tidegate::{Call, RateLimitConfig, RateLimitLayer, RateLimiter, Tidegate, TidegateLayer};
use tower::{Layer, ServiceExt};

const CHAT_PATH: &str = "/v1/chat/completions";
const CHAT: &str = r#"{"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello, tide"}]}"#;
const ANSWER: &str = r#"{"usage": {"prompt_tokens": 12, "completion_tokens": 3}}"#;

fn request(path: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::post(path).body(Full::from(body.to_owned())).unwrap();
    request.extensions_mut().insert(Call::of_openai("POST", path, body.as_bytes()));
    request
}

#[tokio::test(start_paused = true)]
async fn limits_are_learned_from_the_headers_of_replies() {
    let tidegate = Tidegate::builder().build();
    let told = tower::service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(
            Response::builder()
                .header("x-ratelimit-limit-requests", "500")
                .header("x-ratelimit-remaining-requests", "499")
                .header("x-ratelimit-reset-requests", "120ms")
                .body(Full::from(ANSWER))
                .unwrap(),
        )
    });
    let response = TidegateLayer::new(tidegate.clone()).layer(told).oneshot(request(CHAT_PATH, CHAT)).await.unwrap();
    response.into_body().collect().await.unwrap();
    let left = tidegate.limiter().check(&Call::new("gpt-4o")).remaining_requests;
    assert_eq!(left, Some(499));
}

#[tokio::test(start_paused = true)]
async fn estimates_come_closer_to_what_such_calls_really_took() {
    const PER_MINUTE: u64 = 1_000_000_000;
    let limits = || RateLimitConfig::default().with_tokens_per_minute(PER_MINUTE);
    let whole = Tidegate::builder().limit(limits()).learn_limits(false).build();
    let alone = RateLimiter::new(limits());
    let body = format!(r#"{{"model": "gpt-4o", "input": "{}", "max_output_tokens": 1}}"#, "8 bytes ".repeat(1000));
    for (limiter, is_whole) in [(whole.limiter(), true), (alone, false)] {
        let reserved = Arc::new(Mutex::new(Vec::new()));
        let (looks, seen) = (limiter.clone(), reserved.clone());
        let upstream = tower::service_fn(move |_: Request<Full<Bytes>>| {
            seen.lock().unwrap().push(looks.info().tokens_in_last_minute);
            let answer = r#"{"usage": {"input_tokens": 4000, "output_tokens": 1}}"#;
            async move { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer))) }
        });
        for _ in 0..50 {
            limiter.reset();
            let request = request("/v1/responses", &body);
            let reply = if is_whole {
                TidegateLayer::new(whole.clone()).layer(upstream.clone()).oneshot(request).await.unwrap()
            } else {
                RateLimitLayer::new(limiter.clone()).layer(upstream.clone()).oneshot(request).await.unwrap()
            };
            reply.into_body().collect().await.unwrap();
        }
        let reserved = reserved.lock().unwrap().clone();
        assert_eq!(reserved[0], 2000 + 19 + 1, "a token for four bytes");
        assert!((3900..4100).contains(&reserved[49]), "{reserved:?}");
        assert!(reserved.is_sorted(), "{reserved:?}");
    }
}
