//! Decides whether the trail is what was written: which records were edited, removed, put elsewhere, cut off, or hidden from who looks
//! for them.
//!
//! Who can write both the database and the head beside it can write another chain that holds together. An end of the chain that was
//! noted elsewhere ([`Verified::end`]) tells the one from the other.

use std::path::Path;
use std::{fs, io};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row, ffi};

use super::chain::{Hash, Head};
use super::fault::Fault;
use super::head::{self, Vouched};
use super::late;
use super::layout::{self, APPLICATION_ID, LAYOUT, marks};
use super::read::{PAGE, connect};
use super::record::{Kind, Record};
use super::reserve;
use super::store::{StoreError, anchor, hash_at, number, stored};

/// No more faults are told one by one.
const FAULTS_MAX: usize = 1000;
/// So many records that do not fit are compared with one another.
const STRETCH_MAX: usize = 200;

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
    /// How many records that could not be written lie beside the database, for whoever writes it next.
    pub left: u64,
    /// How many are lost of which the trail does not tell yet, as those say.
    pub left_lost: u64,
    /// What is wrong: with the database as a whole, then in the order of the records; what concerns the end last. The first thousand.
    pub faults: Vec<Fault>,
    /// How many faults there are.
    pub fault_count: u64,
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

/// What the file beside the database says.
#[derive(Clone, Copy)]
enum Told {
    Head(Vouched),
    Absent,
    Unreadable,
}

impl Told {
    const fn anchor(&self) -> Option<Head> {
        match self {
            Self::Head(Vouched { anchor, .. }) => *anchor,
            _ => None,
        }
    }
}

/// A record as it lies in the database.
struct Stored {
    sequence: u64,
    text: String,
    hash: Hash,
    /// `None`: its text is not what is written here, or is filed under something else.
    record: Option<Record>,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let text = layout::text(row, 1)?;
        let (at, kind) = (row.get_ref(3)?.as_i64().ok(), layout::text(row, 4)?);
        let label = |column| {
            Ok::<_, rusqlite::Error>(match row.get_ref(column)? {
                ValueRef::Null => None,
                _ => Some(layout::text(row, column)?),
            })
        };
        let (user, call) = (label(5)?, label(6)?);
        let is_filed_so = |record: &Record| {
            (Some(stored(record.at)), record.kind.name()) == (at, kind.as_str())
                && (record.user.as_deref(), record.call.as_deref()) == (user.as_deref(), call.as_deref())
        };
        let record = Record::from_text(&text).ok().filter(is_filed_so);
        Ok(Self { sequence: number(row.get(0)?), text, hash: row.get(2)?, record })
    }

    fn follows(&self, before: Hash) -> bool {
        self.hash == before.after(&self.text)
    }
}

/// Goes from record to record.
struct Walk {
    found: Verified,
    /// The last record that was looked at.
    sequence: u64,
    /// Its hash; `None` where it cannot be told, after missing records.
    hash: Option<Hash>,
    /// Records that do not follow from what stands before them, until one does again; what stands before the first of them.
    stretch: Vec<Stored>,
    before_stretch: Hash,
}

impl Walk {
    fn new(anchor: Head) -> Self {
        let found = Verified {
            records: 0,
            first: 0,
            end: anchor,
            uncovered: 0,
            lost: 0,
            left: 0,
            left_lost: 0,
            faults: Vec::new(),
            fault_count: 0,
        };
        let (sequence, hash) = (anchor.sequence, Some(anchor.hash));
        Self { found, sequence, hash, stretch: Vec::new(), before_stretch: anchor.hash }
    }

    fn fault(&mut self, fault: Fault) {
        self.found.fault_count += 1;
        if self.found.faults.len() < FAULTS_MAX {
            self.found.faults.push(fault);
        }
    }

    fn step(&mut self, row: Stored) {
        if self.found.records == 0 {
            self.found.first = row.sequence;
        }
        self.found.records += 1;
        match &row.record {
            Some(record) if record.kind == Kind::Gap => {
                self.found.lost += record.numbers.get("lost").copied().unwrap_or(0);
            }
            Some(_) => {}
            None => self.fault(Fault::Relabelled { sequence: row.sequence }),
        }
        if row.sequence != self.sequence + 1 {
            self.judge();
            self.fault(Fault::Missing { first: self.sequence + 1, last: row.sequence - 1 });
            self.hash = None;
        }
        self.sequence = row.sequence;
        let follows = match (self.hash, self.stretch.last()) {
            (None, _) => true,
            (Some(before), None) => row.follows(before),
            // Also where only the hash that stands beside the one before was changed.
            (Some(before), Some(last)) => row.follows(before) || row.follows(self.before_stretch.after(&last.text)),
        };
        let hash = row.hash;
        if follows {
            self.judge();
        } else {
            if self.stretch.is_empty() {
                self.before_stretch = self.hash.unwrap_or(Hash::ORIGIN);
            }
            self.stretch.push(row);
        }
        self.hash = Some(hash);
        if self.stretch.len() == STRETCH_MAX {
            self.judge();
        }
    }

    /// Tells of records that did not follow from what stands before them: from what else they follow, if from anything.
    fn judge(&mut self) {
        let stretch = std::mem::take(&mut self.stretch);
        let Some(first) = stretch.first() else { return };
        let before = (first.sequence - 1, self.before_stretch);
        let places: Vec<(u64, Hash)> =
            std::iter::once(before).chain(stretch.iter().map(|row| (row.sequence, row.hash))).collect();
        for row in &stretch {
            let sequence = row.sequence;
            self.fault(match places.iter().find(|(_, hash)| row.follows(*hash)) {
                Some(&(after, _)) => Fault::Misplaced { sequence, after },
                None => Fault::Altered { sequence },
            });
        }
    }

    /// `unread`: why there is no reading on from here.
    fn end(mut self, told: Told, is_elsewhere: bool, unread: Option<String>) -> Verified {
        let is_readable = unread.is_none();
        if let Some(why) = unread {
            let last = match told {
                Told::Head(Vouched { head, .. }) => Some(head.sequence).filter(|last| *last > self.sequence),
                _ => None,
            };
            self.fault(Fault::Unreadable { first: self.sequence + 1, last, why });
        }
        match told {
            Told::Head(Vouched { head, .. }) if !is_readable && head.sequence > self.sequence => {}
            Told::Head(Vouched { head, .. }) if head.sequence > self.sequence => {
                self.fault(Fault::Missing { first: self.sequence + 1, last: head.sequence });
            }
            Told::Head(Vouched { head, .. }) if is_elsewhere => {
                self.fault(Fault::HeadElsewhere { sequence: head.sequence })
            }
            Told::Head(Vouched { head, .. }) => self.found.uncovered = self.sequence.saturating_sub(head.sequence),
            Told::Absent if self.sequence == 0 => {}
            Told::Absent => self.fault(Fault::HeadAbsent),
            Told::Unreadable => self.fault(Fault::HeadUnreadable),
        }
        self.found.end = Head { sequence: self.sequence, hash: self.hash.unwrap_or(Hash::ORIGIN) };
        self.found
    }
}
