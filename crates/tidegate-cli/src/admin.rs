//! `tidegate admin`: looks at a running gateway, and operates it.

pub(crate) mod client;
mod table;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tidegate_core::limit::Scope;
use tidegate_gateway::{boost_factor, boost_lasting, reason_line};

use self::client::{Reach, in_path};
use crate::outcome::{Failure, print};

/// `tidegate admin`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate admin status\n\
                        Or: tidegate admin breaker force-open openai/gpt-4o --reason \"the upstream's maintenance\"\n\
                        On the same machine it finds the running gateway and its token by itself.")]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    mode: AdminMode,

    #[command(flatten)]
    reach: Reach,

    /// Why; kept in the audit trail
    #[arg(long, value_name = "WHY", value_parser = reason, global = true)]
    reason: Option<String>,

    /// Prints JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum AdminMode {
    /// How everything stands: limits, the fullest first, breakers, the queue, what was learned
    Status,
    /// Breakers: lists them, or sets the state of one by hand
    #[command(after_help = "Example: tidegate admin breaker force-open openai/gpt-4o --reason \"maintenance\"\n\
                            force-open and force-closed hold until reset; force-half-open lets the next calls try it.")]
    Breaker {
        /// force-open, force-half-open, force-closed or reset, and the breaker's name
        #[arg(value_name = "WHAT NAME", num_args = 0..=2)]
        asked: Vec<String>,
    },
    /// Limits: lists them, sets them back to full, or raises one for a while
    Limits {
        #[command(subcommand)]
        mode: Option<LimitsMode>,
    },
    /// Refuses new calls; those under way and those that wait go on
    Pause,
    /// Takes calls again
    Resume,
    /// Reads the configuration again; levels, debts and queues are kept
    Reload,
}

#[derive(Debug, Subcommand)]
enum LimitsMode {
    /// Sets the levels of one limit, or of all, back to full
    Reset {
        /// As in [limit.NAME]; without it, all
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
    },
    /// Raises a limit for a while, then it is as before
    #[command(
        after_help = "Example: tidegate admin limits boost team --factor 1.5 --for 10m --match organization=acme"
    )]
    Boost {
        /// As in [limit.NAME]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Of its allowances; 1 ends a boost
        #[arg(long, value_name = "X", value_parser = factor)]
        factor: f64,
        /// For how long, such as 10m; --factor 1 needs none
        #[arg(long = "for", value_name = "D", value_parser = lasting)]
        lasting: Option<String>,
        /// Which levels: user=ada, organization=acme, model=gpt-4*, … of what the limit is per; repeat it
        #[arg(long = "match", value_name = "K=V", value_parser = pair)]
        matching: Vec<(String, String)>,
    },
}

const TO_BREAKER: [&str; 4] = ["force-open", "force-half-open", "force-closed", "reset"];

/// Longer names and patterns are taken by no gateway.
const PATTERN_CHARS_MAX: usize = 256;

fn factor(written: &str) -> Result<f64, String> {
    let factor = written.parse().map_err(|_| "must be a number, such as 1.5".to_owned())?;
    boost_factor(factor).map_err(|allowed| format!("must be {allowed}, such as 1.5; 1 ends a boost"))
}

/// As it was written: the gateway reads it in the same way.
fn lasting(written: &str) -> Result<String, String> {
    boost_lasting(written)
        .map(|_| written.to_owned())
        .map_err(|allowed| format!("must be {allowed}, such as 10m or 1h30m"))
}

/// Empty where there is none: a shell's variable may be unset.
pub(crate) fn reason(written: &str) -> Result<String, String> {
    reason_line(written)
        .map(|reason| reason.unwrap_or_default().to_owned())
        .map_err(|allowed| format!("must be {allowed}, such as \"maintenance until six\""))
}

