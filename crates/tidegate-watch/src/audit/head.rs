//! Decides where both ends of the chain are kept: in a file of their own, so that a database that was cut short contradicts it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::Head;

/// What the file beside the database vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vouched {
    /// The end of the chain.
    #[serde(flatten)]
    pub(super) head: Head,
    /// The last record that may have been removed because it had had its time. `None`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) anchor: Option<Head>,
}

impl Vouched {
    /// Whether records up to `anchor`, where the database says that its chain begins, had had their time.
    pub(super) fn allows(&self, anchor: Head) -> bool {
        anchor.sequence <= self.anchor.map_or(0, |own| own.sequence)
    }
}

/// Where the head of the database at `database` is: `audit.db.head` beside `audit.db`.
pub(super) fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

/// What was written last. `None`: nothing.
///
/// # Errors
/// If it cannot be read; `InvalidData` where it is not what is written here.
pub(super) fn read(path: &Path) -> io::Result<Option<Vouched>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            // Of one that was cut off serde says that more was expected.
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes it so that a crash at any instant leaves the old one or the new one, whole.
///
/// # Errors
/// If it cannot be written; the old one is still there.
pub(super) fn write(path: &Path, vouched: Vouched) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut text = serde_json::to_vec(&vouched)?;
    text.push(b'\n');
    let mut file = options.open(&aside)?;
    let written = file.write_all(&text).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&aside, path));
    // A full disk takes the name and nothing else.
    written.inspect_err(|_| drop(fs::remove_file(&aside)))
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
        for anchor in [None, Some(head)] {
            let vouched = Vouched { head, anchor };
            write(&path, vouched).unwrap();
            assert_eq!(read(&path).unwrap(), Some(vouched));
        }
        for cut_off in ["", "{", "12:abc"] {
            fs::write(&path, cut_off).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{cut_off}");
        }
    }
}
