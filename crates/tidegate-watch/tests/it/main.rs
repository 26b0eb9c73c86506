//! The audit trail as a whole: what is written, what is lost, what is found. And who is suspected, by the traffic of hours.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hiding;
mod killing;
mod retention;
mod support;
mod suspecting;
mod tampering;
mod writing;
