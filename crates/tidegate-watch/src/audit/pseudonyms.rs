//! Decides what stands for a user's name where names are not to be kept: a hash with a salt that no export has.
//!
//! The same name is the same pseudonym for as long as the salt is kept, so that a user's records can still be found; whoever throws
//! the salt away makes them anonymous.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

/// Bytes of a pseudonym's hash: no two users share one by chance.
const BYTES: usize = 16;

/// Makes pseudonyms.
#[derive(Clone)]
pub struct Pseudonyms {
    salt: Vec<u8>,
}

impl std::fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pseudonyms").finish_non_exhaustive()
    }
}

impl Pseudonyms {
    /// Those of the trail at `database`. `None`: it never needed any.
    ///
    /// # Errors
    /// If its salt cannot be read.
    pub fn of(database: &Path) -> io::Result<Option<Self>> {
        match fs::read(path_for(database)) {
            Ok(salt) => Ok(Some(Self { salt })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same; where there is no salt yet one is drawn.
    ///
    /// # Errors
    /// If it can be neither read nor written.
    pub fn of_or_new(database: &Path) -> io::Result<Self> {
        if let Some(found) = Self::of(database)? {
            return Ok(found);
        }
        let salt = drawn().map_err(io::Error::other)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path_for(database))?;
        file.write_all(salt.as_bytes())?;
        file.sync_all()?;
        Ok(Self { salt: salt.into_bytes() })
    }

    /// What stands for `user`: `~` and 32 hexadecimal digits.
    #[must_use]
    pub fn pseudonym(&self, user: &str) -> String {
        let hash = Sha256::new().chain_update(&self.salt).chain_update([0]).chain_update(user).finalize();
        hash.iter().take(BYTES).fold("~".to_owned(), |mut digits, byte| {
            let _ = write!(digits, "{byte:02x}");
            digits
        })
    }
}

fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".salt");
    name.into()
}

/// 32 bytes that nobody can guess, in hexadecimal: SQLite's generator is keyed by the system's.
fn drawn() -> rusqlite::Result<String> {
    Connection::open_in_memory()?.query_row("SELECT lower(hex(randomblob(32)))", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_keeps_a_pseudonym_that_others_cannot_work_out() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let database = dirs[0].path().join("audit.db");
        assert!(Pseudonyms::of(&database).unwrap().is_none());
        let ada = Pseudonyms::of_or_new(&database).unwrap().pseudonym("ada");
        assert!(ada.starts_with('~') && ada.len() == 33, "{ada}");
        assert_eq!(Pseudonyms::of(&database).unwrap().unwrap().pseudonym("ada"), ada);
        assert_ne!(Pseudonyms::of(&database).unwrap().unwrap().pseudonym("bob"), ada);
        let elsewhere = Pseudonyms::of_or_new(&dirs[1].path().join("audit.db")).unwrap();
        assert_ne!(elsewhere.pseudonym("ada"), ada);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(path_for(&database)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
