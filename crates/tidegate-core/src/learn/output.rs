//! Decides what a call without a ceiling on its output is expected to write: what such calls wrote before.

use crate::call::RequestType;

/// Expected while none has been seen.
const FIRST_GUESS: u64 = 256;
/// Weight of the newest call: 1 in so many.
const DECAY: i64 = 16;

/// A decaying average of output tokens by kind of work.
#[derive(Clone, Debug, Default)]
pub(crate) struct TypicalOutput([Option<u64>; 5]);

impl TypicalOutput {
    /// Tokens that a call of this kind is expected to write.
    pub(crate) fn expected(&self, request_type: RequestType) -> u64 {
        match request_type {
            RequestType::Chat | RequestType::Completion => self.0[request_type as usize].unwrap_or(FIRST_GUESS),
            RequestType::Embedding | RequestType::Image | RequestType::Other => {
                self.0[request_type as usize].unwrap_or(0)
            }
        }
    }

    /// A call of this kind wrote so many.
    pub(crate) fn wrote(&mut self, request_type: RequestType, tokens: u64) {
        let average = &mut self.0[request_type as usize];
        *average = Some(average.map_or(tokens, |old| {
            let step = (crate::bucket::as_level(tokens) - crate::bucket::as_level(old)) / DECAY;
            old.saturating_add_signed(step)
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_replaces_the_first_guess_and_then_decays() {
        let mut typical = TypicalOutput::default();
        assert_eq!(typical.expected(RequestType::Chat), 256);
        assert_eq!(typical.expected(RequestType::Embedding), 0);
        typical.wrote(RequestType::Chat, 1000);
        assert_eq!(typical.expected(RequestType::Chat), 1000);
        typical.wrote(RequestType::Chat, 200);
        assert_eq!(typical.expected(RequestType::Chat), 950);
    }
}
