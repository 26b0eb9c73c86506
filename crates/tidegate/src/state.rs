//! Keeps what must survive a restart in one file: written aside, synced, then renamed over the old one.
//!
//! Decides nothing of what is kept (`Gate::snapshot` does). A state that cannot be read is set aside and told of, never
//! silently dropped, and never keeps a process from starting.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_core::gate::{Snapshot, SnapshotError};

use crate::driver::Driver;

/// The file's name in the state directory.
const NAME: &str = "levels.json";
/// How often the state is saved while calls come.
pub const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Why the saved state could not be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what this version writes. It has been set aside under the name given.
    #[error("{reason}; it has been set aside as {}", aside.display())]
    Unusable {
        /// What is wrong with it.
        reason: SnapshotError,
        /// Where it is now.
        aside: PathBuf,
    },
}

/// The state that an earlier run left in `folder`. `None`: there is none.
///
/// # Errors
/// If there is one that cannot be used; going on without it is the caller's choice.
pub fn load(folder: &Path) -> Result<Option<Snapshot>, StateError> {
    let path = folder.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::File { path, source }),
    };
    Snapshot::from_json(&text).map(Some).map_err(|reason| {
        let aside = folder.join(format!("{NAME}.unreadable"));
        match fs::rename(&path, &aside) {
            Ok(()) => StateError::Unusable { reason, aside },
            Err(source) => StateError::File { path, source },
        }
    })
}

/// Writes the state into `folder` so that a crash at any instant leaves the old one or the new one, whole.
///
/// # Errors
/// If it cannot be written; what was there before is still there.
pub fn save(folder: &Path, snapshot: &Snapshot) -> Result<(), StateError> {
    let path = folder.join(NAME);
    let written = snapshot.to_json().map_err(io::Error::other).and_then(|text| write_whole(&path, &text));
    written.map_err(|source| StateError::File { path, source })
}

/// Writes `text` into the file `path`, for its owner alone, so that a crash at any instant leaves the old one or the new one, whole, and
/// the new one once this returns.
///
/// # Errors
/// If it cannot be written; what was there before is still there.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&aside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_name(path)
}

/// A new name is on disk once its directory is.
#[cfg(unix)]
fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all() {
        // Some file systems know no such thing; there the name is as safe as it gets.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(not(unix))]
const fn sync_name(_path: &Path) -> io::Result<()> {
    Ok(())
}

impl Driver {
    /// Saves the state into `folder`. `clean`: no call will be admitted after it, and nothing is saved after it.
    ///
    /// # Errors
    /// If it cannot be written; what was there before is still there.
    pub fn save_state(&self, folder: &Path, clean: bool) -> Result<(), StateError> {
        // One at a time, so that a save which was under way cannot overwrite the last one.
        let mut closed = self.state_closed();
        if *closed {
            return Ok(());
        }
        *closed = clean;
        save(folder, &self.with(|gate, now| gate.snapshot(clean, now)))
    }

    /// Saves the state every second while there are calls, until the driver is dropped or has saved a clean one. `failed` is
    /// told of the first of a row of failures; saving goes on. So it does where `failed` panics, which subscribers are told.
    pub fn keep_state(&self, folder: PathBuf, failed: impl Fn(&StateError) + Send + 'static) {
        let driver = self.downgrade();
        tokio::spawn(async move {
            let mut saved_calls = None;
            let mut failing = false;
            loop {
                tokio::time::sleep(SAVE_EVERY).await;
                let Some(driver) = driver.upgrade() else { return };
                let calls = driver.with(|gate, _| (gate.calls_seen(), gate.in_flight()));
                if saved_calls == Some(calls) {
                    continue;
                }
                let (folder, saving) = (folder.clone(), driver.clone());
                // Syncing a file takes milliseconds: not on a thread that serves calls.
                match tokio::task::spawn_blocking(move || saving.save_state(&folder, false)).await {
                    Ok(Ok(())) => {
                        saved_calls = Some(calls);
                        failing = false;
                    }
                    Ok(Err(error)) if !failing => {
                        driver.contained("keep_state", || failed(&error));
                        failing = true;
                    }
                    Ok(Err(_)) => {}
                    // The runtime is shutting down.
                    Err(_) => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_cannot_be_read_is_set_aside_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), b"not a state").unwrap();
        assert!(matches!(load(folder.path()), Err(StateError::Unusable { .. })));
        assert!(matches!(load(folder.path()), Ok(None)), "the next start is a fresh one");
        assert_eq!(fs::read(folder.path().join("levels.json.unreadable")).unwrap(), b"not a state");
    }

    #[test]
    fn a_file_is_written_whole_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.json");
        for text in ["a longer one", "short"] {
            write_whole(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "what was written aside took its place");
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = tidegate_core::gate::Gate::new(Default::default(), 1).snapshot(true, Default::default());
        let error = save(&folder.path().join("missing"), &snapshot).unwrap_err().to_string();
        assert!(error.contains("levels.json"), "{error}");
    }
}
