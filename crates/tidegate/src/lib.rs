//! Keeps a program that calls the OpenAI API inside its limits, retries what is worth retrying, and stops calling when the
//! API is down. No proxy, no process of its own.
//!
//! Three parts, each alone or all together:
//!
//! | to | alone | as a [tower] layer |
//! |---|---|---|
//! | keep to limits | [`RateLimiter`] | [`RateLimitLayer`] |
//! | try again | [`Retry`] | [`RetryLayer`] |
//! | stop calling what fails | [`CircuitBreaker`] | [`CircuitBreakerLayer`] |
//! | do all of it | [`Tidegate`] | [`TidegateLayer`] |
//!
//! Prefer all of it to three parts put into one another: one state machine then decides in one step, so that nothing is sent
//! while the breaker is open, no place in a limit is held while waiting for another, a rate limit queues again with its age,
//! and there is one owner of retries.
//!
//! # Any operation
//! A [`Call`] says what is wanted, for whom and how dearly; a closure does it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tidegate::Error> {
//! use std::time::Duration;
//! use tidegate::{BreakerConfig, Call, Fault, Priority, RateLimitConfig, RetryConfig, Tidegate, Usage};
//!
//! let tidegate = Tidegate::builder()
//!     .limit(RateLimitConfig::default().with_requests_per_minute(500).with_tokens_per_minute(30_000))
//!     .retry(RetryConfig::default().with_max_attempts(4).with_attempt_timeout(Duration::from_secs(60)))
//!     .breaker(BreakerConfig::default().with_failure_threshold(5))
//!     .build();
//!
//! # async fn send() -> Result<(String, Usage), Fault> { Ok(("Hello.".into(), Usage::new(1180, 95))) }
//! let call = Call::new("gpt-4o").with_user("anna").with_tokens(1200, 300).with_priority(Priority::High);
//! let answer = tidegate
//!     .execute(&call, |attempt| async move {
//!         let (answer, usage) = send().await?;
//!         attempt.used(usage);
//!         Ok::<_, Fault>(answer)
//!     })
//!     .await?;
//! # assert_eq!(answer, "Hello.");
//! # Ok(())
//! # }
//! ```
//!
//! An error of the operation says what kind of failure it is through [`ToFault`]; of one that has only an HTTP status
//! [`Fault::of_status`] is all there is to say.
//!
//! # Limits alone
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tidegate::Error> {
//! use tidegate::{Call, Error, RateLimitConfig, RateLimiter, Usage};
//!
//! let limiter = RateLimiter::new(RateLimitConfig::default().with_requests_per_minute(1));
//! let call = Call::new("gpt-4o").with_user("anna");
//! limiter.reserve(&call).await?.settle(Usage::new(0, 0));
//!
//! match limiter.try_reserve(&call) {
//!     Err(Error::Refused { limit, retry_after, .. }) => {
//!         assert_eq!((limit.allowed, limit.used, limit.requested), (1, 1, 1));
//!         assert!(retry_after.is_some());
//!     }
//!     other => panic!("{other:?}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Within async-openai (feature `openai`)
#![cfg_attr(feature = "openai", doc = "```no_run")]
#![cfg_attr(not(feature = "openai"), doc = "```text")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use async_openai::config::OpenAIConfig;
//! use tidegate::Tidegate;
//!
//! // All of its API: chat, responses, embeddings, files, streams. Limits are learned from the replies.
//! let client = tidegate::openai_client(OpenAIConfig::default(), &Tidegate::builder().build());
//! let files = client.files().list().await?;
//! # Ok(())
//! # }
//! ```
//! [`Provider`] sends a message and gives its answer chunk by chunk.
//!
//! # Around reqwest, or any service that gives HTTP replies (features `reqwest`, `tower`)
#![cfg_attr(feature = "reqwest", doc = "```no_run")]
#![cfg_attr(not(feature = "reqwest"), doc = "```text")]
//! use tidegate::{Tidegate, TidegateLayer};
//! use tower::ServiceBuilder;
//!
//! # async fn run() {
//! let tidegate = Tidegate::builder().build();
//! let service = ServiceBuilder::new().layer(TidegateLayer::new(tidegate)).service(reqwest::Client::new());
//! # }
//! ```
//! What a request costs is read from it ([`AsCall`]); a reply is settled when its body ends, a stream with what went by where
//! its reader leaves. One that is silent for five minutes while it is read breaks off
//! ([`with_idle_timeout`](TidegateLayer::with_idle_timeout)).
//!
//! A request is copied for another attempt ([`Repeatable`]); one whose body cannot be goes as [`SentOnce`]. An error of the
//! service's own of a type that is not known here is neither retried nor held against it, unless
//! [`classify`](TidegateLayer::classify) says what it is.
//!
//! # What happened
//! `subscribe` of any part gives every [`Event`] from then on. A subscriber that falls behind is told how many it missed;
//! none slows a call, and while nobody listens no event is made.
//!
//! # Configuration
//! [`RateLimitConfig`], [`RetryConfig`] and [`BreakerConfig`] have builders and read any format that serde reads, by the rules
//! of tidegate's own files: `max_attempts`, `base_delay = "500ms"`, or in camelCase `baseDelay: 500`.
//!
//! ```
//! # fn main() -> Result<(), serde_json::Error> {
//! let retry: tidegate::RetryConfig = serde_json::from_str(r#"{"maxAttempts": 5, "baseDelay": 500, "jitter": "full"}"#)?;
//! # assert_eq!(retry.max_attempts, 5);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! None by default: no HTTP is compiled. `tower`: the layers. `reqwest`: the same around its client. `openai`: the same within
//! async-openai, and the provider. Needs tokio, and Rust 1.89.
//!
//! TLS is rustls'. With `openai`, ring encrypts unless the program has chosen otherwise before; that needs a C compiler. With
//! `reqwest` alone the program chooses: `rustls::crypto::CryptoProvider::install_default`, before it makes a client.
//!
//! What is made on one runtime, or outside of any, may be used on another, for example from a `static`, also when the first has
//! ended. While it has not, it must be driven: one timer serves all that wait, and a `current_thread` runtime that nobody is in
//! `block_on` of stands still with it.
//!
//! [tower]: https://docs.rs/tower

#![deny(missing_docs)]
#![cfg_attr(not(feature = "openai"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod breaker;
#[cfg(feature = "tower")]
mod calibrations;
mod call;
mod clock;
pub mod driver;
mod error;
mod events;
mod fault;
mod limiter;
mod progress;
#[cfg(feature = "openai")]
mod provider;
mod retry;
#[cfg(feature = "tower")]
mod service;
pub mod state;
mod tidegate;

pub use self::tidegate::{Tidegate, TidegateBuilder};
pub use breaker::{BreakerAttempt, CallbackResult, CircuitBreaker};
pub use call::Call;
pub use driver::{Admission, Attempt, Driver, Permit, Settled, Waiting, WeakDriver};
pub use error::{BoxError, Earlier, Error};
pub use events::Events;
pub use fault::ToFault;
pub use limiter::{Check, LimitInfo, LimitType, RateLimiter, Reservation};
#[cfg(feature = "openai")]
pub use provider::{Content, Message, MessageChunk, MessageRequest, MessageStream, Provider};
pub use retry::Retry;
#[cfg(feature = "openai")]
pub use service::openai::openai_client;
#[cfg(feature = "tower")]
pub use service::{
    AsCall, CircuitBreakerLayer, CircuitBreakerService, GuardedBody, RateLimitLayer, RateLimitService, Repeatable,
    Reply, ReplyFuture, RetryLayer, RetryService, SentOnce, TidegateLayer, TidegateService,
};
/// What decides: for what has no method here. Of the same version always, and as much of this crate's interface as the rest.
pub use tidegate_core as core;
pub use tidegate_core::breaker::BreakerState;
pub use tidegate_core::call::{Priority, RequestType};
pub use tidegate_core::config::{
    BreakerConfig, Jitter, Policy, QueueConfig, RateLimitConfig, RetryConfig, RetryStrategyConfig,
};
pub use tidegate_core::cost::Usage;
pub use tidegate_core::event::Event;
pub use tidegate_core::fault::{Fault, FaultKind};
pub use tidegate_core::limit::{Dimension, Scope};
pub use tidegate_core::refusal::{BreakerReport, GiveUpReason, LimitReport};
pub use tidegate_core::retry::RetryStrategy;
