//! `tidegate check`: tells every fault of configuration files.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use tidegate_core::config::{self, Config, Loaded};

use crate::config_files::read_text;
use crate::outcome::{Failure, print};

/// `tidegate check`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate check tidegate.toml\n\
                        Each file is checked by itself, without the environment. Exit code 2 if one is wrong.")]
pub(crate) struct CheckArgs {
    /// The configuration files
    #[arg(required_unless_present = "config", value_name = "F")]
    files: Vec<PathBuf>,
    /// The same, as it is said of the other commands
    #[arg(long, value_name = "F")]
    config: Vec<PathBuf>,
}

/// Checks each file; what was found goes to standard output.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let mut all_good = true;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for path in args.files.iter().chain(&args.config) {
        let name = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(message) => {
                print(&message)?;
                all_good = false;
                continue;
            }
        };
        match config::load(&[(name.clone(), text)], std::iter::empty()) {
            Ok(Loaded { config, warnings }) => {
                for mut warning in warnings {
                    warning.message = format!("warning: {}", warning.message);
                    print(&warning.to_string())?;
                }
                for key in config.keys.iter().filter(|key| key.expires.is_some_and(|expires| expires <= now)) {
                    print(&format!("{name}: warning: key \"{}\" has expired", key.name))?;
                }
                print(&format!("ok: {name} ({})", summary(&config)))?;
            }
            Err(diagnostics) => {
                all_good = false;
                for diagnostic in diagnostics {
                    print(&diagnostic.to_string())?;
                }
            }
        }
    }
    if all_good { Ok(()) } else { Err(Failure::Told) }
}

/// What a file configures: `2 limits, 1 upstream`.
fn summary(config: &Config) -> String {
    let counts = [
        (config.policy.limits.len(), "limit"),
        (config.upstreams.len(), "upstream"),
        (config.keys.len(), "key"),
        (config.admins.len(), "admin"),
        (config.alerts.len(), "alert"),
    ];
    let told: Vec<String> = counts
        .iter()
        .enumerate()
        // How many limits and upstreams there are is what people look for, also where it is none.
        .filter(|(position, (count, _))| *position < 2 || *count > 0)
        .map(|(_, (count, what))| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_is_there() {
        assert_eq!(summary(&Config::default()), "0 limits, 0 upstreams");
        let config = Config { keys: vec![config::KeyConfig::default()], ..Config::default() };
        assert_eq!(summary(&config), "0 limits, 0 upstreams, 1 key");
    }
}
