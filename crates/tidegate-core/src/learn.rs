//! Learned from the server's answers: how far a mirror is off, how the upstream charges, how many calls it takes at first.
//!
//! Decides corrections; never applies one (the ledger does), never touches an own limit.

pub(crate) mod binding;
pub(crate) mod charge;
pub(crate) mod cold_start;
pub(crate) mod correction;
pub(crate) mod flow;
pub(crate) mod output;
pub(crate) mod pace;
