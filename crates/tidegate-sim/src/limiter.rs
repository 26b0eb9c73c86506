//! Decides what OpenAI's limiter would say to one charge at one instant.
//!
//! One [`Upstream`] is one account's share of one model group: a bucket for each configured dimension, refilled
//! continuously, as large as its limit. Never reads a clock, sleeps, locks or draws randomness it was not handed: `now`
//! is an argument in microseconds from an origin of the caller's choice, so that a simulation in virtual time can use
//! the same upstream as the server does.

mod bucket;
mod tenant;

use std::collections::BTreeMap;

use serde::Serialize;

use self::bucket::Bucket;
pub use self::tenant::Tenant;

/// Microseconds in a minute.
pub const MINUTE_MICROS: u64 = 60_000_000;
/// Microseconds in a day.
pub const DAY_MICROS: u64 = 86_400_000_000;

/// What is counted, and over which period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Requests per minute (RPM).
    Requests,
    /// Tokens per minute (TPM).
    Tokens,
    /// Requests per day (RPD).
    RequestsDay,
    /// Tokens per day (TPD).
    TokensDay,
    /// Images per minute (IPM).
    Images,
}

impl Dimension {
    /// Every dimension, in the order in which they are checked.
    pub const ALL: [Dimension; 5] =
        [Dimension::Requests, Dimension::Tokens, Dimension::RequestsDay, Dimension::TokensDay, Dimension::Images];

    /// The words of OpenAI's messages, such as `tokens per min (TPM)`.
    pub fn words(self) -> &'static str {
        match self {
            Dimension::Requests => "requests per min (RPM)",
            Dimension::Tokens => "tokens per min (TPM)",
            Dimension::RequestsDay => "requests per day (RPD)",
            Dimension::TokensDay => "tokens per day (TPD)",
            Dimension::Images => "images per min (IPM)",
        }
    }

    /// The `type` of OpenAI's error object: `requests`, `tokens` or `images`.
    pub fn error_type(self) -> &'static str {
        match self {
            Dimension::Requests | Dimension::RequestsDay => "requests",
            Dimension::Tokens | Dimension::TokensDay => "tokens",
            Dimension::Images => "images",
        }
    }

    /// The name in statistics, in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Dimension::Requests => "requests",
            Dimension::Tokens => "tokens",
            Dimension::RequestsDay => "requests_day",
            Dimension::TokensDay => "tokens_day",
            Dimension::Images => "images",
        }
    }

    fn period_micros(self) -> u64 {
        match self {
            Dimension::Requests | Dimension::Tokens | Dimension::Images => MINUTE_MICROS,
            Dimension::RequestsDay | Dimension::TokensDay => DAY_MICROS,
        }
    }
}

/// The limits of one model group. An absent limit does not limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Requests per day.
    pub rpd: Option<u64>,
    /// Tokens per day.
    pub tpd: Option<u64>,
    /// Images per minute.
    pub ipm: Option<u64>,
    /// Minute limits are also enforced over so many microseconds: 60 per minute with a quantum of 1 s is 1 per second.
    pub quantum_micros: Option<u64>,
    /// Whether a refused request still costs one request, as OpenAI says it does.
    pub refused_count: bool,
    /// How full the buckets are at first, from 0 to 1.
    pub initial_fill: f64,
}

impl Default for Rules {
    /// Nothing is limited; refusals count; buckets start full.
    fn default() -> Self {
        Rules {
            rpm: None,
            tpm: None,
            rpd: None,
            tpd: None,
            ipm: None,
            quantum_micros: None,
            refused_count: true,
            initial_fill: 1.0,
        }
    }
}

impl Rules {
    fn limit(&self, dimension: Dimension) -> Option<u64> {
        match dimension {
            Dimension::Requests => self.rpm,
            Dimension::Tokens => self.tpm,
            Dimension::RequestsDay => self.rpd,
            Dimension::TokensDay => self.tpd,
            Dimension::Images => self.ipm,
        }
    }
}

/// What one call takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Charge {
    /// Requests, normally one.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
    /// Images.
    pub images: u64,
}

