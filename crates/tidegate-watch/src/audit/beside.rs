//! Decides what lies beside the database while, or because, it cannot be written, and that the trail gets it later, once.
//!
//! Two files: the reserve, for a process that is killed or whose disk is full, has decisions and numbers; what is late, for one that ends
//! in order and finds room, has every record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use super::gap::SINCE;
use super::late;
use super::record::{Kind, Record};
use super::reserve::{Outage, Reserve};
use super::store::{Store, StoreError};
use super::trail::State;

/// What is beside the database, for its one writer.
#[derive(Debug)]
pub(super) struct Beside {
    database: PathBuf,
    /// `None`: it is another process's as yet, or cannot be made.
    reserve: Option<Reserve>,
    /// The log was told that it is no help.
    is_told: bool,
    /// What the reserve had at the start.
    carried: Vec<Record>,
}

impl Beside {
    pub(super) fn of(database: &Path) -> Self {
        Self { database: database.to_owned(), reserve: None, is_told: false, carried: Vec::new() }
    }

    /// Opens the reserve, once this process is the one that writes.
    pub(super) fn open(&mut self) {
        if self.reserve.is_some() {
            return;
        }
        match Reserve::open(&self.database) {
            Ok(reserve) => {
                self.carried = reserve.left();
                self.reserve = Some(reserve);
            }
            Err(error) => self.tell(Err(error)),
        }
    }

    /// What processes before could not write and is not there. `None`: they have left nothing.
    pub(super) fn late(&self, store: &Store) -> Result<Option<Vec<Record>>, StoreError> {
        let left = late::read(&self.database).unwrap_or_else(|error| {
            tracing::error!("records that were left beside the audit trail cannot be read and stay there: {error}");
            None
        });
        if left.is_none() && self.carried.is_empty() {
            return Ok(None);
        }
        let mut left = left.unwrap_or_default();
        let carried: Vec<Record> = self.carried.iter().filter(|record| !left.contains(record)).cloned().collect();
        left.extend(carried);
        let mut late: Vec<Record> = Vec::new();
        for record in left {
            let outage = record.numbers.get(SINCE).filter(|_| record.kind == Kind::Gap);
            let is_there = match outage {
                Some(since) => late.iter().any(|other| other.numbers.get(SINCE) == outage) || store.tells_of(*since)?,
                None => store.has(&record)?,
            };
            // A removal is this writer's alone to tell of.
            if record.kind != Kind::Retention && !is_there {
                late.push(record);
            }
        }
        Ok(Some(late))
    }

    /// Everything is in the trail; `late`: with so many records that were late, if any had been left.
    pub(super) fn is_written(&mut self, late: Option<usize>) {
        if let Some(records) = late {
            tracing::info!("{records} records of the audit trail that were late are written");
            self.carried.clear();
            // Where it stays, what is in it is found in the trail.
            if let Err(error) = late::remove(&self.database) {
                tracing::warn!("the file of late records cannot be removed: {error}");
            }
        }
        self.clear();
    }

    /// Says in the reserve how it stands, with those of the records that `waiting` which tell of a decision.
    pub(super) fn keep(&mut self, state: &State, waiting: &[Record]) {
        self.open();
        let Some(reserve) = &mut self.reserve else { return };
        let outage = Outage {
            since: state.failing_since.load(Relaxed),
            waiting: waiting.iter().filter(|record| !record.is_change()).count() as u64,
            lost: state.untold.load(Relaxed),
            error: state.error().unwrap_or_default(),
        };
        let changes = waiting.iter().filter(|record| record.is_change());
        let written = reserve.write(outage, self.carried.iter().chain(changes));
        self.tell(written);
    }

    /// Leaves what could not be written until the end, of which one tells of `untold` that were lost.
    pub(super) fn leave(mut self, records: Vec<Record>, untold: u64, error: &str) {
        if records.is_empty() {
            return;
        }
        let mut left = std::mem::take(&mut self.carried);
        left.extend(records);
        let counted = left.iter().filter(|record| record.kind != Kind::Gap).count();
        match late::leave(&self.database, &left) {
            Ok(path) => {
                self.clear();
                tracing::error!(
                    "the audit trail could not be written until the end: {error}; records that are not in it lie in {}, and \
                     whoever writes it next adds them: {counted}",
                    path.display(),
                );
            }
            Err(unkept) => {
                let is_lost = |record: &&Record| self.reserve.is_none() || !record.is_change();
                let lost =
                    left.iter().filter(|record| record.kind != Kind::Gap).filter(is_lost).count() as u64 + untold;
                let next = if self.reserve.is_some() { "; whoever writes it next adds how many" } else { "" };
                tracing::error!(
                    "{lost} records of the audit trail are lost: {error}; nor can they be left beside it: {unkept}{next}"
                );
            }
        }
    }

    fn clear(&mut self) {
        let cleared = self.reserve.as_mut().map_or(Ok(()), Reserve::clear);
        self.tell(cleared);
    }

    fn tell(&mut self, done: io::Result<()>) {
        let Err(error) = done else { return };
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(
                "the reserve beside the audit trail, for when that cannot be written, cannot be either: {error}"
            );
        }
    }
}
