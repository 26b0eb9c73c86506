//! Decides how a mode ends: what is said on standard error, and the exit code.

use std::io::{self, Write};
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

/// Writes a result to standard output. Nobody who reads it any more, as behind `| head`, is no failure.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    match write(line) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(unwritten),
    }
}

/// As [`print()`], of what somebody has to get: it is a failure too where nobody reads it.
pub(crate) fn deliver(line: &str) -> Result<(), Failure> {
    write(line).map_err(unwritten)
}

fn write(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// That standard output cannot be written.
pub(crate) fn unwritten(error: io::Error) -> Failure {
    Failure::Failed(format!("cannot write to standard output: {error}"))
}
