//! Decides which keys there are beside those of the configuration: made and revoked while the gateway runs, or offline.
//!
//! They lie in one file of the state directory, whole at any instant and for its owner alone; a key itself is shown once and never
//! kept. Where that file is there, calls need a key, even if it has none left: to revoke the last one must not let everybody in.

mod fields;
mod listed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidegate::state::write_whole;
use tidegate_core::config::KeyConfig;

use self::fields::key_paths;
pub use self::fields::{KEY_PATHS, key_expires, key_name, key_priorities, key_text};
pub(crate) use self::fields::{quoted, shortened};
pub use self::listed::{KeyList, ListedKey};
use crate::refusal::unknown_name;
use crate::shared::unix_now;
use crate::token;

/// The file's name in the state directory.
const NAME: &str = "keys.json";
const FORMAT: u32 = 1;
/// Keys that may be made: each call is compared with each.
const KEYS_MAX: usize = 1000;
/// Letters and digits after `tg-`: 256 random bits.
const SECRET_BYTES: usize = 32;

/// Why a key cannot be made, found or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// What was asked for is no key.
    #[error("{0}")]
    Wrong(String),
    /// It would be refused from the start.
    #[error("expires is over already")]
    Expired,
    /// There is one of that name.
    #[error("there is a key \"{0}\" already; revoke it first, or choose another name")]
    Taken(String),
    /// It is the configuration's.
    #[error("there is a key \"{0}\" already, a [[key]] of the configuration; choose another name")]
    TakenByConfiguration(String),
    /// There is none of that name.
    #[error("{}", unknown_name("key", name, known.iter().map(String::as_str)))]
    Unknown {
        /// That name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Who writes the configuration alone can take it away.
    #[error("key \"{0}\" is a [[key]] of the configuration: take it out there, then reload")]
    Configured(String),
    /// The file cannot be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What a key is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its name in limits, logs and metrics: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// As `organization` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// As `project` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// As `user` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As `max_priority` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_priority: Option<String>,
    /// As `default_priority` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_priority: Option<String>,
    /// As `may_name_users` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_name_users: Option<bool>,
    /// As `paths` of `[[key]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// A date or an instant: refused from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Why it is made; for the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A key that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeKey {
    /// 64 hexadecimal digits.
    sha256: String,
    /// Who made it.
    pub created_by: Arc<str>,
    /// RFC 3339.
    pub created_at: String,
    /// What it is.
    pub key: NewKey,
}

/// The keys of a state directory that were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeKeys {
    keys: Vec<MadeKey>,
    /// Whether there is a file of them.
    is_kept: bool,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    keys: Vec<MadeKey>,
}

impl MadeKeys {
    /// Those of `dir`; none where there is no file.
    ///
    /// # Errors
    /// It cannot be read, or is none: nobody can tell then who may call.
    pub fn load(dir: &Path) -> Result<Self, KeyFault> {
        let path = dir.join(NAME);
        let wrong = |why: String| KeyFault::File { path: path.clone(), why };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if kept.format != FORMAT {
            return Err(wrong(format!("format {} is not known to this version", kept.format)));
        }
        for made in &kept.keys {
            made.config().map_err(|error| wrong(format!("key \"{}\": {error}", made.key.name)))?;
        }
        Ok(Self { keys: kept.keys, is_kept: true })
    }

    /// Puts them into `dir`.
    ///
    /// # Errors
    /// It cannot be written; what was there is still there.
    pub fn save(&mut self, dir: &Path) -> Result<(), KeyFault> {
        let path = dir.join(NAME);
        let kept = serde_json::to_vec(&Kept { format: FORMAT, keys: self.keys.clone() });
        let written = kept.map_err(std::io::Error::other).and_then(|text| write_whole(&path, &text));
        written.map_err(|error| KeyFault::File { path, why: error.to_string() })?;
        self.is_kept = true;
        Ok(())
    }

