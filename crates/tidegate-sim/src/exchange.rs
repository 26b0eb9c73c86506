//! One request from its arrival to its end: the guard that counts it however it ends.

use std::sync::Arc;

use crate::ledger::LogEntry;
use crate::shared::{Place, Shared};

/// A request under way. Dropped before [`Exchange::finish`] it counts as cancelled by the client.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    entry: Option<LogEntry>,
    streaming: bool,
    /// Takes the output's tokens when the call ends.
    debit: Option<Place>,
}

impl Exchange {
    /// Counts a request in.
    pub(crate) fn begin(shared: &Arc<Shared>, entry: LogEntry) -> Self {
        shared.with_ledger(|ledger| {
            let stats = &mut ledger.stats;
            stats.received += 1;
            stats.in_flight += 1;
            stats.in_flight_max = stats.in_flight_max.max(stats.in_flight);
        });
        Exchange { shared: shared.clone(), entry: Some(entry), streaming: false, debit: None }
    }

    /// Notes what became known about it.
    pub(crate) fn note(&mut self, change: impl FnOnce(&mut LogEntry)) {
        if let Some(entry) = &mut self.entry {
            change(entry);
        }
    }

    /// The reply has begun to stream.
    pub(crate) fn streaming(&mut self) {
        self.streaming = true;
        self.shared.with_ledger(|ledger| {
            let stats = &mut ledger.stats;
            stats.streams_open += 1;
            stats.streams_open_max = stats.streams_open_max.max(stats.streams_open);
        });
    }

    /// The output's tokens are to be taken from there when the call ends.
    pub(crate) fn debit_output(&mut self, place: Place) {
        self.debit = Some(place);
    }

    /// It ended as the simulator meant it to end.
    pub(crate) fn finish(mut self) {
        self.end(false);
    }

    fn end(&mut self, cancelled: bool) {
        let Some(mut entry) = self.entry.take() else { return };
        if let Some(place) = self.debit.take() {
            self.shared.debit(&place, entry.output_tokens);
        }
        entry.finished_s = self.shared.elapsed().as_secs_f64();
        entry.cancelled = cancelled;
        if cancelled && !self.streaming {
            entry.status = 0;
        }
        self.shared.with_ledger(|ledger| {
            let stats = &mut ledger.stats;
            stats.in_flight -= 1;
            stats.streams_open -= u64::from(self.streaming);
            if cancelled {
                let counter = if self.streaming { &mut stats.cancelled_streams } else { &mut stats.cancelled_waiting };
                *counter += 1;
            }
            if entry.status != 0 {
                *stats.by_status.entry(entry.status).or_default() += 1;
            }
            stats.status_429 += u64::from(entry.status == 429);
            if (200..300).contains(&entry.status) && !cancelled {
                stats.input_tokens += entry.input_tokens;
                stats.output_tokens += entry.output_tokens;
            }
            ledger.record(entry);
        });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(true);
    }
}
