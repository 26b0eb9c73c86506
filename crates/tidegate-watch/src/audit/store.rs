//! Decides how records lie in the database, and where the chain goes on after a start: the writing side of the file.
//!
//! One commit is on disk when it returns (`synchronous = FULL`); the head beside the database follows it. A crash between the two
//! leaves a database that is ahead of its head, never one that is behind. So does a head that finds no room on a full disk: what is
//! committed is written all the same, and the head is due.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::chain::{Hash, Head};
use super::gap::SINCE;
use super::head::{self, Vouched};
use super::layout::{is_ready, text};
use super::lock::private;
use super::record::{Kind, Record};

/// How long a commit waits for somebody else's lock. Readers lock nothing.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// Negative: in KiB. Room for the stretch of each index that is written now.
const CACHE_KIB: i64 = -16_384;
/// So many pages of the log, 1.6 MiB, are written into the database at once: a page that changes with each commit once, not each time,
/// and no commit waits long for it.
const CHECKPOINT_PAGES: i64 = 400;
/// Records removed in one commit, so that no commit takes long.
const SLICE: usize = 2000;

/// Why the trail cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// SQLite cannot.
    #[error("{}: {source}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// A file beside it cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process writes it.
    #[error("{} is written by another tidegate", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is a database of somebody else, or of a later version.
    #[error("{} is no audit trail that this version knows", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// A record is not what is written here.
    #[error("{}: record {sequence} cannot be read, so somebody else wrote it; tidegate audit verify tells more", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Which record.
        sequence: u64,
    },
    /// There is none.
    #[error("there is no audit trail at {}", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
}

/// The database, open for its one writer.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    path: PathBuf,
    head_path: PathBuf,
    head: Head,
    /// The last record that may have been removed as it had had its time.
    anchor: Option<Head>,
    /// The last record that has been removed so. What somebody put before it stays, to be found.
    begins: i64,
    /// Why the head beside the database is not the chain's. `None`: it is.
    pub(super) head_due: Option<String>,
    /// How many records the head did not cover when it was opened.
    pub(super) uncovered: u64,
    /// Something to be told in the trail itself: that the chain did not meet its head.
    pub(super) broken: Option<&'static str>,
}

