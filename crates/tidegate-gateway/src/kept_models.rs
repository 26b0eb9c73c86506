//! Keeps what was learned of models in one file of the state directory: how estimates were off, which groups share a limit.
//!
//! Never stops a call or a start: what cannot be read is begun anew, what cannot be written is said and tried again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::state;

use crate::metrics::Metrics;
use crate::model::KeptModels;
use crate::shared::{Settings, Shared};
use crate::upstream::Upstream;

/// The file's name in the state directory.
const NAME: &str = "models.json";
/// How often what has changed is saved.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// By upstream.
type Kept = BTreeMap<String, KeptUpstream>;

/// What is kept of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KeptUpstream {
    /// Where it was. Under the same name, what is somewhere else has other models.
    #[serde(default)]
    base_url: String,
    #[serde(flatten)]
    models: KeptModels,
}

impl KeptUpstream {
    fn of(upstream: &Upstream) -> Self {
        Self { base_url: upstream.config.base_url.clone(), models: upstream.models.kept() }
    }

    /// What `upstream`, of the same name, has to know of it.
    fn still(&self, upstream: &Upstream) -> Option<&KeptModels> {
        (self.base_url == upstream.config.base_url).then_some(&self.models)
    }
}

/// Saves, one at a time, so that one which was under way cannot overwrite the last one.
#[derive(Debug, Default)]
pub(crate) struct Saving(Mutex<Saved>);

#[derive(Debug, Default)]
struct Saved {
    kept: Kept,
    is_over: bool,
}

impl Saving {
    /// Writes what there is to `take` now, if it is other than before. The last one is written anyhow, and nothing after it.
    fn save(
        &self,
        is_last: bool,
        take: impl FnOnce() -> Kept,
        write: impl FnOnce(&Kept) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut saved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.is_over {
            return Ok(());
        }
        saved.is_over = is_last;
        let kept = take();
        if is_last || kept != saved.kept {
            write(&kept)?;
            saved.kept = kept;
        }
        Ok(())
    }
}

/// Gives the models of each upstream what the run before left in `dir`.
pub(crate) fn restore(shared: &Shared, dir: &Path) {
    let path = dir.join(NAME);
    let read = match fs::read(&path) {
        Ok(text) => serde_json::from_slice::<Kept>(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
    };
    match read {
        Ok(kept) => {
            let settings = shared.settings.load();
            for upstream in &settings.upstreams {
                let kept = kept.get(&*upstream.config.name).and_then(|kept| kept.still(upstream));
                if let Some(kept) = kept {
                    upstream.models.restore(kept, &upstream.config.name, &shared.metrics);
                }
                if settings.tells_groups() {
                    upstream.models.part();
                }
            }
        }
        Err(error) => tracing::warn!("{} cannot be read: {error}; models are learned anew", path.display()),
    }
}

/// Gives the models of each upstream that a new configuration has changed what was learned of them before.
pub(crate) fn carry_over(before: &Settings, after: &Settings, metrics: &Metrics) {
    for upstream in &after.upstreams {
        let name = &upstream.config.name;
        let was = before.upstreams.iter().find(|was| was.config.name == *name && !Arc::ptr_eq(was, upstream));
        if let Some(kept) = was.map(|was| KeptUpstream::of(was)).as_ref().and_then(|kept| kept.still(upstream)) {
            upstream.models.restore(kept, name, metrics);
        }
        if after.tells_groups() {
            upstream.models.part();
        }
    }
}

/// Saves for the last time.
///
/// # Errors
/// If the file cannot be written; what was there before is still there.
pub(crate) fn save_last(shared: &Shared, dir: &Path) -> io::Result<()> {
    save(shared, dir, true)
}

/// Saves what has changed, again and again, as long as there is a gateway.
pub(crate) fn keep_saving(shared: &Arc<Shared>, dir: PathBuf) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        let mut is_failing = false;
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            let Some(shared) = shared.upgrade() else { return };
            let to = dir.clone();
            match tokio::task::spawn_blocking(move || save(&shared, &to, false)).await {
                Ok(Ok(())) => is_failing = false,
                Ok(Err(error)) if !is_failing => {
                    tracing::warn!(
                        "what was learned of models cannot be saved in {}: {error}; trying on",
                        dir.display()
                    );
                    is_failing = true;
                }
                Ok(Err(_)) => {}
                // The runtime is shutting down.
                Err(_) => return,
            }
        }
    });
}

fn save(shared: &Shared, dir: &Path, is_last: bool) -> io::Result<()> {
    shared.saving_models.save(is_last, || kept(shared), |kept| write(kept, dir))
}

fn kept(shared: &Shared) -> Kept {
    let settings = shared.settings.load();
    let all = settings.upstreams.iter().map(|upstream| (upstream.config.name.to_string(), KeptUpstream::of(upstream)));
    all.filter(|(_, kept)| kept.models != KeptModels::default()).collect()
}

fn write(kept: &Kept, dir: &Path) -> io::Result<()> {
    state::write_whole(&dir.join(NAME), &serde_json::to_vec(kept)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn kept(base_url: &str) -> Kept {
        let upstream = KeptUpstream { base_url: base_url.to_owned(), ..KeptUpstream::default() };
        [("openai".to_owned(), upstream)].into()
    }

    #[test]
    fn what_is_saved_last_is_what_was_known_last() {
        let (saving, written) = (Saving::default(), Mutex::new(Vec::new()));
        let write = |kept: &Kept| {
            written.lock().unwrap().push(kept.clone());
            Ok(())
        };
        let (has_begun, begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (saving, write) = (&saving, &write);
            let under_way = scope.spawn(move || {
                saving.save(
                    false,
                    || kept("older"),
                    |kept| {
                        has_begun.send(()).unwrap();
                        may_go_on.recv().unwrap();
                        write(kept)
                    },
                )
            });
            begun.recv().unwrap();
            let last = scope.spawn(move || saving.save(true, || kept("newest"), write));
            go_on.send(()).unwrap();
            under_way.join().unwrap().unwrap();
            last.join().unwrap().unwrap();
        });
        saving.save(false, || kept("too late"), write).unwrap();
        assert_eq!(*written.lock().unwrap(), [kept("older"), kept("newest")]);
    }

    #[test]
    fn what_has_not_changed_is_not_written_again_and_what_could_not_be_is() {
        let saving = Saving::default();
        let failed = saving.save(false, || kept("a"), |_| Err(io::Error::other("full")));
        assert!(failed.is_err());
        let mut written = 0;
        for _ in 0..2 {
            saving
                .save(
                    false,
                    || kept("a"),
                    |_| {
                        written += 1;
                        Ok(())
                    },
                )
                .unwrap();
        }
        assert_eq!(written, 1);
    }
}
