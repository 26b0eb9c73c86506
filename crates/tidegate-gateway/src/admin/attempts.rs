//! Decides how often somebody may guess a token of the admin listener.
//!
//! What is counted is guesses, not requests: a program that shows one outdated token again and again learns nothing, and must not
//! shut out the operator who sits at the same machine. Memory is bounded, whoever comes from however many addresses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One address may guess so often at once …
const GUESSES: u32 = 10;
/// … and again once in so long.
const GUESS_EVERY: Duration = Duration::from_secs(6);
/// All addresses together, but for those that knew a token lately.
const GUESSES_OF_ALL: u32 = 100;
const GUESS_OF_ALL_EVERY: Duration = Duration::from_millis(600);
/// Addresses remembered. One that guesses when there is no room counts among all.
const PEERS_MAX: usize = 1024;
/// Wrong tokens remembered of one address, and as many right ones.
const TOKENS_MAX: usize = 8;
/// An address that knew a token within this is not held up by others' guesses, nor with that token by those from where it is itself.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// What repeats is told of once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Who guessed, and how often.
#[derive(Debug)]
pub(crate) struct Attempts {
    state: Mutex<State>,
    /// Hash of a token that no number of guesses finds: holding its owner up would protect nothing.
    unguessable: Option<[u8; 32]>,
}

#[derive(Debug)]
struct State {
    peers: HashMap<IpAddr, Peer>,
    of_all: Allowance,
}

#[derive(Debug)]
struct Peer {
    guesses: Allowance,
    /// Beginnings of the hashes of what it showed last.
    wrong: Vec<[u8; 8]>,
    /// The same of tokens that it knew, and when.
    known: Vec<([u8; 8], Instant)>,
    told_at: Option<Instant>,
    untold: u64,
}

/// So many at once, and one again every so often: when that many would be there again.
#[derive(Clone, Copy, Debug)]
struct Allowance(Instant);

impl Allowance {
    /// How long until there is one more. Zero: there is.
    fn wait(self, now: Instant, at_once: u32, every: Duration) -> Duration {
        (self.0 + every).saturating_duration_since(now + every * at_once)
    }

    fn take(&mut self, now: Instant, every: Duration) {
        self.0 = self.0.max(now) + every;
    }
}