impl Charge {
    /// One request of so many tokens.
    pub fn of_tokens(tokens: u64) -> Self {
        Charge { requests: 1, tokens, images: 0 }
    }

    fn of(&self, dimension: Dimension) -> u64 {
        match dimension {
            Dimension::Requests | Dimension::RequestsDay => self.requests,
            Dimension::Tokens | Dimension::TokensDay => self.tokens,
            Dimension::Images => self.images,
        }
    }
}

/// One dimension as the response headers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gauge {
    /// The configured limit.
    pub limit: u64,
    /// Whole units left, never below zero.
    pub remaining: u64,
    /// Microseconds until the bucket is full again: `(limit − remaining) / limit × period`, as measured on OpenAI.
    pub reset_micros: u64,
}

/// What is left after a charge. A dimension without a limit is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Remaining {
    /// Requests of this minute.
    pub requests: Option<Gauge>,
    /// Tokens of this minute.
    pub tokens: Option<Gauge>,
    /// Requests of this day.
    pub requests_day: Option<Gauge>,
    /// Tokens of this day.
    pub tokens_day: Option<Gauge>,
    /// Images of this minute.
    pub images: Option<Gauge>,
}

impl Remaining {
    /// The same with minute limits told as a multiple of the truth.
    pub(crate) fn told(&self, factor: f64) -> Self {
        let scaled = |gauge: Option<Gauge>| {
            gauge.map(|gauge| Gauge {
                limit: scaled(gauge.limit, factor),
                remaining: scaled(gauge.remaining, factor),
                reset_micros: gauge.reset_micros,
            })
        };
        Self { requests: scaled(self.requests), tokens: scaled(self.tokens), images: scaled(self.images), ..*self }
    }
}

/// Units as they are told.
pub(crate) fn scaled(units: u64, factor: f64) -> u64 {
    (units as f64 * factor).round() as u64
}

/// Why a charge was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The dimension that makes the caller wait longest, or that can never hold the charge.
    pub dimension: Dimension,
    /// The charge is above the limit: waiting cannot help.
    pub too_large: bool,
    /// The limit of that dimension.
    pub limit: u64,
    /// How much of it is used, in whole units, rounded up.
    pub used: u64,
    /// How much was asked.
    pub requested: u64,
    /// Exact wait in microseconds, after which the same charge fits this dimension if nobody else comes. Zero when too large.
    pub wait_micros: u64,
    /// The wait as OpenAI's message tells it, computed from the whole numbers that the message shows. Zero when too large.
    pub announced_micros: u64,
}

impl Refused {
    /// The same with a minute's limit and use told as a multiple of the truth.
    pub(crate) fn told(&self, factor: f64) -> Self {
        if matches!(self.dimension, Dimension::RequestsDay | Dimension::TokensDay) {
            return *self;
        }
        Self { limit: scaled(self.limit, factor), used: scaled(self.used, factor), ..*self }
    }
}

/// One bucket, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Level {
    /// The configured limit.
    pub limit: u64,
    /// Units left; below zero after a debit of more than there was.
    pub level: f64,
    /// Units taken by admitted calls, refusals that count and debits.
    pub charged: u64,
    /// Units taken by other tenants.
    pub tenants: u64,
    /// Units that flowed in vain because the bucket, or its quantum where there is one, was full: what the callers could have
    /// used and did not.
    pub lost: f64,
}

struct Kept {
    dimension: Dimension,
    bucket: Bucket,
    /// The same dimension over one quantum.
    quantum: Option<Bucket>,
}

/// One account's limiter for one model group.
pub struct Upstream {
    kept: Vec<Kept>,
    tenants: Vec<tenant::Arrivals>,
    refused_count: bool,
    now_micros: u64,
}

impl Upstream {
    /// A limiter whose buckets hold `initial_fill` of their limits at `now_micros`.
    pub fn new(rules: &Rules, now_micros: u64) -> Self {
        Upstream {
            kept: Dimension::ALL.into_iter().filter_map(|d| Kept::new(d, rules, now_micros)).collect(),
            tenants: Vec::new(),
            refused_count: rules.refused_count,
            now_micros,
        }
    }

