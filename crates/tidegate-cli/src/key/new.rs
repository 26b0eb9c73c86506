//! Decides what a key may be, as far as can be told before it is asked for: by the gateway's own rules.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::PossibleValuesParser;
use tidegate_core::call::Priority;
use tidegate_gateway::{KEY_PATHS, NewKey, key_expires, key_name, key_priorities, key_text};

use crate::outcome::Failure;

#[derive(Args, Debug)]
pub(super) struct NewArgs {
    /// Its name in limits, logs and metrics
    #[arg(value_parser = name)]
    name: String,
    /// Organization of its calls
    #[arg(long, value_name = "O", value_parser = text)]
    organization: Option<String>,
    /// Project of its calls
    #[arg(long, value_name = "P", value_parser = text)]
    project: Option<String>,
    /// User of its calls, where these name none
    #[arg(long, value_name = "U", value_parser = text)]
    user: Option<String>,
    /// Highest priority that its calls may ask for
    #[arg(long, value_name = "P", value_parser = PossibleValuesParser::new(Priority::ALL.map(Priority::name)))]
    max_priority: Option<String>,
    /// Priority of calls that ask for none
    #[arg(long, value_name = "P", value_parser = PossibleValuesParser::new(Priority::ALL.map(Priority::name)))]
    default_priority: Option<String>,
    /// Whether its calls may name the user whom they count for
    #[arg(long, value_name = "true|false")]
    may_name_users: Option<bool>,
    /// What it may use
    #[arg(long, value_name = "P", value_parser = PossibleValuesParser::new(KEY_PATHS))]
    paths: Vec<String>,
    /// Refused from then on, such as 2027-01-01
    #[arg(long, value_name = "T", value_parser = expires)]
    expires: Option<String>,
}

impl NewArgs {
    /// What no flag is by itself.
    pub(super) fn check(&self) -> Result<(), Failure> {
        key_priorities(self.max_priority.as_deref(), self.default_priority.as_deref()).map(drop).map_err(|_| {
            let [max, default] =
                [&self.max_priority, &self.default_priority].map(|word| word.as_deref().unwrap_or("high"));
            Failure::Usage(format!(
                "--default-priority {default} is above --max-priority {max}: it must be that or lower, such as \
                 --default-priority {max}"
            ))
        })
    }

    pub(super) fn key(self, reason: Option<String>) -> NewKey {
        NewKey {
            name: self.name,
            organization: self.organization,
            project: self.project,
            user: self.user,
            max_priority: self.max_priority,
            default_priority: self.default_priority,
            may_name_users: self.may_name_users,
            paths: Some(self.paths).filter(|paths| !paths.is_empty()),
            expires: self.expires,
            reason,
        }
    }
}

fn name(written: &str) -> Result<String, String> {
    key_name(written).map(str::to_owned).map_err(|allowed| format!("must be {allowed}, such as billing"))
}

fn text(written: &str) -> Result<String, String> {
    key_text(written)
        .map(str::to_owned)
        .map_err(|allowed| format!("must be {allowed}, such as acme; leave it out where there is none"))
}

/// As it was written: the gateway reads it in the same way.
fn expires(written: &str) -> Result<String, String> {
    let at = key_expires(written).map_err(|allowed| format!("must be {allowed}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if at <= now.as_secs() {
        return Err(
            "is over already; a key is refused from then on, so write a later date such as 2099-01-01".to_owned()
        );
    }
    Ok(written.to_owned())
}
