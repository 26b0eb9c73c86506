//! Decides how a call goes at one upstream: what of it is made for that one, its turn there, its attempts.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use tidegate::{Permit, Settled};
use tidegate_core::call::{Call, Priority, Subject, WhenOpen};
use tidegate_core::config::{ModelMap, UpstreamKind};
use tidegate_core::cost::Cost;
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::refusal::{GiveUp, GiveUpReason, Reason, Refusal};
use tokio::time::Instant;

use crate::asking::{cost, renamed, subject, without_model};
use crate::attempt::{Came, Failed, HeadTime, Reply, Sending, Settling, earliest};
use crate::body::SendBody;
use crate::metrics::{CallEnd, RETRIED, TenantCalls};
use crate::model::Model;
use crate::order::{Answer, Last, Order, SoFar};
use crate::refusal::OwnReply;
use crate::reply::Stamp;
use crate::say::Spoken;
use crate::upstream::Upstream;

/// A call as it goes to one upstream.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) model: Arc<Model>,
    pub(crate) subject: Subject,
    pub(crate) cost: Cost,
    pub(crate) target: Uri,
    pub(crate) headers: HeaderMap,
    bytes: Bytes,
    /// `None`: tenants have no series.
    pub(crate) tenant: Option<TenantCalls>,
}

/// How a call ended at one upstream.
#[derive(Debug)]
pub(crate) enum Ended {
    /// For good: the caller gets this.
    Answer(Answer),
    /// Not served here.
    Cannot(Box<Cannot>),
}

/// A call that one upstream did not serve.
#[derive(Debug)]
pub(crate) struct Cannot {
    /// What the caller gets if nobody else serves it either.
    pub(crate) last: Last,
    /// Why, as the series have it.
    pub(crate) reason: &'static str,
    /// Why it is not tried again here, where it might have been.
    pub(crate) given_up: Option<&'static str>,
    pub(crate) end: CallEnd,
    /// The limit that refused it, and its dimension.
    pub(crate) limit: Option<(Arc<str>, &'static str)>,
    /// Another upstream may take it: this one cannot, and neither the call itself nor a limit of our own is to blame.
    pub(crate) others_may: bool,
}

impl Order<'_> {
    /// The call as it goes to `upstream`. `keeps`: it may have to be made for another one too.
    pub(crate) fn leg(&mut self, upstream: Arc<Upstream>, keeps: bool) -> Result<Leg, Box<OwnReply>> {
        let sent_name = self.named.and_then(|name| match &upstream.config.models {
            ModelMap::Globs(_) => None,
            renames @ ModelMap::Renames(_) => renames.sent_name(name),
        });
        let known_as = sent_name.as_deref().or(self.named);
        // What names no model has limits of its own, by what it is: a transcription's must not hold up a list of files.
        let unnamed = self.named.is_none().then(|| without_model(self.route));
        let model = upstream.models.named(
            known_as.or(unnamed.as_deref()).unwrap_or(""),
            upstream.config.kind == UpstreamKind::Azure,
            &self.settings.groups,
            &upstream.config.name,
            &self.shared.metrics,
        );
        // A deployment that the path names already stays, unless it is renamed.
        let in_path = if self.route.deployment.is_some() { sent_name.as_deref() } else { known_as };
        let target = upstream.base.uri(self.uri, self.route, in_path);
        let target = target.ok_or_else(|| Box::new(OwnReply::bad_request("the path cannot be sent on")))?;
        let bytes = renamed(self.bytes.clone(), self.asked, &upstream, sent_name.as_deref())?;
        let mut headers = if keeps { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        let account = upstream.address(&mut headers, self.identity);
        let subject = subject(account, &model, self.identity, self.wishes, self.asked, self.route);
        let declared = self.wishes.declared_tokens;
        let cost = cost(self.asked, self.route, &self.method, &model.calibration(), declared);
        let has_series = self.settings.config.telemetry.tenant_metrics;
        let tenant = has_series.then(|| self.shared.metrics.tenant(&subject.tenant));
        Ok(Leg { upstream, model, subject, cost, target, headers, bytes, tenant })
    }
}

impl Leg {
    /// As breakers and events name where it goes: `upstream/model group`.
    pub(crate) fn name(&self) -> String {
        let model = if self.subject.model.is_empty() { "-" } else { &*self.subject.model };
        format!("{}/{model}", self.subject.upstream())
    }

    /// The call has ended here, and nobody else is asked.
    pub(crate) fn ended(&self, priority: Priority, end: CallEnd) {
        self.model.metrics.ended(priority, end);
        if let Some(tenant) = &self.tenant {
            tenant.ended(end);
        }
    }

