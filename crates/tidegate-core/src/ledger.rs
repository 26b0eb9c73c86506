//! All levels of all limits: which of them a subject's calls touch, and what is taken from and given back to each.
//!
//! Decides which levels there are (made on first use, forgotten when idle) and moves units atomically: a call's charges are
//! made together or not at all. Never decides who goes first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::call::Subject;
use crate::config::LevelSource;
use crate::cost::Cost;
use crate::gate::Boost;
use crate::learn::correction::Seen;
use crate::limit::{Algorithm, Allowance, Dimension, Limit, Mode, Scope};
use crate::meter::{Meter, Spec};
use crate::refusal::LimitReport;
use crate::slots::Slots;
use crate::time::Time;

/// The name under which an upstream's own limits appear.
pub(crate) const LEARNED: &str = "learned";
/// The name of the bound on calls in flight while nothing is known of the limits, or after an outage.
pub(crate) const START: &str = "slow_start";

/// Where a level comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `[limit.NAME]`, by position.
    Configured(usize),
    /// The server's answers, or a bound of our own on one target.
    Target(u32),
}

/// A level: the meters of one limit for one key.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    /// Stable bytes: the limit's name and the key's parts. The same after a restart, and on every replica.
    pub(crate) key: Box<str>,
    pub(crate) name: Arc<str>,
    /// The key's parts for people: no credential in it.
    pub(crate) label: Arc<str>,
    pub(crate) source: Source,
    pub(crate) meters: SmallVec<[u32; 6]>,
    /// Routes that touch it.
    pub(crate) routes: u32,
    /// While it is raised.
    pub(crate) boosted: Option<Box<Boosted>>,
}

/// By how much a level is raised, until when, and what it allows then.
#[derive(Clone, Debug)]
pub(crate) struct Boosted {
    pub(crate) permille: u32,
    pub(crate) until: Time,
    plain: SmallVec<[Spec; 6]>,
}

/// One charge of a reservation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    pub(crate) meter: u32,
    pub(crate) epoch: u64,
    pub(crate) amount: u64,
    pub(crate) bin: u64,
}

/// A mirror's note of a charge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) meter: u32,
    pub(crate) epoch: u64,
    pub(crate) seen: Seen,
}

/// What a call takes of each kind of meter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amounts {
    /// Tokens of mirrors: what the upstream charges when it admits.
    pub(crate) mirror_tokens: u64,
    /// Tokens by which `too_large` is judged for mirrors.
    pub(crate) mirror_judged: u64,
    /// Tokens of own limits.
    pub(crate) own_tokens: u64,
    /// Of these, what is certain; the rest is a guess that must not make a call too large.
    pub(crate) own_certain: u64,
    /// Requests of own limits: 0 once the call has been charged for.
    pub(crate) own_requests: u64,
    pub(crate) images: u64,
}

impl Amounts {
    pub(crate) fn new(cost: &Cost, typical_output: u64, mirror: (u64, u64)) -> Self {
        let certain = cost.input_tokens.saturating_add(cost.max_output_tokens.unwrap_or(0)).max(cost.declared_tokens);
        let expected = cost.input_tokens.saturating_add(cost.max_output_tokens.unwrap_or(typical_output));
        Self {
            mirror_tokens: mirror.0.max(cost.declared_tokens),
            mirror_judged: mirror.1,
            own_tokens: expected.max(certain),
            own_certain: certain,
            own_requests: 1,
            images: u64::from(cost.images),
        }
    }

    /// What `meter` is charged.
    #[inline(always)]
    pub(crate) fn of(&self, meter: &Meter) -> u64 {
        match (meter.dimension, meter.mirror) {
            (Dimension::RequestsPerMinute | Dimension::RequestsPerDay, true) | (Dimension::MaxInFlight, _) => 1,
            (Dimension::RequestsPerMinute | Dimension::RequestsPerDay, false) => self.own_requests,
            (Dimension::TokensPerMinute | Dimension::TokensPerDay, true) => {
                if meter.is_stale || self.mirror_judged <= meter.limit() {
                    self.mirror_tokens.min(meter.limit())
                } else {
                    self.mirror_tokens.max(self.mirror_judged)
                }
            }
            (Dimension::TokensPerMinute | Dimension::TokensPerDay, false) => {
                if self.own_certain <= meter.limit() {
                    self.own_tokens.min(meter.limit())
                } else {
                    self.own_tokens
                }
            }
            (Dimension::ImagesPerMinute, _) if meter.is_stale => self.images.min(meter.limit()),
            (Dimension::ImagesPerMinute, _) => self.images,
        }
    }
}

