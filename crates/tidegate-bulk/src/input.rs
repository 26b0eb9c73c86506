//! Decides what is read of the input, and when: all of it once before anything is sent, then again as calls may go.
//!
//! Of each line a few bytes are kept and nothing of its text, so that a file may be larger than memory. Standard input is
//! put aside in a file first: what is wrong with a line is to be known before the first call, and a pipe is read only once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::journal::Done;
use crate::line::{BadLine, Line, Shape};
use crate::packing;

/// A longer line is a mistake, not a request.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Bad lines that are kept to be shown; the others are counted.
const BAD_SHOWN_MAX: usize = 20;
/// Model groups that are read ahead apart from one another; the rest share the last.
const GROUPS_MAX: usize = 8;
/// Beyond so many groups the sizes of one are not read apart.
const SIZED_GROUPS_MAX: usize = 4;
/// Bytes that stand for a `custom_id`: two different ones share them never, for all that matters.
const ID_BYTES: usize = 16;

/// A `custom_id` in few bytes.
type IdHash = [u8; ID_BYTES];

fn hash_id(custom_id: &str) -> IdHash {
    let mut short = IdHash::default();
    short.copy_from_slice(&Sha256::digest(custom_id.as_bytes())[..ID_BYTES]);
    short
}

/// Where lines come from.
#[derive(Clone, Debug)]
pub struct Input {
    path: PathBuf,
    name: String,
    /// Keeps what standard input said for as long as it is read.
    _aside: Option<Arc<NamedTempFile>>,
}

impl Input {
    /// The file at `path`; for `-` all that standard input says.
    ///
    /// # Errors
    /// If it cannot be read, or what standard input says cannot be put aside.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str() != "-" {
            packing::open(path)?;
            return Ok(Self { path: path.to_owned(), name: path.display().to_string(), _aside: None });
        }
        let mut aside = NamedTempFile::new()?;
        io::copy(&mut io::stdin().lock(), &mut aside)?;
        let path = aside.path().to_owned();
        Ok(Self { path, name: "standard input".to_owned(), _aside: Some(Arc::new(aside)) })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `each` with the number (from 1) and text of every line; `Err`: why a line is none. Ends early if `each` says so.
    pub(crate) fn lines(&self, mut each: impl FnMut(u64, Result<&str, String>) -> bool) -> io::Result<()> {
        let mut reader = packing::open(&self.path)?;
        let (mut text, mut number) = (Vec::new(), 0);
        loop {
            text.clear();
            let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
            if read == 0 {
                return Ok(());
            }
            number += 1;
            let too_long = read as u64 == LINE_BYTES_MAX && !text.ends_with(b"\n");
            if too_long {
                reader.skip_until(b'\n')?;
            }
            while text.last().is_some_and(u8::is_ascii_whitespace) {
                text.pop();
            }
            let line = if too_long {
                Err(format!("it is longer than {} MiB", LINE_BYTES_MAX >> 20))
            } else {
                std::str::from_utf8(&text).map_err(|error| format!("it is no UTF-8 from byte {}", error.valid_up_to()))
            };
            let line = line.map(|line| if number == 1 { line.trim_start_matches('\u{feff}') } else { line });
            if !each(number, line) {
                return Ok(());
            }
        }
    }
}

/// What is to become of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is empty, has a result already, or is bad.
    Skip,
    /// It is sent, by the feed of this number.
    Send(u8),
}

#[derive(Clone, Copy, Debug)]
struct Sized {
    /// `u8::MAX`: nothing to send.
    group: u8,
    tokens: u32,
}

/// What there is to do, from one reading of all of it.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Lines that are not empty.
    pub lines: u64,
    /// Lines that are to be sent now.
    pub to_send: u64,
    /// Input tokens of those, as estimated.
    pub input_tokens: u64,
    /// The first bad lines.
    pub bad: Vec<BadLine>,
    /// Bad lines in all.
    pub bad_count: u64,
    /// Lines that an earlier run had sent and knows nothing more of: they may have been billed.
    pub cut_off: u64,
    /// SHA-256 of the text.
    pub(crate) digest: [u8; 32],
    /// For each line; empty ones included.
    pub(crate) fates: Arc<[Fate]>,
    pub(crate) feeds: Vec<FeedPlan>,
}

