//! Decides which of the core's events are worth a record, and what the record says.
//!
//! A call that is let through at once is none, unless each is to be kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_core::breaker::BreakerState;
use tidegate_core::event::{Event, Whose};
use tidegate_core::fault::FaultKind;
use tidegate_core::refusal::GiveUpReason;

use super::pseudonyms::Pseudonyms;
use super::record::{Kind, Record};

/// A shorter wait is none that anybody asks about.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// At least so many calls that failed are remembered; of an older one that is tried again the record does not say whose it is.
const REMEMBERED: usize = 8192;
/// How often it is told that retries have used up their share: it may be so for each of a thousand calls.
const BUDGET_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Makes records of events.
#[derive(Debug)]
pub struct Feed {
    /// Each admitted call is a record.
    calls: bool,
    /// What stands for users; `None`: their names.
    pseudonyms: Option<Pseudonyms>,
    /// Calls whose attempts failed: the newest, and those before them.
    failed: [HashMap<Arc<str>, Failed>; 2],
    budget_told_at: Option<Instant>,
    budget_untold: u64,
}

#[derive(Debug)]
struct Failed {
    whose: Whose,
    fault: FaultKind,
}

impl Feed {
    /// One that keeps `calls` or not, and users by name or by pseudonym.
    #[must_use]
    pub fn new(calls: bool, pseudonyms: Option<Pseudonyms>) -> Self {
        Self { calls, pseudonyms, failed: Default::default(), budget_told_at: None, budget_untold: 0 }
    }

    /// Whether it makes records of each admitted call too; else notable events are all that it needs.
    #[must_use]
    pub const fn takes_calls(&self) -> bool {
        self.calls
    }

    /// The record of an event, if it is worth one.
    pub fn record(&mut self, event: &Event) -> Option<Record> {
        match event {
            Event::Granted { call, whose, attempt, queued_for, limit } => {
                let is_new = *attempt == 1;
                // A retry waits for its back-off too, which has a record of its own.
                let has_waited = *queued_for >= WORTH_TELLING && (is_new || limit.is_some());
                let record = match (has_waited, self.calls && is_new) {
                    (true, _) => Record::new(Kind::Throttle, "waited"),
                    (false, true) => Record::new(Kind::Call, "granted"),
                    (false, false) => return None,
                };
                let record = Record { limit: limit.clone(), ..self.about(record, call, Some(whose)) };
                Some(record.with("attempt", u64::from(*attempt)).with("waited_us", micros(*queued_for)))
            }
            Event::Refused { call, whose, reason, limit, waited, retry_after } => {
                self.forget(call);
                let record = Record { why: Some((*reason).into()), ..Record::new(Kind::Throttle, "refused") };
                let record = self.about(record, call, Some(whose)).with("waited_us", micros(*waited));
                let record = match retry_after {
                    Some(wait) => record.with("retry_after_us", micros(*wait)),
                    None => record,
                };
                let Some(report) = limit else { return Some(record) };
                let record = Record { limit: Some(report.path().into()), ..record }
                    .with("allowed", report.allowed)
                    .with("used", report.used)
                    .with("requested", report.requested);
                Some(if report.kept > 0 { record.with("kept", report.kept) } else { record })
            }
            Event::AttemptFailed { call, whose, kind, .. } => {
                if let Some(whose) = whose {
                    self.remember(call, whose, *kind);
                }
                None
            }
            Event::RetryScheduled { call, attempt, delay } => {
                let record = self.of_retry(call, "scheduled");
                Some(record.with("attempt", u64::from(*attempt)).with("delay_us", micros(*delay)))
            }
            Event::AttemptSuccess { call, attempt, .. } => {
                let record = (*attempt > 1).then(|| self.of_retry(call, "succeeded"));
                self.forget(call);
                record.map(|record| record.with("attempt", u64::from(*attempt)))
            }
            Event::OperationFailed { call, attempts: 1, reason, .. } if !would_have_retried(*reason) => {
                self.forget(call);
                None
            }
            Event::OperationFailed { call, attempts, reason, .. } => {
                let record = Record { after: Some(reason.name().into()), ..self.of_retry(call, "gave up") };
                self.forget(call);
                Some(record.with("attempts", u64::from(*attempts)))
            }
            Event::StateChanged { breaker, from, to, cause } => Some(Record {
                why: Some(cause.clone()).filter(|cause| *to == BreakerState::Open && !cause.is_empty()),
                target: Some(breaker.clone()),
                before: Some(from.name().into()),
                after: Some(to.name().into()),
                ..Record::new(Kind::Breaker, if is_forced(*from) || is_forced(*to) { "forced" } else { "changed" })
            }),
            Event::BoostEnded { limit } => {
                Some(Record { limit: Some(limit.clone()), ..Record::new(Kind::Override, "boost ended") })
            }
            Event::RetryBudgetExhausted => self.budget_exhausted(),
            Event::BypassSuspected { caller, pattern, count } => {
                let record = Record { tenant: Some(caller.clone()), ..Record::new(Kind::Anomaly, "bypass suspected") };
                Some(Record { why: Some((*pattern).into()), ..record }.with("count", *count))
            }
            // Of what operators did there is a record that says more, from before it took effect: one override is one record. The
            // others are none of what a trail is kept for.
            _ => None,
        }
    }

