//! Decides what a call asks for before it is sent, in the way in which OpenAI counts when it admits.
//!
//! That is not what it bills: chat is admitted by characters ÷ 4, with the tools uncounted; responses by about their real
//! tokens. Measured on 616 recorded replies; see the rate-limit notes in the documentation. Never counts with a tokenizer.

use std::borrow::Cow;
use std::fmt;

pub use super::calibration::Calibration;
use super::endpoints::Endpoint;
use crate::cost::Cost;

/// An image is admitted for so many tokens, whatever is billed for it.
pub const TOKENS_PER_IMAGE: u64 = 765;
/// What chat adds to the characters of its messages.
const CHAT_FRAME_TOKENS: u64 = 2;
/// What responses add to the real input.
const RESPONSES_FRAME_TOKENS: u64 = 19;
/// The same where tools are defined.
const RESPONSES_TOOLS_TOKENS: u64 = 217;

/// What was read of a request's body: everything that estimates, identity and settling need, borrowed where possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it was sent to.
    pub endpoint: Endpoint,
    /// The model asked for. `None`: the body names none (Azure's path does).
    pub model: Option<Cow<'a, str>>,
    /// Ceiling on the output tokens of one choice: in chat the larger of `max_completion_tokens` and `max_tokens` (OpenAI
    /// refuses both together; where one is let through, the larger can only reserve too much), in completions `max_tokens`,
    /// in responses `max_output_tokens`. `None`: absent, or negative, which some servers read as "no ceiling".
    pub max_output_tokens: Option<u64>,
    /// How many outputs come back, each up to the ceiling: `n`, in completions the larger of `n` and `best_of`, times the number
    /// of prompts. At least 1.
    pub choices: u64,
    /// Whether the reply is to be a stream.
    pub stream: bool,
    /// Whether a chat stream is to end with a chunk that holds its usage.
    pub include_usage: bool,
    /// The body's `user`.
    pub user: Option<Cow<'a, str>>,
    /// The body's `safety_identifier`, which OpenAI wants in place of `user`.
    pub safety_identifier: Option<Cow<'a, str>>,
    /// Characters of the texts that are read: messages, input, instructions, prompts. Decoded: an escape counts one.
    pub text_chars: u64,
    /// The same in bytes of UTF-8.
    pub text_bytes: u64,
    /// Tokens given as numbers; counted exactly.
    pub exact_tokens: u64,
    /// Bytes of the definitions of tools, as they are written. 0: there are none.
    pub tools_bytes: u64,
    /// Images in the input, or for the images endpoint the images asked for (at least 1).
    pub images: u32,
    /// It goes on from what the upstream keeps (`previous_response_id`, `conversation`), so that its input is not all here.
    pub continues: bool,
}

impl Request<'_> {
    /// A request of which nothing could be read, such as a form with files.
    #[must_use]
    pub const fn unread(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            model: None,
            max_output_tokens: None,
            choices: 1,
            stream: false,
            include_usage: false,
            user: None,
            safety_identifier: None,
            text_chars: 0,
            text_bytes: 0,
            exact_tokens: 0,
            tools_bytes: 0,
            images: if matches!(endpoint, Endpoint::Images) { 1 } else { 0 },
            continues: false,
        }
    }

    /// The end user that the body names: `safety_identifier`, else `user`.
    #[must_use]
    pub fn named_user(&self) -> Option<&str> {
        self.safety_identifier.as_deref().or(self.user.as_deref())
    }

    /// What [`Calibration::learn`] is to be told that this request was estimated at, in tokens.
    ///
    /// `None` where its real input says nothing of the ratio: images, input kept upstream, tokens given as numbers, no text.
    #[must_use]
    pub fn teaches(&self) -> Option<u64> {
        let says_nothing = self.images > 0 || self.continues || self.exact_tokens > 0 || self.text_bytes == 0;
        (!says_nothing).then(|| self.uncalibrated())
    }

    /// Of the estimate, the tokens that a calibration is applied to: none but in responses.
    #[must_use]
    pub const fn calibrated_tokens(&self) -> u64 {
        match self.endpoint {
            Endpoint::Responses | Endpoint::ResponsesCompact => self.uncalibrated(),
            _ => 0,
        }
    }

    /// Bytes ÷ 4 of all that responses count.
    const fn uncalibrated(&self) -> u64 {
        self.text_bytes.saturating_add(self.tools_bytes).div_ceil(4)
    }
}

