//! The scenario of a first-tier account: what `tidegate serve --sim` pretends when nobody says otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Latency, Model, Output, RefusalMessage, RetryAfter, Scenario};

impl Default for Scenario {
    fn default() -> Self {
        Scenario {
            organization: "org-simulated".to_owned(),
            require_auth: false,
            per_key_limits: false,
            refused_count: true,
            retry_after: RetryAfter::Both,
            refusal_message: RefusalMessage::Wait,
            headers: true,
            told_factor: 1.0,
            quota_code: "insufficient_quota".to_owned(),
            keep_default_models: false,
            latency: Latency::default(),
            output: Output::default(),
            model: models(),
            tenant: Vec::new(),
            fault: Vec::new(),
        }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            first_token: Duration::from_millis(300),
            sigma: 0.3,
            tokens_per_second: 80.0,
            tokens_sigma: 0.15,
            refusal: Duration::ZERO,
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Output { median: 120, sigma: 0.6, max: 4_096, chunk: 1 }
    }
}

/// The built-in models.
pub(super) fn models() -> BTreeMap<String, Model> {
    let chat = |rpm, tpm| Model { rpm: Some(rpm), tpm: Some(tpm), ..Model::default() };
    let audio = || Model { rpm: Some(500), ..Model::default() };
    let image = |tpm| Model { tpm, ipm: Some(5), ..Model::default() };
    let table = [
        ("gpt-3.5-turbo", chat(500, 200_000)),
        ("gpt-3.5-turbo-instruct", chat(3_500, 90_000)),
        ("gpt-4", chat(500, 10_000)),
        ("gpt-4o", chat(500, 30_000)),
        ("gpt-4o-mini", Model { rpd: Some(10_000), ..chat(500, 200_000) }),
        ("chatgpt-4o-latest", Model { group: Some("gpt-4o".into()), ..chat(500, 30_000) }),
        ("gpt-4.1", chat(500, 30_000)),
        ("gpt-4.1-mini", chat(500, 200_000)),
        ("gpt-4.1-nano", chat(500, 200_000)),
        ("gpt-5.5", chat(500, 500_000)),
        ("gpt-5.6-luna", chat(500, 500_000)),
        ("o3", chat(500, 30_000)),
        ("o4-mini", chat(1_000, 100_000)),
        ("text-embedding-3-small", chat(3_000, 1_000_000)),
        ("text-embedding-3-large", chat(3_000, 1_000_000)),
        ("text-embedding-ada-002", chat(3_000, 1_000_000)),
        ("omni-moderation-latest", chat(500, 10_000)),
        ("gpt-image-1", image(Some(100_000))),
        ("gpt-image-2", image(Some(100_000))),
        ("dall-e-3", image(None)),
        ("whisper-1", audio()),
        ("tts-1", audio()),
        ("gpt-4o-transcribe", audio()),
        ("gpt-4o-mini-transcribe", audio()),
        ("gpt-4o-mini-tts", audio()),
        ("gpt-realtime", Model { rpd: Some(1_000), ..chat(200, 40_000) }),
    ];
    table.into_iter().map(|(name, model)| (name.to_owned(), model)).collect()
}