    /// Waits for the call's turn.
    pub(crate) async fn admitted(
        &self,
        order: &Order<'_>,
        so_far: &SoFar,
        stamp: &mut Stamp,
    ) -> Result<Permit, Box<Refusal>> {
        let call = Call {
            id: stamp.id(),
            subject: self.subject.clone(),
            cost: self.cost,
            priority: order.priority,
            start_by: order.start_by,
            end_by: order.end_by,
            when_open: WhenOpen::Refuse,
            body_bytes: self.bytes.len() as u64,
            own_charged: so_far.own_charged,
        };
        let admitted = order.shared.driver.admit(call).await;
        let waited = admitted.as_ref().map_or_else(|refusal| refusal.waited, Permit::queued_for);
        order.shared.metrics.queue_wait[order.priority.index()].observe(waited.as_secs_f64());
        stamp.queued_for = so_far.queued_for + waited;
        admitted
    }

    /// Sends until there is something to answer, or nothing more to be tried here.
    pub(crate) async fn run(&mut self, order: &Order<'_>, so_far: &mut SoFar, stamp: &mut Stamp) -> Ended {
        let mut permit = match self.admitted(order, so_far, stamp).await {
            Ok(late) if order.is_over() => return self.too_late(order, late, None),
            Ok(permit) => permit,
            Err(refusal) => return Ended::Cannot(self.refused(order, refusal, so_far)),
        };
        let never = AtomicBool::new(false);
        loop {
            stamp.attempts += 1;
            let request = self.request(order);
            let teaches = if order.is_read { order.asked.teaches() } else { None };
            let mut settling = Settling::new(permit, self, order.priority, teaches);
            let attempt_timeout = order.settings.config.policy.retry.attempt_timeout;
            let attempt_end = attempt_timeout.map(|after| Instant::now() + after);
            let sending = Sending {
                upstream: &self.upstream,
                endpoint: order.route.endpoint,
                is_metered: order.is_read,
                attempt_end,
                call_end: order.call_end,
                caller_failed: order.passage.as_ref().map_or(&never, |passage| &passage.caller_failed),
            };
            let mut head_at = HeadTime::default();
            let came = match settling.permit() {
                Some(permit) => sending.send(request, permit, &mut head_at).await,
                // Nothing takes it before the attempt has ended.
                None => return Ended::Answer(Err(Box::new(OwnReply::draining()))),
            };
            if let Some(at) = head_at.head {
                settling.head_came(at);
            }
            if let Some(at) = head_at.first_event {
                settling.first_event_came(at);
            }
            let failed = match came {
                Came::Reply(reply) => {
                    order.shared.metrics.replied(&self.model.metrics, reply.head.status.as_u16());
                    order.measure(stamp);
                    let end = earliest([attempt_end, order.reply_end]);
                    return Ended::Answer(Ok(order.pass_on(self, *reply, settling, end, stamp)));
                }
                Came::Failed(failed) => *failed,
            };
            self.count(order, &failed);
            if failed.by_caller {
                settling.cancelled(None);
                let own = OwnReply::invalid_body("the rest of the body did not arrive");
                return Ended::Answer(Err(Box::new(own)));
            }
            so_far.count(&failed.fault);
            if failed.fault.kind == FaultKind::QuotaExhausted && order.settings.upstreams.len() > 1 {
                order.shared.out_of_quota.ran_out(&self.subject.account);
            }
            let is_spent = so_far.is_spent(order.settings, &failed.fault);
            let mut fault = failed.fault.clone();
            if !order.is_whole() || is_spent {
                // What has streamed through cannot be sent again, and the call has no more attempts than it has.
                fault.should_retry = Some(false);
            }
            let reason = fault.kind.error_class();
            match settling.failed(fault, failed.usage) {
                Some(Settled::Retry(waiting)) if order.is_whole() => {
                    order.shared.metrics.retry(reason, RETRIED);
                    tracing::debug!(call = %stamp.id(), fault = %failed.fault.summary, "will be tried again");
                    // Only what is all here: a connection is not held for as long as a wait may take.
                    let answer = failed.reply.filter(|reply| reply.rest.is_none());
                    permit = match waiting.await {
                        Ok(late) if order.is_over() => {
                            stamp.queued_for = so_far.queued_for + late.queued_for();
                            return self.too_late(order, late, answer);
                        }
                        Ok(permit) => permit,
                        Err(refusal) => {
                            stamp.queued_for = so_far.queued_for + refusal.waited;
                            let mut cannot = self.refused(order, refusal, so_far);
                            if let Some(answer) = answer {
                                cannot.last = Last::Said(answer, self.upstream.config.idle_timeout);
                            }
                            return Ended::Cannot(cannot);
                        }
                    };
                    stamp.queued_for = so_far.queued_for + permit.queued_for();
                }
                settled => {
                    let given_up = match settled {
                        Some(Settled::GiveUp(given_up)) => Some(given_up),
                        _ => None,
                    };
                    return Ended::Cannot(self.gave_up(order, failed, given_up, is_spent, stamp));
                }
            }
        }
    }

