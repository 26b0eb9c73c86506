//! Embeddings, moderations and the list of models.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Context;
use crate::scenario::Scenario;

const DIMENSIONS_MAX: u64 = 4_096;
/// 2023-11-14, for things whose age does not matter.
const LONG_AGO: u64 = 1_700_000_000;

const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// A unit vector for each input, as numbers or, as the official Python SDK asks, as base64 of little-endian floats.
pub(crate) fn embeddings(cx: &Context<'_>, rng: &mut fastrand::Rng) -> Value {
    let usual = if cx.model.contains("3-large") { 3_072 } else { 1_536 };
    let dimensions = cx.asked.dimensions.unwrap_or(usual).clamp(1, DIMENSIONS_MAX);
    let data: Vec<Value> = (0..cx.asked.input.items.max(1))
        .map(|index| {
            let vector = unit_vector(dimensions, rng);
            let embedding = if cx.asked.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::from(STANDARD.encode(bytes))
            } else {
                Value::from(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    json!({
        "object": "list",
        "data": data,
        "model": cx.model,
        "usage": {"prompt_tokens": cx.input_tokens, "total_tokens": cx.input_tokens},
    })
}

fn unit_vector(dimensions: u64, rng: &mut fastrand::Rng) -> Vec<f32> {
    let mut vector: Vec<f32> = (0..dimensions).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

/// Nothing is ever flagged.
pub(crate) fn moderations(cx: &Context<'_>) -> Value {
    let each = |value: Value| -> Value { CATEGORIES.iter().map(|c| ((*c).to_owned(), value.clone())).collect() };
    let result = json!({
        "flagged": false,
        "categories": each(json!(false)),
        "category_scores": each(json!(0.0001)),
        "category_applied_input_types": each(json!(["text"])),
    });
    let results = vec![result; cx.asked.input.items.max(1) as usize];
    json!({"id": format!("modr-{}", cx.id), "model": cx.model, "results": results})
}

/// The models that the scenario names.
pub(crate) fn models(scenario: &Scenario) -> Value {
    let names = scenario.model.keys().filter(|name| *name != "default");
    json!({"object": "list", "data": names.map(|name| model(name)).collect::<Vec<_>>()})
}

/// One model.
pub(crate) fn model(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": LONG_AGO, "owned_by": "openai"})
}
