//! Decides how a run that was killed goes on: the output is the journal of what is done, a file beside it says of what.
//!
//! `OUT.journal` begins with a line that tells the input and the arguments; after it stands a note before a line is sent, and
//! one when that has ended (`account`). So at any instant each line of the input is either in the output, whole, or to be
//! sent; those that were sent without a result are known, and so is what all of them can have used. Nothing is ever rewritten
//! in place: what is rewritten (when failed lines are to be sent again) is written aside and renamed.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::account::{Account, Note};
use crate::output;
use crate::packing::Packing;

/// Of what a run was made: the input and whatever changes what is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) tidegate_run: u32,
    /// SHA-256 of the input's text.
    pub(crate) input: String,
    pub(crate) lines: u64,
    pub(crate) upstream: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) prompt_key: Option<String>,
    pub(crate) skip_bad: bool,
}

impl Made {
    /// What is different, in words. `None`: nothing.
    fn differs(&self, now: &Self) -> Option<String> {
        if (&self.input, self.lines) != (&now.input, now.lines) {
            return Some(format!("another input ({} lines then, {} now, or other text)", self.lines, now.lines));
        }
        let shown = |value: &Option<String>| value.as_deref().unwrap_or("none").to_owned();
        let flags = [
            ("--upstream", self.upstream.clone(), now.upstream.clone()),
            ("--endpoint", shown(&self.endpoint), shown(&now.endpoint)),
            ("--model", shown(&self.model), shown(&now.model)),
            ("--prompt-key", shown(&self.prompt_key), shown(&now.prompt_key)),
            ("--skip-bad", self.skip_bad.to_string(), now.skip_bad.to_string()),
        ];
        let (flag, then, now) = flags.into_iter().find(|(_, then, now)| then != now)?;
        Some(format!("another {flag} (then {then}, now {now})"))
    }
}

/// Why there can be no journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// A choice of the user's: nothing has been changed.
    #[error("{0}")]
    Refused(String),
    #[error("cannot read or write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// The results that there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// Numbers of their lines: what lines are called may be no line's alone.
    numbers: HashSet<u64>,
    /// Failures that are given up so that their lines are sent again.
    dropped: HashSet<u64>,
    pub(crate) failed: u64,
    /// Tokens that they used, as far as they say.
    tokens: u64,
}

impl Done {
    pub(crate) fn has(&self, number: u64) -> bool {
        self.numbers.contains(&number)
    }

    pub(crate) fn count(&self) -> u64 {
        self.numbers.len() as u64
    }
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    made: Option<Made>,
    pub(crate) account: Account,
    pub(crate) done: Done,
    /// Bytes of the output that are whole; what follows is torn.
    whole_bytes: u64,
    /// The last line is whole but for its end.
    lacks_end: bool,
    /// Results that are given up so that their lines are sent again.
    drops_failed: bool,
}

impl Left {
    /// Tokens of all calls there ever were, at most.
    pub(crate) fn used_tokens(&self) -> u64 {
        // After a loss of power the journal may know less than the output.
        self.account.used_tokens().max(self.done.tokens)
    }
}

/// `OUT.journal`.
fn journal_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> JournalError + '_ {
    move |source| JournalError::File { path: path.to_owned(), source }
}

/// Looks at what is at `out`. Changes nothing.
pub(crate) fn look(out: &Path, retry_failed: bool) -> Result<Left, JournalError> {
    let mut left = Left { drops_failed: retry_failed, ..Left::default() };
    let path = journal_path(out);
    match File::open(&path) {
        Ok(file) => read_journal(file, &mut left).map_err(file_error(&path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(&path)(error)),
    }
    let file = match File::open(out) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
        Err(error) => return Err(file_error(out)(error)),
    };
    if left.made.is_none() {
        if file.metadata().map_err(file_error(out))?.len() == 0 {
            return Ok(left);
        }
        return Err(JournalError::Refused(format!(
            "{} is there and was not written by tidegate run ({} is missing); move it away or name another output",
            out.display(),
            path.display()
        )));
    }
    read_results(out, file, &mut left)?;
    Ok(left)
}

fn read_journal(file: File, left: &mut Left) -> io::Result<()> {
    let mut lines = BufReader::new(file).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    left.made = Some(serde_json::from_str(&first).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "it is no journal of this version of tidegate run; move it away")
    })?);
    for line in lines {
        // A torn note at the end is of a line that was not sent yet, or whose end is not known.
        if let Some(note) = Note::parse(&line?) {
            left.account.add(note);
        }
    }
    Ok(())
}

/// One line of output, read to go on from it. `Err`: it was not written here.
fn note(text: &str, left: &mut Left) -> Result<(), ()> {
    let written = output::read(text).ok_or(())?;
    if written.failed && left.drops_failed {
        left.done.dropped.insert(written.number);
        left.account.add(Note::Over { number: written.number });
        return Ok(());
    }
    if left.done.numbers.insert(written.number) {
        left.done.failed += u64::from(written.failed);
        left.done.tokens += written.usage.map_or(0, |usage| usage.total());
    }
    Ok(())
}

