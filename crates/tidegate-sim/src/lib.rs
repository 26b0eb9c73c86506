//! A strict simulator of the OpenAI API: its limiter, its answers and its faults.
//!
//! It stands in for api.openai.com where none may be called: behind `tidegate serve --sim`, in tests and behind load
//! runs. It admits and refuses as OpenAI was measured to do, answers in the shapes that the official SDKs read, fails
//! as a [`Scenario`] says, and is the same again under the same seed. It shares no code with the rest of the workspace,
//! so that a misunderstanding there is not repeated here.
//!
//! ```no_run
//! # async fn run() -> std::io::Result<()> {
//! use tidegate_sim::{Options, Scenario, Simulator};
//!
//! let listen = ([127, 0, 0, 1], 0).into();
//! let simulator = Simulator::start(Scenario::default(), Options::default(), listen).await?;
//! println!("point an OpenAI client at {}", simulator.base_url());
//! # Ok(())
//! # }
//! ```

mod answer;
mod asked;
mod body;
mod draw;
mod exchange;
mod faults;
mod headers;
mod ledger;
pub mod limiter;
mod multipart;
mod reply;
mod route;
pub mod scenario;
mod script;
mod server;
mod shared;
mod socket;
mod tally;
mod wording;

use std::path::PathBuf;

pub use crate::ledger::{GroupStats, LogEntry, Refusal, Stats};
pub use crate::scenario::{Fault, FaultKind, Scenario, ScenarioError};
pub use crate::server::Simulator;

/// How a simulator runs, apart from what it pretends.
#[derive(Debug, Clone)]
pub struct Options {
    /// All draws depend on it and on a request's number only.
    pub seed: u64,
    /// Latencies are divided by it; 0 or less, or infinity: no latency at all. Limits and faults are not scaled.
    pub speed: f64,
    /// Every request that ended is written here as a JSON line.
    pub request_log: Option<PathBuf>,
}

impl Default for Options {
    /// Seed 0, natural speed, no file.
    fn default() -> Self {
        Options { seed: 0, speed: 1.0, request_log: None }
    }
}
