//! Counts what happened and keeps the newest requests, in memory and, if asked, as JSON lines in a file.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use serde::Serialize;

use crate::limiter::{Charge, Dimension, Level, Refused};
use crate::scenario::FaultKind;

/// So many requests are kept in memory.
const LOG_ENTRIES_MAX: usize = 200_000;

/// One request, written when it ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogEntry {
    /// Its number, from 0 in order of arrival.
    pub number: u64,
    /// Seconds from the simulator's start until it was read in full.
    pub received_s: f64,
    /// Seconds from the start until the last byte of the reply was handed out, or the client left.
    pub finished_s: f64,
    /// The method.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The model; absent where none was named.
    pub model: Option<String>,
    /// The body's `user` or `safety_identifier`.
    pub user: Option<String>,
    /// `x-request-id` of the reply.
    pub request_id: String,
    /// What the limiter was asked for.
    pub charge: Charge,
    /// Whether the limiter let it in; false also where it was not asked.
    pub admitted: bool,
    /// What refused it.
    pub refused: Option<Refusal>,
    /// The fault that struck it.
    pub fault: Option<FaultKind>,
    /// The status of the reply; 0 where there was none.
    pub status: u16,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Tokens that `usage` reports as input.
    pub input_tokens: u64,
    /// Tokens of the answer, whole even if the client left.
    pub output_tokens: u64,
    /// The client left before the end.
    pub cancelled: bool,
}

/// Why the limiter refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// This dimension was used up.
    Short(Dimension),
    /// It would never have fitted this dimension.
    TooLarge(Dimension),
}

impl Refusal {
    pub(crate) fn of(refused: &Refused) -> Self {
        if refused.too_large { Refusal::TooLarge(refused.dimension) } else { Refusal::Short(refused.dimension) }
    }

    fn name(self) -> String {
        match self {
            Refusal::Short(dimension) => dimension.name().to_owned(),
            Refusal::TooLarge(dimension) => format!("too_large_{}", dimension.name()),
        }
    }
}

/// Counters since the start, and what is under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Seconds since the start.
    pub elapsed_s: f64,
    /// Requests read in full.
    pub received: u64,
    /// Requests that the limiter let in.
    pub admitted: u64,
    /// 429s from the limiter.
    pub refused: u64,
    /// The same by what was short: `requests`, `tokens`, `requests_day`, `tokens_day`, `images`, and each as `too_large_…`.
    pub refused_by: BTreeMap<String, u64>,
    /// Requests that came although a wait that the limiter had told of their group was not over. Not counted: those that came
    /// within 50 ms of it, which crossed it on the way.
    pub came_early: u64,
    /// Every 429 sent, faults included.
    pub status_429: u64,
    /// Replies by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Faults that struck, by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Clients that left in the middle of a stream.
    pub cancelled_streams: u64,
    /// Clients that left before the reply began.
    pub cancelled_waiting: u64,
    /// Tokens that admitted requests were charged.
    pub tokens_charged: u64,
    /// Input tokens as `usage` reported them.
    pub input_tokens: u64,
    /// Output tokens as `usage` reported them.
    pub output_tokens: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// The most that were under way at once.
    pub in_flight_max: u64,
    /// Streams under way.
    pub streams_open: u64,
    /// The most streams at once.
    pub streams_open_max: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open.
    pub connections_open: u64,
    /// By limit group; with limits by key, of all keys together the last one seen.
    pub groups: BTreeMap<String, GroupStats>,
}

/// One limit group.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GroupStats {
    /// Requests let in.
    pub admitted: u64,
    /// 429s.
    pub refused: u64,
    /// Tokens charged.
    pub tokens_charged: u64,
    /// Buckets by dimension: `requests`, `tokens`, `requests_day`, `tokens_day`, `images`.
    pub levels: BTreeMap<&'static str, Level>,
}

/// A request that comes so soon after a wait was told was under way by then.
const CROSSES_MICROS: u64 = 50_000;

/// The counters and the log.
pub(crate) struct Ledger {
    pub(crate) stats: Stats,
    entries: VecDeque<LogEntry>,
    /// By group: when a wait was told, and when it ends.
    waits: HashMap<String, (u64, u64)>,
    file: Option<(Sender<LogEntry>, JoinHandle<()>)>,
}