fn read_results(out: &Path, file: File, left: &mut Left) -> Result<(), JournalError> {
    let foreign = |number: u64| {
        JournalError::Refused(format!(
            "{}:{number} is no result of tidegate run; move the file away or name another output",
            out.display()
        ))
    };
    let mut number = 0;
    let packing = Packing::of(out);
    if packing != Packing::Plain {
        let read = packing.read_members(file, |member| {
            for line in String::from_utf8_lossy(member).lines() {
                number += 1;
                note(line, left).map_err(|()| io::Error::other("foreign"))?;
            }
            Ok(())
        });
        left.whole_bytes = match read {
            Err(error) if error.to_string() == "foreign" => return Err(foreign(number)),
            read => read.map_err(file_error(out))?,
        };
        return Ok(());
    }
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut text = Vec::new();
    loop {
        text.clear();
        if reader.read_until(b'\n', &mut text).map_err(file_error(out))? == 0 {
            return Ok(());
        }
        number += 1;
        let is_ended = text.ends_with(b"\n");
        match (std::str::from_utf8(&text).map_err(|_| ()).and_then(|text| note(text.trim_end(), left)), is_ended) {
            (Ok(()), _) => left.whole_bytes += text.len() as u64,
            (Err(()), true) => return Err(foreign(number)),
            (Err(()), false) => {}
        }
        left.lacks_end = !is_ended && left.whole_bytes > 0 && output::read(&String::from_utf8_lossy(&text)).is_some();
    }
}

/// The journal of a run under way; its lock keeps a second run away.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<File>,
}

impl Journal {
    /// Takes over what was left, or begins afresh. Returns the output, open at its end.
    pub(crate) fn begin(out: &Path, made: &Made, left: &Left) -> Result<(Self, File), JournalError> {
        let path = journal_path(out);
        if let Some(difference) = left.made.as_ref().and_then(|then| then.differs(made)) {
            return Err(JournalError::Refused(format!(
                "{} has the results of a run with {difference}; run it as it was, or name another output",
                out.display()
            )));
        }
        if left.made.is_none() {
            let mut first = serde_json::to_vec(made).map_err(io::Error::other).map_err(file_error(&path))?;
            first.push(b'\n');
            write_aside(&path, &first)?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(file_error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Refused(format!("another run is writing {}; wait for it", out.display())));
            }
            Err(TryLockError::Error(error)) => return Err(file_error(&path)(error)),
        }
        // A note that a kill tore must not run into the next one.
        (&file).write_all(b"\n").map_err(file_error(&path))?;
        let output = OpenOptions::new().append(true).create(true).open(out).map_err(file_error(out))?;
        output.set_len(left.whole_bytes).map_err(file_error(out))?;
        if left.lacks_end {
            (&output).write_all(b"\n").map_err(file_error(out))?;
        }
        let journal = Self { file: Arc::new(file) };
        if left.drops_failed {
            journal.gives_up(&left.done.dropped).map_err(file_error(&path))?;
            return Ok((journal, without_failed(out, output)?));
        }
        Ok((journal, output))
    }

    pub(crate) fn note(&self, note: Note) -> io::Result<()> {
        // One write, so that notes of several threads never mix.
        (&*self.file).write_all(note.to_string().as_bytes())
    }

    /// Where notes go, to be synced: they survive a kill by themselves, and so a loss of power.
    pub(crate) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Notes of results that are given up that they were there: nobody is to take their lines for cut off.
    fn gives_up(&self, numbers: &HashSet<u64>) -> io::Result<()> {
        let mut notes = BufWriter::new(&*self.file);
        numbers.iter().try_for_each(|number| notes.write_all(Note::Over { number: *number }.to_string().as_bytes()))?;
        notes.flush()
    }
}

/// Writes what is not failed aside, and renames it over the output.
fn without_failed(out: &Path, output: File) -> Result<File, JournalError> {
    let mut aside = out.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let packing = Packing::of(out);
    let rewrite = || -> io::Result<()> {
        let mut kept = File::create(&aside)?;
        let mut piece = String::new();
        let mut reader = crate::packing::open(out)?;
        let mut line = String::new();
        loop {
            line.clear();
            let ended = reader.read_line(&mut line)? == 0;
            if !ended && output::read(line.trim_end()).is_some_and(|written| !written.failed) {
                piece.push_str(&line);
            }
            if !piece.is_empty() && (ended || piece.len() > 1 << 20) {
                kept.write_all(&packing.pack(piece.as_bytes())?)?;
                piece.clear();
            }
            if ended {
                kept.sync_data()?;
                return fs::rename(&aside, out);
            }
        }
    };
    rewrite().map_err(file_error(&aside))?;
    drop(output);
    OpenOptions::new().append(true).open(out).map_err(file_error(out))
}

fn write_aside(path: &Path, text: &[u8]) -> Result<(), JournalError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let mut file = File::create(&aside).map_err(file_error(&aside))?;
    file.write_all(text).and_then(|()| file.sync_data()).map_err(file_error(&aside))?;
    fs::rename(&aside, path).map_err(file_error(path))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
