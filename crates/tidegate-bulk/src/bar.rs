//! Decides how a run looks on a terminal: one row that moves, as wide as the terminal is and no wider, and above it whatever
//! else is said.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};

use crate::look::Look;

/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;
/// A narrower terminal has no room for a bar beside what is said of it.
const BAR_FROM_COLUMNS: usize = 60;

/// The bar on this process's standard error.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Standard error, for lines that are to stand above the bar of a run where there is one, whole, and to stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct BesideBar;

impl Write for BesideBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().write_all(text).map(|()| text.len());
        bar.map_or_else(write, |bar| bar.suspend(write))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The bar, until it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
    columns: usize,
    bar_columns: usize,
}

impl Bar {
    pub(crate) fn new(total: u64) -> Self {
        let bar = ProgressBar::new(total);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self { bar, columns: 0, bar_columns: 0 }
    }

    pub(crate) fn show(&mut self, look: &Look) {
        let (_, columns) = Term::stderr().size_checked().unwrap_or((0, 0));
        let columns = if columns == 0 { COLUMNS } else { usize::from(columns) };
        if columns != self.columns {
            self.columns = columns;
            self.bar_columns = if columns < BAR_FROM_COLUMNS { 0 } else { (columns / 5).min(30) };
            let template = match self.bar_columns {
                0 => "{wide_msg}".to_owned(),
                bar => format!("{{bar:{bar}}} {{wide_msg}}"),
            };
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar.set_style(style.progress_chars("━╸─"));
        }
        self.bar.set_position(look.ended());
        // In the last column some terminals begin a row.
        self.bar.set_message(look.fitted(self.columns.saturating_sub(self.bar_columns + 2)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}
