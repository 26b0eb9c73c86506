//! What survives a restart: levels that are not full, and what was learned of each target.
//!
//! Reads and writes no file; the driver's side does. Times are those of the driver's clock, which goes on from run to run.

mod target;

use serde::{Deserialize, Serialize};

pub(super) use self::target::KeptTarget;
use super::Gate;
use crate::ledger::Source;
use crate::meter::{Kind, Meter};
use crate::time::Time;

/// The form of the snapshot; another one is not read.
const FORMAT: u32 = 1;

/// What is older than this says nothing any more.
const DAY_MICROS: u64 = 25 * 3_600_000_000;
/// A minute's level that nothing is known of after a crash is full again after this.
const MINUTE_MICROS: u64 = 61_000_000;

/// Everything that is to survive a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    format: u32,
    /// The driver's clock when it was taken, in microseconds.
    taken_at_micros: u64,
    /// True if nothing has happened since: written at an orderly end.
    clean: bool,
    levels: Vec<KeptLevel>,
    targets: Vec<KeptTarget>,
}

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It is of a form that this version does not know.
    #[error("the saved state has format {0}; this version reads format {FORMAT}")]
    Format(u32),
    /// It is no snapshot at all.
    #[error("the saved state cannot be read: {0}")]
    Unreadable(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeptLevel {
    key: String,
    /// When it stood so, in microseconds of the driver's clock.
    at_micros: u64,
    meters: Vec<KeptMeter>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptMeter {
    dimension: String,
    limit: u64,
    /// Of a bucket.
    level: Option<i64>,
    /// Of a window: (bins back, units).
    bins: Vec<(u64, u64)>,
}

impl Snapshot {
    /// As text.
    ///
    /// # Errors
    /// None that can occur: every part of it can be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, SnapshotError> {
        serde_json::to_vec(self).map_err(|error| SnapshotError::Unreadable(error.to_string()))
    }

    /// Whether the process before ended in order. After a crash nobody knows what went since it was taken.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.clean
    }

    /// From text.
    ///
    /// # Errors
    /// If it is none, or of a form that this version does not know.
    pub fn from_json(text: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Self =
            serde_json::from_slice(text).map_err(|error| SnapshotError::Unreadable(error.to_string()))?;
        if snapshot.format == FORMAT { Ok(snapshot) } else { Err(SnapshotError::Format(snapshot.format)) }
    }
}

impl Gate {
    /// What is to survive a restart, as it stands at `now`. `clean`: nothing will happen after it.
    #[must_use]
    pub fn snapshot(&mut self, clean: bool, now: Time) -> Snapshot {
        self.tick(now);
        let clock = self.clock;
        for (_, meter) in self.ledger.meters.iter_mut() {
            meter.refill(clock);
        }
        let at_micros = clock.as_micros();
        let mut levels: Vec<KeptLevel> = self
            .ledger
            .levels
            .iter()
            .filter(|(_, level)| matches!(level.source, Source::Configured(_)))
            .map(|(_, level)| KeptLevel {
                key: level.key.to_string(),
                at_micros,
                meters: level.meters.iter().filter_map(|meter| KeptMeter::of(&self.ledger.meters[*meter])).collect(),
            })
            .filter(|level| !level.meters.is_empty())
            .collect();
        // Whoever has not called since the last start is still owed, and still owes, what was kept then.
        // A day later every level is full again.
        let is_recent = |at_micros: u64| clock.micros_since(Time::from_micros(at_micros)) < DAY_MICROS;
        self.restored.retain(|_, kept| is_recent(kept.at_micros));
        self.restored_targets.retain(|_, kept| is_recent(kept.at_micros));
        levels.extend(self.restored.values().cloned());
        let mut targets: Vec<KeptTarget> =
            self.targets.iter().filter_map(|(_, target)| KeptTarget::of(target, &self.ledger, clock)).collect();
        targets.extend(self.restored_targets.values().cloned());
        Snapshot { format: FORMAT, taken_at_micros: at_micros, clean, levels, targets }
    }

