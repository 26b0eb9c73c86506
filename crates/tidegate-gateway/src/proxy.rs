//! Decides nothing but the order: who calls, what for, may it go, send, look, pass on or try again. The life of one call.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tidegate::{Permit, Settled};
use tidegate_core::call::{Call, Priority, Subject, WhenOpen};
use tidegate_core::config::UpstreamKind;
use tidegate_core::cost::Cost;
use tidegate_core::openai::endpoints::{Endpoint, Route, classify_path};
use tidegate_core::openai::estimate::{self, Request as Asked};
use tidegate_core::refusal::{GiveUpReason, Reason, Refusal};
use tidegate_core::time::Time;
use tokio::time::Instant;

use crate::asking::{cost, is_multipart, model_in_query, narrow_encodings, renamed, subject, without_model};
use crate::attempt::passing::Passing;
use crate::attempt::{Came, Failed, HeadTime, Reply, Sending, Settling, Watch, earliest};
use crate::body::{self, SendBody};
use crate::headers;
use crate::identity::Identity;
use crate::metrics::CallEnd;
use crate::model::Model;
use crate::refusal::OwnReply;
use crate::reply::{ReplyBody, Stamp};
use crate::say::Spoken;
use crate::shared::{Phase, Settings, Shared, unix_now};
use crate::upstream::Upstream;
use crate::websocket::{self, Upgrade};
use crate::wishes::Wishes;

/// No model's name is longer.
const MODEL_BYTES_MAX: usize = 256;

type Answer = Result<Response<ReplyBody>, Box<OwnReply>>;

/// Answers one request that came in at `local`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    local: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let arrived_at = Instant::now();
    if let Some(health) = crate::admin::health(&shared, request.method(), request.uri().path()) {
        return Ok(health);
    }
    let mut stamp = Stamp::for_call(request.headers());
    let answer = handle(&shared, local, request, arrived_at, &mut stamp).await;
    Ok(answer.unwrap_or_else(|own| {
        tracing::debug!(status = own.status.as_u16(), reason = own.reason(), "answered by tidegate itself");
        own.into_response(&stamp)
    }))
}

async fn handle(
    shared: &Arc<Shared>,
    local: IpAddr,
    mut request: Request<Incoming>,
    arrived_at: Instant,
    stamp: &mut Stamp,
) -> Answer {
    let settings = shared.settings.load_full();
    let upgrade = Upgrade::of(&mut request);
    let (parts, body) = request.into_parts();
    let http::request::Parts { method, uri, mut headers, .. } = parts;
    let (route, identity, wishes) = match let_in(shared, &settings, local, &method, &uri, &mut headers) {
        Ok(let_in) => let_in,
        Err(own) => {
            body::drain(body, settings.config.server.max_body).await;
            return Err(own);
        }
    };
    headers::clean_request(&mut headers);

    // A form with files has no JSON to read; it streams through and costs what its endpoint costs at least.
    let is_read = route.is_metered(method.as_str()) && !is_multipart(&headers);
    let bytes_max = settings.config.server.max_body;
    let held = shared.room.for_body(settings.config.policy.queue.max_bytes);
    let (bytes, passing) = if is_read {
        narrow_encodings(&mut headers);
        (body::read_whole(body, &mut headers, bytes_max, held).await?, None)
    } else if upgrade.is_none() && body::is_small(&body) {
        // Kept, so that it can be sent again like any other.
        (body::read_small(body, held).await?, None)
    } else {
        (Bytes::new(), Some(body).filter(|body| !body.is_end_stream()))
    };
    let asked = if is_read {
        estimate::parse(route.endpoint, &bytes).map_err(|error| Box::new(OwnReply::invalid_body(error.to_string())))?
    } else {
        Asked::unread(route.endpoint)
    };

    let named = asked.model.as_deref().or(route.deployment.as_deref()).or_else(|| model_in_query(&uri, &route));
    if let Some(name) = named.filter(|name| name.len() > MODEL_BYTES_MAX) {
        let message = format!("model is {} bytes long; a model's name has at most {MODEL_BYTES_MAX}", name.len());
        return Err(Box::new(OwnReply::invalid_body(message)));
    }
    let Some((upstream, sent_name)) = settings.upstream_for(named) else {
        return Err(Box::new(OwnReply::unserved_model(named.unwrap_or(""))));
    };
    let is_deployment = upstream.config.kind == UpstreamKind::Azure;
    // What names no model has limits of its own, by what it is: a transcription's must not hold up a list of files.
    let unnamed = named.is_none().then(|| without_model(&route));
    let model = upstream.models.named(
        sent_name.as_deref().or(named).or(unnamed.as_deref()).unwrap_or(""),
        is_deployment,
        &settings.groups,
        &upstream.config.name,
        &shared.metrics,
    );
    let account = upstream.address(&mut headers, &identity);
    let target = upstream.base.uri(&uri, &route, sent_name.as_deref().or(named));
    let target = target.ok_or_else(|| Box::new(OwnReply::bad_request("the path cannot be sent on")))?;

    let subject = subject(account, &model, &identity, &wishes, &asked, &route);
    if upgrade.is_some()
        && let Some(limit) = settings.token_limit_on(&subject)
    {
        return Err(Box::new(OwnReply::forbidden(format!(
            "a WebSocket's tokens cannot be counted against limit \"{limit}\"; use HTTP with stream: true"
        ))));
    }
    let is_whole = passing.is_none();
    let call = Order {
        shared: shared.clone(),
        priority: wishes.priority.unwrap_or(identity.caller.default_priority).min(identity.caller.max_priority),
        cost: cost(&asked, &route, &method, &model.calibration(), wishes.declared_tokens),
        teaches: if is_read { asked.teaches() } else { None },
        endpoint: route.endpoint,
        is_read,
        method,
        target,
        headers,
        is_whole,
        arrived_at,
        call_end: earliest([wishes
            .timeout
            .or(settings.config.policy.retry.total_timeout)
            .map(|after| arrived_at + after)]),
        reply_end: wishes.timeout.map(|after| arrived_at + after),
        upstream,
        model,
    };
    let body = match passing {
        Some(body) => OrderBody::Passing(body),
        None => OrderBody::Whole(renamed(bytes.clone(), &asked, &call.upstream, sent_name.as_deref())?),
    };
    let permit = call.admitted(subject, &settings, &wishes, bytes.len(), stamp).await?;
    match upgrade {
        Some(upgrade) => websocket::run(call, upgrade, permit, stamp).await,
        None => call.run(&settings, body, permit, stamp).await,
    }
}

