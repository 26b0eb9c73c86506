//! Decides when what was handed over goes to disk: at once where nothing else is under way, else with all that came meanwhile.
//!
//! While the file cannot be written, what is at hand is kept and tried again; what finds no room meanwhile is counted, and the first
//! commit that succeeds, by which alone it is known that writing is possible again, has a record of how long and how many. Meanwhile the
//! reserve says how it stands, in case the process is killed; what is still at hand at the end is left beside the file, if there is room.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::beside::Beside;
use super::gap::{gap, turned_down, uncovered};
use super::lock::Lock;
use super::record::{Kind, Record};
use super::store::{Store, StoreError};
use super::time::now_micros;
use super::trail::{State, TrailDown, TrailOptions};

/// From so many on a commit does not wait for more: syncing costs each of them next to nothing.
const BATCH: usize = 1000;
/// One commit has no more: it must not take long either.
const BATCH_MAX: usize = 4000;
/// Commits begin no sooner one after the other. What `kill -9` loses is what came meanwhile, and during a commit: longer would lose more,
/// shorter would sync more often.
const PACE: Duration = Duration::from_millis(5);
/// So many overrides and changes of keys and of the configuration are kept while the file cannot be written, whatever else waits.
const CHANGES_MAX: usize = 4096;
/// How often a file that could not be written is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// How often records are looked for that have had their time.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Something for the writer.
#[derive(Debug)]
pub(super) enum Message {
    /// To be written with others.
    Record(Box<Record>),
    /// To be written at once; without a record: what came before it.
    Durable { record: Option<Box<Record>>, unwritten: Unwritten, answer: Answer },
}

/// What becomes of a record of which its sender was told that it is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// It never is: what it tells of does not happen.
    Forgotten,
    /// It is as soon as it can be: what it tells of has happened.
    Kept,
}

type Answer = SyncSender<Result<(), TrailDown>>;

/// A commit of which nobody knows whether it happened.
#[derive(Debug)]
struct Unsure {
    /// The chain's length before it.
    length: u64,
    /// How many of the pending records it had.
    pending: usize,
    /// How many lost ones it told of.
    untold: u64,
    /// Numbers of records in it that were turned down since.
    turned_down: Vec<u64>,
}

/// The one that writes.
#[derive(Debug)]
pub(super) struct Writer {
    options: TrailOptions,
    receiver: Receiver<Message>,
    state: Arc<State>,
    /// `None`: another process writes, or nobody could tell yet. Kept while the file cannot be written: nobody else adds to it then.
    lock: Option<Lock>,
    beside: Beside,
    /// How many records the head did not cover at the start. `None`: that is not known yet.
    uncovered: Option<u64>,
    /// `None`: not open, at the start or after a failure.
    store: Option<Store>,
    pending: Vec<Record>,
    /// How many of those are changes, as [`Record::is_change`] has it; told while the file cannot be written.
    changes: usize,
    /// Places in `pending` that somebody waits for and that go if he is told no, the first first; `None`: for all that was there.
    awaited: Vec<(Option<usize>, Answer)>,
    unsure: Option<Unsure>,
    /// The log was told so.
    head_is_due: bool,
    next_sweep: Instant,
    /// When one may begin that nobody waits for.
    next_commit: Instant,
}

impl Writer {
    pub(super) fn new(options: TrailOptions, receiver: Receiver<Message>, state: Arc<State>) -> Self {
        Self {
            receiver,
            state,
            lock: None,
            beside: Beside::of(&options.path),
            uncovered: None,
            store: None,
            head_is_due: false,
            pending: Vec::new(),
            changes: 0,
            awaited: Vec::new(),
            unsure: None,
            next_sweep: Instant::now(),
            next_commit: Instant::now(),
            options,
        }
    }

    /// Writes until nobody can hand over anything any more.
    pub(super) fn run(mut self) {
        // At once, so that a trail which cannot be written is known of before it is needed.
        self.commit();
        loop {
            self.sweep();
            let is_over = self.gather();
            self.commit();
            if is_over {
                return self.end();
            }
        }
    }

