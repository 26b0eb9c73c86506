//! Decides what is said of a run when it has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Kinds of failures that are named, the most frequent first.
const FAILURES_SHOWN: usize = 3;

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "why")]
pub enum Ending {
    /// Every line has its result.
    Complete,
    /// It was asked to end.
    Interrupted,
    /// The bill or a spending cap.
    Quota,
    /// The next call might have gone beyond `--max-total-tokens`.
    Ceiling,
    /// Results can no longer be written.
    Unwritable(String),
    /// The input can no longer be read.
    Failed(String),
}

/// How near to a limit a run went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Near {
    /// `upstream/model group`, or the upstream alone where there were several.
    pub target: String,
    /// `tokens_per_minute`, ….
    pub dimension: &'static str,
    /// Units per period.
    pub limit: u64,
    /// Of what there was: what was used and what is left, or what flowed in where that is more.
    pub used_percent: f64,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Why it ended.
    pub ending: Ending,
    /// Lines of the input that are not empty.
    pub lines: u64,
    /// Results in the output that are good, those of earlier runs included.
    pub done: u64,
    /// Results in the output that are failures.
    pub failed: u64,
    /// Of the failures of this run, how many said what: a status and the error's code.
    pub failures: BTreeMap<String, u64>,
    /// Lines without a result.
    pub left: u64,
    /// Of the results, those that were there before.
    pub resumed: u64,
    /// Lines that an earlier run had sent without learning what became of them, and that were sent again: they may be billed
    /// twice. What was refused before anything was done about it is not among them.
    pub cut_off: u64,
    /// Lines that could not be sent (`--skip-bad`); they count as failed.
    pub bad: u64,
    /// Requests sent.
    pub attempts: u64,
    /// Answers with status 429.
    pub rate_limited: u64,
    /// How long it took.
    pub seconds: f64,
    /// As the answers report.
    pub input_tokens: u64,
    /// As the answers report.
    pub output_tokens: u64,
    /// The limit that bound most. Absent: none is known.
    pub near_limit: Option<Near>,
}

impl Summary {
    /// 0: all good, 1: it broke off, 3: not all of it is good, 130: interrupted.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self.ending {
            Ending::Interrupted => 130,
            Ending::Unwritable(_) | Ending::Failed(_) => 1,
            _ if self.failed > 0 || self.left > 0 => 3,
            _ => 0,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall = Spoken(Duration::from_secs_f64(self.seconds));
        write!(f, "{} done, {} failed of {} lines in {wall}", self.done, self.failed, self.lines)?;
        if self.resumed > 0 {
            write!(f, " ({} of them were done before)", self.resumed)?;
        }
        let (attempts, limited) = (self.attempts, self.rate_limited);
        write!(f, "\n{attempts} attempts, {limited} 429s, ")?;
        write!(f, "{} input and {} output tokens", self.input_tokens, self.output_tokens)?;
        if let Some(near) = &self.near_limit {
            let Near { target, dimension, limit, used_percent } = near;
            write!(f, "\n{used_percent:.1} % of what {dimension} {limit} of {target} allowed in that time")?;
        }
        let mut failures = self.failures.iter().collect::<Vec<_>>();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (why, count) in failures.iter().take(FAILURES_SHOWN) {
            write!(f, "\nfailed: {count} with {why}")?;
        }
        if self.failed > 0 {
            write!(f, "\nwhat failed says why in its line of the output; --retry-failed sends it again")?;
        }
        if self.cut_off > 0 {
            let cut_off = self.cut_off;
            write!(
                f,
                "\n{cut_off} lines were sent again, and may be billed twice: an earlier run ended before their results were written"
            )?;
        }
        if self.bad > 0 {
            write!(f, "\n{} bad lines were not sent; they are among the failed", self.bad)?;
        }
        let left = self.left;
        match &self.ending {
            Ending::Complete => Ok(()),
            Ending::Interrupted => write!(f, "\ninterrupted: {left} lines are left; the same command goes on"),
            Ending::Quota => write!(
                f,
                "\nthe quota is exhausted: {left} lines are left; once it is paid for, the same command goes on"
            ),
            Ending::Ceiling => {
                write!(f, "\n--max-total-tokens is reached: {left} lines are left; the same command with more goes on")
            }
            Ending::Unwritable(why) | Ending::Failed(why) => write!(f, "\n{why}; {left} lines are left"),
        }
    }
}

/// A duration as people say it: `2m05s`, `3.2s`.
pub(crate) struct Spoken(pub(crate) Duration);

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..60 => write!(f, "{:.1}s", self.0.as_secs_f64()),
            60..3600 => write!(f, "{}m{:02}s", seconds / 60, seconds % 60),
            _ => write!(f, "{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        }
    }
}
