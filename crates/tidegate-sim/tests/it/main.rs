//! The simulator over real sockets.

mod client;
mod endpoints;
mod faults;
mod lifecycle;
mod limits;
mod streams;
