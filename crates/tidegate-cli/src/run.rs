//! `tidegate run`: a file of requests, from its flags to its exit code.

use std::io::{self, IsTerminal as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidegate::Driver;
use tidegate_bulk::{BesideBar, Input, OnQuota, Options, RunError, Shape, Show, Stop, Summary, Upstream, bulk_policy};
use tidegate_core::call::Priority;
use tidegate_core::config::{Config, SecretSource, UpstreamConfig};
use tidegate_core::gate::Gate;
use tidegate_core::limit::{Dimension, Rates};
use tidegate_core::openai::models::ModelGroups;

use crate::config_files::ConfigFiles;
use crate::log;
use crate::outcome::{Failure, deliver, print};
use crate::serve::{self, API_KEY_VARIABLE, INTERRUPTED, upstream_url};
use crate::signals::Signals;
use crate::state_dir::StateDir;

/// Where SDKs look for the base URL; a run is a client as they are.
const BASE_URL_VARIABLE: &str = "OPENAI_BASE_URL";
/// Paused for want of quota, a run waits no longer than this before it finds out whether there is some again.
const LOOK_FOR_QUOTA_AFTER_MAX: Duration = Duration::from_secs(60);

/// An upstream that starts again is back by then; an address where nobody is is found out in good time.
const GIVE_UP_UNREACHED_AFTER: Duration = Duration::from_secs(15);

/// `tidegate run`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate run prompts.jsonl -o answers.jsonl --model gpt-4o-mini --prompt-key text\n\
                        Try it:  tidegate run requests.jsonl -o results.jsonl --sim    (no key, no network)\n\
                        A line is OpenAI's Batch form, a bare body, or with --prompt-key any object with a text.\n\
                        Results are in the Batch API's output form; OUT.journal beside them is what a run goes on from.\n\
                        Exit codes: 0 all good, 1 it broke off, 2 bad arguments or input, 3 some failed or are left,\n\
                        130 interrupted.")]
pub(crate) struct RunArgs {
    /// Requests, one a line, plain, .gz or .zst; - for standard input
    #[arg(value_name = "INPUT")]
    input: PathBuf,

    /// Results, one a line; .gz and .zst are packed; - for standard output, which cannot be resumed
    #[arg(short, long, value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// A configuration file; repeat it to lay one over another, the later wins
    #[arg(long, value_name = "F")]
    config: Vec<PathBuf>,

    /// Base URL, such as https://api.openai.com/v1 [default: $OPENAI_BASE_URL]; a running tidegate's shares its limits
    #[arg(long, value_name = "URL", value_parser = upstream_url)]
    upstream: Option<String>,

    /// Where bodies without a url of their own go [default: /v1/chat/completions]
    #[arg(long, value_name = "P")]
    endpoint: Option<String>,

    /// The model of bodies that name none
    #[arg(long, value_name = "M")]
    model: Option<String>,

    /// The key of a text that becomes a chat message
    #[arg(long, value_name = "K")]
    prompt_key: Option<String>,

    /// Requests a minute, for each model; limits that are not given are learned
    #[arg(long, value_name = "N", value_parser = above_0)]
    rpm: Option<NonZeroU64>,

    /// Tokens a minute, for each model
    #[arg(long, value_name = "N", value_parser = above_0)]
    tpm: Option<NonZeroU64>,

    /// Requests a day, for each model
    #[arg(long, value_name = "N", value_parser = above_0)]
    rpd: Option<NonZeroU64>,

    /// Tokens a day, for each model
    #[arg(long, value_name = "N", value_parser = above_0)]
    tpd: Option<NonZeroU64>,

    /// Calls under way at once
    #[arg(long, value_name = "N", value_parser = above_0)]
    max_in_flight: Option<NonZeroU64>,

    /// How urgent it is at a gateway: interactive traffic there goes before low
    #[arg(long, value_name = "P", default_value = "low")]
    priority: PriorityArg,

    /// When the bill or a spending cap ends: stop, or pause and try one call now and then, at least each minute
    #[arg(long, value_name = "W", default_value = "stop")]
    on_quota: OnQuotaArg,

    /// Go on without bad lines; they become failures in OUT
    #[arg(long)]
    skip_bad: bool,

    /// Send what failed in an earlier run again
    #[arg(long)]
    retry_failed: bool,

    /// Input and output tokens of the whole job; no call is sent that might go beyond
    #[arg(long, value_name = "N", value_parser = above_0)]
    max_total_tokens: Option<NonZeroU64>,

    /// Send nothing: count the tokens, and predict the time where limits are given
    #[arg(long)]
    dry_run: bool,

    /// The summary as JSON, progress as lines of JSON
    #[arg(long)]
    json: bool,

    /// Where levels of whole days are kept over runs; without it they begin full
    #[arg(long, value_name = "D")]
    state_dir: Option<PathBuf>,

    /// Send it to a simulator that is started for it
    #[arg(long, conflicts_with = "upstream")]
    sim: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PriorityArg {
    Low,
    Normal,
    High,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnQuotaArg {
    Stop,
    Pause,
}

fn above_0(written: &str) -> Result<NonZeroU64, String> {
    written.replace('_', "").parse().map_err(|_| "must be a whole number above 0, such as 500".to_owned())
}

/// Runs the file to its end.
pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    let runtime = serve::runtime()?;
    let ended = runtime.block_on(run_file(args));
    // Whoever still waits for standard input would wait for ever.
    runtime.shutdown_background();
    ended
}

async fn run_file(args: RunArgs) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")))?;
    let stop = Stop::default();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            signals.stop().await;
            stop.ask();
            signals.stop().await;
            BesideBar.clear();
            log::exit(INTERRUPTED);
        }
    });
    let mut config = ConfigFiles::new(args.config.clone()).read()?;
    if args.dry_run {
        return unless_stopped(&stop, move || say_beforehand(&args, config)).await?;
    }
    let simulator = if args.sim { Some(serve::start_simulator().await?) } else { None };
    let upstream = match &simulator {
        Some(simulator) => UpstreamConfig {
            name: "sim".into(),
            base_url: simulator.base_url(),
            api_key: Some(SecretSource::Placeholder),
            ..UpstreamConfig::default()
        },
        None => upstream_of(&args, &config)?,
    };
    config.set_upstreams(vec![upstream.clone()]);
    let upstream_name = if args.sim { "sim".to_owned() } else { upstream.base_url.clone() };
    let upstream = Upstream::new(&upstream).map_err(Failure::Usage)?;
    let input = args.input.clone();
    let input = unless_stopped(&stop, move || open(&input)).await??;

    let state_dir = args.state_dir.clone().map_or(Ok(None), |named| StateDir::take(Some(named)))?;
    let groups = ModelGroups::new(&config.model_groups);
    let mut gate = Gate::new(bulk_policy(config.policy, &rates_of(&args)), fastrand::u64(..));
    if let Some(state_dir) = &state_dir {
        match tidegate::state::load(state_dir.path()) {
            Ok(Some(snapshot)) => gate.restore(snapshot),
            Ok(None) => {}
            Err(error) => tracing::warn!("levels begin full: {error}"),
        }
    }
    let driver = Driver::with_gate(gate);
    let is_json = args.json;
    let to_stdout = args.output.as_ref().is_none_or(|output| output.as_os_str() == "-");
    let ended =
        tidegate_bulk::run(input, upstream, driver.clone(), options_of(args, groups, upstream_name), stop).await;
    if let Some(state_dir) = &state_dir {
        let snapshot = driver.with(|gate, now| gate.snapshot(true, now));
        if let Err(error) = tidegate::state::save(state_dir.path(), &snapshot) {
            tracing::warn!("{error}");
        }
    }
    if let Some(simulator) = simulator {
        simulator.shutdown().await;
    }
    let summary = ended.map_err(failure)?;
    say(&summary, is_json, to_stdout)?;
    match summary.exit_code() {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

/// `--dry-run`.
fn say_beforehand(args: &RunArgs, config: Config) -> Result<(), Failure> {
    let policy = bulk_policy(config.policy, &rates_of(args));
    let said = tidegate_bulk::dry_run(&open(&args.input)?, &shape_of(args), args.skip_bad, &policy).map_err(failure)?;
    if args.json {
        return print(&serde_json::to_string(&said).map_err(|error| Failure::Failed(error.to_string()))?);
    }
    print(&said.to_string())
}

fn open(input: &Path) -> Result<Input, Failure> {
    if input.as_os_str() == "-" {
        tracing::info!("standard input is read to its end before anything is sent");
    }
    Input::new(input).map_err(|error| Failure::Usage(format!("cannot read {}: {error}", input.display())))
}

/// What comes of `work` before anything is sent: whoever wants it to stop need not wait for it.
async fn unless_stopped<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = stop.asked() => Err(failure(RunError::Interrupted)),
        done = tokio::task::spawn_blocking(work) => done.map_err(|error| Failure::Failed(error.to_string())),
    }
}