/// Lines that are read ahead together: one model group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FeedPlan {
    pub(crate) lines: u64,
    /// Tokens and requests of one line on average.
    pub(crate) mean_tokens: u64,
    /// Numbers of the feeds of the small and of the large ones.
    pub(crate) small: u8,
    pub(crate) large: u8,
}

impl Survey {
    /// Reads all of `input`. `done` are the results that there are; `bad` is told of every bad line that has none.
    pub(crate) fn read(
        input: &Input,
        shape: &Shape,
        done: &Done,
        sent: &HashSet<u64>,
        mut bad: impl FnMut(&BadLine),
    ) -> io::Result<Self> {
        let mut survey = Self::default();
        let mut digest = Sha256::new();
        let mut seen: HashMap<IdHash, u64> = HashMap::new();
        let mut groups: Vec<String> = Vec::new();
        let mut entries = Vec::new();
        input.lines(|number, text| {
            digest.update(text.as_deref().unwrap_or("").as_bytes());
            digest.update(b"\n");
            let nothing = Sized { group: u8::MAX, tokens: 0 };
            if text.as_ref().is_ok_and(|text| text.is_empty()) {
                entries.push(nothing);
                return true;
            }
            survey.lines += 1;
            let read = text
                .map_err(|reason| BadLine { number, custom_id: None, reason })
                .and_then(|text| shape.read(number, text))
                .and_then(|line| first_of_its_name(line, number, &mut seen))
                .map_err(|line| named(line, &mut seen));
            entries.push(match read {
                Ok(_) if done.has(number) => nothing,
                Ok(line) => {
                    survey.cut_off += u64::from(sent.contains(&number));
                    survey.to_send += 1;
                    survey.input_tokens += line.asking.cost.input_tokens;
                    let tokens = u32::try_from(line.asking.cost.input_tokens).unwrap_or(u32::MAX);
                    Sized { group: group_of(&mut groups, &line.asking.model), tokens }
                }
                Err(line) => {
                    if !done.has(number) {
                        bad(&line);
                        survey.bad_count += 1;
                        if survey.bad.len() < BAD_SHOWN_MAX {
                            survey.bad.push(line);
                        }
                    }
                    nothing
                }
            });
            true
        })?;
        survey.digest = digest.finalize().into();
        survey.arrange(&entries, groups.len());
        Ok(survey)
    }

    /// Parts lines into those above and below what one of their group takes on average: by reading both at once, in the
    /// right measure, requests and tokens run out together, and neither limit is idle while the other binds.
    fn arrange(&mut self, entries: &[Sized], groups: usize) {
        let mut sums = vec![(0_u64, 0_u64); groups];
        for entry in entries.iter().filter(|entry| entry.group != u8::MAX) {
            let sum = &mut sums[usize::from(entry.group)];
            *sum = (sum.0 + 1, sum.1 + u64::from(entry.tokens));
        }
        let sized = groups <= SIZED_GROUPS_MAX;
        let feed = |group: usize, large: bool| (group * 2 + usize::from(large && sized)) as u8;
        let mean = |(lines, tokens): (u64, u64)| tokens.checked_div(lines).unwrap_or(0);
        self.fates = entries
            .iter()
            .map(|entry| match entry.group {
                u8::MAX => Fate::Skip,
                group => {
                    let group = usize::from(group);
                    Fate::Send(feed(group, u64::from(entry.tokens) > mean(sums[group])))
                }
            })
            .collect();
        self.feeds = sums
            .into_iter()
            .enumerate()
            .map(|(group, sum)| FeedPlan {
                lines: sum.0,
                mean_tokens: mean(sum),
                small: feed(group, false),
                large: feed(group, true),
            })
            .collect();
    }
}

