//! Writes a plan as one page that needs nothing else: charts in SVG, no script, nothing fetched.

use std::fmt::Write as _;

use super::chart::{Line, Unit, chart, in_words};
use super::report::Plan;
use super::tiers::named;
use super::{Answer, TierAnswer, TierCame};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:920px;padding:0 1rem;color:#1b2733}\
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #d8dee4}\
td:first-child,th:first-child{text-align:left;white-space:nowrap}h1{overflow-wrap:anywhere}pre{background:#f3f5f7;padding:1rem;overflow:auto}\
figure{margin:1rem 0 2.5rem}figcaption span{display:inline-block;margin-right:1.2rem}figcaption svg{margin-right:.4rem}\
.plot{position:relative;height:11rem;margin:.6rem .8rem 0 5rem}.plot svg{width:100%;height:100%;overflow:visible}\
.plot path,.plot polyline{vector-effect:non-scaling-stroke}.plot polyline{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\
.mark{stroke:#8885}.all{stroke:#1b2733;stroke-width:1.5}\
.plot span{position:absolute;font-size:13px;line-height:1;white-space:nowrap;color:#57606a}\
.y{right:100%;margin-right:.5rem;transform:translateY(50%)}.x{top:100%;margin-top:.5rem;transform:translateX(-50%)}\
@media(prefers-color-scheme:dark){body{background:#12181f;color:#d8dee4}pre{background:#1b232c}.plot span{color:#9aa4ae}\
.all{stroke:#d8dee4}td,th{border-color:#2c3640}}";

/// The page for a plan, and for what was searched for.
#[must_use]
pub fn page(plan: &Plan, answer: Option<&Answer>, title: &str) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1><pre>{text}</pre>",
        title = escaped(title),
        text = escaped(&plan.to_string()),
    );
    if let Some(answer) = answer {
        page.push_str(&searched(answer));
    }
    page.push_str("<h2>Longest wait by priority</h2>");
    page.push_str(&waits(plan));
    page.push_str("<h2>How full the limits were</h2>");
    page.push_str(&used(plan));
    page.push_str("<h2>What binds when</h2>");
    page.push_str(&binding(plan));
    page.push_str("</html>\n");
    page
}

fn searched(answer: &Answer) -> String {
    let mut section = format!(
        "<h2>Which limits are enough</h2><p>For 95 of 100 calls to wait {} s at most, and none to be refused{}:</p>\
         <table><tr><th>tier</th><th>95 of 100 wait at most</th><th>refused</th><th>enough</th></tr>",
        answer.target_p95_seconds,
        escaped(&answer.dated()),
    );
    for TierAnswer { tier, came } in &answer.tiers {
        let tier = escaped(tier);
        // Writing into a string cannot fail; so it is throughout.
        let _ = match came {
            TierCame::Known { p95_seconds, refused, is_enough } => {
                let enough = if *is_enough { "<strong>yes</strong>" } else { "no" };
                let waits = in_words(*p95_seconds);
                write!(section, "<tr><td>{tier}</td><td>{waits}</td><td>{refused}</td><td>{enough}</td></tr>")
            }
            TierCame::Unknown { says_nothing_of } => {
                let models = escaped(&named(says_nothing_of));
                write!(
                    section,
                    "<tr><td>{tier}</td><td colspan=\"3\">not known: the table says nothing of {models}</td></tr>"
                )
            }
        };
    }
    section.push_str("</table>");
    if !answer.is_enough() {
        section.push_str("<p>Of the tiers that are known, none is enough.</p>");
    }
    if let Some(factor) = answer.factor {
        let _ = write!(section, "<p>The configured limits are enough at {factor:.2} times what they are.</p>");
    }
    section
}

fn waits(plan: &Plan) -> String {
    if plan.all.max_seconds == 0.0 {
        return "<p>Nothing waited.</p>".to_owned();
    }
    let lines = [("high", 2), ("normal", 1), ("low", 0)].map(|(name, class)| Line {
        name: name.to_owned(),
        values: plan.intervals.iter().map(|interval| interval.wait_seconds[class]).collect(),
    });
    let lines: Vec<Line> = lines.into_iter().filter(|line| line.values.iter().any(Option::is_some)).collect();
    chart(&lines, Unit::Seconds, plan.interval_seconds)
}

fn used(plan: &Plan) -> String {
    if plan.used.is_empty() {
        return "<p>No limit had anything to hold.</p>".to_owned();
    }
    let lines = plan.used.iter().map(|used| Line {
        name: format!("{} {}", used.limit, used.dimension),
        values: used.interval_percent.iter().copied().map(Some).collect(),
    });
    "<p>What went in the last minute (or day) as a share of the limit, of its fullest level. A bucket that has \
     filled up lets up to twice the limit go within a minute.</p>"
        .to_owned()
        + &chart(&lines.collect::<Vec<_>>(), Unit::Percent, plan.interval_seconds)
}

/// One row for each run of intervals that the same thing bound in.
fn binding(plan: &Plan) -> String {
    let mut rows = String::from("<table><tr><th>from</th><th>to</th><th>binds</th></tr>");
    let mut at = 0;
    while let Some(first) = plan.intervals.get(at) {
        let same = plan.intervals[at..].iter().take_while(|interval| interval.binds == first.binds).count();
        let until = first.at_seconds + same as f64 * plan.interval_seconds;
        let (from, until) = (in_words(first.at_seconds), in_words(until));
        let binds = if first.binds.is_empty() { "nothing" } else { &first.binds };
        let _ = write!(rows, "<tr><td>{from}</td><td>{until}</td><td>{}</td></tr>", escaped(binds));
        at += same;
    }
    rows + "</table>"
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