fn failure(error: RunError) -> Failure {
    match error {
        RunError::Usage(why) => Failure::Usage(why),
        RunError::Failed(why) => Failure::Failed(why),
        RunError::Interrupted => {
            log::say(&error.to_string());
            Failure::Ended(INTERRUPTED as u8)
        }
    }
}

fn shape_of(args: &RunArgs) -> Shape {
    Shape { endpoint: args.endpoint.clone(), model: args.model.clone(), prompt_key: args.prompt_key.clone() }
}

fn rates_of(args: &RunArgs) -> Rates {
    let given = [
        (Dimension::RequestsPerMinute, args.rpm),
        (Dimension::TokensPerMinute, args.tpm),
        (Dimension::RequestsPerDay, args.rpd),
        (Dimension::TokensPerDay, args.tpd),
        (Dimension::MaxInFlight, args.max_in_flight),
    ];
    given.into_iter().fold(Rates::default(), |rates, (dimension, units)| match units {
        Some(units) => rates.with(dimension, units.get()),
        None => rates,
    })
}

fn options_of(args: RunArgs, groups: ModelGroups, upstream_name: String) -> Options {
    let show = if args.json {
        Show::Json
    } else if io::stderr().is_terminal() {
        Show::Bar
    } else {
        Show::Lines
    };
    Options {
        shape: shape_of(&args),
        out: args.output.unwrap_or_default(),
        upstream_name,
        groups,
        priority: match args.priority {
            PriorityArg::Low => Priority::Low,
            PriorityArg::Normal => Priority::Normal,
            PriorityArg::High => Priority::High,
        },
        on_quota: match args.on_quota {
            OnQuotaArg::Stop => OnQuota::Stop,
            OnQuotaArg::Pause => OnQuota::Pause(LOOK_FOR_QUOTA_AFTER_MAX),
        },
        skip_bad: args.skip_bad,
        retry_failed: args.retry_failed,
        give_up_unreached_after: GIVE_UP_UNREACHED_AFTER,
        max_total_tokens: args.max_total_tokens,
        show,
    }
}

