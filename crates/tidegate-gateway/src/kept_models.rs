//! Keeps what was learned of models in one file of the state directory: how estimates were off, which groups share a limit.
//!
//! Never stops a call or a start: what cannot be read is begun anew, what cannot be written is said and tried again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate::state;

use crate::metrics::Metrics;
use crate::model::KeptModels;
use crate::shared::{Settings, Shared};

/// The file's name in the state directory.
const NAME: &str = "models.json";
/// How often what has changed is saved.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// By upstream.
type Kept = BTreeMap<String, KeptModels>;

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
                if let Some(kept) = kept.get(&*upstream.config.name) {
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
        if let Some(was) = was {
            upstream.models.restore(&was.models.kept(), name, metrics);
        }
        if after.tells_groups() {
            upstream.models.part();
        }
    }
}

/// Saves now.
///
/// # Errors
/// If the file cannot be written; what was there before is still there.
pub(crate) fn save(shared: &Shared, dir: &Path) -> io::Result<()> {
    write(&kept(shared), dir)
}

/// Saves what has changed, again and again, as long as there is a gateway.
pub(crate) fn keep_saving(shared: &Arc<Shared>, dir: PathBuf) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        let mut saved = Kept::new();
        let mut is_failing = false;
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            let Some(shared) = shared.upgrade() else { return };
            let kept = kept(&shared);
            if kept == saved {
                continue;
            }
            let (writing, to) = (kept.clone(), dir.clone());
            match tokio::task::spawn_blocking(move || write(&writing, &to)).await {
                Ok(Ok(())) => {
                    saved = kept;
                    is_failing = false;
                }
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

fn kept(shared: &Shared) -> Kept {
    let settings = shared.settings.load();
    let all = settings.upstreams.iter().map(|upstream| (upstream.config.name.to_string(), upstream.models.kept()));
    all.filter(|(_, kept)| *kept != KeptModels::default()).collect()
}

fn write(kept: &Kept, dir: &Path) -> io::Result<()> {
    state::write_whole(&dir.join(NAME), &serde_json::to_vec(kept)?)
}
