//! Decides how a fault in a configuration is told: where it is, what was written, what was expected, what to write.

use std::cell::RefCell;
use std::fmt;

/// One thing that is wrong, or doubtful, in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's display name; for an override from the environment, the variable's name.
    pub file: String,
    /// From 1; 0 where there are no lines (environment).
    pub line: usize,
    /// In characters, from 1; 0 where there are no lines.
    pub column: usize,
    /// What was written and what was expected.
    pub message: String,
    /// What to write; empty where the message says it all.
    pub hint: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// Where something was written: which source, and how many bytes into it. Ordered as the sources are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) source: usize,
    pub(super) offset: usize,
}

/// Something that was read: a file's text, or one environment variable (which has no text to point into).
#[derive(Clone, Debug)]
pub(super) struct Source<'t> {
    pub(super) name: String,
    pub(super) text: Option<&'t str>,
}

/// Collects what is found, in any order; hands it out in the order of the sources.
#[derive(Debug)]
pub(super) struct Report<'t> {
    sources: Vec<Source<'t>>,
    errors: RefCell<Vec<(Place, Diagnostic)>>,
    warnings: RefCell<Vec<(Place, Diagnostic)>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(sources: Vec<Source<'t>>) -> Self {
        Self { sources, errors: RefCell::default(), warnings: RefCell::default() }
    }

    pub(super) fn error(&self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.errors.borrow_mut().push((place, self.diagnostic(place, message.into(), hint.into())));
    }

    pub(super) fn warn(&self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.warnings.borrow_mut().push((place, self.diagnostic(place, message.into(), hint.into())));
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// `(errors, warnings)`.
    pub(super) fn finish(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        (in_order(self.errors.into_inner()), in_order(self.warnings.into_inner()))
    }

    /// `tidegate.toml:12`, for messages that speak of a second place.
    pub(super) fn name_of(&self, place: Place) -> String {
        let found = self.diagnostic(place, String::new(), String::new());
        if found.line > 0 { format!("{}:{}", found.file, found.line) } else { found.file }
    }

    /// True if `place` is in the environment, where everything is text.
    pub(super) fn is_environment(&self, place: Place) -> bool {
        self.sources.get(place.source).is_some_and(|source| source.text.is_none())
    }

    fn diagnostic(&self, place: Place, message: String, hint: String) -> Diagnostic {
        let (file, line, column) = match self.sources.get(place.source) {
            Some(Source { name, text: Some(text) }) => {
                let (line, column) = line_and_column(text, place.offset);
                (name.clone(), line, column)
            }
            Some(Source { name, text: None }) => (name.clone(), 0, 0),
            None => (String::new(), 0, 0),
        };
        Diagnostic { file, line, column, message, hint }
    }
}

fn in_order(mut found: Vec<(Place, Diagnostic)>) -> Vec<Diagnostic> {
    found.sort_by_key(|(place, _)| *place);
    let mut found: Vec<_> = found.into_iter().map(|(_, diagnostic)| diagnostic).collect();
    found.dedup();
    found
}

/// Line and column, from 1, of the byte at `offset`; the column counts characters, as editors do.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        assert_eq!(line_and_column("a\nüx = 1", 4), (2, 2));
        assert_eq!(line_and_column("a\nüx = 1", 3), (2, 1), "inside a character: where it begins");
        assert_eq!(line_and_column("", 99), (1, 1));
    }

    #[test]
    fn a_diagnostic_says_where_what_and_what_to_write() {
        let report = Report::new(vec![Source { name: "t.toml".to_owned(), text: Some("\n  x = 0") }]);
        report.error(Place { source: 0, offset: 3 }, "x must be above 0", "write \"blocked\"");
        let (errors, _) = report.finish();
        assert_eq!(errors[0].to_string(), "t.toml:2:3: x must be above 0; write \"blocked\"");
    }
}
