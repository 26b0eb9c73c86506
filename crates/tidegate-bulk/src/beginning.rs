//! Decides whether a run gets anywhere at all: one that reaches nobody, or is turned away whatever it sends, has a wrong
//! address or a wrong key, and more of the same does not help. Once anything went better than that, nothing is decided here
//! any more: an outage is waited out, and a call that fails fails by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::fault::Fault;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::output::Came;
use crate::writer::Row;

/// Calls that are turned away before a run ends for it. More may be in flight by then.
const TURNED_AWAY_MAX: usize = 5;
/// What an answer's error ends with where only its model is wrong.
const NO_MODEL: &str = "model_not_found";

/// What becomes of a result.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// These are written.
    Write(Vec<Row>),
    /// It is kept until it is clear what it means.
    Keep,
    /// The run is to end, for this reason; what was kept is no result of its line, which is sent again when the cause is mended.
    End(String),
}

/// What is known of the upstream before anything went well.
#[derive(Debug)]
pub(crate) struct Beginning {
    /// Whoever is not reached for so long is not there.
    give_up_after: Duration,
    /// There are several models: that one of them is not there says nothing of the others.
    has_models: bool,
    /// `None`: that anybody answers is known.
    unreached: Mutex<Option<Unreached>>,
    /// Turned away, each of them. `None`: not everything is.
    turned_away: Mutex<Option<Vec<Row>>>,
    /// Some was turned away and nothing went better yet: only so many at once find out.
    is_doubtful: watch::Sender<bool>,
    tries: Semaphore,
}

#[derive(Debug, Default)]
struct Unreached {
    since: Option<Instant>,
}

impl Beginning {
    /// `is_known`: an earlier run has had good answers. `models`: how many there are.
    pub(crate) fn new(is_known: bool, models: usize, give_up_after: Duration) -> Self {
        Self {
            give_up_after,
            has_models: models > 1,
            unreached: Mutex::new((!is_known).then(Unreached::default)),
            turned_away: Mutex::new((!is_known).then(Vec::new)),
            is_doubtful: watch::channel(false).0,
            tries: Semaphore::new(TURNED_AWAY_MAX),
        }
    }

