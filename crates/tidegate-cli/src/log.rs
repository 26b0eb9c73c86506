//! Decides how logs look: always on standard error, which `RUST_LOG` filters and `NO_COLOR` keeps plain.

mod queue;

use std::io::IsTerminal;
use std::process;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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

/// Starts logging. `RUST_LOG` absent: `level`; unreadable: `info`; its levels without a target are those of [`ours`].
pub(crate) fn start(args: &LogArgs, level: &str) {
    let written = std::env::var("RUST_LOG").unwrap_or_default();
    let wanted = if written.trim().is_empty() { level } else { &written };
    let (filter, unreadable) = match EnvFilter::try_new(ours(wanted)) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    queue::start();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| queue::Lines);
    match args.log_format {
        LogFormat::Text => lines.with_ansi(wants_color()).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).init(),
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

/// `written`, where a level below info that names no target is tidegate's own: what it is made of says several lines a call then, of
/// connections for the most part, which is for those who name it.
fn ours(written: &str) -> String {
    let level_of = |part: &str| part.trim().parse::<LevelFilter>().ok().filter(|level| *level > LevelFilter::INFO);
    // The last of several counts, as without this.
    let Some(level) = written.split(',').filter_map(level_of).next_back() else { return written.to_owned() };
    // Every target of ours begins so. What was named comes after it, and so goes before it.
    let mut filter = format!("info,tidegate={level}");
    for named in written.split(',').filter(|part| level_of(part).is_none()) {
        filter += ",";
        filter += named;
    }
    filter
}

/// Source: no-color.org: any value but the empty one.
fn wants_color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_without_a_target_is_for_tidegates_own_lines() {
        for (written, filter) in [
            ("debug", "info,tidegate=debug"),
            ("TRACE", "info,tidegate=trace"),
            ("info", "info"),
            ("warn,hyper_util=debug", "warn,hyper_util=debug"),
            ("tidegate_core=trace, debug,hyper_util=warn", "info,tidegate=debug,tidegate_core=trace,hyper_util=warn"),
            ("nonsense=", "nonsense="),
        ] {
            assert_eq!(ours(written), filter);
        }
    }
}
