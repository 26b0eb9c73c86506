//! `tidegate audit`: reads the audit trail, also while a gateway writes it.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tidegate_watch::audit::{self, CSV_HEADER, Entry, Filter, Kind, PAGE, Pseudonyms, Reader, Verified};

use crate::config_files::ConfigFiles;
use crate::outcome::{Failure, print, unwritten};
use crate::state_dir;

/// How often `tail` looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `tidegate audit`.
#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate audit query --since 1h --kind throttle\n\
                        The trail is audit.db in the state directory, unless [audit] says otherwise.")]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    mode: AuditMode,
}

#[derive(Debug, Subcommand)]
enum AuditMode {
    /// Prints the newest records, then each that comes, until interrupted
    Tail(TailArgs),
    /// Prints records, the oldest first
    Query(QueryArgs),
    /// Finds records that were edited, removed, reordered or cut off; exit code 1 if any were, or if a start found that they may be
    Verify(VerifyArgs),
    /// Writes records for other programs
    Export(ExportArgs),
}

/// Which trail.
#[derive(Args, Debug)]
struct Trail {
    /// Where the gateway keeps its state [default: $STATE_DIRECTORY, $XDG_STATE_HOME/tidegate, ~/.local/state/tidegate]
    #[arg(long, value_name = "D")]
    state_dir: Option<PathBuf>,

    /// The gateway's configuration, where its [audit] names another path; repeat it as for serve
    #[arg(long, value_name = "F")]
    config: Vec<PathBuf>,
}

/// Which records.
#[derive(Args, Debug)]
struct Asked {
    /// Not older than this: how long ago, such as 90m or 7d, or a date or time such as 2026-11-24T10:00:00Z
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<u64>,

    /// Of this kind: throttle, retry, breaker, override, config, key, degradation, anomaly, alert, gap, retention, call
    #[arg(long, value_name = "K")]
    kind: Option<Kind>,

    /// About calls of this user; also where names are kept as hashes
    #[arg(long, value_name = "U")]
    user: Option<String>,

    /// About the call with this x-tidegate-id
    #[arg(long, value_name = "ID")]
    call: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate audit tail --kind breaker")]
struct TailArgs {
    #[command(flatten)]
    trail: Trail,
    #[command(flatten)]
    asked: Asked,

    /// How many records to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: usize,

    /// A line of JSON each
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate audit query --since 2026-11-24 --kind override\n\
                        Or, why was that call slow: tidegate audit query --call c-4f1a")]
struct QueryArgs {
    #[command(flatten)]
    trail: Trail,
    #[command(flatten)]
    asked: Asked,

    /// A line of JSON each
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate audit verify\n\
                        Keep the head that it prints where nobody who writes the trail can write: it is then proof of what was there.")]
struct VerifyArgs {
    #[command(flatten)]
    trail: Trail,
}

#[derive(Args, Debug)]
#[command(after_help = "Example: tidegate audit export --format csv --since 30d > november.csv\n\
                        In JSONL `record` is the text that is hashed: sha256(hash before, 32 bytes, then the text).")]
struct ExportArgs {
    #[command(flatten)]
    trail: Trail,
    #[command(flatten)]
    asked: Asked,

    /// How records are written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
}

fn since(written: &str) -> Result<u64, String> {
    audit::since(written).map_err(|error| error.to_string())
}

/// Reads the trail.
pub(crate) fn run(args: AuditArgs) -> Result<(), Failure> {
    match args.mode {
        AuditMode::Tail(args) => tail(args),
        AuditMode::Query(args) => query(args),
        AuditMode::Verify(args) => verify(&args.trail),
        AuditMode::Export(args) => export(args),
    }
}

impl Trail {
    fn path(&self) -> Result<PathBuf, Failure> {
        let config = ConfigFiles::new(self.config.clone()).read()?;
        let dir = self.state_dir.clone().or_else(state_dir::usual_place);
        match dir {
            Some(dir) => Ok(dir.join(config.audit.path)),
            None if config.audit.path.is_absolute() => Ok(config.audit.path),
            None => Err(Failure::Usage("neither HOME nor STATE_DIRECTORY is set; name the --state-dir".to_owned())),
        }
    }

    fn open(&self) -> Result<Reader, Failure> {
        Reader::open(&self.path()?).map_err(failed)
    }

