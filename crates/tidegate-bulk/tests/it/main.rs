//! Runs against the simulator over real sockets, and plans held against them.
#![allow(clippy::unwrap_used)]

mod planning;
mod running;
mod support;
