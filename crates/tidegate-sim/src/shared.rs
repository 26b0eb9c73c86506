//! What all connections of one simulator share, each part behind its own short lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::Options;
use crate::draw;
use crate::ledger::{Ledger, LogEntry, Stats};
use crate::limiter::{Charge, Refused, Remaining, Rules, Upstream};
use crate::reply::Files;
use crate::scenario::{RefusalMessage, RetryAfter, Scenario, micros};

/// More accounts or groups than this share one limiter: memory stays bounded whatever names come.
const LIMITERS_MAX: usize = 10_000;

/// The scenario in force.
pub(crate) struct Running {
    pub(crate) scenario: Scenario,
    /// Matching calls of each fault.
    pub(crate) matched: Vec<AtomicU64>,
    /// Waits told so far, where each is told in another way.
    waits: AtomicU64,
}

/// Which bucket a call takes from.
pub(crate) struct Place {
    pub(crate) running: Arc<Running>,
    account: u64,
    pub(crate) group: String,
    rules: Rules,
}

/// One simulator's state.
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// `http://address`, without `/v1`.
    pub(crate) origin: String,
    started: Instant,
    running: RwLock<Arc<Running>>,
    limiters: Mutex<HashMap<u64, HashMap<String, Upstream>>>,
    ledger: Mutex<Ledger>,
    files: Mutex<Files>,
    numbers: AtomicU64,
}

impl Running {
    pub(crate) fn new(scenario: Scenario) -> Arc<Self> {
        let matched = scenario.fault.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Running { scenario, matched, waits: AtomicU64::new(0) })
    }

    /// Which headers tell the next wait.
    pub(crate) fn next_wait(&self) -> RetryAfter {
        match self.scenario.retry_after {
            RetryAfter::Mixed => match self.waits.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => RetryAfter::Ms,
                1 => RetryAfter::None,
                _ => RetryAfter::Seconds,
            },
            always => always,
        }
    }

    fn tells_wait(&self, form: RetryAfter) -> bool {
        form != RetryAfter::None || self.scenario.refusal_message == RefusalMessage::Wait
    }
}

impl Shared {
    pub(crate) fn new(scenario: Scenario, options: Options, origin: String, ledger: Ledger) -> Self {
        Shared {
            options,
            origin,
            started: Instant::now(),
            running: RwLock::new(Running::new(scenario)),
            limiters: Mutex::default(),
            ledger: Mutex::new(ledger),
            files: Mutex::default(),
            numbers: AtomicU64::new(0),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn running(&self) -> Arc<Running> {
        self.running.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the next request, from 0.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn with_ledger<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        act(&mut lock(&self.ledger))
    }

    pub(crate) fn with_files<T>(&self, act: impl FnOnce(&mut Files) -> T) -> T {
        act(&mut lock(&self.files))
    }

    /// Puts a scenario in force; levels stay.
    pub(crate) fn replace_scenario(&self, scenario: Scenario) {
        let running = Running::new(scenario);
        let now = micros(self.elapsed());
        // The limiters' lock is held so that no call creates a level by the old limits after they were replaced.
        let mut limiters = lock(&self.limiters);
        let scenario = &running.scenario;
        for (&account, groups) in limiters.iter_mut() {
            groups.retain(|group, upstream| {
                let Some(rules) = rules_of_group(scenario, group) else { return false };
                upstream.reload(&rules, now);
                upstream.replace_tenants(&scenario.tenants(group), self.tenant_seed(account, group), now);
                true
            });
        }
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// The bucket of a model, by its entry in the scenario, and of the caller.
    pub(crate) fn place(&self, running: &Arc<Running>, headers: &HeaderMap, group: &str, rules: Rules) -> Place {
        Place { running: running.clone(), account: account(&running.scenario, headers), group: group.to_owned(), rules }
    }

    /// Asks the limiter, and counts its answer: what is left, and the refusal if it was one, with the headers that tell its wait.
    pub(crate) fn admit(&self, place: &Place, charge: Charge) -> (Remaining, Option<(Refused, RetryAfter)>) {
        let (remaining, refused) = self.with_upstream(place, |upstream, now| match upstream.admit(now, charge) {
            Ok(remaining) => (remaining, None),
            Err(refused) => (upstream.look(now), Some(refused)),
        });
        let now = micros(self.elapsed());
        let refused = refused.map(|refused| (refused, place.running.next_wait()));
        self.with_ledger(|ledger| {
            ledger.count_admission(&place.group, charge, refused.as_ref().map(|(refused, _)| refused), now);
            if let Some((refused, form)) = refused
                && place.running.tells_wait(form)
            {
                ledger.note_wait(&place.group, &refused, now);
            }
        });
        (remaining, refused)
    }

    /// Charges tokens after the fact.
    pub(crate) fn debit(&self, place: &Place, tokens: u64) {
        self.with_upstream(place, |upstream, now| upstream.debit(now, tokens));
    }

    /// What is left, without charging.
    pub(crate) fn look(&self, place: &Place) -> Remaining {
        self.with_upstream(place, |upstream, now| upstream.look(now))
    }

    pub(crate) fn stats(&self) -> Stats {
        let now = micros(self.elapsed());
        let mut stats = self.with_ledger(|ledger| ledger.stats.clone());
        stats.elapsed_s = self.elapsed().as_secs_f64();
        for groups in lock(&self.limiters).values_mut() {
            for (group, upstream) in groups.iter_mut() {
                stats.groups.entry(group.clone()).or_default().levels = upstream.levels(now);
            }
        }
        stats
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.with_ledger(|ledger| ledger.entries())
    }

    fn with_upstream<T>(&self, place: &Place, act: impl FnOnce(&mut Upstream, u64) -> T) -> T {
        let mut limiters = lock(&self.limiters);
        let account =
            if limiters.len() < LIMITERS_MAX || limiters.contains_key(&place.account) { place.account } else { 0 };
        let groups = limiters.entry(account).or_default();
        let group = place.group.as_str();
        let group = if groups.len() < LIMITERS_MAX || groups.contains_key(group) { group } else { "default" };
        let now = micros(self.elapsed());
        if let Some(upstream) = groups.get_mut(group) {
            return act(upstream, now);
        }
        let tenants = place.running.scenario.tenants(group);
        let upstream = Upstream::new(&place.rules, now).with_tenants(&tenants, self.tenant_seed(account, group));
        act(groups.entry(group.to_owned()).or_insert(upstream), now)
    }

    fn tenant_seed(&self, account: u64, group: &str) -> u64 {
        draw::mix(self.options.seed ^ account, fingerprint(group.as_bytes()))
    }
}

/// The limits of a group: those of the first model in it.
fn rules_of_group(scenario: &Scenario, group: &str) -> Option<Rules> {
    let named =
        scenario.model.iter().find(|(key, entry)| scenario.group(key, key, entry) == group && *key != "default");
    let entry = named.map(|(_, entry)| entry).or_else(|| scenario.model.get("default"))?;
    Some(scenario.rules(entry))
}

fn account(scenario: &Scenario, headers: &HeaderMap) -> u64 {
    if !scenario.per_key_limits {
        return 0;
    }
    headers.get(http::header::AUTHORIZATION).map_or(0, |value| fingerprint(value.as_bytes()))
}

/// FNV-1a, the same in every run.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// A panic elsewhere must not silence the simulator: its state is counters and levels, valid at every instant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
