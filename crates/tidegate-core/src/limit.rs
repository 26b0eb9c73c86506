//! Decides what a limit is: a rule with several dimensions, one level per key, overrides by key.
//!
//! Holds no levels; those are in `ledger`.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::call::Subject;

/// What is counted, and over which period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dimension {
    /// Requests per minute (RPM).
    RequestsPerMinute,
    /// Tokens per minute (TPM).
    TokensPerMinute,
    /// Requests per day (RPD).
    RequestsPerDay,
    /// Tokens per day (TPD).
    TokensPerDay,
    /// Images per minute (IPM).
    ImagesPerMinute,
    /// Calls under way at one instant.
    MaxInFlight,
}

impl Dimension {
    /// Every dimension, in the order of [`Dimension::index`].
    pub const ALL: [Self; 6] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::RequestsPerDay,
        Self::TokensPerDay,
        Self::ImagesPerMinute,
        Self::MaxInFlight,
    ];

    /// Position in [`Dimension::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The configuration key, also used in headers, status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::RequestsPerDay => "requests_per_day",
            Self::TokensPerDay => "tokens_per_day",
            Self::ImagesPerMinute => "images_per_minute",
            Self::MaxInFlight => "max_in_flight",
        }
    }

    /// OpenAI's words for it in error messages: `tokens per min (TPM)`.
    #[must_use]
    pub const fn openai_phrase(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests per min (RPM)",
            Self::TokensPerMinute => "tokens per min (TPM)",
            Self::RequestsPerDay => "requests per day (RPD)",
            Self::TokensPerDay => "tokens per day (TPD)",
            Self::ImagesPerMinute => "images per min (IPM)",
            Self::MaxInFlight => "requests in flight",
        }
    }

    /// The period over which it refills, in microseconds; `None` for calls in flight.
    #[must_use]
    pub const fn period_micros(self) -> Option<u64> {
        match self {
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::ImagesPerMinute => Some(60_000_000),
            Self::RequestsPerDay | Self::TokensPerDay => Some(86_400_000_000),
            Self::MaxInFlight => None,
        }
    }

    /// True for the dimensions that count tokens.
    #[must_use]
    pub const fn counts_tokens(self) -> bool {
        matches!(self, Self::TokensPerMinute | Self::TokensPerDay)
    }
}

/// What one level of a limit belongs to: a limit has a level for each combination of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Upstream and the credential, organization and project sent there. Makes the limit a mirror of the upstream's own.
    Account,
    /// The tidegate key of the caller.
    Key,
    /// Organization.
    Organization,
    /// Project.
    Project,
    /// End user. Callers without one share a level.
    User,
    /// Model group.
    Model,
    /// Chat, completion, embedding, image or other.
    RequestType,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Account, Self::Key, Self::Organization, Self::Project, Self::User, Self::Model, Self::RequestType];

    /// The word in `per = […]`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Key => "key",
            Self::Organization => "organization",
            Self::Project => "project",
            Self::User => "user",
            Self::Model => "model",
            Self::RequestType => "request_type",
        }
    }

    /// The scope that `word` in `per = […]` names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == word)
    }

    /// What `subject` is in this scope; empty where it has none.
    #[must_use]
    pub fn of(self, subject: &Subject) -> &str {
        match self {
            Self::Account => &subject.account,
            Self::Key => subject.key.as_deref().unwrap_or(""),
            Self::Organization => subject.organization.as_deref().unwrap_or(""),
            Self::Project => subject.project.as_deref().unwrap_or(""),
            Self::User => subject.user.as_deref().unwrap_or(""),
            Self::Model => &subject.model,
            Self::RequestType => subject.request_type.name(),
        }
    }
}

/// How much one dimension allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// So many units a period.
    Units(NonZeroU64),
    /// No bound; in an override it lifts the base's.
    Unlimited,
    /// Nothing at all.
    Blocked,
}

impl Allowance {
    /// What `units` of a configuration mean: 0 is nothing at all.
    #[must_use]
    pub fn of(units: u64) -> Option<Self> {
        Some(NonZeroU64::new(units).map_or(Self::Blocked, Self::Units))
    }
}

/// What a limit, or an override of it, says: an allowance for each dimension and the burst.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// By [`Dimension::index`]; `None`: nothing said.
    pub allowances: [Option<Allowance>; 6],
    /// How much may go at one instant, in requests; all per-minute dimensions scale with it. `None`: a whole minute's worth.
    pub burst_allowance: Option<NonZeroU64>,
}

impl Rates {
    /// What is said of `dimension`.
    #[must_use]
    pub const fn allowance(&self, dimension: Dimension) -> Option<Allowance> {
        self.allowances[dimension.index()]
    }

