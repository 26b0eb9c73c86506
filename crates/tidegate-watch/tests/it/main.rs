//! The audit trail as a whole: what is written, what is lost, what is found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hiding;
mod killing;
mod retention;
mod support;
mod tampering;
mod writing;