fn pair(written: &str) -> Result<(String, String), String> {
    const EXAMPLE: &str = "write it as user=ada or model=gpt-4*";
    let (key, value) = written.split_once('=').ok_or(EXAMPLE)?;
    let (key, value) = (key.trim(), value.trim());
    if Scope::parse(key).is_none() {
        let scopes = Scope::ALL.map(Scope::name).join(", ");
        return Err(format!("\"{key}\" is none of {scopes}; {EXAMPLE}"));
    }
    if value.is_empty() || value.chars().count() > PATTERN_CHARS_MAX || value.chars().any(char::is_control) {
        return Err(format!("the name must be one line of 1 to {PATTERN_CHARS_MAX} characters; {EXAMPLE}"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// What a boost is, as far as can be told before it is asked for.
fn boost(factor: f64, lasting: Option<&str>, matching: &[(String, String)]) -> Result<Map<String, Value>, Failure> {
    if lasting.is_none() && factor != 1.0 {
        return Err(Failure::Usage(
            "--for is missing: for how long, from 1s to 30d, such as --for 10m; only --factor 1, which ends a boost, needs none"
                .to_owned(),
        ));
    }
    let mut named = Map::new();
    for (key, value) in matching {
        if named.insert(key.clone(), value.as_str().into()).is_some() {
            return Err(Failure::Usage(format!(
                "--match names {key} twice; name it once, as a pattern such as {key}=a* where it is to be several"
            )));
        }
    }
    let mut body = Map::from_iter([("factor".to_owned(), json!(factor)), ("match".to_owned(), named.into())]);
    body.extend(lasting.map(|lasting| ("for".to_owned(), lasting.into())));
    Ok(body)
}

/// Asks, and prints what it came to.
pub(crate) fn run(args: AdminArgs) -> Result<(), Failure> {
    let post = |path: String, body: Map<String, Value>| args.post(&path, body);
    match &args.mode {
        AdminMode::Status => args.look(table::status),
        AdminMode::Breaker { asked } if asked.is_empty() => args.look(table::breakers),
        AdminMode::Breaker { asked } => {
            let (what, name) = to_breaker(asked)?;
            post(format!("breakers/{}/{what}", in_path(name)), Map::new())
        }
        AdminMode::Limits { mode: None } => args.look(table::limits),
        AdminMode::Limits { mode: Some(LimitsMode::Reset { name: None }) } => {
            post("limits/reset".to_owned(), Map::new())
        }
        AdminMode::Limits { mode: Some(LimitsMode::Reset { name: Some(name) }) } => {
            post(format!("limits/{}/reset", in_path(name)), Map::new())
        }
        AdminMode::Limits { mode: Some(LimitsMode::Boost { name, factor, lasting, matching }) } => {
            let body = boost(*factor, lasting.as_deref(), matching)?;
            post(format!("limits/{}/boost", in_path(name)), body)
        }
        AdminMode::Pause => post("pause".to_owned(), Map::new()),
        AdminMode::Resume => post("resume".to_owned(), Map::new()),
        AdminMode::Reload => post("reload".to_owned(), Map::new()),
    }
}

/// What is to be done to which breaker, in whichever order they are written.
fn to_breaker(asked: &[String]) -> Result<(&str, &str), Failure> {
    let is_what = |word: &String| TO_BREAKER.contains(&word.as_str());
    match asked {
        [what, name] if is_what(what) => Ok((what, name)),
        [name, what] if is_what(what) => Ok((what, name)),
        _ => Err(Failure::Usage(format!("write one of {} and a breaker's name", TO_BREAKER.join(", ")))),
    }
}

impl AdminArgs {
    fn look(&self, shown: fn(&Value) -> String) -> Result<(), Failure> {
        let status = self.reach.find()?.ask(Method::GET, "/admin/v1/status", None)?;
        print(&if self.json { status.to_string() } else { shown(&status) })
    }

    fn post(&self, path: &str, mut body: Map<String, Value>) -> Result<(), Failure> {
        body.extend(self.reason.as_ref().map(|reason| ("reason".to_owned(), reason.as_str().into())));
        let done = self.reach.find()?.ask(Method::POST, &format!("/admin/v1/{path}"), Some(&body.into()))?;
        told(&done, self.json)
    }
}

/// Prints what was done; what could not be done as it should be goes to the log.
pub(crate) fn told(done: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&done.to_string());
    }
    for warning in done["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        tracing::warn!("{warning}");
    }
    let [what, before, after] = ["what", "before", "after"].map(|field| done[field].as_str().map(table::harmless));
    let what = what.unwrap_or_default();
    print(&match (before, after) {
        (Some(before), Some(after)) => format!("{what}: {after} (before: {before})"),
        (None, Some(one)) | (Some(one), None) => format!("{what}: {one}"),
        (None, None) => format!("{what}: done"),
    })
}
