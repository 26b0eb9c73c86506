//! Files of requests, as fast as the limits allow: the bulk runner, and what it would take: the planner.
//!
//! One line of input is one call, one call is one line of output. Nothing is decided here of limits, retries or outages: that
//! is the core's, and the driver's to wait for. What is decided here is what a line asks for, in which order lines are read
//! ahead, and how a run that was killed goes on.

mod account;
mod bar;
mod call;
mod ceiling;
mod dry_run;
mod feed;
mod input;
mod journal;
mod known;
mod line;
mod look;
mod output;
mod packing;
pub mod plan;
mod progress;
mod quota;
mod ramp;
mod run;
mod send;
mod summary;

pub use bar::BesideBar;
pub use call::bulk_policy;
pub use dry_run::{DryRun, dry_run};
pub use input::{Input, Survey};
pub use line::{BadLine, Shape};
pub use progress::Show;
pub use quota::OnQuota;
pub use run::{Options, RunError, Stop, run};
pub use send::{Upstream, choose_crypto};
pub use summary::{Ending, Near, Summary};