    /// Adds callers that nobody sees, whose arrivals depend on `seed` alone.
    #[must_use]
    pub fn with_tenants(mut self, tenants: &[Tenant], seed: u64) -> Self {
        self.tenants = tenant::arrivals(tenants, seed, self.now_micros);
        self
    }

    /// Charges every dimension, or none of them.
    ///
    /// A refusal costs one request where `refused_count` says so, as far as there is one. `now_micros` may stand still
    /// or go back: then nothing is refilled.
    pub fn admit(&mut self, now_micros: u64, charge: Charge) -> Result<Remaining, Refused> {
        self.advance(now_micros);
        if let Some(kept) = self.kept.iter().find(|k| charge.of(k.dimension) > k.bucket.limit()) {
            let (dimension, limit, requested) = (kept.dimension, kept.bucket.limit(), charge.of(kept.dimension));
            let used = kept.bucket.used();
            self.count_refusal(charge);
            return Err(Refused {
                dimension,
                too_large: true,
                limit,
                used,
                requested,
                wait_micros: 0,
                announced_micros: 0,
            });
        }
        let short: Vec<usize> = (0..self.kept.len()).filter(|&i| self.kept[i].wait_micros(charge) > 0).collect();
        if !short.is_empty() {
            self.count_refusal(charge);
            return Err(self.refusal(&short, charge));
        }
        for kept in &mut self.kept {
            kept.take(charge.of(kept.dimension));
        }
        Ok(self.remaining())
    }

    /// Takes tokens for what a call turned out to use beyond its charge; the level may fall below zero.
    pub fn debit(&mut self, now_micros: u64, tokens: u64) {
        self.advance(now_micros);
        for kept in &mut self.kept {
            if matches!(kept.dimension, Dimension::Tokens | Dimension::TokensDay) {
                kept.take(tokens);
            }
        }
    }

    /// Puts new limits in force. Levels stay what they were, cut to the new limits; a dimension that is new starts at
    /// `initial_fill`.
    pub fn reload(&mut self, rules: &Rules, now_micros: u64) {
        self.advance(now_micros);
        self.refused_count = rules.refused_count;
        let old = std::mem::take(&mut self.kept);
        self.kept = Dimension::ALL
            .into_iter()
            .filter_map(|dimension| {
                let mut kept = Kept::new(dimension, rules, self.now_micros)?;
                if let Some(before) = old.iter().find(|k| k.dimension == dimension) {
                    kept.bucket.inherit(&before.bucket);
                    if let (Some(new), Some(quantum)) = (&mut kept.quantum, &before.quantum) {
                        new.inherit(quantum);
                    }
                }
                Some(kept)
            })
            .collect();
    }

    /// Replaces the tenants, from `now_micros` on.
    pub fn replace_tenants(&mut self, tenants: &[Tenant], seed: u64, now_micros: u64) {
        self.advance(now_micros);
        self.tenants = tenant::arrivals(tenants, seed, self.now_micros);
    }

    /// What is left at `now_micros`, without charging anything.
    pub fn look(&mut self, now_micros: u64) -> Remaining {
        self.advance(now_micros);
        self.remaining()
    }