/// The levels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) meters: Slots<Meter>,
    /// Nothing follows the calls that are there, also where a level is made later.
    nothing_follows: bool,
    pub(crate) levels: Slots<Level>,
    ids: HashMap<Box<str>, u32>,
    pub(crate) limits: Arc<[Limit]>,
    /// Where the refill of configured levels comes from.
    pub(crate) source: LevelSource,
    /// Those that are in force.
    pub(crate) boosts: Vec<Boost>,
    epoch: u64,
    /// By limit, what levels that were forgotten would have held in shadow mode: a count must not fall.
    shadow_held: BTreeMap<Arc<str>, u64>,
}

impl Ledger {
    pub(crate) fn new(limits: Arc<[Limit]>, source: LevelSource) -> Self {
        Self { limits, source, ..Self::default() }
    }

    /// The meters that calls of `subject` touch because of configured limits; levels are made on first use.
    pub(crate) fn resolve(&mut self, subject: &Subject, now: Time) -> (SmallVec<[u32; 12]>, SmallVec<[u32; 6]>) {
        let limits = self.limits.clone();
        let mut meters = SmallVec::new();
        let mut levels = SmallVec::new();
        for (position, limit) in limits.iter().enumerate() {
            let specs = specs(limit, subject, self.source);
            if specs.is_empty() {
                continue;
            }
            let key = level_key(&limit.name, &limit.per, subject);
            let level = self.open(key, limit, position, subject, &specs, now);
            self.levels[level].routes += 1;
            meters.extend(self.levels[level].meters.iter().copied());
            levels.push(level);
        }
        (meters, levels)
    }

    fn open(
        &mut self,
        key: Box<str>,
        limit: &Limit,
        position: usize,
        subject: &Subject,
        specs: &[Spec],
        now: Time,
    ) -> u32 {
        let id = self.ids.get(&key).copied();
        let level = id.unwrap_or_else(|| {
            let label = label(&limit.per, subject);
            self.add_level(key, limit.name.clone(), label, Source::Configured(position))
        });
        self.levels[level].source = Source::Configured(position);
        let boost = strongest(&self.boosts, limit, subject).map(|boost| (boost.permille, boost.until));
        let permille = boost.map_or(1000, |(permille, _)| permille);
        for spec in specs {
            self.put_meter(level, spec.times(permille), now);
        }
        self.levels[level].boosted =
            boost.map(|(permille, until)| Box::new(Boosted { permille, until, plain: specs.into() }));
        // A dimension that the configuration no longer speaks of binds no more; calls may still wait in its lot.
        let gone: SmallVec<[Dimension; 6]> = self.levels[level]
            .meters
            .iter()
            .map(|meter| self.meters[*meter].dimension)
            .filter(|dimension| !specs.iter().any(|spec| spec.dimension == *dimension))
            .collect();
        for dimension in gone {
            let spec = Spec { dimension, allowance: Allowance::Unlimited, burst: None, ..specs[0] };
            self.put_meter(level, spec, now);
        }
        level
    }

    pub(crate) fn add_level(&mut self, key: Box<str>, name: Arc<str>, label: Arc<str>, source: Source) -> u32 {
        let level = Level { key: key.clone(), name, label, source, meters: SmallVec::new(), routes: 0, boosted: None };
        let id = self.levels.insert(level);
        self.ids.insert(key, id);
        id
    }

    /// Makes or reconfigures the meter of a level for one dimension.
    pub(crate) fn put_meter(&mut self, level: u32, spec: Spec, now: Time) -> u32 {
        let found =
            self.levels[level].meters.iter().copied().find(|meter| self.meters[*meter].dimension == spec.dimension);
        if let Some(meter) = found {
            self.meters[meter].reconfigure(spec, now);
            return meter;
        }
        self.epoch += 1;
        let mut meter = Meter::new(spec, level, self.epoch, now);
        if self.nothing_follows {
            meter.nothing_follows();
        }
        let meter = self.meters.insert(meter);
        self.levels[level].meters.push(meter);
        meter
    }

