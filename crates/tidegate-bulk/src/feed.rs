//! Decides in which order lines are read ahead: of each model group the small and the large ones in the measure in which they
//! stand in the whole, so that requests and tokens run out together; and never more than are needed to keep the limits busy.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tidegate_core::gate::Gate;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::call::{self, Shared};
use crate::input::{Fate, FeedPlan, Input, Survey};
use crate::line::{Line, Shape};
use crate::ramp::Ramp;
use crate::summary::Ending;

/// Calls of one model group that wait for their turn: enough for the queue to choose from.
const WAITING_MAX: usize = 128;
/// Lines that are read ahead of those.
const READ_AHEAD: usize = 16;
/// KiB of lines in memory, waiting or in flight.
const KIB_MAX: u32 = 256 << 10;

/// Sends everything that is to be sent, and returns when all of it has ended.
pub(crate) async fn send_all(shared: &Arc<Shared>, input: &Input, shape: &Arc<Shape>, survey: &Survey) {
    let mut feeds = JoinSet::new();
    let memory = Arc::new(Semaphore::new(KIB_MAX as usize));
    let unread = Arc::new(AtomicUsize::new(survey.feeds.iter().filter(|plan| plan.lines > 0).count()));
    for plan in survey.feeds.iter().filter(|plan| plan.lines > 0) {
        let read = |feed| read_ahead(shared, input, shape, survey, feed);
        let small = read(plan.small);
        let large = (plan.large != plan.small).then(|| read(plan.large));
        let feed = feed(shared.clone(), *plan, small, large, memory.clone());
        let (shared, unread) = (shared.clone(), unread.clone());
        feeds.spawn(async move {
            let mut calls = feed.await;
            if unread.fetch_sub(1, Relaxed) == 1 {
                shared.driver.with(Gate::nothing_follows);
            }
            while calls.join_next().await.is_some() {}
        });
    }
    while feeds.join_next().await.is_some() {}
}

type Ahead = mpsc::Receiver<(u64, Line)>;

/// Reads the lines of one feed in a thread of its own, as fast as they are taken.
fn read_ahead(shared: &Arc<Shared>, input: &Input, shape: &Arc<Shape>, survey: &Survey, feed: u8) -> Ahead {
    let (lines, ahead) = mpsc::channel(READ_AHEAD);
    let (shared, input, shape, fates) = (shared.clone(), input.clone(), shape.clone(), survey.fates.clone());
    tokio::task::spawn_blocking(move || {
        let changed = || Ending::Failed(format!("{} was changed while it was read", input.name()));
        let read = input.lines(|number, text| {
            if shared.ending.borrow().is_some() {
                return false;
            }
            if usize::try_from(number).ok().and_then(|number| fates.get(number - 1)) != Some(&Fate::Send(feed)) {
                return true;
            }
            match text.ok().and_then(|text| shape.read(number, text).ok()) {
                // Nobody takes lines any more: the run has ended.
                Some(line) => lines.blocking_send((number, line)).is_ok(),
                None => {
                    shared.end(changed());
                    false
                }
            }
        });
        if let Err(error) = read {
            shared.end(Ending::Failed(format!("cannot read {}: {error}", input.name())));
        }
    });
    ahead
}

/// Reads and begins every call of a feed, and hands them back when there are no more to come.
async fn feed(
    shared: Arc<Shared>,
    plan: FeedPlan,
    small: Ahead,
    large: Option<Ahead>,
    memory: Arc<Semaphore>,
) -> JoinSet<()> {
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    let mut calls = JoinSet::new();
    let mut lines = Mixed { plan, small: Some(small), large, lines: 0, tokens: 0 };
    let mut ramp = Ramp::default();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            let (number, line) = lines.next(ramp.is_first()).await?;
            ramp.go(&shared, &line).await;
            let kib = u32::try_from(line.body.len() >> 10).unwrap_or(u32::MAX).saturating_add(1).min(KIB_MAX);
            Some((place, memory.clone().acquire_many_owned(kib).await.ok()?, number, line))
        };
        let next = tokio::select! {
            biased;
            () = shared.ended() => None,
            next = next => next,
        };
        let Some((place, memory, number, line)) = next else { break };
        let shared = shared.clone();
        calls.spawn(async move {
            call::make(shared, number, line, place).await;
            drop(memory);
        });
        while calls.try_join_next().is_some() {}
    }
    calls
}

struct Mixed {
    plan: FeedPlan,
    /// `None`: there are no more.
    small: Option<Ahead>,
    large: Option<Ahead>,
    lines: u64,
    tokens: u64,
}

impl Mixed {
    /// `small`: rather a small one, whatever the measure.
    async fn next(&mut self, small: bool) -> Option<(u64, Line)> {
        loop {
            let is_below = !small && self.tokens <= self.plan.mean_tokens.saturating_mul(self.lines);
            let from = match (&self.small, &self.large) {
                (_, Some(_)) if is_below || self.small.is_none() => &mut self.large,
                _ => &mut self.small,
            };
            match from.as_mut()?.recv().await {
                Some((number, line)) => {
                    self.lines += 1;
                    self.tokens = self.tokens.saturating_add(line.asking.cost.input_tokens);
                    return Some((number, line));
                }
                None => *from = None,
            }
        }
    }
}
