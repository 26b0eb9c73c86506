//! The gateway from outside: real sockets, upstreams that say exactly what a test wants, and the simulator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod alerting;
mod auditing;
mod bad_input;
mod dashboard;
mod describing;
mod ending;
mod keys;
mod learning;
mod operating;
mod overriding;
mod passing;
mod refusing;
mod reloading;
mod retrying;
mod series;
mod simulated;
mod support;
mod telling;
mod tls;
mod upstreams;
mod watching;
mod websockets;
