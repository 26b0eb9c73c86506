//! OpenAI's words into ours: endpoints, estimates, limits in headers, faults, usage.
//!
//! Pure parsing of what it is handed: no I/O, no clock (unix time is an argument), no HTTP types. It runs on every call
//! that passes, so it borrows from the bytes it reads and builds no tree of them. Other people's words are never trusted:
//! whatever bytes arrive, nothing here panics, and no prompt or completion gets into what it says of them.

mod body;
mod calibration;
pub mod durations;
pub mod endpoints;
pub mod estimate;
pub mod faults;
pub mod headers;
mod message;
pub mod models;
pub mod sse;
pub mod stream;
mod text;
pub mod usage;
mod words;
