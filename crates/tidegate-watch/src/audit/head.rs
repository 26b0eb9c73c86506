//! Decides where the end of the chain is kept: in a file of its own, so that a database that was cut short contradicts it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::chain::Head;

/// Where the head of the database at `database` is: `audit.db.head` beside `audit.db`.
pub(super) fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

/// The head that was written last. `None`: there is none.
///
/// # Errors
/// If it cannot be read; `InvalidData` where it is not what is written here.
pub(super) fn read(path: &Path) -> io::Result<Option<Head>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the head so that a crash at any instant leaves the old one or the new one, whole.
///
/// # Errors
/// If it cannot be written; the old one is still there.
pub(super) fn write(path: &Path, head: Head) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&aside)?;
    let mut text = serde_json::to_vec(&head)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_data()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(&dir.path().join("audit.db"));
        assert_eq!(read(&path).unwrap(), None);
        let head = Head::ORIGIN.next("{}");
        write(&path, head).unwrap();
        assert_eq!(read(&path).unwrap(), Some(head));
        fs::write(&path, "{").unwrap();
        assert!(read(&path).is_err());
    }
}
