//! One alert: when it fires, when it is repeated, and when it is over.

use std::time::Duration;

use tidegate_core::config::{AlertConfig, AlertSignal};
use tidegate_core::time::Time;

use super::notice::Turn;

/// An alert is over once its signal has not been above for so long: one that goes up and down around its bound is one alert.
pub const CALM_FOR: Duration = Duration::from_secs(30);

/// Of losses it is told again, before its time, once they are so many times as many as were told last.
const GROWN: f64 = 10.0;

/// How an alert stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum State {
    #[default]
    Quiet,
    /// Above, but not for long enough.
    Pending { since: Time },
    /// Told.
    Firing {
        since: Time,
        told_at: Time,
        /// Since when it has not been above.
        calm_since: Option<Time>,
        /// How often it was told so far.
        told: u32,
        /// The signal when it was told last.
        told_value: f64,
    },
}

impl State {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Pending { .. } => "pending",
            Self::Firing { .. } => "firing",
        }
    }

    /// Since when the signal is above.
    pub(super) const fn since(self) -> Option<Time> {
        match self {
            Self::Quiet => None,
            Self::Pending { since } | Self::Firing { since, .. } => Some(since),
        }
    }
}

/// One alert and how it stands.
#[derive(Debug)]
pub(super) struct Rule {
    config: AlertConfig,
    state: State,
    value: Option<f64>,
    /// How it stood before the last turn: a notice of its end tells since when it lasted.
    lasted: State,
    /// How many audit records had been lost a minute before the last look at which it was quiet.
    lost_before: u64,
}

impl Rule {
    pub(super) const fn new(config: AlertConfig) -> Self {
        Self { config, state: State::Quiet, value: None, lasted: State::Quiet, lost_before: 0 }
    }

