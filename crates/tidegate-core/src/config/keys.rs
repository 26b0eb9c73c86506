//! Decides what `[[key]]` and `[[admin]]` say: who may call, as whom, and who may operate.
//!
//! Holds hashes only; a key itself is never written down.

use std::sync::Arc;

use crate::call::Priority;

/// Which paths a key may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KeyPaths {
    /// Calls of models and the list of models: nothing in which one team could see another's data.
    #[default]
    Inference,
    /// Everything, files and batches too.
    All,
}

/// `[[key]]`: a caller's key, as `tidegate key new` prints it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyConfig {
    /// Its name in limits, logs and metrics; unique.
    pub name: Arc<str>,
    /// SHA-256 of the key, `tg-` included; unique.
    pub sha256: [u8; 32],
    /// Organization of its calls; also the tenant.
    pub organization: Option<Arc<str>>,
    /// User of its calls, where the call names none or may not.
    pub user: Option<Arc<str>>,
    /// Project of its calls.
    pub project: Option<Arc<str>>,
    /// Highest priority a call may ask for.
    pub max_priority: Priority,
    /// Priority of a call that asks for none; never above `max_priority`.
    pub default_priority: Priority,
    /// Whether calls may name the user whom they count for; else the name is forwarded but not used.
    pub may_name_users: bool,
    /// Which paths it may use.
    pub paths: KeyPaths,
    /// Refused from then on, in seconds since 1970 (a date means its first moment, UTC). `None`: never.
    pub expires: Option<u64>,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self {
            name: Arc::from(""),
            sha256: [0; 32],
            organization: None,
            user: None,
            project: None,
            max_priority: Priority::High,
            default_priority: Priority::Normal,
            may_name_users: true,
            paths: KeyPaths::Inference,
            expires: None,
        }
    }
}

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum AdminRole {
    /// Look.
    #[default]
    Viewer,
    /// Look and change.
    Operator,
}

impl AdminRole {
    /// The word in `role = …`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// `[[admin]]`: a token of the admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Who; appears in the audit trail. Unique.
    pub name: Arc<str>,
    /// SHA-256 of the token; unique.
    pub sha256: [u8; 32],
    /// What it allows.
    pub role: AdminRole,
}
