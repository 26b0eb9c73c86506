//! Decides who may write the trail: one process, from when it first could until it ends, also while the file cannot be written.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::store::StoreError;

/// Two writers would make two chains of one. The system takes it back from a process that died.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "it is held, not looked at")] File);

impl Lock {
    /// For the database at `path`.
    pub(super) fn of(path: &Path) -> Result<Self, StoreError> {
        let lock_path = path_for(path);
        let failed = |source| StoreError::File { path: lock_path.clone(), source };
        let file = private(&lock_path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Whether a process writes the trail at `path` now. False also where that cannot be told.
#[must_use]
pub fn is_being_written(path: &Path) -> bool {
    let file = File::open(path_for(path));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Opens a file, for its owner alone if it has to be made. SQLite gives its other files the permissions of the database.
pub(super) fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
