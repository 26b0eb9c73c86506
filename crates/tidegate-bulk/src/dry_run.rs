//! Decides what is said of a run before it is made: how much it asks for, and how long it will take.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tidegate_core::config::Policy;

use crate::input::{Input, Survey};
use crate::journal::Done;
use crate::line::Shape;
use crate::plan::{Plan, Trace, Used, predict};
use crate::run::{RunError, unreadable};
use crate::summary::{Counted, Spoken};

/// What a run would be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DryRun {
    /// Calls.
    pub lines: u64,
    /// Lines that cannot be sent, and would be left out.
    pub bad: u64,
    /// As estimated; what the upstream's limits count.
    pub input_tokens: u64,
    /// The ceilings on output of those that have one.
    pub output_tokens_max: u64,
    /// Calls that have none.
    pub without_ceiling: u64,
    /// How long it would take. Absent: no limits are known.
    pub plan: Option<Plan>,
}

/// Reads all of `input`, sends nothing, and predicts by `policy`. `skip_bad`: bad lines are left out.
///
/// # Errors
/// Bad lines that are not left out, or an input that cannot be read.
pub fn dry_run(input: &Input, shape: &Shape, skip_bad: bool, policy: &Policy) -> Result<DryRun, RunError> {
    let mut bad = HashSet::new();
    let survey = Survey::read(input, shape, &Done::default(), &HashSet::new(), |line| {
        bad.insert(line.number);
    });
    let survey = survey.map_err(|error| unreadable(input, &error))?;
    if let Some(complaint) = survey.complaint(input).filter(|_| !skip_bad) {
        return Err(RunError::Usage(complaint));
    }
    let trace = Trace::of_run(&input.without(bad), shape).map_err(|error| RunError::Usage(error.to_string()))?;
    let mut said = DryRun {
        lines: 0,
        bad: survey.bad_count,
        input_tokens: 0,
        output_tokens_max: 0,
        without_ceiling: 0,
        plan: None,
    };
    for arrival in &trace.arrivals {
        said.lines += 1;
        said.input_tokens = said.input_tokens.saturating_add(arrival.cost.input_tokens);
        match arrival.cost.max_output_tokens {
            Some(most) => said.output_tokens_max = said.output_tokens_max.saturating_add(most),
            None => said.without_ceiling += 1,
        }
    }
    said.plan = (!policy.limits.is_empty()).then(|| predict(&trace, policy));
    Ok(said)
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} input tokens, ", Counted(self.lines, "call"), self.input_tokens)?;
        match (self.without_ceiling, self.lines - self.without_ceiling) {
            (0, _) => write!(f, "at most {} output tokens", self.output_tokens_max)?,
            (_, 0) => write!(f, "no ceiling on output tokens")?,
            (_, with) => write!(f, "at most {} output tokens of the {with} with a ceiling", self.output_tokens_max)?,
        }
        if self.bad > 0 {
            write!(f, "\n{} would be left out", Counted(self.bad, "bad line"))?;
        }
        let Some(plan) = &self.plan else {
            return write!(
                f,
                "\nhow long it takes depends on limits that are not known: give --rpm and --tpm, or --config"
            );
        };
        let takes = Spoken(Duration::from_secs_f64(plan.makespan_seconds));
        write!(f, "\nwould take {takes}, if all limits are unused at first")?;
        for used in &plan.used {
            let Used { dimension, units, percent, .. } = used;
            write!(f, "\n{percent:.1} % of {dimension} {units}{} would be used meanwhile", used.whose())?;
        }
        Ok(())
    }
}
