//! What is told of an alert, and how it is written down: for a program, for Slack, in a line.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tidegate_core::config::{AlertSignal, WebhookFormat};
use tidegate_core::time::Time;

use super::rule::{Rule, State};

/// Why there is something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The alert begins.
    Fires,
    /// It still lasts.
    Lasts,
    /// It is over.
    Over,
    /// It is over because it is no longer configured.
    Removed,
}

impl Turn {
    /// Whether the alert ends with it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Over | Self::Removed)
    }
}

/// One thing to tell of one alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The alert's name.
    pub alert: Arc<str>,
    /// Why it is told.
    pub turn: Turn,
    /// What is watched.
    pub when: AlertSignal,
    /// What the signal has to exceed.
    pub above: f64,
    /// The signal. `None`: too few calls to tell.
    pub value: Option<f64>,
    /// Whom it is about, those that most of it is about first: breakers, limits, upstreams and models, callers.
    pub about: Vec<String>,
    /// How many audit records were lost since it began.
    pub audit_lost: u64,
    /// When it is told.
    pub at: Time,
    /// Since when the signal is, or was, above.
    pub since: Time,
    /// Which of the notices since then it is, from 1.
    pub number: u32,
}

/// The generic form. Its names are what receivers go by.
#[derive(Serialize)]
struct Generic<'n> {
    /// The same however often this notice is sent.
    id: String,
    alert: &'n str,
    state: &'static str,
    reminder: bool,
    when: &'static str,
    above: f64,
    value: Option<f64>,
    unit: &'static str,
    about: &'n [String],
    at: String,
    since: String,
    lasted_seconds: f64,
    instance: &'n str,
    text: String,
}

#[derive(Serialize)]
struct Slack {
    text: String,
}

impl Notice {
    pub(super) fn new(rule: &Rule, turn: Turn, at: Time, about: Vec<String>, audit_lost: u64) -> Self {
        let config = rule.config();
        let (since, number) = match rule.told_state() {
            State::Firing { since, told, .. } => (since, told + u32::from(turn.is_end())),
            State::Quiet | State::Pending { .. } => (at, 1),
        };
        Self {
            alert: config.name.clone(),
            turn,
            when: config.when,
            above: config.above,
            value: rule.value(),
            about,
            audit_lost,
            at,
            since,
            number,
        }
    }

    /// How long it has lasted by then.
    #[must_use]
    pub fn lasted(&self) -> Duration {
        self.at.since(self.since)
    }

    /// The signal and its bound as whole numbers, units last in their names: microseconds, millionths of a share (`ppm`), counts.
    #[must_use]
    pub fn numbers(&self) -> [(&'static str, Option<u64>); 2] {
        let (value, above, per_unit) = match unit(self.when) {
            "seconds" => ("value_us", "above_us", 1e6),
            "share" => ("value_ppm", "above_ppm", 1e6),
            _ => ("value", "above", 1.0),
        };
        let whole = |number: f64| (number * per_unit).round() as u64;
        [(value, self.value.map(whole)), (above, Some(whole(self.above)))]
    }

    /// The line for people: `breaker open: 1 breaker open (openai/gpt-4o)`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}: ", self.alert);
        let lasted = humantime::format_duration(Duration::from_secs(self.lasted().as_secs()));
        // Whoever was not reached when it began reads only this.
        let began = humantime::format_rfc3339_seconds(at(self.since));
        let _ = match self.turn {
            Turn::Fires => write!(text, "{}", self.said()),
            Turn::Lasts => write!(text, "{}, for {lasted} now", self.said()),
            Turn::Over => write!(text, "over after {lasted}, began {began}; {}", self.said()),
            Turn::Removed => {
                write!(text, "over after {lasted}, began {began}: no longer configured; {}", self.said())
            }
        };
        if !self.about.is_empty() {
            let _ = write!(text, " ({})", self.about.join(", "));
        }
        if !self.turn.is_end() {
            let _ = write!(text, "; alert above {}", quantity(self.when, self.above));
        }
        text
    }

