//! Decides whether the tokens of all calls together stay below a ceiling, whatever each of them may still use.
//!
//! Every call sets aside the most that it can use before it is sent, and gives back what it did not. Where that cannot be
//! known, since it says nothing of its output, the most is what models write at most; near the end such a call is sent with
//! the rest as its ceiling, because nothing else would hold.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// No model of today writes more tokens at once.
const OUTPUT_TOKENS_MAX: u64 = 131_072;
/// Less output than this is not worth a call; OpenAI's responses take no lower ceiling.
const OUTPUT_TOKENS_MIN: u64 = 16;

#[derive(Debug, Default)]
struct State {
    used: u64,
    held: u64,
}

/// The ceiling of a run.
#[derive(Debug)]
pub(crate) struct Ceiling {
    /// `u64::MAX`: none.
    max: u64,
    state: Mutex<State>,
    given_back: Notify,
}

/// What a call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The most.
    pub(crate) tokens: u64,
    /// The ceiling to be put on its output.
    pub(crate) output_ceiling: Option<u64>,
}

impl Ceiling {
    /// `used` tokens of it are gone already.
    pub(crate) fn new(max: Option<u64>, used: u64) -> Self {
        let state = Mutex::new(State { used, held: 0 });
        Self { max: max.unwrap_or(u64::MAX), state, given_back: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside what a call may use. `None`: there is not enough left for it, and there will not be.
    pub(crate) async fn hold(&self, input_tokens_max: u64, max_output_tokens: Option<u64>) -> Option<Held> {
        loop {
            let given_back = self.given_back.notified();
            tokio::pin!(given_back);
            given_back.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(held) = self.fits(&state, input_tokens_max, max_output_tokens) {
                    state.held = state.held.saturating_add(held.tokens);
                    return Some(held);
                }
                if state.held == 0 {
                    return None;
                }
            }
            given_back.await;
        }
    }

    fn fits(&self, state: &State, input_tokens_max: u64, max_output_tokens: Option<u64>) -> Option<Held> {
        let left = self.max.saturating_sub(state.used).saturating_sub(state.held);
        if let Some(output) = max_output_tokens {
            let tokens = input_tokens_max.saturating_add(output);
            return (tokens <= left).then_some(Held { tokens, output_ceiling: None });
        }
        let all = input_tokens_max.saturating_add(OUTPUT_TOKENS_MAX);
        if all <= left {
            return Some(Held { tokens: all, output_ceiling: None });
        }
        let output = left.checked_sub(input_tokens_max).filter(|output| *output >= OUTPUT_TOKENS_MIN)?;
        Some(Held { tokens: left, output_ceiling: Some(output) })
    }

    /// The call has ended, and has used so much.
    pub(crate) fn give_back(&self, held: Held, used: u64) {
        let mut state = self.state();
        state.held = state.held.saturating_sub(held.tokens);
        state.used = state.used.saturating_add(used);
        drop(state);
        self.given_back.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_set_aside_never_exceeds_the_ceiling() {
        let ceiling = Ceiling::new(Some(1000), 100);
        let one = ceiling.hold(100, Some(300)).await.unwrap();
        let other = ceiling.hold(100, Some(300)).await.unwrap();
        assert!(tokio::time::timeout(std::time::Duration::ZERO, ceiling.hold(100, Some(100))).await.is_err());
        ceiling.give_back(one, 250);
        let third = ceiling.hold(100, Some(100)).await.unwrap();
        ceiling.give_back(other, other.tokens);
        ceiling.give_back(third, 50);
        assert_eq!(ceiling.hold(100, Some(300)).await, None);
        assert_eq!(ceiling.state().used, 800);
    }

    #[tokio::test]
    async fn a_call_that_says_nothing_of_its_output_gets_the_rest_as_its_ceiling() {
        let ceiling = Ceiling::new(Some(1000), 0);
        let held = ceiling.hold(100, None).await.unwrap();
        assert_eq!(held.output_ceiling, Some(900));
        ceiling.give_back(held, 990);
        assert_eq!(ceiling.hold(1, None).await, None);
        assert_eq!(Ceiling::new(None, 0).hold(100, None).await.unwrap().output_ceiling, None);
    }
}