/// Who calls, by which path, and with which wishes; nothing of the body is needed to turn somebody away.
fn let_in<'u>(
    shared: &Shared,
    settings: &Settings,
    local: IpAddr,
    method: &Method,
    uri: &'u Uri,
    headers: &mut HeaderMap,
) -> Result<(Route<'u>, Identity, Wishes), Box<OwnReply>> {
    settings.guard.check(uri, headers, local)?;
    headers::check_single(headers)?;
    if shared.phase() >= Phase::Closing {
        return Err(Box::new(OwnReply::draining()));
    }
    let route = classify_path(uri.path());
    if route.endpoint == Endpoint::Unknown {
        // By the name that the caller knows us by; it is one of ours.
        let host = headers::text(headers, &header::HOST).unwrap_or(&shared.first_addr);
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        return Err(Box::new(OwnReply::unknown_path(uri.path(), &format!("{scheme}://{host}/v1"))));
    }
    let identity = settings.callers.identify(headers, unix_now().as_secs())?;
    identity.caller.may_use(&route, method.as_str())?;
    Ok((route, identity, Wishes::read(headers)?))
}

/// A call that is ready to be sent.
pub(crate) struct Order {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) model: Arc<Model>,
    pub(crate) priority: Priority,
    pub(crate) cost: Cost,
    teaches: Option<u64>,
    endpoint: Endpoint,
    /// Its body was read, and so its reply is looked at.
    is_read: bool,
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) headers: HeaderMap,
    /// All of its body is here, so that it can be sent again.
    is_whole: bool,
    arrived_at: Instant,
    /// No reply begins after this.
    call_end: Option<Instant>,
    /// The reply ends here: the caller asked for it.
    reply_end: Option<Instant>,
}

enum OrderBody {
    Whole(Bytes),
    Passing(Incoming),
}

impl Order {
    /// Waits for the call's turn.
    async fn admitted(
        &self,
        subject: Subject,
        settings: &Settings,
        wishes: &Wishes,
        body_bytes: usize,
        stamp: &mut Stamp,
    ) -> Result<Permit, Box<OwnReply>> {
        let now = self.shared.driver.now();
        let end_by = self.call_end.map_or(Time::NEVER, |end| now + end.saturating_duration_since(Instant::now()));
        let max_wait = wishes.max_wait(settings.config.policy.queue.max_wait);
        let call = Call {
            id: stamp.id(),
            subject,
            cost: self.cost,
            priority: self.priority,
            start_by: (now + max_wait).min(end_by),
            end_by,
            when_open: WhenOpen::Refuse,
            body_bytes: body_bytes as u64,
        };
        let admitted = self.shared.driver.admit(call).await;
        let waited = admitted.as_ref().map_or_else(|refusal| refusal.waited, Permit::queued_for);
        self.shared.metrics.queue_wait[self.priority.index()].observe(waited.as_secs_f64());
        stamp.queued_for = waited;
        match admitted {
            Ok(late) if self.is_over() => Err(self.too_late(late)),
            admitted => admitted.map_err(|refusal| self.refused(&refusal)),
        }
    }