    /// The body of the webhook's POST. `instance` tells several gateways apart.
    ///
    /// # Errors
    /// If it cannot be written, which none of its parts brings about.
    pub fn body(&self, format: WebhookFormat, instance: &str) -> Result<Vec<u8>, serde_json::Error> {
        match format {
            WebhookFormat::Slack => {
                let sign = if self.turn.is_end() { ":white_check_mark:" } else { ":rotating_light:" };
                let place = if instance.is_empty() { String::new() } else { format!(" on {instance}") };
                serde_json::to_vec(&Slack { text: escaped(&format!("{sign} tidegate{place}: {}", self.text())) })
            }
            WebhookFormat::Generic => serde_json::to_vec(&Generic {
                id: format!("{}/{}/{}", self.alert, self.since.as_micros(), self.number),
                alert: &self.alert,
                state: if self.turn.is_end() { "over" } else { "firing" },
                reminder: self.turn == Turn::Lasts,
                when: self.when.name(),
                above: self.above,
                value: self.value,
                unit: unit(self.when),
                about: &self.about,
                at: shown(self.at),
                since: shown(self.since),
                lasted_seconds: self.lasted().as_secs_f64(),
                instance,
                text: self.text(),
            }),
        }
    }

    /// What the signal says.
    fn said(&self) -> String {
        let Some(value) = self.value else { return "too few calls to tell".to_owned() };
        let shown = quantity(self.when, value);
        let of = |one: &str, more: &str| format!("{shown} {}", if value == 1.0 { one } else { more });
        match self.when {
            AlertSignal::BreakerOpen => of("breaker open", "breakers open"),
            AlertSignal::RateLimited => format!("{shown} of calls held or refused"),
            AlertSignal::Retries => format!("retries are {shown} of calls"),
            AlertSignal::ErrorRate => format!("{shown} of calls failed"),
            AlertSignal::UpstreamLatency => format!("upstreams took {shown} to the first byte (p95)"),
            AlertSignal::QueueWait => format!("calls waited {shown} (p95)"),
            AlertSignal::Overhead => format!("calls spent {shown} in tidegate (p99)"),
            AlertSignal::AuditFailed if self.turn.is_end() => match self.audit_lost {
                0 => "no audit record was lost".to_owned(),
                1 => "1 audit record lost".to_owned(),
                lost => format!("{lost} audit records lost"),
            },
            AlertSignal::AuditFailed if self.audit_lost == 0 => {
                "the audit trail cannot be written; nothing is lost yet".to_owned()
            }
            AlertSignal::AuditFailed => of("audit record not written", "audit records not written"),
            AlertSignal::StoreDegraded => of("store out of reach", "stores out of reach"),
            AlertSignal::BypassSuspected => {
                of("caller seems to go round its limits", "callers seem to go round their limits")
            }
        }
    }
}

/// RFC 3339; the driver's clock counts from the Unix epoch.
pub(super) fn shown(time: Time) -> String {
    humantime::format_rfc3339_millis(at(time)).to_string()
}

fn at(time: Time) -> SystemTime {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(time.as_micros()));
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

const fn unit(signal: AlertSignal) -> &'static str {
    match signal {
        AlertSignal::RateLimited | AlertSignal::Retries | AlertSignal::ErrorRate => "share",
        AlertSignal::UpstreamLatency | AlertSignal::QueueWait | AlertSignal::Overhead => "seconds",
        AlertSignal::BreakerOpen
        | AlertSignal::AuditFailed
        | AlertSignal::StoreDegraded
        | AlertSignal::BypassSuspected => "count",
    }
}

/// A value of the signal, with its unit.
fn quantity(signal: AlertSignal, value: f64) -> String {
    match unit(signal) {
        "share" => format!("{}%", three_digits(value * 100.0)),
        "seconds" if value < 1.0 => format!("{}ms", three_digits(value * 1e3)),
        "seconds" => format!("{}s", three_digits(value)),
        _ => three_digits(value),
    }
}

