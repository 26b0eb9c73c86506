//! Decides what a call is to the core: who wants what, how dearly, and until when.

use std::sync::Arc;

use crate::cost::Cost;
use crate::time::Time;

/// Which kind of work a call is; one level each where a limit's `per` has `request_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum RequestType {
    /// Chat completions and responses.
    #[default]
    Chat,
    /// Legacy completions.
    Completion,
    /// Embeddings.
    Embedding,
    /// Image generation, edits, variations.
    Image,
    /// Everything else.
    Other,
}

impl RequestType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Completion, Self::Embedding, Self::Image, Self::Other];

    /// The word used in keys, configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::Image => "image",
            Self::Other => "other",
        }
    }
}

/// How urgent a call is; a class of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Priority {
    /// Bulk work.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Somebody is waiting.
    High,
}

impl Priority {
    /// All three, lowest first, in the order of their index.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// Position in [`Priority::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word used in headers, configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// The priority that `word` names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.name() == word)
    }
}

/// On whose behalf a call is made and at what it is aimed: everything that a limit may be `per`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// `upstream#fingerprint`: the upstream's name and a hash of the credential, organization and project sent there.
    pub account: Arc<str>,
    /// The model's group, not the name in the request; empty for calls without a model.
    pub model: Arc<str>,
    /// Name of the tidegate key, where keys are configured.
    pub key: Option<Arc<str>>,
    /// Organization.
    pub organization: Option<Arc<str>>,
    /// Project.
    pub project: Option<Arc<str>>,
    /// End user.
    pub user: Option<Arc<str>>,
    /// Kind of work.
    pub request_type: RequestType,
    /// Whom the queue is fair between: the key's organization, else the key, else the hashed credential, else `anonymous`.
    pub tenant: Arc<str>,
}

impl Subject {
    /// True if both are made of the very same strings, not only of equal ones.
    pub(crate) fn is_made_of(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<str>>, two: &Option<Arc<str>>| match (one, two) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&self.account, &other.account)
            && Arc::ptr_eq(&self.model, &other.model)
            && Arc::ptr_eq(&self.tenant, &other.tenant)
            && self.request_type == other.request_type
            && same(&self.user, &other.user)
            && same(&self.organization, &other.organization)
            && same(&self.key, &other.key)
            && same(&self.project, &other.project)
    }

    /// A place below `places` that subjects made of the same strings share.
    pub(crate) fn place(&self, places: usize) -> usize {
        let of = |name: &Arc<str>| name.as_ptr().addr() >> 4;
        let user = self.user.as_ref().map_or(0, of);
        (user ^ (user >> 7) ^ of(&self.model) ^ of(&self.tenant)) % places
    }
    /// The upstream's name, without the credential's fingerprint.
    #[must_use]
    pub fn upstream(&self) -> &str {
        self.account.split('#').next().unwrap_or("")
    }
}

/// What to do when the circuit breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenOpen {
    /// Refuse at once (interactive callers).
    #[default]
    Refuse,
    /// Wait for it to close, up to the deadline (bulk work).
    Wait,
}

/// One thing that one caller wants done, whatever number of attempts it takes.
#[derive(Clone, Debug)]
pub struct Call {
    /// `x-tidegate-id`: appears in events and explanations.
    pub id: Arc<str>,
    /// Whose, and aimed at what.
    pub subject: Subject,
    /// What it asks for.
    pub cost: Cost,
    /// How urgent.
    pub priority: Priority,
    /// No attempt starts after this (queueing and back-off together).
    pub start_by: Time,
    /// No retry is begun that could not end before this (`total_timeout`, `x-tidegate-timeout`). `Time::NEVER`: none.
    pub end_by: Time,
    /// What an open breaker means to it.
    pub when_open: WhenOpen,
    /// Bytes held in memory while it waits; counted against `queue.max_bytes`.
    pub body_bytes: u64,
    /// It goes on here after an attempt elsewhere (another upstream) that own limits were charged a request for: they charge
    /// a call once, and it is one call to the retry budget.
    pub own_charged: bool,
}
