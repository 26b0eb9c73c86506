//! Decides who is told what happens, as it happens, over the admin listener: Server-Sent Events.
//!
//! What has just happened is kept for those who come later. Who reads slowly misses the oldest and is told how many, and holds up
//! nobody. How everything stands is told once a second, while somebody reads. Prompts, completions and credentials are in no event.
//! Source: HTML standard, §9.2 (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

mod notice;
mod places;
mod reader;
mod snapshot;
mod wanted;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, HeaderName, Response};
use tidegate_core::config::AdminRole;
use tidegate_core::event::Event;
use tidegate_watch::audit::{Feed, Record};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::refusal::OwnReply;
use crate::reply::ReplyBody;
use crate::shared::{Shared, unix_now};
use crate::told::notice::{Notice, name_of};
use crate::told::places::{Places, Taken};
use crate::told::reader::Reader;
pub(crate) use crate::told::reader::Telling;
use crate::told::snapshot::Snapshots;
use crate::told::wanted::Wanted;

/// For one who reads slowly; beyond that the oldest are lost to that one.
const AHEAD_MAX: usize = 1024;
/// Of what calls bring about, and of all else, so many are kept for those who come later: a flood of the one leaves the other.
const KEPT: usize = 256;
/// When the process ends, readers have so long to take what is left.
const LAST_WITHIN: Duration = Duration::from_secs(1);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What happens, for any number of readers; clones tell the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Told(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    recent: Mutex<Recent>,
    sender: broadcast::Sender<Arc<Notice>>,
    places: Places,
    is_over: watch::Sender<bool>,
    snapshots: Snapshots,
}

/// What has just happened.
#[derive(Debug, Default)]
struct Recent {
    last_id: u64,
    of_calls: VecDeque<Arc<Notice>>,
    others: VecDeque<Arc<Notice>>,
}

impl Default for Told {
    fn default() -> Self {
        Self(Arc::new(Inner {
            recent: Mutex::default(),
            sender: broadcast::Sender::new(AHEAD_MAX),
            places: Places::default(),
            is_over: watch::Sender::new(false),
            snapshots: Snapshots::default(),
        }))
    }
}

impl Told {
    /// Tells of an event that has a record.
    pub(crate) fn recorded(&self, event: &Event, record: &Record) {
        self.noted(name_of(event), record);
    }

    /// Tells of something else that has a record, under a name that an event has.
    pub(crate) fn noted(&self, name: &'static str, record: &Record) {
        self.tell(|id| Some(Notice::of_record(id, name, record)));
    }

    /// Tells of an event that is worth no record, if it is worth telling.
    pub(crate) fn unrecorded(&self, event: &Event, feed: &Feed) {
        self.tell(|id| Notice::of_event(id, event, feed));
    }

    /// So many events could not be told.
    pub(crate) fn missed(&self, events: u64) {
        self.tell(|id| Some(Notice::lost(id, events)));
    }

    fn tell(&self, notice: impl FnOnce(u64) -> Option<Notice>) {
        let mut recent = self.recent();
        // Grows from one process to the next too, so that a reader goes on where it was.
        let id = u64::try_from(unix_now().as_micros()).unwrap_or(u64::MAX).max(recent.last_id + 1);
        let Some(notice) = notice(id) else { return };
        recent.last_id = id;
        let notice = Arc::new(notice);
        let kept = if notice.is_of_call() { &mut recent.of_calls } else { &mut recent.others };
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(notice.clone());
        // Nobody reading is no failure.
        let _ = self.0.sender.send(notice);
    }

    /// What has happened after `last_id`, and all that will.
    fn since(&self, last_id: u64) -> (Vec<Arc<Notice>>, broadcast::Receiver<Arc<Notice>>) {
        let recent = self.recent();
        let mut kept: Vec<_> = recent.of_calls.iter().chain(&recent.others).cloned().collect();
        kept.retain(|notice| notice.id() > last_id);
        kept.sort_by_key(|notice| notice.id());
        (kept, self.0.sender.subscribe())
    }

