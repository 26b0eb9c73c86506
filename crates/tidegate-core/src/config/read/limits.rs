//! Reads `[limit.NAME]` and `[model_groups]`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::seed_names::RATE_LIMIT;
use super::table::{Field, Table, closest, shown};
use super::tree::Value;
use super::values::{choice, list, word};
use crate::limit::{Algorithm, Allowance, Dimension, Limit, Mode, Override, Rates, Scope};

/// More than any provider allows; keeps every product of units and microseconds within what the core computes exactly.
const UNITS_MAX: u64 = 1_000_000_000_000;

/// The name under which limits that were learned appear.
const LEARNED: &str = "learned";

const SCOPES: [(Scope, &str); 7] = [
    (Scope::Account, "accounts"),
    (Scope::Key, "keys"),
    (Scope::Organization, "organizations"),
    (Scope::Project, "projects"),
    (Scope::User, "users"),
    (Scope::Model, "models"),
    (Scope::RequestType, "request_types"),
];

pub(super) fn limits(table: &Table<'_>) -> Vec<Limit> {
    table.named_fields().iter().filter_map(limit).collect()
}

fn limit(field: &Field<'_>) -> Option<Limit> {
    let mut table = field.table(format!("[limit.{}]", field.key))?;
    check_name(field);
    let mut per = Vec::new();
    let mut per_is_wrong = false;
    match table.field("per") {
        Some(field) => match list(&field, scope) {
            Some(scopes) => per = scopes,
            None => per_is_wrong = true,
        },
        // The interface that wrote `rateLimit` counted for each organization and user, with numbers for each model.
        None if field.key == RATE_LIMIT && field.camel_case => {
            per = vec![Scope::Organization, Scope::User, Scope::Model];
        }
        None => {}
    }
    per.sort_unstable();
    per.dedup();
    let mut algorithm = None;
    let mut mode = Mode::default();
    table.set_some("algorithm", &mut algorithm, |field| {
        choice(field, &[("token_bucket", Algorithm::TokenBucket), ("sliding_window", Algorithm::SlidingWindow)])
    });
    table.set("mode", &mut mode, |field| choice(field, &[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)]));
    let base = rates(&mut table);
    let mut overrides = Vec::new();
    for (scope, key) in SCOPES {
        if let Some(field) = table.field(key) {
            if !per_is_wrong && !per.contains(&scope) {
                without_levels(&field, scope, &per, table.title());
            }
            overrides.extend(read_overrides(&field, scope, &base, table.title()));
        }
    }
    check_base_burst(&mut table, &base);
    let says_nothing = |rates: &Rates| rates.allowances.iter().all(Option::is_none);
    if says_nothing(&base) && overrides.iter().all(|exception: &Override| says_nothing(&exception.rates)) {
        let names = Dimension::ALL.map(Dimension::name).join(", ");
        field.report.warn(field.place, format!("{} limits nothing", table.title()), format!("write one of {names}"));
    }
    table.finish();
    Some(Limit { name: Arc::from(field.key), per, base, overrides, algorithm, mode })
}

/// Limits' names are part of headers, metrics and paths in which `/` separates.
fn check_name(field: &Field<'_>) {
    let allowed = |any: char| any.is_ascii_alphanumeric() || matches!(any, '_' | '-' | '.');
    if field.key.is_empty() || !field.key.chars().all(allowed) {
        field.report.error(
            field.place,
            format!("a limit cannot be named \"{}\"", field.key),
            "use letters, digits, \"_\", \"-\" and \".\"",
        );
    } else if field.key == LEARNED {
        field.report.error(
            field.place,
            format!("the name \"{LEARNED}\" is taken by the limits that are learned from an upstream"),
            "choose another",
        );
    }
}

fn scope(field: &Field<'_>) -> Option<Scope> {
    let written = word(field)?;
    let found = Scope::parse(written);
    if found.is_none() {
        let words = SCOPES.map(|(scope, _)| scope.name());
        let hint = match closest(written, &words) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write any of {}", words.join(", ")),
        };
        field.error(format!("cannot have a level for each \"{written}\""), hint);
    }
    found
}

fn rates(table: &mut Table<'_>) -> Rates {
    let mut rates = Rates::default();
    for dimension in Dimension::ALL {
        table.set_some(dimension.name(), &mut rates.allowances[dimension.index()], allowance);
    }
    table.set_some("burst_allowance", &mut rates.burst_allowance, |field| match allowance(field)? {
        Allowance::Units(units) => Some(units),
        Allowance::Unlimited | Allowance::Blocked => {
            field.wrong("a number of requests", "leave it out for a whole minute's worth");
            None
        }
    });
    rates
}