    /// What stands for the user, where there is one: the name, or a hash of it.
    #[must_use]
    pub fn shown_user(&self, whose: &Whose) -> Option<Arc<str>> {
        let user = whose.user.as_ref()?;
        Some(match &self.pseudonyms {
            Some(pseudonyms) => pseudonyms.pseudonym(user).into(),
            None => user.clone(),
        })
    }

    fn budget_exhausted(&mut self) -> Option<Record> {
        let now = Instant::now();
        self.budget_untold += 1;
        if self.budget_told_at.is_some_and(|told_at| now.duration_since(told_at) < BUDGET_TOLD_EVERY) {
            return None;
        }
        self.budget_told_at = Some(now);
        let times = std::mem::take(&mut self.budget_untold);
        Some(Record::new(Kind::Degradation, "retry budget exhausted").with("times", times))
    }

    fn of_retry(&mut self, call: &Arc<str>, what: &'static str) -> Record {
        let (whose, fault) = match self.find(call) {
            Some(failed) => (Some(failed.whose.clone()), Some(failed.fault)),
            None => (None, None),
        };
        let record = Record { why: fault.map(|kind| kind.error_class().into()), ..Record::new(Kind::Retry, what) };
        self.about(record, call, whose.as_ref())
    }

    fn about(&self, record: Record, call: &Arc<str>, whose: Option<&Whose>) -> Record {
        Record {
            call: Some(call.clone()),
            tenant: whose.map(|whose| whose.tenant.clone()),
            user: whose.and_then(|whose| self.shown_user(whose)),
            target: whose.map(|whose| whose.target.clone()),
            ..record
        }
    }

    fn remember(&mut self, call: &Arc<str>, whose: &Whose, fault: FaultKind) {
        let [young, old] = &mut self.failed;
        if young.len() >= REMEMBERED {
            *old = std::mem::take(young);
        }
        young.insert(call.clone(), Failed { whose: whose.clone(), fault });
    }

    fn find(&mut self, call: &str) -> Option<&mut Failed> {
        let [young, old] = &mut self.failed;
        young.get_mut(call).or_else(|| old.get_mut(call))
    }

    fn forget(&mut self, call: &str) {
        for generation in &mut self.failed {
            generation.remove(call);
        }
    }
}

/// Whether a retry was due that was not made, so that giving up at the first attempt is worth telling.
const fn would_have_retried(reason: GiveUpReason) -> bool {
    !matches!(reason, GiveUpReason::NotRetryable | GiveUpReason::AttemptsExhausted)
}

