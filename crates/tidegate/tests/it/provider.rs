//! Messages and their answers, against the simulator on a real socket.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_openai::config::OpenAIConfig;
use futures_util::StreamExt;
use serde_json::json;
use tidegate::{
    BreakerConfig, Call, Content, Error, Event, Fault, Message, MessageRequest, Priority, Provider, RateLimitConfig,
    RetryConfig, Tidegate, Usage,
};
use tracing::Level;

use crate::openai::{config, simulator, tidegate};

fn request(number: u32) -> MessageRequest {
    MessageRequest {
        id: Some(format!("rate-test-{number}")),
        user: Some("test-user".to_owned()),
        organization: Some("acme".to_owned()),
        temperature: Some(0.7),
        max_tokens: Some(30),
        priority: Priority::High,
        timeout: Some(Duration::from_secs(30)),
        ..MessageRequest::new("gpt-4o-mini", [Message::system("You are brief."), Message::user("Say \"Hello\"")])
    }
}

async fn answer(provider: &Provider, request: MessageRequest) -> Result<(String, Option<String>, u64), Error> {
    let mut stream = provider.send_message(request);
    let (mut text, mut reason, mut used) = (String::new(), None, 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        assert!(!chunk.id.is_empty() && chunk.index == 0);
        text.push_str(&chunk.delta);
        reason = chunk.finish_reason.or(reason);
        used = chunk.usage.map_or(used, |usage| usage.total());
    }
    Ok((text, reason, used))
}

#[tokio::test]
async fn a_message_is_answered_chunk_by_chunk_with_reason_and_usage_at_the_end() {
    let simulator = simulator("").await;
    let provider = Provider::new(config(&simulator), tidegate());
    let (text, reason, used) = answer(&provider, request(0)).await.unwrap();
    assert!(!text.is_empty() && used > 0);
    assert!(matches!(reason.as_deref(), Some("stop" | "length")), "{reason:?}");
    assert_eq!(provider.tidegate().limiter().info().tokens_in_last_minute, used);
    assert_eq!(simulator.log()[0].user.as_deref(), Some("test-user"));
}

#[tokio::test]
async fn five_rapid_messages_of_one_user_are_all_answered() {
    let simulator = simulator("").await;
    let retry =
        RetryConfig::default().with_max_attempts(2).with_delays(Duration::from_millis(500), Duration::from_secs(5));
    let breaker = BreakerConfig::default().with_failure_threshold(3).with_half_open_max_calls(2);
    let limits = RateLimitConfig::default()
        .with_requests_per_minute(60)
        .with_tokens_per_minute(40_000)
        .with_requests_per_day(1000);
    let provider =
        Provider::new(config(&simulator), Tidegate::builder().limit(limits).retry(retry).breaker(breaker).build());
    let answers = (0..5).map(|number| answer(&provider, request(number)));
    let answers = futures_util::future::join_all(answers).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

#[tokio::test]
async fn what_is_beyond_a_limit_and_cannot_wait_is_told_as_the_first_item() {
    let simulator = simulator("").await;
    let limits = RateLimitConfig::default().with_requests_per_minute(1);
    let provider = Provider::new(config(&simulator), Tidegate::builder().limit(limits).build());
    answer(&provider, request(0)).await.unwrap();
    let error = answer(&provider, request(1)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(simulator.log().len(), 1);
}

#[tokio::test]
async fn parts_and_further_options_go_through_and_unknown_ones_are_told() {
    let simulator = simulator("").await;
    let provider = Provider::new(config(&simulator), tidegate());
    let mut parts = request(0);
    parts.messages[1].content = Content::Parts(vec![json!({"type": "text", "text": "Hello"})]);
    parts.options.insert("seed".to_owned(), json!(7));
    parts.options.insert("stop".to_owned(), json!(null));
    answer(&provider, parts.clone()).await.unwrap();
    parts.options.insert("sede".to_owned(), json!(7));
    let error = answer(&provider, parts).await.unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("unknown option \"sede\""), "{said}");
    assert_eq!(simulator.log().len(), 1);
}

#[tokio::test]
async fn subscribers_are_told_of_the_call_by_its_id() {
    let simulator = simulator("[[fault]]\nkind = \"error_500\"\nfirst = 1").await;
    let provider = Provider::new(config(&simulator), tidegate());
    let mut events = provider.subscribe();
    answer(&provider, request(7)).await.unwrap();
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        match &*event {
            Event::AttemptFailed { call, attempt, .. } => told.push(format!("{call} failed {attempt}")),
            Event::AttemptSuccess { call, attempt, .. } => told.push(format!("{call} succeeded {attempt}")),
            Event::UsageRecorded { user, organization, tokens, .. } if *tokens > 0 => {
                assert_eq!((user.as_deref(), organization.as_deref()), (Some("test-user"), Some("acme")));
            }
            _ => {}
        }
    }
    assert_eq!(told, ["rate-test-7 failed 1", "rate-test-7 succeeded 2"]);
}

