//! The layer that only keeps to limits.

use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_core::fault::Fault;
use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::idle::IDLE_TIMEOUT;
use super::judge::Judge;
use super::look::Looked;
use super::{AsCall, Ready, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::calibrations::Lesson;
use crate::error::{BoxError, Error};
use crate::limiter::RateLimiter;
use crate::tidegate::next;

/// Keeps a service's calls within limits: each waits its turn, and is settled when its reply has ended.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: RateLimiter,
    judge: Judge,
    idle_timeout: Option<Duration>,
}

impl RateLimitLayer {
    /// Shares `limiter` with whatever else uses it.
    #[must_use]
    pub const fn new(limiter: RateLimiter) -> Self {
        Self { limiter, judge: Judge::NONE, idle_timeout: Some(IDLE_TIMEOUT) }
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
        let limiter = self.limiter.clone();
        self.judge = Judge::new(move |error| limiter.contained("classify", || classify(error)).flatten());
        self
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { layer: self.clone(), inner }
    }
}

/// The service of a [`RateLimitLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct RateLimitService<S> {
    layer: RateLimitLayer,
    inner: S,
}

impl<S, R> Service<R> for RateLimitService<S>
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
        let (limiter, idle_timeout) = (self.layer.limiter.clone(), self.layer.idle_timeout);
        Box::pin(async move {
            let call = request.call().await.map_err(|error| Judge::NONE.failure(error).into_upstream())?;
            let call = limiter.calibrations().applied(call);
            let mut permit = limiter.reserve(&call).await?.into_permit();
            permit.sent();
            match ready.attempt(request, &call, |_| {}).await {
                Ok(Looked { response, watch, fault: None }) => finish::<S::Response>(
                    response,
                    watch,
                    Guard { permit: Some(permit), lesson: Lesson::of(&call), idle_timeout, ..Guard::default() },
                    &call,
                ),
                Ok(Looked { response, fault: Some(fault), .. }) => {
                    // Settled by what the fault means for limits; whatever the core's rules of retry: nothing is tried again.
                    let _settled = next(permit, &for_good(fault));
                    finish::<S::Response>(response, Watch::Nothing, Guard::default(), &call)
                }
                Err(failure) => {
                    let _settled = next(permit, &for_good((*failure.fault).clone()));
                    Err(failure.into_upstream())
                }
            }
        })
    }
}
