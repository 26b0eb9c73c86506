//! Decides who goes next among those that wait: lanes, classes, tenants.
//!
//! Waiters that share class and subject (and so tenant and levels) form a lane, first in, first out. A lane is parked in the
//! lot of the one meter that binds its head. In a lot, classes go by stride over their shares, tenants of a class by
//! virtual time, a tenant's lanes in turn. Whether a head fits is not decided here (`gate` asks the meters).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hashbrown::HashMap;
use std::sync::Arc;

use crate::call::Priority;
use crate::gate::Ticket;
use crate::time::Time;

/// Index of a lane.
pub(crate) type LaneId = u32;

/// Where a lane stands in a lot: (virtual time, turn, lane, parking number); the least goes first.
type Place = (u64, u64, LaneId, u64);

/// What a tenant that comes back from idleness can owe at most, in shares of a level (2^-40): an eighth of one.
const MOST_OWED: u64 = 1 << 37;

/// Tenants that an estimate looks at.
const TENANTS_ESTIMATED: usize = 32;

/// Lanes whose heads wait for one meter.
#[derive(Clone, Debug)]
pub(crate) struct Lot {
    heaps: [BinaryHeap<Reverse<Place>>; 3],
    parked: [u32; 3],
    pass: [u64; 3],
    /// Classes that have had to wait here for want of units since they came.
    short: [bool; 3],
    /// When the lot is to be looked at next.
    pub(crate) wake_at: Time,
}

impl Default for Lot {
    fn default() -> Self {
        Self { heaps: Default::default(), parked: [0; 3], pass: [0; 3], short: [false; 3], wake_at: Time::NEVER }
    }
}

impl Lot {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.parked == [0; 3]
    }

    /// Notes that a class has to wait here for want of units, not only for its turn.
    pub(crate) fn is_short(&mut self, class: Priority) {
        self.short[class.index()] = true;
    }

    /// True if a higher class waits here for want of units: what was kept free for it is spent.
    pub(crate) fn higher_is_short(&self, class: Priority) -> bool {
        (class.index() + 1..3).any(|higher| self.parked[higher] > 0 && self.short[higher])
    }

    /// The lowest class that waits here.
    pub(crate) fn lowest(&self) -> Option<Priority> {
        Priority::ALL.into_iter().filter(|class| self.parked[class.index()] > 0).min_by_key(|class| class.index())
    }

    /// The classes that wait here, whose turn it is first; on a tie the higher class.
    pub(crate) fn classes_in_turn(&self) -> impl Iterator<Item = Priority> + use<> {
        let mut classes = [Priority::High, Priority::Normal, Priority::Low];
        classes.sort_by_key(|class| self.pass[class.index()]);
        let parked = self.parked;
        classes.into_iter().filter(move |class| parked[class.index()] > 0)
    }

    /// A call of `class` went that took `share` of the level: the class's next turn comes the later, the smaller its weight.
    pub(crate) fn went(&mut self, class: Priority, share: u64, weight: u32) {
        let pass = &mut self.pass[class.index()];
        *pass = pass.saturating_add((share / u64::from(weight.max(1))).max(1));
    }
}

/// Calls of one class and one subject, in the order of their age.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) class: Priority,
    pub(crate) tenant: u32,
    pub(crate) route: u32,
    waiting: VecDeque<(u64, Ticket)>,
    gone: usize,
    /// The meter in whose lot it is parked.
    pub(crate) parked_at: Option<u32>,
    parking: u64,
    turn: u64,
    /// Its head was ready here and had to move on: others passed it.
    pub(crate) bypassed: bool,
    pub(crate) earmarked: bool,
}

/// A tenant within one class.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    class: Priority,
    virtual_time: u64,
    pub(crate) weight: u32,
    pub(crate) waiting: u32,
    /// It was idle until its present call came.
    fresh: bool,
    /// Shares of levels asked by calls that wait.
    pub(crate) backlog: u64,
    /// Its place among the active ones of its class, while it has calls waiting.
    active_at: usize,
    lanes: u32,
}

