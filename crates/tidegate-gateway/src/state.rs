//! Decides what survives a restart and where: levels and what was learned, and the admin listener's token, in the state directory.
//!
//! Never stops a call or a start: what cannot be read is set aside, what cannot be written is said and tried again.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::{fs, io};

use tidegate::Driver;
use tidegate::state::write_whole;
use tidegate_core::config::Policy;
use tidegate_core::gate::Gate;

use crate::token;

/// The file in a gateway's state directory with the admin listener's token.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// A token that was made here has so many, hexadecimal ones.
pub(crate) const ADMIN_TOKEN_DIGITS: usize = 64;
/// The file in a gateway's state directory that says where its admin listener is, for programs on the same machine.
pub const ADMIN_ADDRESS_FILE: &str = "admin-address";

/// A core with `policy` and what the run before left in `dir`.
pub(crate) fn restored(policy: Policy, dir: Option<&Path>) -> Gate {
    let mut gate = Gate::new(policy, fastrand::u64(..));
    match dir.map(tidegate::state::load) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(snapshot))) => {
            if !snapshot.is_clean() {
                tracing::warn!(
                    "the process before was cut off: limits by the minute start with what flows in from now on, as what went last \
                     is not known"
                );
            }
            gate.restore(snapshot);
        }
        Some(Err(error)) => tracing::warn!("levels start full: {error}"),
    }
    gate
}

/// Saves again and again, as long as the driver goes.
pub(crate) fn keep_saving(driver: &Driver, dir: &Path) {
    let shown = dir.display().to_string();
    driver.keep_state(dir.to_owned(), move |error| {
        tracing::warn!("levels cannot be saved in {shown}: {error}; trying on");
    });
}

/// Says where the admin listener is reached from this machine.
pub(crate) fn tell_admin_address(dir: Option<&Path>, mut addr: SocketAddr) {
    let Some(path) = dir.map(|dir| dir.join(ADMIN_ADDRESS_FILE)) else { return };
    if addr.ip().is_unspecified() {
        let loopback = if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        addr.set_ip(loopback);
    }
    if let Err(error) = write_whole(&path, addr.to_string().as_bytes()) {
        tracing::warn!("{} cannot be written: {error}; `tidegate admin` will not find this process", path.display());
    }
}

/// Takes away what others may do with a secret's file, and says so.
#[cfg(unix)]
fn keep_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 == 0 {
        return;
    }
    let made_private = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    tracing::warn!(
        "others could read {}: {}; who did can operate this gateway, so remove the file and start again",
        path.display(),
        made_private.map_or_else(|error| error.to_string(), |()| "they no longer can".to_owned())
    );
}

#[cfg(not(unix))]
const fn keep_private(_path: &Path) {}

/// The admin listener's token: that of the state directory, made at the first start for its owner alone.
pub(crate) fn admin_token(dir: Option<&Path>) -> String {
    let Some(path) = dir.map(|dir| dir.join(ADMIN_TOKEN_FILE)) else {
        tracing::info!("no state directory: set TIDEGATE_ADMIN_TOKEN to use the admin listener");
        return made_token();
    };
    match fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => {
            keep_private(&path);
            return token.trim().to_owned();
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{} cannot be read: {error}; a new token takes its place", path.display()),
    }
    let token = made_token();
    if let Err(error) = write_whole(&path, token.as_bytes()) {
        tracing::warn!(
            "{} cannot be written: {error}; set TIDEGATE_ADMIN_TOKEN to use the admin listener",
            path.display()
        );
    }
    token
}

/// Bytes that nobody can guess, as hexadecimal digits.
fn made_token() -> String {
    token::random_digits(ADMIN_TOKEN_DIGITS / 2).unwrap_or_else(|| {
        // No token at all is safer than one that can be guessed: nothing has this hash's text.
        tracing::warn!("the system has no randomness: the admin listener cannot be used without TIDEGATE_ADMIN_TOKEN");
        String::new()
    })
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
            let path = dir.path().join(ADMIN_TOKEN_FILE);
            let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(), 0o600);
            // Somebody copied it here with less care.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            assert_eq!((admin_token(Some(dir.path())), mode()), (made, 0o600));
        }
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_read_does_not_keep_anybody_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("levels.json"), "{").unwrap();
        let driver = Driver::with_gate(restored(Policy::default(), Some(dir.path())));
        assert!(dir.path().join("levels.json.unreadable").exists());
        driver.save_state(dir.path(), true).unwrap();
        assert!(tidegate::state::load(dir.path()).unwrap().is_some());
    }
}
