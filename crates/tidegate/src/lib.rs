//! Waits and sends: drives the decision core on tokio.

mod breaker;
mod call;
mod clock;
pub mod driver;
mod error;
mod events;
mod fault;
mod retry;
pub mod state;

pub use breaker::{BreakerAttempt, CallbackResult, CircuitBreaker};
pub use call::Call;
pub use driver::{Admission, Driver, Permit, Settled, Waiting, WeakDriver};
pub use error::{BoxError, Error};
pub use events::Events;
pub use fault::ToFault;
pub use retry::Retry;
pub use tidegate_core as core;
pub use tidegate_core::breaker::BreakerState;
pub use tidegate_core::call::{Priority, RequestType};
pub use tidegate_core::config::{BreakerConfig, Jitter, RetryConfig, RetryStrategyConfig};
pub use tidegate_core::event::Event;
pub use tidegate_core::fault::{Fault, FaultKind};
pub use tidegate_core::refusal::GiveUpReason;
pub use tidegate_core::retry::RetryStrategy;