    /// How everything stands, where that is new since `after`.
    fn standing(&self, shared: &Shared, after: &mut Option<Instant>) -> Option<Arc<str>> {
        self.0.snapshots.text(shared, after)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets readers take what has happened up to now, and ends.
    pub(crate) async fn end(&self) {
        self.0.is_over.send_replace(true);
        if tokio::time::timeout(LAST_WITHIN, self.0.places.all_left()).await.is_err() {
            tracing::debug!("somebody who reads what happens did not read to the end");
        }
    }
}

/// Answers one of this role with what happens from now on, after what has just happened, as long as he `still_may` read it.
///
/// # Errors
/// A query that asks for something else, too many readers, or the end of the process.
pub(crate) fn answer(
    shared: &Arc<Shared>,
    query: &str,
    headers: &HeaderMap,
    role: AdminRole,
    still_may: impl Fn() -> bool + Send + 'static,
) -> Result<Response<ReplyBody>, Box<OwnReply>> {
    let pseudonyms = shared.audit.place().and_then(|(_, pseudonyms)| pseudonyms);
    let wanted = Wanted::asked(query, pseudonyms).map_err(|message| Box::new(OwnReply::bad_request(message)))?;
    let told = &shared.told.0;
    let is_over = told.is_over.subscribe();
    if *is_over.borrow() {
        return Err(Box::new(OwnReply::draining()));
    }
    let place = told.places.take(role).map_err(|Taken(places, whose)| OwnReply::too_many_readers(places, whose))?;
    let last_id = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok()).unwrap_or(0);
    let (kept, events) = shared.told.since(last_id);
    // One piece waits for the socket, the next for its turn: what else happens waits in `events`, which is bounded.
    let (pieces, telling) = mpsc::channel::<Bytes>(1);
    let standing = wanted.has_standing().then(|| shared.clone());
    tokio::spawn(Reader { wanted, events, pieces, is_over }.read(kept, standing, still_may));
    let mut response = Response::new(ReplyBody::Told(Telling::new(telling, place)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy in between is not to keep events back until there are many.
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tidegate_watch::audit::Kind;

    use super::*;

    #[test]
    fn a_flood_of_refusals_leaves_what_operators_did() {
        let told = Told::default();
        told.noted("override_applied", &Record::new(Kind::Override, "applied"));
        for _ in 0..10 * KEPT {
            told.noted("refused", &Record { call: Some("c".into()), ..Record::new(Kind::Throttle, "refused") });
        }
        let (kept, _) = told.since(0);
        assert_eq!(kept.len(), KEPT + 1);
        assert!(kept[0].text().contains("event: override_applied\n"), "{}", kept[0].text());
        let (newer, _) = told.since(kept[KEPT - 1].id());
        assert_eq!(newer.len(), 1, "each is told once");
        assert_eq!(newer[0].id(), kept[KEPT].id());
    }

    #[tokio::test]
    async fn who_reads_slowly_is_told_how_much_is_missing() {
        let told = Told::default();
        let (kept, events) = told.since(0);
        let (pieces, mut telling) = mpsc::channel(1);
        let is_over = told.0.is_over.subscribe();
        let reading = Reader { wanted: Wanted::default(), events, pieces, is_over }.read(kept, None, || true);
        tokio::spawn(reading);
        let all = 3 * AHEAD_MAX;
        for _ in 0..all {
            told.noted("refused", &Record { call: Some("c".into()), ..Record::new(Kind::Throttle, "refused") });
        }
        told.end().await;
        let mut text = String::new();
        while let Some(piece) = telling.recv().await {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        let lost = text.lines().filter_map(|line| line.strip_prefix("data: {\"events\":")?.strip_suffix('}'));
        let lost: usize = lost.map(|events| events.parse::<usize>().unwrap()).sum();
        assert!(lost > 0, "{lost}");
        assert_eq!(lost + text.matches("event: refused").count(), all);
    }
}
