//! The simulated upstream: charges as OpenAI's limiter does, tells what it is set to tell, and fails when it is set to.
//!
//! Written apart from the core, in floating point, so that no mistake is shared.

use std::time::Duration;

use tidegate_core::cost::Cost;
use tidegate_core::fault::{Fault, FaultKind, LimitNumbers};
use tidegate_core::limit::Dimension;
use tidegate_core::outcome::{ServerLimit, ServerLimits};

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;
const RPD: Dimension = Dimension::RequestsPerDay;

/// What replies say of the limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tells {
    /// Limit and remaining, both multiplied by this: 1 is the truth.
    Headers(f64),
    /// Nothing, and a 429 no numbers and no wait either.
    Nothing,
    /// Nothing, but the numbers in the message of a 429.
    In429s,
    /// Numbers that mean nothing.
    Nonsense,
}

/// What a 429 says of how long to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Waits {
    /// The truth.
    Told,
    Untold,
    /// In turn the truth, nothing, and whole seconds, rounded up.
    Mixed,
}

/// By which rule tokens are charged at admission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Charges {
    Input,
    InputPlusMax,
    Max,
    /// Input at admission, output when the call has ended.
    Usage,
}

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) rpm: f64,
    pub(super) tpm: f64,
    /// Of the minute buckets at the start.
    pub(super) fill: f64,
    /// Requests left of the day at the start, of a limit of so many.
    pub(super) rpd: Option<(f64, f64)>,
    /// Seconds over which the minute limits are also enforced.
    pub(super) quantum: Option<f64>,
    /// Until when.
    pub(super) quantum_until: f64,
    pub(super) tells: Tells,
    /// Headers are silent of this dimension; a 429 is not.
    pub(super) hides: Option<Dimension>,
    pub(super) waits: Waits,
    pub(super) charges: Charges,
    pub(super) refused_count: bool,
    /// (second, factor): from then on the limits are so many times those above.
    pub(super) moves: Vec<(f64, f64)>,
    /// (from, until, share of calls that get a 503).
    pub(super) outages: Vec<(f64, f64, f64)>,
    /// From this second on nothing but `insufficient_quota`.
    pub(super) quota_ends: Option<f64>,
    /// (from, until): calls get `slow_down`.
    pub(super) slow_down: Option<(f64, f64)>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rpm: 100_000.0,
            tpm: 450_000.0,
            fill: 1.0,
            rpd: None,
            quantum: None,
            quantum_until: f64::INFINITY,
            tells: Tells::Headers(1.0),
            hides: None,
            waits: Waits::Told,
            charges: Charges::Input,
            refused_count: true,
            moves: Vec::new(),
            outages: Vec::new(),
            quota_ends: None,
            slow_down: None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    dimension: Dimension,
    limit: f64,
    period: f64,
    capacity: f64,
    level: f64,
}

impl Bucket {
    fn wait(&self, cost: f64) -> f64 {
        ((cost.min(self.capacity) - self.level) * self.period / self.limit).max(0.0)
    }
}

pub(super) struct Upstream {
    pub(super) rules: Rules,
    /// The buckets that headers speak of.
    told: Vec<Bucket>,
    /// The same limits over a shorter time.
    quanta: Vec<Bucket>,
    factor: f64,
    refusals: u64,
    at: f64,
    /// Tokens that flowed in so far, the initial fill included, and what flowed in vain.
    pub(super) flowed: f64,
    pub(super) lost: f64,
}

impl Upstream {
    pub(super) fn new(rules: Rules) -> Self {
        let bucket = |dimension, limit: f64, period, level| Bucket { dimension, limit, period, capacity: limit, level };
        let mut told = vec![
            bucket(RPM, rules.rpm, 60.0, rules.rpm * rules.fill),
            bucket(TPM, rules.tpm, 60.0, rules.tpm * rules.fill),
        ];
        if let Some((limit, left)) = rules.rpd {
            told.push(bucket(RPD, limit, 86_400.0, left));
        }
        let mut quanta = Vec::new();
        if let Some(quantum) = rules.quantum {
            for bucket in &told[..2] {
                let capacity = (bucket.limit * quantum / 60.0).max(1.0);
                quanta.push(Bucket { capacity, level: capacity, ..*bucket });
            }
        }
        // Over a shorter time no more than that time's worth can go at once.
        let flowed = quanta.last().map_or(rules.tpm * rules.fill, |quantum: &Bucket| quantum.capacity);
        Self { rules, told, quanta, factor: 1.0, refusals: 0, at: 0.0, flowed, lost: 0.0 }
    }

    fn refill(&mut self, now: f64) {
        if now >= self.rules.quantum_until {
            self.quanta.clear();
        }
        let elapsed = (now - self.at).max(0.0);
        self.at = self.at.max(now);
        for bucket in self.told.iter_mut().chain(&mut self.quanta) {
            bucket.level += elapsed * bucket.limit / bucket.period;
        }
        self.flowed += elapsed * self.told[1].limit / 60.0;
        self.lost += (self.told[1].level - self.told[1].capacity).max(0.0);
        for bucket in self.told.iter_mut().chain(&mut self.quanta) {
            bucket.level = bucket.level.min(bucket.capacity);
        }
        let factor = self.rules.moves.iter().rev().find(|(from, _)| *from <= now).map_or(1.0, |(_, factor)| *factor);
        if factor != self.factor {
            for bucket in self.told[..2].iter_mut().chain(&mut self.quanta) {
                bucket.limit *= factor / self.factor;
                bucket.capacity *= factor / self.factor;
                bucket.level = bucket.level.min(bucket.capacity);
            }
            self.factor = factor;
        }
    }

