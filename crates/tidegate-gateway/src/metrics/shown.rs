//! Decides which names have series of their own: the first so many. All others share one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// So many models have series of their own; all others share [`OTHER`].
const MODELS_MAX: usize = 64;
const OTHER: &str = "other";

/// The names that have series of their own; grows up to so many.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown<const MAX: usize = MODELS_MAX>(Arc<Mutex<HashSet<Arc<str>>>>);

impl<const MAX: usize> Shown<MAX> {
    /// `name`, or what it is counted under.
    pub(super) fn bounded(&self, name: &Arc<str>) -> Arc<str> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return name.clone();
        }
        if names.len() < MAX {
            names.insert(name.clone());
            return name.clone();
        }
        Arc::from(OTHER)
    }

    /// The same of one that may have been seen before, without making room for it.
    pub(crate) fn known<'m>(&self, name: &'m str) -> &'m str {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name) { name } else { OTHER }
    }
}