    fn filter(&self, asked: Asked) -> Result<Filter, Failure> {
        let mut users: Vec<String> = asked.user.into_iter().collect();
        if let Some(user) = users.first() {
            let pseudonyms = Pseudonyms::of(&self.path()?)
                .map_err(|error| Failure::Failed(format!("the salt of users' hashes cannot be read: {error}")))?;
            users.extend(pseudonyms.map(|pseudonyms| pseudonyms.pseudonym(user)));
        }
        Ok(Filter { since: asked.since, kind: asked.kind, users, call: asked.call })
    }
}

fn failed(error: audit::StoreError) -> Failure {
    Failure::Failed(error.to_string())
}

fn output() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

fn query(args: QueryArgs) -> Result<(), Failure> {
    let line = if args.json { Entry::json_line } else { Entry::to_string };
    let reader = args.trail.open()?;
    let filter = args.trail.filter(args.asked)?;
    let mut out = output();
    let mut place = None;
    loop {
        let (page, end) = reader.page(&filter, place).map_err(failed)?;
        if !write(&mut out, &page, line)? || page.len() < PAGE {
            return Ok(());
        }
        place = end;
    }
}

/// In the order of the chain, so that whoever reads it can follow that.
fn export(args: ExportArgs) -> Result<(), Failure> {
    let line = match args.format {
        Format::Jsonl => Entry::json_line,
        Format::Csv => |entry: &Entry| entry.csv_line() + "\r",
    };
    let reader = args.trail.open()?;
    let filter = args.trail.filter(args.asked)?;
    let mut out = output();
    if args.format == Format::Csv {
        // What cannot be written is told of the first record.
        let _ = writeln!(out, "{CSV_HEADER}\r");
    }
    let mut last = 0;
    loop {
        let page = reader.after(&filter, last).map_err(failed)?;
        last = page.last().map_or(last, |entry| entry.sequence);
        if !write(&mut out, &page, line)? || page.len() < PAGE {
            return Ok(());
        }
    }
}

/// Writes a line each. False: nobody reads them any more, as behind `| head`.
fn write(out: &mut impl Write, page: &[Entry], line: fn(&Entry) -> String) -> Result<bool, Failure> {
    match page.iter().try_for_each(|entry| writeln!(out, "{}", line(entry))).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(unwritten(error)),
    }
}

fn tail(args: TailArgs) -> Result<(), Failure> {
    let line = if args.json { Entry::json_line } else { Entry::to_string };
    let reader = args.trail.open()?;
    let filter = args.trail.filter(args.asked)?;
    let mut out = output();
    // Before the first page: what comes meanwhile is in that or in what follows.
    let mut last = reader.end().map_err(failed)?.sequence;
    let first = reader.latest(&filter, args.lines).map_err(failed)?;
    last = first.iter().map(|entry| entry.sequence).fold(last, u64::max);
    let mut page = first;
    while write(&mut out, &page, line)? {
        page = reader.after(&filter, last).map_err(failed)?;
        match page.last() {
            Some(entry) => last = entry.sequence,
            None => thread::sleep(LOOK_EVERY),
        }
    }
    Ok(())
}

fn verify(trail: &Trail) -> Result<(), Failure> {
    let path = trail.path()?;
    let verified = audit::verify(&path).map_err(failed)?;
    let Verified { records, first, end, uncovered, lost, breaks, left, left_lost, faults, fault_count } = &verified;
    for fault in faults {
        print(&format!("fault: {fault}"))?;
    }
    let told = faults.len() as u64;
    if *fault_count > told {
        print(&format!("… and {} more", count(fault_count - told, "fault")))?;
    }
    if *lost > 0 {
        print(&format!("note: {} could not be kept when they came; see --kind gap", count(*lost, "record")))?;
    }
    for (sequence, how) in breaks {
        print(&format!("broken: record {sequence} tells that {how}: nobody can tell here what was cut off before it"))?;
    }
    if *left > 0 && audit::is_being_written(&path) {
        print(&format!("note: {} wait to be written", count(*left, "record")))?;
    } else if *left > 0 {
        let lost = if *left_lost > 0 { format!(", and tells of {left_lost} lost") } else { String::new() };
        print(&format!(
            "note: whoever writes the trail next adds {} that could not be written yet{lost}",
            count(*left, "record")
        ))?;
    }
    if *uncovered > 0 {
        let why = match audit::is_being_written(&path) {
            true => "as while a gateway writes",
            false => "as after a kill or on a full disk: had more been cut off there, nobody could tell",
        };
        print(&format!("note: the newest {uncovered} are not covered by the head yet, {why}"))?;
    }
    let range = if *records > 0 {
        format!("{}, {first} to {}", count(*records, "record"), end.sequence)
    } else {
        "no records".to_owned()
    };
    if verified.is_proven() {
        return print(&format!("ok: {range}; head {}:{}", end.sequence, end.hash));
    }
    if let Some((newest, _)) = breaks.last() {
        print(&format!(
            "note: compare what stands before record {newest} with an export or a head that was kept elsewhere; verify \
             exits with 1 until the retention of that record is over, or a new trail is begun"
        ))?;
    }
    match fault_count {
        0 => print(&format!(
            "not proven: {range}; {}; head {}:{}",
            count(breaks.len() as u64, "break"),
            end.sequence,
            end.hash
        ))?,
        _ => print(&format!("not as written: {range}; {}", count(*fault_count, "fault")))?,
    }
    Err(Failure::Ended(1))
}

/// So many of them, in words: `1 fault`, `2 faults`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
