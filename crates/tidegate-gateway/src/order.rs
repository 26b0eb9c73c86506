//! Decides where one caller's call is tried, upstream after upstream, and what the caller gets if none of them serves it.
//!
//! One budget for all: attempts, waiting and deadlines are the call's, whichever upstream they were spent at.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri};
use tidegate_core::call::Priority;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::openai::endpoints::Route;
use tidegate_core::openai::estimate::Request as Asked;
use tidegate_core::refusal::Refusal;
use tidegate_core::retry::MAX_RATE_LIMITS;
use tidegate_core::time::Time;
use tidegate_watch::audit::{Kind, Record};
use tokio::time::Instant;

use crate::attempt::Reply;
use crate::body::Passage;
use crate::candidates::Candidates;
use crate::flood::CallLines;
use crate::identity::Identity;
use crate::leg::{Cannot, Ended, Leg};
use crate::metrics::{CallEnd, FELL_BACK, REFUSED};
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::shared::{Settings, Shared};
use crate::stopwatch::Stopwatch;
use crate::wishes::Wishes;

static MEASURED: CallLines = CallLines::new("calls were measured");

/// What a caller gets.
pub(crate) type Answer = Result<Response<ReplyBody>, Box<OwnReply>>;

/// What is the same of a call wherever it goes.
pub(crate) struct Order<'r> {
    pub(crate) shared: &'r Shared,
    pub(crate) settings: &'r Settings,
    pub(crate) identity: &'r Identity,
    pub(crate) wishes: &'r Wishes,
    pub(crate) route: &'r Route<'r>,
    pub(crate) asked: &'r Asked<'r>,
    /// The model, by the caller's name for it.
    pub(crate) named: Option<&'r str>,
    pub(crate) method: Method,
    pub(crate) uri: &'r Uri,
    /// As they came from the caller; nothing has been put on them for an upstream.
    pub(crate) headers: HeaderMap,
    /// The body as it came, where all of it is here; else nothing.
    pub(crate) bytes: Bytes,
    /// The body, where it is passed on as it comes.
    pub(crate) passage: Option<Arc<Passage>>,
    /// Its body was read, and so its reply is looked at.
    pub(crate) is_read: bool,
    pub(crate) priority: Priority,
    pub(crate) watch: &'r Stopwatch,
    /// No attempt starts after this.
    pub(crate) start_by: Time,
    /// No reply begins after this.
    pub(crate) call_end: Option<Instant>,
    /// The same on the core's clock.
    pub(crate) end_by: Time,
    /// The reply ends here: the caller asked for it.
    pub(crate) reply_end: Option<Instant>,
}

/// What a call has been through so far, at all upstreams together.
#[derive(Debug, Default)]
pub(crate) struct SoFar {
    /// Waited at the upstreams that have been left.
    pub(crate) queued_for: Duration,
    /// Attempts that failed and count.
    counted: u32,
    rate_limits: u32,
    /// Own limits have been charged the call's request.
    pub(crate) own_charged: bool,
    /// Others could take the call, or could have at its beginning.
    has_others: bool,
    /// How many of them have not been asked.
    others_left: usize,
    /// Accounts and model groups that it was tried at.
    tried: Vec<(Arc<str>, Arc<str>)>,
    last: Option<Last>,
}

/// What a caller gets if nobody serves the call.
#[derive(Debug)]
pub(crate) enum Last {
    /// What an upstream said, whose replies may be silent for so long.
    Said(Box<Reply>, Option<Duration>),
    /// The core let it not go.
    Refused(Box<Refusal>),
    /// Nobody said anything.
    Nothing(Box<OwnReply>),
}

impl SoFar {
    /// An attempt failed.
    pub(crate) fn count(&mut self, fault: &Fault) {
        if fault.kind == FaultKind::RateLimited {
            self.rate_limits += 1;
        } else {
            self.counted += 1;
        }
        self.own_charged |= !fault.kind.never_arrived();
    }

    /// Whether a call that failed with `fault` has no further attempt here: each upstream that may still be asked is left one.
    pub(crate) fn is_spent(&self, settings: &Settings, fault: &Fault) -> bool {
        let most = settings.config.policy.retry.max_attempts;
        let (made, allowed) = match fault.kind {
            FaultKind::RateLimited => (self.rate_limits, MAX_RATE_LIMITS),
            // More attempts for some errors, with long delays, are for calls that have nowhere else to go.
            _ if self.others_left > 0 => (self.counted, settings.retry.max_attempts(fault).min(most)),
            _ => (self.counted, settings.retry.max_attempts(fault)),
        };
        // Where there never was another upstream, all of this is the core's to say.
        self.has_others && made as usize + self.others_left >= allowed as usize
    }

