//! Draws a plan as one page that needs nothing else: charts in SVG, no script, nothing fetched.

use std::fmt::Write as _;

use super::report::{Interval, Plan};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 24.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:920px;padding:0 1rem;color:#1b2733}\
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #d8dee4}\
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}svg text{font-size:11px;fill:#57606a}\
pre{background:#f3f5f7;padding:1rem;overflow:auto}@media(prefers-color-scheme:dark){body{background:#12181f;color:#d8dee4}\
pre{background:#1b232c}svg text{fill:#9aa4ae}td,th{border-color:#2c3640}}";

/// One line of a chart.
struct Line<'p> {
    name: &'p str,
    color: &'static str,
    values: Vec<Option<f64>>,
}

/// The page for a plan.
#[must_use]
pub fn page(plan: &Plan, title: &str) -> String {
    let wait = |class: usize| plan.intervals.iter().map(|interval| interval.wait_seconds[class]).collect();
    let waits = [("high", "#d1495b", 2), ("normal", "#2e86ab", 1), ("low", "#6a994e", 0)]
        .map(|(name, color, class)| Line { name, color, values: wait(class) });
    let used = used_lines(plan);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1><pre>{text}</pre>",
        title = escaped(title),
        text = escaped(&plan.to_string()),
    );
    page.push_str("<h2>Longest wait by priority, seconds</h2>");
    page.push_str(&chart(plan, &waits, None));
    page.push_str("<h2>Utilisation by dimension, percent of the refill</h2>");
    page.push_str(&chart(plan, &used, Some(100.0)));
    page.push_str("<h2>What binds when</h2>");
    page.push_str(&binding(plan));
    page.push_str("</html>\n");
    page
}

fn used_lines(plan: &Plan) -> Vec<Line<'_>> {
    let colors = ["#2e86ab", "#d1495b", "#6a994e", "#edae49", "#8d6a9f", "#30638e"];
    let minutes = plan.interval_seconds / 60.0;
    let lines = plan.used.iter().zip(colors).filter(|(used, _)| used.dimension.ends_with("minute"));
    lines
        .map(|(used, color)| {
            let share = |interval: &Interval| {
                let units = if used.dimension.starts_with("requests") { interval.requests } else { interval.tokens };
                Some(100.0 * units as f64 / (used.units as f64 * minutes))
            };
            Line { name: used.dimension, color, values: plan.intervals.iter().map(share).collect() }
        })
        .collect()
}

fn chart(plan: &Plan, lines: &[Line<'_>], floor: Option<f64>) -> String {
    let values = lines.iter().flat_map(|line| line.values.iter().flatten());
    let top = values.fold(floor.unwrap_or(0.001), |top, value| top.max(*value));
    let count = plan.intervals.len().max(2) - 1;
    let x = |at: usize| LEFT + (WIDTH - LEFT) * at as f64 / count as f64;
    let y = |value: f64| (HEIGHT - BOTTOM) * (1.0 - value / top) + 6.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(part * top), part * top);
        // Writing into a string cannot fail; so it is throughout.
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#8886\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.values.iter().any(Option::is_some)) {
        let points = line.values.iter().enumerate().filter_map(|(at, value)| Some((at, (*value)?)));
        let points: Vec<String> = points.map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value))).collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{}\" y=\"{}\" style=\"fill:{}\">{}</text>",
            line.color,
            points.join(" "),
            LEFT + 10.0 + 160.0 * number as f64,
            HEIGHT - 4.0,
            line.color,
            escaped(line.name)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">{:.0} s</text></svg>",
        HEIGHT - 4.0,
        plan.intervals.len() as f64 * plan.interval_seconds
    );
    svg
}

/// One row for each run of intervals that the same thing bound in.
fn binding(plan: &Plan) -> String {
    let mut rows = String::from("<table><tr><th>from</th><th>to</th><th>binds</th></tr>");
    let mut at = 0;
    while let Some(first) = plan.intervals.get(at) {
        let same = plan.intervals[at..].iter().take_while(|interval| interval.binds == first.binds).count();
        let until = first.at_seconds + same as f64 * plan.interval_seconds;
        let binds = if first.binds.is_empty() { "nothing" } else { &first.binds };
        let _ =
            write!(rows, "<tr><td>{:.0} s</td><td>{until:.0} s</td><td>{}</td></tr>", first.at_seconds, escaped(binds));
        at += same;
    }
    rows + "</table>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
