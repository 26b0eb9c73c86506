//! Decides how layers lie on each other: later files on earlier ones, the environment on top, key by key.
//!
//! Tables merge; `[[upstream]]`, `[[key]]`, `[[admin]]` and `[[alert]]` merge by name; everything else is replaced.

use std::collections::BTreeMap;

use super::diagnostic::{Place, Report};
use super::tree::{Entries, Entry, Node, Value, parse_loose};

/// What begins the name of an environment variable that overrides a key: `TIDEGATE__SERVER__LISTEN`.
pub(super) const ENV_PREFIX: &str = "TIDEGATE__";

/// The arrays of tables whose members have names.
const NAMED_ARRAYS: [&str; 4] = ["upstream", "key", "admin", "alert"];

/// Lays `above` on `below`.
pub(super) fn lay(below: &mut Entries, above: Entries) {
    for (key, entry) in above {
        if NAMED_ARRAYS.contains(&key.as_str())
            && let Some(Entry { node: Node { value: Value::Array(mine), .. }, .. }) = below.get_mut(&key)
            && let Value::Array(theirs) = entry.node.value
        {
            lay_by_name(mine, theirs);
            continue;
        }
        lay_entry(below, key, entry);
    }
}

fn lay_tables(below: &mut Entries, above: Entries) {
    for (key, entry) in above {
        lay_entry(below, key, entry);
    }
}

fn lay_entry(below: &mut Entries, key: String, entry: Entry) {
    if let Some(Entry { node: Node { value: Value::Table(mine), .. }, .. }) = below.get_mut(&key)
        && let Value::Table(theirs) = entry.node.value
    {
        // The table keeps its first place, which is what decides the order of limits.
        lay_tables(mine, theirs);
    } else {
        below.insert(key, entry);
    }
}

/// Members with the name of one before them are laid on it; duplicates within one layer stay, to be reported.
fn lay_by_name(below: &mut Vec<Node>, above: Vec<Node>) {
    let mut positions: BTreeMap<String, usize> = BTreeMap::new();
    for (position, node) in below.iter().enumerate() {
        if let Some(name) = name_of(node) {
            positions.entry(name.to_owned()).or_insert(position);
        }
    }
    for node in above {
        let position = name_of(&node).and_then(|name| positions.remove(name));
        match (position.and_then(|at| below.get_mut(at)), node) {
            (Some(Node { value: Value::Table(mine), .. }), Node { value: Value::Table(theirs), .. }) => {
                lay_tables(mine, theirs);
            }
            (_, node) => below.push(node),
        }
    }
}

fn name_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Table(entries) => match &entries.get("name")?.node.value {
            Value::Text(name) | Value::Loose(name, _) => Some(name),
            _ => None,
        },
        _ => None,
    }
}

/// Lays one environment variable on `root`. `path` is its name after [`ENV_PREFIX`], `source` its place.
///
/// Each part of the path between `__` is a key, or the name of a limit, an upstream …, in any case; what is neither a letter nor
/// a digit in such a name is written `_`.
pub(super) fn lay_variable(root: &mut Entries, path: &str, raw: &str, source: usize, report: &Report<'_>) {
    let parts: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    let place = Place { source, offset: 0 };
    if parts.iter().any(String::is_empty) {
        report.error(
            place,
            format!("{ENV_PREFIX}{path} names no setting"),
            format!("write {ENV_PREFIX}SECTION__KEY=value, such as {ENV_PREFIX}SERVER__LISTEN=127.0.0.1:8080"),
        );
        return;
    }
    lay_path(root, &parts, parse_loose(raw, source), report, true);
}

fn lay_path(entries: &mut Entries, parts: &[String], value: Node, report: &Report<'_>, top: bool) {
    let Some((first, rest)) = parts.split_first() else { return };
    let place = value.place;
    let key = entries.keys().find(|key| spelled(key) == *first).cloned().unwrap_or_else(|| first.clone());
    let Some((second, deeper)) = rest.split_first() else {
        lay_entry(entries, key, Entry { key_place: place, camel_case: false, node: value });
        return;
    };
    let is_array = top && NAMED_ARRAYS.contains(&key.as_str());
    let entry = entries.entry(key).or_insert_with(|| {
        let empty = if is_array { Value::Array(Vec::new()) } else { Value::Table(Entries::new()) };
        Entry { key_place: place, camel_case: false, node: Node { value: empty, place } }
    });
    match &mut entry.node.value {
        Value::Table(below) => lay_path(below, rest, value, report, false),
        Value::Array(members) if is_array && !deeper.is_empty() => {
            let found = members.iter().position(|member| name_of(member).is_some_and(|name| spelled(name) == *second));
            let at = found.unwrap_or_else(|| {
                members.push(named_member(second, place));
                members.len() - 1
            });
            if let Some(Node { value: Value::Table(member), .. }) = members.get_mut(at) {
                lay_path(member, deeper, value, report, false);
            }
        }
        other => report.error(
            place,
            format!("{} cannot be set below {first}, which is {}", rest.join("."), other.kind()),
            if is_array {
                format!("write {ENV_PREFIX}{}__NAME__KEY=value", first.to_uppercase())
            } else {
                String::new()
            },
        ),
    }
}

fn named_member(name: &str, place: Place) -> Node {
    let name = Node { value: Value::Text(name.to_owned()), place };
    let entry = Entry { key_place: place, camel_case: false, node: name };
    Node { value: Value::Table(BTreeMap::from([("name".to_owned(), entry)])), place }
}

/// How a key or name is spelled in an environment variable, in lower case.
fn spelled(name: &str) -> String {
    name.chars().map(|any| if any.is_ascii_alphanumeric() { any.to_ascii_lowercase() } else { '_' }).collect()
}
