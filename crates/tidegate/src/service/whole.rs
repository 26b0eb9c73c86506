//! The layer that does all of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::look::{self, Looked};
use super::{Ready, Repeatable, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::call::Call;
use crate::driver::Admission;
use crate::error::{BoxError, Error};
use crate::retry::within_failing;
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
}

type MapCall = Arc<dyn Fn(Call) -> Call + Send + Sync>;

impl TidegateLayer {
    /// Shares `tidegate` with whatever else uses it.
    #[must_use]
    pub const fn new(tidegate: Tidegate) -> Self {
        Self { tidegate, map: None }
    }

    /// Says more of calls than their requests do: for whom they are, how urgent, until when. Where `map` panics,
    /// that is contained and told, and the call goes as it was.
    #[must_use]
    pub fn map_call(mut self, map: impl Fn(Call) -> Call + Send + Sync + 'static) -> Self {
        self.map = Some(Arc::new(map));
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
        let ready = Ready::take::<R>(&mut self.inner);
        let (driver, map) = (self.layer.tidegate.driver().clone(), self.layer.map.clone());
        Box::pin(async move {
            let call = request.call().await.map_err(|error| look::failure(error).into_upstream())?;
            let call = match map {
                Some(map) => driver.contained("map_call", || map(call.clone())).unwrap_or(call),
                None => call,
            };
            let (max_wait, attempt_timeout, total_timeout) = driver.bounds();
            let total_timeout = [call.timeout, total_timeout].into_iter().flatten().min();
            let admitted = driver.admit(call.at(driver.now(), max_wait, total_timeout));
            let begun = AtomicU32::new(0);
            let work = attempts(ready, request, &call, admitted, attempt_timeout, &begun);
            let Some(after) = total_timeout else { return work.await };
            tokio::time::timeout(after, work).await.unwrap_or_else(|_| {
                let attempts = begun.load(Ordering::Relaxed);
                Err(Error::Timeout { after, attempts, may_be_billed: attempts > 0 })
            })
        })
    }
}

async fn attempts<R, S>(
    mut ready: Ready<S>,
    request: R,
    call: &Call,
    admitted: Admission,
    attempt_timeout: Option<Duration>,
    begun: &AtomicU32,
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
            return Err(Error::Cancelled { reason: "the request could not be made again".into() });
        };
        request = now.again();
        permit.sent();
        let number = permit.attempt();
        begun.store(number, Ordering::Relaxed);
        let sent_at = Instant::now();
        let attempt = ready.attempt(now, call, |headers| permit.observe(&look::limits(headers)));
        let (fault, failed) = match within_failing(attempt_timeout, attempt).await {
            Ok(Looked { response, watch, fault: None }) => {
                let guard = Guard { permit: Some(permit), attempt: None, first_byte_after: Some(sent_at.elapsed()) };
                return finish::<S::Response>(response, watch, guard, call);
            }
            Ok(Looked { response, fault: Some(fault), .. }) => (fault, Ok(response)),
            Err(failure) => ((*failure.fault).clone(), Err(failure)),
        };
        let fault = if request.is_some() { fault } else { for_good(fault) };
        match (next(permit, &fault), failed) {
            (Next::Wait(waiting), failed) if request.is_some() => {
                // The failed reply's connection is not kept while waiting.
                drop(failed);
                permit = waiting.await?;
            }
            (_, Ok(response)) => {
                return finish::<S::Response>(response, Watch::Nothing, Guard::default(), call);
            }
            (Next::GiveUp(reason), Err(failure)) => return Err(failure.into_error(number, reason)),
            (Next::Wait(_), Err(failure)) => return Err(failure.into_upstream()),
        }
    }
}
