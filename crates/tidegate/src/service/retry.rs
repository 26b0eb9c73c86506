//! The layer that only retries.

use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::retry::Decision;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::look::{self, Looked};
use super::{Ready, Repeatable, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::call::Call;
use crate::error::{BoxError, Error};
use crate::retry::{Retry, Run, within_failing};

/// Retries a service's calls.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    retry: Retry,
}

impl RetryLayer {
    /// Shares the rules and the budget of `retry` with whatever else uses it.
    #[must_use]
    pub const fn new(retry: Retry) -> Self {
        Self { retry }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { retry: self.retry.clone(), inner }
    }
}

/// The service of a [`RetryLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct RetryService<S> {
    retry: Retry,
    inner: S,
}

impl<S, R> Service<R> for RetryService<S>
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
        let retry = self.retry.clone();
        Box::pin(async move {
            let call = request.call().await.map_err(|error| look::failure(error).into_upstream())?;
            let begun = AtomicU32::new(0);
            let (run, attempt_timeout, total_timeout) = retry.begin(&call, &begun);
            let work = attempts(ready, request, &call, run, attempt_timeout);
            let Some(after) = total_timeout else { return work.await };
            match tokio::time::timeout(after, work).await {
                Ok(result) => result,
                Err(_) => Err(retry.ran_out(&call, begun.load(Ordering::Relaxed), after)),
            }
        })
    }
}

async fn attempts<R, S>(
    mut ready: Ready<S>,
    request: R,
    call: &Call,
    mut run: Run<'_>,
    attempt_timeout: Option<Duration>,
) -> Result<<S::Response as Reply>::Guarded, Error>
where
    R: Repeatable,
    S: Service<R, Response: Reply, Error: Into<BoxError>>,
{
    let mut request = Some(request);
    loop {
        let Some(now) = request.take() else {
            // Only what could be made again is given another attempt.
            return Err(Error::Cancelled { reason: "the request could not be made again".into() });
        };
        request = now.again();
        run.starts();
        let attempt = ready.attempt(now, call, |_| {});
        let (fault, failed) = match within_failing(attempt_timeout, attempt).await {
            Ok(Looked { response, fault: None, .. }) => {
                run.succeeded();
                return finish::<S::Response>(response, Watch::Nothing, Guard::default(), call);
            }
            Ok(Looked { response, fault: Some(fault), .. }) => (fault, Ok(response)),
            Err(failure) => ((*failure.fault).clone(), Err(failure)),
        };
        let fault = if request.is_some() { fault } else { for_good(fault) };
        match (run.failed(&fault), failed) {
            (Decision::Retry { delay }, failed) if request.is_some() => {
                // The failed reply's connection is not kept while waiting.
                drop(failed);
                tokio::time::sleep(delay).await;
            }
            (_, Ok(response)) => {
                return finish::<S::Response>(response, Watch::Nothing, Guard::default(), call);
            }
            (Decision::GiveUp(reason), Err(failure)) => return Err(failure.into_error(run.attempt(), reason)),
            (Decision::Retry { .. }, Err(failure)) => return Err(failure.into_upstream()),
        }
    }
}
