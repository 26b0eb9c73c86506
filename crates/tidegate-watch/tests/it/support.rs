//! A trail in a directory of its own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_watch::audit::{self, Entry, Filter, Kind, Reader, Record, Trail, TrailOptions, Verified};

/// Longer than anything takes here; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("audit.db")
    }

    pub(crate) fn head_path(&self) -> PathBuf {
        self.0.path().join("audit.db.head")
    }

    pub(crate) fn options(&self) -> TrailOptions {
        TrailOptions::new(self.path())
    }

    pub(crate) fn trail(&self) -> Trail {
        Trail::start(self.options()).unwrap()
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::open(&self.path()).unwrap()
    }

    pub(crate) fn verify(&self) -> Verified {
        audit::verify(&self.path()).unwrap()
    }

    /// The same files elsewhere, as they are now: what is found once whoever writes them has been killed.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        for file in std::fs::read_dir(self.0.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.0.path().join(file.file_name())).unwrap();
        }
        copy
    }

    /// From now on nothing can be left in `audit.db.late`.
    pub(crate) fn leave_no_room(&self) {
        std::fs::create_dir(self.0.path().join("audit.db.late.new")).unwrap();
    }

    /// Everything in the trail, in the order of its numbers.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let reader = self.reader();
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let page = reader.after(&Filter::default(), entries.last().map_or(0, |last| last.sequence)).unwrap();
            if page.is_empty() {
                return entries;
            }
            entries.extend(page);
        }
    }
}

/// A refusal of the call `c-N`.
pub(crate) fn refusal(n: u64) -> Record {
    Record { call: Some(format!("c-{n}").into()), ..Record::new(Kind::Throttle, "refused").with("n", n) }
}

/// The `n` of a [`refusal`].
pub(crate) fn number(entry: &Entry) -> Option<u64> {
    entry.record.numbers.get("n").copied()
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}
