//! Decides how the trail is read: by anybody who may read the file, while it is written, a page at a time.
//!
//! A page is a short statement of its own: a long read must not keep the writer's log from being cleared.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, ToSql};

use super::chain::{Hash, Head};
use super::layout::{APPLICATION_ID, LAYOUT, has_stretches, is_empty, marks};
use super::record::{Kind, Record};
use super::store::{StoreError, last, number, stored};

/// How many records a page has at most.
pub const PAGE: usize = 1000;
/// How long a read waits while the file is locked as a whole, which only others than tidegate do.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A record in the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the chain, from 1.
    pub sequence: u64,
    /// What it says.
    pub record: Record,
    /// The text that says it, which the hash covers.
    pub text: String,
    /// Its hash.
    pub hash: Hash,
}

/// Which records are asked for; what is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not older than this, in microseconds since 1970.
    pub since: Option<u64>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// About one of these users.
    pub users: Vec<String>,
    /// About this call.
    pub call: Option<String>,
}

/// Where a page goes on. Hand back what the page before gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    at: u64,
    sequence: u64,
}

/// Reads the trail.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Reader {
    /// Opens the trail at `path`, which somebody may be writing.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Absent { path: path.to_owned() });
        }
        let failed = |source| StoreError::Database { path: path.to_owned(), source };
        let connection = connect(path).map_err(failed)?;
        let marks = marks(&connection).map_err(failed)?;
        if marks == (0, 0) && is_empty(&connection).map_err(failed)? {
            // Whoever writes is about to make it.
            return Err(StoreError::Absent { path: path.to_owned() });
        }
        if marks != (APPLICATION_ID, LAYOUT) {
            return Err(StoreError::Foreign { path: path.to_owned() });
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    /// The end of the chain, as the database has it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn end(&self) -> Result<Head, StoreError> {
        last(&self.connection).map_err(|source| self.failed(source))
    }

    /// A page of what `filter` asks for, the oldest first, from where the page before ended. An empty one: there is no more.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn page(&self, filter: &Filter, from: Option<Place>) -> Result<(Vec<Entry>, Option<Place>), StoreError> {
        let place = |entry: &Entry| Place { at: entry.record.at, sequence: entry.sequence };
        let page = self.select(filter, from, "at ASC, sequence ASC", PAGE)?;
        let end = page.last().map(place).or(from);
        Ok((page, end))
    }

    /// The newest that `filter` asks for, at most so many, the oldest of them first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn latest(&self, filter: &Filter, most: usize) -> Result<Vec<Entry>, StoreError> {
        let mut latest = self.select(filter, None, "at DESC, sequence DESC", most)?;
        latest.reverse();
        Ok(latest)
    }

    /// What came into the trail after record `sequence`, in the order of the chain, a page at most.
    ///
    /// Looks at every record after it: made for what is new, and for everything.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn after(&self, filter: &Filter, sequence: u64) -> Result<Vec<Entry>, StoreError> {
        let mut terms = terms(filter);
        terms.push(("sequence > ?", Box::new(stored(sequence))));
        // From an index they would have to be sorted, for each page.
        self.fetch(terms, "records NOT INDEXED", "sequence ASC", PAGE)
    }

    fn select(&self, filter: &Filter, from: Option<Place>, order: &str, most: usize) -> Result<Vec<Entry>, StoreError> {
        let mut terms = terms(filter);
        // Of an earlier layout what is asked for is found as SQLite thinks best, until somebody writes.
        let has_stretches = has_stretches(&self.connection).map_err(|source| self.failed(source))?;
        let source = if has_stretches { source(filter) } else { "records" };
        if source != "records" {
            terms.push((STRETCHES, Box::new(12)));
        }
        if let Some(from) = from {
            terms.push(("at >= ?", Box::new(stored(from.at))));
            terms.push(("(at, sequence) > (?, ?)", Box::new(stored(from.at))));
            terms.push(("", Box::new(stored(from.sequence))));
        }
        self.fetch(terms, source, order, most)
    }

    fn fetch(&self, terms: Vec<Term>, from: &str, order: &str, most: usize) -> Result<Vec<Entry>, StoreError> {
        let conditions: Vec<&str> = terms.iter().map(|(text, _)| *text).filter(|text| !text.is_empty()).collect();
        let narrowed =
            if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let query = format!("SELECT sequence, record, hash FROM {from} {narrowed} ORDER BY {order} LIMIT {most}");
        let fetch = || -> rusqlite::Result<Vec<(u64, String, Hash)>> {
            let mut statement = self.connection.prepare_cached(&query)?;
            let values = rusqlite::params_from_iter(terms.iter().map(|(_, value)| value));
            statement.query_map(values, |row| Ok((number(row.get(0)?), row.get(1)?, row.get(2)?)))?.collect()
        };
        let rows = fetch().map_err(|source| self.failed(source))?;
        let entry = |(sequence, text, hash): (u64, String, Hash)| match Record::from_text(&text) {
            Ok(record) => Ok(Entry { sequence, record, text, hash }),
            Err(_) => Err(StoreError::Unreadable { path: self.path.clone(), sequence }),
        };
        rows.into_iter().map(entry).collect()
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }
}

/// A condition and the value for its question mark; one without a text: a value more for the one before it.
type Term = (&'static str, Box<dyn ToSql>);

/// In which the indexes by call and by user are looked at, one after the other.
const STRETCHES: &str = "sequence >> 12 IN (
    WITH RECURSIVE stretch (n) AS (
        SELECT min(sequence) >> 12 FROM records WHERE sequence > 0
        UNION ALL
        SELECT n + 1 FROM stretch WHERE n < (SELECT max(sequence) FROM records) >> ?
    ) SELECT n FROM stretch)";

/// The table, and the index where there is one that has what is asked for together.
const fn source(filter: &Filter) -> &'static str {
    if filter.call.is_some() {
        "records INDEXED BY by_call"
    } else if !filter.users.is_empty() {
        "records INDEXED BY by_user"
    } else {
        "records"
    }
}

fn terms(filter: &Filter) -> Vec<Term> {
    let mut terms: Vec<Term> = Vec::new();
    if let Some(since) = filter.since {
        terms.push(("at >= ?", Box::new(stored(since))));
    }
    if let Some(kind) = filter.kind {
        // Word for word what the index says, or it is not used.
        let rare = "kind = ? AND kind NOT IN ('throttle', 'retry', 'call')";
        terms.push((if kind.is_frequent() { "kind = ?" } else { rare }, Box::new(kind.name())));
    }
    if !filter.users.is_empty() {
        let users = serde_json::to_string(&filter.users).unwrap_or_default();
        terms.push(("user IN (SELECT value FROM json_each(?))", Box::new(users)));
    }
    if let Some(call) = &filter.call {
        terms.push(("call = ?", Box::new(call.clone())));
    }
    terms
}

pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_PATIENCE)?;
    Ok(connection)
}
