//! Runs against the simulator over real sockets, and plans held against them.
#![allow(clippy::unwrap_used)]

mod beside_others;
mod planning;
mod running;
mod support;
