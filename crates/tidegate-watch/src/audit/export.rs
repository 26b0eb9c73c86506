//! Decides how a record looks outside: a line for people, one of JSON, one of CSV.
//!
//! Some of what is in a record was written by callers: nothing of it may act on a terminal or in a spreadsheet.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use super::read::Entry;
use super::record::Record;
use super::time::shown_time;

/// The first line of a CSV export.
pub const CSV_HEADER: &str =
    "sequence,at,kind,what,call,tenant,user,limit,target,who,why,before,after,anchor,numbers,hash";

impl Entry {
    /// `{"sequence":…,"hash":"…","record":…}` without the end of the line. The record is the very text that was hashed.
    #[must_use]
    pub fn json_line(&self) -> String {
        format!(r#"{{"sequence":{},"hash":"{}","record":{}}}"#, self.sequence, self.hash, self.text)
    }

    /// The fields of [`CSV_HEADER`], as RFC 4180 has them, without the end of the line.
    #[must_use]
    pub fn csv_line(&self) -> String {
        let record = &self.record;
        let mut line = format!("{},{},{}", self.sequence, shown_time(record.at), record.kind);
        field(&mut line, &record.what);
        texts(record).into_iter().for_each(|(_, text)| field(&mut line, text.unwrap_or_default()));
        let numbers: Vec<String> = record.numbers.iter().map(|(name, number)| format!("{name}={number}")).collect();
        field(&mut line, &numbers.join(" "));
        let _ = write!(line, ",{}", self.hash);
        line
    }
}

/// `2026-11-24T11:40:00.000000Z throttle refused call=c-1 tenant=acme used=89210`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        write!(f, "{} {} {}", shown_time(record.at), record.kind, plain(&record.what))?;
        for (name, text) in texts(record) {
            if let Some(text) = text {
                write!(f, " {name}={}", plain(text))?;
            }
        }
        record.numbers.iter().try_for_each(|(name, number)| write!(f, " {}={number}", plain(name)))
    }
}

fn texts(record: &Record) -> [(&'static str, Option<&str>); 10] {
    [
        ("call", record.call.as_deref()),
        ("tenant", record.tenant.as_deref()),
        ("user", record.user.as_deref()),
        ("limit", record.limit.as_deref()),
        ("target", record.target.as_deref()),
        ("who", record.who.as_deref()),
        ("why", record.why.as_deref()),
        ("before", record.before.as_deref()),
        ("after", record.after.as_deref()),
        ("anchor", record.anchor.as_deref()),
    ]
}

/// As it is where it is one word, else in quotes with everything escaped that a terminal might obey.
fn plain(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "-_./:#@+*".contains(c);
    if !text.is_empty() && text.chars().all(is_word) { text.to_owned() } else { format!("{text:?}") }
}

/// With everything escaped that a terminal might obey, or that turns the order of what follows.
fn harmless(text: &str) -> Cow<'_, str> {
    let acts = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || is_direction(c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Source: Unicode Standard Annex 9, explicit directional formatting characters.
const fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn field(line: &mut String, text: &str) {
    line.push(',');
    // Spreadsheets take these for the beginning of a formula, which could fetch or send something.
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = harmless(text);
    let needs_quotes = is_formula || text.contains([',', '"', '\n', '\r']);
    if !needs_quotes {
        line.push_str(&text);
        return;
    }
    let guard = if is_formula { "'" } else { "" };
    let _ = write!(line, "\"{guard}{}\"", text.replace('"', "\"\""));
}

#[cfg(test)]
mod tests {
    use super::super::chain::Head;
    use super::super::record::Kind;
    use super::*;

    fn entry(user: &str) -> Entry {
        let record = Record {
            at: 0,
            user: Some(user.into()),
            limit: Some("team/acme/tokens_per_minute".into()),
            ..Record::new(Kind::Throttle, "refused").with("used", 7)
        };
        let text = record.text().unwrap();
        let head = Head::ORIGIN.next(&text);
        Entry { sequence: head.sequence, record, text, hash: head.hash }
    }

    #[test]
    fn a_line_of_json_has_the_text_that_was_hashed() {
        let entry = entry("ada");
        let line = entry.json_line();
        assert_eq!(line, format!(r#"{{"sequence":1,"hash":"{}","record":{}}}"#, entry.hash, entry.text));
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
    }

    #[test]
    fn a_line_for_people_obeys_nobody() {
        let line = entry("a\u{1b}[2Jb\n").to_string();
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000000Z throttle refused user=\"a\\u{1b}[2Jb\\n\" limit=team/acme/tokens_per_minute used=7"
        );
    }

    #[test]
    fn a_field_of_csv_is_quoted_and_starts_no_formula() {
        let fields = |user: &str| entry(user).csv_line();
        assert!(fields("a,\"b\"").contains(",\"a,\"\"b\"\"\","), "{}", fields("a,\"b\""));
        assert!(fields("=1+1").contains(",\"'=1+1\","));
        assert!(fields("a\u{1b}[31m\u{202e}b").contains(",a\\u{1b}[31m\\u{202e}b,"), "it acts on no terminal");
        assert!(fields("ada").starts_with("1,1970-01-01T00:00:00.000000Z,throttle,refused,,,ada,team/acme"));
        assert_eq!(fields("ada").split(',').count(), CSV_HEADER.split(',').count());
    }
}
