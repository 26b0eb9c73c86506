//! The tidegate proxy: an OpenAI-compatible API listener in front of the decision core, and its admin listener.
//!
//! A call comes in at `listener`, is let past by `guard`, gets its `identity`, and then follows three files that can each be
//! read down one page: `proxy` (read, estimate), `order` (at which upstream, and at which next) and `leg` (admit, send, look, pass
//! on or try again). What is decided is decided by the core; nothing here waits for room or judges a fault.
//!
//! Prompts, completions and credentials are never logged, recorded or kept, at any level.

mod admin;
mod alerting;
mod asking;
mod attempt;
mod audit;
mod body;
mod candidates;
mod client;
mod connection;
mod cores;
mod dashboard;
mod delivery;
mod event_log;
mod exposition;
mod flood;
mod gateway;
mod guard;
mod headers;
mod identity;
mod kept_models;
mod keys;
mod last_minute;
mod leg;
mod listener;
mod metrics;
mod model;
mod operating;
mod order;
mod pages;
mod proxy;
mod quota;
mod refusal;
mod reload;
mod reply;
mod room;
mod say;
mod scrape;
mod shared;
mod state;
mod sticky;
mod stopwatch;
mod target;
mod tls;
mod token;
mod told;
mod upstream;
mod watching;
mod websocket;
mod wishes;

pub use admin::{boost_factor, boost_lasting, reason_line};
pub use gateway::{Gateway, GatewayOptions};
pub use keys::{
    KEY_PATHS, KeyFault, KeyList, ListedKey, MadeKeys, NewKey, key_expires, key_name, key_priorities, key_text,
};
pub use listener::ListenError;
pub use reload::ConfigSource;
pub use shared::StartError;
pub use state::{ADMIN_ADDRESS_FILE, ADMIN_TOKEN_FILE};
