//! Decides how a mode ends: what is said on standard error, and the exit code.

use std::io::Write;
use std::process::ExitCode;

use crate::log;

/// Why a mode did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad usage or a bad configuration: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1.
    Failed(String),
    /// Bad configuration of which everything has been said: exit code 2.
    Told,
    /// Everything has been said: this exit code.
    Ended(u8),
}

/// The exit code, once what there is to say has been said.
pub(crate) fn exit_code(ended: Result<(), Failure>) -> ExitCode {
    let (message, code) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Told) => return ExitCode::from(2),
        Err(Failure::Ended(code)) => return ExitCode::from(code),
        Err(Failure::Usage(message)) => (message, 2),
        Err(Failure::Failed(message)) => (message, 1),
    };
    log::say(&format!("error: {message}"));
    ExitCode::from(code)
}

/// Writes a result to standard output.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::Failed(format!("cannot write to standard output: {error}")))
}
