//! The layer that does all of it.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::fault::Fault;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::idle::IDLE_TIMEOUT;
use super::judge::Judge;
use super::look::{self, Looked};
use super::{Ready, Repeatable, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::calibrations::Lesson;
use crate::call::Call;
use crate::driver::Admission;
use crate::error::{BoxError, Error};
use crate::progress::Progress;
use crate::retry::{Failure, within_failing};
use crate::tidegate::{Next, Tidegate, next};

/// Limits, retries and the circuit breaker together, around a service.
///
/// A bound of concurrency belongs outside of it, or is a limit ([`Dimension::MaxInFlight`](crate::Dimension::MaxInFlight)): the
/// inner service is asked whether it is ready before a call has its turn, and a place that it gives out by that is held while
/// the call waits.
///
/// ```
/// # use tidegate::{RateLimitConfig, Tidegate};
/// # fn stack<S>(service: S) -> tidegate::TidegateService<S> {
/// use tidegate::TidegateLayer;
/// use tower_layer::Layer;
///
/// let tidegate = Tidegate::builder().limit(RateLimitConfig::default().with_requests_per_minute(500)).build();
/// TidegateLayer::new(tidegate).layer(service)
/// # }
/// ```
#[derive(Clone)]
pub struct TidegateLayer {
    tidegate: Tidegate,
    map: Option<MapCall>,
    judge: Judge,
    idle_timeout: Option<Duration>,
}

type MapCall = Arc<dyn Fn(Call) -> Call + Send + Sync>;

impl TidegateLayer {
    /// Shares `tidegate` with whatever else uses it.
    #[must_use]
    pub const fn new(tidegate: Tidegate) -> Self {
        Self { tidegate, map: None, judge: Judge::NONE, idle_timeout: Some(IDLE_TIMEOUT) }
    }

    /// Says more of calls than their requests do: for whom they are, how urgent, until when. Where `map` panics,
    /// that is contained and told, and the call goes as it was.
    #[must_use]
    pub fn map_call(mut self, map: impl Fn(Call) -> Call + Send + Sync + 'static) -> Self {
        self.map = Some(Arc::new(map));
        self
    }

    /// How long a reply may be silent while it is read before it counts as broken off. Absent: 300 s. `None`: for ever.
    #[must_use]
    pub const fn with_idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Judges errors of the service's own that nothing is known of here, or otherwise: what kind of failure each is. `None`: as
    /// it would be without. One that panics is contained and told.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&BoxError) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let driver = self.tidegate.driver().clone();
        self.judge = Judge::new(move |error| driver.contained("classify", || classify(error)).flatten());
        self
    }
}

impl fmt::Debug for TidegateLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TidegateLayer").field("tidegate", &self.tidegate).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for TidegateLayer {
    type Service = TidegateService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TidegateService { layer: self.clone(), inner }
    }
}

/// The service of a [`TidegateLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct TidegateService<S> {
    layer: TidegateLayer,
    inner: S,
}

impl<S, R> Service<R> for TidegateService<S>
where
    R: Repeatable,
    S: Service<R, Response: Reply, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    <S::Response as Reply>::Guarded: Send,
{
    type Response = <S::Response as Reply>::Guarded;
    type Error = Error;
    type Future = ReplyFuture<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let ready = Ready::take::<R>(&mut self.inner, &self.layer.judge);
        let TidegateLayer { tidegate, map, idle_timeout, .. } = self.layer.clone();
        let driver = tidegate.driver().clone();
        Box::pin(async move {
            let call = request.call().await.map_err(|error| Judge::NONE.failure(error).into_upstream())?;
            let call = driver.calibrations().applied(call);
            let call = match map {
                Some(map) => {
                    // Where it goes is the request's to say, also if `map` makes another call of it.
                    let endpoint = call.endpoint;
                    let mut mapped = driver.contained("map_call", || map(call.clone())).unwrap_or(call);
                    mapped.endpoint = mapped.endpoint.or(endpoint);
                    mapped
                }
                None => call,
            };
            let (max_wait, attempt_timeout, total_timeout) = driver.bounds();
            let total_timeout = [call.timeout, total_timeout].into_iter().flatten().min();
            let admitted = driver.admit(call.at(driver.now(), max_wait, total_timeout));
            let progress = Progress::default();
            let work = attempts(ready, request, &call, admitted, (attempt_timeout, idle_timeout), &progress);
            let Some(after) = total_timeout else { return work.await };
            tokio::time::timeout(after, work).await.unwrap_or_else(|_| Err(progress.timed_out(after)))
        })
    }
}

async fn attempts<R, S>(
    mut ready: Ready<S>,
    request: R,
    call: &Call,
    admitted: Admission,
    (attempt_timeout, idle_timeout): (Option<Duration>, Option<Duration>),
    progress: &Progress,
) -> Result<<S::Response as Reply>::Guarded, Error>
where
    R: Repeatable,
    S: Service<R, Response: Reply, Error: Into<BoxError>>,
{
    let mut request = Some(request);
    let mut permit = admitted.await?;
    loop {
        let Some(now) = request.take() else {
            // Only what could be made again is granted another attempt.
            return Err(Error::cancelled("the request could not be made again"));
        };
        request = now.again();
        permit.sent();
        let number = permit.attempt();
        progress.begins(number);
        let sent_at = Instant::now();
        let attempt = ready.attempt(now, call, |headers| permit.observe(&look::limits(headers)));
        let (fault, failed) = match within_failing(attempt_timeout, attempt).await {
            Ok(Looked { response, watch, fault: None }) => {
                let first_byte_after = Some(sent_at.elapsed());
                let guard = Guard {
                    permit: Some(permit),
                    lesson: Lesson::of(call),
                    first_byte_after,
                    idle_timeout,
                    ..Guard::default()
                };
                return finish::<S::Response>(response, watch, guard, call);
            }
            Ok(Looked { response, fault: Some(fault), .. }) => (fault, Ok(response)),
            Err(failure) => ((*failure.fault).clone(), Err(failure)),
        };
        let fault = if request.is_some() { fault } else { for_good(fault) };
        match (next(permit, &fault), failed) {
            (Next::Wait(waiting), failed) if request.is_some() => {
                // The failed reply's connection is not kept while waiting.
                progress.failed(Failure::of(fault, failed.err()));
                permit = waiting.await.map_err(|refusal| progress.refused(refusal))?;
            }
            (_, Ok(response)) => {
                return finish::<S::Response>(response, Watch::Nothing, Guard::default(), call);
            }
            (Next::GiveUp(reason), Err(failure)) => return Err(failure.into_error(number, reason)),
            (Next::Wait(_), Err(failure)) => return Err(failure.into_upstream()),
        }
    }
}
