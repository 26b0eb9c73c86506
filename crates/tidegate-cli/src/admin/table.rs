//! Writes the status of a gateway for people: what binds first.

use std::fmt::Write as _;

use serde_json::Value;

/// Levels shown of all limits together; the rest is counted.
const LEVELS_MAX: usize = 40;

/// All of it.
pub(super) fn status(status: &Value) -> String {
    let mut text = format!("tidegate {}, {}", plain(&status["version"]), plain(&status["state"]));
    if let Some(reason) = status["paused"].as_str() {
        let said = &status["overrides"]["paused"];
        let told = if said.is_object() { said_by(said) } else { harmless(reason) };
        let _ = write!(text, ", PAUSED {told}");
    }
    if let Some(said) = audit(&status["audit"]) {
        let _ = write!(text, "\n{said}");
    }
    let _ = write!(text, "\n\n{}\n\n{}\n\n{}", limits(status), breakers(status), queue(status));
    let _ = write!(text, "\n\n{}", learned(status));
    for boost in status["overrides"]["boosts"].as_array().into_iter().flatten() {
        let (limit, factor) = (plain(&boost["limit"]), plain(&boost["factor"]));
        let whose: Vec<String> = boost["match"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(scope, pattern)| match plain(pattern) {
                // It is for whom no name is known.
                none if none.is_empty() => format!("{} \"\"", harmless(scope)),
                pattern => format!("{} {pattern}", harmless(scope)),
            })
            .collect();
        let whose = if whose.is_empty() { String::new() } else { format!(" for {}", whose.join(", ")) };
        let until = plain(&boost["until"]);
        let _ = write!(text, "\n\nboost of {limit} × {factor}{whose} until {until}, {}", said_by(boost));
    }
    text
}

/// What is to be known of the audit trail, where not all is well.
fn audit(trail: &Value) -> Option<String> {
    let lost = match number(&trail["lost"]) {
        0.0 => String::new(),
        records => format!("; lost since the start: {records}"),
    };
    let refuses = trail["on_failure"] == "refuse";
    match trail["state"].as_str()? {
        "failing" => {
            let why = trail["why"].as_str().map_or_else(String::new, |why| format!(": {}", harmless(why)));
            let since = trail["since"].as_str().map_or_else(String::new, |since| format!(" since {}", harmless(since)));
            let calls = if refuses { "; calls are refused until it is" } else { "" };
            Some(format!("AUDIT TRAIL NOT WRITTEN{since}{why}{calls}{lost}"))
        }
        "off" if refuses => Some("NO AUDIT TRAIL: it has no place; calls are refused without one".to_owned()),
        "off" => Some("no audit trail: it has no place".to_owned()),
        _ if lost.is_empty() => None,
        _ => Some(format!("audit trail: records{}", lost.trim_start_matches(';'))),
    }
}

/// Levels of limits, the fullest first.
pub(super) fn limits(status: &Value) -> String {
    let mut rows: Vec<(f64, [String; 6])> = Vec::new();
    for level in status["limits"].as_array().into_iter().flatten() {
        for meter in level["meters"].as_array().into_iter().flatten() {
            let (limit, remaining) = (number(&meter["limit"]), number(&meter["remaining"]));
            let used = if limit > 0.0 { ((limit - remaining) / limit).max(0.0) } else { 1.0 };
            let mut notes = Vec::new();
            notes.extend(holds(meter));
            if level["mode"] == "shadow" {
                notes.push(format!("shadow, would have held {}", meter["would_hold"]));
            }
            if let Some(boost) = level.get("boost") {
                notes.push(format!("× {} for {:.0}s yet", plain(&boost["factor"]), number(&boost["ends_in_seconds"])));
            }
            let cells = [
                plain(&level["limit"]),
                plain(&level["key"]),
                plain(&meter["dimension"]),
                format!("{:.0} %", used * 100.0),
                format!("{} of {}", meter["remaining"], meter["limit"]),
                notes.join(", "),
            ];
            rows.push((used, cells));
        }
    }
    rows.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let more = rows.len().saturating_sub(LEVELS_MAX);
    rows.truncate(LEVELS_MAX);
    let mut text = table(["LIMIT", "WHOSE", "OF WHAT", "USED", "LEFT", ""], rows.into_iter().map(|(_, cells)| cells));
    if more > 0 {
        let _ = write!(text, "\n… and {more} less used; --json has them all");
    }
    text
}

