//! Tests of the core as a whole: the gate in virtual time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admission;
mod boosting;
mod cool_downs;
mod elsewhere;
mod explaining;
mod gate_properties;
mod governor;
mod overviewing;
mod purity;
mod queueing;
mod restart;
mod schema;
mod sharing;
mod simulation;
mod support;
mod upstream_faults;
