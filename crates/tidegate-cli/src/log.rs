//! Decides how logs look: always on standard error, which `RUST_LOG` filters and `NO_COLOR` keeps plain.

mod queue;

use std::io::IsTerminal;
use std::process;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Flags about logs, of every mode.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// How log lines look on standard error; RUST_LOG=debug says more of them
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true, display_order = 100)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Starts logging. `RUST_LOG` absent: `level`; unreadable: `info`.
pub(crate) fn start(args: &LogArgs, level: &str) {
    let written = std::env::var("RUST_LOG").unwrap_or_default();
    let wanted = if written.trim().is_empty() { level } else { &written };
    let (filter, unreadable) = match EnvFilter::try_new(wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    queue::start();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| queue::Lines);
    match args.log_format {
        LogFormat::Text => lines.with_ansi(wants_color()).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(error) = unreadable {
        tracing::warn!("RUST_LOG=\"{written}\" is no filter ({error}); write a level such as \"debug\"");
    }
}

/// Says something that is no log line, after those before it.
pub(crate) fn say(text: &str) {
    queue::say(text);
}

/// Writes what is still to be written: whoever ends the process calls this first. Takes a second at most.
pub(crate) fn end() {
    queue::end();
}

/// Ends the process at once.
pub(crate) fn exit(code: i32) -> ! {
    end();
    process::exit(code)
}

/// Source: no-color.org: any value but the empty one.
fn wants_color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
