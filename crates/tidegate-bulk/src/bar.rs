//! Decides how a run looks on a terminal: one row that moves, as wide as the terminal is and no wider, and above it whatever
//! else is said. A thread of its own draws: a terminal that is held holds up no call.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use crate::look::Look;

/// Columns of a terminal that does not say.
const COLUMNS: u16 = 80;
/// A narrower terminal has no room for a bar beside what is said of it.
const BAR_FROM_COLUMNS: usize = 60;

/// Left free at the end of the row: a terminal writes `^C` where its cursor is, and must not begin another row for it.
const ECHO_COLUMNS: u16 = 3;

/// The end waits so long for a terminal that takes nothing.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The bar on this process's standard error.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Standard error, for lines that are to stand above the bar of a run where there is one, whole, and to stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct BesideBar;

impl BesideBar {
    /// Takes the bar away, for who ends the process at once; a second at most is waited for the terminal.
    pub fn clear(self) {
        let Some(bar) = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (cleared, is_cleared) = mpsc::channel();
        thread::spawn(move || {
            bar.finish_and_clear();
            cleared.send(())
        });
        // Late or not, the process ends.
        let _ = is_cleared.recv_timeout(END_PATIENCE);
    }
}

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

/// A terminal that is said to be as wide as the bar may be, since the cursor is put to the end of that.
#[derive(Debug)]
struct Narrowed(Term);

impl TermLike for Narrowed {
    fn width(&self) -> u16 {
        let (_, columns) = self.0.size_checked().unwrap_or((0, 0));
        if columns == 0 { COLUMNS } else { columns }.saturating_sub(ECHO_COLUMNS)
    }

    fn move_cursor_up(&self, rows: usize) -> io::Result<()> {
        self.0.move_cursor_up(rows)
    }

    fn move_cursor_down(&self, rows: usize) -> io::Result<()> {
        self.0.move_cursor_down(rows)
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_right(columns)
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_left(columns)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.0.write_line(line)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The bar, until it is dropped.
pub(crate) struct Bar {
    /// `None` once it ends.
    draws: Option<SyncSender<Draw>>,
    /// Closed when it has been taken away.
    cleared: Receiver<()>,
}

enum Draw {
    Say(String),
    Show(Box<Look>),
}

impl Bar {
    pub(crate) fn new(total: u64) -> Self {
        let (draws, wanted) = mpsc::sync_channel(1);
        let (clears, cleared) = mpsc::channel::<()>();
        // Without a thread there is no bar, which is no reason not to run.
        let _ = thread::Builder::new().name("bar".to_owned()).spawn(move || {
            let _at_the_end = clears;
            let mut row = Row::new(total);
            for draw in wanted {
                match draw {
                    Draw::Say(what) => row.say(&what),
                    Draw::Show(look) => row.show(&look),
                }
            }
        });
        Self { draws: Some(draws), cleared }
    }

    /// Before there is anything to measure.
    pub(crate) fn say(&self, what: String) {
        self.draw(Draw::Say(what));
    }

    pub(crate) fn show(&self, look: Look) {
        self.draw(Draw::Show(Box::new(look)));
    }

    fn draw(&self, draw: Draw) {
        // While one look is not drawn yet, another is of no use: a later one follows.
        if let Some(draws) = &self.draws {
            let _ = draws.try_send(draw);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.draws = None;
        // Closed is what is waited for.
        let _ = self.cleared.recv_timeout(END_PATIENCE);
    }
}

/// The bar as it is drawn.
struct Row {
    bar: ProgressBar,
    columns: usize,
    bar_columns: usize,
}

impl Row {
    fn new(total: u64) -> Self {
        let target = ProgressDrawTarget::term_like(Box::new(Narrowed(Term::buffered_stderr())));
        let bar = ProgressBar::with_draw_target(Some(total), target);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self { bar, columns: 0, bar_columns: 0 }
    }

    fn say(&mut self, what: &str) {
        self.fit(0);
        self.bar.set_message(what.chars().take(self.columns).collect::<String>());
    }

    fn show(&mut self, look: &Look) {
        self.fit(30);
        self.bar.set_position(look.ended());
        self.bar.set_message(look.fitted(self.columns.saturating_sub(self.bar_columns + 1)));
    }

    /// To the terminal as it is now, with a bar of so many columns at most.
    fn fit(&mut self, bar_columns_max: usize) {
        let columns = usize::from(Narrowed(Term::stderr()).width());
        let bar_columns = if columns < BAR_FROM_COLUMNS { 0 } else { (columns / 5).min(bar_columns_max) };
        if (columns, bar_columns) == (self.columns, self.bar_columns) {
            return;
        }
        (self.columns, self.bar_columns) = (columns, bar_columns);
        let template = if bar_columns == 0 { "{msg}".to_owned() } else { format!("{{bar:{bar_columns}}} {{msg}}") };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_style(style.progress_chars("━╸─"));
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}