    /// Nobody waits for it any more.
    fn is_over(&self) -> bool {
        self.call_end.is_some_and(|end| end <= Instant::now())
    }

    /// The call's time ended between the grant and the moment at which it could be sent. What it took goes back.
    fn too_late(&self, granted: Permit) -> Box<OwnReply> {
        drop(granted);
        self.model.metrics.ended(self.priority, CallEnd::Refused);
        Box::new(OwnReply::too_late(self.arrived_at.elapsed()))
    }

    /// The core let it not go.
    fn refused(&self, refusal: &Refusal) -> Box<OwnReply> {
        let metrics = &self.shared.metrics;
        self.model.metrics.ended(self.priority, CallEnd::Refused);
        if let Reason::Limit(report) | Reason::TooLarge(report) = &refusal.reason {
            metrics.limited(&self.model.metrics, &report.limit, report.dimension.name());
        }
        Box::new(OwnReply::refused(refusal, self.shared.driver.now()))
    }

    /// Sends until there is something to answer.
    async fn run(mut self, settings: &Settings, body: OrderBody, permit: Permit, stamp: &mut Stamp) -> Answer {
        let caller_failed = Arc::new(AtomicBool::new(false));
        let (bytes, mut passing) = match body {
            OrderBody::Whole(bytes) => (bytes, None),
            OrderBody::Passing(body) => (Bytes::new(), Some(body)),
        };
        let mut permit = permit;
        let mut outside = Duration::ZERO;
        loop {
            stamp.attempts += 1;
            let body = match passing.take() {
                Some(body) => SendBody::passing(body, caller_failed.clone()),
                None => SendBody::whole(bytes.clone()),
            };
            let request = self.request(body);
            let mut settling =
                Settling::new(permit, self.model.clone(), self.priority, self.cost.input_tokens, self.teaches);
            let attempt_end = settings.config.policy.retry.attempt_timeout.map(|after| Instant::now() + after);
            let sending = Sending {
                upstream: &self.upstream,
                endpoint: self.endpoint,
                is_metered: self.is_read,
                attempt_end,
                call_end: self.call_end,
                caller_failed: &caller_failed,
            };
            let mut head_at = HeadTime::default();
            let sent_at = settling.sent_at();
            let came = match settling.permit() {
                Some(permit) => sending.send(request, permit, &mut head_at).await,
                // Nothing takes it before the attempt has ended.
                None => return Err(Box::new(OwnReply::draining())),
            };
            if let Some(at) = head_at.0 {
                settling.head_came(at);
            }
            let looked_at = head_at.0.unwrap_or_else(Instant::now);
            outside += looked_at.saturating_duration_since(sent_at);
            let failed = match came {
                Came::Reply(reply) => {
                    self.shared.metrics.replied(&self.model.metrics, reply.head.status.as_u16());
                    self.measure(outside, stamp);
                    let end = earliest([attempt_end, self.reply_end]);
                    return Ok(self.pass_on(settings, *reply, settling, end, stamp));
                }
                Came::Failed(failed) => *failed,
            };
            self.count(&failed);
            if failed.by_caller {
                settling.cancelled(None);
                return Err(Box::new(OwnReply::invalid_body("the rest of the body did not arrive")));
            }
            let mut fault = failed.fault.clone();
            if !self.is_whole {
                // What has streamed through cannot be sent again.
                fault.should_retry = Some(false);
            }
            let reason = fault.kind.error_class();
            match settling.failed(fault, failed.usage) {
                Some(Settled::Retry(waiting)) if self.is_whole => {
                    self.shared.metrics.retry(reason, "retried");
                    let answer = failed.reply.filter(|reply| reply.rest.is_none());
                    tracing::debug!(id = %stamp.id(), fault = %failed.fault.summary, "will be tried again");
                    let granted = waiting.await;
                    stamp.queued_for = granted.as_ref().map_or_else(|refusal| refusal.waited, Permit::queued_for);
                    let own = match granted {
                        Ok(granted) if !self.is_over() => {
                            permit = granted;
                            continue;
                        }
                        Ok(late) => self.too_late(late),
                        Err(refusal) => self.refused(&refusal),
                    };
                    return match answer {
                        Some(answer) => Ok(self.last_answer(settings, *answer, stamp)),
                        None => Err(own),
                    };
                }
                settled => {
                    self.model.metrics.ended(self.priority, CallEnd::Failed);
                    self.measure(outside, stamp);
                    let given_up = match &settled {
                        Some(Settled::GiveUp(given_up)) => Some(given_up),
                        _ => None,
                    };
                    // A caller's mistake is no retry that failed.
                    if let Some(given_up) = given_up.filter(|given_up| given_up.reason != GiveUpReason::NotRetryable) {
                        self.shared.metrics.retry(reason, given_up.reason.name());
                    }
                    if let Some(answer) = failed.reply {
                        return Ok(self.last_answer(settings, *answer, stamp));
                    }
                    return Err(Box::new(match given_up {
                        Some(given_up) => OwnReply::gave_up(given_up, failed.may_be_billed),
                        None => {
                            let elapsed = Spoken(self.arrived_at.elapsed());
                            let message =
                                format!("gave up after 1 attempt in {elapsed}; last: {}.", failed.fault.summary);
                            OwnReply::upstream_failed(failed.fault.kind, message, failed.may_be_billed)
                        }
                    }));
                }
            }
        }
    }

