//! Decides what becomes of records of what has happened that could not be written before their process ended: they lie beside the
//! database, and whoever writes the trail next writes them first.
//!
//! A line of JSON each, the text that is then hashed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::record::Record;

/// Where they are for the database at `database`: `audit.db.late` beside `audit.db`.
fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".late");
    name.into()
}

/// Those that were left. `None`: none were.
///
/// # Errors
/// If they cannot be read; `InvalidData` where a line is no record.
pub(super) fn read(database: &Path) -> io::Result<Option<Vec<Record>>> {
    match fs::read_to_string(path_for(database)) {
        Ok(text) => text.lines().map(parsed).collect::<io::Result<_>>().map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parsed(line: &str) -> io::Result<Record> {
    Record::from_text(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Leaves more of them, and says where. They are on disk when it returns, whole or not at all.
///
/// # Errors
/// If they are not.
pub(super) fn leave(database: &Path, records: &[Record]) -> io::Result<PathBuf> {
    let path = path_for(database);
    let mut lines = String::new();
    for record in read(database)?.iter().flatten().chain(records) {
        lines.push_str(&record.text()?);
        lines.push('\n');
    }
    let mut aside = path.clone().into_os_string();
    aside.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&aside)?;
    let written =
        file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&aside, &path));
    // A full disk takes the name and no more than a part of the rest.
    written.inspect_err(|_| drop(fs::remove_file(&aside)))?;
    Ok(path)
}

/// They are in the trail.
///
/// # Errors
/// If the file is still there.
pub(super) fn remove(database: &Path) -> io::Result<()> {
    match fs::remove_file(path_for(database)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