fn first_of_its_name(line: Line, number: u64, seen: &mut HashMap<IdHash, u64>) -> Result<Line, BadLine> {
    match *seen.entry(hash_id(&line.custom_id)).or_insert(number) {
        first if first == number => Ok(line),
        first => {
            let reason = format!("custom_id \"{}\" is that of line {first} too", line.custom_id);
            // Its own name has the other's result.
            Err(BadLine { number, custom_id: None, reason })
        }
    }
}

/// Gives a bad line the name that its result has: its own, or what nobody before it is called. It is taken from then on.
fn named(line: BadLine, seen: &mut HashMap<IdHash, u64>) -> BadLine {
    let number = line.number;
    let made_up = (1..).map(|nth| if nth == 1 { format!("line {number}") } else { format!("line {number} ({nth})") });
    let custom_id = line.custom_id.into_iter().chain(made_up).find(|name| match seen.entry(hash_id(name)) {
        Entry::Occupied(_) => false,
        Entry::Vacant(free) => *free.insert(number) == number,
    });
    BadLine { custom_id, ..line }
}

fn group_of(groups: &mut Vec<String>, model: &str) -> u8 {
    let family = tidegate_core::openai::models::family(model);
    let at = groups.iter().position(|group| group == family).unwrap_or_else(|| {
        if groups.len() < GROUPS_MAX {
            groups.push(family.to_owned());
        }
        groups.len() - 1
    });
    at as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(text: &str) -> Survey {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        std::fs::write(&path, text).unwrap();
        let shape = Shape { model: Some("m".into()), prompt_key: Some("p".into()), ..Shape::default() };
        Survey::read(&Input::new(&path).unwrap(), &shape, &Done::default(), &HashSet::from([3]), |_| {}).unwrap()
    }

    #[test]
    fn every_bad_line_is_known_by_its_number_before_anything_is_sent() {
        let survey = survey("{\"p\":\"a\"}\n\n{\"p\":\"b\"}\n{\"q\":1}\nnonsense\n{\"p\":\"c\"}");
        assert_eq!((survey.lines, survey.to_send, survey.bad_count, survey.cut_off), (5, 3, 2, 1));
        assert_eq!(survey.bad.iter().map(|bad| bad.number).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn a_custom_id_that_comes_twice_is_bad_the_second_time() {
        let line = |id: &str| format!("{{\"custom_id\":\"{id}\",\"p\":\"x\"}}\n");
        let survey = survey(&[line("a"), line("b"), line("a")].concat());
        assert_eq!((survey.to_send, survey.bad_count), (2, 1));
        assert_eq!(survey.bad[0].reason, "custom_id \"a\" is that of line 1 too");
    }

    #[test]
    fn names_of_bad_lines_are_taken_too_and_those_made_up_for_them_are_nobody_elses() {
        let line = |id: &str, key: &str| format!("{{\"custom_id\":\"{id}\",\"{key}\":\"x\"}}\n");
        let text = [line("a", "q"), line("a", "p"), line("line 4", "p"), "nonsense\n".to_owned(), line("b", "p")];
        let survey = survey(&text.concat());
        let names = survey.bad.iter().filter_map(|bad| Some((bad.number, bad.custom_id.as_deref()?)));
        assert_eq!(names.collect::<Vec<_>>(), [(1, "a"), (2, "line 2"), (4, "line 4 (2)")]);
        assert_eq!((survey.to_send, survey.bad_count), (2, 3));
    }

    #[test]
    fn large_and_small_lines_are_read_apart() {
        let line = |chars: usize| format!("{{\"p\":\"{}\"}}\n", "x".repeat(chars));
        let survey = survey(&[line(40), line(4000), line(40), line(40)].concat());
        assert_eq!(*survey.fates, [0, 1, 0, 0].map(Fate::Send));
        assert_eq!((survey.feeds.len(), survey.feeds[0].lines), (1, 4));
    }
}