/// Reads the body of a call to a metered `endpoint`.
///
/// Texts are counted where they stand, never copied; approximations: file and audio parts count nothing, of the items of
/// responses only what they say (`content`, `text`, `output`, `arguments`, `input`, `summary`, `refusal`).
/// Halves of surrogate pairs are tolerated. Unknown fields and new kinds of parts are passed over.
///
/// # Errors
/// What is wrong and where: no JSON, no object, a field of the wrong type, or twice a field that limits depend on, of which
/// the upstream might take the other.
pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Request<'_>, BodyError> {
    super::body::parse(endpoint, body)
}

/// What `request` asks for.
///
/// | endpoint | input tokens |
/// |---|---|
/// | chat | characters ÷ 4 + 2, tools uncounted, + 765 for each image |
/// | responses | (bytes of text and tools) ÷ 4 × `calibration`, + 19 or with tools + 217, + 765 for each image |
/// | completions, embeddings, moderations | characters ÷ 4, tokens given as numbers exactly, + 765 for each image |
/// | images | characters ÷ 4 + 765 for each image asked for |
///
/// Always rounded up.
#[must_use]
pub fn estimate(request: &Request<'_>, calibration: &Calibration) -> Cost {
    let by_chars = request.text_chars.div_ceil(4);
    let text = match request.endpoint {
        Endpoint::ChatCompletions => by_chars.saturating_add(CHAT_FRAME_TOKENS),
        Endpoint::Responses | Endpoint::ResponsesCompact => {
            let frame = if request.tools_bytes > 0 { RESPONSES_TOOLS_TOKENS } else { RESPONSES_FRAME_TOKENS };
            calibration.apply(request.calibrated_tokens()).saturating_add(frame)
        }
        _ => by_chars,
    };
    let images = u64::from(request.images).saturating_mul(TOKENS_PER_IMAGE);
    let generates = matches!(
        request.endpoint,
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Responses | Endpoint::ResponsesCompact
    );
    Cost {
        input_tokens: text.saturating_add(images).saturating_add(request.exact_tokens),
        max_output_tokens: if generates {
            request.max_output_tokens.map(|ceiling| ceiling.saturating_mul(request.choices))
        } else {
            // What writes no tokens has a ceiling: none.
            Some(0)
        },
        images: request.images,
        choices: request.choices,
        declared_tokens: 0,
    }
}

/// A place in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In bytes, from 1.
    pub column: usize,
    /// In bytes from the beginning, from 0.
    pub offset: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {} (byte {})", self.line, self.column, self.offset)
    }
}

/// Why a body cannot be taken. Says nothing of what the body holds beside names of fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No JSON.
    #[error("the body is no valid JSON: {what} at {at}")]
    Malformed {
        /// What was met, or was missing.
        what: String,
        /// Where.
        at: Place,
    },
    /// A field has a value of the wrong type.
    #[error("{field} must be {expected}, at {at}")]
    WrongType {
        /// The field; `the body` for the whole.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// Where the reader stood when it knew.
        at: Place,
    },
    /// A field that limits depend on is there twice.
    #[error("{field} is given twice, the second time at {at}; give it once")]
    Duplicate {
        /// The field.
        field: &'static str,
        /// Just after the second mention.
        at: Place,
    },
}

#[cfg(test)]
#[path = "estimate_tests.rs"]
mod tests;
