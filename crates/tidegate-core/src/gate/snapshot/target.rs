//! What is kept of a target: its limits with their age, paces, the charge rule, and what calls write.

use serde::{Deserialize, Serialize};

use super::KeptMeter;
use crate::config::TokenCharge;
use crate::gate::Gate;
use crate::gate::status::{LearnedLimit, LearnedStatus, PaceStatus};
use crate::learn::output::Estimate;
use crate::learn::pace::{Found, Pace};
use crate::ledger::{LEARNED, Ledger, Source, learned_spec};
use crate::limit::Dimension;
use crate::target::{Learned, Target};
use crate::time::Time;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::gate) struct KeptTarget {
    pub(super) account: String,
    pub(super) model: String,
    pub(super) at_micros: u64,
    token_charge: Option<String>,
    /// The rule is only what a refusal suggests.
    #[serde(default)]
    token_charge_is_hint: bool,
    pub(super) limits: Vec<KeptLimit>,
    #[serde(default)]
    paces: Vec<KeptPace>,
    /// What calls write, by type of request: the estimate, and how many it is made of.
    #[serde(default)]
    outputs: Vec<(String, u64, u32)>,
    /// The same of single tenants: the tenant before it.
    #[serde(default)]
    tenant_outputs: Vec<(String, String, u64, u32)>,
}

/// A limit that the server told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeptLimit {
    #[serde(flatten)]
    pub(super) meter: KeptMeter,
    /// When, in microseconds of the driver's clock. Absent: when it was kept.
    #[serde(default)]
    told_at_micros: Option<u64>,
    /// Whether headers told it. Absent: they did.
    #[serde(default = "yes")]
    by_headers: bool,
}

fn dimension_of(name: &str) -> Option<Dimension> {
    Dimension::ALL.into_iter().find(|dimension| dimension.name() == name)
}

fn paced(dimension: Dimension, found: &Found) -> PaceStatus {
    PaceStatus { dimension: dimension.name(), rate: found.rate(), burst: found.burst() }
}

const fn yes() -> bool {
    true
}

/// A pace that was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptPace {
    dimension: String,
    #[serde(flatten)]
    found: Found,
    changed_at_micros: u64,
}

impl Gate {
    pub(in crate::gate) fn restore_target(&mut self, id: u32) {
        let target = &self.targets[id];
        let key = (Box::from(&*target.account), Box::from(&*target.model));
        let Some(kept) = self.restored_targets.remove(&key) else { return };
        let now = self.clock;
        if let Some(rule) = kept.token_charge.as_deref().and_then(TokenCharge::parse) {
            self.targets[id].charge_rule.restore(rule, kept.token_charge_is_hint);
        }
        let mut typical_output = std::mem::take(&mut self.targets[id].typical_output);
        for known in kept.estimates() {
            typical_output.restore(&known, |tenant| self.hash(tenant));
        }
        self.targets[id].typical_output = typical_output;
        if !self.targets[id].learn_limits {
            return;
        }
        for kept in &kept.paces {
            if let Some(dimension) = dimension_of(&kept.dimension) {
                let changed_at = Time::from_micros(kept.changed_at_micros).min(now);
                self.open_pace(id, dimension, Pace::restored(kept.found, changed_at, now));
            }
        }
        if kept.limits.is_empty() {
            return;
        }
        let name = self.targets[id].name.clone();
        let level_key = format!("{LEARNED}|{}|{}", kept.account, kept.model);
        let level = self.ledger.add_level(level_key.into(), LEARNED.into(), name, Source::Target(id));
        let kept_at = Time::from_micros(kept.at_micros).min(now);
        for limit in &kept.limits {
            let Some(dimension) = dimension_of(&limit.meter.dimension) else { continue };
            let told_at = limit.told_at_micros.map_or(kept_at, |told_at| Time::from_micros(told_at).min(now));
            let meter = self.ledger.put_meter(level, learned_spec(dimension, limit.meter.limit), now);
            limit.meter.put_into(&mut self.ledger.meters[meter], kept_at, now);
            self.ledger.meters[meter].told(told_at);
            let by_headers = limit.by_headers;
            self.targets[id].learned.push(Learned {
                dimension,
                meter,
                by_headers,
                told_at,
                missed: 0,
                moves: 0,
                early: None,
            });
        }
        self.targets[id].cold_start = None;
    }
}

