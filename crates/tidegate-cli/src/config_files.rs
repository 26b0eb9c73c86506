//! Decides which configuration is read: the files that were named, else the first that is found; then the environment.

use std::env;
use std::path::{Path, PathBuf};

use tidegate_core::config::{self, Config, Diagnostic, Loaded};

use crate::log;
use crate::outcome::Failure;

/// Where the configuration comes from. Kept, so that a reload looks in the same places again.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFiles {
    named: Vec<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub(crate) enum ConfigFault {
    /// A file cannot be read.
    Unreadable(String),
    /// What was read does not hold together.
    Wrong(Vec<Diagnostic>),
}

impl ConfigFiles {
    /// `named` if there are any, else the usual places.
    pub(crate) const fn new(named: Vec<PathBuf>) -> Self {
        Self { named }
    }

    /// The files to read: in the working directory, the user's or the machine's, whichever is there first, or none.
    fn paths(&self) -> Vec<PathBuf> {
        if !self.named.is_empty() {
            return self.named.clone();
        }
        let user = env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            // Source: XDG base directory specification: relative paths are to be ignored.
            .filter(|path| path.is_absolute())
            .or_else(|| Some(env::home_dir()?.join(".config")));
        let places = [
            Some(PathBuf::from("tidegate.toml")),
            user.map(|user| user.join("tidegate/tidegate.toml")),
            Some(PathBuf::from("/etc/tidegate/tidegate.toml")),
        ];
        places.into_iter().flatten().find(|path| path.is_file()).into_iter().collect()
    }

    /// Reads them and the environment, and logs what was read and what is doubtful in it.
    pub(crate) fn read(&self) -> Result<Config, ConfigFault> {
        let mut files = Vec::new();
        for path in self.paths() {
            files.push((path.display().to_string(), read_text(&path).map_err(ConfigFault::Unreadable)?));
        }
        let Loaded { config, warnings } = config::load(&files, variables()).map_err(ConfigFault::Wrong)?;
        let overrides: Vec<String> =
            variables().map(|(name, _)| name).filter(|name| name.starts_with("TIDEGATE__")).collect();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        match (names.as_slice(), overrides.as_slice()) {
            ([], []) => tracing::debug!("no configuration file; everything is as by default"),
            (files, []) => tracing::info!("configuration read from {}", files.join(", ")),
            ([], variables) => tracing::info!("configuration read from the environment: {}", variables.join(", ")),
            (files, variables) => {
                let (files, variables) = (files.join(", "), variables.join(", "));
                tracing::info!("configuration read from {files}, then the environment: {variables}");
            }
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }
}

impl From<ConfigFault> for Failure {
    fn from(fault: ConfigFault) -> Self {
        match fault {
            ConfigFault::Unreadable(message) => Self::Usage(message),
            ConfigFault::Wrong(diagnostics) => {
                for diagnostic in diagnostics {
                    log::say(&diagnostic.to_string());
                }
                Self::Told
            }
        }
    }
}

/// The text of a file; the error says which one.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The environment, as far as it is text.
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
