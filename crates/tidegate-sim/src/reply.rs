//! What the simulated models say, and how each endpoint dresses it.

mod chat;
mod completions;
mod files;
mod media;
mod responses;
mod schema;
mod vectors;

use std::borrow::Cow;

use serde_json::{Value, json};

pub(crate) use self::files::Files;
pub(crate) use self::{
    chat::chat,
    completions::completions,
    responses::{failed, responses},
};
pub(crate) use self::{media::*, vectors::*};
use crate::asked::{Asked, Form};
use crate::draw;
use crate::scenario::Output;
use crate::script::{Pace, Script};
use crate::tally;

/// Filler. One word is one token. Some are not ASCII, so that cuts inside a character happen.
const WORDS: [&str; 32] = [
    "the", "tide", "comes", "in", "and", "goes", "out", "again", "slowly", "over", "sand", "stone", "café", "where",
    "boats", "wait", "for", "water", "enough", "to", "float", "naïve", "gulls", "watch", "from", "a", "wall", "until",
    "evening", "über", "quiet", "harbour",
];

/// What all replies to one call share.
pub(crate) struct Context<'a> {
    /// Hexadecimal, unique in the run.
    pub(crate) id: &'a str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) input_tokens: u64,
    pub(crate) asked: &'a Asked,
    /// Tokens in one streamed chunk.
    pub(crate) chunk: usize,
}

/// One answer, in pieces of a token each.
pub(crate) enum Said {
    Text {
        pieces: Vec<Cow<'static, str>>,
        /// It ended because it was long enough, not because it was complete.
        cut: bool,
    },
    Tool {
        name: String,
        pieces: Vec<Cow<'static, str>>,
    },
}

/// A reply: at once or as a stream.
pub(crate) enum Reply {
    Json(Value),
    Stream(Script),
}

impl Said {
    /// Makes up an answer of the form that was asked for.
    pub(crate) fn make_up(asked: &Asked, output: &Output, rng: &mut fastrand::Rng) -> Said {
        match &asked.form {
            Form::Tool { name, parameters } => {
                let arguments = schema::example(parameters).to_string();
                Said::Tool { name: name.clone(), pieces: in_pieces(&arguments) }
            }
            Form::Json(wanted) => {
                let object = wanted.as_ref().map_or_else(|| json!({"answer": "tide"}), schema::example);
                Said::Text { pieces: in_pieces(&object.to_string()), cut: false }
            }
            Form::Text => {
                let drawn = f64::from(output.median) * (output.sigma * draw::normal(rng)).exp();
                let length = (drawn as u64).clamp(1, u64::from(output.max));
                let most = asked.max_tokens.unwrap_or(u64::MAX).max(1);
                let start = rng.usize(..WORDS.len());
                let pieces = (0..length.min(most) as usize).map(|i| word(i, start)).collect();
                Said::Text { pieces, cut: length > most }
            }
        }
    }

    pub(crate) fn pieces(&self) -> &[Cow<'static, str>] {
        match self {
            Said::Text { pieces, .. } | Said::Tool { pieces, .. } => pieces,
        }
    }

    pub(crate) fn text(&self) -> String {
        self.pieces().concat()
    }

    /// Tokens of the answer; a tool's name counts too.
    pub(crate) fn tokens(&self) -> u64 {
        let named = match self {
            Said::Text { .. } => 0,
            Said::Tool { name, .. } => tally::tokens(name) + 7,
        };
        self.pieces().len() as u64 + named
    }
}

/// A script at this pace.
pub(crate) fn script(pace: Pace) -> Script {
    Script::new(pace)
}

/// A text as a JSON string.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn word(i: usize, start: usize) -> Cow<'static, str> {
    let word = WORDS[(start + i) % WORDS.len()];
    if i == 0 { Cow::Borrowed(word) } else { Cow::Owned(format!(" {word}")) }
}

fn in_pieces(text: &str) -> Vec<Cow<'static, str>> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(4).map(|piece| Cow::Owned(piece.iter().collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_never_exceed_what_was_allowed_and_say_when_they_were_cut() {
        let asked = Asked { max_tokens: Some(5), n: 1, ..Asked::default() };
        let said = Said::make_up(&asked, &Output::default(), &mut draw::of_call(1, 1));
        assert_eq!(said.tokens(), 5);
        assert!(matches!(said, Said::Text { cut: true, .. }));
    }

    #[test]
    fn an_answer_is_the_same_under_the_same_seed() {
        let text = |seed| Said::make_up(&Asked::default(), &Output::default(), &mut draw::of_call(seed, 4)).text();
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