    /// Takes what there is for one commit. True: there will be nothing more.
    fn gather(&mut self) -> bool {
        let is_down = self.store.is_none();
        self.changes = if is_down { self.pending.iter().filter(|record| record.is_change()).count() } else { 0 };
        let mut until = if is_down || self.head_is_due {
            Instant::now() + RETRY_EVERY
        } else if self.pending.is_empty() && self.state.untold.load(Relaxed) == 0 {
            self.next_sweep
        } else {
            self.next_commit
        };
        loop {
            // Enough for a commit: what is there already comes along, nothing is waited for.
            let is_enough = !self.awaited.is_empty() || (!is_down && self.pending.len() >= BATCH);
            let left = if is_enough { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            // While it is down nothing is gained by taking more than there is time for.
            let is_full = if is_down { left.is_zero() } else { self.pending.len() >= BATCH_MAX };
            if is_full {
                return false;
            }
            match self.receiver.recv_timeout(left) {
                Ok(message) => self.take(message, is_down),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
            if self.pending.len() == 1 && !is_down {
                until = self.next_commit;
            }
        }
    }

    fn take(&mut self, message: Message, is_down: bool) {
        match message {
            Message::Record(record) if is_down && !self.has_room(&record) => self.state.lose(1),
            Message::Record(record) => self.push(*record),
            Message::Durable { record: Some(record), unwritten: Unwritten::Kept, answer }
                if is_down && !self.has_room(&record) =>
            {
                self.state.lose(1);
                let why = self.state.error().unwrap_or_default();
                drop(answer.send(Err(TrailDown { why, is_lost: true })));
            }
            Message::Durable { record, unwritten, answer } => {
                let goes = record.is_some() && unwritten == Unwritten::Forgotten;
                let place = goes.then_some(self.pending.len());
                record.into_iter().for_each(|record| self.push(*record));
                self.awaited.push((place, answer));
            }
        }
    }

    fn push(&mut self, record: Record) {
        self.changes += usize::from(record.is_change());
        self.pending.push(record);
    }

    fn has_room(&self, record: &Record) -> bool {
        if record.is_change() {
            self.changes < CHANGES_MAX
        } else {
            self.pending.len().saturating_sub(self.changes) < self.options.waiting_max
        }
    }

    fn commit(&mut self) {
        // What fails to be written may have been written nevertheless: opening again tells.
        let written = self.try_commit().or_else(|_| self.try_commit());
        match written {
            Ok(()) => {
                if self.state.failing_since.swap(0, Relaxed) != 0 {
                    tracing::info!("the audit trail is written again");
                }
                self.awaited.drain(..).for_each(|(_, answer)| drop(answer.send(Ok(()))));
            }
            Err(error) => self.failed(&error),
        }
    }

    fn try_commit(&mut self) -> Result<(), StoreError> {
        let (mut store, late) = match self.store.take() {
            Some(store) => (store, None),
            None => {
                let store = self.open()?;
                let late = self.beside.late(&store)?;
                (store, late)
            }
        };
        let pending = self.pending.len();
        self.pending.extend(self.uncovered.filter(|records| *records > 0).map(uncovered));
        self.pending.extend(late.iter().flatten().cloned());
        if let Some(what) = store.broken {
            tracing::error!("{}: {what}; `tidegate audit verify` tells more", self.options.path.display());
            self.pending.push(Record { why: Some(what.into()), ..Record::new(Kind::Gap, "broken") });
        }
        let untold = self.state.untold.load(Relaxed);
        self.pending.extend(gap(&self.state, untold));
        if !self.pending.is_empty() {
            self.next_commit = Instant::now() + PACE;
        }
        let length = store.head().sequence;
        let written = if self.pending.is_empty() { Ok(()) } else { store.add(&self.pending) };
        if written.is_ok() && store.head_due.is_some() {
            store.settle_head();
        }
        match written {
            Ok(()) => {
                store.broken = None;
                self.tell_of_head(store.head_due.as_deref());
                self.store = Some(store);
                self.state.tell(self.pending.len() as u64, untold);
                self.pending.clear();
                self.uncovered = Some(0);
                self.beside.is_written(late.map(|late| late.len()));
            }
            Err(_) => {
                self.unsure = Some(Unsure { length, pending, untold, turned_down: Vec::new() });
                self.pending.truncate(pending);
            }
        }
        written
    }

    /// A head that is due is told of once, and once it is written.
    fn tell_of_head(&mut self, due: Option<&str>) {
        match (due, std::mem::replace(&mut self.head_is_due, due.is_some())) {
            (Some(error), false) => tracing::error!(
                "the head of the audit trail cannot be written: {error}; trying on. Nothing is lost, but until then nobody can tell \
                 whether the newest records were cut off"
            ),
            (None, true) => tracing::info!("the head of the audit trail is written again"),
            _ => {}
        }
    }

    /// Opens the database, and finds out whether the last commit happened after all. A commit is all or nothing.
    fn open(&mut self) -> Result<Store, StoreError> {
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => Lock::of(&self.options.path)?,
        };
        self.lock = Some(lock);
        self.beside.open();
        let store = Store::open(&self.options.path)?;
        self.uncovered.get_or_insert(store.uncovered);
        let happened = |unsure: &Unsure| store.head().sequence > unsure.length;
        if let Some(unsure) = self.unsure.take().filter(happened) {
            self.pending.drain(..unsure.pending);
            for (place, answer) in std::mem::take(&mut self.awaited) {
                match place.map(|place| place.checked_sub(unsure.pending)) {
                    Some(None) => drop(answer.send(Ok(()))),
                    left => self.awaited.push((left.flatten(), answer)),
                }
            }
            self.state.tell(unsure.pending as u64, unsure.untold);
            self.pending.extend(unsure.turned_down.into_iter().map(turned_down));
        }
        Ok(store)
    }

    fn failed(&mut self, error: &StoreError) {
        let error = error.to_string();
        if self.state.failing_since.load(Relaxed) == 0 {
            self.state.failing_since.store(now_micros(), Relaxed);
            tracing::error!("the audit trail cannot be written: {error}; trying on, and counting what is lost");
        }
        self.state.set_error(error.clone());
        // Who waited is told no, and where nothing happens then, nothing of it must turn up later.
        let mut answers = Vec::new();
        for (place, answer) in self.awaited.drain(..).rev() {
            if let Some(place) = place {
                self.pending.remove(place);
                if let Some(unsure) = self.unsure.as_mut().filter(|unsure| place < unsure.pending) {
                    unsure.pending -= 1;
                    unsure.turned_down.push(unsure.length + place as u64 + 1);
                }
            }
            answers.push(answer);
        }
        if self.lock.is_some() {
            // Else it is another process's.
            self.beside.keep(&self.state, &self.pending);
        }
        for answer in answers {
            drop(answer.send(Err(TrailDown { why: error.clone(), is_lost: false })));
        }
    }

    /// Removes records that have had their time, a slice after each commit.
    fn sweep(&mut self) {
        let Some(store) = self.store.as_mut().filter(|_| self.next_sweep <= Instant::now()) else { return };
        let retention = u64::try_from(self.options.retention.as_micros()).unwrap_or(u64::MAX);
        let may_be_more = retention > 0 && {
            match store.remove_slice(now_micros().saturating_sub(retention)) {
                Ok(may_be_more) => may_be_more,
                Err(error) => {
                    tracing::warn!("records of the audit trail that have had their time cannot be removed: {error}");
                    self.store = None;
                    false
                }
            }
        };
        if !may_be_more {
            self.next_sweep = Instant::now() + SWEEP_EVERY;
        }
    }

    fn end(self) {
        let untold = self.state.untold.load(Relaxed);
        let mut left = self.pending;
        // Where nothing waits the reserve tells of it.
        let is_told = untold > 0 || !left.is_empty();
        left.extend(gap(&self.state, untold).filter(|_| is_told));
        self.beside.leave(left, untold, &self.state.error().unwrap_or_default());
    }
}