/// Breakers: those of one name and state in one row, since an operator's word is for all accounts of a name.
pub(super) fn breakers(status: &Value) -> String {
    let held = status["overrides"]["breakers"].as_array();
    let mut rows: Vec<Alike> = Vec::new();
    for breaker in status["breakers"].as_array().into_iter().flatten() {
        let (name, state, cause) = (plain(&breaker["name"]), plain(&breaker["state"]), plain(&breaker["cause"]));
        let known = rows.iter().position(|row| (&row.name, &row.state) == (&name, &state));
        let at = known.unwrap_or_else(|| {
            let said = held.into_iter().flatten().find(|held| held["name"] == breaker["name"]).map(said_by);
            rows.push(Alike { name, state, said, ..Alike::default() });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.accounts += breaker["accounts"].as_u64().unwrap_or(1);
        let probes_in = breaker["next_probe_in_seconds"].as_f64();
        row.probes_in = [row.probes_in, probes_in].into_iter().flatten().reduce(f64::min);
        if !cause.is_empty() && !row.causes.contains(&cause) {
            row.causes.push(cause);
        }
    }
    let cells = rows.into_iter().map(|row| {
        let next = row.probes_in.map_or_else(String::new, |wait| format!("probe in {wait:.0}s"));
        let cause = row.said.unwrap_or_else(|| match &row.causes[..] {
            [first, more @ ..] if !more.is_empty() => format!("{first}, and {} more", more.len()),
            causes => causes.concat(),
        });
        [row.name, row.state, row.accounts.to_string(), next, cause]
    });
    table(["BREAKER", "STATE", "ACCOUNTS", "", "CAUSE"], cells)
}

/// Breakers of one name and state, one for each account.
#[derive(Default)]
struct Alike {
    name: String,
    state: String,
    accounts: u64,
    /// The soonest.
    probes_in: Option<f64>,
    /// The different ones.
    causes: Vec<String>,
    /// By whom it is held, since when and why.
    said: Option<String>,
}

/// By whom something is in force, since when and, where that was said, why.
fn said_by(said: &Value) -> String {
    let reason = said["reason"].as_str().map_or_else(String::new, |reason| format!(": {}", harmless(reason)));
    format!("by {} at {}{reason}", plain(&said["by"]), plain(&said["at"]))
}

fn queue(status: &Value) -> String {
    let queue = &status["queue"];
    let by_priority: Vec<String> = queue["waiting"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, waiting)| number(waiting) > 0.0)
        .map(|(priority, waiting)| format!("{priority} {waiting}"))
        .collect();
    let detail = if by_priority.is_empty() {
        String::new()
    } else {
        format!(" ({}; the oldest for {:.1}s)", by_priority.join(", "), number(&queue["oldest_seconds"]))
    };
    let backing_off = match number(&queue["backing_off"]) {
        0.0 => String::new(),
        calls => format!(", to be sent again after a failed attempt {calls}"),
    };
    format!("waiting {}{detail}{backing_off}, in flight {}", queue["depth"], status["in_flight"])
}

/// What is known of each model group; of several accounts' limits the one of which least is left.
fn learned(status: &Value) -> String {
    let mut rows: Vec<(&Value, &Value, usize)> = Vec::new();
    for target in status["learned"].as_array().into_iter().flatten() {
        for limit in target["limits"].as_array().into_iter().flatten() {
            let left = |limit: &Value| number(&limit["remaining"]) / number(&limit["limit"]).max(1.0);
            let is_alike = |(of, other, _): &&mut (&Value, &Value, usize)| {
                (&of["name"], &other["dimension"], &other["source"])
                    == (&target["name"], &limit["dimension"], &limit["source"])
            };
            match rows.iter_mut().find(is_alike) {
                None => rows.push((target, limit, 1)),
                Some((of, tightest, accounts)) => {
                    *accounts += 1;
                    if left(limit) < left(tightest) {
                        (*of, *tightest) = (target, limit);
                    }
                }
            }
        }
    }
    let cells = rows.into_iter().map(|(target, limit, accounts)| {
        let of_several = (accounts > 1).then(|| format!("the tightest of {accounts} accounts"));
        let notes: Vec<String> = holds(limit).into_iter().chain(of_several).collect();
        [
            plain(&target["name"]),
            plain(&limit["dimension"]),
            format!("{} of {}", limit["remaining"], limit["limit"]),
            format!("{}, {:.0}s ago", plain(&limit["source"]), number(&limit["age_seconds"])),
            notes.join(", "),
        ]
    });
    table(["LEARNED OF", "WHAT", "LEFT", "FROM", ""], cells)
}

/// Whether calls wait for it, also where something is left of it.
fn holds(meter: &Value) -> Option<String> {
    (meter["binds"] == true).then(|| match number(&meter["kept"]) {
        0.0 => "holds calls".to_owned(),
        kept => format!("holds calls, {kept} kept for higher priorities"),
    })
}

fn plain(value: &Value) -> String {
    let text =
        value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned);
    harmless(&text)
}

