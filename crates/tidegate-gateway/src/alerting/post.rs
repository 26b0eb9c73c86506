//! Posts the notices of one alert to its webhook: in order, again and again for some minutes, and never in anybody's way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tidegate_core::config::AlertConfig;
use tidegate_watch::alert::{Notice, Turn};
use tokio::sync::mpsc;

use super::destination::Destination;

/// So many notices wait for a webhook that does not answer.
const WAITING_MAX: usize = 16;
/// So many times a notice is posted; the pauses in between are 137 to 183 s.
const ATTEMPTS_MAX: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// So many of the latest deliveries are told of.
const TOLD_MAX: usize = 5;

/// The way to one alert's webhook. Dropped, it posts what waits, and ends.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) alert: Arc<str>,
    destination: Destination,
    queue: mpsc::Sender<Notice>,
    ledger: Ledger,
}

/// What became of the notices; clones share it.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Told>>);

/// How deliveries stand, as the admin listener tells it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Told {
    /// Notices that wait, the one under way included.
    pub(super) waiting: usize,
    /// Posts that failed, and notices that found no room to wait.
    failures: u64,
    /// The latest, the newest first.
    last: VecDeque<Delivery>,
}

#[derive(Clone, Debug, Serialize)]
struct Delivery {
    /// When it was last tried, RFC 3339.
    at: String,
    /// `fires`, `lasts` or `over`.
    turn: &'static str,
    attempts: u32,
    /// `delivered`, `failed` (for good) or `retrying`.
    state: &'static str,
    /// Why it was not taken, the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Post {
    pub(super) fn start(alert: Arc<str>, destination: Destination) -> Self {
        let (queue, notices) = mpsc::channel(WAITING_MAX);
        let ledger = Ledger::default();
        tokio::spawn(deliver(alert.clone(), destination.clone(), notices, ledger.clone()));
        Self { alert, destination, queue, ledger }
    }

    /// Whether `alert` is still posted to the same place.
    pub(super) fn is_still(&self, alert: &AlertConfig, destination: &Option<Destination>) -> bool {
        self.alert == alert.name && destination.as_ref().is_some_and(|other| self.destination.is_same(other))
    }

    /// Hands a notice over.
    pub(super) fn send(&self, notice: Notice) {
        let mut told = self.ledger.lock();
        // That it lasts is no news to one who has not heard yet that it began.
        if notice.turn == Turn::Lasts && told.waiting > 0 {
            return;
        }
        match self.queue.try_send(notice) {
            Ok(()) => told.waiting += 1,
            Err(_) => {
                told.failures += 1;
                tracing::error!(alert = &*self.alert, "too many notices wait for the webhook: one is not posted");
            }
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.ledger.lock().failures
    }

    pub(super) fn told(&self) -> Told {
        self.ledger.lock().clone()
    }

    pub(super) const fn destination(&self) -> &Destination {
        &self.destination
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, notice: &Notice, attempts: u32, state: &'static str, error: Option<String>) {
        let mut told = self.lock();
        if attempts > 1 {
            told.last.pop_front();
        }
        told.last.truncate(TOLD_MAX - 1);
        told.failures += u64::from(error.is_some());
        told.waiting -= usize::from(state != "retrying");
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        told.last.push_front(Delivery { at, turn: turn(notice), attempts, state, error });
    }
}

async fn deliver(alert: Arc<str>, destination: Destination, mut notices: mpsc::Receiver<Notice>, ledger: Ledger) {
    let instance = instance();
    while let Some(notice) = notices.recv().await {
        let body = match notice.body(destination.format, &instance) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                ledger.note(&notice, 1, "failed", Some(error.to_string()));
                continue;
            }
        };
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS_MAX {
            let Err(not_taken) = destination.post(body.clone()).await else {
                ledger.note(&notice, attempt, "delivered", None);
                break;
            };
            let (alert, webhook, why) = (&*alert, destination.shown(), &*not_taken.why);
            if not_taken.is_final || attempt == ATTEMPTS_MAX {
                ledger.note(&notice, attempt, "failed", Some(why.to_owned()));
                tracing::error!(alert, webhook, attempt, "an alert was not delivered: {why}");
                break;
            }
            ledger.note(&notice, attempt, "retrying", Some(why.to_owned()));
            if attempt == 1 {
                tracing::warn!(alert, webhook, "an alert could not be delivered: {why}; trying on");
            }
            // Spread, so that several gateways do not come back at once.
            let spread = pause.mul_f64(0.75 + fastrand::f64() / 4.0);
            tokio::time::sleep(not_taken.pause.unwrap_or_default().max(spread)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

const fn turn(notice: &Notice) -> &'static str {
    match notice.turn {
        Turn::Fires => "fires",
        Turn::Lasts => "lasts",
        Turn::Over | Turn::Removed => "over",
    }
}

/// This machine's name; empty where it has none to tell.
fn instance() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_core::config::{AlertSignal, SecretUrl, Webhook, WebhookFormat};
    use tidegate_core::time::Time;

    use super::*;

    fn notice(turn: Turn) -> Notice {
        Notice {
            alert: "a".into(),
            turn,
            when: AlertSignal::BreakerOpen,
            above: 0.0,
            value: Some(1.0),
            about: Vec::new(),
            audit_lost: 0,
            at: Time::ZERO,
            since: Time::ZERO,
            number: 1,
        }
    }

    #[tokio::test]
    async fn what_waits_for_a_webhook_that_never_answers_is_bounded_and_reminders_do_not_wait() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let alert = AlertConfig {
            name: "a".into(),
            when: AlertSignal::BreakerOpen,
            above: 0.0,
            lasting: Duration::ZERO,
            every: Duration::from_secs(600),
            webhook: Some(Webhook::Url(SecretUrl::new(format!("http://{}/", silent.local_addr().unwrap())))),
            format: WebhookFormat::Generic,
        };
        let post = Post::start("a".into(), Destination::of(&alert).unwrap().unwrap());
        for _ in 0..WAITING_MAX {
            post.send(notice(Turn::Fires));
            post.send(notice(Turn::Lasts));
        }
        assert_eq!((post.told().waiting, post.failures()), (WAITING_MAX, 0));
        post.send(notice(Turn::Over));
        assert_eq!((post.told().waiting, post.failures()), (WAITING_MAX, 1));
    }
}
