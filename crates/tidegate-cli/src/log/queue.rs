//! Decides what becomes of lines that standard error does not take at once: they wait, up to a bound, and beyond it they are counted and
//! left out. A thread of its own writes, so a reader who stalls stops nothing but his own log.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tidegate_bulk::BesideBar;

/// So much waits: some 5,000 lines, more than any start or end has to say.
const BYTES_MAX: usize = 1 << 20;
/// Once lines are left out, all are until there is so much room again: one gap is told once, not line by line.
const BYTES_AGAIN: usize = BYTES_MAX / 2;
/// The end of the process waits so long for a reader.
const END_PATIENCE: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Lines for standard error; [`Write`] takes one, whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines;

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    arrived: Condvar,
    /// Nothing is left to write.
    done: Condvar,
    writer: ThreadId,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// How many lines found no room since that was last told.
    missing: u64,
    is_writing: bool,
}

/// What the writer does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Write(Box<[u8]>),
    /// So many lines are missing.
    Tell(u64),
    Wait,
}

/// From now on lines are written by a thread of their own. Where there can be none, whoever logs writes.
pub(super) fn start() {
    let (send, own) = std::sync::mpsc::channel::<&'static Queue>();
    let spawned = thread::Builder::new().name("log".to_owned()).spawn(move || own.recv().map(Queue::keep_writing));
    if let Ok(thread) = spawned {
        let writer = thread.thread().id();
        let (waiting, arrived, done) = Default::default();
        // It waits for this, and goes as soon as the process does.
        let _ = send.send(QUEUE.get_or_init(|| Queue { waiting, arrived, done, writer }));
    }
}

/// Waits until all is written, though no longer than a second: nobody may be reading.
pub(super) fn end() {
    let Some(queue) = QUEUE.get() else { return };
    let waiting = queue.lock();
    // How it ended does not matter: there is nobody to tell of it.
    drop(queue.done.wait_timeout_while(waiting, END_PATIENCE, |waiting| !waiting.is_done()));
}

/// Says something that is no log line, and few enough to find room whatever waits.
pub(super) fn say(text: &str) {
    let line = format!("{text}\n");
    match QUEUE.get() {
        Some(queue) => queue.put(line.as_bytes(), true),
        // Where standard error is gone there is nobody left to tell.
        None => drop(BesideBar.write_all(line.as_bytes())),
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(queue) = QUEUE.get() else { return BesideBar.write(line) };
        // What the writer itself has to say is that lines are missing: that one must not be.
        queue.put(line, thread::current().id() == queue.writer);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8], must_be: bool) {
        self.lock().push(line, must_be);
        self.arrived.notify_one();
    }

    fn keep_writing(&self) {
        loop {
            let mut waiting = self.lock();
            let next = waiting.next();
            waiting.is_writing = next != Next::Wait;
            match next {
                Next::Write(line) => {
                    drop(waiting);
                    // Where standard error is gone there is nobody left to tell.
                    let _ = BesideBar.write_all(&line);
                }
                Next::Tell(lines) => {
                    drop(waiting);
                    tracing::error!("{lines} lines are missing here: they came faster than they were read");
                }
                Next::Wait => {
                    self.done.notify_all();
                    drop(self.arrived.wait_while(waiting, |waiting| waiting.is_empty()));
                }
            }
        }
    }
}

impl Waiting {
    fn push(&mut self, line: &[u8], must_be: bool) {
        let bytes_max = if self.missing > 0 { BYTES_AGAIN } else { BYTES_MAX };
        if !must_be && self.bytes + line.len() > bytes_max {
            self.missing += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line.into());
    }

    fn next(&mut self) -> Next {
        if self.missing > 0 && self.bytes <= BYTES_AGAIN {
            return Next::Tell(std::mem::take(&mut self.missing));
        }
        let Some(line) = self.lines.pop_front() else { return Next::Wait };
        self.bytes -= line.len();
        Next::Write(line)
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.missing == 0
    }

    fn is_done(&self) -> bool {
        self.is_empty() && !self.is_writing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_counted_and_told_once_where_they_are_missing() {
        let mut waiting = Waiting::default();
        let line = vec![b'x'; BYTES_MAX / 4];
        (0..7).for_each(|_| waiting.push(&line, false));
        assert_eq!((waiting.lines.len(), waiting.missing), (4, 3));
        assert_eq!(waiting.next(), Next::Write(line.clone().into()));
        waiting.push(&line, false);
        assert_eq!(waiting.missing, 4, "one gap, not one beside each line");
        assert_eq!(waiting.next(), Next::Write(line.clone().into()));
        assert_eq!(waiting.next(), Next::Tell(4));
        waiting.push(b"told", true);
        waiting.push(b"later", false);
        let rest: Vec<usize> = std::iter::from_fn(|| match waiting.next() {
            Next::Write(line) => Some(line.len()),
            _ => None,
        })
        .collect();
        assert_eq!(rest, [line.len(), line.len(), 4, 5]);
        assert!(waiting.is_done() && waiting.bytes == 0);
    }
}
