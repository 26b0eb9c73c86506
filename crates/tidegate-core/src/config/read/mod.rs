//! Decides what configuration text means: layers of TOML and environment variables into one [`Config`].
//!
//! Every fault is reported at once, with its place. Reads no file and no environment: text and pairs are handed in.
//! The order of work: parse each file (`tree`), fold camelCase names (`seed_names`), lay the layers on each other
//! (`layers`), read section by section (`table`, `values` and the sections' own files), check what spans sections (here).

mod diagnostic;
mod keys;
mod layers;
mod limits;
mod policy;
mod sections;
mod seed_names;
mod server;
mod table;
mod tree;
mod upstreams;
mod values;
mod watch;

pub use diagnostic::Diagnostic;

use self::diagnostic::{Place, Report, Source};
use self::table::Table;
use self::tree::Entries;
use super::Config;

/// A configuration that holds together, and what is doubtful in it all the same.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What may not be meant; in the order of the sources.
    pub warnings: Vec<Diagnostic>,
}

/// Reads `files`, `(display name, text)`, where later ones win key by key, and lays those variables of `env` on top that are
/// called `TIDEGATE__SECTION__KEY`; the others are ignored.
///
/// # Errors
/// Everything that is wrong, in the order of the sources. Where a file is no TOML only that is told: what follows from it would mislead.
pub fn load(
    files: &[(String, String)],
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with(layers::ENV_PREFIX)).collect();
    // The environment has no order of its own.
    variables.sort();
    let file_sources = files.iter().map(|(name, text)| Source { name: name.clone(), text: Some(text) });
    let variable_sources = variables.iter().map(|(name, _)| Source { name: name.clone(), text: None });
    let report = Report::new(file_sources.chain(variable_sources).collect());

    let mut root = Entries::new();
    for (source, (_, text)) in files.iter().enumerate() {
        let mut layer = tree::parse(text, source, &report);
        seed_names::fold(&mut layer, &report);
        layers::lay(&mut root, layer);
    }
    if report.has_errors() {
        return Err(report.finish().0);
    }
    for (position, (name, value)) in variables.iter().enumerate() {
        let path = name.strip_prefix(layers::ENV_PREFIX).unwrap_or_default();
        layers::lay_variable(&mut root, path, value, files.len() + position, &report);
    }
    let config = read(&root, &report);
    match report.finish() {
        (errors, warnings) if errors.is_empty() => Ok(Loaded { config, warnings }),
        (errors, _) => Err(errors),
    }
}

fn read(root: &Entries, report: &Report<'_>) -> Config {
    let mut document = Table::document(root, report);
    let mut config = Config::default();
    read_section(&mut document, "server", &mut config.server, server::server);
    let with_keys = document.has("key");
    config.set_upstreams(upstreams::upstreams(document.tables("upstream"), with_keys));
    config.keys = keys::keys(document.tables("key"));
    if let Some(limits) = document.table("limit") {
        config.policy.limits = limits::limits(&limits);
    }
    if let Some(groups) = document.table("model_groups") {
        config.model_groups = limits::model_groups(&groups);
    }
    read_section(&mut document, "queue", &mut config.policy.queue, policy::queue);
    read_section(&mut document, "retry", &mut config.policy.retry, policy::retry);
    read_section(&mut document, "breaker", &mut config.policy.breaker, policy::breaker);
    read_section(&mut document, "audit", &mut config.audit, watch::audit);
    config.admins = keys::admins(document.tables("admin"));
    read_section(&mut document, "store", &mut config.store, watch::store);
    config.alerts = watch::alerts(document.tables("alert"));
    read_section(&mut document, "telemetry", &mut config.telemetry, watch::telemetry);
    document.finish();
    config
}

fn read_section<'a, T>(document: &mut Table<'a>, key: &'static str, slot: &mut T, read: impl FnOnce(Table<'a>) -> T) {
    if let Some(table) = document.table(key) {
        *slot = read(table);
    }
}

/// `[[key]]` becomes `[[key]] "billing"`.
fn named<'a>(table: Table<'a>, name: &str) -> Table<'a> {
    let title = format!("{} \"{name}\"", table.title());
    table.titled(title)
}

/// Reports `value` if it is among those `seen`.
fn check_unique<T: PartialEq + Clone>(
    seen: &mut Vec<(T, Place)>,
    value: &T,
    place: Place,
    what: &str,
    report: &Report<'_>,
) {
    match seen.iter().find(|(other, _)| other == value) {
        Some((_, first)) => report.error(
            place,
            format!("the same {what} as at {}", report.name_of(*first)),
            "give each its own, or leave one out",
        ),
        None => seen.push((value.clone(), place)),
    }
}

#[cfg(test)]
mod tests;
