//! Decides what the notes of a journal come to: which calls were under way, and how many tokens all calls have used at most.
//!
//! What is known is counted as it is; of a call that was sent and whose end nobody noted, the most that it can use. So what
//! is said to be used is never less than what was, wherever a run was killed.

use std::collections::{HashMap, HashSet};
use std::fmt;

/// What the journal says of the line `number`. Written as a line that ends with `;`, so that a torn one is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is about to be sent, and can use so many tokens at most.
    Sends { number: u64, tokens_max: u64 },
    /// What was sent of it has ended, and has used so many: the most, where that is not known.
    Used { number: u64, tokens: u64 },
    /// Nothing of it is under way: it was refused without being worked on, or had a result that is given up.
    Over { number: u64 },
}

impl Note {
    /// `None`: it is torn, or none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let said = line.strip_suffix(';')?;
        if let Some(number) = said.strip_prefix('-') {
            return Some(Self::Over { number: number.parse().ok()? });
        }
        let (number, tokens) = said.split_once(' ')?;
        let tokens = tokens.parse().ok()?;
        Some(match number.strip_prefix('=') {
            Some(number) => Self::Used { number: number.parse().ok()?, tokens },
            None => Self::Sends { number: number.parse().ok()?, tokens_max: tokens },
        })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { number, tokens_max } => writeln!(f, "{number} {tokens_max};"),
            Self::Used { number, tokens } => writeln!(f, "={number} {tokens};"),
            Self::Over { number } => writeln!(f, "-{number};"),
        }
    }
}

/// What all notes come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Lines that were sent and, where they have no result, may have been billed.
    pub(crate) sent: HashSet<u64>,
    /// Those whose end nobody noted, and the most that they can use.
    open: HashMap<u64, u64>,
    used: u64,
}

impl Account {
    pub(crate) fn add(&mut self, note: Note) {
        match note {
            Note::Sends { number, tokens_max } => {
                self.sent.insert(number);
                // One that was cut off before: nobody will say any more what it used.
                let cut_off = self.open.insert(number, tokens_max);
                self.used = self.used.saturating_add(cut_off.unwrap_or(0));
            }
            Note::Used { number, tokens } => {
                self.open.remove(&number);
                self.used = self.used.saturating_add(tokens);
            }
            Note::Over { number } => {
                self.open.remove(&number);
                self.sent.remove(&number);
            }
        }
    }

    /// Tokens of all calls there ever were, at most.
    pub(crate) fn used_tokens(&self) -> u64 {
        self.open.values().fold(self.used, |sum, most| sum.saturating_add(*most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(text: &str) -> Account {
        let mut account = Account::default();
        text.lines().filter_map(Note::parse).for_each(|note| account.add(note));
        account
    }

    #[test]
    fn a_call_whose_end_nobody_noted_counts_with_the_most_that_it_can_use() {
        // The first has ended; the second was cut off, and again; the third was refused; the fourth is torn.
        let account = account("1 100;\n=1 30;\n2 100;\n3 100;\n-3;\n\n2 100;\n4 10");
        assert_eq!((account.used_tokens(), account.sent), (230, HashSet::from([1, 2])));
    }

    #[test]
    fn a_result_that_is_given_up_has_used_what_it_used_and_is_not_under_way() {
        let account = account("1 100;\n=1 30;\n-1;\n");
        assert_eq!((account.used_tokens(), account.sent), (30, HashSet::new()));
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        for note in [
            Note::Sends { number: 1, tokens_max: 2 },
            Note::Used { number: 3, tokens: 0 },
            Note::Over { number: u64::MAX },
        ] {
            assert_eq!(Note::parse(note.to_string().trim_end()), Some(note));
        }
    }
}
