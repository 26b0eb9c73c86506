//! Decides who goes next when a lot may have room: asks its lanes' heads in turn.
//!
//! A head that fits goes. A head bound by this very meter keeps its place, and nobody overtakes it here. A head bound by
//! another meter moves to that one's lot; it has been passed by, and the next time it must wait it is promised room
//! (earmarks) on all its levels at once.

use super::{Gate, State, Ticket, Timer};
use crate::breaker::BreakerSays;
use crate::call::{Priority, WhenOpen};
use crate::gate::admission::Verdict;
use crate::meter::{Earmark, Obstacle};
use crate::queue::LaneId;
use crate::time::{Time, Wait};

/// Heads behind one that waits for another's earmark that are looked at: they may be small enough to pass.
const LOOK_BEHIND: usize = 8;

/// What became of a class's first lane in a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// Its head was let go.
    Went,
    /// It is bound by this meter: it keeps its place for so long.
    Holds(Wait, Obstacle),
    /// No lane of the class is left here.
    Nobody,
}

impl Gate {
    /// Serves every lot that inputs have stirred, until nothing more can go.
    pub(super) fn serve_stirred(&mut self) {
        while let Some(meter) = self.stirred.pop() {
            if self.ledger.meters.get(meter).is_some_and(|meter| !meter.lot.is_empty()) {
                self.serve(meter);
            }
        }
    }

    fn serve(&mut self, meter: u32) {
        loop {
            let turns: smallvec::SmallVec<[Priority; 3]> = self.ledger.meters[meter].lot.classes_in_turn().collect();
            let mut soonest: Option<Wait> = None;
            let mut went = false;
            for class in turns {
                match self.serve_class(meter, class) {
                    Served::Went => {
                        went = true;
                        break;
                    }
                    Served::Nobody => {}
                    Served::Holds(wait, Obstacle::Reserve) => {
                        soonest = Some(soonest.map_or(wait, |other| other.min(wait)))
                    }
                    Served::Holds(wait, Obstacle::Shortage | Obstacle::Earmark) => {
                        self.ledger.meters[meter].lot.is_short(class);
                        // It is this class's turn: the others do not take what it waits for.
                        soonest = Some(soonest.map_or(wait, |other| other.min(wait)));
                        break;
                    }
                }
            }
            if went {
                continue;
            }
            if let Some(wait) = soonest.filter(|wait| *wait != Wait::UNTIL_EVENT) {
                let at = self.clock + wait;
                let lot = &mut self.ledger.meters[meter];
                // An earlier look is kept: it will find out what has changed since.
                if lot.lot.wake_at > at || lot.lot.wake_at <= self.clock {
                    lot.lot.wake_at = at;
                    let epoch = lot.epoch;
                    self.set_timer(at, Timer::Lot { meter, epoch });
                }
            }
            return;
        }
    }

    fn serve_class(&mut self, meter: u32, class: Priority) -> Served {
        loop {
            let Some(lane) = self.queue.first(class, &mut self.ledger.meters[meter].lot) else { return Served::Nobody };
            let Some(ticket) = self.head(lane) else {
                self.unpark(lane);
                continue;
            };
            match self.ask(ticket, lane, self.reserve_permille) {
                Asked::Refused => {}
                Asked::Says(Verdict::Go) => {
                    self.let_go(ticket, lane, meter);
                    return Served::Went;
                }
                Asked::Says(Verdict::Never { meter: too_small }) => self.refuse_for_good(ticket, too_small),
                Asked::Says(Verdict::Wait { meter: binding, wait, obstacle }) if binding == meter => match obstacle {
                    Obstacle::Reserve if self.ledger.meters[meter].lot.higher_is_short(class) => {
                        // The reserve is spent and those it was kept for wait too: now shares decide.
                        return match self.ask(ticket, lane, 0) {
                            Asked::Says(Verdict::Go) => {
                                self.let_go(ticket, lane, meter);
                                Served::Went
                            }
                            Asked::Says(Verdict::Wait { wait, .. }) => Served::Holds(wait, Obstacle::Shortage),
                            Asked::Says(Verdict::Never { .. }) | Asked::Refused => {
                                Served::Holds(wait, Obstacle::Shortage)
                            }
                        };
                    }
                    Obstacle::Earmark => {
                        if self.pass_small_ones(meter, class) {
                            return Served::Went;
                        }
                        self.earmark(ticket, lane, wait);
                        return Served::Holds(wait, obstacle);
                    }
                    Obstacle::Reserve => {
                        // Who cannot wait may have taken of what is kept; its part of what flows in it gets all the same.
                        self.earmark(ticket, lane, wait);
                        return Served::Holds(wait, obstacle);
                    }
                    Obstacle::Shortage => {
                        self.demand(ticket);
                        self.earmark(ticket, lane, wait);
                        return Served::Holds(wait, obstacle);
                    }
                },
                Asked::Says(Verdict::Wait { meter: binding, wait, .. }) => {
                    self.demand(ticket);
                    self.queue.lane_mut(lane).bypassed = true;
                    self.earmark(ticket, lane, wait);
                    self.unpark(lane);
                    self.queue.park(lane, binding, &mut self.ledger.meters[binding].lot);
                    self.wake_lot(binding, wait);
                }
            }
        }
    }

    fn head(&mut self, lane: LaneId) -> Option<Ticket> {
        let entries = &self.entries;
        self.queue.head(lane, |ticket| {
            entries
                .get(ticket.index())
                .is_some_and(|entry| entry.generation == ticket.generation && entry.state == State::Waiting)
        })
    }