    pub(super) const fn config(&self) -> &AlertConfig {
        &self.config
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// The state that the last turn is about.
    pub(super) const fn told_state(&self) -> State {
        if matches!(self.state, State::Firing { .. }) { self.state } else { self.lasted }
    }

    /// The signal at the last look.
    pub(super) const fn value(&self) -> Option<f64> {
        self.value
    }

    /// How many audit records are lost since it began, where `total` are and there were `before` at the beginning of the window.
    pub(super) fn lost(&mut self, before: u64, total: u64) -> u64 {
        if self.state == State::Quiet {
            self.lost_before = before;
        }
        total.saturating_sub(self.lost_before)
    }

    /// Whether `config` is the same alert: what it takes to fire, how often it is told and where may be others.
    pub(super) fn is_still(&self, config: &AlertConfig) -> bool {
        (&self.config.name, self.config.when) == (&config.name, config.when)
    }

    /// The same as it stands, configured so.
    pub(super) fn with(self, config: AlertConfig) -> Self {
        Self { config, ..self }
    }

    /// What there is to tell, if anything. A signal of which too little is known is not above.
    pub(super) fn judge(&mut self, now: Time, value: Option<f64>) -> Option<Turn> {
        self.value = value;
        let is_above = value.is_some_and(|value| value > self.config.above);
        match (&mut self.state, is_above) {
            (State::Quiet, false) => None,
            (State::Pending { .. }, false) => {
                self.state = State::Quiet;
                None
            }
            (State::Quiet, true) => {
                self.state = State::Pending { since: now };
                self.fire_if_due(now)
            }
            (State::Pending { .. }, true) => self.fire_if_due(now),
            (State::Firing { told_at, calm_since, told, told_value, .. }, true) => {
                *calm_since = None;
                let value = value.unwrap_or_default();
                let has_grown = self.config.when == AlertSignal::AuditFailed && value >= *told_value * GROWN;
                let is_due = has_grown || now.since(*told_at) >= self.config.every;
                is_due.then(|| {
                    (*told_at, *told_value) = (now, value);
                    *told += 1;
                    Turn::Lasts
                })
            }
            (State::Firing { calm_since, .. }, false) => {
                let since = *calm_since.get_or_insert(now);
                let is_over = now.since(since) >= CALM_FOR;
                is_over.then(|| {
                    self.lasted = std::mem::take(&mut self.state);
                    Turn::Over
                })
            }
        }
    }

    fn fire_if_due(&mut self, now: Time) -> Option<Turn> {
        let since = self.state.since().unwrap_or(now);
        (now.since(since) >= self.config.lasting).then(|| {
            let told_value = self.value.unwrap_or_default();
            self.state = State::Firing { since, told_at: now, calm_since: None, told: 1, told_value };
            Turn::Fires
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::{AlertSignal, WebhookFormat};

    use super::*;

    fn rule(lasting: u64, every: u64) -> Rule {
        Rule::new(AlertConfig {
            name: "slow".into(),
            when: AlertSignal::QueueWait,
            above: 1.0,
            lasting: Duration::from_secs(lasting),
            every: Duration::from_secs(every),
            webhook: None,
            format: WebhookFormat::Generic,
        })
    }

    /// What is told, and in which second, where each second has a value.
    fn told(rule: &mut Rule, values: impl IntoIterator<Item = f64>) -> Vec<(u64, Turn)> {
        let told = |(second, value)| Some((second, rule.judge(Time::from_secs(second), Some(value))?));
        (0..).zip(values).filter_map(told).collect()
    }

    fn times(value: f64, seconds: usize) -> impl Iterator<Item = f64> {
        std::iter::repeat_n(value, seconds)
    }

    #[test]
    fn it_fires_once_the_signal_has_been_above_for_so_long_without_a_break() {
        let values = times(2.0, 4).chain([1.0]).chain(times(2.0, 10));
        assert_eq!(told(&mut rule(5, 600), values), [(10, Turn::Fires)], "exactly at the bound is not above it");
        assert_eq!(told(&mut rule(0, 600), [0.0, 2.0, 2.0]), [(1, Turn::Fires)]);
    }

    #[test]
    fn it_is_repeated_while_it_lasts() {
        let told = told(&mut rule(0, 60), times(2.0, 150));
        assert_eq!(told, [(0, Turn::Fires), (60, Turn::Lasts), (120, Turn::Lasts)]);
    }

    #[test]
    fn losses_that_have_grown_tenfold_are_told_of_at_once() {
        let mut rule = rule(0, 600);
        rule.config.when = AlertSignal::AuditFailed;
        let told = told(&mut rule, [2.0, 19.0, 20.0, 20.0, 199.0, 5000.0]);
        assert_eq!(told, [(0, Turn::Fires), (2, Turn::Lasts), (5, Turn::Lasts)]);
    }

    #[test]
    fn it_is_over_once_it_has_been_calm_and_can_fire_again() {
        let values = times(2.0, 10).chain(times(0.5, 40)).chain(times(2.0, 5));
        assert_eq!(told(&mut rule(0, 600), values), [(0, Turn::Fires), (40, Turn::Over), (50, Turn::Fires)]);
    }

    #[test]
    fn one_that_goes_up_and_down_is_one_alert() {
        let values = (0..200).map(|second| if second % 20 == 0 { 2.0 } else { 0.5 });
        assert_eq!(told(&mut rule(0, 600), values), [(0, Turn::Fires)]);
    }

    #[test]
    fn too_few_calls_to_tell_fire_nothing_and_end_what_fired() {
        let mut rule = rule(0, 600);
        assert_eq!(rule.judge(Time::from_secs(0), None), None);
        assert_eq!(rule.judge(Time::from_secs(1), Some(2.0)), Some(Turn::Fires));
        assert_eq!(rule.judge(Time::from_secs(2), None), None);
        assert_eq!(rule.judge(Time::from_secs(32), None), Some(Turn::Over));
        assert_eq!(rule.told_state().since(), Some(Time::from_secs(1)));
    }

    /// Whatever the signal does: it fires after so long above, is told no more often than every so often, and ends after a calm.
    #[test]
    fn turns_follow_one_another_as_they_must() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (lasting, every) = (random.u64(0..20), random.u64(1..100));
            let mut rule = rule(lasting, every);
            let mut is_above = false;
            let (mut changed_at, mut above_at, mut told_at, mut fires) = (0, 0, 0, false);
            for second in 0..1000 {
                if random.u8(..) < 20 {
                    (is_above, changed_at) = (!is_above, second);
                }
                let turn = rule.judge(Time::from_secs(second), is_above.then_some(2.0));
                if is_above {
                    above_at = second;
                }
                match turn {
                    Some(Turn::Fires) => assert!(!fires && is_above && second - changed_at == lasting),
                    Some(Turn::Lasts) => assert!(fires && is_above && second - told_at >= every),
                    Some(Turn::Over) => assert!(fires && second - above_at > CALM_FOR.as_secs()),
                    Some(Turn::Removed) => panic!("it is configured"),
                    None => assert!(fires || !is_above || second - changed_at < lasting),
                }
                if let Some(turn) = turn {
                    (told_at, fires) = (second, turn != Turn::Over);
                }
            }
        }
    }

    #[test]
    fn a_clock_that_jumps_back_fires_nothing_early_and_stops_nothing() {
        let mut rule = rule(5, 60);
        assert_eq!(rule.judge(Time::from_secs(100), Some(2.0)), None);
        assert_eq!(rule.judge(Time::from_secs(50), Some(2.0)), None);
        assert_eq!(rule.judge(Time::from_secs(105), Some(2.0)), Some(Turn::Fires));
    }
}