fn allowance(field: &Field<'_>) -> Option<Allowance> {
    const FORBID: &str = "write \"unlimited\" to lift it or \"blocked\" to forbid";
    match field.scalar() {
        Value::Integer(0) => field.error("must be above 0", FORBID),
        Value::Integer(units) => match u64::try_from(*units) {
            Ok(units) if units <= UNITS_MAX => return NonZeroU64::new(units).map(Allowance::Units),
            Ok(_) => {
                field.error(format!("must be at most {UNITS_MAX}, not {units}"), "write \"unlimited\" to lift it");
            }
            Err(_) if *units < 0 => field.error(format!("must be above 0, not {units}"), FORBID),
            Err(_) => field.error(format!("must be at most {UNITS_MAX}"), "write \"unlimited\" to lift it"),
        },
        Value::Text(text) if text == "unlimited" => return Some(Allowance::Unlimited),
        Value::Text(text) if text == "blocked" => return Some(Allowance::Blocked),
        other => field.error(
            format!("must be a whole number, \"unlimited\" or \"blocked\", not {}", shown(other)),
            "write a number without quotes, such as 3500",
        ),
    }
    None
}

/// A burst is counted in requests, so that without a number of requests it says nothing.
fn check_base_burst(table: &mut Table<'_>, base: &Rates) {
    let Some(burst) = base.burst_allowance else { return };
    let Some(field) = table.field("burst_allowance") else { return };
    check_burst(&field, burst, base.allowance(Dimension::RequestsPerMinute));
}

fn check_burst(field: &Field<'_>, burst: NonZeroU64, requests: Option<Allowance>) {
    match requests {
        Some(Allowance::Units(requests)) if burst > requests => field.warn(
            format!(
                "{burst} is above requests_per_minute {requests}: no more than a minute's worth goes at one instant"
            ),
            "leave it out for a whole minute's worth",
        ),
        Some(Allowance::Units(_) | Allowance::Blocked) => {}
        Some(Allowance::Unlimited) | None => field.error(
            "needs requests_per_minute: the other per-minute dimensions scale with their ratio",
            "write requests_per_minute, or leave burst_allowance out",
        ),
    }
}

fn without_levels(field: &Field<'_>, scope: Scope, per: &[Scope], title: &str) {
    let words: Vec<_> = per.iter().chain([&scope]).map(|scope| format!("\"{}\"", scope.name())).collect();
    field.report.error(
        field.place,
        format!(
            "{}.{}] needs a level for each {}, which per does not name",
            title.trim_end_matches(']'),
            field.key,
            scope.name()
        ),
        format!("write per = [{}]", words.join(", ")),
    );
}

fn read_overrides(field: &Field<'_>, scope: Scope, base: &Rates, title: &str) -> Vec<Override> {
    let title = format!("{}.{}]", title.trim_end_matches(']'), field.key);
    let Some(table) = field.table(title.clone()) else { return Vec::new() };
    table.named_fields().iter().filter_map(|field| read_override(field, scope, base, &title)).collect()
}

fn read_override(field: &Field<'_>, scope: Scope, base: &Rates, title: &str) -> Option<Override> {
    let mut table = field.table(format!("{}.\"{}\"]", title.trim_end_matches(']'), field.key))?;
    let rates = rates(&mut table);
    if let (Some(burst), Some(field)) = (rates.burst_allowance, table.field("burst_allowance")) {
        let requests = Dimension::RequestsPerMinute;
        check_burst(&field, burst, rates.allowance(requests).or(base.allowance(requests)));
    }
    table.finish();
    Some(Override { scope, pattern: field.key.to_owned(), rates })
}

/// `[model_groups]`; a model belongs to one group at most.
pub(super) fn model_groups(table: &Table<'_>) -> BTreeMap<String, Vec<String>> {
    let mut groups = BTreeMap::new();
    let mut group_of: BTreeMap<String, &str> = BTreeMap::new();
    for field in table.named_fields() {
        let Some(models) = list(&field, |item| word(item).map(str::to_owned)) else { continue };
        if models.is_empty() {
            field.error("must name a model", "write an array of models");
        }
        for model in &models {
            if let Some(other) = group_of.insert(model.clone(), field.key) {
                field.error(format!("names \"{model}\", which is in \"{other}\" already"), "leave it in one group");
            }
        }
        groups.insert(field.key.to_owned(), models);
    }
    groups
}