    fn unpark(&mut self, lane: LaneId) {
        if let Some(at) = self.queue.lane(lane).parked_at {
            self.queue.unpark(lane, &mut self.ledger.meters[at].lot);
        }
    }

    /// Asks breaker and meters about the head of a lane.
    fn ask(&mut self, ticket: Ticket, lane: LaneId, reserve_permille: u64) -> Asked {
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let (route, class, when_open) = (entry.route, entry.class, entry.when_open);
        let (cost, charged) = (entry.cost, entry.own_request_charged);
        let target = self.routes[route].target;
        match self.targets[target].breaker.says(now) {
            BreakerSays::Go => {}
            _ if when_open == WhenOpen::Refuse => {
                self.refuse_for_breaker(ticket);
                return Asked::Refused;
            }
            BreakerSays::NotBefore(at) => {
                let (meter, wait) = (self.targets[target].waits_for_breaker, Wait::from_micros(at.micros_since(now)));
                return Asked::Says(Verdict::Wait { meter, wait, obstacle: Obstacle::Shortage });
            }
            BreakerSays::NotUntilChange => {
                let (meter, wait) = (self.targets[target].waits_for_breaker, Wait::UNTIL_EVENT);
                return Asked::Says(Verdict::Wait { meter, wait, obstacle: Obstacle::Shortage });
            }
        }
        self.refresh_route(route);
        // What is known of the upstream may have changed since it began to wait.
        let amounts = self.amounts(route, &cost, charged);
        self.entries[ticket.index()].amounts = amounts;
        Asked::Says(self.verdict(route, &amounts, class, Some(lane), reserve_permille))
    }

    fn let_go(&mut self, ticket: Ticket, lane: LaneId, meter: u32) {
        self.grant(ticket, Some((lane, meter)));
        if self.head(lane).is_some() {
            self.queue.park_again(lane, &mut self.ledger.meters[meter].lot);
        } else {
            self.unpark(lane);
        }
    }

    /// Lets one of those behind a head go that waits for another's earmark, if it is small enough to delay nobody.
    fn pass_small_ones(&mut self, meter: u32, class: Priority) -> bool {
        for lane in self.queue.behind_first(class, &self.ledger.meters[meter].lot, LOOK_BEHIND) {
            let Some(ticket) = self.head(lane) else { continue };
            if self.ask(ticket, lane, self.reserve_permille) == Asked::Says(Verdict::Go) {
                self.let_go(ticket, lane, meter);
                return true;
            }
        }
        false
    }

    /// Promises room to a head that has been passed by: on all its levels, or on none.
    fn earmark(&mut self, ticket: Ticket, lane: LaneId, wait: Wait) {
        if !self.queue.lane(lane).bypassed {
            return;
        }
        if wait == Wait::UNTIL_EVENT {
            // Nobody knows when it can go: others are not held up for it meanwhile.
            self.release_earmarks(lane);
            return;
        }
        let now = self.clock;
        let entry = &self.entries[ticket.index()];
        let meters = self.routes[entry.route].meters.clone();
        let amounts = entry.amounts;
        let taken = meters.iter().any(|meter| {
            let meter = &self.ledger.meters[*meter];
            amounts.of(meter) > 0 && meter.earmark.is_some_and(|earmark| earmark.lane != lane && !earmark.is_over(now))
        });
        if taken {
            return;
        }
        let at = now + wait;
        for id in meters {
            let meter = &mut self.ledger.meters[id];
            let amount = amounts.of(meter);
            if amount > 0 && meter.enforce && meter.dimension.period_micros().is_some() {
                let cost = meter.to_earmark(amount, now);
                meter.earmark = Some(Earmark { lane, at, cost });
            }
        }
        self.queue.lane_mut(lane).earmarked = true;
    }

    /// Takes a lane's promises back: its head has gone, in whatever way.
    pub(super) fn release_earmarks(&mut self, lane: LaneId) {
        if !std::mem::take(&mut self.queue.lane_mut(lane).earmarked) {
            return;
        }
        let route = self.queue.lane(lane).route;
        let meters = self.routes[route].meters.clone();
        for id in meters {
            let meter = &mut self.ledger.meters[id];
            if meter.earmark.is_some_and(|earmark| earmark.lane == lane) {
                meter.earmark = None;
                if !meter.lot.is_empty() {
                    self.stirred.push(id);
                }
            }
        }
    }

    /// Looks at a lot again after `wait`, if not sooner.
    pub(super) fn wake_lot(&mut self, meter: u32, wait: Wait) {
        if wait == Wait::UNTIL_EVENT {
            return;
        }
        let at = self.clock + wait;
        let lot = &mut self.ledger.meters[meter];
        if lot.lot.wake_at > at || lot.lot.wake_at <= self.clock {
            lot.lot.wake_at = at;
            let epoch = lot.epoch;
            self.set_timer(at, Timer::Lot { meter, epoch });
        }
    }

    pub(super) fn stir(&mut self, meter: u32) {
        if self.ledger.meters.get(meter).is_some_and(|meter| !meter.lot.is_empty()) {
            self.stirred.push(meter);
        }
    }

    pub(super) fn lot_is_due(&mut self, meter: u32, epoch: u64, now: Time) {
        if let Some(found) = self.ledger.meters.get_mut(meter).filter(|found| found.epoch == epoch)
            && found.lot.wake_at <= now
        {
            found.lot.wake_at = Time::NEVER;
            self.forget_demand(meter);
            self.stir(meter);
        }
    }
}

/// What came of asking about a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Says(Verdict),
    /// It was refused on the spot.
    Refused,
}
