//! Images and audio: the smallest that are valid.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Context, Said};

/// A PNG of one grey pixel.
pub(crate) const PIXEL: [u8; 67] = [
    0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, // signature
    0, 0, 0, 13, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x3A, 0x7E, 0x9B,
    0x55, // 1 × 1, grey
    0, 0, 0, 10, b'I', b'D', b'A', b'T', 0x78, 0xDA, 0x63, 0x68, 0, 0, 0, 0x82, 0, 0x81, // one pixel of 0x80
    0xDA, 0x45, 0x08, 0x3B, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xAE, 0x42, 0x60, 0x82,
];

/// Images, as base64; as an address that leads back here where `dall-e` would give one.
pub(crate) fn images(cx: &Context<'_>, base_url: &str) -> Value {
    let as_url = cx.model.starts_with("dall-e") && cx.asked.format.as_deref() != Some("b64_json");
    let image = if as_url {
        json!({"url": format!("{base_url}/sim/pixel.png")})
    } else {
        json!({"b64_json": STANDARD.encode(PIXEL)})
    };
    let (input, output) = (cx.input_tokens, 272 * cx.asked.n);
    json!({
        "created": cx.created,
        "data": vec![image; cx.asked.n as usize],
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
        "usage": {
            "input_tokens": input,
            "input_tokens_details": {"text_tokens": input, "image_tokens": 0},
            "output_tokens": output,
            "total_tokens": input + output,
        },
    })
}

/// What a recording said: JSON, or the bare text where that is asked for.
pub(crate) fn transcription(cx: &Context<'_>, said: &Said) -> (&'static str, String) {
    let text = said.text();
    match cx.asked.format.as_deref() {
        Some("text" | "srt" | "vtt") => ("text/plain; charset=utf-8", text + "\n"),
        Some("verbose_json") => {
            let reply = json!({
                "task": "transcribe", "language": "english", "duration": 1.0, "text": text, "segments": [], "words": [],
                "usage": {"type": "duration", "seconds": 1}
            });
            ("application/json", reply.to_string())
        }
        _ => ("application/json", json!({"text": text, "usage": {"type": "duration", "seconds": 1}}).to_string()),
    }
}

/// A tenth of a second of silence, as a WAV or, otherwise, as frames of an MP3.
pub(crate) fn speech(cx: &Context<'_>) -> (&'static str, Vec<u8>) {
    if cx.asked.format.as_deref() == Some("wav") {
        return ("audio/wav", silence());
    }
    // MPEG-1 layer III, 64 kbit/s, 44.1 kHz, mono: 208 bytes a frame.
    let frame = [&[0xFF, 0xFB, 0x50, 0xC4][..], &[0; 204]].concat();
    ("audio/mpeg", frame.repeat(8))
}

fn silence() -> Vec<u8> {
    let (rate, samples) = (8_000_u32, 800_u32);
    let mut wav = Vec::with_capacity(44 + samples as usize * 2);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + samples * 2).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16_u32.to_le_bytes());
    for half in [1_u16, 1] {
        wav.extend_from_slice(&half.to_le_bytes());
    }
    wav.extend_from_slice(&rate.to_le_bytes());
    wav.extend_from_slice(&(rate * 2).to_le_bytes());
    for half in [2_u16, 16] {
        wav.extend_from_slice(&half.to_le_bytes());
    }
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&(samples * 2).to_le_bytes());
    wav.resize(44 + samples as usize * 2, 0);
    wav
}
