//! Waits and sends: drives the decision core on tokio.

pub mod driver;

pub use driver::{Admission, Driver, Permit, Settled, Waiting};
pub use tidegate_core as core;