    /// Waits until a call may be sent: at once, unless it is doubtful whether any will be taken. What is returned is kept until
    /// the attempt has ended.
    pub(crate) async fn may_send(&self) -> Option<SemaphorePermit<'_>> {
        let mut doubts = self.is_doubtful.subscribe();
        if !*doubts.borrow() {
            return None;
        }
        tokio::select! {
            // Neither is ever closed: both are here.
            one_try = self.tries.acquire() => one_try.ok(),
            _ = doubts.wait_for(|is_doubtful| !is_doubtful) => None,
        }
    }

    /// What came of one attempt. Returns why the run is to end, if it is.
    pub(crate) fn attempt(&self, came: &Came, fault: Option<&Fault>) -> Option<String> {
        if self.is_turned_away(came) {
            // Held until it is told: nobody may say in between that there is no doubt any more.
            let turned_away = locked(&self.turned_away);
            self.is_doubtful.send_replace(turned_away.is_some());
        }
        let mut unreached = locked(&self.unreached);
        if matches!(came, Came::Answer { .. }) {
            *unreached = None;
        }
        let fault = fault.filter(|fault| fault.kind.never_arrived())?;
        let since = &mut unreached.as_mut()?.since;
        let patience = self.give_up_after.as_secs();
        let Some(since) = since else {
            tracing::warn!("{}; giving up unless somebody answers within {patience} s", fault.summary);
            *since = Some(Instant::now());
            return None;
        };
        (since.elapsed() >= self.give_up_after).then(|| fault.summary.to_string())
    }

    /// What becomes of the result of a call.
    pub(crate) fn result(&self, came: &Came, row: Row) -> Verdict {
        let mut turned_away = locked(&self.turned_away);
        let Some(kept) = turned_away.as_mut() else { return Verdict::Write(vec![row]) };
        let why = row.failure.clone().unwrap_or_default();
        if !self.is_turned_away(came) {
            if why.ends_with(NO_MODEL) {
                return Verdict::Write(vec![row]);
            }
            let mut rows = turned_away.take().unwrap_or_default();
            rows.push(row);
            self.is_doubtful.send_replace(false);
            return Verdict::Write(rows);
        }
        kept.push(row);
        if kept.len() < TURNED_AWAY_MAX {
            return Verdict::Keep;
        }
        let cause = match came {
            Came::Answer { status: 401, .. } => "the key is wrong or missing",
            Came::Answer { status: 403, .. } => "the key may not do this",
            _ if why.ends_with(NO_MODEL) => "there is no such model, or the key may not use it",
            _ => "the base URL is wrong; as a rule it ends in /v1",
        };
        Verdict::End(format!("all calls are turned away with {why}: {cause}"))
    }

    /// By what would turn away any other call too.
    fn is_turned_away(&self, came: &Came) -> bool {
        let is_status = matches!(came, Came::Answer { status: 401 | 403 | 404, .. });
        is_status && !(self.has_models && came.failure().is_some_and(|why| why.ends_with(NO_MODEL)))
    }

    /// What was kept, and is a result after all, since nothing more comes.
    pub(crate) fn rest(&self) -> Vec<Row> {
        locked(&self.turned_away).take().unwrap_or_default()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tidegate_core::fault::FaultKind;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn came(status: u16, code: &str) -> Came {
        let body = format!("{{\"error\":{{\"code\":\"{code}\"}}}}");
        Came::Answer { status, request_id: String::new(), body }
    }

    fn result(beginning: &Beginning, number: u64, status: u16, code: &str) -> Verdict {
        let came = came(status, code);
        beginning.result(&came, Row::new(number, "name", &came))
    }

    #[test]
    fn whoever_is_turned_away_whatever_it_sends_ends_without_a_result() {
        let beginning = Beginning::new(false, 1, PATIENCE);
        for number in 1..5 {
            assert!(matches!(result(&beginning, number, 401, "invalid_api_key"), Verdict::Keep));
        }
        let Verdict::End(why) = result(&beginning, 5, 401, "invalid_api_key") else { panic!("it goes on") };
        assert_eq!(why, "all calls are turned away with 401 invalid_api_key: the key is wrong or missing");
    }

    #[test]
    fn once_anything_went_better_what_was_turned_away_is_a_failure_like_any_other() {
        let beginning = Beginning::new(false, 1, PATIENCE);
        assert!(matches!(result(&beginning, 1, 404, "x"), Verdict::Keep));
        let Verdict::Write(rows) = result(&beginning, 2, 200, "") else { panic!("kept") };
        assert_eq!(rows.iter().map(|row| row.failure.as_deref()).collect::<Vec<_>>(), [Some("404 x"), None]);
        for number in 3..20 {
            assert!(matches!(result(&beginning, number, 401, "x"), Verdict::Write(_)));
        }
        assert!(matches!(result(&Beginning::new(true, 1, PATIENCE), 1, 401, "x"), Verdict::Write(_)));
    }

    #[tokio::test]
    async fn while_it_is_doubtful_only_a_few_are_sent_at_once() {
        let beginning = Beginning::new(false, 1, PATIENCE);
        assert!(beginning.may_send().await.is_none());
        beginning.attempt(&came(401, "x"), None);
        let mut tries = Vec::new();
        for _ in 0..TURNED_AWAY_MAX {
            tries.push(beginning.may_send().await.unwrap());
        }
        let waits = tokio::time::timeout(Duration::ZERO, beginning.may_send());
        assert!(waits.await.is_err());
        // Whatever comes of one, the next may be sent: it may be tried again itself.
        tries.pop();
        assert!(beginning.may_send().await.is_some());
        result(&beginning, 1, 200, "");
        assert!(beginning.may_send().await.is_none());
    }

    #[test]
    fn that_one_of_several_models_is_not_there_says_nothing_of_the_others() {
        for (models, ends) in [(1, true), (2, false)] {
            let beginning = Beginning::new(false, models, PATIENCE);
            let ended =
                (0..20).any(|number| matches!(result(&beginning, number, 404, "model_not_found"), Verdict::End(_)));
            assert_eq!(ended, ends);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_there_is_given_a_while_and_an_outage_any_time() {
        let fault = Fault::new(FaultKind::Connect, "no connection");
        let nothing = Came::Nothing { code: "connection_error", message: String::new() };
        let beginning = Beginning::new(false, 1, PATIENCE);
        assert_eq!(beginning.attempt(&nothing, Some(&fault)), None);
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(beginning.attempt(&nothing, Some(&fault)), None);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(beginning.attempt(&nothing, Some(&fault)).as_deref(), Some("no connection"));
        assert_eq!(beginning.attempt(&came(503, "x"), Some(&Fault::of_status(503))), None);
        assert_eq!(beginning.attempt(&nothing, Some(&fault)), None);
        assert_eq!(Beginning::new(true, 1, Duration::ZERO).attempt(&nothing, Some(&fault)), None);
    }
}
