//! The decision core of tidegate: one pure state machine that says which call may go, when, and what its end means.
//!
//! Nothing here reads a clock, sleeps, locks, draws randomness it was not handed, or does I/O. Every input carries `now`;
//! everything that follows from it comes out of [`gate::Gate::poll_output`]. The tokio driver in the crate `tidegate`,
//! the planner and the simulation in the tests all drive the same code.

pub mod backoff;
pub mod breaker;
pub mod bucket;
pub mod call;
pub mod config;
pub mod cost;
mod credit;
pub mod event;
pub mod fault;
pub mod gate;
mod learn;
mod ledger;
pub mod limit;
mod meter;
pub mod openai;
pub mod outcome;
mod queue;
pub mod refusal;
mod reserve;
pub mod retry;
pub mod retry_budget;
mod slots;
pub mod start;
mod target;
pub mod time;
pub mod window;
