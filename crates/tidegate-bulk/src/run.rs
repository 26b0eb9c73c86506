//! One run, from its options to its summary: look at what is left, read the input, go on, write, say what came of it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::Driver;
use tidegate_core::call::Priority;
use tidegate_core::gate::{Gate, Status};
use tidegate_core::openai::models::ModelGroups;
use tokio::sync::{mpsc, watch};

use crate::beginning::Beginning;
use crate::call::Shared;
use crate::ceiling::Ceiling;
use crate::feed;
use crate::input::{Input, Survey};
use crate::journal::{self, Journal, JournalError, Left, Made};
use crate::known::Known;
use crate::line::{BadLine, Shape};
use crate::look::Whole;
use crate::output::Came;
use crate::progress::{self, Counts, Show};
use crate::quota::{OnQuota, Quota};
use crate::send::Upstream;
use crate::summary::{Ending, Near, Summary};
use crate::writer::{Lost, RESULTS_WAITING, Row, Sink, write_results};

/// What a run is to do.
#[derive(Debug)]
pub struct Options {
    /// Where results go; `-` for standard output.
    pub out: PathBuf,
    /// How lines are read.
    pub shape: Shape,
    /// What the upstream is called in the journal: a base URL, or `sim`.
    pub upstream_name: String,
    /// Models that share one limit.
    pub groups: ModelGroups,
    /// Of every call.
    pub priority: Priority,
    /// What an exhausted quota means.
    pub on_quota: OnQuota,
    /// Bad lines become failures in the output instead of a reason not to begin.
    pub skip_bad: bool,
    /// Failures of an earlier run are sent again.
    pub retry_failed: bool,
    /// How long nobody need be reached before the run ends for it; once anybody has answered, an outage is waited out.
    pub give_up_unreached_after: Duration,
    /// Input and output together, of all calls there ever were for this output.
    pub max_total_tokens: Option<NonZeroU64>,
    /// How it is shown while it goes.
    pub show: Show,
}

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Bad arguments or input; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written; nothing was sent.
    #[error("{0}")]
    Failed(String),
    /// It was asked to end before anything was sent.
    #[error("interrupted before anything was sent")]
    Interrupted,
}

impl From<JournalError> for RunError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Refused(why) => Self::Usage(why),
            JournalError::File { .. } => Self::Failed(error.to_string()),
        }
    }
}

