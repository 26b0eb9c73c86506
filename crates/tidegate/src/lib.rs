//! Waits and sends: drives the decision core on tokio.

mod breaker;
mod call;
mod clock;
pub mod driver;
mod error;
mod events;
mod fault;
mod limiter;
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
pub use error::{BoxError, Error};
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
    AsCall, CircuitBreakerLayer, CircuitBreakerService, GuardedBody, RateLimitLayer, RateLimitService, Reply,
    ReplyFuture, RetryLayer, RetryService, TidegateLayer, TidegateService,
};
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
