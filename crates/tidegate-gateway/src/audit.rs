//! Decides what of a gateway's life gets into the audit trail, where that is, and whether calls may go on without it.
//!
//! Events come from `watching`; what the core does not know, starts and changes of the configuration, is handed over here.

mod changes;
pub(crate) mod page;
mod standing;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tidegate_core::config::{AuditConfig, Config, OnAuditFailure, RecordedUsers};
use tidegate_watch::audit::{Feed, Kind, Pseudonyms, Record, Trail, TrailDown, TrailOptions};
use tokio::time::Instant;

use crate::audit::changes::{changed_sections, fingerprint, key_changes};
pub(crate) use crate::audit::standing::AuditStanding;
use crate::refusal::OwnReply;
use crate::shared::StartError;
use crate::told::Told;

/// Calls that are refused are told of once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Neither a start nor whoever reads waits longer for a disk that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The trail of one gateway; without a place for it, nothing is kept.
#[derive(Debug)]
pub(crate) struct Audit {
    kept: Option<Kept>,
    config: AuditConfig,
    told: Told,
    refused: Mutex<Refused>,
}

/// Calls that were refused since the log was told of some.
#[derive(Debug, Default)]
struct Refused {
    told_at: Option<Instant>,
    untold: u64,
}

#[derive(Debug)]
struct Kept {
    trail: Trail,
    path: PathBuf,
    pseudonyms: Option<Pseudonyms>,
}

impl Audit {
    /// Starts the trail as `config` says; a relative path is one in `state_dir`.
    ///
    /// # Errors
    /// If calls must not go on without it, or users not appear by name, and there is no place for it.
    pub(crate) fn start(config: &AuditConfig, state_dir: Option<&Path>, told: Told) -> Result<Self, StartError> {
        let path = match state_dir {
            Some(dir) => Some(dir.join(&config.path)),
            None => Some(config.path.clone()).filter(|path| path.is_absolute()),
        };
        let Some(path) = path else {
            if config.on_failure == OnAuditFailure::Refuse {
                let message = "[audit] on_failure = \"refuse\" needs a state directory, or an absolute path";
                return Err(StartError::Config(message.to_owned()));
            }
            tracing::info!("no state directory: nothing is recorded in an audit trail");
            return Ok(Self { kept: None, config: config.clone(), told, refused: Mutex::default() });
        };
        let failed = |what: &str, error| StartError::Config(format!("the audit trail's {what}: {error}"));
        let pseudonyms = match config.users {
            RecordedUsers::Plain => None,
            RecordedUsers::Hash => {
                Some(Pseudonyms::of_or_new(&path).map_err(|error| failed("salt for users' hashes", error))?)
            }
        };
        let options = TrailOptions { retention: config.retention, ..TrailOptions::new(&path) };
        let trail = Trail::start(options).map_err(|error| failed("thread", error))?;
        Ok(Self {
            kept: Some(Kept { trail, path, pseudonyms }),
            config: config.clone(),
            told,
            refused: Mutex::default(),
        })
    }

    /// What makes records of events, and whom they are handed to.
    pub(crate) fn feed(&self) -> (Feed, Option<Trail>) {
        let (pseudonyms, trail) = match &self.kept {
            Some(kept) => (kept.pseudonyms.clone(), Some(kept.trail.clone())),
            None => (None, None),
        };
        (Feed::new(self.config.calls, pseudonyms), trail)
    }

    /// Returns once everything that was handed over is on disk, or told to be lost.
    pub(crate) async fn flush(&self) {
        if let Err(error) = self.flushed().await {
            tracing::error!("the last records are not in the audit trail: {error}");
        }
    }

