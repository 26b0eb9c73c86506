//! Decides how the database is laid out, and by what it is known as a trail.

use rusqlite::Connection;

/// "tide": marks the file as ours.
pub(super) const APPLICATION_ID: i32 = 0x7469_6465;
/// The layout below.
pub(super) const LAYOUT: i32 = 1;

/// `record` is the text that is hashed; the other columns repeat of it what is looked for.
/// Frequent kinds are found by time alone: an index that leaves them out costs next to nothing. Calls and users are random, and an index
/// of them that grows beyond memory would be read for each record that is written: it begins with a stretch of 65,536 records, in which
/// all that is written now has its place.
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
    CREATE INDEX by_call ON records (sequence >> 16, call) WHERE call IS NOT NULL;
    CREATE INDEX by_user ON records (sequence >> 16, user, at) WHERE user IS NOT NULL;
    CREATE INDEX by_rare_kind ON records (kind, at) WHERE kind NOT IN ('throttle', 'retry', 'call');
";

/// Makes the layout in an empty database. False: this is no database of ours.
pub(super) fn is_ready(connection: &Connection) -> rusqlite::Result<bool> {
    let marks = marks(connection)?;
    if marks == (APPLICATION_ID, LAYOUT) {
        return Ok(true);
    }
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if marks != (0, 0) || tables > 0 {
        return Ok(false);
    }
    let marked =
        format!("BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LAYOUT}; COMMIT;");
    connection.execute_batch(&marked)?;
    Ok(true)
}

/// The marks that tell a trail from other databases.
pub(super) fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let mark = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((mark("application_id")?, mark("user_version")?))
}
