//! Decides how one table is read: field by field, each in one line; what was not asked for is an unknown key.

use super::diagnostic::{Place, Report};
use super::tree::{Entries, Entry, Node, Value};

/// A table that is being read.
pub(super) struct Table<'a> {
    entries: &'a Entries,
    /// `[server]`, `[[key]] "billing"`: how messages call it. Empty for the document itself.
    title: String,
    /// Where it begins.
    pub(super) place: Place,
    /// Keys that were asked for.
    known: Vec<&'static str>,
    pub(super) report: &'a Report<'a>,
}

/// One `key = value`, for whoever judges it.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a Value,
    /// Where messages point: the key, or in an array the item.
    pub(super) place: Place,
    /// The key was written in camelCase, where bare numbers are milliseconds.
    pub(super) camel_case: bool,
    pub(super) report: &'a Report<'a>,
}

impl<'a> Table<'a> {
    /// The whole document.
    pub(super) fn document(entries: &'a Entries, report: &'a Report<'a>) -> Self {
        Self { entries, title: String::new(), place: Place::default(), known: Vec::new(), report }
    }

    /// How messages call it.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// The same under another title.
    pub(super) fn titled(mut self, title: String) -> Self {
        self.title = title;
        self
    }

    /// The field `key`, if it is written.
    pub(super) fn field(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let (key, entry) = self.entries.get_key_value(key)?;
        Some(field_of(key, entry, self.report))
    }

    /// Puts what `judge` makes of the field `key` into `slot`; leaves it where the key is absent or was found wrong.
    pub(super) fn set<T>(&mut self, key: &'static str, slot: &mut T, judge: impl FnOnce(&Field<'a>) -> Option<T>) {
        if let Some(judged) = self.field(key).and_then(|field| judge(&field)) {
            *slot = judged;
        }
    }

    /// As [`Table::set`], where absence is `None`.
    pub(super) fn set_some<T>(
        &mut self,
        key: &'static str,
        slot: &mut Option<T>,
        judge: impl FnOnce(&Field<'a>) -> Option<T>,
    ) {
        if let Some(field) = self.field(key) {
            *slot = judge(&field);
        }
    }

    /// The table `key` in this one.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'a>> {
        let parent = self.title.trim_matches(['[', ']']).to_owned();
        let field = self.field(key)?;
        let title = if parent.is_empty() { format!("[{key}]") } else { format!("[{parent}.{key}]") };
        field.table(title)
    }

    /// The members of the array of tables `key`, each with its place as title until it is given another.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'a>> {
        let Some(field) = self.field(key) else { return Vec::new() };
        let Value::Array(items) = field.value else {
            field.wrong("an array of tables", format!("write [[{key}]] for each"));
            return Vec::new();
        };
        let title = format!("[[{key}]]");
        items.iter().filter_map(|item| field.at(item).table(title.clone())).collect()
    }

    /// Every field, known or not, in the order in which it was written: for tables whose keys are names.
    pub(super) fn named_fields(&self) -> Vec<Field<'a>> {
        let mut fields: Vec<_> = self.entries.iter().map(|(key, entry)| field_of(key, entry, self.report)).collect();
        fields.sort_by_key(|field| field.place);
        fields
    }

    /// True if `key` is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Reports each key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, entry) in self.entries {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let within = if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) };
            let kind = if matches!(entry.node.value, Value::Table(_)) { "table" } else { "key" };
            self.report.error(entry.key_place, format!("unknown {kind} \"{key}\"{within}"), self.suggestion(key));
        }
    }

    /// Reports that `key` is missing.
    pub(super) fn missing(&self, key: &str, hint: impl Into<String>) {
        self.report.error(self.place, format!("{} has no {key}", self.title), hint);
    }

    fn suggestion(&self, written: &str) -> String {
        let snake: String = written.to_lowercase().replace(['-', ' '], "_");
        let other_word = match snake.as_str() {
            "circuit_breaker" => "breaker",
            "rate_limit" | "rate_limits" | "limits" => "limit",
            "upstreams" => "upstream",
            "keys" => "key",
            "timeout" => "attempt_timeout",
            "rpm" => "requests_per_minute",
            "tpm" => "tokens_per_minute",
            "rpd" => "requests_per_day",
            "tpd" => "tokens_per_day",
            "ipm" => "images_per_minute",
            "burst" => "burst_allowance",
            other => other,
        };
        match closest(other_word, &self.known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known here: {}", self.known.join(", ")),
        }
    }
}

impl<'a> Field<'a> {
    /// The field as a table.
    pub(super) fn table(&self, title: String) -> Option<Table<'a>> {
        let Value::Table(entries) = self.value else {
            self.wrong("a table", format!("write {title}"));
            return None;
        };
        Some(Table { entries, title, place: self.place, known: Vec::new(), report: self.report })
    }

    /// The same field, looking at one item of its array.
    pub(super) fn at(&self, item: &'a Node) -> Self {
        Self { value: &item.value, place: item.place, ..*self }
    }

    /// Reports that the field should have been `expected`.
    pub(super) fn wrong(&self, expected: &str, hint: impl Into<String>) {
        self.error(format!("must be {expected}, not {}", shown(self.value)), hint);
    }

    /// Reports what is the matter with it: `{key} {problem}`.
    pub(super) fn error(&self, problem: impl AsRef<str>, hint: impl Into<String>) {
        self.report.error(self.place, format!("{} {}", self.key, problem.as_ref()), hint);
    }

    /// As [`Field::error`], but doubtful only.
    pub(super) fn warn(&self, problem: impl AsRef<str>, hint: impl Into<String>) {
        self.report.warn(self.place, format!("{} {}", self.key, problem.as_ref()), hint);
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) | Value::Loose(text, _) => Some(text),
            _ => None,
        }
    }

    /// The value, whether it comes from a file or the environment.
    pub(super) fn scalar(&self) -> &'a Value {
        match self.value {
            Value::Loose(_, value) => value,
            value => value,
        }
    }
}

fn field_of<'a>(key: &'a str, entry: &'a Entry, report: &'a Report<'a>) -> Field<'a> {
    Field { key, value: &entry.node.value, place: entry.key_place, camel_case: entry.camel_case, report }
}

/// The value as it was written, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) if text.chars().count() > 60 => {
            format!("\"{}…\"", text.chars().take(60).collect::<String>())
        }
        Value::Text(text) => format!("\"{text}\""),
        Value::Integer(number) => number.to_string(),
        // With a point: 1e9 is no whole number as TOML has it.
        Value::Float(number) => format!("{number:?}"),
        Value::Bool(boolean) => boolean.to_string(),
        Value::Date(date) => date.clone(),
        Value::Loose(text, _) => text.clone(),
        Value::Array(_) | Value::Table(_) => value.kind().to_owned(),
    }
}

/// Whichever of `candidates` was probably meant by `written`.
pub(super) fn closest<'c>(written: &str, candidates: &[&'c str]) -> Option<&'c str> {
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
