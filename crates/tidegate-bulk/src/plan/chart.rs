//! Draws one chart over time. Its words are HTML beside the drawing, so that they stay readable where the drawing gets narrow.
//!
//! Points are written as they are: number of the interval and value; the drawing turns and stretches them. Lines differ in
//! colour and in dashes, since not everybody tells colours apart.

use std::fmt::Write as _;

use super::html::escaped;

const COLORS: [&str; 5] = ["#d55e00", "#0080c8", "#7b8792", "#009e73", "#b5651d"];
/// Of another number, so that lines beyond the colours differ all the same.
const DASHES: [&str; 4] = ["none", "8 4", "2 3", "10 3 2 3"];
/// Marks along an axis, at most.
const MARKS: f64 = 4.0;

/// One line of a chart.
pub(super) struct Line {
    pub(super) name: String,
    /// By interval; absent where there is nothing to draw.
    pub(super) values: Vec<Option<f64>>,
}

/// What the values are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    /// A line at 100 is drawn.
    Percent,
}

/// The chart of `lines`, of which there must be one.
pub(super) fn chart(lines: &[Line], unit: Unit, interval_seconds: f64) -> String {
    let most = lines.iter().flat_map(|line| line.values.iter().flatten()).fold(0.0_f64, |most, value| most.max(*value));
    let most = if unit == Unit::Percent { most.max(100.0) } else { most };
    let marks = marks(most, unit);
    let top = marks.last().copied().unwrap_or(most).max(most);
    let intervals = lines.iter().map(|line| line.values.len()).max().unwrap_or(0).max(2) - 1;
    let mut page = String::from("<figure><figcaption>");
    for (number, line) in lines.iter().enumerate() {
        let (color, dash) = looks(number);
        // Writing into a string cannot fail; so it is throughout.
        let _ = write!(
            page,
            "<span><svg width=\"34\" height=\"10\" aria-hidden=\"true\"><path d=\"M1 5H33\" stroke=\"{color}\" \
             stroke-width=\"2.5\" stroke-dasharray=\"{dash}\"/></svg>{}</span>",
            escaped(&line.name)
        );
    }
    let _ = write!(
        page,
        "</figcaption><div class=\"plot\"><svg viewBox=\"0 0 {intervals} {top}\" preserveAspectRatio=\"none\" role=\"img\">\
         <title>{}</title><g fill=\"none\" transform=\"matrix(1 0 0 -1 0 {top})\">",
        escaped(&lines.iter().map(said).collect::<Vec<_>>().join("; "))
    );
    for mark in &marks {
        let class = if unit == Unit::Percent && *mark == 100.0 { "all" } else { "mark" };
        let _ = write!(page, "<path class=\"{class}\" d=\"M0 {mark}H{intervals}\"/>");
    }
    for (number, line) in lines.iter().enumerate() {
        let (color, dash) = looks(number);
        let _ = write!(
            page,
            "<polyline stroke=\"{color}\" stroke-dasharray=\"{dash}\" points=\"{}\"><title>{}</title></polyline>",
            points(&line.values),
            escaped(&line.name)
        );
    }
    page.push_str("</g></svg>");
    for mark in &marks {
        let at = 100.0 * mark / top;
        let _ = write!(page, "<span class=\"y\" style=\"bottom:{at:.2}%\">{}</span>", written(*mark, unit));
    }
    let span = intervals as f64 * interval_seconds;
    for mark in self::marks(span, Unit::Seconds).into_iter().filter(|mark| *mark <= span) {
        let at = 100.0 * mark / span;
        let _ = write!(page, "<span class=\"x\" style=\"left:{at:.2}%\">{}</span>", written(mark, Unit::Seconds));
    }
    page.push_str("</div></figure>");
    page
}

fn looks(number: usize) -> (&'static str, &'static str) {
    (COLORS[number % COLORS.len()], DASHES[number % DASHES.len()])
}

fn said(line: &Line) -> String {
    let most = line.values.iter().flatten().fold(0.0_f64, |most, value| most.max(*value));
    format!("{}: at most {most:.1}", line.name)
}

/// Where there is nothing between two values, the line goes straight from one to the other.
fn points(values: &[Option<f64>]) -> String {
    let mut points = String::new();
    for (at, value) in values.iter().enumerate().filter_map(|(at, value)| Some((at, (*value)?))) {
        let _ = write!(points, "{at},{} ", (value * 1000.0).round() / 1000.0);
    }
    points.pop();
    // A line needs two.
    if points.contains(' ') { points } else { format!("{points} {points}") }
}

/// Round values from zero to the first that is no less than `most`.
fn marks(most: f64, unit: Unit) -> Vec<f64> {
    const PERCENTS: [f64; 4] = [50.0, 100.0, 500.0, 1000.0];
    const SECONDS: [f64; 21] = [
        0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0,
        3600.0, 7200.0, 21_600.0,
    ];
    let steps: &[f64] = if unit == Unit::Percent { &PERCENTS } else { &SECONDS };
    let step = steps.iter().copied().find(|step| most / step <= MARKS);
    // Beyond the list in whole days, or thousands.
    let beyond = if unit == Unit::Percent { 1000.0 } else { 86_400.0 };
    let step = step.unwrap_or_else(|| (most / MARKS / beyond).ceil() * beyond);
    (0..).map(|number| f64::from(number) * step).take(1 + (most / step).ceil() as usize).collect()
}

fn written(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Percent => format!("{value} %"),
        Unit::Seconds => in_words(value),
    }
}

/// A time as one says it: `30 s`, `2 min`, `1 h 30 min`.
pub(super) fn in_words(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{} s", (seconds * 100.0).round() / 100.0);
    }
    let whole = seconds.round() as u64;
    let parts = [(whole / 86_400, "d"), (whole / 3600 % 24, "h"), (whole / 60 % 60, "min"), (whole % 60, "s")];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0).take(2);
    parts.map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_marked_with_round_values() {
        assert_eq!(marks(3630.0, Unit::Seconds), [0.0, 1200.0, 2400.0, 3600.0, 4800.0]);
        assert_eq!(marks(120.0, Unit::Percent), [0.0, 50.0, 100.0, 150.0]);
        assert_eq!(marks(0.0, Unit::Seconds), [0.0]);
        for (seconds, words) in
            [(0.0, "0 s"), (0.05, "0.05 s"), (90.0, "1 min 30 s"), (3600.0, "1 h"), (9e4, "1 d 1 h")]
        {
            assert_eq!(in_words(seconds), words);
        }
    }
}