impl Ledger {
    /// Opens the file, where there is one; what is in it is replaced.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            None => None,
            Some(path) => {
                let file = File::create(path)?;
                let (sender, receiver) = channel();
                let thread =
                    std::thread::Builder::new().name("sim-log".into()).spawn(move || write(file, &receiver))?;
                Some((sender, thread))
            }
        };
        Ok(Ledger { stats: Stats::default(), entries: VecDeque::new(), waits: HashMap::new(), file })
    }

    /// Records a request that ended.
    pub(crate) fn record(&mut self, entry: LogEntry) {
        if self.entries.len() == LOG_ENTRIES_MAX {
            self.entries.pop_front();
        }
        if let Some((sender, _)) = &self.file {
            // The writer is gone only after it said why.
            let _ = sender.send(entry.clone());
        }
        self.entries.push_back(entry);
    }

    /// The limiter's answer to one call, at `now` in microseconds.
    pub(crate) fn count_admission(&mut self, group: &str, charge: Charge, refused: Option<&Refused>, now: u64) {
        let in_force = self.waits.get(group).filter(|(told_at, until)| now > told_at + CROSSES_MICROS && now < *until);
        self.stats.came_early += u64::from(in_force.is_some());
        let refusal = refused.map(Refusal::of);
        if !self.stats.groups.contains_key(group) {
            self.stats.groups.insert(group.to_owned(), GroupStats::default());
        }
        let Some(of_group) = self.stats.groups.get_mut(group) else { return };
        match refusal {
            None => {
                self.stats.admitted += 1;
                self.stats.tokens_charged += charge.tokens;
                of_group.admitted += 1;
                of_group.tokens_charged += charge.tokens;
            }
            Some(refusal) => {
                self.stats.refused += 1;
                of_group.refused += 1;
                *self.stats.refused_by.entry(refusal.name()).or_default() += 1;
            }
        }
    }

    /// A refusal told its wait.
    pub(crate) fn note_wait(&mut self, group: &str, refused: &Refused, now: u64) {
        if refused.too_large {
            return;
        }
        let until = now + refused.wait_micros;
        let known = self.waits.entry(group.to_owned()).or_insert((now, until));
        if until > known.1 {
            *known = (now, until);
        }
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.entries.iter().cloned().collect()
    }

    /// Stops the writer; the handle is to be joined without holding a lock.
    pub(crate) fn close_file(&mut self) -> Option<JoinHandle<()>> {
        self.file.take().map(|(_, thread)| thread)
    }
}

fn write(file: File, receiver: &Receiver<LogEntry>) {
    let mut file = BufWriter::new(file);
    while let Ok(entry) = receiver.recv() {
        if let Err(e) = write_all(&mut file, entry, receiver) {
            tracing::error!("the request log ends here: {e}");
            return;
        }
    }
}

/// Writes the entry and all that wait behind it, then flushes.
fn write_all(file: &mut BufWriter<File>, entry: LogEntry, receiver: &Receiver<LogEntry>) -> io::Result<()> {
    let mut next = Ok(entry);
    loop {
        match next {
            Ok(entry) => {
                serde_json::to_writer(&mut *file, &entry)?;
                file.write_all(b"\n")?;
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return file.flush(),
        }
        next = receiver.try_recv();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Rules, Upstream};

    #[test]
    fn nobody_comes_too_early_for_a_wait_that_was_not_told() {
        let mut upstream = Upstream::new(&Rules { rpm: Some(1), ..Rules::default() }, 0);
        let call = Charge::of_tokens(1);
        upstream.admit(0, call).expect("fits");
        for (is_told, too_early) in [(false, 0), (true, 1)] {
            let mut ledger = Ledger::open(None).expect("no file");
            let refused = upstream.admit(0, call).expect_err("used up");
            ledger.count_admission("m", call, Some(&refused), 0);
            if is_told {
                ledger.note_wait("m", &refused, 0);
            }
            ledger.count_admission("m", call, Some(&refused), 2 * CROSSES_MICROS);
            assert_eq!(ledger.stats.came_early, too_early);
        }
    }
}
