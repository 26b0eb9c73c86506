//! Decides whether the trail is what was written: which records were edited, removed, put elsewhere, cut off, or hidden from who looks
//! for them.
//!
//! Who can write both the database and the head beside it can write another chain that holds together. An end of the chain that was
//! noted elsewhere ([`Verified::end`]) tells the one from the other.

mod walk;

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rusqlite::{Connection, ErrorCode, ffi};

use self::walk::{Stored, Told, Walk};
use super::chain::Head;
use super::fault::Fault;
use super::head::{self, Vouched};
use super::late;
use super::layout::{self, APPLICATION_ID, LAYOUT, marks};
use super::read::{PAGE, connect};
use super::record::Record;
use super::reserve;
use super::store::{StoreError, anchor, hash_at, stored};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many records there are.
    pub records: u64,
    /// The first of them; those before it have had their time.
    pub first: u64,
    /// The end of the chain.
    pub end: Head,
    /// How many of them the head beside the database does not cover yet: those of the last commit, after a crash or right now.
    pub uncovered: u64,
    /// How many could not be kept when they came, as the trail itself tells.
    pub lost: u64,
    /// Records that tell that the chain was found broken when a gateway started, each with how. The first thousand.
    pub breaks: Vec<(u64, Arc<str>)>,
    /// How many records that could not be written lie beside the database, for whoever writes it next.
    pub left: u64,
    /// How many are lost of which the trail does not tell yet, as those say.
    pub left_lost: u64,
    /// What is wrong: with the database as a whole, then in the order of the records; what concerns the end last. The first thousand.
    pub faults: Vec<Fault>,
    /// How many faults there are.
    pub fault_count: u64,
}

impl Verified {
    /// Whether it is proven to be what was written. What a start found broken stays unproven for as long as the trail tells of it: by
    /// then the head beside it covers whatever was left.
    #[must_use]
    pub const fn is_proven(&self) -> bool {
        self.fault_count == 0 && self.breaks.is_empty()
    }
}

/// What is said where there is no database to look into.
const NOT_THERE: &str = "the database is not there";
const EMPTIED: &str = "the database is empty: it was cut off";
const REPLACED: &str = "the database is no audit trail: it was replaced, or its beginning was overwritten";

/// Follows the chain of the trail at `path` from its first record to its end, as they stand at one instant.
///
/// Where only the head is left of a trail, that is a fault like others. Reads the whole database.
///
/// # Errors
/// If there is no trail, or it cannot be read.
pub fn verify(path: &Path) -> Result<Verified, StoreError> {
    // Before the database: of a trail that is written meanwhile the head is then the older one.
    let told = told_head(path)?;
    let left = beside(path);
    match open(path)? {
        Opened::Trail(trail) => {
            let verified = trail.verify(told).map_err(|source| database_error(path, source))?;
            let left_lost = left.iter().filter_map(|record| record.numbers.get("lost")).sum();
            Ok(Verified { left: left.len() as u64, left_lost, ..verified })
        }
        Opened::None(found) if matches!(told, Told::Absent) => Err(match found {
            NOT_THERE => StoreError::Absent { path: path.to_owned() },
            _ => StoreError::Foreign { path: path.to_owned() },
        }),
        Opened::None(found) => {
            let anchor = told.anchor().unwrap_or(Head::ORIGIN);
            let mut walk = Walk::new(anchor);
            let records = match told {
                Told::Head(Vouched { head, .. }) => Some(head.sequence.saturating_sub(anchor.sequence)),
                _ => None,
            };
            walk.fault(Fault::DatabaseGone { found, told: records });
            Ok(walk.end(told, false, None))
        }
    }
}

/// What is for whoever writes the trail next. What cannot be read is his to tell of.
fn beside(path: &Path) -> Vec<Record> {
    let late = late::read(path).ok().flatten().unwrap_or_default();
    late.into_iter().chain(reserve::read(path).unwrap_or_default()).collect()
}

enum Opened {
    Trail(Examined),
    /// There is something else in its place.
    None(&'static str),
}

/// A database that is a trail, or was one.
struct Examined {
    connection: Connection,
    faults: Vec<Fault>,
}

fn open(path: &Path) -> Result<Opened, StoreError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::None(NOT_THERE)),
        Err(source) => return Err(StoreError::File { path: path.to_owned(), source }),
        // SQLite would remove the log beside it.
        Ok(file) if file.len() == 0 => return Ok(Opened::None(EMPTIED)),
        Ok(_) => {}
    }
    let connection = connect(path).map_err(|source| database_error(path, source))?;
    let mut faults = Vec::new();
    let probe = || {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        marks(&connection)
    };
    let found = match probe() {
        Err(error) if layout::is_damage(&error) => {
            faults.push(layout::disagreement(&error.to_string()));
            // What can be read of it nevertheless.
            connection
                .pragma_update(None, "writable_schema", true)
                .and_then(|()| readable(marks(&connection)))
                .map_err(|source| database_error(path, source))?
        }
        found => Some(found.map_err(|source| database_error(path, source))?),
    };
    match found {
        Some((APPLICATION_ID, LAYOUT)) => Ok(Opened::Trail(Examined { connection, faults })),
        Some((APPLICATION_ID, _)) => Err(StoreError::Foreign { path: path.to_owned() }),
        _ => Ok(Opened::None(REPLACED)),
    }
}

