//! What a stream will send and when, made up in full before its first byte leaves.
//!
//! Faults are edits of a script. Nothing here sends or sleeps; `body` plays it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ending {
    /// As it should.
    #[default]
    Clean,
    /// With a reset of the connection.
    Reset,
    /// The connection is closed in the middle of the body.
    Closed,
}

/// A stream to be.
#[derive(Default)]
pub(crate) struct Script {
    buffer: BytesMut,
    steps: Vec<Step>,
    ending: Ending,
    pace: Pace,
}

/// When the tokens leave, from the first one on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// Time for one token.
    pub(crate) per_token: Duration,
}

struct Step {
    end: usize,
    due: Duration,
}

/// A script that no longer changes.
pub(crate) struct Played {
    pub(crate) bytes: Bytes,
    /// Where each piece ends, and when it leaves after the stream's start.
    pub(crate) steps: Vec<(usize, Duration)>,
    pub(crate) ending: Ending,
    /// Pieces must not be joined on their way.
    pub(crate) apart: bool,
}

impl Script {
    pub(crate) fn new(pace: Pace) -> Self {
        Script { pace, ..Script::default() }
    }

    /// Adds an event, complete with its blank line, that leaves with the token of this number.
    pub(crate) fn event(&mut self, token: u64, parts: &[&str]) {
        for part in parts {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        self.buffer.extend_from_slice(b"\n\n");
        let due = self.pace.per_token.saturating_mul(u32::try_from(token).unwrap_or(u32::MAX));
        self.steps.push(Step { end: self.buffer.len(), due });
    }

    /// A script of these bytes at once.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let steps = vec![Step { end: bytes.len(), due: Duration::ZERO }];
        Script { buffer: BytesMut::from(bytes), steps, ..Script::default() }
    }

    /// How many events it has.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Drops all but the first `keep` events.
    pub(crate) fn cut(&mut self, keep: usize) {
        self.steps.truncate(keep);
        self.buffer.truncate(self.steps.last().map_or(0, |s| s.end));
    }

    /// Adds an event that leaves with the last one.
    pub(crate) fn follow(&mut self, text: &str) {
        let due = self.steps.last().map_or(Duration::ZERO, |s| s.due);
        self.buffer.extend_from_slice(text.as_bytes());
        self.buffer.extend_from_slice(b"\n\n");
        self.steps.push(Step { end: self.buffer.len(), due });
    }

    /// Everything after the first `after` events comes so much later.
    pub(crate) fn pause(&mut self, after: usize, pause: Duration) {
        for step in self.steps.iter_mut().skip(after) {
            step.due = step.due.saturating_add(pause);
        }
    }

    pub(crate) fn end_with(&mut self, ending: Ending) {
        self.ending = ending;
    }

    pub(crate) fn play(self, split: Option<usize>) -> Played {
        let mut steps = Vec::with_capacity(self.steps.len());
        let mut start = 0;
        for step in &self.steps {
            if let Some(piece) = split {
                steps.extend((start + piece..step.end).step_by(piece.max(1)).map(|end| (end, step.due)));
                start = step.end;
            }
            steps.push((step.end, step.due));
        }
        Played { bytes: self.buffer.freeze(), steps, ending: self.ending, apart: split.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        let mut script = Script::new(Pace { per_token: Duration::from_millis(10) });
        for (i, word) in ["zero", "one", "two"].into_iter().enumerate() {
            script.event(i as u64, &["data: ", word]);
        }
        script
    }

    #[test]
    fn events_leave_with_their_tokens() {
        let played = script().play(None);
        assert_eq!(&played.bytes[..], b"data: zero\n\ndata: one\n\ndata: two\n\n");
        let millis = |n| Duration::from_millis(n);
        assert_eq!(played.steps, [(12, millis(0)), (23, millis(10)), (34, millis(20))]);
    }

    #[test]
    fn a_cut_script_ends_at_a_whole_event_and_can_go_on_with_another() {
        let mut script = script();
        script.cut(1);
        script.follow("data: {}");
        assert_eq!(&script.play(None).bytes[..], b"data: zero\n\ndata: {}\n\n");
    }

    #[test]
    fn a_pause_holds_up_what_comes_after() {
        let mut script = script();
        script.pause(1, Duration::from_secs(1));
        let due: Vec<_> = script.play(None).steps.iter().map(|s| s.1.as_millis()).collect();
        assert_eq!(due, [0, 1_010, 1_020]);
    }

    #[test]
    fn split_pieces_are_small_and_lose_nothing() {
        let played = script().play(Some(5));
        let mut start = 0;
        for &(end, _) in &played.steps {
            assert!(end > start && end - start <= 5);
            start = end;
        }
        assert_eq!(start, played.bytes.len());
    }
}
