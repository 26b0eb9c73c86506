//! Decides how the program's own errors are told in the core's words, so that retry and breaker can judge them.

use tidegate_core::fault::{Fault, FaultKind};

use crate::error::{BoxError, Error};

/// An error that says what kind of failure it is.
///
/// An operation that fails with `anyhow::Error`, which is no [`std::error::Error`], maps it before: to a [`Fault`], or to a type of
/// the program's own around it that finds the cause by `downcast_ref`.
///
/// Of an error that says no more than its HTTP status, [`Fault::of_status`] is all there is to say:
///
/// ```
/// use tidegate::{Fault, ToFault};
///
/// struct Declined { status: u16 }
///
/// impl ToFault for Declined {
///     fn to_fault(&self) -> Fault {
///         Fault::of_status(self.status)
///     }
/// }
/// ```
pub trait ToFault {
    /// The same in the words that retry and breaker are written in.
    fn to_fault(&self) -> Fault;
}

impl ToFault for Fault {
    fn to_fault(&self) -> Fault {
        self.clone()
    }
}

impl ToFault for std::io::Error {
    fn to_fault(&self) -> Fault {
        use std::io::ErrorKind;
        let kind = match self.kind() {
            ErrorKind::TimedOut => FaultKind::Timeout,
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown => FaultKind::Connect,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => FaultKind::Broken,
            // A file that is missing says nothing of a service.
            _ => FaultKind::Unknown,
        };
        Fault::new(kind, self.kind().to_string())
    }
}

impl ToFault for tokio::time::error::Elapsed {
    fn to_fault(&self) -> Fault {
        Fault::new(FaultKind::Timeout, "not done in time")
    }
}

/// Judged by what is inside, as far as its type is known here or in what it was caused by.
///
/// Else it is [`FaultKind::Unknown`]: that a layer within sheds load, or a timeout of the program's own has passed, is not the
/// service's fault. A program that knows better says so, with a type of its own or a layer's `classify`.
impl ToFault for BoxError {
    fn to_fault(&self) -> Fault {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self.as_ref());
        while let Some(error) = cause {
            if let Some(fault) = known(error).filter(|fault| fault.kind != FaultKind::Unknown) {
                return fault;
            }
            // An error put into an `io::Error` is not its source.
            let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            cause = within.map_or_else(|| error.source(), |within| Some(within));
        }
        Fault::new(FaultKind::Unknown, "failed in a way that is not known")
    }
}

fn known(error: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    let fault = error.downcast_ref::<Error>().map(ToFault::to_fault);
    let fault = fault.or_else(|| error.downcast_ref::<Fault>().map(ToFault::to_fault));
    let fault = fault.or_else(|| error.downcast_ref::<std::io::Error>().map(ToFault::to_fault));
    let fault = fault.or_else(|| error.downcast_ref::<tokio::time::error::Elapsed>().map(ToFault::to_fault));
    #[cfg(feature = "reqwest")]
    let fault = fault.or_else(|| error.downcast_ref::<reqwest::Error>().map(ToFault::to_fault));
    #[cfg(feature = "openai")]
    let fault = fault.or_else(|| error.downcast_ref::<async_openai::error::OpenAIError>().map(ToFault::to_fault));
    fault
}
