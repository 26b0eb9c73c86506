//! Decides what the trail says of a time in which it could not be written, and of records that found no room.

use std::sync::atomic::Ordering::Relaxed;

use super::record::{Kind, Record};
use super::time::{now_micros, shown_time};
use super::trail::State;

/// By this number a record of an outage is known: when it began, in microseconds since 1970.
pub(super) const SINCE: &str = "since_us";

/// The record of an outage that is about to be over, and of how many are lost. `None`: there was none, and none are.
pub(super) fn gap(state: &State, untold: u64) -> Option<Record> {
    let lost_since = shown_time(state.untold_since());
    let failing_since = state.failing_since.load(Relaxed);
    if failing_since == 0 {
        let why = format!("from {lost_since} on, more came than could be written");
        let record = Record { why: Some(why.into()), ..Record::new(Kind::Gap, "lost").with("lost", untold) };
        return (untold > 0).then_some(record);
    }
    let (since, until) = (shown_time(failing_since), shown_time(now_micros()));
    let error = state.error().unwrap_or_default();
    let (what, why) = match untold {
        0 => ("interrupted", format!("nothing could be written from {since} to {until}: {error}")),
        _ => (
            "lost",
            format!(
                "nothing could be written from {since} to {until}, and from {lost_since} on, records found no room: {error}"
            ),
        ),
    };
    Some(outage(what, why, untold, failing_since))
}

/// The record of an outage since `since`.
pub(super) fn outage(what: &'static str, why: String, lost: u64, since: u64) -> Record {
    let record = Record { why: Some(why.into()), ..Record::new(Kind::Gap, what) };
    record.with("lost", lost).with(SINCE, since).bounded()
}

/// Says of a record that was turned down that it is there all the same.
pub(super) fn turned_down(sequence: u64) -> Record {
    let why = format!("record {sequence} was turned down, and did not happen: its commit failed, and was found later");
    Record { why: Some(why.into()), ..Record::new(Kind::Gap, "turned down") }.with("record", sequence)
}

/// Says how many records, before this one, were not covered by the head when the trail was opened.
pub(super) fn uncovered(records: u64) -> Record {
    let why = format!(
        "the head did not cover the newest {records} at the start, as after a kill: had more been cut off there, nobody could tell"
    );
    Record { why: Some(why.into()), ..Record::new(Kind::Gap, "uncovered") }.with("records", records)
}