    /// Every bucket at `now_micros`, by dimension name.
    pub fn levels(&mut self, now_micros: u64) -> BTreeMap<&'static str, Level> {
        self.advance(now_micros);
        self.kept.iter().map(|k| (k.dimension.name(), k.report())).collect()
    }

    fn advance(&mut self, now_micros: u64) {
        let now_micros = now_micros.max(self.now_micros);
        while let Some(due) = self.tenants.iter_mut().filter(|t| t.next_at() <= now_micros).min_by_key(|t| t.next_at())
        {
            let (at, charge) = due.arrive();
            self.refill(at);
            if self.kept.iter().all(|k| k.wait_micros(charge) == 0) {
                for kept in &mut self.kept {
                    kept.take_for_tenant(charge.of(kept.dimension));
                }
            }
        }
        self.refill(now_micros);
    }

    fn refill(&mut self, now_micros: u64) {
        for kept in &mut self.kept {
            kept.bucket.refill(now_micros);
            if let Some(quantum) = &mut kept.quantum {
                quantum.refill(now_micros);
            }
        }
        self.now_micros = self.now_micros.max(now_micros);
    }

    fn count_refusal(&mut self, charge: Charge) {
        if !self.refused_count || charge.requests == 0 {
            return;
        }
        for kept in &mut self.kept {
            if matches!(kept.dimension, Dimension::Requests | Dimension::RequestsDay) {
                kept.bucket.take_what_is_there(charge.requests);
            }
        }
    }

    /// Of the dimensions that were short, the one that makes the caller wait longest.
    fn refusal(&self, short: &[usize], charge: Charge) -> Refused {
        let mut worst: Option<Refused> = None;
        for kept in short.iter().map(|&i| &self.kept[i]) {
            let refused = kept.refused(charge);
            if worst.is_none_or(|w| refused.wait_micros > w.wait_micros) {
                worst = Some(refused);
            }
        }
        worst.unwrap_or(Refused {
            dimension: Dimension::Requests,
            too_large: false,
            limit: 0,
            used: 0,
            requested: charge.requests,
            wait_micros: 1,
            announced_micros: 1_000,
        })
    }

    fn remaining(&self) -> Remaining {
        let mut remaining = Remaining::default();
        for kept in &self.kept {
            let gauge = Some(kept.bucket.gauge());
            match kept.dimension {
                Dimension::Requests => remaining.requests = gauge,
                Dimension::Tokens => remaining.tokens = gauge,
                Dimension::RequestsDay => remaining.requests_day = gauge,
                Dimension::TokensDay => remaining.tokens_day = gauge,
                Dimension::Images => remaining.images = gauge,
            }
        }
        remaining
    }
}

impl Kept {
    fn new(dimension: Dimension, rules: &Rules, now_micros: u64) -> Option<Self> {
        let limit = rules.limit(dimension)?;
        let period = dimension.period_micros();
        let bucket = Bucket::new(limit, period, period, rules.initial_fill, now_micros);
        let quantum = rules
            .quantum_micros
            .filter(|&quantum| period == MINUTE_MICROS && quantum < period)
            .map(|quantum| Bucket::new(limit, period, quantum, 1.0, now_micros));
        Some(Kept { dimension, bucket, quantum })
    }

    /// Zero if the charge fits now.
    fn wait_micros(&self, charge: Charge) -> u64 {
        let amount = charge.of(self.dimension);
        if amount == 0 {
            return 0;
        }
        let quantum = self.quantum.as_ref().map_or(0, |q| q.wait_micros(amount));
        self.bucket.wait_micros(amount).max(quantum)
    }

    fn take(&mut self, amount: u64) {
        self.bucket.take(amount);
        if let Some(quantum) = &mut self.quantum {
            quantum.take(amount);
        }
    }

    fn take_for_tenant(&mut self, amount: u64) {
        self.bucket.take_for_tenant(amount);
        if let Some(quantum) = &mut self.quantum {
            quantum.take(amount);
        }
    }

    fn report(&self) -> Level {
        let level = self.bucket.report();
        // What a quantum could not hold, callers could not have used later, though the minute's bucket may have had room for it.
        let lost = self.quantum.as_ref().map_or(level.lost, |quantum| quantum.report().lost);
        Level { lost, ..level }
    }

    fn refused(&self, charge: Charge) -> Refused {
        let (limit, used, requested) = (self.bucket.limit(), self.bucket.used(), charge.of(self.dimension));
        let wait_micros = self.wait_micros(charge);
        let over = (used + requested).saturating_sub(limit);
        let announced = if over == 0 {
            // The minute has room, the quantum has not: only the exact wait says anything.
            wait_micros
        } else {
            let micros = u128::from(over) * u128::from(self.dimension.period_micros()) / u128::from(limit.max(1));
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        Refused {
            dimension: self.dimension,
            too_large: false,
            limit,
            used,
            requested,
            wait_micros,
            announced_micros: announced.max(1_000),
        }
    }
}

#[cfg(test)]
mod tests;