#[tokio::test]
async fn dropping_the_answer_cancels_the_call() {
    let simulator = simulator("[[fault]]\nkind = \"stall\"\nafter = 2").await;
    let provider = Provider::new(config(&simulator), tidegate());
    let mut stream = provider.send_message(request(0));
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let ended = async {
        while provider.tidegate().driver().with(|gate, _| gate.in_flight()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Everything that is logged in this thread, until the guard is dropped.
    fn of_this_thread() -> (Self, tracing::subscriber::DefaultGuard) {
        // Where there is one subscriber alone, a thread without it that comes to a line first has that line left out for good, for
        // everybody (tracing-core asks no other thread's then): so there is a second one.
        static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
            let all = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(std::io::sink);
            tracing::Dispatch::new(all.finish())
        });
        LazyLock::force(&SECOND);
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false).with_writer(move || writer.clone());
        (lines, tracing::subscriber::set_default(subscriber.finish()))
    }

    /// Those of this crate that say `what`, once there are any.
    async fn that_say(&self, what: &str) -> Vec<String> {
        let found = async {
            loop {
                let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
                let mut said: Vec<_> = text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect();
                said.retain(|line| line.contains("tidegate::provider"));
                if !said.is_empty() {
                    return said;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found).await.unwrap_or_else(|_| panic!("no line says {what}"))
    }
}

#[tokio::test]
async fn what_happens_is_logged_once_however_many_providers_share_it() {
    let (lines, _logs) = Lines::of_this_thread();
    let tidegate = Tidegate::builder().build();
    let _providers = [(); 3].map(|()| Provider::new(OpenAIConfig::default(), tidegate.clone()));
    let call = Call::new("gpt-4o").with_id("test");
    tidegate.execute(&call, |_| async { Err::<(), _>(Fault::of_status(400)) }).await.unwrap_err();
    lines.that_say("attempt failed").await;
    // Whoever else was told has had its turn by then.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(lines.that_say("attempt failed").await.len(), 1);
}

#[tokio::test]
async fn uses_failures_and_changes_of_state_are_logged_each_at_its_level() {
    let (lines, _logs) = Lines::of_this_thread();
    let tidegate = Tidegate::builder().breaker(BreakerConfig::default().with_failure_threshold(1)).build();
    let _provider = Provider::new(OpenAIConfig::default(), tidegate.clone());
    let call = Call::new("gpt-4o").with_id("test-1").with_user("anna").with_organization("acme").with_tokens(100, 50);
    tidegate
        .execute(&call, |attempt| async move {
            attempt.used(Usage::new(90, 20));
            Ok::<_, Fault>(())
        })
        .await
        .unwrap();
    tidegate.execute(&call, |_| async { Err::<(), _>(Fault::of_status(503)) }).await.unwrap_err();
    for (level, what, parts) in [
        (Level::DEBUG, "usage recorded", &["anna", "acme", "gpt-4o", "tokens=110"][..]),
        (Level::WARN, "attempt failed", &["operation_id=test-1", "attempt=1", "temporary_error"]),
        (Level::INFO, "circuit breaker state changed", &["state=\"open\""]),
        (Level::ERROR, "circuit breaker call failure", &["temporary_error", "failure_count=1"]),
    ] {
        let line = &lines.that_say(what).await[0];
        assert!(line.contains(&format!(" {level} ")), "{level}: {line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}
