//! `tidegate key`: makes, lists and revokes tidegate keys, through the running gateway, or in the state directory where none runs.

mod new;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use tidegate_core::config::{Config, OnAuditFailure};
use tidegate_gateway::MadeKeys;
use tidegate_watch::audit::{Kind, Record, Trail, TrailDown, TrailOptions};

use self::new::NewArgs;
use crate::admin::client::{Admin, Reach, Reached, in_path};
use crate::admin::{reason, told};
use crate::config_files::ConfigFiles;
use crate::outcome::{Failure, deliver, print};

/// Who the one is that can write the state directory.
const LOCAL: &str = "local";
/// Of the first key.
const NEEDED_NOW: &str = "from now on calls need a key";
/// How long an audit trail is waited for that somebody has locked.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// `tidegate key`.
#[derive(Args, Debug)]
#[command(after_help = "Example: KEY=$(tidegate key new billing --organization acme)\n\
                        The key is printed once, and only its hash is kept. Once there is one, calls need a key.")]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    mode: KeyMode,

    #[command(flatten)]
    reach: Reach,

    /// The gateway's configuration, where no gateway runs; repeat it as for serve
    #[arg(long, value_name = "F", global = true)]
    config: Vec<PathBuf>,

    /// Why; kept in the audit trail
    #[arg(long, value_name = "WHY", value_parser = reason, global = true)]
    reason: Option<String>,

    /// Prints JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum KeyMode {
    /// Makes a key and prints it, the only time that it is told
    New(NewArgs),
    /// Lists keys, without what they are
    List,
    /// Takes a key away: the next call that shows it is refused
    Revoke {
        /// The key's name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

/// Makes, lists or revokes.
pub(crate) fn run(args: KeyArgs) -> Result<(), Failure> {
    let KeyArgs { mode, reach, config, reason, json } = args;
    let reason = reason.filter(|reason| !reason.is_empty());
    if let KeyMode::New(new) = &mode {
        new.check()?;
    }
    match reach.gateway_or_state()? {
        Reached::Gateway(admin) => online(mode, &admin, reason, json),
        Reached::State(state) => {
            let config = ConfigFiles::new(config).read()?;
            Offline { dir: state.path(), config, reason, json }.run(mode)
        }
    }
}

fn online(mode: KeyMode, admin: &Admin, reason: Option<String>, as_json: bool) -> Result<(), Failure> {
    match mode {
        KeyMode::New(new) => {
            let body = serde_json::to_value(new.key(reason)).map_err(|error| Failure::Failed(error.to_string()))?;
            let made = admin.ask(Method::POST, "/admin/v1/keys", Some(&body))?;
            shown_once(&made, as_json)
        }
        KeyMode::List => list(&admin.ask(Method::GET, "/admin/v1/keys", None)?, as_json),
        KeyMode::Revoke { name } => {
            let path = format!("/admin/v1/keys/{}", in_path(&name));
            told(&admin.ask(Method::DELETE, &path, Some(&json!({ "reason": reason })))?, as_json)
        }
    }
}

/// The key alone on standard output, for scripts. Where nobody gets it, nobody will.
fn shown_once(made: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return deliver(&made.to_string());
    }
    for warning in made["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        tracing::warn!("{warning}");
    }
    deliver(made["key"].as_str().unwrap_or_default())
}

fn list(told: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print(&told.to_string());
    }
    for key in told["keys"].as_array().into_iter().flatten() {
        let mut line = key["name"].as_str().unwrap_or_default().to_owned();
        for field in ["organization", "project", "user", "paths", "expires", "created_by", "created_at", "origin"] {
            if let Some(value) = key[field].as_str() {
                line += &format!("  {}={value}", field.replace('_', "-"));
            }
        }
        if key["is_expired"] == true {
            line += "  EXPIRED";
        }
        print(&line)?;
    }
    Ok(())
}

/// No gateway runs: the state directory is this process's alone.
struct Offline<'d> {
    dir: &'d Path,
    config: Config,
    reason: Option<String>,
    json: bool,
}

impl Offline<'_> {
    fn run(self, mode: KeyMode) -> Result<(), Failure> {
        let failed = |fault: tidegate_gateway::KeyFault| Failure::Failed(fault.to_string());
        let mut keys = MadeKeys::load(self.dir).map_err(failed)?;
        let configured = &self.config.keys;
        match mode {
            KeyMode::New(new) => {
                let new = new.key(None);
                let name: Arc<str> = new.name.as_str().into();
                let needed_before = keys.listed(configured).needed;
                let secret = keys.make(new, LOCAL.into(), configured).map_err(failed)?;
                let unrecorded =
                    self.record(Record { after: Some(name.clone()), ..Record::new(Kind::Key, "created") })?;
                keys.save(self.dir).map_err(failed)?;
                let needed_now = (!needed_before).then(|| NEEDED_NOW.to_owned());
                let done = json!({ "name": name, "key": secret, "what": "created", "after": name });
                shown_once(&with_warnings(done, unrecorded, needed_now), self.json)
            }
            KeyMode::List => {
                let told = serde_json::to_value(keys.listed(configured));
                list(&told.map_err(|error| Failure::Failed(error.to_string()))?, self.json)
            }
            KeyMode::Revoke { name } => {
                keys.revoke(&name, configured).map_err(failed)?;
                let name: Arc<str> = name.into();
                let unrecorded =
                    self.record(Record { before: Some(name.clone()), ..Record::new(Kind::Key, "revoked") })?;
                keys.save(self.dir).map_err(failed)?;
                told(&with_warnings(json!({ "what": "revoked", "before": name }), unrecorded, None), self.json)
            }
        }
    }

    /// Writes it into the trail before it takes effect, as a gateway does. Some: it is not there yet, and why.
    fn record(&self, record: Record) -> Result<Option<String>, Failure> {
        let audit = &self.config.audit;
        let record = Record { who: Some(LOCAL.into()), why: self.reason.as_deref().map(Into::into), ..record };
        let options = TrailOptions { retention: audit.retention, ..TrailOptions::new(self.dir.join(&audit.path)) };
        let written = Trail::start(options).map_err(|error| error.to_string()).and_then(|trail| {
            let written = match audit.on_failure {
                OnAuditFailure::Refuse => patiently(|| trail.append_durable(record.clone())),
                OnAuditFailure::Continue => {
                    trail.append_durable_or_later(record).or_else(|_| patiently(|| trail.flush()))
                }
            };
            written.map_err(|error| error.to_string())
            // Its end leaves what is not written beside it, and says so: before the key is kept.
        });
        match written {
            Ok(()) => Ok(None),
            Err(why) if audit.on_failure == OnAuditFailure::Refuse => {
                Err(Failure::Failed(format!("{why}; nothing has changed")))
            }
            Err(why) => Ok(Some(format!("the change of the key takes effect before it is in the audit trail: {why}"))),
        }
    }
}

/// What was done as a gateway tells it.
fn with_warnings(mut done: Value, unrecorded: Option<String>, more: Option<String>) -> Value {
    done["recorded"] = unrecorded.is_none().into();
    let warnings: Vec<String> = unrecorded.into_iter().chain(more).collect();
    if !warnings.is_empty() {
        done["warnings"] = warnings.into();
    }
    done
}

/// Tries until it can be done, or for a while.
fn patiently(attempt: impl Fn() -> Result<(), TrailDown>) -> Result<(), TrailDown> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => thread::sleep(RETRY_EVERY),
            done => return done,
        }
    }
}
