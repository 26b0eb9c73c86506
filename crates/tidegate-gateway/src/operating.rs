//! Decides how an operator's word takes effect: first it is recorded, then kept for the next start, then in force.
//!
//! One at a time, and to its end even where whoever asked for it leaves: what the trail tells of has happened. What stays in force
//! (a pause, held breakers, raised limits) is in one file of the state directory, whole at any instant.

mod standing;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tidegate::state::write_whole;
use tidegate_core::config::OnAuditFailure;
use tidegate_core::gate::Gate;
use tidegate_core::time::Time;
use tidegate_watch::audit::{Kind, Record};

pub(crate) use self::standing::{Held, Raised, Said, Standing};
use crate::audit::Audit;
use crate::refusal::OwnReply;
use crate::shared::{Shared, StartError};

/// The file's name in the state directory.
const NAME: &str = "overrides.json";
const FORMAT: u32 = 1;
/// A boost that is over is taken out of the file so soon, and a file that could not be written tried again: a boost that is found there at a start ended while no gateway ran.
const TIDY_EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    #[serde(flatten)]
    standing: Standing,
}

/// What operators have said, and where it is kept.
#[derive(Debug)]
pub(crate) struct Operating {
    path: Option<PathBuf>,
    standing: ArcSwap<Standing>,
    one_at_a_time: tokio::sync::Mutex<()>,
    /// The file does not have what is in force.
    is_unkept: AtomicBool,
    /// What had ended when an earlier run's was read: that run saw no end of it.
    ended_unseen: Mutex<Vec<Raised>>,
}

/// What is done; it may block. An error says why it could not be.
pub(crate) type Act = Box<dyn FnOnce(&Shared) -> Result<(), String> + Send>;

/// Something that is done to the core.
pub(crate) fn to_gate(act: impl FnOnce(&mut Gate, Time) + Send + 'static) -> Option<Act> {
    Some(Box::new(move |shared| {
        shared.driver.with(|gate, now| act(gate, now));
        Ok(())
    }))
}

/// One change that an operator wants.
pub(crate) struct Change {
    /// What the trail says of it.
    pub(crate) record: Record,
    /// What is done beside that which stays in force.
    pub(crate) act: Option<Act>,
}

/// A change that has taken effect.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Arc<str>>,
    /// Whether the audit trail has it.
    recorded: bool,
    /// What could not be done as it should be, or is not in force yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

impl Operating {
    /// What an earlier run left in `dir`.
    ///
    /// # Errors
    /// It cannot be read: a start would lift what operators hold, and nobody would know.
    pub(crate) fn load(dir: Option<&Path>) -> Result<Self, StartError> {
        let path = dir.map(|dir| dir.join(NAME));
        let mut standing = path.as_deref().map_or_else(|| Ok(Standing::default()), read).map_err(StartError::Config)?;
        let (ended, boosts) = std::mem::take(&mut standing.boosts).into_iter().partition(Raised::is_over);
        standing.boosts = boosts;
        Ok(Self {
            path,
            standing: ArcSwap::from_pointee(standing),
            one_at_a_time: tokio::sync::Mutex::default(),
            is_unkept: AtomicBool::new(false),
            ended_unseen: Mutex::new(ended),
        })
    }

