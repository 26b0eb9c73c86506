//! Decides when operators are told, and when again: each `[[alert]]` against what was counted within the last minute.
//!
//! Never reads a clock, counts or sends anything: whoever counts hands over a [`Sample`] about once a second, with `now`, and delivers
//! the [`Notice`]s that come of it. So it costs no call anything.

mod notice;
mod rule;
mod sample;
mod spread;
mod window;

use std::sync::Arc;

use serde::Serialize;
use tidegate_core::config::AlertConfig;
use tidegate_core::time::Time;

pub use notice::{Notice, Turn};
pub use rule::CALM_FOR;
pub use sample::{Counts, Sample};
pub use spread::Spread;
pub use window::{CALLS_MIN, WINDOW};

use notice::shown;
use rule::{Rule, State};
use window::Window;

/// All alerts that are configured, and how they stand.
#[derive(Debug, Default)]
pub struct Alerts {
    rules: Vec<Rule>,
    window: Window,
}

/// How one alert stands, as the admin listener tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: Arc<str>,
    /// The signal that it watches.
    pub when: &'static str,
    /// What the signal has to exceed.
    pub above: f64,
    /// … for so long.
    pub for_seconds: f64,
    /// How often it is repeated.
    pub every_seconds: f64,
    /// `quiet`, `pending` (above, but not for long enough) or `firing`.
    pub state: &'static str,
    /// Since when it is above, RFC 3339. `None` while quiet.
    pub since: Option<String>,
    /// The signal at the last look. `None`: too few calls to tell.
    pub value: Option<f64>,
    /// Whom it is about, those that most of it is about first, at most ten.
    pub about: Vec<String>,
}

impl Alerts {
    /// These alerts, all quiet.
    #[must_use]
    pub fn new(configured: &[AlertConfig]) -> Self {
        Self { rules: configured.iter().cloned().map(Rule::new).collect(), window: Window::default() }
    }

    /// Takes over another configuration. An alert of the same name on the same signal stands as it stood, and is judged as it says
    /// now from the next look on. What is to be told: those that were firing and are no longer configured.
    #[must_use]
    pub fn reconfigure(&mut self, now: Time, configured: &[AlertConfig]) -> Vec<Notice> {
        let mut before = std::mem::take(&mut self.rules);
        for config in configured {
            let same = before.iter().position(|rule| rule.is_still(config));
            let rule = same.map(|at| before.remove(at).with(config.clone()));
            self.rules.push(rule.unwrap_or_else(|| Rule::new(config.clone())));
        }
        let fired = before.iter_mut().filter(|rule| matches!(rule.state(), State::Firing { .. }));
        let window = &self.window;
        let (lost_before, lost) = window.audit_lost();
        fired
            .map(|rule| {
                let lost = rule.lost(lost_before, lost);
                Notice::new(rule, Turn::Removed, now, window.about(rule.config().when), lost)
            })
            .collect()
    }

    /// Whether there is nothing to judge.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is to be told, in the order of the configuration, now that the counters stand at `sample`.
    pub fn judge(&mut self, now: Time, sample: Sample) -> Vec<Notice> {
        self.window.push(now, sample);
        let window = &self.window;
        self.rules
            .iter_mut()
            .filter_map(|rule| {
                let value = window.value(rule.config().when);
                let (before, total) = window.audit_lost();
                let lost = rule.lost(before, total);
                let turn = rule.judge(now, value)?;
                let about = window.about(rule.config().when);
                Some(Notice::new(rule, turn, now, about, lost))
            })
            .collect()
    }