/// No more digits than anybody reads: `0.25`, `12.3`, `1240`.
fn three_digits(value: f64) -> String {
    let digits = if value >= 100.0 { 0 } else { 2 };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// As Slack wants text that is to be shown as it is.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(turn: Turn, when: AlertSignal, value: f64, about: &[&str]) -> Notice {
        Notice {
            alert: "team <a> & b".into(),
            turn,
            when,
            above: 0.25,
            value: Some(value),
            about: about.iter().map(|name| (*name).to_owned()).collect(),
            audit_lost: 0,
            at: Time::from_secs(1_796_000_600),
            since: Time::from_secs(1_796_000_000),
            number: 2,
        }
    }

    #[test]
    fn a_line_says_what_and_how_much_and_how_long() {
        let about = ["openai/gpt-4o"];
        for (turn, when, value, text) in [
            (Turn::Fires, AlertSignal::BreakerOpen, 1.0, "1 breaker open (openai/gpt-4o); alert above 0.25"),
            (
                Turn::Lasts,
                AlertSignal::ErrorRate,
                0.5,
                "50% of calls failed, for 10m now (openai/gpt-4o); alert above 25%",
            ),
            (
                Turn::Over,
                AlertSignal::Overhead,
                0.0012,
                "over after 10m, began 2026-11-30T00:53:20Z; calls spent 1.2ms in tidegate (p99) (openai/gpt-4o)",
            ),
            (
                Turn::Removed,
                AlertSignal::Retries,
                0.5,
                "over after 10m, began 2026-11-30T00:53:20Z: no longer configured; retries are 50% of calls (openai/gpt-4o)",
            ),
            (
                Turn::Fires,
                AlertSignal::QueueWait,
                1240.0,
                "calls waited 1240s (p95) (openai/gpt-4o); alert above 250ms",
            ),
        ] {
            assert_eq!(notice(turn, when, value, &about).text(), format!("team <a> & b: {text}"));
        }
        let unknown = Notice { value: None, ..notice(Turn::Over, AlertSignal::Retries, 0.0, &[]) };
        assert_eq!(unknown.text(), "team <a> & b: over after 10m, began 2026-11-30T00:53:20Z; too few calls to tell");
    }

    #[test]
    fn a_program_gets_every_number_under_a_name_of_its_own() {
        let body = notice(Turn::Lasts, AlertSignal::ErrorRate, 0.5, &[]).body(WebhookFormat::Generic, "gw-1").unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"id":"team <a> & b/1796000000000000/2","alert":"team <a> & b","state":"firing","reminder":true,"when":"error_rate","above":0.25,"value":0.5,"unit":"share","about":[],"at":"2026-11-30T01:03:20.000Z","since":"2026-11-30T00:53:20.000Z","lasted_seconds":600.0,"instance":"gw-1","text":"team <a> & b: 50% of calls failed, for 10m now; alert above 25%"}"#
        );
    }

    #[test]
    fn a_record_gets_whole_numbers_with_their_unit_in_the_name() {
        for (when, value, numbers) in [
            (AlertSignal::ErrorRate, 0.31, [("value_ppm", Some(310_000)), ("above_ppm", Some(250_000))]),
            (AlertSignal::QueueWait, 2.5, [("value_us", Some(2_500_000)), ("above_us", Some(250_000))]),
            (AlertSignal::BreakerOpen, 3.0, [("value", Some(3)), ("above", Some(0))]),
        ] {
            assert_eq!(notice(Turn::Fires, when, value, &[]).numbers(), numbers);
        }
        let unknown = Notice { value: None, ..notice(Turn::Over, AlertSignal::Retries, 0.0, &[]) };
        assert_eq!(unknown.numbers()[0], ("value_ppm", None));
    }

    #[test]
    fn slack_gets_text_that_it_shows_as_it_is() {
        let body = notice(Turn::Over, AlertSignal::Retries, 0.0, &[]).body(WebhookFormat::Slack, "gw-1").unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"text":":white_check_mark: tidegate on gw-1: team &lt;a&gt; &amp; b: over after 10m, began 2026-11-30T00:53:20Z; retries are 0% of calls"}"#
        );
    }
}