    /// Keeps boosts that are over out of the file, from now on; the trail is told of those that ended while no gateway ran.
    pub(crate) fn keep_tidy(shared: &Arc<Shared>) {
        let shared = Arc::downgrade(shared);
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(TIDY_EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let Some(shared) = shared.upgrade() else { return };
                shared.operating.tidy(&shared.audit).await;
            }
        });
    }

    async fn tidy(&self, audit: &Audit) {
        let ended = std::mem::take(&mut *self.ended_unseen.lock().unwrap_or_else(PoisonError::into_inner));
        let was_unkept = self.is_unkept.load(Relaxed);
        if ended.is_empty() && !was_unkept && !self.standing.load().boosts.iter().any(Raised::is_over) {
            return;
        }
        let _one_at_a_time = self.one_at_a_time.lock().await;
        for raised in &ended {
            let record = Record {
                limit: Some(raised.limit.clone()),
                before: Some(raised.shown().into()),
                after: Some("× 1".into()),
                why: Some(format!("its time was over at {}, while no gateway ran", raised.until).into()),
                ..Record::new(Kind::Override, "boost ended")
            };
            // First the record: a kill in between makes two of it, not none. Without a trail the log has it.
            let _ = audit.note_durably(record, OnAuditFailure::Continue).await;
            tracing::info!(limit = &*raised.limit, "boost ended at {}, while no gateway ran", raised.until);
        }
        match self.keep((*self.now()).clone()).await {
            Ok(()) if was_unkept => {
                tracing::info!("{NAME} is written again: what operators said outlives this process")
            }
            Err(error) if !was_unkept => tracing::warn!("boosts that are over stay in {NAME}: {error}"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Puts that in force.
    pub(crate) fn restore(&self, gate: &mut Gate, now: Time) {
        let standing = self.now();
        for told in standing.told() {
            tracing::warn!("in force since before the restart: {told}");
        }
        gate.override_with(standing.overrides(), now);
    }

    /// What is in force.
    pub(crate) fn now(&self) -> Arc<Standing> {
        let standing = self.standing.load_full();
        if !standing.boosts.iter().any(Raised::is_over) {
            return standing;
        }
        let mut standing = (*standing).clone();
        standing.boosts.retain(|raised| !raised.is_over());
        Arc::new(standing)
    }

    /// Puts it in force, and keeps it for the next start; else why it is not kept. That is tried again.
    async fn keep(&self, standing: Standing) -> Result<(), String> {
        let kept = serde_json::to_vec(&Kept { format: FORMAT, standing: standing.clone() });
        self.standing.store(Arc::new(standing));
        let Some(path) = self.path.clone() else {
            return Err("there is no state directory: it ends with this process".to_owned());
        };
        let text = kept.map_err(|error| error.to_string())?;
        let written = tokio::task::spawn_blocking(move || {
            write_whole(&path, &text).map_err(|error| {
                format!("{} cannot be written: {error}; until it can, it ends with this process", path.display())
            })
        });
        let written = written.await.unwrap_or_else(|_| Err("this process is about to end".to_owned()));
        self.is_unkept.store(written.is_err(), Relaxed);
        written
    }
}

/// Carries a change out. `prepare` sees what is in force, changes that, and says what else is to be done.
///
/// # Errors
/// What `prepare` refuses; or the trail must have it and cannot. Then nothing has changed.
pub(crate) async fn change<F>(shared: &Arc<Shared>, prepare: F) -> Result<Done, Box<OwnReply>>
where
    F: FnOnce(&Shared, &mut Standing) -> Result<Change, Box<OwnReply>> + Send + 'static,
{
    let shared = shared.clone();
    // A task of its own: it goes on where the one who asked for it leaves.
    let changing = tokio::spawn(async move {
        let _one_at_a_time = shared.operating.one_at_a_time.lock().await;
        let before = shared.operating.now();
        let mut standing = (*before).clone();
        let Change { record, act } = prepare(&shared, &mut standing)?;
        let said = record.clone();
        let mut done = Done {
            what: record.what.clone().into_owned(),
            before: record.before.clone(),
            after: record.after.clone(),
            recorded: true,
            warnings: Vec::new(),
        };
        if let Some(unrecorded) =
            shared.audit.note_durably(record, shared.settings.load().config.audit.on_failure).await?
        {
            done.recorded = false;
            done.warnings.push(unrecorded);
        }
        if let Some(act) = act {
            carry_out(&shared, act, &said).await?;
        }
        if standing != *before {
            standing.version += 1;
            let overrides = standing.overrides();
            if let Err(unkept) = shared.operating.keep(standing).await {
                // What the trail tells of would end with a crash, and nobody would know.
                shared.audit.note(about(&said, format!("{} not kept", said.what), &unkept));
                done.warnings.push(unkept);
            }
            shared.driver.with(|gate, now| gate.override_with(overrides, now));
        }
        tracing::info!(
            who = said.who.as_deref(),
            why = said.why.as_deref(),
            breaker = said.target.as_deref(),
            limit = said.limit.as_deref(),
            before = said.before.as_deref(),
            after = said.after.as_deref(),
            "operator: {}",
            said.what
        );
        Ok(done)
    });
    changing.await.unwrap_or_else(|_| Err(Box::new(OwnReply::draining())))
}

/// A record of what became of what `said` tells of.
fn about(said: &Record, what: String, why: &str) -> Record {
    Record {
        who: said.who.clone(),
        why: Some(why.into()),
        target: said.target.clone(),
        limit: said.limit.clone(),
        before: said.before.clone(),
        after: said.after.clone(),
        ..Record::new(said.kind, what)
    }
}

/// Does what is recorded already as `said`; where it cannot be done, that is recorded too.
async fn carry_out(shared: &Arc<Shared>, act: Act, said: &Record) -> Result<(), Box<OwnReply>> {
    let acting = shared.clone();
    let acted = tokio::task::spawn_blocking(move || act(&acting)).await;
    let why = match acted {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(_) => "this process is about to end".to_owned(),
    };
    shared.audit.note(about(said, format!("{} failed", said.what), &why));
    Err(Box::new(OwnReply::unchanged(&why)))
}

fn read(path: &Path) -> Result<Standing, String> {
    let wrong = |why: String| {
        format!(
            "{}: {why}; in it stands what operators paused, held or raised, which a start without it would lift: mend it, or \
             remove it to start with nothing of that in force",
            path.display()
        )
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::default()),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let kept: Kept = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if kept.format != FORMAT {
        return Err(wrong(format!("format {} is not known to this version", kept.format)));
    }
    Ok(kept.standing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn nobody_starts_as_if_nothing_were_held_where_that_cannot_be_read() {
        for text in ["{", r#"{"format":2,"version":1,"paused":null,"breakers":[],"boosts":[]}"#] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(NAME);
            std::fs::write(&path, text).unwrap();
            let error = Operating::load(Some(dir.path())).unwrap_err().to_string();
            assert!(error.contains("overrides.json") && error.contains("remove it"), "{error}");
            std::fs::remove_file(&path).unwrap();
            assert_eq!(*Operating::load(Some(dir.path())).unwrap().now(), Standing::default());
        }
    }

    #[tokio::test]
    async fn a_boost_that_is_over_leaves_the_file_and_is_unseen_by_no_later_start() {
        let dir = tempfile::tempdir().unwrap();
        let said = Said::now("local".into(), None);
        let raised = |lasting| Raised::new("team".into(), 2.0, BTreeMap::new(), lasting, said.clone());
        let boosts = vec![raised(Duration::ZERO), raised(Duration::from_secs(3600))];
        let operating = Operating::load(Some(dir.path())).unwrap();
        operating.keep(Standing { boosts: boosts.clone(), ..Standing::default() }).await.unwrap();
        let unseen = |operating: &Operating| operating.ended_unseen.lock().unwrap().clone();
        assert_eq!(unseen(&Operating::load(Some(dir.path())).unwrap()), boosts[..1]);
        let audit = Audit::start(&Default::default(), None, Default::default()).unwrap();
        operating.tidy(&audit).await;
        assert_eq!(read(&dir.path().join(NAME)).unwrap().boosts, boosts[1..]);
        assert_eq!(unseen(&Operating::load(Some(dir.path())).unwrap()), []);
    }
}