/// Text that acts on no terminal: a model's name is a caller's to choose.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// Columns as wide as their widest cell; without rows, that there is none.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.collect();
    if rows.is_empty() {
        return format!("{}: none", head[0].to_lowercase());
    }
    let mut widths = head.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(head.to_vec());
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [head].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_in_force_says_of_what_and_by_whom_since_when_and_why() {
        let boost = |matching: Value| json!({"limit": "team", "factor": 2.0, "match": matching, "until": "noon", "by": "local", "at": "ten"});
        let mut one = boost(json!({"user": "ada", "organization": "acme"}));
        one["reason"] = "month's\u{1b} end".into();
        let paused = json!({"by": "anna", "at": "nine", "reason": "the bill"});
        let told =
            status(&json!({"paused": "the bill", "overrides": {"boosts": [one, boost(json!({}))], "paused": paused}}));
        assert!(told.contains(", PAUSED by anna at nine: the bill\n"), "{told}");
        let first =
            "boost of team × 2.0 for organization acme, user ada until noon, by local at ten: month's\u{fffd} end\n";
        assert!(told.contains(first), "{told}");
        assert!(told.ends_with("boost of team × 2.0 until noon, by local at ten"), "{told}");
        let nameless = status(&json!({"overrides": {"boosts": [boost(json!({"organization": ""}))]}}));
        assert!(nameless.contains("boost of team × 2.0 for organization \"\" until noon"), "{nameless}");
    }

    #[test]
    fn a_trail_that_is_not_written_says_why_and_what_becomes_of_calls() {
        let told = |state: &str, lost: u64, on_failure: &str, why: Option<&str>| {
            let trail = json!({"state": state, "lost": lost, "on_failure": on_failure, "why": why});
            status(&json!({"version": "1", "state": "serving", "audit": trail})).lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(
            told("failing", 0, "refuse", Some("no \u{1b}file")),
            "AUDIT TRAIL NOT WRITTEN: no \u{fffd}file; calls are refused until it is"
        );
        assert_eq!(
            told("failing", 12, "continue", Some("locked")),
            "AUDIT TRAIL NOT WRITTEN: locked; lost since the start: 12"
        );
        assert_eq!(told("failing", 0, "refuse", None), "AUDIT TRAIL NOT WRITTEN; calls are refused until it is");
        assert_eq!(told("off", 0, "refuse", None), "NO AUDIT TRAIL: it has no place; calls are refused without one");
        assert_eq!(told("off", 0, "continue", None), "no audit trail: it has no place");
        assert_eq!(told("well", 3, "continue", None), "audit trail: records lost since the start: 3");
        assert_eq!(told("well", 0, "refuse", None), "");
    }

    #[test]
    fn calls_that_wait_after_a_failed_attempt_are_told_beside_the_queue() {
        let told =
            |backing_off: u32| queue(&json!({"queue": {"depth": 0, "backing_off": backing_off}, "in_flight": 3}));
        assert_eq!(told(2), "waiting 0, to be sent again after a failed attempt 2, in flight 3");
        assert_eq!(told(0), "waiting 0, in flight 3");
    }

    #[test]
    fn breakers_that_differ_only_in_their_account_are_one_row() {
        let breaker = |name: &str, state: &str, cause: &str, probe: Option<f64>| json!({"name": name, "state": state, "cause": cause, "next_probe_in_seconds": probe});
        let mut all = vec![breaker("sim/gpt-4.1", "closed", "", None); 4];
        all.insert(2, breaker("sim/gpt-4.1", "open", "5 failures in a row, last 503", Some(41.2)));
        all.push(breaker("sim/gpt-4.1", "open", "5 failures in a row, last 503", Some(3.0)));
        all.push(breaker("sim/gpt-4.1", "open", "5 failures in a row, last timeout", Some(8.0)));
        all.push(breaker("sim/gpt-4o", "forced_open", "", None));
        all[7]["accounts"] = json!(0);
        let held = json!([{"name": "sim/gpt-4o", "state": "forced_open", "by": "local", "at": "noon", "reason": "main\u{1b}tenance"}]);
        let told = breakers(&json!({"breakers": all, "overrides": {"breakers": held}}));
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "BREAKER      STATE        ACCOUNTS               CAUSE",
                "sim/gpt-4.1  closed       4",
                "sim/gpt-4.1  open         3         probe in 3s  5 failures in a row, last 503, and 1 more",
                "sim/gpt-4o   forced_open  0                      by local at noon: main\u{fffd}tenance",
            ]
        );
        assert_eq!(breakers(&json!({"breakers": []})), "breaker: none");
    }

    #[test]
    fn of_several_accounts_limits_the_tightest_is_shown() {
        let account = |remaining: i64, source: &str, binds: bool| {
            json!({"name": "sim/gpt-4o", "limits": [{"dimension": "requests_per_minute", "limit": 10, "remaining": remaining,
                "source": source, "age_seconds": 1.2, "binds": binds, "kept": 0}]})
        };
        let all = json!([account(7, "headers", false), account(0, "headers", true), account(3, "refusals", false)]);
        let told = learned(&json!({"learned": all}));
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "LEARNED OF  WHAT                 LEFT     FROM",
                "sim/gpt-4o  requests_per_minute  0 of 10  headers, 1s ago   holds calls, the tightest of 2 accounts",
                "sim/gpt-4o  requests_per_minute  3 of 10  refusals, 1s ago",
            ]
        );
    }

    #[test]
    fn the_fullest_level_comes_first_and_says_what_it_does() {
        let meter = |remaining: i64, kept| json!({"dimension": "requests_per_minute", "limit": 10, "remaining": remaining, "binds": true, "kept": kept});
        let told = limits(&json!({"limits": [
            {"limit": "a", "key": "x", "mode": "enforce", "meters": [meter(5, 5)]},
            {"limit": "b", "key": "y", "mode": "enforce", "meters": [meter(-2, 0)], "boost": {"factor": 1.5, "ends_in_seconds": 61.2}},
        ]}));
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "LIMIT  WHOSE  OF WHAT              USED   LEFT");
        assert_eq!(lines[1], "b      y      requests_per_minute  120 %  -2 of 10  holds calls, × 1.5 for 61s yet");
        assert_eq!(
            lines[2],
            "a      x      requests_per_minute  50 %   5 of 10   holds calls, 5 kept for higher priorities"
        );
        assert_eq!(limits(&json!({"limits": []})), "limit: none");
        assert_eq!(plain(&json!("sim/\u{1b}[2J")), "sim/\u{fffd}[2J");
    }
}