    fn request(&mut self, body: SendBody) -> Request<SendBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        // What cannot be sent twice need not be kept for it.
        *request.headers_mut() = if self.is_whole { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        request
    }

    fn count(&self, failed: &Failed) {
        let metrics = &self.shared.metrics;
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
    }

    /// All the time that was neither the queue's nor the upstream's.
    fn measure(&self, outside: Duration, stamp: &Stamp) {
        let ours = self.arrived_at.elapsed().saturating_sub(outside).saturating_sub(stamp.queued_for);
        self.shared.metrics.overhead.observe(ours.as_secs_f64());
    }

    /// Passes a reply on, and settles with its end.
    fn pass_on(
        &self,
        settings: &Settings,
        reply: Reply,
        mut settling: Settling,
        end: Option<Instant>,
        stamp: &Stamp,
    ) -> Response<ReplyBody> {
        let Reply { mut head, held, rest, watch, usage, place } = reply;
        headers::clean_reply(&mut head.headers);
        if settings.has_own_limits
            && let Some(levels) = settling.permit().and_then(|permit| permit.own_levels())
        {
            put_levels(&mut head.headers, &levels);
        }
        stamp.put_on(&mut head.headers);
        let body = if rest.is_none() && matches!(watch, Watch::Nothing) && self.is_read {
            settling.succeeded(usage);
            held.into_body()
        } else {
            let bounds = (self.upstream.config.idle_timeout, end);
            ReplyBody::Passing(Box::new(Passing::new(held, rest, watch, Some(settling), bounds, place)))
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// Passes the upstream's last answer on as it is: what could be retried has been.
    fn last_answer(&self, settings: &Settings, reply: Reply, stamp: &Stamp) -> Response<ReplyBody> {
        let Reply { mut head, held, rest, place, .. } = reply;
        headers::clean_reply(&mut head.headers);
        if self.is_whole {
            head.headers.insert(headers::SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if settings.has_own_limits && head.status == StatusCode::TOO_MANY_REQUESTS {
            // It speaks of the upstream's limits, not of ours.
            headers::set_ratelimit_aside(&mut head.headers);
        }
        stamp.put_on(&mut head.headers);
        let body = match rest {
            None => held.into_body(),
            Some(rest) => {
                let bounds = (self.upstream.config.idle_timeout, self.reply_end);
                ReplyBody::Passing(Box::new(Passing::new(held, Some(rest), Watch::Nothing, None, bounds, place)))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }
}

/// OpenAI's names speak of the tightest limit of our own; the upstream's numbers are set aside.
fn put_levels(headers: &mut HeaderMap, levels: &tidegate_core::gate::OwnLevels) {
    headers::set_ratelimit_aside(headers);
    for (unit, level) in [("requests", levels.requests), ("tokens", levels.tokens)] {
        let Some((limit, remaining, full_after_micros)) = level else { continue };
        let reset = Spoken(Duration::from_micros(full_after_micros)).to_string();
        for (what, value) in [
            ("limit", HeaderValue::from(limit)),
            ("remaining", HeaderValue::from(remaining)),
            ("reset", HeaderValue::try_from(reset).unwrap_or_else(|_| HeaderValue::from_static("0s"))),
        ] {
            if let Ok(name) = http::HeaderName::try_from(format!("x-ratelimit-{what}-{unit}")) {
                headers.insert(name, value);
            }
        }
    }
}
