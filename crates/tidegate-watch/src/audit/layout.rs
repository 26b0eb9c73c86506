//! Decides how the database is laid out, by what it is known as a trail, and whether what is looked for in it would be found.
//!
//! Who looks for a call goes by an index: one that leaves some out, or a view in the table's place, hides records from him though each of
//! them is there.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row};

use super::fault::Fault;

/// "tide": marks the file as ours.
pub(super) const APPLICATION_ID: i32 = 0x7469_6465;
/// The layout below.
pub(super) const LAYOUT: i32 = 1;

/// `record` is the text that is hashed; the other columns repeat of it what is looked for.
/// Frequent kinds are found by time alone: an index that leaves them out costs next to nothing. Calls and users are random, and an index
/// of them that grows beyond memory would be read for each record that is written, and each commit would write nearly a page of it for
/// each record: it begins with a stretch of 4,096 records, some forty pages, in which all that is written now has its place.
const SCHEMA: &str = "
    CREATE TABLE records (
        sequence INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        user TEXT,
        call TEXT,
        record TEXT NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE INDEX by_time ON records (at);
    CREATE INDEX by_call ON records (sequence >> 12, call) WHERE call IS NOT NULL;
    CREATE INDEX by_user ON records (sequence >> 12, user, at) WHERE user IS NOT NULL;
    CREATE INDEX by_rare_kind ON records (kind, at) WHERE kind NOT IN ('throttle', 'retry', 'call');
";

/// What versions before the first release made of the same name. It hides nothing, and is made anew by the next who writes.
const FORMER: [(&str, &str); 4] = [
    ("by_call", "CREATE INDEX by_call ON records (call) WHERE call IS NOT NULL"),
    ("by_user", "CREATE INDEX by_user ON records (user, at) WHERE user IS NOT NULL"),
    ("by_call", "CREATE INDEX by_call ON records (sequence >> 16, call) WHERE call IS NOT NULL"),
    ("by_user", "CREATE INDEX by_user ON records (sequence >> 16, user, at) WHERE user IS NOT NULL"),
];
/// No more is told of what does not agree within the database.
const DISAGREEMENTS_MAX: u32 = 20;

/// Makes the layout in an empty database, and former indexes anew. False: this is no database of ours.
pub(super) fn is_ready(connection: &Connection) -> rusqlite::Result<bool> {
    let marks = marks(connection)?;
    if marks == (APPLICATION_ID, LAYOUT) {
        renew(connection)?;
        return Ok(true);
    }
    if marks != (0, 0) || !is_empty(connection)? {
        return Ok(false);
    }
    let marked =
        format!("BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; COMMIT;");
    connection.execute_batch(&marked)?;
    Ok(true)
}

/// Whether nothing was made in it yet.
pub(super) fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

/// Whether calls and users are found by stretches.
pub(super) fn has_stretches(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(!things(connection)?.iter().any(Thing::is_former))
}

/// Takes as long as reading all records does, once.
fn renew(connection: &Connection) -> rusqlite::Result<()> {
    let former: Vec<_> = things(connection)?.into_iter().filter(Thing::is_former).collect();
    if former.is_empty() {
        return Ok(());
    }
    let made = Connection::open_in_memory()?;
    made.execute_batch(SCHEMA)?;
    let made = things(&made)?;
    let statements: String = former
        .iter()
        .filter_map(|old| made.iter().find(|new| new.name == old.name))
        .map(|new| format!("DROP INDEX {}; {};", new.name, new.made_by))
        .collect();
    tracing::info!("the audit trail's indexes are of an earlier layout, and made anew");
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {statements} COMMIT;"))
}

/// The marks that tell a trail from other databases.
pub(super) fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let mark = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((mark("application_id")?, mark("user_version")?))
}

/// What there is beside the layout, or is another than it says.
pub(super) fn changes(connection: &Connection) -> rusqlite::Result<Vec<Fault>> {
    let made = Connection::open_in_memory()?;
    made.execute_batch(SCHEMA)?;
    let mut missing = things(&made)?;
    let mut faults = Vec::new();
    for thing in things(connection)? {
        let what = thing.shown();
        match missing.iter().position(|made| (&made.kind, &made.name) == (&thing.kind, &thing.name)) {
            Some(place) if missing.remove(place).is_made_as(&thing) => {}
            Some(_) => faults.push(Fault::LayoutChanged { what }),
            None => faults.push(Fault::LayoutAdded { what }),
        }
    }
    faults.extend(missing.into_iter().map(|thing| Fault::LayoutMissing { what: thing.shown() }));
    Ok(faults)
}

/// Where the indexes do not agree with the table, or pages with one another. Reads the whole database.
pub(super) fn disagreements(connection: &Connection) -> rusqlite::Result<Vec<Fault>> {
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({DISAGREEMENTS_MAX})"))?;
    let read = check.query_map([], |row| text(row, 0)).and_then(Iterator::collect);
    let told: Vec<String> = match read {
        Err(error) if is_damage(&error) => vec![error.to_string()],
        told => told?,
    };
    let lines = told.iter().flat_map(|text| text.lines()).filter(|line| *line != "ok" && !line.starts_with("*** "));
    Ok(lines.map(disagreement).collect())
}

/// What SQLite says of it.
pub(super) fn disagreement(said: &str) -> Fault {
    // There may be names in it that somebody else chose.
    Fault::Disagreement { found: said.replace(|c: char| !c.is_ascii_graphic() && c != ' ', "?") }
}

/// Whether it says that the file is not what SQLite has written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Something in the database that has a name.
struct Thing {
    kind: String,
    name: String,
    table: String,
    made_by: String,
}

impl Thing {
    /// For people: nothing in a name that somebody chose acts on a terminal.
    fn shown(&self) -> String {
        format!("{} {:?}", self.kind.replace(|c: char| !c.is_ascii_lowercase(), "?"), self.name)
    }

    fn is_made_as(&self, other: &Self) -> bool {
        self.table == other.table && (self.made_by == other.made_by || other.is_former())
    }

    fn is_former(&self) -> bool {
        FORMER.contains(&(self.name.as_str(), self.made_by.as_str()))
    }
}

fn things(connection: &Connection) -> rusqlite::Result<Vec<Thing>> {
    let mut statement = connection.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid")?;
    let thing = |row: &Row<'_>| {
        // However the source is indented.
        let made_by = text(row, 3)?.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Thing { kind: text(row, 0)?, name: text(row, 1)?, table: text(row, 2)?, made_by })
    };
    statement.query_map([], thing)?.collect()
}

/// A text that somebody else may have written: whatever it is, it can be compared with one that was written here.
pub(super) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Null => String::new(),
        other => format!("{other:?}"),
    })
}
