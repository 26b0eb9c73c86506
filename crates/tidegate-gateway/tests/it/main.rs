//! The gateway from outside: real sockets, upstreams that say exactly what a test wants, and the simulator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod auditing;
mod bad_input;
mod ending;
mod learning;
mod passing;
mod refusing;
mod retrying;
mod simulated;
mod support;
mod telling;
mod tls;
mod upstreams;
mod watching;
mod websockets;