    /// Keeps what tells the caller most: an upstream's own words, the latest, before the refusal that ends soonest.
    fn keep(&mut self, last: Last) {
        let is_better = match (&self.last, &last) {
            (None, _) | (_, Last::Said(..)) | (Some(Last::Nothing(_)), _) => true,
            (Some(Last::Refused(before)), Last::Refused(now)) => match (before.retry_after, now.retry_after) {
                (Some(before), Some(now)) => now < before,
                (None, now) => now.is_some(),
                (Some(_), None) => false,
            },
            (Some(Last::Said(..) | Last::Refused(_)), _) => false,
        };
        if is_better {
            self.last = Some(last);
        }
    }

    /// So much time has passed meanwhile: whoever was told to wait has waited for it.
    fn has_waited(&mut self, passed: Duration) {
        if let Some(Last::Refused(refusal)) = &mut self.last {
            let left = |wait: Duration| wait.saturating_sub(passed).max(Duration::from_millis(1));
            refusal.retry_after = refusal.retry_after.map(left);
        }
    }
}

impl Order<'_> {
    /// Nobody waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.call_end.is_some_and(|end| end <= Instant::now())
    }

    /// Sends until there is something to answer, at one upstream after the other.
    pub(crate) async fn run(mut self, mut candidates: Candidates, stamp: &mut Stamp) -> Answer {
        let mut so_far = SoFar { has_others: candidates.left() > 1, ..SoFar::default() };
        let mut leg = self.first_leg(&mut candidates, &mut so_far)?;
        loop {
            let asked_at = Instant::now();
            let cannot = match leg.run(&self, &mut so_far, stamp).await {
                Ended::Answer(answer) => return answer,
                Ended::Cannot(cannot) => cannot,
            };
            so_far.queued_for = stamp.queued_for;
            so_far.has_waited(asked_at.elapsed());
            let others = if self.may_go_on(&cannot) { self.next_leg(&mut candidates, &mut so_far) } else { None };
            let Some(next) = others else { return self.end(&leg, *cannot, so_far, stamp) };
            tracing::debug!(
                id = %stamp.id(), from = %leg.upstream.config.name, to = %next.upstream.config.name, reason = cannot.reason,
                "goes on at another upstream"
            );
            self.shared.metrics.retry(cannot.reason, FELL_BACK);
            self.count_limit(&leg, &cannot, FELL_BACK);
            self.note_fallback(&leg, &next, cannot.reason, stamp);
            so_far.keep(cannot.last);
            leg = next;
        }
    }

    /// The call is refused, as it would leave no trace.
    pub(crate) fn unrecorded(mut self, mut candidates: Candidates) -> Box<OwnReply> {
        self.shared.audit.refused();
        let own = OwnReply::unrecorded();
        self.shared.metrics.refused(own.reason());
        if let Ok(leg) = self.first_leg(&mut candidates, &mut SoFar::default()) {
            leg.ended(self.priority, CallEnd::Refused);
        }
        Box::new(own)
    }

    /// What this upstream refused, or failed at, the next one is asked: whoever reads of the refusal is to know that.
    fn note_fallback(&self, from: &Leg, to: &Leg, reason: &'static str, stamp: &Stamp) {
        self.shared.audit.note(Record {
            call: Some(stamp.id()),
            before: Some(from.name().into()),
            after: Some(to.name().into()),
            why: Some(reason.into()),
            ..Record::new(Kind::Retry, "fell back")
        });
    }

    /// The call at the first upstream that is to be asked; of those that are all out of quota the very first, which says so itself.
    pub(crate) fn first_leg(&mut self, candidates: &mut Candidates, so_far: &mut SoFar) -> Result<Leg, Box<OwnReply>> {
        let mut passed_over = None;
        while let Some(upstream) = candidates.next(self.settings) {
            let leg = self.leg(upstream, so_far.has_others)?;
            if so_far.has_others && self.shared.out_of_quota.is_passed_over(&leg.subject.account) {
                passed_over.get_or_insert(leg);
                continue;
            }
            so_far.goes_to(&leg, candidates);
            self.note_user(&leg);
            return Ok(leg);
        }
        so_far.others_left = 0;
        passed_over.ok_or_else(|| Box::new(OwnReply::unserved_model(self.named.unwrap_or(""))))
    }

    /// It is looked out for who names ever new users.
    fn note_user(&self, leg: &Leg) {
        if let Some(user) = &leg.subject.user {
            let caller = &self.identity.caller;
            let users_are_limited = self.settings.has_user_limits;
            self.shared.anomalies.named(caller.key.as_ref().unwrap_or(&caller.tenant), user, users_are_limited);
        }
    }

    /// Who was refused by a limit, and whether that user's own: whoever names another one in its place goes round it.
    fn note_refusal(&self, leg: &Leg, cannot: &Cannot) {
        if let (Some((limit, _)), Some(user)) = (&cannot.limit, &leg.subject.user) {
            let caller = &self.identity.caller;
            let by_its_own = self.settings.is_user_limit(limit);
            self.shared.anomalies.refused(caller.key.as_ref().unwrap_or(&caller.tenant), user, by_its_own);
        }
    }

    /// The call at the next upstream that is worth asking.
    fn next_leg(&mut self, candidates: &mut Candidates, so_far: &mut SoFar) -> Option<Leg> {
        while let Some(upstream) = candidates.next(self.settings) {
            let Ok(leg) = self.leg(upstream, true) else { continue };
            let is_tried = so_far
                .tried
                .iter()
                .any(|(account, model)| (account, model) == (&leg.subject.account, &leg.subject.model));
            if !is_tried && !self.shared.out_of_quota.is_passed_over(&leg.subject.account) {
                so_far.goes_to(&leg, candidates);
                return Some(leg);
            }
        }
        None
    }

    fn may_go_on(&self, cannot: &Cannot) -> bool {
        let now = self.shared.driver.now();
        // Who was refused may be let in elsewhere at once, also at its deadline: it does not wait there.
        let in_time = cannot.end == CallEnd::Refused || now <= self.start_by;
        cannot.others_may && in_time && now < self.end_by
    }

    /// Nobody else is asked after this one: what the caller gets.
    pub(crate) fn end(&self, leg: &Leg, cannot: Cannot, mut so_far: SoFar, stamp: &Stamp) -> Answer {
        leg.ended(self.priority, cannot.end);
        if let Some(result) = cannot.given_up {
            self.shared.metrics.retry(cannot.reason, result);
        }
        self.count_limit(leg, &cannot, REFUSED);
        self.note_refusal(leg, &cannot);
        if cannot.end == CallEnd::Refused {
            self.shared.metrics.refused(cannot.reason);
        }
        self.measure(stamp);
        so_far.keep(cannot.last);
        match so_far.last {
            Some(Last::Said(reply, idle)) => Ok(self.last_answer(*reply, idle, stamp)),
            Some(Last::Refused(refusal)) => Err(Box::new(OwnReply::refused(&refusal, self.shared.driver.now()))),
            Some(Last::Nothing(own)) => Err(own),
            // It was kept just now.
            None => Err(Box::new(OwnReply::draining())),
        }
    }

    fn count_limit(&self, leg: &Leg, cannot: &Cannot, action: &'static str) {
        if let Some((limit, dimension)) = &cannot.limit {
            self.shared.metrics.limited(&leg.model.metrics, limit, dimension, action);
        }
    }

    /// All the time in which the call did not wait. Of a call that was never sent it is only logged: refusing is quick, and many
    /// refusals would make calls seem so.
    pub(crate) fn measure(&self, stamp: &Stamp) {
        let ours = self.watch.worked();
        if stamp.attempts > 0 {
            self.shared.metrics.overhead.observe(ours.as_secs_f64());
        }
        if MEASURED.may_tell() {
            tracing::debug!(call = %stamp.id(), overhead_us = ours.as_micros() as u64, attempts = stamp.attempts, "time in tidegate");
        }
    }

    /// All of its body is here, so that it can be sent again.
    pub(crate) const fn is_whole(&self) -> bool {
        self.passage.is_none()
    }
}

impl SoFar {
    fn goes_to(&mut self, leg: &Leg, candidates: &Candidates) {
        self.others_left = candidates.left();
        if self.has_others {
            self.tried.push((leg.subject.account.clone(), leg.subject.model.clone()));
        }
    }
}