    /// No calls follow those that are there.
    pub(crate) fn nothing_follows(&mut self) {
        self.nothing_follows = true;
        self.meters.iter_mut().for_each(|(_, meter)| meter.nothing_follows());
    }

    /// Levels that nobody's calls touch at the moment are no longer raised when their boost is over.
    pub(crate) fn lower_untouched(&mut self, now: Time) {
        let is_over = |level: &Level| level.boosted.as_ref().is_some_and(|boosted| boosted.until <= now);
        let over: Vec<u32> = self.levels.iter().filter(|(_, level)| is_over(level)).map(|(id, _)| id).collect();
        for id in over {
            let Some(boosted) = self.levels[id].boosted.take() else { continue };
            for spec in boosted.plain {
                self.put_meter(id, spec, now);
            }
        }
    }

    /// Forgets a level with its meters.
    pub(crate) fn remove_level(&mut self, level: u32) {
        let level = self.levels.remove(level);
        self.ids.remove(&level.key);
        for meter in level.meters {
            let would_hold = self.meters.remove(meter).would_hold;
            if would_hold > 0 {
                *self.shadow_held.entry(level.name.clone()).or_default() += would_hold;
            }
        }
    }

    /// How many calls each limit in shadow mode would have held, also at levels that are forgotten since.
    pub(crate) fn shadow_held(&self) -> BTreeMap<Arc<str>, u64> {
        let in_shadow = |limit: &&Limit| limit.mode == Mode::Shadow;
        let count = |limit: &Limit| (limit.name.clone(), self.shadow_held.get(&limit.name).copied().unwrap_or(0));
        let mut held: BTreeMap<_, _> = self.limits.iter().filter(in_shadow).map(count).collect();
        for (_, level) in self.levels.iter() {
            if let Some(held) = held.get_mut(&level.name) {
                *held += level.meters.iter().map(|meter| self.meters[*meter].would_hold).sum::<u64>();
            }
        }
        held
    }

    /// True if forgetting the level would lose nothing.
    pub(crate) fn is_idle(&mut self, level: u32, now: Time) -> bool {
        let Self { meters, levels, .. } = self;
        let level = &levels[level];
        level.routes == 0
            && level.meters.iter().all(|meter| {
                meters[*meter].refill(now);
                meters[*meter].is_idle()
            })
    }

    /// The level of that key, if there is one.
    pub(crate) fn level_of_key(&self, key: &str) -> Option<u32> {
        self.ids.get(key).copied()
    }

    /// Takes a reservation's charges, all of them.
    #[inline]
    pub(crate) fn reserve(
        &mut self,
        meters: &[u32],
        amounts: &Amounts,
        class: crate::call::Priority,
        charges: &mut SmallVec<[Charge; 12]>,
        notes: &mut SmallVec<[Note; 4]>,
        now: Time,
    ) {
        for id in meters {
            let meter = &mut self.meters[*id];
            let amount = amounts.of(meter);
            if amount == 0 {
                continue;
            }
            let bin = meter.charge(amount, class, now);
            charges.push(Charge { meter: *id, epoch: meter.epoch, amount, bin });
            if meter.mirror
                && let Some(seen) = meter.note(amount, now)
            {
                notes.push(Note { meter: *id, epoch: meter.epoch, seen });
            }
        }
    }

    /// The meter of a level's key for one dimension, if there is one.
    pub(crate) fn meter_of_key(&self, key: &str, dimension: Dimension) -> Option<u32> {
        let level = self.level_of_key(key)?;
        self.levels[level].meters.iter().copied().find(|meter| self.meters[*meter].dimension == dimension)
    }

    /// The meter of a charge, if it is still the one that was charged.
    #[inline]
    pub(crate) fn charged_meter(&mut self, meter: u32, epoch: u64) -> Option<&mut Meter> {
        self.meters.get_mut(meter).filter(|found| found.epoch == epoch)
    }

    /// How the limit behind a meter stands, for a refusal.
    /// `kept`: what has to be left for higher classes.
    pub(crate) fn report(&self, meter: u32, requested: u64, kept: u64) -> LimitReport {
        let meter = &self.meters[meter];
        let level = &self.levels[meter.level];
        let allowed = meter.limit();
        let used = u64::try_from(i128::from(allowed) - i128::from(meter.level())).unwrap_or(0);
        LimitReport {
            limit: level.name.clone(),
            key: level.label.clone(),
            dimension: meter.dimension,
            allowed,
            used,
            requested,
            kept,
        }
    }
}