const fn is_forced(state: BreakerState) -> bool {
    matches!(state, BreakerState::ForcedOpen | BreakerState::ForcedClosed)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tidegate_core::limit::Dimension;
    use tidegate_core::refusal::LimitReport;

    use super::*;

    fn whose() -> Whose {
        Whose { tenant: "acme".into(), user: Some("ada".into()), target: "openai/gpt-4o".into() }
    }

    fn granted(attempt: u32, waited: Duration, limit: Option<&str>) -> Event {
        let limit = limit.map(Arc::from);
        Event::Granted { call: "c-1".into(), whose: whose(), attempt, queued_for: waited, limit }
    }

    fn text(record: Option<Record>) -> String {
        let text = record.unwrap().text().unwrap();
        text.split_once(',').unwrap().1.to_owned()
    }

    #[test]
    fn a_wait_of_a_second_is_a_record_and_a_call_that_went_at_once_is_not() {
        let mut feed = Feed::new(false, None);
        assert_eq!(feed.record(&granted(1, Duration::from_millis(999), Some("team"))), None);
        let waited = feed.record(&granted(1, Duration::from_secs(1), Some("team/acme/tokens_per_minute")));
        assert_eq!(
            text(waited),
            r#""kind":"throttle","what":"waited","call":"c-1","tenant":"acme","user":"ada","limit":"team/acme/tokens_per_minute","target":"openai/gpt-4o","numbers":{"attempt":1,"waited_us":1000000}}"#
        );
        assert_eq!(feed.record(&granted(2, Duration::from_secs(5), None)), None, "that was back-off");
    }

    #[test]
    fn each_call_is_a_record_where_that_is_asked_for() {
        let mut feed = Feed::new(true, None);
        assert_eq!(feed.record(&granted(1, Duration::ZERO, None)).unwrap().kind, Kind::Call);
        assert_eq!(feed.record(&granted(1, Duration::from_secs(2), None)).unwrap().kind, Kind::Throttle);
        assert_eq!(feed.record(&granted(2, Duration::ZERO, None)), None, "it is one call");
    }

    #[test]
    fn a_refusal_says_which_limit_and_its_numbers() {
        let report = LimitReport {
            limit: "team".into(),
            key: "acme".into(),
            dimension: Dimension::TokensPerMinute,
            allowed: 90_000,
            used: 89_210,
            requested: 1500,
            kept: 0,
        };
        let refused = Event::Refused {
            call: "c-1".into(),
            whose: whose(),
            reason: "limit",
            limit: Some(report),
            waited: Duration::from_millis(2500),
            retry_after: Some(Duration::from_millis(473)),
        };
        let said = text(Feed::new(false, None).record(&refused));
        assert!(
            said.contains(r#""limit":"team/acme/tokens_per_minute""#) && said.contains(r#""why":"limit""#),
            "{said}"
        );
        let numbers =
            r#""numbers":{"allowed":90000,"requested":1500,"retry_after_us":473000,"used":89210,"waited_us":2500000}"#;
        assert!(said.contains(numbers), "{said}");
    }

    #[test]
    fn a_retry_says_whose_why_and_how_it_ended() {
        let mut feed = Feed::new(false, None);
        let call: Arc<str> = "c-1".into();
        feed.record(&granted(1, Duration::ZERO, None));
        let failed =
            Event::AttemptFailed { call: call.clone(), whose: Some(whose()), attempt: 1, kind: FaultKind::Server };
        assert_eq!(feed.record(&failed), None);
        let scheduled = Event::RetryScheduled { call: call.clone(), attempt: 1, delay: Duration::from_millis(700) };
        assert_eq!(
            text(feed.record(&scheduled)),
            r#""kind":"retry","what":"scheduled","call":"c-1","tenant":"acme","user":"ada","target":"openai/gpt-4o","numbers":{"attempt":1,"delay_us":700000},"why":"temporary_error"}"#
        );
        feed.record(&granted(2, Duration::from_millis(700), None));
        let succeeded = Event::AttemptSuccess { call: call.clone(), attempt: 2, duration: Duration::ZERO };
        assert_eq!(feed.record(&succeeded).unwrap().what, "succeeded");
        let reason = GiveUpReason::AttemptsExhausted;
        let gave_up =
            feed.record(&Event::OperationFailed { call, attempts: 3, reason, kind: FaultKind::Server }).unwrap();
        assert_eq!((&*gave_up.what, gave_up.after.as_deref()), ("gave up", Some("attempts_exhausted")));
        assert_eq!(gave_up.tenant, None, "it had ended");
    }

    #[test]
    fn a_failure_at_the_first_attempt_is_no_retry_unless_one_was_due() {
        let mut feed = Feed::new(false, None);
        let mut gave_up = |attempts, reason| {
            let call: Arc<str> = "c-1".into();
            let kind = FaultKind::Server;
            feed.record(&Event::AttemptFailed { call: call.clone(), whose: Some(whose()), attempt: attempts, kind });
            feed.record(&Event::OperationFailed { call, attempts, reason, kind })
        };
        assert_eq!(gave_up(1, GiveUpReason::NotRetryable), None);
        assert_eq!(gave_up(1, GiveUpReason::AttemptsExhausted), None, "only one is allowed");
        assert!(gave_up(1, GiveUpReason::BudgetExhausted).is_some());
        assert!(gave_up(1, GiveUpReason::DeadlineExceeded).is_some());
        assert!(gave_up(2, GiveUpReason::NotRetryable).is_some(), "the retry met something that no other would mend");
    }

    #[test]
    fn calls_that_never_end_do_not_pile_up() {
        let mut feed = Feed::new(false, None);
        for n in 0..5 * REMEMBERED {
            let call = Arc::from(format!("c-{n}"));
            let kind = FaultKind::Server;
            feed.record(&Event::AttemptFailed { call, whose: Some(whose()), attempt: 1, kind });
        }
        assert!(feed.failed.iter().map(HashMap::len).sum::<usize>() <= 2 * REMEMBERED);
        let newest = format!("c-{}", 5 * REMEMBERED - 1);
        assert!(feed.find(&newest).is_some());
    }

    #[test]
    fn a_breaker_says_from_what_to_what_and_after_what() {
        let mut feed = Feed::new(false, None);
        let breaker: Arc<str> = "openai/gpt-4o".into();
        let event = Event::StateChanged {
            breaker,
            from: BreakerState::Closed,
            to: BreakerState::Open,
            cause: "5 failures in a row".into(),
        };
        assert_eq!(
            text(feed.record(&event)),
            r#""kind":"breaker","what":"changed","target":"openai/gpt-4o","why":"5 failures in a row","before":"closed","after":"open"}"#
        );
    }

    #[test]
    fn what_operators_did_is_told_by_them_and_what_ends_by_itself_here() {
        let mut feed = Feed::new(true, None);
        for event in [Event::LimitsReset, Event::OverrideApplied { version: 1 }, Event::ConfigUpdated] {
            assert_eq!(feed.record(&event), None, "{event:?}");
        }
        let ended = feed.record(&Event::BoostEnded { limit: "team".into() });
        assert_eq!(text(ended), r#""kind":"override","what":"boost ended","limit":"team"}"#);
    }

    #[test]
    fn users_appear_by_pseudonym_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let pseudonyms = Pseudonyms::of_or_new(&dir.path().join("audit.db")).unwrap();
        let mut feed = Feed::new(true, Some(pseudonyms.clone()));
        let said = text(feed.record(&granted(1, Duration::ZERO, None)));
        assert!(!said.contains("ada") && said.contains(&pseudonyms.pseudonym("ada")), "{said}");
    }

    #[test]
    fn a_budget_that_is_used_up_by_a_thousand_calls_is_one_record() {
        let mut feed = Feed::new(false, None);
        let told = (0..1000).filter_map(|_| feed.record(&Event::RetryBudgetExhausted)).count();
        assert_eq!(told, 1);
    }
}
