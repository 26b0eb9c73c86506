//! One run, from its options to its summary: look at what is left, read the input, go on, write, say what came of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::Driver;
use tidegate_core::call::Priority;
use tidegate_core::gate::{Gate, Status};
use tidegate_core::openai::models::ModelGroups;
use tokio::sync::{mpsc, watch};

use crate::call::Shared;
use crate::ceiling::Ceiling;
use crate::feed;
use crate::input::{Input, Survey};
use crate::journal::{self, Journal, JournalError, Left, Made};
use crate::known::Known;
use crate::line::Shape;
use crate::look::Whole;
use crate::output::{self, Came};
use crate::packing::Packing;
use crate::progress::{self, Counts, Show};
use crate::quota::{OnQuota, Quota};
use crate::send::Upstream;
use crate::summary::{Ending, Near, Summary};

/// Results on their way to the output.
const RESULTS_WAITING: usize = 256;
/// Written at once at most.
const PIECE_BYTES: usize = 1 << 20;
/// So long what was written may not be on the disk itself: a kill loses nothing, a loss of power as much as this.
const SYNC_EVERY: Duration = Duration::from_secs(1);

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

    async fn asked(&self) {
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
    let is_file = keeps_a_journal(&options.out);
    if !is_file && options.retry_failed {
        return Err(RunError::Usage(format!("--retry-failed needs a file as output, not {}", options.out.display())));
    }
    let left = if is_file { journal::look(&options.out, options.retry_failed)? } else { Left::default() };
    let (survey, bad_lines) = read_all(&input, &options, &left)?;
    let made = made_of(&survey, &options);
    let (journal, sink) = if is_file {
        let (journal, file) = Journal::begin(&options.out, &made, &left)?;
        let notes = Some(journal.file());
        (Some(journal), Sink::File { file, packing: Packing::of(&options.out), whole_bytes: None, notes })
    } else if options.out.as_os_str() == "-" {
        tracing::info!(
            "standard output cannot be gone on from: if this run is interrupted, all of it is to be sent again"
        );
        (None, Sink::Stdout)
    } else {
        let file = File::options().append(true).open(&options.out);
        let file = file.map_err(|error| RunError::Failed(format!("{}: {error}", options.out.display())))?;
        (None, Sink::File { file, packing: Packing::Plain, whole_bytes: None, notes: None })
    };

    let (results, to_write) = mpsc::channel(RESULTS_WAITING);
    let shared = Arc::new(Shared {
        driver,
        upstream,
        groups: options.groups,
        priority: options.priority,
        ceiling: Ceiling::new(options.max_total_tokens.map(NonZeroU64::get), left.used_tokens()),
        quota: Quota::new(options.on_quota),
        counts: Counts::default(),
        journal,
        results,
        ending: watch::channel(None).0,
        calibrations: Mutex::new(HashMap::new()),
    });
    let writer = write_results(sink, to_write, shared.clone(), options.out.clone());
    for line in &bad_lines {
        shared.counts.ended(true);
        // A writer that is gone has said why.
        let _ = shared.results.send(line.clone()).await;
    }
    let before = (left.done.count() - left.done.failed, left.done.failed);
    let whole = Whole { before, lines: survey.lines, input_tokens: survey.input_tokens };
    let shape = Arc::new(options.shape);
    tokio::select! {
        () = feed::send_all(&shared, &input, &shape, &survey) => {}
        () = progress::show(shared.clone(), options.show, whole), if options.show != Show::Nothing => {}
        () = asked(&shared, &stop) => {}
    }
    finish(shared, writer, &survey, before, bad_lines.len() as u64, started).await
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
    writer: tokio::task::JoinHandle<u64>,
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
        bad,
        attempts,
        rate_limited: counts.met_429.load(Relaxed),
        seconds,
        input_tokens: counts.input_tokens.load(Relaxed),
        output_tokens: counts.output_tokens.load(Relaxed),
        near_limit: near(&status, &shared.upstream.name, attempts, sent_tokens, seconds),
    };
    let ending = shared.ending.clone();
    // With the last sender the writer ends.
    drop(shared);
    let unwritten = writer.await.map_err(|error| RunError::Failed(format!("the writer died: {error}")))?;
    summary.done = summary.done.saturating_sub(unwritten);
    summary.left = survey.lines.saturating_sub(summary.done + summary.failed);
    if let Some(why) = ending.borrow().clone().filter(|_| summary.left > 0 || unwritten > 0) {
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

/// Only a file can be gone on from: not standard output, a pipe or a device.
fn keeps_a_journal(out: &Path) -> bool {
    out.as_os_str() != "-" && std::fs::metadata(out).map_or(true, |metadata| metadata.is_file())
}

/// All of the input, and the results of its bad lines.
fn read_all(input: &Input, options: &Options, left: &Left) -> Result<(Survey, Vec<String>), RunError> {
    let mut bad_lines = Vec::new();
    let survey = Survey::read(input, &options.shape, &left.done, &left.account.sent, |bad| {
        if options.skip_bad {
            let message = format!("line {}: {}", bad.number, bad.reason);
            let name = bad.custom_id.as_deref().unwrap_or_default();
            bad_lines.push(output::line(bad.number, name, &Came::Nothing { code: "bad_line", message }));
        }
    });
    let survey = survey.map_err(|error| RunError::Failed(format!("cannot read {}: {error}", input.name())))?;
    if survey.bad_count > 0 && !options.skip_bad {
        let mut said = String::new();
        for bad in &survey.bad {
            said.push_str(&format!("{}:{}: {}\n", input.name(), bad.number, bad.reason));
        }
        let more = survey.bad_count - survey.bad.len() as u64;
        if more > 0 {
            said.push_str(&format!("and {more} more\n"));
        }
        let bad = survey.bad_count;
        said.push_str(&format!("{bad} bad lines, so nothing was sent; mend them, or leave them out with --skip-bad"));
        return Err(RunError::Usage(said));
    }
    Ok((survey, bad_lines))
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

enum Sink {
    Stdout,
    File {
        file: File,
        packing: Packing,
        /// Where the last whole line ends. `None`: nothing was written yet.
        whole_bytes: Option<u64>,
        /// The journal, which is to know no less than the output.
        notes: Option<Arc<File>>,
    },
}

impl Sink {
    /// Writes whole lines, or leaves none of them.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text).and_then(|()| out.flush())
            }
            Self::File { file, packing, whole_bytes, .. } => {
                let begin = match *whole_bytes {
                    Some(bytes) => bytes,
                    None => file.metadata()?.len(),
                };
                let piece = packing.pack(text)?;
                if let Err(error) = file.write_all(&piece) {
                    // Cut back what was torn; where that fails too, the next run does it.
                    let _ = file.set_len(begin);
                    return Err(error);
                }
                *whole_bytes = Some(begin + piece.len() as u64);
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Self::File { file, notes: Some(notes), .. } => notes.sync_data().and_then(|()| file.sync_data()),
            _ => Ok(()),
        }
    }
}