    /// Takes over what an earlier run left. To be called before the first call is admitted.
    ///
    /// After a crash a minute's level starts with no more than was refilled meanwhile; a day's stands as it was kept.
    pub fn restore(&mut self, snapshot: Snapshot) {
        if !snapshot.clean {
            self.crashed_after = Some(Time::from_micros(snapshot.taken_at_micros));
        }
        for mut level in snapshot.levels {
            if !snapshot.clean && level.at_micros == snapshot.taken_at_micros {
                level.meters.iter_mut().for_each(KeptMeter::distrust);
            }
            self.restored.insert(level.key.clone().into(), level);
        }
        for mut target in snapshot.targets {
            if !snapshot.clean && target.at_micros == snapshot.taken_at_micros {
                target.limits.iter_mut().for_each(|limit| limit.meter.distrust());
            }
            self.restored_targets.insert((target.account.clone().into(), target.model.clone().into()), target);
        }
    }

    pub(super) fn restore_levels(&mut self, levels: &[u32]) {
        let now = self.clock;
        // A level that was full when it was saved, or not there yet, may have been used up before the crash.
        self.crashed_after = self.crashed_after.filter(|at| now.micros_since(*at) < MINUTE_MICROS);
        if self.restored.is_empty() && self.crashed_after.is_none() {
            return;
        }
        for id in levels {
            let level = &self.ledger.levels[*id];
            if level.routes > 1 {
                // Another's calls have touched it since: it stands as it must.
                continue;
            }
            let kept = self.restored.remove(&level.key);
            for meter in level.meters.clone() {
                let meter = &mut self.ledger.meters[meter];
                let of_kept = |kept: &KeptLevel| {
                    kept.meters.iter().find(|kept| kept.dimension == meter.dimension.name()).cloned()
                };
                let known = kept.as_ref().and_then(|kept| Some((of_kept(kept)?, Time::from_micros(kept.at_micros))));
                if let Some((kept, at)) = known {
                    kept.put_into(meter, at, now);
                } else if let (Some(crashed_after), Some(mut unknown)) = (self.crashed_after, KeptMeter::whole(meter)) {
                    unknown.distrust();
                    if unknown.dimension.ends_with("per_minute") {
                        unknown.put_into(meter, crashed_after, now);
                    }
                }
            }
        }
    }
}

impl KeptMeter {
    /// `None` for what a restart loses nothing of: full levels and calls in flight.
    fn of(meter: &Meter) -> Option<Self> {
        if meter.is_untouched() { None } else { Self::whole(meter) }
    }

    fn whole(meter: &Meter) -> Option<Self> {
        let (level, bins) = match &meter.kind {
            Kind::Bucket(bucket) => (Some(bucket.level()), Vec::new()),
            Kind::Window(window) => (None, window.used().collect()),
            Kind::Credit(_) | Kind::Gauge { .. } => return None,
        };
        Some(Self { dimension: meter.dimension.name().to_owned(), limit: meter.limit(), level, bins })
    }

    /// After a crash nobody knows what went after it was kept: of a minute nothing is taken to be left.
    fn distrust(&mut self) {
        if !self.dimension.ends_with("per_minute") {
            return;
        }
        self.level = self.level.map(|level| level.min(0));
        if self.level.is_none() {
            let used: u64 = self.bins.iter().map(|(_, units)| units).sum();
            self.bins.push((0, self.limit.saturating_sub(used)));
        }
    }

    fn put_into(&self, meter: &mut Meter, kept_at: Time, now: Time) {
        let kept_at = kept_at.min(now);
        match (&mut meter.kind, self.level) {
            (Kind::Bucket(bucket), Some(level)) => {
                bucket.set_level(level);
                bucket.starts_at(kept_at);
                bucket.refill(now);
            }
            (Kind::Window(window), _) => {
                let since = now.as_micros() / window.bin_micros() - kept_at.as_micros() / window.bin_micros();
                for (back, units) in &self.bins {
                    window.restore(back.saturating_add(since), *units);
                }
            }
            _ => {}
        }
    }
}
