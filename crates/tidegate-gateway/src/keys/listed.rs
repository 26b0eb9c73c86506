//! Decides what is shown of keys, which is no secret: the same through a running gateway as where none runs.

use std::sync::Arc;

use serde::Serialize;
use tidegate_core::config::{KeyConfig, KeyPaths};

use super::{MadeKeys, shown};
use crate::shared::unix_now;

/// Every key, without what it is told by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyList {
    /// Whether calls need one.
    pub needed: bool,
    /// The configuration's, then those of the state directory.
    pub keys: Vec<ListedKey>,
}

/// What is shown of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedKey {
    /// Its name.
    pub name: Arc<str>,
    /// `configuration`, where only who writes that can take it away, or `state directory`.
    pub origin: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    max_priority: &'static str,
    default_priority: &'static str,
    may_name_users: bool,
    paths: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    is_expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
}

impl MadeKeys {
    /// Those of the configuration, and these.
    #[must_use]
    pub fn listed(&self, configured: &[KeyConfig]) -> KeyList {
        let keys = self.beside(configured).into_iter().enumerate();
        let keys = keys.map(|(position, key)| self.shown_of(key, position < configured.len())).collect();
        KeyList { needed: !configured.is_empty() || self.are_needed(), keys }
    }

    fn shown_of(&self, key: KeyConfig, is_configured: bool) -> ListedKey {
        let made = self.find(&key.name).filter(|_| !is_configured);
        ListedKey {
            name: key.name,
            origin: if is_configured { "configuration" } else { "state directory" },
            organization: key.organization,
            project: key.project,
            user: key.user,
            max_priority: key.max_priority.name(),
            default_priority: key.default_priority.name(),
            may_name_users: key.may_name_users,
            paths: if key.paths == KeyPaths::All { "all" } else { "inference" },
            expires: key.expires.map(shown),
            is_expired: key.expires.is_some_and(|expires| expires <= unix_now().as_secs()),
            created_by: made.map(|made| made.created_by.clone()),
            created_at: made.map(|made| made.created_at.clone()),
        }
    }
}
