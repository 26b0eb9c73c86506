//! The layer that only keeps to limits.

use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::guard::{Guard, Watch};
use super::look::{self, Looked};
use super::{AsCall, Ready, Reply, ReplyFuture, finish, for_good, poll_ready};
use crate::error::{BoxError, Error};
use crate::limiter::RateLimiter;
use crate::tidegate::next;

/// Keeps a service's calls within limits: each waits its turn, and is settled when its reply has ended.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: RateLimiter,
}

impl RateLimitLayer {
    /// Shares `limiter` with whatever else uses it.
    #[must_use]
    pub const fn new(limiter: RateLimiter) -> Self {
        Self { limiter }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { limiter: self.limiter.clone(), inner }
    }
}

/// The service of a [`RateLimitLayer`]; clones share all but the inner service.
#[derive(Clone, Debug)]
pub struct RateLimitService<S> {
    limiter: RateLimiter,
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
        let mut ready = Ready::take::<R>(&mut self.inner);
        let limiter = self.limiter.clone();
        Box::pin(async move {
            let call = request.call().await.map_err(|error| look::failure(error).into_upstream())?;
            let mut permit = limiter.reserve(&call).await?.into_permit();
            permit.sent();
            match ready.attempt(request, &call, |_| {}).await {
                Ok(Looked { response, watch, fault: None }) => {
                    finish::<S::Response>(response, watch, Guard { permit: Some(permit), ..Guard::default() }, &call)
                }
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
