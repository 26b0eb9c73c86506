//! Decides how results reach the output: whole ones, as they come, in a thread of its own; and what becomes of those that find
//! no room.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::output::{self, Came};
use crate::packing::Packing;
use crate::summary::Ending;
use crate::tail::{Tail, append_whole};

/// Results on their way to the output.
pub(crate) const RESULTS_WAITING: usize = 256;
/// Written at once at most.
const PIECE_BYTES: usize = 1 << 20;
/// So long what was written may not be on the disk itself: a kill loses nothing, a loss of power as much as this.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// One result.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    text: String,
    /// Why it is none that is good, in two words.
    pub(crate) failure: Option<String>,
}

impl Row {
    pub(crate) fn new(number: u64, custom_id: &str, came: &Came) -> Self {
        Self { text: output::line(number, custom_id, came), failure: came.failure() }
    }
}

/// Results that came and could not be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) good: u64,
    pub(crate) failed: u64,
}

impl Lost {
    fn add(&mut self, rows: &[Row]) {
        let failed = rows.iter().filter(|row| row.failure.is_some()).count() as u64;
        self.failed += failed;
        self.good += rows.len() as u64 - failed;
    }
}

/// Where results go.
pub(crate) enum Sink {
    Stdout,
    /// A pipe or a device: what is written cannot be taken back.
    Device(File),
    /// With the journal, which is to know no less than the output.
    Plain {
        file: File,
        /// Where the last whole line ends.
        whole_bytes: u64,
        notes: Arc<File>,
    },
    Packed {
        tail: Tail,
        notes: Arc<File>,
    },
}

impl Sink {
    /// Goes on at the end of `file`, which is whole.
    pub(crate) fn file(file: File, out: &Path, notes: Arc<File>) -> io::Result<Self> {
        Ok(match Packing::of(out) {
            Packing::Plain => Self::Plain { whole_bytes: file.metadata()?.len(), file, notes },
            _ => Self::Packed { tail: Tail::new(file, out)?, notes },
        })
    }

    /// A later run can go on from it.
    const fn is_kept(&self) -> bool {
        matches!(self, Self::Plain { .. } | Self::Packed { .. })
    }

    /// Writes all of `rows`, or as many as have room: each is paid for, and none is thrown away for the sake of those beside it.
    /// An error says how many were written.
    fn write(&mut self, rows: &[Row]) -> Result<(), (usize, io::Error)> {
        let text: String = rows.iter().map(|row| row.text.as_str()).collect();
        if let Err(error) = self.append(text.as_bytes()) {
            let fits = |row: &&Row| self.is_kept() && self.append(row.text.as_bytes()).is_ok();
            return Err((rows.iter().take_while(fits).count(), error));
        }
        match self {
            Self::Packed { tail, .. } => tail.pack_if_long().map_err(|error| (rows.len(), error)),
            _ => Ok(()),
        }
    }

    /// Writes whole lines, or leaves none of them where that can be.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text).and_then(|()| out.flush())
            }
            Self::Device(file) => file.write_all(text),
            Self::Plain { file, whole_bytes, .. } => {
                append_whole(file, text, *whole_bytes)?;
                *whole_bytes += text.len() as u64;
                Ok(())
            }
            Self::Packed { tail, .. } => tail.append(text),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Self::Stdout | Self::Device(_) => Ok(()),
            Self::Plain { file, notes, .. } => notes.sync_data().and_then(|()| file.sync_data()),
            Self::Packed { tail, notes } => notes.sync_data().and_then(|()| tail.sync()),
        }
    }

    /// Nothing more comes.
    fn close(&mut self) -> io::Result<()> {
        self.sync()?;
        if let Self::Packed { tail, .. } = self { tail.close() } else { Ok(()) }
    }
}

/// Writes results in a thread of its own as they come, until nobody has any more to send. `name`: what the output is called.
/// At the first error `ending` says why: nothing more is to be sent then.
pub(crate) fn write_results(
    mut sink: Sink,
    mut results: mpsc::Receiver<Row>,
    ending: watch::Sender<Option<Ending>>,
    name: String,
) -> JoinHandle<Lost> {
    let goes_on = sink.is_kept();
    let end = move |error: &io::Error| {
        let hint =
            if goes_on { "; what was written is whole: mend the cause, and the same command goes on" } else { "" };
        let why = Ending::Unwritable(format!("cannot write {name}: {error}{hint}"));
        ending.send_if_modified(|ending| ending.replace(why) != *ending);
    };
    tokio::task::spawn_blocking(move || {
        let (mut synced_at, mut is_full, mut lost) = (Instant::now(), false, Lost::default());
        while let Some(first) = results.blocking_recv() {
            let (mut bytes, mut rows) = (first.text.len(), vec![first]);
            while bytes < PIECE_BYTES
                && let Ok(row) = results.try_recv()
            {
                bytes += row.text.len();
                rows.push(row);
            }
            if is_full {
                lost.add(&rows);
                continue;
            }
            match sink.write(&rows) {
                Ok(()) if synced_at.elapsed() >= SYNC_EVERY => {
                    synced_at = Instant::now();
                    if let Err(error) = sink.sync() {
                        end(&error);
                    }
                }
                Ok(()) => {}
                Err((written, error)) => {
                    end(&error);
                    is_full = true;
                    lost.add(&rows[written..]);
                }
            }
        }
        match sink.close() {
            Err(error) if !is_full => end(&error),
            _ => {}
        }
        lost
    })
}
