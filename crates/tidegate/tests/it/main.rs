//! Tests of the library against the real core, in tokio's virtual time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod allocations;
mod breaker;
mod driver;
mod errors;
#[cfg(feature = "tower")]
mod layers;
#[cfg(feature = "tower")]
mod layers_idle;
#[cfg(feature = "tower")]
mod layers_judging;
#[cfg(feature = "tower")]
mod layers_learning;
#[cfg(feature = "tower")]
mod layers_once;
#[cfg(feature = "tower")]
mod layers_reading;
mod limiter;
#[cfg(feature = "openai")]
mod openai;
#[cfg(feature = "openai")]
mod provider;
mod retry;
mod strategies;
mod together;
