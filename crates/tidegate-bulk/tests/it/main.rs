//! Runs against the simulator, over real sockets.
#![allow(clippy::unwrap_used)]

mod running;
mod support;
