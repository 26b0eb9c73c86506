//! Reads `[[upstream]]`.

use std::path::PathBuf;
use std::sync::Arc;

use super::table::{Field, Table};
use super::tree::Value;
use super::values::{boolean, bound, choice, count, list, optional_text, some_duration, word};
use super::{check_unique, named};

use crate::config::{ModelMap, SecretSource, TokenCharge, UpstreamConfig, UpstreamKind, parse_base_url};

/// `with_keys`: callers bring tidegate keys, which must reach nobody else.
pub(super) fn upstreams(tables: Vec<Table<'_>>, with_keys: bool) -> Vec<UpstreamConfig> {
    let mut seen = Vec::new();
    let mut upstreams = Vec::new();
    for (position, table) in tables.into_iter().enumerate() {
        let (place, report) = (table.place, table.report);
        let upstream = upstream(table, position, with_keys);
        check_unique(&mut seen, &upstream.name, place, "upstream", report);
        upstreams.push(upstream);
    }
    upstreams
}

fn upstream(mut table: Table<'_>, position: usize, with_keys: bool) -> UpstreamConfig {
    let mut upstream = UpstreamConfig::default();
    let kinds =
        [("openai", UpstreamKind::OpenAi), ("azure", UpstreamKind::Azure), ("compatible", UpstreamKind::Compatible)];
    table.set("kind", &mut upstream.kind, |field| choice(field, &kinds));
    let fallback_name = match upstream.kind {
        UpstreamKind::OpenAi => "openai",
        UpstreamKind::Azure => "azure",
        UpstreamKind::Compatible => "compatible",
    };
    upstream.name = Arc::from(fallback_name);
    table.set("name", &mut upstream.name, upstream_name);
    let mut table = named(table, &upstream.name);
    match table.field("base_url") {
        Some(field) => {
            if let Some(url) = base_url(&field, upstream.kind) {
                upstream.base_url = url;
            }
        }
        None if upstream.kind != UpstreamKind::OpenAi => {
            table.missing("base_url", "write base_url = \"https://HOST/v1\"");
        }
        None => {}
    }
    match table.field("api_key").filter(|field| field.as_text() != Some("")) {
        Some(field) => upstream.api_key = secret(&field),
        None => without_credential(&table, position, upstream.kind, with_keys),
    }
    table.set("fallback", &mut upstream.fallback, boolean);
    table.set("weight", &mut upstream.weight, count);
    table.set("models", &mut upstream.models, models);
    table.set("connect_timeout", &mut upstream.connect_timeout, some_duration);
    table.set("first_byte_timeout", &mut upstream.first_byte_timeout, bound);
    table.set("idle_timeout", &mut upstream.idle_timeout, bound);
    table.set("learn_limits", &mut upstream.learn_limits, boolean);
    table.set("token_charge", &mut upstream.token_charge, |field| {
        choice(
            field,
            &[
                ("input", TokenCharge::Input),
                ("input_plus_max", TokenCharge::InputPlusMax),
                ("max", TokenCharge::Max),
                ("usage", TokenCharge::Usage),
                ("learned", TokenCharge::Learned),
            ],
        )
    });
    table.set_some("ca_file", &mut upstream.ca_file, |field| optional_text(field).map(PathBuf::from));
    table.finish();
    upstream
}

fn without_credential(table: &Table<'_>, position: usize, kind: UpstreamKind, with_keys: bool) {
    const WRITE: &str = "write api_key = \"env:NAME\" or \"file:PATH\"";
    let title = table.title();
    if with_keys {
        let message =
            format!("{title} needs an api_key: callers have a [[key]] of tidegate's, which is never forwarded");
        table.report.error(table.place, message, WRITE);
    } else if position > 0 && kind != UpstreamKind::Compatible {
        let message = format!("{title} has no api_key, and a caller's credential goes to the first upstream only");
        table.report.warn(table.place, message, WRITE);
    }
}

/// Upstreams' names are part of accounts, breakers' names and paths, where `#` and `/` separate.
fn upstream_name(field: &Field<'_>) -> Option<Arc<str>> {
    let name = word(field)?;
    if !name.chars().all(|any| any.is_ascii_alphanumeric() || matches!(any, '_' | '-' | '.')) {
        field.error(format!("cannot be \"{name}\""), "use letters, digits, \"_\", \"-\" and \".\"");
        return None;
    }
    Some(Arc::from(name))
}

fn base_url(field: &Field<'_>, kind: UpstreamKind) -> Option<String> {
    let written = word(field)?;
    let url = match parse_base_url(written) {
        Ok(url) => url,
        Err(error) => {
            field.error(error.problem, error.hint);
            return None;
        }
    };
    let path = url.splitn(4, '/').nth(3).unwrap_or("");
    let ends_in_v1 = path == "v1" || path.ends_with("/v1");
    match kind {
        UpstreamKind::OpenAi if !ends_in_v1 => {
            field.error(
                format!("\"{written}\" does not end in /v1"),
                format!("write \"{url}/v1\", or kind = \"compatible\" where this provider's paths begin otherwise"),
            );
            return None;
        }
        UpstreamKind::Compatible if !ends_in_v1 => {
            field.warn(
                format!("\"{written}\" does not end in /v1"),
                "make sure that PATH/chat/completions is right below it",
            );
        }
        UpstreamKind::Azure if !ends_in_v1 && !path.ends_with("openai") => {
            field.warn(
                format!("\"{written}\" does not end in /v1"),
                "Azure's are \"https://RESOURCE.openai.azure.com/openai\" for deployments and …/openai/v1",
            );
        }
        _ => {}
    }
    Some(url)
}

/// `env:NAME` or `file:PATH`; `""` for none. Anything else may be the secret itself, and is not shown.
pub(super) fn secret(field: &Field<'_>) -> Option<SecretSource> {
    let written = match field.as_text() {
        Some("") => return None,
        Some(written) => written,
        None => "",
    };
    if let Some(name) = written.strip_prefix("env:")
        && !name.is_empty()
        && !name.contains(['=', '\0'])
    {
        return Some(SecretSource::Env(name.to_owned()));
    }
    if let Some(path) = written.strip_prefix("file:")
        && !path.is_empty()
    {
        return Some(SecretSource::File(PathBuf::from(path)));
    }
    field.error(
        "must say where the secret is kept, not what it is",
        format!("write {} = \"env:NAME\" or \"file:PATH\"", field.key),
    );
    None
}

fn models(field: &Field<'_>) -> Option<ModelMap> {
    match field.value {
        Value::Table(_) => {
            let table = field.table("[[upstream]].models".to_owned())?;
            let fields = table.named_fields();
            let renames = fields.iter().map(|field| Some((field.key.to_owned(), word(field)?.to_owned())));
            renames.collect::<Option<_>>().map(ModelMap::Renames)
        }
        _ => {
            let globs = list(field, |item| word(item).map(str::to_owned))?;
            if globs.is_empty() {
                field.error("must name a model", "write [\"*\"] for all");
                return None;
            }
            Some(ModelMap::Globs(globs))
        }
    }
}