/// Asks a run to end: nothing more is sent, and what is in flight may end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl Stop {
    /// Asks.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until somebody has asked.
    pub async fn asked(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Runs all of `input`, and returns when every line has its result or nothing more is to be sent.
///
/// # Errors
/// If it could not begin; nothing has been sent then.
pub async fn run(
    input: Input,
    upstream: Upstream,
    driver: Driver,
    options: Options,
    stop: Stop,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    let is_file = may_be_written(&options)?;
    let (left, survey, bad_lines) = read_in_time(&input, &options, is_file, &stop).await?;
    let (journal, sink) = open_output(&options, is_file, &made_of(&survey, &options), &left)?;
    let (results, to_write) = mpsc::channel(RESULTS_WAITING);
    let shared = Arc::new(Shared {
        driver,
        upstream,
        groups: options.groups,
        priority: options.priority,
        ceiling: Ceiling::new(options.max_total_tokens.map(NonZeroU64::get), left.used_tokens()),
        quota: Quota::new(options.on_quota),
        beginning: Beginning::new(left.done.good() > 0, survey.feeds.len(), options.give_up_unreached_after),
        counts: Counts::default(),
        journal,
        results,
        ending: watch::channel(None).0,
        calibrations: Mutex::new(HashMap::new()),
    });
    let out = if options.out.as_os_str() == "-" { "standard output".into() } else { options.out.display().to_string() };
    let writer = write_results(sink, to_write, shared.ending.clone(), out);
    let bad = bad_lines.len() as u64;
    for row in bad_lines {
        shared.write(row).await;
    }
    let before = (left.done.good(), left.done.failed);
    let whole = Whole { before, lines: survey.lines, input_tokens: survey.input_tokens };
    let shape = Arc::new(options.shape);
    tokio::select! {
        () = feed::send_all(&shared, &input, &shape, &survey) => {}
        () = progress::show(shared.clone(), options.show, whole), if options.show != Show::Nothing => {}
        () = asked(&shared, &stop) => {}
    }
    if shared.ending.borrow().is_none() {
        for row in shared.beginning.rest() {
            shared.write(row).await;
        }
    }
    finish(shared, writer, &survey, before, bad, started).await
}

/// Passes on that the run is to end; never returns.
async fn asked(shared: &Shared, stop: &Stop) {
    stop.asked().await;
    tracing::warn!("stopping: what is in flight may end; a second signal stops at once");
    shared.end(Ending::Interrupted);
    std::future::pending().await
}

async fn finish(
    shared: Arc<Shared>,
    writer: tokio::task::JoinHandle<Lost>,
    survey: &Survey,
    before: (u64, u64),
    bad: u64,
    started: Instant,
) -> Result<Summary, RunError> {
    let seconds = started.elapsed().as_secs_f64();
    let status = shared.driver.with(Gate::status);
    let counts = &shared.counts;
    let (attempts, sent_tokens) = (counts.attempts.load(Relaxed), counts.sent_tokens.load(Relaxed));
    let (done, failed) = (counts.done.load(Relaxed), counts.failed.load(Relaxed));
    let mut summary = Summary {
        ending: Ending::Complete,
        lines: survey.lines,
        done: done + before.0,
        failed: failed + before.1,
        failures: counts.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        left: 0,
        resumed: before.0 + before.1,
        cut_off: survey.cut_off,
        lost: 0,
        bad,
        attempts,
        rate_limited: counts.rate_limited(),
        seconds,
        input_tokens: counts.input_tokens.load(Relaxed),
        output_tokens: counts.output_tokens.load(Relaxed),
        near_limit: near(&status, &shared.upstream.name, attempts, sent_tokens, seconds),
    };
    let ending = shared.ending.clone();
    // With the last sender the writer ends.
    drop(shared);
    let lost = writer.await.map_err(|error| RunError::Failed(format!("the writer died: {error}")))?;
    summary.done = summary.done.saturating_sub(lost.good);
    summary.failed = summary.failed.saturating_sub(lost.failed);
    summary.lost = lost.good + lost.failed;
    summary.left = survey.lines.saturating_sub(summary.done + summary.failed);
    if let Some(why) = ending.borrow().clone().filter(|why| summary.left > 0 || matches!(why, Ending::Unwritable(_))) {
        summary.ending = why;
    }
    Ok(summary)
}

/// Of the limits that are known the one of which most was used.
fn near(status: &Status, upstream: &str, attempts: u64, tokens: u64, seconds: f64) -> Option<Near> {
    let target = match status.breakers.as_slice() {
        [only] => &only.name,
        _ => upstream,
    };
    let dimensions = [
        ("requests_per_minute", attempts, 60.0),
        ("tokens_per_minute", tokens, 60.0),
        ("requests_per_day", attempts, 86_400.0),
        ("tokens_per_day", tokens, 86_400.0),
    ];
    let used = dimensions.into_iter().filter_map(|(dimension, units, period)| {
        let Known { limit, remaining } = Known::of(status, dimension)?;
        let there = (units.saturating_add(remaining) as f64).max(limit as f64 * seconds / period);
        let used_percent = 100.0 * units as f64 / there.max(1.0);
        Some(Near { target: target.to_owned(), dimension, limit, used_percent })
    });
    used.max_by(|one, other| one.used_percent.total_cmp(&other.used_percent))
}

/// Whether the output is a file, which alone can be gone on from: not standard output, a pipe or a device.
fn may_be_written(options: &Options) -> Result<bool, RunError> {
    let out = &options.out;
    let is_file = out.as_os_str() != "-" && std::fs::metadata(out).map_or(true, |metadata| metadata.is_file());
    if !is_file && options.retry_failed {
        return Err(RunError::Usage(format!("--retry-failed needs a file as output, not {}", out.display())));
    }
    let folder = out.parent().filter(|folder| is_file && !folder.as_os_str().is_empty() && !folder.is_dir());
    match folder.map(Path::display) {
        Some(folder) => Err(RunError::Usage(format!("cannot write {}: there is no folder {folder}", out.display()))),
        None => Ok(is_file),
    }
}

/// The output, open at its end, and where there can be one the journal.
fn open_output(
    options: &Options,
    is_file: bool,
    made: &Made,
    left: &Left,
) -> Result<(Option<Journal>, Sink), RunError> {
    let out = &options.out;
    let unwritable = |error: io::Error| RunError::Failed(format!("cannot write {}: {error}", out.display()));
    if is_file {
        let (journal, file) = Journal::begin(out, made, left)?;
        let sink = Sink::file(file, out, journal.file()).map_err(unwritable)?;
        return Ok((Some(journal), sink));
    }
    if out.as_os_str() == "-" {
        tracing::info!(
            "standard output cannot be gone on from: if this run is interrupted, all of it is to be sent again"
        );
        return Ok((None, Sink::Stdout));
    }
    Ok((None, Sink::Device(File::options().append(true).open(out).map_err(unwritable)?)))
}

/// All of the input, and the results of its bad lines. Ends early, and says nothing that is true of all of it, once `stop` asks.
fn read_all(
    input: &Input,
    shape: &Shape,
    skip_bad: bool,
    left: &Left,
    (stop, lines): (&Stop, &AtomicU64),
) -> Result<(Survey, Vec<Row>), RunError> {
    let mut bad_lines = Vec::new();
    let bad = |bad: &BadLine| {
        if skip_bad {
            let message = format!("line {}: {}", bad.number, bad.reason);
            let name = bad.custom_id.as_deref().unwrap_or_default();
            bad_lines.push(Row::new(bad.number, name, &Came::Nothing { code: "bad_line", message }));
        }
    };
    let goes_on = |number| {
        lines.store(number, Relaxed);
        !stop.is_asked()
    };
    let survey = Survey::read_while(input, shape, &left.done, &left.account.sent, bad, goes_on);
    let survey = survey.map_err(|error| unreadable(input, &error))?;
    match survey.complaint(input).filter(|_| !skip_bad) {
        Some(complaint) => Err(RunError::Usage(complaint)),
        None => Ok((survey, bad_lines)),
    }
}

/// What is left of earlier runs, and all of the input, in a thread of its own, since it may take long: meanwhile it says how
/// far it is, and may be told to stop.
async fn read_in_time(
    input: &Input,
    options: &Options,
    is_file: bool,
    stop: &Stop,
) -> Result<(Left, Survey, Vec<Row>), RunError> {
    let lines = Arc::new(AtomicU64::new(0));
    let reading = tokio::task::spawn_blocking({
        let (input, shape, skip_bad) = (input.clone(), options.shape.clone(), options.skip_bad);
        let (out, retry_failed) = (options.out.clone(), options.retry_failed);
        let (stop, lines) = (stop.clone(), lines.clone());
        move || {
            let left = if is_file { journal::look(&out, retry_failed)? } else { Left::default() };
            let (survey, bad) = read_all(&input, &shape, skip_bad, &left, (&stop, &lines))?;
            Ok((left, survey, bad))
        }
    });
    tokio::select! {
        biased;
        () = stop.asked() => Err(RunError::Interrupted),
        read = reading => read.map_err(|error| RunError::Failed(format!("the reader died: {error}")))?,
        () = progress::show_reading(options.show, input.name(), &lines) => Err(RunError::Interrupted),
    }
}

/// Nothing has been sent yet: it is the input that is no good.
pub(crate) fn unreadable(input: &Input, error: &io::Error) -> RunError {
    RunError::Usage(format!("cannot read {} to its end: {error}", input.name()))
}

fn made_of(survey: &Survey, options: &Options) -> Made {
    Made {
        tidegate_run: 1,
        input: survey.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        lines: survey.lines,
        upstream: options.upstream_name.clone(),
        endpoint: options.shape.endpoint.clone(),
        model: options.shape.model.clone(),
        prompt_key: options.shape.prompt_key.clone(),
        skip_bad: options.skip_bad,
    }
}
