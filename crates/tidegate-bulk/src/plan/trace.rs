//! Decides what arrives, and when: a trace in CSV, or the input of a run, of which all is there at once.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_core::call::{Priority, RequestType};
use tidegate_core::cost::Cost;

use crate::input::{Fate, Input, Survey};
use crate::journal::Done;
use crate::line::Shape;
use crate::ramp::FIRST_CALLS;

/// What a call without a ceiling is expected to write.
const OUTPUT_TOKENS: u64 = 256;

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}")]
    File(String, io::Error),
    /// A line is none.
    #[error("{0}:{1}: {2}")]
    Line(String, u64, String),
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// Since the first.
    pub(crate) at_micros: u64,
    pub(crate) cost: Cost,
    pub(crate) output_tokens: u64,
    pub(crate) model: u16,
    pub(crate) user: u32,
    pub(crate) priority: Priority,
    pub(crate) request_type: RequestType,
}

/// Everything that arrives, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) models: Vec<Arc<str>>,
    /// The first stands for nobody.
    pub(crate) users: Vec<Arc<str>>,
    /// Of the input of a run, all of which is there at once: how many arrivals each feed has, one feed after the other.
    pub(crate) feeds: Option<Vec<usize>>,
}

impl Trace {
    /// Reads a trace: CSV with a line of names, or what `tidegate run` takes.
    ///
    /// # Errors
    /// Where it cannot be understood.
    pub fn read(path: &Path, shape: &Shape) -> Result<Self, TraceError> {
        let input = Input::new(path).map_err(|error| TraceError::File(path.display().to_string(), error))?;
        if begins_with_an_object(&input).map_err(|error| TraceError::File(input.name().to_owned(), error))? {
            return Self::of_run(&input, shape);
        }
        Self::of_csv(&input, shape.model.as_deref().unwrap_or(""))
    }

    /// The models in it.
    #[must_use]
    pub fn models(&self) -> &[Arc<str>] {
        &self.models
    }

    /// All lines of a run's input, bad ones left out.
    pub(crate) fn of_run(input: &Input, shape: &Shape) -> Result<Self, TraceError> {
        let file = |error| TraceError::File(input.name().to_owned(), error);
        let survey = Survey::read(input, shape, &Done::default(), &HashSet::new(), |_| {}).map_err(file)?;
        if let Some(bad) = survey.bad.first() {
            return Err(TraceError::Line(input.name().to_owned(), bad.number, bad.reason.clone()));
        }
        let mut trace = Self { users: vec!["".into()], ..Self::default() };
        let mut feeds = Vec::new();
        // In the order in which a run reads them: large and small ones in the measure in which they stand in the whole.
        let mut queues = vec![std::collections::VecDeque::new(); 256];
        input
            .lines(|number, text| {
                let fate = survey.fates[number as usize - 1];
                if let (Fate::Send(feed), Some(line)) = (fate, text.ok().and_then(|text| shape.read(number, text).ok()))
                {
                    let model = trace.model(tidegate_core::openai::models::family(&line.asking.model));
                    let cost = line.asking.cost;
                    queues[usize::from(feed)].push_back(Arrival {
                        at_micros: 0,
                        cost,
                        output_tokens: cost.max_output_tokens.unwrap_or(OUTPUT_TOKENS).min(OUTPUT_TOKENS),
                        model,
                        user: 0,
                        priority: Priority::Low,
                        request_type: line.asking.request_type,
                    });
                }
                true
            })
            .map_err(file)?;
        for plan in &survey.feeds {
            let (mut lines, mut tokens) = (0_u64, 0_u64);
            loop {
                // Small ones find out the limits; one more is read by then.
                let wants_large = lines > FIRST_CALLS && tokens <= plan.mean_tokens.saturating_mul(lines);
                let (large, small) = (usize::from(plan.large), usize::from(plan.small));
                let order = if wants_large { [large, small] } else { [small, large] };
                let Some(next) = order.into_iter().find_map(|feed| queues[feed].pop_front()) else { break };
                lines += 1;
                tokens = tokens.saturating_add(next.cost.input_tokens);
                trace.arrivals.push(next);
            }
            feeds.push(usize::try_from(lines).unwrap_or(usize::MAX));
        }
        trace.feeds = Some(feeds);
        Ok(trace)
    }