/// All lanes and tenants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    lanes: Vec<Lane>,
    free_lanes: Vec<LaneId>,
    tenants: Vec<Tenant>,
    free_tenants: Vec<u32>,
    tenant_ids: HashMap<(Arc<str>, Priority), u32>,
    parkings: u64,
    turns: u64,
    pub(crate) waiting: [usize; 3],
    pub(crate) waiting_bytes: u64,
    /// Tenants with calls waiting, and the sum of their backlogs, by class.
    active: [Vec<u32>; 3],
    pub(crate) active_backlog: [u64; 3],
}

impl Queue {
    pub(crate) fn lane(&self, lane: LaneId) -> &Lane {
        &self.lanes[lane as usize]
    }

    pub(crate) fn lane_mut(&mut self, lane: LaneId) -> &mut Lane {
        &mut self.lanes[lane as usize]
    }

    pub(crate) fn tenant(&self, tenant: u32) -> &Tenant {
        &self.tenants[tenant as usize]
    }

    /// The tenants of a class with most calls waiting, of the first `seen` that are active.
    pub(crate) fn largest_tenants(&self, class: Priority, seen: usize, named: usize) -> Vec<(Arc<str>, usize)> {
        let active = self.active[class.index()].iter().take(seen).map(|id| self.tenant(*id));
        let mut tenants: Vec<_> = active.map(|tenant| (tenant.name.clone(), tenant.waiting as usize)).collect();
        tenants.sort_by_key(|(_, waiting)| Reverse(*waiting));
        tenants.truncate(named);
        tenants
    }

    /// The lanes in which calls wait, and how many do.
    pub(crate) fn busy_lanes(&self) -> impl Iterator<Item = (&Lane, usize)> {
        self.lanes.iter().map(|lane| (lane, lane.waiting.len() - lane.gone)).filter(|(_, calls)| *calls > 0)
    }

    pub(crate) fn total_waiting(&self) -> usize {
        self.waiting.iter().sum()
    }

    /// The lane for a class and route, made if need be.
    pub(crate) fn open_lane(&mut self, class: Priority, route: u32, tenant: &Arc<str>, weight: u32) -> LaneId {
        let tenant = self.open_tenant(tenant, class, weight);
        self.tenants[tenant as usize].lanes += 1;
        let lane = Lane {
            class,
            tenant,
            route,
            waiting: VecDeque::new(),
            gone: 0,
            parked_at: None,
            parking: 0,
            turn: 0,
            bypassed: false,
            earmarked: false,
        };
        match self.free_lanes.pop() {
            Some(id) => {
                self.lanes[id as usize] = lane;
                id
            }
            None => {
                self.lanes.push(lane);
                (self.lanes.len() - 1) as LaneId
            }
        }
    }

    fn open_tenant(&mut self, name: &Arc<str>, class: Priority, weight: u32) -> u32 {
        if let Some(id) = self.tenant_ids.get(&(name.clone(), class)) {
            return *id;
        }
        let tenant = Tenant {
            name: name.clone(),
            class,
            virtual_time: 0,
            weight: weight.max(1),
            waiting: 0,
            fresh: false,
            backlog: 0,
            active_at: 0,
            lanes: 0,
        };
        let id = match self.free_tenants.pop() {
            Some(id) => {
                self.tenants[id as usize] = tenant;
                id
            }
            None => {
                self.tenants.push(tenant);
                (self.tenants.len() - 1) as u32
            }
        };
        self.tenant_ids.insert((name.clone(), class), id);
        id
    }

    /// Closes an empty lane; a tenant without lanes is forgotten.
    pub(crate) fn close_lane(&mut self, lane: LaneId) {
        let tenant = self.lanes[lane as usize].tenant;
        self.lanes[lane as usize].waiting = VecDeque::new();
        self.free_lanes.push(lane);
        let entry = &mut self.tenants[tenant as usize];
        entry.lanes -= 1;
        if entry.lanes == 0 {
            self.tenant_ids.remove(&(entry.name.clone(), entry.class));
            self.free_tenants.push(tenant);
        }
    }

    /// Takes over other weights.
    pub(crate) fn reweigh(&mut self, weight: impl Fn(&str) -> u32) {
        for tenant in &mut self.tenants {
            tenant.weight = weight(&tenant.name).max(1);
        }
    }