    /// Makes a key, beside those of the configuration, and says it: it is not kept.
    ///
    /// # Errors
    /// It is none, or there is one of that name.
    pub fn make(&mut self, mut key: NewKey, by: Arc<str>, configured: &[KeyConfig]) -> Result<String, KeyFault> {
        key.reason = None;
        if configured.iter().any(|other| *other.name == *key.name) {
            return Err(KeyFault::TakenByConfiguration(key.name));
        }
        if self.find(&key.name).is_some() {
            return Err(KeyFault::Taken(key.name));
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyFault::Wrong(format!("there are {KEYS_MAX} keys already; revoke some")));
        }
        let Some(random) = token::random_digits(SECRET_BYTES) else {
            return Err(KeyFault::Wrong("the system has no randomness to make a key of".to_owned()));
        };
        let secret = format!("tg-{random}");
        let sha256 = token::secret_digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let created_at = humantime::format_rfc3339_seconds(UNIX_EPOCH + unix_now()).to_string();
        let made = MadeKey { sha256, created_by: by, created_at, key };
        let config = made.config().map_err(KeyFault::Wrong)?;
        let MadeKey { key: NewKey { organization, project, user, .. }, .. } = &made;
        for (what, given) in [("organization", organization), ("project", project), ("user", user)] {
            if let Some(Err(allowed)) = given.as_deref().map(key_text) {
                return Err(KeyFault::Wrong(format!("{what} must be {allowed}, or left out")));
            }
        }
        if config.expires.is_some_and(|expires| expires <= unix_now().as_secs()) {
            return Err(KeyFault::Expired);
        }
        self.keys.push(made);
        Ok(secret)
    }

    /// Takes a key away.
    ///
    /// # Errors
    /// There is none of that name, or it is one of the configuration.
    pub fn revoke(&mut self, name: &str, configured: &[KeyConfig]) -> Result<(), KeyFault> {
        if configured.iter().any(|key| &*key.name == name) {
            return Err(KeyFault::Configured(name.to_owned()));
        }
        let before = self.keys.len();
        self.keys.retain(|made| made.key.name != name);
        if self.keys.len() == before {
            let known = self.keys.iter().map(|made| made.key.name.clone()).collect();
            return Err(KeyFault::Unknown { name: name.to_owned(), known });
        }
        Ok(())
    }

    /// The key of that name.
    fn find(&self, name: &str) -> Option<&MadeKey> {
        self.keys.iter().find(|made| made.key.name == name)
    }

    /// Whether calls need a key because of them.
    pub(crate) fn are_needed(&self) -> bool {
        self.is_kept || !self.keys.is_empty()
    }

    /// Those of the configuration, and these; where both have a name, the configuration's.
    pub(crate) fn beside(&self, configured: &[KeyConfig]) -> Vec<KeyConfig> {
        let is_free = |name: &str| !configured.iter().any(|key| &*key.name == name);
        let made = self.keys.iter().filter(|made| is_free(&made.key.name)).filter_map(|made| made.config().ok());
        configured.iter().cloned().chain(made).collect()
    }
}

impl MadeKey {
    /// As `[[key]]` has it.
    pub(crate) fn config(&self) -> Result<KeyConfig, String> {
        let key = &self.key;
        let must_be =
            |what: &str, written: &str, allowed: String| format!("{what} must be {allowed}, not {}", quoted(written));
        let text = |what: &str, value: &Option<String>| {
            // Earlier versions kept what is empty, as if nothing were given.
            let value = value.as_deref().filter(|value| !value.trim().is_empty());
            let read = |value: &str| key_text(value).map(Arc::from).map_err(|allowed| must_be(what, value, allowed));
            value.map(read).transpose()
        };
        let (max_priority, default_priority) =
            key_priorities(key.max_priority.as_deref(), key.default_priority.as_deref())?;
        let expires = |written: &str| key_expires(written).map_err(|allowed| must_be("expires", written, allowed));
        Ok(KeyConfig {
            name: key_name(&key.name).map_err(|allowed| must_be("name", &key.name, allowed))?.into(),
            sha256: token::from_hex(&self.sha256).ok_or("sha256 is no hash")?,
            organization: text("organization", &key.organization)?,
            user: text("user", &key.user)?,
            project: text("project", &key.project)?,
            max_priority,
            default_priority,
            may_name_users: key.may_name_users.unwrap_or(KeyConfig::default().may_name_users),
            paths: key_paths(key.paths.as_deref())?,
            expires: key.expires.as_deref().map(expires).transpose()?,
        })
    }
}

/// A time in seconds since 1970, as people write it.
pub(crate) fn shown(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