    /// `model`: of rows that name none.
    fn of_csv(input: &Input, model: &str) -> Result<Self, TraceError> {
        let mut trace = Self { users: vec!["".into()], ..Self::default() };
        let mut names: Vec<String> = Vec::new();
        let mut rows: Vec<(f64, Arrival)> = Vec::new();
        let mut clock = None;
        let mut fault = None;
        let mut take = |number: u64, line: &str| {
            if names.is_empty() {
                names = column_names(line)?;
            } else if !line.is_empty() {
                let (instant, arrival) = trace.row(&names, line, model)?;
                let (first, at_line) = *clock.get_or_insert((instant.clock, number));
                if first != instant.clock {
                    let (is, was) = (instant.clock.name(), first.name());
                    return Err(format!(
                        "its timestamp is {is}, and that of line {at_line} {was}: they cannot be compared"
                    ));
                }
                rows.push((instant.seconds, arrival));
            }
            Ok(())
        };
        let read = input.lines(|number, text| {
            let taken = text.and_then(|line| take(number, line.trim()));
            fault = taken.err().map(|why| TraceError::Line(input.name().to_owned(), number, why));
            fault.is_none()
        });
        read.map_err(|error| TraceError::File(input.name().to_owned(), error))?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        rows.sort_by(|one, other| one.0.total_cmp(&other.0));
        let begin = rows.first().map_or(0.0, |(at, _)| *at);
        trace.arrivals = rows
            .into_iter()
            .map(|(at, arrival)| Arrival { at_micros: ((at - begin) * 1e6).round() as u64, ..arrival })
            .collect();
        Ok(trace)
    }

    fn row(&mut self, names: &[String], line: &str, model: &str) -> Result<(Instant, Arrival), String> {
        let values: Vec<&str> = line.split(',').map(|value| value.trim().trim_matches('"')).collect();
        let value = |name: &str| {
            let at = names.iter().position(|other| other == name)?;
            values.get(at).copied().filter(|value| !value.is_empty())
        };
        let tokens = |name: &str| {
            let text = value(name).ok_or_else(|| format!("it has no {name}"))?;
            text.parse::<u64>().map_err(|_| format!("{name} must be a number, not {text}"))
        };
        let (input_tokens, output_tokens) = (tokens("input_tokens")?, tokens("output_tokens")?);
        let at = Instant::parse(value("timestamp").ok_or("it has no timestamp")?)?;
        let priority = match value("priority") {
            None => Priority::Normal,
            Some(word) => {
                Priority::parse(word).ok_or_else(|| format!("priority must be low, normal or high, not {word}"))?
            }
        };
        let model = self.model(tidegate_core::openai::models::family(value("model").unwrap_or(model)));
        let user = value("user").map_or(0, |user| place_of(&mut self.users, user) as u32);
        let cost = Cost { input_tokens, max_output_tokens: Some(output_tokens), ..Cost::default() };
        let request_type = RequestType::Chat;
        Ok((at, Arrival { at_micros: 0, cost, output_tokens, model, user, priority, request_type }))
    }

    fn model(&mut self, name: &str) -> u16 {
        u16::try_from(place_of(&mut self.models, name)).unwrap_or(u16::MAX)
    }
}

/// As the input of a run does; its first lines may be empty.
fn begins_with_an_object(input: &Input) -> io::Result<bool> {
    let mut begins = true;
    input.lines(|_, text| {
        let line = text.unwrap_or_default().trim();
        begins = line.is_empty() || line.starts_with('{');
        line.is_empty()
    })?;
    Ok(begins)
}

fn column_names(line: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = line.split(',').map(|name| name.trim().to_owned()).collect();
    for needed in ["timestamp", "input_tokens", "output_tokens"] {
        if !names.iter().any(|name| name == needed) {
            return Err(format!(
                "there is no column {needed}; a trace begins with the names of its columns, such as \
                 timestamp,input_tokens,output_tokens, and the input of a run with an object"
            ));
        }
    }
    Ok(names)
}

fn place_of(names: &mut Vec<Arc<str>>, name: &str) -> usize {
    names.iter().position(|other| &**other == name).unwrap_or_else(|| {
        names.push(name.into());
        names.len() - 1
    })
}

/// What seconds are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// Whatever whoever wrote it counts from.
    Seconds,
    /// 1970.
    Calendar,
}

impl Clock {
    const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "in seconds",
            Self::Calendar => "RFC 3339",
        }
    }
}

struct Instant {
    clock: Clock,
    seconds: f64,
}

impl Instant {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.parse::<f64>() {
            let is_one = seconds.is_finite();
            return is_one
                .then_some(Self { clock: Clock::Seconds, seconds })
                .ok_or(format!("timestamp {text} is no instant"));
        }
        let at = humantime::parse_rfc3339_weak(text.trim_end_matches("+00:00"))
            .map_err(|_| format!("timestamp must be seconds or RFC 3339 in UTC, not {text}"))?;
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Ok(Self { clock: Clock::Calendar, seconds })
    }
}
