//! `tidegate plan`: what traffic would meet, without any of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidegate_bulk::Shape;
use tidegate_bulk::plan::{self, Answer, Plan, Tiers, Trace};
use tidegate_core::openai::durations::parse_duration;

use crate::config_files::{ConfigFiles, read_text};
use crate::outcome::{Failure, print};

/// `tidegate plan`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: tidegate plan trace.csv --config tidegate.toml --target-p95-wait 2s --html report.html\n\
                        A trace is CSV (timestamp,input_tokens,output_tokens[,model,user,priority]; seconds or RFC 3339),\n\
                        or the input of a run if it begins with an object; - is standard input, .gz and .zst are unpacked.\n\
                        The upstream is taken to answer in 300 ms and 12.5 ms for each token of output, and never to fail."
)]
pub(crate) struct PlanArgs {
    /// What arrives: CSV, or the input of a run, of which all is there at once
    #[arg(value_name = "TRACE")]
    trace: PathBuf,

    /// The limits; repeat it to lay one file over another, the later wins
    #[arg(long, value_name = "F")]
    config: Vec<PathBuf>,

    /// Find the smallest limits under which 95 of 100 calls wait no longer
    #[arg(long, value_name = "D", value_parser = duration)]
    target_p95_wait: Option<Duration>,

    /// A table of tiers of your own; without it, OpenAI's as far as they are published
    #[arg(long, value_name = "F", requires = "target_p95_wait")]
    tiers: Option<PathBuf>,

    /// Prints JSON
    #[arg(long)]
    json: bool,

    /// Writes a page with charts
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,

    /// As of `tidegate run`, for its input
    #[arg(long, value_name = "P")]
    endpoint: Option<String>,

    /// The model of calls that name none
    #[arg(long, value_name = "M")]
    model: Option<String>,

    /// As of `tidegate run`, for its input
    #[arg(long, value_name = "K")]
    prompt_key: Option<String>,
}

#[derive(Serialize)]
struct Said<'p> {
    plan: &'p Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'p Answer>,
}

fn duration(written: &str) -> Result<Duration, String> {
    parse_duration(written).ok_or_else(|| "must be a duration such as 2s or 250ms".to_owned())
}

/// Predicts, and says it.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let config = ConfigFiles::new(args.config.clone()).read()?;
    let shape =
        Shape { endpoint: args.endpoint.clone(), model: args.model.clone(), prompt_key: args.prompt_key.clone() };
    let trace = Trace::read(&args.trace, &shape).map_err(|error| Failure::Usage(error.to_string()))?;
    if config.policy.limits.is_empty() && args.target_p95_wait.is_none() {
        tracing::warn!("no limits are configured, so nothing will wait; write some, or give --target-p95-wait");
    }
    let plan = plan::predict(&trace, &config.policy);
    let answer = match args.target_p95_wait {
        None => None,
        Some(target) => {
            let tiers = read_tiers(args.tiers.as_deref())?;
            Some(plan::search(&trace, &config.policy, &tiers, target).map_err(Failure::Usage)?)
        }
    };
    if let Some(path) = &args.html {
        let title = format!("tidegate plan: {}", args.trace.display());
        fs::write(path, plan::page(&plan, answer.as_ref(), &title))
            .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    if args.json {
        let said = Said { plan: &plan, target: answer.as_ref() };
        return print(&serde_json::to_string(&said).map_err(|error| Failure::Failed(error.to_string()))?);
    }
    print(&plan.to_string())?;
    answer.map_or(Ok(()), |answer| print(&format!("\n{answer}")))
}

fn read_tiers(path: Option<&Path>) -> Result<Tiers, Failure> {
    let Some(path) = path else { return Tiers::shipped().map_err(Failure::Failed) };
    let text = read_text(path).map_err(Failure::Usage)?;
    Tiers::parse(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}