/// `--upstream`, else the environment's, else the first that is configured, else OpenAI.
fn upstream_of(args: &RunArgs, config: &Config) -> Result<UpstreamConfig, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let mut upstream = config.upstreams.first().cloned().unwrap_or_default();
    let named = match (&args.upstream, variable(BASE_URL_VARIABLE)) {
        (Some(url), _) => Some(url.clone()),
        (None, Some(url)) if config.upstreams.is_empty() => {
            Some(upstream_url(&url).map_err(|error| Failure::Usage(format!("{BASE_URL_VARIABLE} {error}")))?)
        }
        _ => None,
    };
    if let Some(base_url) = named {
        upstream.base_url = base_url;
    }
    if upstream.api_key.is_none() && variable(API_KEY_VARIABLE).is_some() {
        upstream.api_key = Some(SecretSource::Env(API_KEY_VARIABLE.to_owned()));
    }
    if upstream.api_key.is_none() && upstream.base_url == UpstreamConfig::default().base_url {
        return Err(Failure::Usage(format!(
            "there is no key: set {API_KEY_VARIABLE}, or try it with --sim, which needs none"
        )));
    }
    Ok(upstream)
}

fn say(summary: &Summary, is_json: bool, to_stdout: bool) -> Result<(), Failure> {
    let text = if is_json {
        serde_json::to_string(summary).map_err(|error| Failure::Failed(error.to_string()))?
    } else {
        summary.to_string()
    };
    if !to_stdout {
        return deliver(&text);
    }
    log::say(&text);
    Ok(())
}
