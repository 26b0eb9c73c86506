//! A strict simulator of the OpenAI API: its limiter, its answers and its faults.
#![allow(dead_code)]

mod draw;
pub mod limiter;
pub mod scenario;
mod wording;
