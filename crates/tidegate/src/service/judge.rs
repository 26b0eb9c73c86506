//! Decides what kind of failure a service's own error is: what the program says of it, else what is known here.

use std::fmt;
use std::sync::Arc;

use tidegate_core::fault::Fault;

use crate::error::BoxError;
use crate::fault::ToFault;
use crate::retry::Failure;

/// A rule of the program's own, where it has one.
#[derive(Clone, Default)]
pub(super) struct Judge(Option<Arc<Rule>>);

type Rule = dyn Fn(&BoxError) -> Option<Fault> + Send + Sync;

impl Judge {
    /// Only what is known here.
    pub(super) const NONE: Self = Self(None);

    pub(super) fn new(rule: impl Fn(&BoxError) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(rule)))
    }

    pub(super) fn failure(&self, error: impl Into<BoxError>) -> Failure {
        let error = error.into();
        let said = self.0.as_ref().and_then(|rule| rule(&error));
        Failure { fault: Box::new(said.unwrap_or_else(|| error.to_fault())), error: Ok(error) }
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Judge").field(&self.0.is_some()).finish()
    }
}