    async fn flushed(&self) -> Result<(), TrailDown> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let trail = kept.trail.clone();
        tokio::task::spawn_blocking(move || trail.flush()).await.unwrap_or(Ok(()))
    }

    /// Returns once the first records are on disk, where calls wait for that, or could not be written; not later than after a while.
    pub(crate) async fn first_written(&self) {
        if self.config.on_failure == OnAuditFailure::Refuse {
            self.written().await;
        }
    }

    /// Returns once what was handed over before is on disk, or could not be written; not later than after a while.
    pub(crate) async fn written(&self) {
        // What stands in the way is in the log already.
        let _ = tokio::time::timeout(PATIENCE, self.flushed()).await;
    }

    /// Hands over a record that is none of the core's events.
    pub(crate) fn note(&self, record: Record) {
        self.tell(&record);
        if let Some(kept) = &self.kept {
            kept.trail.append(record);
        }
    }

    /// Tells those who read along.
    fn tell(&self, record: &Record) {
        let event = match record.kind {
            Kind::Override => "override_applied",
            Kind::Config | Kind::Key => "config_updated",
            Kind::Retry => "fell_back",
            kind => kind.name(),
        };
        self.told.noted(event, record);
    }

    /// Returns once the record is on disk; else why it is not yet, where that is no reason to refuse. Only then are readers told.
    ///
    /// # Errors
    /// It is not there, and `on_failure` wants nothing done without it.
    pub(crate) async fn note_durably(
        &self,
        record: Record,
        on_failure: OnAuditFailure,
    ) -> Result<Option<String>, Box<OwnReply>> {
        let unrecorded = match &self.kept {
            None => Some("it is not recorded: there is no audit trail".to_owned()),
            Some(kept) => {
                let why = write(kept.trail.clone(), record.clone(), on_failure).await.err();
                if let Some(why) = &why {
                    if on_failure == OnAuditFailure::Refuse {
                        return Err(Box::new(OwnReply::unchanged(&why.to_string())));
                    }
                    tracing::warn!("an override takes effect before it is recorded: {why}");
                }
                why.map(|why| match why.is_lost {
                    true => format!("{why}; too many records wait, so it will only be counted among the lost ones"),
                    false => format!("{why}; it is recorded once that is over"),
                })
            }
        };
        self.tell(&record);
        Ok(unrecorded)
    }

    /// Whether calls are to be refused because they would leave no trace.
    pub(crate) fn stands_in_the_way(&self, on_failure: OnAuditFailure) -> bool {
        on_failure == OnAuditFailure::Refuse && self.kept.as_ref().is_none_or(|kept| kept.trail.is_down())
    }

    /// A call was refused for that: logged, but not each of a flood.
    pub(crate) fn refused(&self) {
        let now = Instant::now();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.untold += 1;
        if refused.told_at.is_none_or(|told_at| now.duration_since(told_at) >= TOLD_EVERY) {
            let calls = refused.untold;
            *refused = Refused { told_at: Some(now), untold: 0 };
            tracing::warn!(
                calls,
                "calls are refused: the audit trail cannot be written, and [audit] on_failure is \"refuse\""
            );
        }
    }

    /// How many records could not be kept so far, and whether none can be written now.
    pub(crate) fn losses(&self) -> (u64, bool) {
        self.kept.as_ref().map_or((0, false), |kept| {
            let status = kept.trail.status();
            (status.lost, status.failing_since.is_some())
        })
    }

    /// Where the trail is, and what stands for users in it.
    pub(crate) fn place(&self) -> Option<(&Path, Option<&Pseudonyms>)> {
        self.kept.as_ref().map(|kept| (kept.path.as_path(), kept.pseudonyms.as_ref()))
    }

    /// Its series; where nothing is kept, what they would be.
    pub(crate) fn series(&self) -> Box<dyn Collector> {
        Box::new(Series(self.kept.as_ref().map(|kept| kept.trail.clone())))
    }

    /// What a start puts in force.
    pub(crate) fn started(&self, config: &Config) {
        let version = env!("CARGO_PKG_VERSION");
        let after = format!("{version}, configuration {}", fingerprint(config));
        self.note(Record { after: Some(after.into()), ..Record::new(Kind::Config, "started") });
    }

    /// Another configuration is in force; `who`: the operator who wanted it, where one did.
    pub(crate) fn reloaded(&self, before: &Config, after: &Config, who: Option<&Arc<str>>) {
        for (what, key) in key_changes(before, after) {
            let name = Some(key.clone());
            let (was, is) = match what {
                "added" => (None, name),
                "removed" => (name, None),
                _ => (name.clone(), name),
            };
            self.note(Record { who: who.cloned(), before: was, after: is, ..Record::new(Kind::Key, what) });
        }
        let mut now = format!("configuration {}", fingerprint(after));
        for (position, section) in changed_sections(before, after).into_iter().enumerate() {
            let _ = write!(now, "{}{section}", if position == 0 { ", changed: " } else { " " });
        }
        self.note(Record {
            who: who.cloned(),
            before: Some(format!("configuration {}", fingerprint(before)).into()),
            after: Some(now.into()),
            ..Record::new(Kind::Config, "reloaded")
        });
    }

    /// The keys of the configuration that `config` has otherwise than the trail was started with, and no reload changes.
    pub(crate) fn waits_for_restart(&self, config: &AuditConfig) -> impl Iterator<Item = &'static str> {
        let (old, new) = (&self.config, config);
        let keys = [
            ("audit.path", old.path != new.path),
            ("audit.retention", old.retention != new.retention),
            ("audit.calls", old.calls != new.calls),
            ("audit.users", old.users != new.users),
        ];
        keys.into_iter().filter(|(_, is_other)| *is_other).map(|(key, _)| key)
    }

    /// A configuration was turned down, which `who` wanted, where an operator did.
    pub(crate) fn not_reloaded(&self, why: &str, who: Option<&Arc<str>>) {
        self.note(Record { who: who.cloned(), why: Some(why.into()), ..Record::new(Kind::Config, "turned down") });
    }
}

/// Returns once the record is on disk; where it is not, it gets there later if what it tells of happens nevertheless.
async fn write(trail: Trail, record: Record, on_failure: OnAuditFailure) -> Result<(), TrailDown> {
    let written = tokio::task::spawn_blocking(move || match on_failure {
        OnAuditFailure::Continue => trail.append_durable_or_later(record),
        OnAuditFailure::Refuse => trail.append_durable(record),
    });
    let ended = |_| TrailDown { why: "this process is about to end".to_owned(), is_lost: true };
    written.await.map_err(ended)?
}

/// How the trail stands, when asked.
#[derive(Debug)]
struct Series(Option<Trail>);

impl Collector for Series {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.as_ref().map(Trail::status);
        let counters = [
            (
                "audit_records",
                "Records of the audit trail that are on disk",
                status.as_ref().map(|status| status.written),
            ),
            (
                "audit_lost",
                "Records of the audit trail that could not be kept",
                status.as_ref().map(|status| status.lost),
            ),
        ];
        for (name, help, value) in counters {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            value.map_or(Ok(()), |value| ConstCounter::new(value).encode(family))?;
        }
        let (name, help) = ("audit_up", "Whether the audit trail can be written");
        let is_up = status.map(|status| f64::from(u8::from(status.failing_since.is_none())));
        let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        is_up.map_or(Ok(()), |is_up| ConstGauge::new(is_up).encode(family))
    }
}
