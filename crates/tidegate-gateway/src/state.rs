//! Decides what survives a restart and where: levels and what was learned, and the admin listener's token, in the state directory.
//!
//! Never stops a call or a start: what cannot be read is set aside, what cannot be written is said and tried again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate::Driver;
use tidegate_core::config::Policy;
use tidegate_core::gate::{Gate, Snapshot};

/// The file with levels and what was learned.
const LEVELS: &str = "levels.json";
/// The file with the admin listener's token.
const ADMIN_TOKEN: &str = "admin-token";
/// Between two savings: what at most a crash makes a day level forget.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// A core with `policy` and what the run before left in `dir`.
pub(crate) fn restored(policy: Policy, dir: Option<&Path>) -> Gate {
    let mut gate = Gate::new(policy, fastrand::u64(..));
    let Some(path) = dir.map(|dir| dir.join(LEVELS)) else { return gate };
    let read = match fs::read(&path) {
        Ok(text) => Snapshot::from_json(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return gate,
        Err(error) => Err(error.to_string()),
    };
    match read {
        Ok(snapshot) => gate.restore(snapshot),
        Err(why) => {
            let aside = path.with_extension("json.unreadable");
            tracing::warn!("levels start full: {}: {why}; it is kept as {}", path.display(), aside.display());
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!("{} cannot be set aside: {error}", path.display());
            }
        }
    }
    gate
}

/// Saves again and again until it is dropped.
pub(crate) async fn keep_saving(driver: Driver, dir: PathBuf) {
    let mut complained = false;
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        match save(&driver, &dir, false).await {
            Ok(()) => complained = false,
            Err(error) if !complained => {
                complained = true;
                tracing::warn!("levels cannot be saved in {}: {error}; trying on", dir.display());
            }
            Err(_) => {}
        }
    }
}

/// Saves how everything stands. `clean`: nothing will happen after it.
pub(crate) async fn save(driver: &Driver, dir: &Path, clean: bool) -> io::Result<()> {
    let snapshot = driver.with(|gate, now| gate.snapshot(clean, now));
    let path = dir.join(LEVELS);
    let written = tokio::task::spawn_blocking(move || {
        let text = snapshot.to_json().map_err(io::Error::other)?;
        let new = path.with_extension("json.new");
        let mut file = private(&new)?;
        file.write_all(&text)?;
        // A crash must leave the one or the other, never half of it.
        file.sync_all()?;
        fs::rename(&new, &path)
    });
    written.await.map_err(io::Error::other)?
}

fn private(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The admin listener's token: that of the state directory, made at the first start for its owner alone.
pub(crate) fn admin_token(dir: Option<&Path>) -> String {
    let Some(path) = dir.map(|dir| dir.join(ADMIN_TOKEN)) else {
        tracing::info!("no state directory: set TIDEGATE_ADMIN_TOKEN to use the admin listener");
        return made_token();
    };
    match fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => return token.trim().to_owned(),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{} cannot be read: {error}; a new token takes its place", path.display()),
    }
    let token = made_token();
    let written = private(&path).and_then(|mut file| file.write_all(token.as_bytes()));
    if let Err(error) = written {
        tracing::warn!(
            "{} cannot be written: {error}; set TIDEGATE_ADMIN_TOKEN to use the admin listener",
            path.display()
        );
    }
    token
}

/// 32 bytes that nobody can guess, as hexadecimal digits.
fn made_token() -> String {
    let mut bytes = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    if random.fill(&mut bytes).is_err() {
        // No token at all is safer than one that can be guessed: nothing has this hash's text.
        tracing::warn!("the system has no randomness: the admin listener cannot be used without TIDEGATE_ADMIN_TOKEN");
        return String::new();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = admin_token(Some(dir.path()));
        assert_eq!(made.len(), 64);
        assert_eq!(admin_token(Some(dir.path())), made);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join(ADMIN_TOKEN)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_set_aside_and_what_was_saved_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LEVELS), "{").unwrap();
        let gate = restored(Policy::default(), Some(dir.path()));
        assert!(dir.path().join("levels.json.unreadable").exists());
        save(&Driver::with_gate(gate), dir.path(), true).await.unwrap();
        let text = fs::read(dir.path().join(LEVELS)).unwrap();
        assert!(Snapshot::from_json(&text).is_ok());
    }
}
