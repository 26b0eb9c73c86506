//! tower layers: all of it, or one part, around any service that takes requests and gives HTTP replies.
//!
//! Outside in: deadline → admission (limits, queue and breaker in one step) → attempt timeout → the service. Admission is in the
//! future of `call`, as what a request costs is not known when a service is asked whether it is ready; what was ready is what is
//! called. Clones share everything. Dropping a future, or a reply before its end, cancels and gives back what was not used.
//!
//! An error reply is looked into, since it says what kind of fault it is, and so is the beginning of a good one, as an
//! error may come in band. A reply that is not retried goes to the caller as it came.

mod breaker;
mod guard;
mod idle;
mod judge;
mod limit;
mod look;
#[cfg(feature = "openai")]
pub(crate) mod openai;
#[cfg(feature = "reqwest")]
mod reqwest;
mod retry;
mod whole;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use tidegate_core::fault::Fault;
use tower_service::Service;

use crate::call::Call;
use crate::error::{BoxError, Error};
use crate::retry::Failure;

pub use breaker::{CircuitBreakerLayer, CircuitBreakerService};
pub use guard::GuardedBody;
pub use limit::{RateLimitLayer, RateLimitService};
pub use retry::{RetryLayer, RetryService};
pub use whole::{TidegateLayer, TidegateService};

use guard::{Guard, HeldBody, Watch};
use judge::Judge;
use look::Looked;

/// A request that says what it costs.
///
/// That of an [`http::Request`] is the [`Call`] in its extensions, where there is one:
///
/// ```
/// use tidegate::Call;
///
/// let body = br#"{"model": "gpt-4o", "max_tokens": 200, "messages": [{"role": "user", "content": "Hello"}]}"#;
/// let mut request = http::Request::post("https://api.openai.com/v1/chat/completions").body(body.to_vec()).unwrap();
/// let call = Call::of_openai(request.method().as_str(), request.uri().path(), request.body()).with_user("anna");
/// request.extensions_mut().insert(call);
/// ```
/// A call that was made by [`Call::new`] does as well: how its reply is to be read, the request's path says. For a request of a
/// type of one's own [`Call::with_endpoint`] says it.
pub trait AsCall: Send + Sized + 'static {
    /// What it wants, for whom, and how dear it is.
    fn call(&self) -> impl Future<Output = Result<Call, BoxError>> + Send;
}

/// A request that can be made again, for another attempt. Only layers that retry ask for it.
pub trait Repeatable: AsCall {
    /// The same once more. `None`: it can be sent but once.
    fn again(&self) -> Option<Self>;
}

/// A request that is sent but once, as its body cannot be made again: limits and breaker apply to it, retries do not.
///
/// ```
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
/// # use tidegate::{SentOnce, Tidegate, TidegateLayer};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # type Incoming = UnsyncBoxBody<Bytes, std::convert::Infallible>;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let client = service_fn(|_: Request<Incoming>| async {
/// #     Ok::<_, std::io::Error>(Response::new(Empty::<Bytes>::new()))
/// # });
/// let service = ServiceBuilder::new()
///     .map_request(SentOnce)
///     .layer(TidegateLayer::new(Tidegate::builder().build()))
///     .map_request(|SentOnce(request): SentOnce<Request<Incoming>>| request)
///     .service(client);
/// # service.oneshot(Request::new(Empty::new().boxed_unsync())).await.unwrap();
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SentOnce<R>(pub R);

impl<R: AsCall> AsCall for SentOnce<R> {
    fn call(&self) -> impl Future<Output = Result<Call, BoxError>> + Send {
        self.0.call()
    }
}

impl<R: AsCall> Repeatable for SentOnce<R> {
    fn again(&self) -> Option<Self> {
        None
    }
}

/// Without a [`Call`] in its extensions it is one of a model that is not known, with a token for each four bytes of its body
/// if that goes to an endpoint that takes tokens.
impl<B: Body + Send + 'static> AsCall for http::Request<B> {
    // Not an async function: that would hold the body by reference, and ask it to be `Sync`.
    fn call(&self) -> impl Future<Output = Result<Call, BoxError>> + Send {
        if let Some(call) = self.extensions().get::<Call>() {
            return std::future::ready(Ok(call.clone().or_endpoint(self.method().as_str(), self.uri().path())));
        }
        let call = Call::of_openai(self.method().as_str(), self.uri().path(), b"").of_account(self.headers());
        let bytes = self.body().size_hint().lower();
        let call = if call.endpoint.is_some() { call.with_input_tokens(bytes.div_ceil(4)) } else { call };
        std::future::ready(Ok(call))
    }
}

impl<B: Body + Clone + Send + 'static> Repeatable for http::Request<B> {
    fn again(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// An HTTP reply of some library.
pub trait Reply: Send + Sized + 'static {
    /// Its body.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    /// What callers get.
    type Guarded;

    /// Its head and body.
    fn into_http(self) -> http::Response<Self::Body>;

    /// The same with a body that settles the call when it ends.
    fn from_http(response: http::Response<GuardedBody<Self::Body>>) -> Self::Guarded;
}

impl<B> Reply for http::Response<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
    type Guarded = http::Response<GuardedBody<B>>;

    fn into_http(self) -> Self {
        self
    }

    fn from_http(response: http::Response<GuardedBody<B>>) -> Self::Guarded {
        response
    }
}

/// The future of a layer's service.
pub type ReplyFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// A service that has said that it is ready, and what it is asked again for further attempts.
struct Ready<S> {
    service: S,
    judge: Judge,
    was_called: bool,
}

impl<S> Ready<S> {
    /// Takes the service that is ready out of `place`, and leaves a clone, which has yet to become so.
    fn take<R>(place: &mut S, judge: &Judge) -> Self
    where
        S: Service<R> + Clone,
    {
        let clone = place.clone();
        Self { service: std::mem::replace(place, clone), judge: judge.clone(), was_called: false }
    }

    /// Makes one attempt and looks at what comes. `head` is told the reply's headers as soon as they are there.
    async fn attempt<R>(
        &mut self,
        request: R,
        call: &Call,
        head: impl FnOnce(&http::HeaderMap),
    ) -> Result<Looked<<S::Response as Reply>::Body>, Failure>
    where
        S: Service<R, Response: Reply, Error: Into<BoxError>>,
    {
        if std::mem::replace(&mut self.was_called, true) {
            let ready = std::future::poll_fn(|context| self.service.poll_ready(context)).await;
            ready.map_err(|error| self.judge.failure(error))?;
        }
        let response = self.service.call(request).await.map_err(|error| self.judge.failure(error))?.into_http();
        head(response.headers());
        look::look(response.map(HeldBody::new), call.endpoint).await
    }
}

/// The reply, for the caller.
fn finish<T: Reply>(
    response: http::Response<HeldBody<T::Body>>,
    watch: Watch,
    guard: Guard,
    call: &Call,
) -> Result<T::Guarded, Error> {
    Ok(T::from_http(response.map(|body| GuardedBody::new(body, watch, guard, call.cost.input_tokens))))
}

/// Of a request that cannot be made again no fault is worth another attempt.
fn for_good(mut fault: Fault) -> Fault {
    fault.should_retry = Some(false);
    fault
}

fn poll_ready<R, S>(service: &mut S, context: &mut Context<'_>) -> Poll<Result<(), Error>>
where
    S: Service<R, Error: Into<BoxError>>,
{
    service.poll_ready(context).map_err(|error| Judge::NONE.failure(error).into_upstream())
}