    /// Puts a call into its lane by its age. `share`: its largest share of any level that tenants share.
    pub(crate) fn enqueue(&mut self, lane: LaneId, age: u64, ticket: Ticket, share: u64, bytes: u64) {
        let Lane { class, tenant, waiting, .. } = &mut self.lanes[lane as usize];
        let at = waiting.partition_point(|(other, _)| *other < age);
        waiting.insert(at, (age, ticket));
        let class = class.index();
        self.waiting[class] += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        self.active_backlog[class] = self.active_backlog[class].saturating_add(share);
        let id = *tenant;
        let tenant = &mut self.tenants[id as usize];
        if tenant.waiting == 0 {
            tenant.fresh = true;
            tenant.active_at = self.active[class].len();
            self.active[class].push(id);
        }
        tenant.waiting += 1;
        tenant.backlog = tenant.backlog.saturating_add(share);
    }

    /// Notes that a call which waited in `lane` no longer does (it was granted, refused, or left).
    pub(crate) fn leave(&mut self, lane: LaneId, share: u64, bytes: u64) {
        let Lane { class, tenant, .. } = &self.lanes[lane as usize];
        let class = class.index();
        self.waiting[class] -= 1;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        self.active_backlog[class] = self.active_backlog[class].saturating_sub(share);
        let tenant = &mut self.tenants[*tenant as usize];
        tenant.waiting -= 1;
        tenant.backlog = tenant.backlog.saturating_sub(share);
        if tenant.waiting == 0 {
            let at = tenant.active_at;
            self.active[class].swap_remove(at);
            if let Some(moved) = self.active[class].get(at) {
                self.tenants[*moved as usize].active_at = at;
            }
        }
    }

    /// Of the backlog of a class's other tenants, the part that goes before the last of `mine`, in 2^-20: each of them can
    /// go before it only by its weight, or as much as it has waiting. An estimate from a bounded number of them.
    pub(crate) fn others_part(&self, class: Priority, tenant: Option<u32>, mine: u64) -> u64 {
        let weight = tenant.map_or(1, |tenant| u128::from(self.tenant(tenant).weight));
        let (mut all, mut before) = (0_u128, 0_u128);
        for other in self.active[class.index()].iter().take(TENANTS_ESTIMATED).filter(|other| Some(**other) != tenant) {
            let other = &self.tenants[*other as usize];
            let by_weight = u128::from(mine) * u128::from(other.weight) / weight;
            all += u128::from(other.backlog);
            before += u128::from(other.backlog).min(by_weight);
        }
        u64::try_from((before << 20).checked_div(all).unwrap_or(0)).unwrap_or(0)
    }

    /// Removes a call from its lane wherever it stands there.
    pub(crate) fn forget(&mut self, lane: LaneId, ticket: Ticket) {
        let lane = &mut self.lanes[lane as usize];
        if lane.waiting.front().is_some_and(|(_, head)| *head == ticket) {
            lane.waiting.pop_front();
            return;
        }
        // Left where it is and skipped later: searching would cost as much as the lane is long.
        lane.gone += 1;
    }

    /// The oldest call of the lane that `is_waiting` still knows.
    pub(crate) fn head(&mut self, lane: LaneId, is_waiting: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        let lane = &mut self.lanes[lane as usize];
        if lane.gone > 16 + lane.waiting.len() / 2 {
            lane.waiting.retain(|(_, ticket)| is_waiting(*ticket));
            lane.gone = 0;
        }
        while let Some((_, ticket)) = lane.waiting.front() {
            if is_waiting(*ticket) {
                return Some(*ticket);
            }
            lane.waiting.pop_front();
            lane.gone = lane.gone.saturating_sub(1);
        }
        None
    }

    /// Parks a lane in a lot, behind those whose turn comes first.
    pub(crate) fn park(&mut self, lane: LaneId, meter: u32, lot: &mut Lot) {
        self.parkings += 1;
        let least = self.first(self.lanes[lane as usize].class, lot).map(|first| self.lanes[first as usize].tenant);
        let least = least.map(|tenant| self.tenants[tenant as usize].virtual_time);
        let tenant = &mut self.tenants[self.lanes[lane as usize].tenant as usize];
        if let (true, Some(least)) = (tenant.fresh, least) {
            // Who was idle starts level with the others: it has saved up nothing, and owes little for what it took alone.
            tenant.virtual_time = tenant.virtual_time.clamp(least, least.saturating_add(MOST_OWED));
        }
        tenant.fresh = false;
        let entry = &mut self.lanes[lane as usize];
        entry.parked_at = Some(meter);
        entry.parking = self.parkings;
        let class = entry.class.index();
        if lot.parked[class] == 0 {
            // A class that was idle here starts level with the others.
            let least = (0..3).filter(|other| lot.parked[*other] > 0).map(|other| lot.pass[other]).min();
            lot.pass[class] = lot.pass[class].max(least.unwrap_or(0));
            lot.short[class] = false;
        }
        lot.parked[class] += 1;
        let place = (self.tenants[entry.tenant as usize].virtual_time, entry.turn, lane, self.parkings);
        lot.heaps[class].push(Reverse(place));
    }

