//! Decides what whoever records sees of the trail: a hand that never waits, one that waits until it is on disk, and how it stands.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use super::record::Record;
use super::time::now_micros;
use super::writer::{Message, Unwritten, Writer};

/// How the trail is kept.
#[derive(Clone, Debug)]
pub struct TrailOptions {
    /// The database. What is beside it begins with the same name.
    pub path: PathBuf,
    /// How long records are kept. Zero: for ever.
    pub retention: Duration,
    /// How many records may wait to be written; beyond that they are counted, not kept. Overrides and changes of keys and of the
    /// configuration have room of their own.
    pub waiting_max: usize,
}

impl TrailOptions {
    /// The trail at `path`, kept for 90 days.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), retention: Duration::from_secs(90 * 86_400), waiting_max: 16_384 }
    }
}

/// Why something is not in the trail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail cannot be written: {why}")]
pub struct TrailDown {
    /// What stands in the way.
    pub why: String,
    /// Whether the record is not kept for later either, as too many wait: the trail will only count it.
    pub is_lost: bool,
}

/// How the trail stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrailStatus {
    /// Records on disk since the start.
    pub written: u64,
    /// Records that could not be kept since the start.
    pub lost: u64,
    /// Since when it cannot be written, in microseconds since 1970. `None`: it can.
    pub failing_since: Option<u64>,
    /// Why it cannot be written, or could not the last time.
    pub error: Option<String>,
}

/// Writes the trail, on a thread of its own; clones share it. Dropping the last one writes what waits.
#[derive(Clone, Debug)]
pub struct Trail(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    state: Arc<State>,
    /// `None` while being dropped.
    sender: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer tells, and is told without a message.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) written: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Lost, and no record tells of it yet.
    pub(super) untold: AtomicU64,
    /// When the first of those was lost; 0: none was.
    untold_since: AtomicU64,
    /// 0: it can be written.
    pub(super) failing_since: AtomicU64,
    pub(super) error: Mutex<Option<String>>,
    /// Something was written since the start: till then nobody can tell whether anything can be.
    is_proven: AtomicBool,
}

impl Trail {
    /// Starts writing. A trail that cannot be opened is down, and tried again and again.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start(options: TrailOptions) -> io::Result<Self> {
        let state = Arc::<State>::default();
        let (sender, receiver) = mpsc::sync_channel(options.waiting_max.max(1));
        let writer = Writer::new(options, receiver, state.clone());
        let thread = thread::Builder::new().name("tidegate-audit".to_owned()).spawn(|| writer.run())?;
        Ok(Self(Arc::new(Handle { state, sender: Some(sender), thread: Some(thread) })))
    }

    /// Hands a record over. Never waits and never fails: one that finds no room is counted, and the trail tells of it later.
    pub fn append(&self, record: Record) {
        let message = Message::Record(Box::new(record.bounded()));
        if self.0.sender.as_ref().is_none_or(|sender| sender.try_send(message).is_err()) {
            self.lost(1);
        }
    }

    /// Writes a record and returns once it is on disk, with everything that was handed over before it.
    ///
    /// Waits for the disk: not for a thread that serves calls.
    ///
    /// # Errors
    /// If it did not get there; it never will.
    pub fn append_durable(&self, record: Record) -> Result<(), TrailDown> {
        self.0.ask(Some(Box::new(record.bounded())), Unwritten::Forgotten)
    }

    /// As [`Trail::append_durable`], for what happens in any case: a record that is not on disk then gets there as soon as it can, or is
    /// counted as lost.
    ///
    /// # Errors
    /// If it is not there yet.
    pub fn append_durable_or_later(&self, record: Record) -> Result<(), TrailDown> {
        self.0.ask(Some(Box::new(record.bounded())), Unwritten::Kept)
    }

    /// Returns once everything that was handed over before is on disk.
    ///
    /// # Errors
    /// If it is not; it may be later.
    pub fn flush(&self) -> Result<(), TrailDown> {
        self.0.ask(None, Unwritten::Kept)
    }

    /// Things happened that nobody could hand over: the trail will tell how many.
    pub fn lost(&self, records: u64) {
        self.0.state.lose(records);
    }

    /// Whether what happens now might not get onto disk: what `on_failure = "refuse"` refuses calls for. Also before the first record
    /// is there, and until one is after a failure.
    #[must_use]
    pub fn is_down(&self) -> bool {
        let state = &self.0.state;
        !state.is_proven.load(Relaxed) || state.failing_since.load(Relaxed) != 0 || state.untold.load(Relaxed) != 0
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> TrailStatus {
        let state = &self.0.state;
        TrailStatus {
            written: state.written.load(Relaxed),
            lost: state.lost.load(Relaxed),
            failing_since: Some(state.failing_since.load(Relaxed)).filter(|since| *since != 0),
            error: state.error(),
        }
    }
}

impl Handle {
    fn ask(&self, record: Option<Box<Record>>, unwritten: Unwritten) -> Result<(), TrailDown> {
        let (answer, answered) = mpsc::sync_channel(1);
        let ended = || TrailDown { why: "its writer has ended".to_owned(), is_lost: true };
        let sender = self.sender.as_ref().ok_or_else(ended)?;
        // There will be room: the writer takes everything, and counts what it cannot keep.
        sender.send(Message::Durable { record, unwritten, answer }).map_err(|_| ended())?;
        answered.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The writer writes what waits, then ends.
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    pub(super) fn lose(&self, records: u64) {
        self.lost.fetch_add(records, Relaxed);
        let _ = self.untold_since.compare_exchange(0, now_micros(), Relaxed, Relaxed);
        self.untold.fetch_add(records, Relaxed);
    }

    /// So many records are on disk, and the trail tells of so many lost ones.
    pub(super) fn tell(&self, written: u64, untold: u64) {
        self.written.fetch_add(written, Relaxed);
        if written > 0 {
            self.is_proven.store(true, Relaxed);
        }
        let before = self.untold.fetch_sub(untold, Relaxed);
        if before == untold {
            self.untold_since.store(0, Relaxed);
        }
    }

    /// When the first was lost that no record tells of.
    pub(super) fn untold_since(&self) -> u64 {
        match self.untold_since.load(Relaxed) {
            0 => now_micros(),
            since => since,
        }
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_error(&self, error: String) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}
