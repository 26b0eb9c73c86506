//! The layer that only retries.

use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::fault::Fault;
use tidegate_core::retry::Decision;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::judge::Judge;
use super::look::Looked;
use super::{Ready, Repeatable, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::call::Call;
use crate::error::{BoxError, Error};
use crate::progress::Progress;
use crate::retry::{Failure, Retry, Run, within_failing};

/// Retries a service's calls.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    retry: Retry,
    judge: Judge,
}

impl RetryLayer {
    /// Shares the rules and the budget of `retry` with whatever else uses it.
    #[must_use]
    pub const fn new(retry: Retry) -> Self {
        Self { retry, judge: Judge::NONE }
    }

    /// Judges errors of the service's own that nothing is known of here, or otherwise: what kind of failure each is. `None`: as
    /// it would be without. One that panics is contained and told.
    #[must_use]
    pub fn classify(mut self, classify: impl Fn(&BoxError) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let retry = self.retry.clone();
        self.judge = Judge::new(move |error| retry.contained("classify", || classify(error)).flatten());
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { layer: self.clone(), inner }
    }
}

/// The service of a [`RetryLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct RetryService<S> {
    layer: RetryLayer,
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
        let ready = Ready::take::<R>(&mut self.inner, &self.layer.judge);
        let retry = self.layer.retry.clone();
        Box::pin(async move {
            let call = request.call().await.map_err(|error| Judge::NONE.failure(error).into_upstream())?;
            let progress = Progress::default();
            let (run, attempt_timeout, total_timeout) = retry.begin(&call, &progress);
            let work = attempts(ready, request, &call, run, attempt_timeout);
            let Some(after) = total_timeout else { return work.await };
            match tokio::time::timeout(after, work).await {
                Ok(result) => result,
                Err(_) => Err(retry.ran_out(&call, &progress, after)),
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
            return Err(Error::cancelled("the request could not be made again"));
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
                run.goes_on(Failure::of(fault, failed.err()));
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