impl Attempts {
    pub(crate) fn new(unguessable: Option<[u8; 32]>) -> Self {
        let state = State { peers: HashMap::new(), of_all: Allowance(Instant::now()) };
        Self { state: Mutex::new(state), unguessable }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `peer` may show a token now, whose hash is `right` if it is one; else how long it must wait.
    ///
    /// A right one that it has not shown lately must wait too, or guessing could go on.
    pub(super) fn check(&self, peer: IpAddr, right: Option<&[u8; 32]>) -> Result<(), Duration> {
        if right.is_some() && right == self.unguessable.as_ref() {
            return Ok(());
        }
        let now = Instant::now();
        let state = self.lock();
        let found = state.peers.get(&network(peer));
        if found.zip(right).is_some_and(|(found, right)| found.knew(right, now)) {
            return Ok(());
        }
        let is_known = found.is_some_and(|found| found.is_known(now));
        let own = found.map_or(Duration::ZERO, |found| found.guesses.wait(now, GUESSES, GUESS_EVERY));
        let of_all = state.of_all.wait(now, GUESSES_OF_ALL, GUESS_OF_ALL_EVERY);
        let wait = if is_known { own } else { own.max(of_all) };
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// `peer` showed a token that is none, with this hash, or was turned away before (`None`). How many such requests the trail is
    /// to tell of now; 0: none, they were told of lately.
    pub(super) fn failed(&self, peer: IpAddr, shown: Option<&[u8; 32]>) -> u64 {
        let now = Instant::now();
        let mut state = self.lock();
        let State { peers, of_all } = &mut *state;
        let peer = network(peer);
        if peers.len() >= PEERS_MAX && !peers.contains_key(&peer) {
            peers.retain(|_, other| other.is_worth_remembering(now));
        }
        if peers.len() >= PEERS_MAX && !peers.contains_key(&peer) {
            if shown.is_some() {
                of_all.take(now, GUESS_OF_ALL_EVERY);
            }
            return u64::from(shown.is_some());
        }
        let found = peers.entry(peer).or_insert_with(|| Peer::new(now));
        let is_guess = shown.is_some_and(|shown| found.note(shown));
        if is_guess {
            found.guesses.take(now, GUESS_EVERY);
            of_all.take(now, GUESS_OF_ALL_EVERY);
        }
        found.untold += 1;
        if is_guess || found.told_at.is_none_or(|told_at| now.duration_since(told_at) >= TOLD_EVERY) {
            found.told_at = Some(now);
            return std::mem::take(&mut found.untold);
        }
        0
    }

    /// `peer` showed a token that is known, with this hash.
    pub(super) fn succeeded(&self, peer: IpAddr, shown: &[u8; 32]) {
        let now = Instant::now();
        let mut state = self.lock();
        let peer = network(peer);
        if state.peers.len() < PEERS_MAX || state.peers.contains_key(&peer) {
            state.peers.entry(peer).or_insert_with(|| Peer::new(now)).note_known(shown, now);
        }
    }
}

impl Peer {
    const fn new(now: Instant) -> Self {
        Self { guesses: Allowance(now), wrong: Vec::new(), known: Vec::new(), told_at: None, untold: 0 }
    }

    fn is_known(&self, now: Instant) -> bool {
        self.known.iter().any(|(_, known_at)| now.duration_since(*known_at) < KNOWN_FOR)
    }

    fn knew(&self, right: &[u8; 32], now: Instant) -> bool {
        let is_recent = |known_at: Instant| now.duration_since(known_at) < KNOWN_FOR;
        self.known.iter().any(|(known, known_at)| *known == beginning(right) && is_recent(*known_at))
    }

    fn note_known(&mut self, shown: &[u8; 32], now: Instant) {
        self.known.retain(|(known, _)| *known != beginning(shown));
        if self.known.len() >= TOKENS_MAX {
            self.known.remove(0);
        }
        self.known.push((beginning(shown), now));
    }

    fn is_worth_remembering(&self, now: Instant) -> bool {
        self.is_known(now) || self.guesses.0 > now
    }

    /// True if it has not shown that lately.
    fn note(&mut self, shown: &[u8; 32]) -> bool {
        let beginning = beginning(shown);
        let is_new = !self.wrong.contains(&beginning);
        if is_new {
            if self.wrong.len() >= TOKENS_MAX {
                self.wrong.remove(0);
            }
            self.wrong.push(beginning);
        }
        is_new
    }
}

fn beginning(hash: &[u8; 32]) -> [u8; 8] {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&hash[..8]);
    beginning
}

/// What one machine can choose addresses from: of IPv6 its network.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(number: u32) -> [u8; 32] {
        let mut shown = [0; 32];
        shown[..4].copy_from_slice(&number.to_le_bytes());
        shown
    }

    fn peer(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_must_wait_and_who_repeats_himself_need_not() {
        let attempts = Attempts::new(None);
        let told: u64 = (0..1000).map(|_| attempts.failed(peer(1), Some(&shown(0)))).sum();
        assert_eq!((attempts.check(peer(1), None), told), (Ok(()), 1));
        for number in 1..10 {
            let _ = attempts.failed(peer(1), Some(&shown(number)));
        }
        assert_eq!(attempts.check(peer(1), None), Err(GUESS_EVERY));
        assert_eq!(attempts.check(peer(2), None), Ok(()));
        tokio::time::advance(GUESS_EVERY).await;
        assert_eq!(attempts.check(peer(1), None), Ok(()));
        tokio::time::advance(TOLD_EVERY).await;
        assert_eq!(attempts.failed(peer(1), None), 1, "what was left untold is told of with the guess after it");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_from_many_addresses_hold_up_everybody_but_who_knew_a_token() {
        let attempts = Attempts::new(None);
        attempts.succeeded(peer(1), &shown(1));
        for number in 2..102 {
            let _ = attempts.failed(peer(number), Some(&shown(number)));
        }
        assert!(attempts.check(peer(500), None).is_err_and(|wait| wait <= GUESS_OF_ALL_EVERY));
        assert_eq!(attempts.check(peer(1), None), Ok(()));
        for number in 0..5000 {
            let _ = attempts.failed(peer(number), Some(&shown(number)));
        }
        assert!(attempts.lock().peers.len() <= PEERS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_token_is_held_up_unless_it_was_known_there_lately_or_cannot_be_guessed() {
        let attempts = Attempts::new(Some(shown(1)));
        attempts.succeeded(peer(1), &shown(2));
        for number in 1000..1700 {
            let _ = attempts.failed(peer(1), Some(&shown(number)));
        }
        assert_eq!(attempts.check(peer(1), Some(&shown(1))), Ok(()));
        assert_eq!(attempts.check(peer(1), Some(&shown(2))), Ok(()));
        assert!(attempts.check(peer(1), Some(&shown(3))).is_err(), "or it could be guessed on");
        assert!(attempts.check(peer(2), Some(&shown(2))).is_err(), "it was known elsewhere");
        assert!(attempts.check(peer(1), None).is_err());
        tokio::time::advance(KNOWN_FOR).await;
        assert!(attempts.check(peer(1), Some(&shown(2))).is_err(), "long ago");
    }

    #[test]
    fn of_ipv6_a_network_counts_as_one() {
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::2".parse().unwrap()));
        assert_ne!(network("2001:db8:0:1::1".parse().unwrap()), network("2001:db8::1".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), network("10.0.0.1".parse().unwrap()));
    }
}
