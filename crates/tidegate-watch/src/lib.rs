//! What watches tidegate: the audit trail, alerts, and who seems to go round its limits.
//!
//! Everything here is told of what happened, and decides nothing about a call: none of it can slow, block or fail one, unless an
//! operator asked for that.

pub mod alert;
pub mod anomaly;
pub mod audit;
