//! Counts what happens in a run, and decides how it is shown while it goes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::cost::Usage;

use crate::bar::Bar;
use crate::call::Shared;
use crate::look::{Looks, Whole};

/// Off a terminal a line is written each time this has passed.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR_EVERY: Duration = Duration::from_millis(250);
/// Kinds of failures that are told apart.
const FAILURES_MAX: usize = 32;

/// How a run is shown on standard error while it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// A bar that moves.
    Bar,
    /// A line every 5 s.
    Lines,
    /// A line of JSON every 5 s.
    Json,
    /// Nothing.
    Nothing,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) attempts: AtomicU64,
    /// Attempts that the upstream answered, whatever it said.
    pub(crate) answers: AtomicU64,
    pub(crate) met_429: AtomicU64,
    /// Rate limits told with another status.
    pub(crate) met_in_band: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    /// Input tokens that were sent, as estimated.
    pub(crate) sent_tokens: AtomicU64,
    pub(crate) input_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    /// What the last attempt said that failed for the upstream's own sake.
    pub(crate) last_fault: Mutex<Option<String>>,
    /// Failures by what they say.
    pub(crate) failures: Mutex<BTreeMap<String, u64>>,
}

/// One attempt under way.
pub(crate) struct Going<'c>(&'c AtomicU64);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Counts {
    pub(crate) fn sends(&self, tokens: u64) -> Going<'_> {
        self.attempts.fetch_add(1, Relaxed);
        self.sent_tokens.fetch_add(tokens, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        Going(&self.in_flight)
    }

    /// Refusals for a rate, however they were told.
    pub(crate) fn rate_limited(&self) -> u64 {
        self.met_429.load(Relaxed) + self.met_in_band.load(Relaxed)
    }

    pub(crate) fn ended(&self, is_failure: bool) {
        if is_failure { &self.failed } else { &self.done }.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed_with(&self, why: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // The words are the upstream's: there may be any number of them.
        let is_known = failures.len() < FAILURES_MAX || failures.contains_key(&why);
        *failures.entry(if is_known { why } else { "other".to_owned() }).or_default() += 1;
    }

    pub(crate) fn used(&self, usage: Usage) {
        self.input_tokens.fetch_add(usage.input_tokens, Relaxed);
        self.output_tokens.fetch_add(usage.output_tokens, Relaxed);
    }
}

/// Shows a run until the future is dropped.
pub(crate) async fn show(shared: Arc<Shared>, how: Show, whole: Whole) {
    let every = match how {
        Show::Bar => BAR_EVERY,
        Show::Lines | Show::Json => LINE_EVERY,
        Show::Nothing => return,
    };
    let bar = (how == Show::Bar).then(|| Bar::new(whole.lines));
    let mut looks = Looks::new(whole);
    let mut ticks = tokio::time::interval(every);
    // The first tick comes at once, when there is nothing to show.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let look = looks.look(&shared);
        match &bar {
            Some(bar) => bar.show(look),
            None if how == Show::Json => say(serde_json::to_string(&look).unwrap_or_default()).await,
            None => say(look.text()).await,
        }
    }
}

/// Writes a line where a reader who stalls holds up nobody but who waits for this.
async fn say(line: String) {
    // Where standard error is gone there is nobody left to tell.
    let write = move || drop(writeln!(std::io::stderr(), "{line}"));
    let _ = tokio::task::spawn_blocking(write).await;
}

/// Shows how far the reading of `name` is until the future is dropped.
pub(crate) async fn show_reading(how: Show, name: &str, lines: &AtomicU64) {
    let every = match how {
        Show::Bar => BAR_EVERY,
        Show::Lines | Show::Json => LINE_EVERY,
        Show::Nothing => std::future::pending().await,
    };
    let mut bar = None;
    loop {
        tokio::time::sleep(every).await;
        let lines = lines.load(Relaxed);
        match how {
            Show::Bar => bar.get_or_insert_with(|| Bar::new(0)).say(format!("reading {name}: {lines} lines")),
            Show::Json => say(format!("{{\"lines_read\":{lines}}}")).await,
            _ => say(format!("reading {name}: {lines} lines")).await,
        }
    }
}
