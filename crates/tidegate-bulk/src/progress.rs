//! Counts what happens in a run, and decides how it is shown while it goes.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tidegate_core::cost::Usage;

use crate::call::Shared;
use crate::known::Known;
use crate::summary::Spoken;

/// Off a terminal a line is written each time this has passed.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR_EVERY: Duration = Duration::from_millis(250);
/// What goes by in a minute is measured over this.
const RATE_OVER: Duration = Duration::from_secs(30);

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
    pub(crate) in_flight: AtomicU64,
    /// Input tokens that were sent, as estimated.
    pub(crate) sent_tokens: AtomicU64,
    pub(crate) input_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
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

/// One look at a run.
#[derive(Debug, Serialize)]
struct Look {
    done: u64,
    failed: u64,
    total: u64,
    in_flight: u64,
    requests_per_minute: u64,
    requests_per_minute_limit: Option<u64>,
    tokens_per_minute: u64,
    tokens_per_minute_limit: Option<u64>,
    rate_limited: u64,
    eta_seconds: Option<u64>,
    /// `open` where a breaker is, `no_quota` in a pause for want of it.
    upstream: &'static str,
}

/// Shows a run until the future is dropped. `before`: results that were there, `total`: lines in all.
pub(crate) async fn show(shared: Arc<Shared>, how: Show, before: (u64, u64), total: u64) {
    let bar = (how == Show::Bar).then(|| {
        let style = ProgressStyle::with_template("{bar:30} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(total).with_style(style.progress_chars("━╸─"))
    });
    let every = match how {
        Show::Bar => BAR_EVERY,
        Show::Lines | Show::Json => LINE_EVERY,
        Show::Nothing => return,
    };
    let mut past = VecDeque::from([(Instant::now(), 0, 0)]);
    let mut ticks = tokio::time::interval(every);
    // The first tick comes at once, when there is nothing to show.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let look = look(&shared, before, total, &mut past);
        match &bar {
            Some(bar) => {
                bar.set_position(look.done + look.failed);
                bar.set_message(look.text());
            }
            None => {
                let line =
                    if how == Show::Json { serde_json::to_string(&look).unwrap_or_default() } else { look.text() };
                // Where standard error is gone there is nobody left to tell.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

fn look(shared: &Shared, before: (u64, u64), total: u64, past: &mut VecDeque<(Instant, u64, u64)>) -> Look {
    let counts = &shared.counts;
    let (now, attempts) = (Instant::now(), counts.attempts.load(Relaxed));
    let tokens = counts.sent_tokens.load(Relaxed);
    past.push_back((now, attempts, tokens));
    while past.len() > 2 && past.front().is_some_and(|(at, ..)| now.duration_since(*at) > RATE_OVER) {
        past.pop_front();
    }
    let (since, then_attempts, then_tokens) = past.front().copied().unwrap_or((now, 0, 0));
    let seconds = now.duration_since(since).as_secs_f64().max(0.001);
    let per_minute = |units: u64| (units as f64 * 60.0 / seconds).round() as u64;
    let status = shared.driver.with(tidegate_core::gate::Gate::status);
    let limit_of = |dimension: &str| Known::of(&status, dimension).map(|known| known.limit);
    let (done, failed) = (counts.done.load(Relaxed), counts.failed.load(Relaxed));
    let ended = done + failed;
    let is_open = status.breakers.iter().any(|breaker| breaker.state == "open");
    let rest = total.saturating_sub(ended + before.0 + before.1);
    let started = past.front().map_or(now, |(at, ..)| *at);
    let rate = attempts.saturating_sub(then_attempts) as f64 / now.duration_since(started).as_secs_f64().max(0.001);
    Look {
        done: done + before.0,
        failed: failed + before.1,
        total,
        in_flight: counts.in_flight.load(Relaxed),
        requests_per_minute: per_minute(attempts - then_attempts),
        requests_per_minute_limit: limit_of("requests_per_minute"),
        tokens_per_minute: per_minute(tokens - then_tokens),
        tokens_per_minute_limit: limit_of("tokens_per_minute"),
        rate_limited: counts.met_429.load(Relaxed),
        eta_seconds: (rate > 0.0).then(|| (rest as f64 / rate).ceil() as u64),
        upstream: if shared.quota.is_out() {
            "no_quota"
        } else if is_open {
            "open"
        } else {
            "closed"
        },
    }
}

impl Look {
    fn text(&self) -> String {
        let of = |limit: Option<u64>| limit.map_or_else(String::new, |limit| format!(" of {limit}"));
        let eta = self.eta_seconds.map(|eta| format!(", {} left", Spoken(Duration::from_secs(eta))));
        format!(
            "{}/{} done, {} failed, {} in flight, {}{} requests/min, {}{} tokens/min, {} 429s{}{}",
            self.done,
            self.total,
            self.failed,
            self.in_flight,
            self.requests_per_minute,
            of(self.requests_per_minute_limit),
            self.tokens_per_minute,
            of(self.tokens_per_minute_limit),
            self.rate_limited,
            match self.upstream {
                "no_quota" => ", waiting for quota",
                "open" => ", waiting for the upstream to recover",
                _ => "",
            },
            eta.unwrap_or_default(),
        )
    }
}