impl KeptTarget {
    /// What of it a restart would lose. `None`: nothing.
    pub(super) fn of(target: &Target, ledger: &Ledger, now: Time) -> Option<Self> {
        let kept = Self {
            account: target.account.to_string(),
            model: target.model.to_string(),
            at_micros: now.as_micros(),
            token_charge: target.charge_rule.rule().map(|rule| rule.name().to_owned()),
            token_charge_is_hint: target.charge_rule.is_hint(),
            limits: target
                .learned
                .iter()
                .filter_map(|learned| {
                    let told_at_micros = Some(learned.told_at.as_micros());
                    let meter = KeptMeter::whole(&ledger.meters[learned.meter])?;
                    Some(KeptLimit { meter, told_at_micros, by_headers: learned.by_headers })
                })
                .collect(),
            paces: target
                .paces
                .iter()
                .filter(|paced| paced.pace.is_active() && !paced.pace.is_slowed())
                .map(|paced| KeptPace {
                    dimension: paced.dimension.name().to_owned(),
                    found: paced.pace.found(now),
                    changed_at_micros: paced.pace.changed_at().as_micros(),
                })
                .collect(),
            outputs: target
                .typical_output
                .estimates()
                .filter(|known| known.tenant.is_none())
                .map(|known| (known.kind.to_owned(), known.tokens, known.seen))
                .collect(),
            tenant_outputs: target
                .typical_output
                .estimates()
                .filter_map(|known| Some((known.tenant?.to_owned(), known.kind.to_owned(), known.tokens, known.seen)))
                .collect(),
        };
        let is_empty = kept.limits.is_empty() && kept.paces.is_empty() && kept.outputs.is_empty();
        (!is_empty).then_some(kept)
    }

    /// What calls write, as far as it was seen.
    fn estimates(&self) -> impl Iterator<Item = Estimate<'_>> {
        let all = self.outputs.iter().map(|(kind, tokens, seen)| (None, kind, tokens, seen));
        let own = self.tenant_outputs.iter().map(|(tenant, kind, tokens, seen)| (Some(&**tenant), kind, tokens, seen));
        all.chain(own).map(|(tenant, kind, tokens, seen)| Estimate { tenant, kind, tokens: *tokens, seen: *seen })
    }

    /// How it stands while nobody has called it since the restart.
    pub(in crate::gate) fn status(&self, now: Time) -> LearnedStatus {
        let (upstream, _) = self.account.split_once('#').unwrap_or((&self.account, ""));
        let model = if self.model.is_empty() { "-" } else { &*self.model };
        let limits = self.limits.iter().filter_map(|kept| {
            let told_at = Time::from_micros(kept.told_at_micros.unwrap_or(self.at_micros));
            let dimension = dimension_of(&kept.meter.dimension)?;
            let passed = now.micros_since(Time::from_micros(self.at_micros));
            let flowed = u128::from(kept.meter.limit) * u128::from(passed)
                / u128::from(dimension.period_micros().unwrap_or(60_000_000));
            let level = i128::from(kept.meter.level.unwrap_or(0)) + i128::try_from(flowed).unwrap_or(i128::MAX / 2);
            Some(LearnedLimit {
                dimension: dimension.name(),
                limit: kept.meter.limit,
                remaining: i64::try_from(level.min(i128::from(kept.meter.limit))).unwrap_or(0),
                source: if kept.by_headers { "headers" } else { "refusals" },
                age_seconds: now.since(told_at).as_secs_f64(),
                binds: false,
                kept: 0,
            })
        });
        let paces = || self.paces.iter().filter_map(|kept| Some((dimension_of(&kept.dimension)?, kept)));
        let measured = paces().filter(|(_, kept)| kept.found.is_guess()).map(|(dimension, kept)| LearnedLimit {
            dimension: dimension.name(),
            limit: kept.found.rate(),
            remaining: i64::try_from(kept.found.burst()).unwrap_or(i64::MAX),
            source: "measured",
            age_seconds: now.since(Time::from_micros(kept.changed_at_micros)).as_secs_f64(),
            binds: false,
            kept: 0,
        });
        LearnedStatus {
            name: format!("{upstream}/{model}"),
            token_charge: self.token_charge.as_deref().and_then(TokenCharge::parse).map(TokenCharge::name),
            limits: limits.chain(measured).collect(),
            reserved_tokens: 0,
            reservation_error_tokens: 0,
            paced: paces().map(|(dimension, kept)| paced(dimension, &kept.found)).collect(),
            in_flight_cap: None,
            in_flight: 0,
        }
    }
}