impl Store {
    /// Opens the database, for its owner alone if it has to be made, and finds where the chain goes on. Whoever does holds the lock.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let head_path = head::path_for(path);
        let told = match head::read(&head_path) {
            Ok(told) => Ok(told),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(()),
            Err(source) => return Err(StoreError::File { path: head_path, source }),
        };
        // Only if it is not there: to close a file that is open elsewhere in this process would undo SQLite's locks on it.
        if !path.exists() {
            private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        }
        let failed = |source| StoreError::Database { path: path.to_owned(), source };
        let connection = connect(path).map_err(failed)?;
        if !is_ready(&connection).map_err(failed)? {
            return Err(StoreError::Foreign { path: path.to_owned() });
        }
        write_ahead(&connection).map_err(failed)?;
        let last = last(&connection).map_err(failed)?;
        let begins = anchor(&connection).map_err(failed)?;
        let vouched_for = told.ok().flatten();
        let (anchor, head, broken) = match told {
            Ok(Some(told)) if begins.is_some_and(|begins| !told.allows(begins)) => {
                let head = Head { sequence: last.sequence.max(told.head.sequence), hash: told.head.hash };
                (told.anchor, head, Some("records at the beginning of the chain were removed before their time"))
            }
            Ok(told) => {
                let vouched = told.map_or(begins, |told| told.anchor);
                let (head, broken) = continues(&connection, last, told.map(|told| told.head)).map_err(failed)?;
                (vouched, head, broken)
            }
            Err(()) => (begins, last, Some("the head beside the database could not be read at the start")),
        };
        let path = path.to_owned();
        let begins = begins.map_or(0, |begins| stored(begins.sequence));
        let covered = vouched_for.filter(|_| broken.is_none()).map_or(last.sequence, |told| told.head.sequence);
        let uncovered = last.sequence.saturating_sub(covered);
        let mut store = Self { connection, path, head_path, head, anchor, begins, head_due: None, uncovered, broken };
        if vouched_for != Some(store.vouched()) {
            store.settle_head();
        }
        Ok(store)
    }

    /// The end of the chain.
    pub(super) const fn head(&self) -> Head {
        self.head
    }

    /// Whether this very record is there.
    pub(super) fn has(&self, record: &Record) -> Result<bool, StoreError> {
        let failed = |source| StoreError::Database { path: self.path.clone(), source };
        let text = record.text().map_err(|error| failed(rusqlite::Error::ToSqlConversionFailure(error.into())))?;
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM records WHERE at = ?1 AND record = ?2").map_err(failed)?;
        statement.exists(params![stored(record.at), text]).map_err(failed)
    }

    /// Whether there is a record of the outage since `since`.
    pub(super) fn tells_of(&self, since: u64) -> Result<bool, StoreError> {
        let failed = |source| StoreError::Database { path: self.path.clone(), source };
        let gaps =
            "SELECT record FROM records WHERE kind = 'gap' AND kind NOT IN ('throttle', 'retry', 'call') AND at >= ?1";
        let mut statement = self.connection.prepare_cached(gaps).map_err(failed)?;
        let mut rows = statement.query([stored(since)]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let record = Record::from_text(&text(row, 0).map_err(failed)?).ok();
            if record.is_some_and(|record| record.numbers.get(SINCE) == Some(&since)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds records in one commit. On an error nobody can tell whether they are there, but [`Store::open`].
    pub(super) fn add(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let failed = |source| StoreError::Database { path: self.path.clone(), source };
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let head = insert(&transaction, self.head, records).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        self.head = head;
        self.settle_head();
        Ok(())
    }

    /// Writes the head beside the database; where that cannot be done, it is due.
    pub(super) fn settle_head(&mut self) {
        self.head_due = self.write_head(self.vouched()).err().map(|error| error.to_string());
    }

    /// Removes a slice of the oldest records, of those that are older than `before`; true if there may be more of them.
    ///
    /// The same commit adds a record that says up to which and with which hash, so that the chain can be followed from there. The file
    /// beside the database vouches for that before they go: else whoever can write the database alone could remove what he likes.
    pub(super) fn remove_slice(&mut self, before: u64) -> Result<bool, StoreError> {
        let path = self.path.clone();
        let failed = |source| StoreError::Database { path: path.clone(), source };
        // Nobody else writes: what has had its time is the same within the commit.
        let expired = expired(&self.connection, self.begins, stored(before)).map_err(failed)?;
        // Told of by a record that will itself be removed: without this one would follow the other for ever.
        if expired.iter().all(|(_, kind, _)| kind == Kind::Retention.name()) {
            return Ok(false);
        }
        let Some((through, _, hash)) = expired.last() else { return Ok(false) };
        let anchor = Some(Head { sequence: number(*through), hash: *hash });
        self.write_head(Vouched { anchor, ..self.vouched() })?;
        self.anchor = anchor;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let slice = "DELETE FROM records WHERE sequence > ?1 AND sequence <= ?2";
        transaction.execute(slice, [self.begins, *through]).map_err(failed)?;
        let removed = Record { anchor: Some(hash.to_string().into()), ..Record::new(Kind::Retention, "removed") }
            .with("records", expired.len() as u64)
            .with("through", u64::try_from(*through).unwrap_or(0));
        let head = insert(&transaction, self.head, &[removed]).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        (self.head, self.begins) = (head, *through);
        self.settle_head();
        Ok(expired.len() == SLICE)
    }

    const fn vouched(&self) -> Vouched {
        Vouched { head: self.head, anchor: self.anchor }
    }

    fn write_head(&self, vouched: Vouched) -> Result<(), StoreError> {
        head::write(&self.head_path, vouched)
            .map_err(|source| StoreError::File { path: self.head_path.clone(), source })
    }
}

/// Where the chain goes on, and what is wrong, if so, with what is there.
///
/// Where database and head contradict each other it goes on from the head, with a number that neither has used: the break stays to be
/// found, instead of being covered by what is written next.
fn continues(
    connection: &Connection,
    last: Head,
    told: Option<Head>,
) -> rusqlite::Result<(Head, Option<&'static str>)> {
    let Some(told) = told else {
        let missing = (last.sequence > 0).then_some("the head beside the database was missing at the start");
        return Ok((last, missing));
    };
    Ok(match hash_at(connection, told.sequence)? {
        Some(hash) if hash == told.hash => (last, None),
        Some(_) => (
            Head { sequence: last.sequence.max(told.sequence), hash: told.hash },
            Some("the chain did not meet its head at the start: records were changed"),
        ),
        None => (
            Head { sequence: last.sequence.max(told.sequence), hash: told.hash },
            Some("the chain ended before its head at the start: records were removed"),
        ),
    })
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(LOCK_PATIENCE)?;
    Ok(connection)
}

fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
}

/// The last record's number and hash.
pub(super) fn last(connection: &Connection) -> rusqlite::Result<Head> {
    let last = connection
        .query_row("SELECT sequence, hash FROM records ORDER BY sequence DESC LIMIT 1", [], |row| {
            Ok(Head { sequence: number(row.get(0)?), hash: row.get::<_, Hash>(1)? })
        })
        .optional()?;
    Ok(last.unwrap_or(Head::ORIGIN))
}

/// The hash of one record; also of the one before the first that is still there.
pub(super) fn hash_at(connection: &Connection, sequence: u64) -> rusqlite::Result<Option<Hash>> {
    if sequence == 0 {
        return Ok(Some(Hash::ORIGIN));
    }
    let hash = connection
        .query_row("SELECT hash FROM records WHERE sequence = ?1", [stored(sequence)], |row| row.get(0))
        .optional()?;
    match hash {
        Some(hash) => Ok(Some(hash)),
        None => Ok(anchor(connection)?.filter(|anchor| anchor.sequence == sequence).map(|anchor| anchor.hash)),
    }
}

/// The last record that was removed as it had had its time, as the trail itself tells.
pub(super) fn anchor(connection: &Connection) -> rusqlite::Result<Option<Head>> {
    // The last condition word for word as the index has it: else every record would be looked at where none has been removed yet.
    let newest = "SELECT record FROM records WHERE kind = 'retention' AND kind NOT IN ('throttle', 'retry', 'call')
        ORDER BY sequence DESC LIMIT 1";
    let text = connection.query_row(newest, [], |row| text(row, 0)).optional()?;
    let record = text.and_then(|text| Record::from_text(&text).ok());
    Ok(record.and_then(|record| {
        Some(Head { sequence: *record.numbers.get("through")?, hash: record.anchor?.parse().ok()? })
    }))
}

fn insert(connection: &Connection, mut head: Head, records: &[Record]) -> rusqlite::Result<Head> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO records (sequence, at, kind, user, call, record, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for record in records {
        let text = record.text().map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        head = head.next(&text);
        statement.execute(params![
            stored(head.sequence),
            stored(record.at),
            record.kind.name(),
            record.user.as_deref(),
            record.call.as_deref(),
            text,
            head.hash.as_bytes(),
        ])?;
    }
    Ok(head)
}

/// The oldest records after number `begins`, as long as they are older than `before`: number, kind, hash.
fn expired(connection: &Connection, begins: i64, before: i64) -> rusqlite::Result<Vec<(i64, String, Hash)>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, at, kind, hash FROM records WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
    )?;
    let mut rows = statement.query([begins, SLICE as i64])?;
    let mut expired = Vec::new();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= before {
            break;
        }
        expired.push((row.get(0)?, row.get(2)?, row.get(3)?));
    }
    Ok(expired)
}

/// A number as SQLite has it.
pub(super) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number of SQLite's; a negative one, which nobody has written, is 0.
pub(super) fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

impl rusqlite::types::FromSql for Hash {
    /// What somebody else put there and is no hash becomes one that no record has.
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        Ok(value.as_blob().ok().and_then(Self::from_bytes).unwrap_or(Self::ORIGIN))
    }
}
