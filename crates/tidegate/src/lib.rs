//! Waits and sends: drives the decision core on tokio.

pub mod driver;
pub mod state;

pub use driver::{Admission, Driver, Permit, Settled, Waiting, WeakDriver};
pub use tidegate_core as core;