    fn charge(&self, cost: &Cost) -> f64 {
        // What OpenAI assumes where no ceiling is set, for each answer asked for.
        let max = cost.max_output_tokens.unwrap_or(16 * cost.choices) as f64;
        let input = cost.input_tokens as f64;
        match self.rules.charges {
            Charges::Input | Charges::Usage => input,
            Charges::InputPlusMax => input + max,
            Charges::Max => input.max(max),
        }
    }

    /// Another tenant takes tokens, if it can.
    pub(super) fn take_for_others(&mut self, now: f64, tokens: f64) -> bool {
        self.refill(now);
        let of_tokens = |bucket: &&mut Bucket| bucket.dimension == TPM;
        let fits =
            self.told.iter().chain(&self.quanta).all(|bucket| bucket.dimension != TPM || bucket.wait(tokens) <= 0.0);
        if fits {
            self.told.iter_mut().chain(&mut self.quanta).filter(of_tokens).for_each(|bucket| bucket.level -= tokens);
        }
        fits
    }

    /// A call arrives: what it was charged, or why it fails. `chance` decides where only a share of calls fails.
    pub(super) fn take(&mut self, now: f64, cost: &Cost, chance: f64) -> Result<f64, Fault> {
        self.refill(now);
        let within = |(from, until): &(f64, f64)| (*from..*until).contains(&now);
        if self.rules.quota_ends.is_some_and(|at| at <= now) {
            return Err(Fault::new(FaultKind::QuotaExhausted, "insufficient_quota").with_status(429));
        }
        if self.rules.outages.iter().any(|(from, until, share)| within(&(*from, *until)) && chance < *share) {
            return Err(Fault::new(FaultKind::Overloaded, "503").with_status(503));
        }
        if self.rules.slow_down.is_some_and(|span| within(&span)) {
            return Err(Fault::new(FaultKind::SlowDown, "slow_down").with_status(429));
        }
        let tokens = self.charge(cost);
        let amount = |dimension| if dimension == TPM { tokens } else { 1.0 };
        let worst = self
            .told
            .iter()
            .chain(&self.quanta)
            .filter(|bucket| bucket.wait(amount(bucket.dimension)) > 1e-9)
            .max_by(|a, b| a.wait(amount(a.dimension)).total_cmp(&b.wait(amount(b.dimension))))
            .copied();
        if let Some(short) = worst {
            if self.rules.refused_count {
                for bucket in self.told.iter_mut().filter(|bucket| bucket.dimension != TPM) {
                    bucket.level -= bucket.level.clamp(0.0, 1.0);
                }
            }
            self.refusals += 1;
            return Err(self.refusal(&short, amount(short.dimension)));
        }
        for bucket in self.told.iter_mut().chain(&mut self.quanta) {
            bucket.level -= if bucket.dimension == TPM { tokens } else { 1.0 };
        }
        Ok(tokens)
    }

    fn refusal(&self, short: &Bucket, asked: f64) -> Fault {
        let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
        let wait = short.wait(asked);
        let told = match (self.rules.waits, self.refusals % 3) {
            (Waits::Untold, _) | (Waits::Mixed, 1) => None,
            (Waits::Told, _) | (Waits::Mixed, 0) => Some(wait.max(0.001)),
            (Waits::Mixed, _) => Some(wait.ceil().max(1.0)),
        };
        fault.wait = told.map(Duration::from_secs_f64);
        let scale = match self.rules.tells {
            Tells::Headers(factor) => factor,
            Tells::In429s => 1.0,
            Tells::Nothing | Tells::Nonsense => return fault,
        };
        // The message speaks of the minute, whichever window was short.
        let told = self.told.iter().find(|bucket| bucket.dimension == short.dimension).unwrap_or(short);
        let limit = (told.limit * scale) as u64;
        let used = limit.saturating_sub((told.level.max(0.0) * scale) as u64);
        fault.numbers = Some(LimitNumbers {
            dimension: Some(short.dimension),
            limit,
            used: Some(used),
            requested: Some(asked as u64),
        });
        fault
    }

    /// A call has ended that wrote so much. Returns what it is charged for that.
    pub(super) fn ended(&mut self, now: f64, output: u64) -> f64 {
        self.refill(now);
        let charged = if self.rules.charges == Charges::Usage { output as f64 } else { 0.0 };
        if charged > 0.0 {
            for bucket in self.told[1..2].iter_mut().chain(self.quanta.iter_mut().skip(1)) {
                bucket.level -= charged;
            }
        }
        charged
    }

    /// The headers of a reply sent now.
    pub(super) fn headers(&mut self, now: f64, chance: f64) -> ServerLimits {
        self.refill(now);
        let told = |bucket: &Bucket| match self.rules.tells {
            Tells::Headers(factor) => Some(ServerLimit {
                dimension: bucket.dimension,
                limit: (bucket.limit * factor).round() as u64,
                remaining: Some((bucket.level.max(0.0) * factor) as u64),
            }),
            Tells::Nonsense => Some(ServerLimit {
                dimension: bucket.dimension,
                limit: 1 + (bucket.limit * chance * 3.0) as u64,
                remaining: Some((bucket.limit * chance * chance) as u64),
            }),
            Tells::Nothing | Tells::In429s => None,
        };
        let is_shown = |bucket: &&Bucket| self.rules.hides != Some(bucket.dimension);
        ServerLimits(self.told.iter().filter(is_shown).filter_map(told).collect())
    }
}
