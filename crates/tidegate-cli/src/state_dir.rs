//! Decides where state is kept, and that one process keeps it: `--state-dir`, `$STATE_DIRECTORY`,
//! `$XDG_STATE_HOME/tidegate`, `~/.local/state/tidegate`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::{self, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_gateway::ADMIN_ADDRESS_FILE;

use crate::outcome::Failure;

/// The file in it that is locked for as long as the process lives.
pub(crate) const LOCK_FILE: &str = "lock";
/// Who has the directory and says of no gateway that it is one, as a `tidegate key` does, soon gives it back: it is waited for so long …
const PATIENCE: Duration = Duration::from_secs(3);
/// … and looked for each time after so long.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A state directory that this process alone has; given back when dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Holds the lock; the system takes it back from a process that died.
    _lock: File,
}

impl StateDir {
    /// Takes the directory, making it if need be. `None`, with a warning, where it cannot be written or, if it was not named
    /// with `--state-dir`, where another process has it.
    ///
    /// # Errors
    /// A directory that was named is another process's: two that write it would spoil each other's levels.
    pub(crate) fn take(named: Option<PathBuf>) -> Result<Option<Self>, Failure> {
        let is_named = named.is_some();
        let Some(path) = named.or_else(usual_place) else {
            tracing::warn!(
                "no state directory: neither HOME nor STATE_DIRECTORY is set; levels will not survive a restart"
            );
            return Ok(None);
        };
        match lock_soon(&path, || thread::sleep(LOOK_EVERY)) {
            Ok(lock) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) if is_named => Err(Failure::Failed(format!(
                "{} is in use by another tidegate; give this one a --state-dir of its own",
                path.display()
            ))),
            Err(TryLockError::WouldBlock) => {
                tracing::warn!(
                    "{} is in use by another tidegate; going on without it: levels will not survive a restart, and there is \
                     no audit trail (--state-dir gives this one its own)",
                    path.display()
                );
                Ok(None)
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!(
                    "cannot write {}: {error}; going on without it: neither levels nor what operators say will survive a \
                     restart",
                    path.display()
                );
                Ok(None)
            }
        }
    }

    /// Where state was to be kept, as an absolute path, of a directory that could not be taken as it cannot be written.
    pub(crate) fn unwritable(named: Option<PathBuf>) -> Option<PathBuf> {
        let path = named.or_else(usual_place).filter(|path| !is_in_use(path))?;
        path::absolute(path).ok()
    }

    /// Takes the directory `path`, making it if need be. `None`: another process has it.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub(crate) fn take_free(path: &Path) -> Result<Option<Self>, Failure> {
        // First: who only waits has nothing to say of the directory.
        if is_in_use(path) {
            return Ok(None);
        }
        match make_private(path).map_err(TryLockError::Error).and_then(|()| lock(path)) {
            Ok(lock) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(Failure::Failed(format!("cannot write {}: {error}; name a --state-dir", path.display())))
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Where it is if nobody says otherwise. `None`: nothing tells.
pub(crate) fn usual_place() -> Option<PathBuf> {
    place_from(|name| env::var_os(name), env::home_dir())
}

fn place_from(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // Source: systemd.exec(5): several directories are separated by colons. XDG: relative paths are to be ignored.
    let systemd = variable("STATE_DIRECTORY").and_then(|list| env::split_paths(&list).next());
    let xdg = variable("XDG_STATE_HOME").map(|base| PathBuf::from(base).join("tidegate"));
    let usable = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
    usable(systemd).or_else(|| usable(xdg)).or_else(|| Some(home?.join(".local/state/tidegate")))
}

/// Whether a process that runs has the directory. Makes nothing.
pub(crate) fn is_in_use(path: &Path) -> bool {
    let opened = OpenOptions::new().write(true).open(path.join(LOCK_FILE));
    opened.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Locks the directory, making it if need be; waits a little for who only has something to do in it.
fn lock_soon(path: &Path, mut pause: impl FnMut()) -> Result<File, TryLockError> {
    make_private(path).map_err(TryLockError::Error)?;
    let started = Instant::now();
    loop {
        match lock(path) {
            Err(TryLockError::WouldBlock)
                if started.elapsed() < PATIENCE && !path.join(ADMIN_ADDRESS_FILE).exists() =>
            {
                pause();
            }
            other => return other,
        }
    }
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    let file = open_private(&path.join(LOCK_FILE)).map_err(TryLockError::Error)?;
    file.try_lock()?;
    // Of a gateway that has ended: nobody is to be sent there while somebody else has the directory.
    let _ = fs::remove_file(path.join(ADMIN_ADDRESS_FILE));
    Ok(file)
}

/// Makes the directory for the owner alone; one that is there keeps its permissions, and a word is said where they are wide.
fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    #[cfg(unix)]
    if let Some(mode) = others_may(path)? {
        tracing::warn!(
            "others may look into the state directory {0} (mode {mode:o}): chmod 700 {0}, unless that is meant",
            path.display()
        );
    }
    Ok(())
}

/// The permissions of a directory that others than its owner may look into. `None`: they may not.
#[cfg(unix)]
fn others_may(path: &Path) -> io::Result<Option<u32>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Option<PathBuf> {
        let found = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into());
        place_from(found, Some(PathBuf::from("/home/me")))
    }

    #[test]
    fn the_service_managers_directory_goes_before_the_users() {
        let both = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("XDG_STATE_HOME", "/x")];
        assert_eq!(place(&both), Some(PathBuf::from("/var/lib/a")));
        assert_eq!(place(&both[1..]), Some(PathBuf::from("/x/tidegate")));
        assert_eq!(place(&[("XDG_STATE_HOME", "relative")]), Some(PathBuf::from("/home/me/.local/state/tidegate")));
    }

    #[test]
    fn one_process_per_directory_and_only_the_owner_may_look() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        let held = StateDir::take(Some(path.clone())).unwrap().unwrap();
        fs::write(path.join(ADMIN_ADDRESS_FILE), "127.0.0.1:8081").unwrap();
        let refused = StateDir::take(Some(path.clone())).unwrap_err();
        assert!(matches!(refused, Failure::Failed(ref message) if message.contains("in use")), "{refused:?}");
        drop(held);
        assert!(StateDir::take(Some(path.clone())).unwrap().is_some());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(others_may(&path).unwrap(), None);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(others_may(&path).unwrap(), Some(0o755));
        }
    }

    #[test]
    fn who_only_has_something_to_do_in_it_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let mut held = StateDir::take(Some(root.path().to_owned())).unwrap();
        let mut pauses = 0;
        let taken = lock_soon(root.path(), || {
            pauses += 1;
            if pauses == 3 {
                held = None;
            }
        });
        assert!(taken.is_ok(), "{taken:?}");
        assert_eq!(pauses, 3);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_done_without() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        assert!(StateDir::take(Some(below.clone())).unwrap().is_none());
        assert_eq!(StateDir::unwritable(Some(below.clone())), Some(below), "its trail is to tell that it fails");
    }
}