    /// Units that may go at one instant in `dimension`, where that is less than a whole minute's worth: all per-minute dimensions
    /// scale with `burst_allowance` ÷ `requests_per_minute`.
    #[must_use]
    pub fn burst(&self, dimension: Dimension) -> Option<u64> {
        let is_minutely =
            matches!(dimension, Dimension::RequestsPerMinute | Dimension::TokensPerMinute | Dimension::ImagesPerMinute);
        let units = |dimension| match self.allowance(dimension) {
            Some(Allowance::Units(units)) => Some(units.get()),
            _ => None,
        };
        let rpm = units(Dimension::RequestsPerMinute)?;
        let (burst, units) = (self.burst_allowance?, units(dimension).filter(|_| is_minutely)?);
        let scaled = u128::from(units) * u128::from(burst.get()) / u128::from(rpm);
        Some(u64::try_from(scaled).unwrap_or(u64::MAX).clamp(1, units))
    }

    /// Sets what is said of `dimension`.
    #[must_use]
    pub fn with(mut self, dimension: Dimension, units: u64) -> Self {
        self.allowances[dimension.index()] = Allowance::of(units);
        self
    }

    /// `other`'s words where it has any, else these.
    fn replaced_by(&mut self, other: &Self) {
        for (mine, theirs) in self.allowances.iter_mut().zip(&other.allowances) {
            *mine = theirs.or(*mine);
        }
        self.burst_allowance = other.burst_allowance.or(self.burst_allowance);
    }

    /// Of each field that either speaks of, the lower.
    fn lowered_by(&mut self, other: &Self) {
        for (mine, theirs) in self.allowances.iter_mut().zip(&other.allowances) {
            *mine = match (*mine, *theirs) {
                (Some(a), Some(b)) => Some(lower(a, b)),
                (a, b) => a.or(b),
            };
        }
        self.burst_allowance = match (self.burst_allowance, other.burst_allowance) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

fn lower(a: Allowance, b: Allowance) -> Allowance {
    match (a, b) {
        (Allowance::Blocked, _) | (_, Allowance::Blocked) => Allowance::Blocked,
        (Allowance::Unlimited, other) | (other, Allowance::Unlimited) => other,
        (Allowance::Units(a), Allowance::Units(b)) => Allowance::Units(a.min(b)),
    }
}

/// How a level refills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Refills continuously up to the burst, as OpenAI's own limiter.
    TokenBucket,
    /// Never more than N in any 60 s (or day).
    SlidingWindow,
}

impl Algorithm {
    /// The word in `algorithm = …`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenBucket => "token_bucket",
            Self::SlidingWindow => "sliding_window",
        }
    }
}

/// Whether a limit holds calls back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It only counts what it would have held back.
    Shadow,
}

impl Mode {
    /// The word in `mode = …`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

/// A different allowance for some keys: `[limit.NAME.models."gpt-4o*"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Which part of the key `pattern` is matched against; one of the limit's `per`.
    pub scope: Scope,
    /// A name, or a glob in which `*` stands for any run of characters.
    pub pattern: String,
    /// What it says.
    pub rates: Rates,
}

/// A configured limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// As in `[limit.NAME]`.
    pub name: Arc<str>,
    /// One level for each combination of these, sorted; empty: one level for all.
    pub per: Vec<Scope>,
    /// Where no override says otherwise.
    pub base: Rates,
    /// Exceptions, in any order.
    pub overrides: Vec<Override>,
    /// `None`: token bucket for mirrors, sliding window for own limits.
    pub algorithm: Option<Algorithm>,
    /// Whether it holds calls back.
    pub mode: Mode,
}

impl Limit {
    /// True if it mirrors the upstream's limiter (its `per` has `account`); all others are our own.
    #[must_use]
    pub fn is_mirror(&self) -> bool {
        self.per.contains(&Scope::Account)
    }

    /// How its levels refill.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(if self.is_mirror() { Algorithm::TokenBucket } else { Algorithm::SlidingWindow })
    }

    /// What it allows `subject`.
    ///
    /// In each scope the best match speaks: exact before glob, longer before shorter. Organizations (and keys, projects,
    /// accounts, request types) replace the base; then of users and models each field takes the lowest.
    #[must_use]
    pub fn rates_for(&self, subject: &Subject) -> Rates {
        let mut rates = self.base.clone();
        for scope in [Scope::Account, Scope::RequestType, Scope::Organization, Scope::Project, Scope::Key] {
            if let Some(found) = self.best_override(scope, subject) {
                rates.replaced_by(&found.rates);
            }
        }
        let user = self.best_override(Scope::User, subject);
        let model = self.best_override(Scope::Model, subject);
        match (user, model) {
            (Some(user), Some(model)) => {
                let mut lowest = user.rates.clone();
                lowest.lowered_by(&model.rates);
                rates.replaced_by(&lowest);
            }
            (Some(only), None) | (None, Some(only)) => rates.replaced_by(&only.rates),
            (None, None) => {}
        }
        rates
    }

    fn best_override(&self, scope: Scope, subject: &Subject) -> Option<&Override> {
        let name = scope.of(subject);
        self.overrides
            .iter()
            .filter(|candidate| candidate.scope == scope && glob_matches(&candidate.pattern, name))
            .max_by_key(|candidate| (!candidate.pattern.contains('*'), candidate.pattern.len()))
    }
}

/// True if `name` fits `pattern`, in which `*` stands for any run of characters, the empty one included.
#[must_use]
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}