fn database_error(path: &Path, source: rusqlite::Error) -> StoreError {
    StoreError::Database { path: path.to_owned(), source }
}

fn told_head(path: &Path) -> Result<Told, StoreError> {
    let path = head::path_for(path);
    match head::read(&path) {
        Ok(Some(vouched)) => Ok(Told::Head(vouched)),
        Ok(None) => Ok(Told::Absent),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Told::Unreadable),
        Err(source) => Err(StoreError::File { path, source }),
    }
}

impl Examined {
    fn verify(self, told: Told) -> rusqlite::Result<Verified> {
        let snapshot = self.connection.unchecked_transaction()?;
        let changes = match layout::changes(&snapshot) {
            // Not even what there is can be read; why is told already, or by what follows.
            Err(error) if layout::is_damage(&error) => Vec::new(),
            changes => changes?,
        };
        let disagreements = layout::disagreements(&snapshot)?;
        // Where it is damaged or another database than is written here, whatever cannot be read is for that reason.
        let is_other = !self.faults.is_empty() || !changes.is_empty();
        let is_unreadable = |error: &rusqlite::Error| {
            let is_of_layout = matches!(error.sqlite_error_code(), None | Some(ErrorCode::Unknown));
            layout::is_damage(error) || (is_other && is_of_layout)
        };
        let anchor = match anchor(&snapshot) {
            Err(error) if is_unreadable(&error) => told.anchor(),
            anchor => anchor?,
        };
        let anchor = anchor.unwrap_or(Head::ORIGIN);
        let mut walk = Walk::new(anchor);
        self.faults.iter().cloned().chain(changes).chain(disagreements).for_each(|fault| walk.fault(fault));
        let strays = match self.rows_up_to(anchor.sequence) {
            Err(error) if is_unreadable(&error) => Vec::new(),
            strays => strays?,
        };
        strays.into_iter().for_each(|sequence| walk.fault(Fault::Stray { sequence, after: anchor.sequence }));
        if let Told::Head(told) = told
            && !told.allows(anchor)
        {
            let before = told.anchor.map_or(0, |own| own.sequence);
            walk.fault(Fault::Missing { first: before + 1, last: anchor.sequence });
        }
        let unread = loop {
            let mut rows = 0;
            let read = self.rows_after(walk.sequence, |row| {
                rows += 1;
                walk.step(row);
            });
            match read {
                Err(error) if is_unreadable(&error) => break Some(error.to_string()),
                read => read?,
            }
            if rows < PAGE {
                break None;
            }
        };
        walk.judge();
        let is_elsewhere = match told {
            Told::Head(Vouched { head, .. }) if head.sequence <= walk.sequence => {
                match hash_at(&snapshot, head.sequence) {
                    Err(error) if is_unreadable(&error) => false,
                    hash => hash?.is_some_and(|hash| hash != head.hash),
                }
            }
            _ => false,
        };
        Ok(walk.end(told, is_elsewhere, unread))
    }

    /// What no walk along the chain comes to.
    fn rows_up_to(&self, sequence: u64) -> rusqlite::Result<Vec<i64>> {
        let mut statement =
            self.connection.prepare("SELECT sequence FROM records WHERE sequence <= ?1 ORDER BY sequence")?;
        statement.query_map([stored(sequence)], |row| row.get(0))?.collect()
    }

    /// A page of records, one after the other, as far as they can be read.
    fn rows_after(&self, sequence: u64, mut step: impl FnMut(Stored)) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT sequence, record, hash, at, kind, user, call FROM records NOT INDEXED WHERE sequence > ?1 ORDER BY sequence LIMIT {PAGE}"
        ))?;
        let mut last = sequence;
        for row in statement.query_map([stored(sequence)], Stored::read)? {
            let row = row?;
            if row.sequence <= last {
                // No walk through such a tree would come to an end.
                let error = ffi::Error::new(ffi::SQLITE_CORRUPT);
                let why = "records stand in another order than their numbers";
                return Err(rusqlite::Error::SqliteFailure(error, Some(why.to_owned())));
            }
            last = row.sequence;
            step(row);
        }
        Ok(())
    }
}

/// `None` where the database is damaged, which its own check tells of.
fn readable<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if layout::is_damage(&error) => Ok(None),
        read => read.map(Some),
    }
}