    /// How each of them stands, in the order of the configuration.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let standing = |rule: &Rule| {
            let (config, state) = (rule.config(), rule.state());
            Standing {
                name: config.name.clone(),
                when: config.when.name(),
                above: config.above,
                for_seconds: config.lasting.as_secs_f64(),
                every_seconds: config.every.as_secs_f64(),
                state: state.name(),
                since: state.since().map(shown),
                value: rule.value(),
                about: self.window.about(config.when),
            }
        };
        self.rules.iter().map(standing).collect()
    }

    /// The names of those that are firing.
    pub fn firing(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_firing = |rule: &&Rule| matches!(rule.state(), State::Firing { .. });
        self.rules.iter().filter(is_firing).map(|rule| &rule.config().name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_core::config::{AlertSignal, WebhookFormat};

    use super::*;

    fn alert(name: &str, when: AlertSignal, above: f64) -> AlertConfig {
        AlertConfig {
            name: name.into(),
            when,
            above,
            lasting: Duration::ZERO,
            every: Duration::from_secs(600),
            webhook: None,
            format: WebhookFormat::Generic,
        }
    }

    fn open(breakers: &[&str]) -> Sample {
        Sample { breakers_open: breakers.iter().map(|name| (*name).to_owned()).collect(), ..Sample::default() }
    }

    #[test]
    fn an_open_breaker_is_told_by_name_once_and_its_end_once() {
        let mut alerts = Alerts::new(&[alert("breaker open", AlertSignal::BreakerOpen, 0.0)]);
        let mut told = Vec::new();
        for second in 0..100 {
            let sample = if (10..20).contains(&second) { open(&["openai/gpt-4o"]) } else { open(&[]) };
            told.extend(alerts.judge(Time::from_secs(second), sample));
        }
        let told: Vec<(Turn, u64, u64, u32)> = told
            .iter()
            .map(|notice| (notice.turn, notice.at.as_micros(), notice.since.as_micros(), notice.number))
            .collect();
        assert_eq!(told, [(Turn::Fires, 10_000_000, 10_000_000, 1), (Turn::Over, 50_000_000, 10_000_000, 2)]);
    }

    #[test]
    fn each_signal_of_the_configuration_can_fire() {
        let bounds = &[0.001];
        let slow = Spread::new(bounds, vec![0, 1000]);
        let all = AlertSignal::ALL.map(|signal| alert(signal.name(), signal, 0.0));
        let mut alerts = Alerts::new(&all);
        assert_eq!(alerts.judge(Time::from_secs(0), Sample::default()), []);
        let bad = Sample {
            calls: 100,
            errors: 50,
            held: 1,
            refused: 1,
            retries: 10,
            first_byte: slow.clone(),
            queue_wait: slow.clone(),
            overhead: slow,
            audit_lost: 1,
            stores_down: 1,
            suspected: vec!["billing".to_owned()],
            ..open(&["openai/gpt-4o"])
        };
        let told = alerts.judge(Time::from_secs(1), bad);
        let names: Vec<&str> = told.iter().map(|notice| &*notice.alert).collect();
        assert_eq!(names, AlertSignal::ALL.map(AlertSignal::name));
        assert_eq!(alerts.firing().count(), 10);
    }

    #[test]
    fn the_end_of_losses_says_how_many_there_were() {
        let mut alerts = Alerts::new(&[alert("audit", AlertSignal::AuditFailed, 0.0)]);
        let mut told = Vec::new();
        for second in 0..200 {
            let lost = if second < 10 { 5 } else { 5 + (second - 10).min(70) * 100 };
            let sample = Sample { audit_lost: lost, audit_is_down: (9..90).contains(&second), ..Sample::default() };
            told.extend(alerts.judge(Time::from_secs(second), sample).iter().map(Notice::text));
        }
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0], "audit: the audit trail cannot be written; nothing is lost yet; alert above 0");
        assert_eq!(told[1], "audit: 100 audit records not written, for 2s now; alert above 0");
        assert!(
            told[3].starts_with("audit: over after ") && told[3].ends_with("; 7000 audit records lost"),
            "{told:?}"
        );
    }

    #[test]
    fn an_alert_whose_configuration_changes_stands_as_it_stood_and_is_judged_as_it_says_now() {
        let before = [alert("a", AlertSignal::BreakerOpen, 0.0), alert("b", AlertSignal::BreakerOpen, 0.0)];
        let mut alerts = Alerts::new(&before);
        assert_eq!(alerts.judge(Time::from_secs(1), open(&["openai/o3"])).len(), 2);
        let posted = AlertConfig { format: WebhookFormat::Slack, ..before[1].clone() };
        let after = [alert("a", AlertSignal::BreakerOpen, 5.0), posted];
        assert_eq!(alerts.reconfigure(Time::from_secs(2), &after), []);
        assert_eq!(alerts.firing().count(), 2);
        let standing = &alerts.standings()[1];
        assert_eq!((standing.since.as_deref(), standing.value), (Some("1970-01-01T00:00:01.000Z"), Some(1.0)));
        let told = (2..60).flat_map(|second| alerts.judge(Time::from_secs(second), open(&["openai/o3"])));
        let told: Vec<_> = told.map(|notice| (notice.alert, notice.turn, notice.since, notice.number)).collect();
        assert_eq!(told, [("a".into(), Turn::Over, Time::from_secs(1), 2)], "one breaker is not above 5");
    }

    #[test]
    fn an_alert_that_is_firing_and_no_longer_configured_is_told_to_be_over_once() {
        let all = ["gone", "other signal", "stays"].map(|name| alert(name, AlertSignal::BreakerOpen, 0.0));
        let quiet = alert("quiet", AlertSignal::Retries, 0.0);
        let mut alerts = Alerts::new(&[&all[..], &[quiet]].concat());
        assert_eq!(alerts.judge(Time::from_secs(1), open(&["openai/o3"])).len(), 3);
        let after = [alert("other signal", AlertSignal::Retries, 0.0), all[2].clone()];
        let told = alerts.reconfigure(Time::from_secs(9), &after);
        let told: Vec<_> = told.iter().map(|it| (&*it.alert, it.turn, it.since, it.number, &it.about[..])).collect();
        let (since, about) = (Time::from_secs(1), &["openai/o3".to_owned()][..]);
        assert_eq!(told, [("gone", Turn::Removed, since, 2, about), ("other signal", Turn::Removed, since, 2, about)]);
        assert_eq!(alerts.reconfigure(Time::from_secs(10), &after), []);
        assert_eq!(alerts.standings().iter().map(|it| it.state).collect::<Vec<_>>(), ["quiet", "firing"]);
    }
}
