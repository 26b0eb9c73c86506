//! The layer that only stops calling what has been failing.

use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::fault::Fault;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::idle::IDLE_TIMEOUT;
use super::judge::Judge;
use super::look::Looked;
use super::{AsCall, Ready, Reply, ReplyFuture, finish, poll_ready};
use crate::breaker::CircuitBreaker;
use crate::error::{BoxError, Error};

/// A circuit breaker around a service.
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer {
    breaker: CircuitBreaker,
    judge: Judge,
    idle_timeout: Option<Duration>,
}

impl CircuitBreakerLayer {
    /// Shares `breaker` with whatever else uses it.
    #[must_use]
    pub const fn new(breaker: CircuitBreaker) -> Self {
        Self { breaker, judge: Judge::NONE, idle_timeout: Some(IDLE_TIMEOUT) }
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
        let breaker = self.breaker.clone();
        self.judge = Judge::new(move |error| breaker.contained("classify", || classify(error)).flatten());
        self
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreakerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreakerService { layer: self.clone(), inner }
    }
}

/// The service of a [`CircuitBreakerLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct CircuitBreakerService<S> {
    layer: CircuitBreakerLayer,
    inner: S,
}

impl<S, R> Service<R> for CircuitBreakerService<S>
where
    R: AsCall,
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
        let mut ready = Ready::take::<R>(&mut self.inner, &self.layer.judge);
        let (breaker, idle_timeout) = (self.layer.breaker.clone(), self.layer.idle_timeout);
        Box::pin(async move {
            let call = request.call().await.map_err(|error| Judge::NONE.failure(error).into_upstream())?;
            let mut attempt = breaker.try_begin(&call)?;
            match ready.attempt(request, &call, |_| {}).await {
                Ok(Looked { response, watch, fault: None }) => {
                    attempt.replied();
                    let guard = Guard { attempt: Some(attempt), idle_timeout, ..Guard::default() };
                    finish::<S::Response>(response, watch, guard, &call)
                }
                Ok(Looked { response, fault: Some(fault), .. }) => {
                    attempt.failed(&fault);
                    finish::<S::Response>(response, Watch::Nothing, Guard::default(), &call)
                }
                Err(failure) => {
                    attempt.failed(&failure.fault);
                    Err(failure.into_upstream())
                }
            }
        })
    }
}
