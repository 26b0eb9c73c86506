//! Decides what goes to one reader, and when: as fast as it reads, and no faster.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::notice::{Notice, lost_text};
use super::places::Place;
use super::snapshot::EVERY;
use super::wanted::Wanted;
use crate::shared::Shared;

/// A comment after so long without anything else, so that both sides know that the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What happened together goes together, up to about this.
const PIECE_BYTES: usize = 32 << 10;
/// What a browser's own reader is to wait before it comes again.
const GREETING: &str = "retry: 2000\n\n";

/// What one reader is sent.
#[derive(Debug)]
pub(crate) struct Telling {
    pieces: mpsc::Receiver<Bytes>,
    /// Given back once there is nothing more to be sent.
    _place: Place,
}

impl Telling {
    pub(super) const fn new(pieces: mpsc::Receiver<Bytes>, place: Place) -> Self {
        Self { pieces, _place: place }
    }

    pub(crate) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.pieces.poll_recv(context)
    }
}

/// The task of one reader. It ends with its connection, with its right to read, or with the process.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) wanted: Wanted,
    pub(super) events: broadcast::Receiver<Arc<Notice>>,
    pub(super) pieces: mpsc::Sender<Bytes>,
    pub(super) is_over: watch::Receiver<bool>,
}

/// How everything stands, as one reader gets to see it.
struct Standing {
    shared: Arc<Shared>,
    /// The next time.
    look_at: Instant,
    last: Option<Instant>,
}

impl Standing {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, look_at: Instant::now(), last: None }
    }

    /// `None`: nobody has looked anew since.
    fn look(&mut self) -> Option<Arc<str>> {
        self.look_at = Instant::now() + EVERY;
        let Self { shared, last, .. } = self;
        shared.told.standing(shared, last)
    }
}

/// What has come for a reader.
enum Came {
    Piece(String),
    Last(String),
}

impl Reader {
    /// Sends `kept`, and then what happens; of `standing` also how everything stands. Nothing once it no longer `still_may` be read.
    pub(super) async fn read(
        mut self,
        kept: Vec<Arc<Notice>>,
        standing: Option<Arc<Shared>>,
        still_may: impl Fn() -> bool + Send,
    ) {
        let mut standing = standing.map(Standing::new);
        let mut piece = GREETING.to_owned();
        for notice in kept.iter().filter(|notice| self.wanted.has(notice)) {
            piece.push_str(notice.text());
        }
        drop(kept);
        piece.extend(standing.as_mut().and_then(Standing::look).as_deref());
        loop {
            if self.pieces.send(piece.into()).await.is_err() {
                return;
            }
            let next = self.next(standing.as_mut()).await;
            // Asked of every piece, also of one that only shows that the line is alive: who reads nothing ends as soon.
            if !still_may() {
                return;
            }
            piece = match next {
                None => return,
                Some(Came::Piece(next)) => next,
                Some(Came::Last(last)) => {
                    // Whether it is still read makes no difference now.
                    let _ = self.pieces.send(last.into()).await;
                    return;
                }
            };
        }
    }

    /// `None`: the reader is gone.
    async fn next(&mut self, mut standing: Option<&mut Standing>) -> Option<Came> {
        let mut piece = String::new();
        let heartbeat_at = Instant::now() + HEARTBEAT;
        while piece.is_empty() {
            let look_at = standing.as_ref().map_or(heartbeat_at, |standing| standing.look_at);
            tokio::select! {
                came = self.events.recv() => match came {
                    Ok(notice) => self.take(&notice, &mut piece),
                    Err(RecvError::Lagged(events)) => piece.push_str(&lost_text(events)),
                    Err(RecvError::Closed) => return None,
                },
                () = tokio::time::sleep_until(look_at), if standing.is_some() => {
                    piece.extend(standing.as_mut().and_then(|standing| standing.look()).as_deref());
                }
                () = tokio::time::sleep_until(heartbeat_at) => piece.push_str(":\n\n"),
                () = self.pieces.closed() => return None,
                _ = self.is_over.changed() => {
                    while self.take_more(&mut piece) {}
                    return Some(Came::Last(piece));
                }
            }
        }
        while piece.len() < PIECE_BYTES && self.take_more(&mut piece) {}
        Some(Came::Piece(piece))
    }

    /// False if nothing more is there now.
    fn take_more(&mut self, piece: &mut String) -> bool {
        match self.events.try_recv() {
            Ok(notice) => self.take(&notice, piece),
            Err(TryRecvError::Lagged(events)) => piece.push_str(&lost_text(events)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return false,
        }
        true
    }

    fn take(&self, notice: &Notice, piece: &mut String) {
        if self.wanted.has(notice) {
            piece.push_str(notice.text());
        }
    }
}
