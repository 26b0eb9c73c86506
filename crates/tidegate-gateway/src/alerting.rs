//! Decides when alerts are judged, and who hears of it: the log, the audit trail, a webhook. Looks once a second, so that no call pays.

mod destination;
mod page;
mod post;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tidegate_core::config::AlertConfig;
use tidegate_core::time::Time;
use tidegate_watch::alert::{Alerts, Notice, Sample, Turn};
use tidegate_watch::audit::{Kind, Record};

use crate::audit::Audit;
use crate::shared::Shared;

pub(crate) use destination::Destination;
pub(crate) use page::answer;
use post::Post;

/// How often the counters are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An alert, and where it is posted; `None`: nowhere.
pub(crate) type Configured = (AlertConfig, Option<Destination>);

/// The alerts of one gateway; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alerting(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    alerts: Alerts,
    /// One for each alert, in the order of the configuration.
    posts: Vec<Option<Post>>,
}

impl Alerting {
    /// Those of `configured`, all quiet.
    pub(crate) fn new(configured: &[Configured]) -> Self {
        let alerting = Self::default();
        // None has fired before there were any.
        drop(alerting.take(Time::ZERO, configured));
        alerting
    }

    /// Takes over another configuration: what is the same goes on as it was, also what waits to be posted; what was firing and is gone
    /// is told to be over.
    pub(crate) fn reconfigure(&self, now: Time, configured: &[Configured], audit: &Audit) {
        for notice in self.take(now, configured) {
            tell(&notice);
            audit.note(record(&notice));
        }
    }

    fn take(&self, now: Time, configured: &[Configured]) -> Vec<Notice> {
        let mut state = self.lock();
        let alerts: Vec<AlertConfig> = configured.iter().map(|(alert, _)| alert.clone()).collect();
        let notices = state.alerts.reconfigure(now, &alerts);
        // Before the way there is given up: that posts what waits in it.
        notices.iter().for_each(|notice| state.post(notice));
        let mut before = std::mem::take(&mut state.posts);
        for (alert, destination) in configured {
            let same = |post: &Option<Post>| post.as_ref().is_some_and(|post| post.is_still(alert, destination));
            let same = before.iter().position(same).and_then(|at| before[at].take());
            let made = || destination.clone().map(|destination| Post::start(alert.name.clone(), destination));
            state.posts.push(same.or_else(made));
        }
        notices
    }

    /// Judges them again and again, until the gateway is gone.
    pub(crate) fn keep_judging(shared: &Arc<Shared>) {
        tokio::spawn(judge(Arc::downgrade(shared)));
    }

    /// Says what the end of the process leaves undelivered.
    pub(crate) fn end(&self) {
        for post in self.lock().posts.iter().flatten() {
            let waiting = post.told().waiting;
            if waiting > 0 {
                tracing::error!(
                    alert = &*post.alert,
                    waiting,
                    "an alert is not delivered: the webhook did not take it in time"
                );
            }
        }
    }

    /// Its series.
    pub(crate) fn series(&self) -> Box<dyn Collector> {
        Box::new(Series(self.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn post(&self, notice: &Notice) {
        let post = self.posts.iter().flatten().find(|post| post.alert == notice.alert);
        post.into_iter().for_each(|post| post.send(notice.clone()));
    }
}

async fn judge(shared: Weak<Shared>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.driver.now();
        for suspicion in shared.anomalies.judge(now) {
            shared.driver.tell(suspicion.event());
        }
        let mut state = shared.alerting.lock();
        if state.alerts.is_empty() {
            continue;
        }
        for notice in state.alerts.judge(now, sample(&shared)) {
            tell(&notice);
            if notice.turn != Turn::Lasts {
                shared.audit.note(record(&notice));
            }
            state.post(&notice);
        }
    }
}

fn sample(shared: &Shared) -> Sample {
    let (audit_lost, audit_is_down) = shared.audit.losses();
    let open = shared.driver.with(|gate, _| gate.open_breakers());
    Sample {
        audit_lost,
        audit_is_down,
        suspected: shared.anomalies.suspected(),
        breakers_open: open.iter().map(|name| name.to_string()).collect(),
        ..shared.metrics.sample()
    }
}

fn tell(notice: &Notice) {
    let (alert, when, value, about) = (&*notice.alert, notice.when.name(), notice.value, notice.about.join(" "));
    if notice.turn.is_end() {
        tracing::info!(alert, when, value, about, "alert over: {}", notice.text());
    } else {
        tracing::warn!(alert, when, value, about, "alert: {}", notice.text());
    }
}

fn record(notice: &Notice) -> Record {
    // As of keys: what there is now stands after, what there is no longer stands before.
    let name = Some(notice.alert.clone());
    let (what, before, after) = if notice.turn.is_end() { ("over", name, None) } else { ("fired", None, name) };
    let record = Record { why: Some(notice.text().into()), before, after, ..Record::new(Kind::Alert, what) };
    let numbers = notice.numbers().into_iter().filter_map(|(name, number)| Some((name, number?)));
    numbers
        .fold(record, |record, (name, number)| record.with(name, number))
        .with("lasted_us", u64::try_from(notice.lasted().as_micros()).unwrap_or(u64::MAX))
}

/// How alerts and their deliveries stand, when asked. As many series as alerts are configured.
#[derive(Debug)]
struct Series(Alerting);

impl Collector for Series {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let state = self.0.lock();
        let (name, help) = ("alert_firing", "Whether an alert is firing");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for standing in state.alerts.standings() {
            let is_firing = f64::from(u8::from(standing.state == "firing"));
            ConstGauge::new(is_firing).encode(family.encode_family(&[("alert", &*standing.name)])?)?;
        }
        let (name, help) = ("alert_delivery_failures", "How often an alert could not be posted to its webhook");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for post in state.posts.iter().flatten() {
            let failures = ConstCounter::new(post.failures());
            failures.encode(family.encode_family(&[("alert", &*post.alert)])?)?;
        }
        Ok(())
    }
}
