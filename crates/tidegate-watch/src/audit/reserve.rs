//! Decides what outlasts a process that ends, or is killed, while the trail cannot be written: a file of a fixed size beside the
//! database, which is written in place and so needs no room on a full disk.
//!
//! It says since when nothing can be written and how many records wait or are lost, and has those that tell of a decision, as far as they
//! fit. Whoever writes the trail next adds them, and a record of how many the others were. There are two places in it, written in turn
//! and each with a hash: one that was cut off in the middle leaves the one before it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::Hash;
use super::gap::outage;
use super::lock::private;
use super::record::{Kind, Record};
use super::time::shown_time;

/// One of two places.
const PLACE_BYTES: usize = 32 * 1024;
/// What stands before the text: the number of the writing, the text's length, the hash of both.
const HEADER_BYTES: usize = 128;

/// What stands in the way, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outage {
    /// In microseconds since 1970.
    pub(super) since: u64,
    /// How many records wait that are not in the file.
    pub(super) waiting: u64,
    /// How many found no room, and no record tells of it.
    pub(super) lost: u64,
    pub(super) error: String,
}

impl Outage {
    /// What the trail has of it where its process ended before it was over: none of what waited is there.
    fn record(&self) -> Record {
        let lost = self.waiting + self.lost;
        let (since, error) = (shown_time(self.since), &self.error);
        let why = format!("nothing could be written from {since} until the process ended: {error}");
        outage(if lost == 0 { "interrupted" } else { "lost" }, why, lost, self.since)
    }
}

/// The file, open for the one that writes the trail.
#[derive(Debug)]
pub(super) struct Reserve {
    file: File,
    /// The number of the last writing, and its text.
    number: u64,
    text: String,
}

impl Reserve {
    /// Opens the one of the database at `database`; where there is none, makes it.
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let path = path_for(database);
        let mut file = private(&path)?;
        let size = 2 * PLACE_BYTES as u64;
        if file.metadata()?.len() < size {
            // Written rather than only given its length: a hole would need room later.
            let made = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&[b'\n'; 2 * PLACE_BYTES]));
            made.and_then(|()| file.sync_all()).inspect_err(|_| drop(fs::remove_file(&path)))?;
        }
        let (number, text) = newest(&mut file)?.unwrap_or_default();
        Ok(Self { file, number, text })
    }

    /// What it has.
    pub(super) fn left(&self) -> Vec<Record> {
        records(&self.text)
    }

    /// Writes how it stands, and records as far as they fit; the others are counted with those that wait. On disk when it returns.
    pub(super) fn write<'r>(
        &mut self,
        mut outage: Outage,
        records: impl Iterator<Item = &'r Record>,
    ) -> io::Result<()> {
        let mut lines = String::new();
        // The numbers in the line before them may still grow.
        let room = PLACE_BYTES - HEADER_BYTES - serde_json::to_string(&outage)?.len() - 64;
        for record in records {
            let text = record.text()?;
            if lines.len() + text.len() < room {
                lines.push_str(&text);
                lines.push('\n');
            } else if record.kind == Kind::Gap {
                outage.lost += record.numbers.get("lost").copied().unwrap_or(0);
            } else {
                outage.waiting += 1;
            }
        }
        self.put(format!("{}\n{lines}", serde_json::to_string(&outage)?))
    }

    /// All of it is in the trail, or was left elsewhere.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.put(String::new())
    }

    fn put(&mut self, text: String) -> io::Result<()> {
        if text == self.text {
            return Ok(());
        }
        let number = self.number + 1;
        let mut header = format!("{number} {} {}", text.len(), checksum(number, &text));
        header.extend(std::iter::repeat_n(' ', HEADER_BYTES - 1 - header.len()));
        header.push('\n');
        self.file.seek(SeekFrom::Start(number % 2 * PLACE_BYTES as u64))?;
        self.file.write_all((header + &text).as_bytes())?;
        self.file.sync_data()?;
        (self.number, self.text) = (number, text);
        Ok(())
    }
}

/// What the one beside the database at `database` has. Empty also where there is none.
pub(super) fn read(database: &Path) -> io::Result<Vec<Record>> {
    match File::open(path_for(database)).and_then(|mut file| newest(&mut file)) {
        Ok(newest) => Ok(newest.map_or_else(Vec::new, |(_, text)| records(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".reserve");
    name.into()
}

fn checksum(number: u64, text: &str) -> Hash {
    Hash::ORIGIN.after(&format!("{number}\n{text}"))
}

/// The last writing that is whole: its number and text.
fn newest(file: &mut File) -> io::Result<Option<(u64, String)>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(2 * PLACE_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes.chunks(PLACE_BYTES).filter_map(whole).max_by_key(|(number, _)| *number))
}

fn whole(place: &[u8]) -> Option<(u64, String)> {
    let header = str::from_utf8(place.get(..HEADER_BYTES)?).ok()?;
    let mut words = header.split_whitespace();
    let (number, length) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let text = str::from_utf8(place[HEADER_BYTES..].get(..length)?).ok()?;
    (words.next()?.parse() == Ok(checksum(number, text))).then(|| (number, text.to_owned()))
}

/// The records in a text, then the one of the outage that it tells of.
fn records(text: &str) -> Vec<Record> {
    let mut lines = text.lines();
    let outage = lines.next().and_then(|line| serde_json::from_str::<Outage>(line).ok());
    let mut records: Vec<Record> = lines.filter_map(|line| Record::from_text(line).ok()).collect();
    records.extend(outage.map(|outage| outage.record()));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands(waiting: u64) -> Outage {
        Outage { since: 1_796_000_000_000_000, waiting, lost: 2, error: "disk full".to_owned() }
    }

    fn lost(records: &[Record]) -> u64 {
        records.iter().filter_map(|record| record.numbers.get("lost")).sum()
    }

    #[test]
    fn what_was_written_last_and_whole_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("audit.db");
        assert_eq!(read(&database).unwrap(), []);
        let mut reserve = Reserve::open(&database).unwrap();
        let decided = Record::new(Kind::Override, "reset");
        for waiting in 1..4 {
            reserve.write(stands(waiting), [&decided].into_iter()).unwrap();
            let left = read(&database).unwrap();
            assert_eq!((&left[0], left.len(), lost(&left)), (&decided, 2, waiting + 2));
            assert_eq!(Reserve::open(&database).unwrap().text, reserve.text);
        }
        // The third writing, cut off in its middle.
        let mut bytes = fs::read(path_for(&database)).unwrap();
        assert_eq!(bytes.len(), 2 * PLACE_BYTES);
        bytes[PLACE_BYTES + HEADER_BYTES + 20] = b'\n';
        fs::write(path_for(&database), bytes).unwrap();
        assert_eq!(lost(&read(&database).unwrap()), 4, "the second");
        let mut reserve = Reserve::open(&database).unwrap();
        reserve.clear().unwrap();
        assert_eq!(read(&database).unwrap(), []);
    }

    #[test]
    fn records_that_do_not_fit_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("audit.db");
        let mut reserve = Reserve::open(&database).unwrap();
        let long = Record { why: Some("x".repeat(500).into()), ..Record::new(Kind::Override, "reset") };
        reserve.write(stands(0), std::iter::repeat_n(&long, 1000)).unwrap();
        let left = read(&database).unwrap();
        assert!(left.len() > 40, "{}", left.len());
        assert_eq!(left.len() as u64 - 1 + lost(&left), 1002);
    }
}
