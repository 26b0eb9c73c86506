//! Decides who is told of the core's events: the audit trail, the log, the series, and who reads along. None of them can hold up a call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::{Driver, WeakDriver};
use tidegate_core::event::Event;
use tidegate_watch::anomaly::Anomalies;
use tidegate_watch::audit::{Feed, Trail};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use crate::event_log::EventLog;
use crate::flood::WINDOW;
use crate::metrics::{Held, Metrics, Transitions};
use crate::told::Told;

/// How often events are taken. Those that come meanwhile wake nobody: a call pays for its event, not for a switch of tasks.
const TAKE_EVERY: Duration = Duration::from_millis(10);
/// When nothing comes, what is left to be said is said after so long.
const SAY_REST_AFTER: Duration = Duration::from_secs(1);

/// The task that takes events; dropping this lets it take what is there, and ends it.
#[derive(Debug, Default)]
pub(crate) struct Watching(Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>);

impl Watching {
    /// Takes the driver's events from now on.
    pub(crate) fn start(
        driver: &Driver,
        feed: Feed,
        trail: Option<Trail>,
        metrics: &Metrics,
        anomalies: Anomalies,
        told: Told,
    ) -> Self {
        let (end, ended) = oneshot::channel();
        let events = if feed.takes_calls() { driver.subscribe() } else { driver.subscribe_notable() };
        let (transitions, held) = (metrics.transitions.clone(), metrics.held.clone());
        let driver = driver.downgrade();
        let watcher =
            Watcher { driver, events, trail, feed, transitions, held, anomalies, told, log: EventLog::default() };
        Self(Mutex::new(Some((end, tokio::spawn(watcher.run(ended))))))
    }

    /// Takes what has happened up to now, and nothing after it.
    pub(crate) async fn end(&self) {
        let ending = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((end, task)) = ending {
            drop(end);
            // A task that panicked has ended too.
            let _ = task.await;
        }
    }
}

struct Watcher {
    driver: WeakDriver,
    events: broadcast::Receiver<Arc<Event>>,
    trail: Option<Trail>,
    feed: Feed,
    transitions: Transitions,
    held: Held,
    anomalies: Anomalies,
    told: Told,
    log: EventLog,
}

impl Watcher {
    /// Until there is nobody left whose events could come, or `ended`.
    async fn run(mut self, ended: oneshot::Receiver<()>) {
        self.watch(ended).await;
        self.take_rest();
        // No window follows the last one.
        self.log.tell_rest(Instant::now() + WINDOW);
    }

    async fn watch(&mut self, mut ended: oneshot::Receiver<()>) {
        loop {
            let has_rest = self.log.has_rest();
            tokio::select! {
                came = self.events.recv() => match came {
                    Ok(event) => self.take(&event),
                    Err(RecvError::Lagged(missed)) => self.missed(missed),
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(SAY_REST_AFTER), if has_rest => self.log.tell_rest(Instant::now()),
                _ = &mut ended => return,
            }
            self.take_rest();
            tokio::select! {
                () = tokio::time::sleep(TAKE_EVERY) => {}
                _ = &mut ended => return,
            }
        }
    }

    fn take(&mut self, event: &Event) {
        if let Event::StateChanged { breaker, from, to, .. } = event {
            self.transitions.count(breaker, from.name(), to.name());
        }
        self.held.take(event);
        if let Some(driver) = self.driver.upgrade() {
            self.anomalies.take(event, driver.now());
        }
        let Some(record) = self.feed.record(event) else {
            self.told.unrecorded(event, &self.feed);
            return;
        };
        self.log.tell(&record, Instant::now());
        self.told.recorded(event, &record);
        if let Some(trail) = &self.trail {
            trail.append(record);
        }
    }

    fn missed(&mut self, events: u64) {
        self.log.missed(events, Instant::now());
        self.told.missed(events);
        if let Some(trail) = &self.trail {
            trail.lost(events);
        }
    }

    /// What has come meanwhile.
    fn take_rest(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take(&event),
                Err(TryRecvError::Lagged(missed)) => self.missed(missed),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::Policy;
    use tidegate_watch::audit::TrailOptions;

    use super::*;

    #[tokio::test]
    async fn events_that_could_not_be_taken_in_time_are_counted_in_the_trail() {
        let dir = tempfile::tempdir().unwrap();
        let trail = Trail::start(TrailOptions::new(dir.path().join("audit.db"))).unwrap();
        let (sender, events) = broadcast::channel(4);
        for _ in 0..10 {
            sender.send(Arc::new(Event::BoostEnded { limit: "team".into() })).unwrap();
        }
        let watcher = Watcher {
            driver: Driver::new(Policy::default(), 1).downgrade(),
            events,
            trail: Some(trail.clone()),
            feed: Feed::new(false, None),
            transitions: Transitions::default(),
            held: Held::default(),
            anomalies: Anomalies::default(),
            told: Told::default(),
            log: EventLog::default(),
        };
        let (end, ended) = oneshot::channel();
        drop(end);
        watcher.run(ended).await;
        trail.flush().unwrap();
        assert_eq!((trail.status().lost, trail.status().written), (6, 5), "and a record that tells of them");
    }
}
