//! The tidegate proxy: an OpenAI-compatible API listener in front of the decision core, and its admin listener.
//!
//! A call comes in at `listener`, is let past by `guard`, gets its `identity`, and then follows `proxy`, which can be
//! read down one page: read, estimate, admit, send, look, pass on or try again. What is decided is decided by the core;
//! nothing here counts, waits for room or judges a fault.
//!
//! Prompts, completions and credentials are never logged, recorded or kept, at any level.

mod admin;
mod asking;
mod attempt;
mod body;
mod client;
mod connection;
mod gateway;
mod guard;
mod headers;
mod identity;
mod listener;
mod metrics;
mod model;
mod pages;
mod proxy;
mod refusal;
mod reply;
mod room;
mod say;
mod scrape;
mod shared;
mod state;
mod target;
mod tls;
mod token;
mod upstream;
mod websocket;
mod wishes;

pub use gateway::{Gateway, GatewayOptions};
pub use listener::ListenError;
pub use shared::StartError;
