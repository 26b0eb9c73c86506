//! What is counted where calls are served, at one instant: all that alerts are judged by.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::spread::Spread;

/// Counts by name: of a limit, of an upstream and model.
pub type Counts = BTreeMap<Arc<str>, u64>;

/// How the counters stand. Those that count only ever rise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Calls that ended, whose caller did not leave before.
    pub calls: u64,
    /// Of them, those that failed: with the upstream's error, broken off, or turned away by a breaker.
    pub errors: u64,
    /// Calls that were let go after they had waited for a limit for a second or more.
    pub held: u64,
    /// Calls that a limit or a full queue turned away.
    pub refused: u64,
    /// Those that a limit held or refused, by the limit.
    pub limited: Counts,
    /// Those that failed at an upstream, by `upstream/model`.
    pub failed: Counts,
    /// Attempts after the first.
    pub retries: u64,
    /// From sending an attempt to the head of its reply.
    pub first_byte: Spread,
    /// Time in the queue.
    pub queue_wait: Spread,
    /// Time in tidegate, waiting left out.
    pub overhead: Spread,
    /// Audit records that could not be kept.
    pub audit_lost: u64,
    /// Whether audit records cannot be written at the moment.
    pub audit_is_down: bool,
    /// Stores that are out of reach at the moment.
    pub stores_down: u64,
    /// Breakers that are not closed at the moment, by name; half-open ones too: they let probes through and nothing else.
    pub breakers_open: Vec<String>,
    /// Callers that seem to go round their limits at the moment.
    pub suspected: Vec<String>,
}
