//! The binary `tidegate`: a table of modes. Nothing is decided here but which of them runs.

// Doc comments here are the help texts on the terminal, where a bare URL is the clickable one.
#![allow(rustdoc::bare_urls)]

/// Several small allocations a call: this takes a few percent less time over them than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod admin;
mod audit;
mod check;
mod config_files;
mod demo;
mod key;
mod log;
mod outcome;
mod plan;
mod run;
mod serve;
mod signals;
mod sim;
mod state_dir;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps programs that call the OpenAI API inside its limits.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    after_help = "Example: tidegate serve --sim    (then point a client at http://127.0.0.1:8080/v1)\n\
                  Exit codes: 0 ok, 1 failed, 2 bad usage or configuration, 3 partly failed, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,

    #[command(flatten)]
    log: log::LogArgs,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// The gateway: an OpenAI-compatible listener that holds calls until they fit
    Serve(serve::ServeArgs),
    /// A file of requests, as fast as the limits allow; killed at any instant, the same command goes on
    Run(Box<run::RunArgs>),
    /// What traffic would meet under limits, in virtual time
    Plan(plan::PlanArgs),
    /// Callers by themselves beside the same callers behind a gateway: live, then the numbers
    Demo(demo::DemoArgs),
    /// A simulator of the OpenAI API: its limits, its answers, its faults
    Sim(sim::SimArgs),
    /// Checks configuration files: every fault with its place and what to write
    Check(check::CheckArgs),
    /// A running gateway: how it stands, and operating it
    Admin(admin::AdminArgs),
    /// Keys that callers show: makes, lists and revokes them
    Key(key::KeyArgs),
    /// The audit trail: what was held, refused, retried, opened, overridden or changed, and that nobody changed it since
    Audit(audit::AuditArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the gateway of a demonstration holds back is what is shown: lines about each call would tear the picture.
    let level = if matches!(cli.mode, Mode::Demo(_)) { "warn" } else { "info" };
    log::start(&cli.log, level);
    let ended = match cli.mode {
        Mode::Serve(args) => serve::run(args),
        Mode::Run(args) => run::run(*args),
        Mode::Plan(args) => plan::run(&args),
        Mode::Demo(args) => demo::run(&args),
        Mode::Sim(args) => sim::run(args),
        Mode::Check(args) => check::run(&args),
        Mode::Admin(args) => admin::run(args),
        Mode::Key(args) => key::run(args),
        Mode::Audit(args) => audit::run(args),
    };
    let code = outcome::exit_code(ended);
    log::end();
    code
}