    /// The call's time ended between the grant and the moment at which it could be sent. What it took goes back.
    fn too_late(&self, order: &Order<'_>, granted: Permit, answer: Option<Box<Reply>>) -> Ended {
        drop(granted);
        let last = match answer {
            Some(answer) => Last::Said(answer, self.upstream.config.idle_timeout),
            None => Last::Nothing(Box::new(OwnReply::too_late(order.watch.started_at().elapsed()))),
        };
        let (reason, end) = ("limit", CallEnd::Refused);
        Ended::Cannot(Box::new(Cannot { last, reason, given_up: None, end, limit: None, others_may: false }))
    }

    fn request(&mut self, order: &Order<'_>) -> Request<SendBody> {
        let body = match &order.passage {
            Some(passage) => SendBody::passing(passage),
            None => SendBody::whole(self.bytes.clone()),
        };
        let mut request = Request::new(body);
        *request.method_mut() = order.method.clone();
        *request.uri_mut() = self.target.clone();
        // What cannot be sent twice need not be kept for it.
        *request.headers_mut() =
            if order.is_whole() { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        request
    }

    fn count(&self, order: &Order<'_>, failed: &Failed) {
        let metrics = &order.shared.metrics;
        match &failed.reply {
            Some(reply) => {
                let status = reply.head.status;
                metrics.replied(&self.model.metrics, status.as_u16());
                if status == StatusCode::TOO_MANY_REQUESTS {
                    self.model.metrics.too_many.inc();
                }
            }
            None => metrics.no_reply(&self.model.metrics, failed.fault.kind.error_class()),
        }
        if let Some(named) = failed.fault.limit_group.as_deref() {
            self.join(order, named);
        }
    }

    /// The upstream names a limit that this model shares with others.
    fn join(&self, order: &Order<'_>, named: &str) {
        // It may be named by a snapshot of the model.
        let with = order.settings.groups.group_of(named);
        if order.settings.tells_groups() || *with == *self.model.group {
            return;
        }
        tracing::info!(upstream = %self.upstream.config.name, model = %self.model.group, with, "shares its limit");
        self.upstream.models.join(&self.model.group, with, &self.upstream.config.name, &order.shared.metrics);
    }

    /// The core let it not go. A limit of our own would bind it anywhere.
    pub(crate) fn refused(&self, order: &Order<'_>, mut refusal: Box<Refusal>, so_far: &SoFar) -> Box<Cannot> {
        refusal.waited += so_far.queued_for;
        let (limit, others_may) = match &refusal.reason {
            Reason::Limit(report) | Reason::TooLarge(report) => {
                let limit = (report.limit.clone(), report.dimension.name());
                (Some(limit), !order.settings.is_own_limit(&report.limit))
            }
            Reason::QueueFull { .. } | Reason::Breaker(_) => (None, true),
            Reason::Paused { .. } | Reason::Draining => (None, false),
        };
        let (reason, end) = (refusal.reason.name(), CallEnd::Refused);
        Box::new(Cannot { last: Last::Refused(refusal), reason, given_up: None, end, limit, others_may })
    }

    /// No further attempt is made here.
    fn gave_up(
        &self,
        order: &Order<'_>,
        failed: Failed,
        given_up: Option<Box<GiveUp>>,
        is_spent: bool,
        stamp: &Stamp,
    ) -> Box<Cannot> {
        let can_be_sent = order.passage.as_ref().is_none_or(|passage| passage.is_unbegun());
        let others_may = can_be_sent && is_the_upstreams(&failed.fault);
        let result = match &given_up {
            // A caller's mistake is no retry that failed.
            Some(given_up) if given_up.reason == GiveUpReason::NotRetryable => {
                let is_retryable = order.settings.retry.is_retryable(&failed.fault);
                (is_spent && is_retryable).then_some(GiveUpReason::AttemptsExhausted.name())
            }
            given_up => given_up.as_ref().map(|given_up| given_up.reason.name()),
        };
        let last = match (failed.reply, given_up) {
            (Some(reply), _) => Last::Said(reply, self.upstream.config.idle_timeout),
            (None, Some(given_up)) => {
                let given_up =
                    GiveUp { attempts: stamp.attempts, elapsed: order.watch.started_at().elapsed(), ..*given_up };
                Last::Nothing(Box::new(OwnReply::gave_up(&given_up, failed.may_be_billed)))
            }
            (None, None) => {
                let elapsed = Spoken(order.watch.started_at().elapsed());
                let message = format!("gave up after 1 attempt in {elapsed}; last: {}.", failed.fault.summary);
                Last::Nothing(Box::new(OwnReply::upstream_failed(failed.fault.kind, message, failed.may_be_billed)))
            }
        };
        let (reason, end) = (failed.fault.kind.error_class(), CallEnd::Failed);
        Box::new(Cannot { last, reason, given_up: result, end, limit: None, others_may })
    }
}

/// Whether another upstream might serve what failed so: not where the call itself is wrong, as a 4xx says.
const fn is_the_upstreams(fault: &Fault) -> bool {
    !matches!(fault.kind, FaultKind::Conflict | FaultKind::Unauthorized | FaultKind::NotFound | FaultKind::Invalid)
}