/// Writes results in a thread of its own as they come. Returns how many could not be written.
fn write_results(
    mut sink: Sink,
    mut results: mpsc::Receiver<String>,
    shared: Arc<Shared>,
    out: PathBuf,
) -> tokio::task::JoinHandle<u64> {
    let ending = shared.ending.clone();
    let goes_on = shared.journal.is_some();
    // Only the senders keep the channel open.
    drop(shared);
    let end = move |error: &io::Error| {
        let name = if out.as_os_str() == "-" { "standard output".to_owned() } else { out.display().to_string() };
        let hint =
            if goes_on { "; what was written is whole: mend the cause, and the same command goes on" } else { "" };
        let why = Ending::Unwritable(format!("cannot write {name}: {error}{hint}"));
        ending.send_if_modified(|ending| ending.replace(why) != *ending);
    };
    tokio::task::spawn_blocking(move || {
        let (mut synced_at, mut unwritten) = (Instant::now(), 0);
        while let Some(mut piece) = results.blocking_recv() {
            let mut lines = 1;
            while piece.len() < PIECE_BYTES
                && let Ok(line) = results.try_recv()
            {
                piece.push_str(&line);
                lines += 1;
            }
            let written = if unwritten == 0 { sink.write(piece.as_bytes()) } else { Err(io::ErrorKind::Other.into()) };
            match written {
                Ok(()) if synced_at.elapsed() >= SYNC_EVERY => {
                    synced_at = Instant::now();
                    if let Err(error) = sink.sync() {
                        end(&error);
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    if unwritten == 0 {
                        end(&error);
                    }
                    unwritten += lines;
                }
            }
        }
        if unwritten == 0
            && let Err(error) = sink.sync()
        {
            end(&error);
        }
        unwritten
    })
}