    /// Finds a parked lane its place anew, after its tenant has moved on in virtual time.
    pub(crate) fn park_again(&mut self, lane: LaneId, lot: &mut Lot) {
        self.parkings += 1;
        let entry = &mut self.lanes[lane as usize];
        entry.parking = self.parkings;
        let place = (self.tenants[entry.tenant as usize].virtual_time, entry.turn, lane, self.parkings);
        lot.heaps[entry.class.index()].push(Reverse(place));
    }

    /// Takes a lane out of the lot that it is parked in.
    pub(crate) fn unpark(&mut self, lane: LaneId, lot: &mut Lot) {
        let entry = &mut self.lanes[lane as usize];
        if entry.parked_at.take().is_some() {
            let class = entry.class.index();
            lot.parked[class] -= 1;
            if lot.parked[class] == 0 {
                lot.heaps[class].clear();
            }
        }
    }

    /// The lane of a class that goes first in a lot.
    pub(crate) fn first(&self, class: Priority, lot: &mut Lot) -> Option<LaneId> {
        let heap = &mut lot.heaps[class.index()];
        loop {
            let Reverse((virtual_time, turn, lane, parking)) = *heap.peek()?;
            let entry = &self.lanes[lane as usize];
            if entry.parking != parking || entry.parked_at.is_none() {
                heap.pop();
                continue;
            }
            let now = self.tenants[entry.tenant as usize].virtual_time;
            if now > virtual_time {
                // Its tenant has had calls elsewhere since: further back.
                heap.pop();
                heap.push(Reverse((now, turn, lane, parking)));
                continue;
            }
            return Some(lane);
        }
    }

    /// Notes that others have taken from a level while lanes wait for it. True if that is news to one of those that go first.
    pub(crate) fn passed_by(&mut self, lot: &mut Lot) -> bool {
        let mut news = false;
        for class in Priority::ALL {
            if let Some(first) = self.first(class, lot) {
                news |= !std::mem::replace(&mut self.lanes[first as usize].bypassed, true);
            }
        }
        news
    }

    /// Up to `most` further lanes of a class behind the first, in no particular order.
    pub(crate) fn behind_first(&self, class: Priority, lot: &Lot, most: usize) -> Vec<LaneId> {
        let valid = |place: &&Reverse<Place>| {
            let entry = &self.lanes[place.0.2 as usize];
            entry.parking == place.0.3 && entry.parked_at.is_some()
        };
        lot.heaps[class.index()].iter().filter(valid).skip(1).take(most).map(|place| place.0.2).collect()
    }

    /// A call of a waiting lane was granted: its tenant moves on in virtual time, the lane to the end of its tenant's turn.
    pub(crate) fn lane_went(&mut self, lane: LaneId, share: u64) {
        self.turns += 1;
        let entry = &mut self.lanes[lane as usize];
        entry.turn = self.turns;
        entry.bypassed = false;
        let tenant = entry.tenant;
        self.tenant_went(tenant, share);
    }

    /// A tenant's call was granted that takes `share`.
    #[inline]
    pub(crate) fn tenant_went(&mut self, tenant: u32, share: u64) {
        let tenant = &mut self.tenants[tenant as usize];
        tenant.virtual_time = tenant.virtual_time.saturating_add((share / u64::from(tenant.weight)).max(1));
    }

    /// A tenant's call turned out to have taken more or less.
    pub(crate) fn tenant_corrected(&mut self, tenant: u32, share: i64) {
        if let Some(tenant) = self.tenants.get_mut(tenant as usize) {
            tenant.virtual_time = tenant.virtual_time.saturating_add_signed(share / i64::from(tenant.weight));
        }
    }
}