/// Of the boosts that raise what `limit` allows `subject`, the strongest; of equals the one that lasts longest.
fn strongest<'b>(boosts: &'b [Boost], limit: &Limit, subject: &Subject) -> Option<&'b Boost> {
    boosts.iter().filter(|boost| boost.raises(limit, subject)).max_by_key(|boost| (boost.permille, boost.until))
}

/// What a limit says of a subject, as meters to make.
fn specs(limit: &Limit, subject: &Subject, source: LevelSource) -> SmallVec<[Spec; 6]> {
    let rates = limit.rates_for(subject);
    let tenants_share = !limit.per.iter().any(|scope| matches!(scope, Scope::Key | Scope::Organization | Scope::User));
    Dimension::ALL
        .into_iter()
        .filter_map(|dimension| {
            let allowance = rates.allowance(dimension)?;
            (allowance != Allowance::Unlimited).then(|| Spec {
                dimension,
                allowance,
                burst: rates.burst(dimension),
                algorithm: limit.algorithm(),
                enforce: limit.mode == Mode::Enforce,
                mirror: limit.is_mirror(),
                shared: tenants_share,
                source,
                is_pace: false,
            })
        })
        .collect()
}

/// A meter for a limit that the server announced.
pub(crate) fn learned_spec(dimension: Dimension, limit: u64) -> Spec {
    Spec {
        dimension,
        allowance: std::num::NonZeroU64::new(limit).map_or(Allowance::Blocked, Allowance::Units),
        burst: None,
        algorithm: Algorithm::TokenBucket,
        enforce: true,
        mirror: true,
        shared: true,
        source: LevelSource::Rate,
        is_pace: false,
    }
}

/// A meter that paces calls to an upstream: `rate` a minute, at most `burst` at one instant.
pub(crate) fn pace_spec(dimension: Dimension, rate: u64, burst: u64) -> Spec {
    Spec { burst: Some(burst), is_pace: true, ..learned_spec(dimension, rate.max(1)) }
}

/// A meter that counts calls in flight to one target, without a bound until one is set.
pub(crate) fn gauge_spec() -> Spec {
    Spec {
        dimension: Dimension::MaxInFlight,
        allowance: Allowance::Unlimited,
        burst: None,
        algorithm: Algorithm::TokenBucket,
        enforce: true,
        mirror: false,
        shared: true,
        source: LevelSource::Rate,
        is_pace: false,
    }
}

/// `name|scope=value|…`, with the separators escaped, so that no two keys can be the same bytes.
pub(crate) fn level_key(name: &str, per: &[Scope], subject: &Subject) -> Box<str> {
    let mut key = String::with_capacity(64);
    escape_into(&mut key, name);
    for scope in per {
        let _ = write!(key, "|{}=", scope.name());
        escape_into(&mut key, scope.of(subject));
    }
    key.into()
}

/// What each part of a configured limit's key is, and its name.
pub(crate) fn key_parts(key: &str) -> impl Iterator<Item = (Scope, String)> {
    key.split('|').skip(1).filter_map(|part| {
        let (scope, name) = part.split_once('=')?;
        Some((Scope::parse(scope)?, name.replace("%7c", "|").replace("%3d", "=").replace("%25", "%")))
    })
}

/// Whether `key` is one of a level of the limit of that name.
pub(crate) fn is_level_of(key: &str, name: &str) -> bool {
    let mut escaped = String::new();
    escape_into(&mut escaped, name);
    key.strip_prefix(escaped.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('|'))
}

fn escape_into(key: &mut String, part: &str) {
    for character in part.chars() {
        if matches!(character, '|' | '=' | '%') {
            let _ = write!(key, "%{:02x}", u32::from(character));
        } else {
            key.push(character);
        }
    }
}

fn label(per: &[Scope], subject: &Subject) -> Arc<str> {
    let parts: SmallVec<[&str; 4]> = per
        .iter()
        .map(|scope| if *scope == Scope::Account { subject.upstream() } else { scope.of(subject) })
        .map(|part| if part.is_empty() { "-" } else { part })
        .collect();
    parts.join("/").into()
}
