//! Decides how TOML text is held between parsing and reading: a tree in which everything knows where it was written.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Place, Report};

/// A value and where it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What was written.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Date(String),
    Array(Vec<Node>),
    Table(Entries),
    /// A scalar from the environment, where nothing tells text from numbers: as it was written, and as what it can be read.
    Loose(String, Box<Value>),
}

/// A table's content by key.
pub(super) type Entries = BTreeMap<String, Entry>;

/// One `key = value`, or one `[key]`.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key_place: Place,
    /// The key was written in camelCase, where bare numbers are milliseconds.
    pub(super) camel_case: bool,
    pub(super) node: Node,
}

impl Value {
    /// What kind of thing it is, with an article, for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Bool(_) => "a boolean",
            Self::Date(_) => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Loose(_, value) => value.kind(),
        }
    }
}

/// The tree of `text`, which is source number `source`; every syntax error goes into `report`.
pub(super) fn parse(text: &str, source: usize, report: &Report<'_>) -> Entries {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        report.error(Place { source, offset }, format!("not TOML: {message}"), "");
    }
    entries(table.get_ref(), source)
}

/// What `raw`, an environment variable's value, stands for: TOML where it is some, else plain text.
pub(super) fn parse_loose(raw: &str, source: usize) -> Node {
    let place = Place { source, offset: 0 };
    let value = match DeValue::parse(raw) {
        Ok(parsed) => match value(parsed.get_ref(), source) {
            whole @ (Value::Text(_) | Value::Array(_) | Value::Table(_)) => whole,
            scalar => Value::Loose(raw.to_owned(), Box::new(scalar)),
        },
        Err(_) => Value::Text(raw.to_owned()),
    };
    Node { value, place }
}

fn entries(table: &DeTable<'_>, source: usize) -> Entries {
    table
        .iter()
        .map(|(key, value)| {
            let key_place = Place { source, offset: key.span().start };
            (key.get_ref().to_string(), Entry { key_place, camel_case: false, node: node(value, source) })
        })
        .collect()
}

fn node(spanned: &Spanned<DeValue<'_>>, source: usize) -> Node {
    let place = Place { source, offset: spanned.span().start };
    Node { value: value(spanned.get_ref(), source), place }
}

fn value(value: &DeValue<'_>, source: usize) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Value::Integer(integer),
            // More digits than any setting can mean: absurd either way, and refused as such by whoever reads it.
            Err(_) => Value::Integer(if integer.as_str().starts_with('-') { i128::MIN } else { i128::MAX }),
        },
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Datetime(datetime) => Value::Date(datetime.to_string()),
        DeValue::Array(array) => Value::Array(array.iter().map(|item| node(item, source)).collect()),
        DeValue::Table(table) => Value::Table(entries(table, source)),
    }
}
