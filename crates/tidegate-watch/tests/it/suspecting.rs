//! Who is suspected of going round its limits with new users, and who is not: hours of traffic of one key, in virtual time.

use std::sync::Arc;

use fastrand::Rng;
use tidegate_core::time::Time;
use tidegate_watch::anomaly::Anomalies;

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const SEEDS: std::ops::Range<u64> = 1..4;

/// What one call meets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meets {
    Room,
    /// A limit that all users share refuses it.
    SharedLimit,
    /// The user's own limit refuses it.
    OwnLimit,
}
use Meets::{OwnLimit, Room, SharedLimit};

/// Calls of one key: when, for which user, and what they meet.
#[derive(Default)]
struct Traffic {
    calls: Vec<(u64, u64, Meets)>,
    users: u64,
}

impl Traffic {
    /// From `from` to `to` so many new users a minute, each of whom does as `user` says: the calls, in seconds after the first.
    fn of(
        span: std::ops::Range<u64>,
        users_a_minute: u64,
        rng: &mut Rng,
        user: impl Fn(&mut Rng) -> Vec<(u64, Meets)>,
    ) -> Self {
        let mut traffic = Self::default();
        traffic.add(span, users_a_minute, rng, user);
        traffic
    }

    fn add(
        &mut self,
        span: std::ops::Range<u64>,
        users_a_minute: u64,
        rng: &mut Rng,
        user: impl Fn(&mut Rng) -> Vec<(u64, Meets)>,
    ) {
        let users = (span.end - span.start) * users_a_minute / MINUTE;
        for _ in 0..users {
            let came_at = rng.u64(span.clone());
            self.users += 1;
            let calls = user(rng);
            self.calls.extend(calls.into_iter().map(|(after, meets)| (came_at + after, self.users, meets)));
        }
    }

    /// So many users who each call about once in so many seconds, as long as it lasts.
    fn regulars(span: std::ops::Range<u64>, users: u64, every: u64, rng: &mut Rng) -> Self {
        let mut traffic = Self { calls: Vec::new(), users };
        for user in 1..=users {
            let mut at = span.start + rng.u64(0..every);
            while at < span.end {
                traffic.calls.push((at, user, Room));
                at += 1 + rng.u64(0..2 * every);
            }
        }
        traffic
    }

    /// The second at which the key is first suspected, looked at each second since 0, when the gateway started.
    fn suspected_at(mut self, users_are_limited: bool) -> Option<u64> {
        self.calls.sort_unstable();
        let anomalies = Anomalies::default();
        let key: Arc<str> = "billing".into();
        let end = self.calls.last().unwrap().0 + 20 * MINUTE;
        let mut calls = self.calls.into_iter().peekable();
        for second in 0..end {
            while let Some((_, user, meets)) = calls.next_if(|(at, ..)| *at == second) {
                let user = format!("user-{user}");
                anomalies.named(&key, &user, users_are_limited);
                if meets != Room {
                    anomalies.refused(&key, &user, meets == OwnLimit);
                }
            }
            if !anomalies.judge(Time::from_secs(second)).is_empty() {
                return Some(second);
            }
        }
        None
    }
}

/// Several calls, with a pause after each; `pause` on average.
fn session(rng: &mut Rng, calls: std::ops::RangeInclusive<u64>, pause: u64) -> Vec<(u64, Meets)> {
    let mut at = 0;
    let mut next = |rng: &mut Rng| {
        at += rng.u64(0..2 * pause);
        (at, Room)
    };
    let calls = rng.u64(calls);
    (0..calls).map(|_| next(rng)).collect()
}

/// One call, or nothing but refusals.
fn once(meets: Meets) -> impl Fn(&mut Rng) -> Vec<(u64, Meets)> {
    move |_| vec![(0, meets)]
}

/// A call a second until the user's own limit refuses.
fn until_used_up(calls: u64) -> impl Fn(&mut Rng) -> Vec<(u64, Meets)> {
    move |_| (0..calls).map(|call| (call, if call + 1 == calls { OwnLimit } else { Room })).collect()
}

#[test]
fn honest_keys_with_many_new_users_are_not_suspected() {
    type Case = (&'static str, bool, fn(&mut Rng) -> Traffic);
    let cases: [Case; 11] = [
        ("an app whose every user makes a session, from the start of the gateway", true, |rng| {
            Traffic::of(0..2 * HOUR, 60, rng, |rng| session(rng, 1..=9, 30))
        }),
        ("the same with a new key of a gateway that has long run", true, |rng| {
            Traffic::of(2 * HOUR..4 * HOUR, 60, rng, |rng| session(rng, 1..=9, 30))
        }),
        ("short sessions, with half of the users gone after two calls", true, |rng| {
            Traffic::of(2 * HOUR..4 * HOUR, 30, rng, |rng| session(rng, 1..=4, 60))
        }),
        ("a launch on a new key, at full rate at once", true, |rng| {
            Traffic::of(2 * HOUR..3 * HOUR, 600, rng, |rng| session(rng, 2..=6, 40))
        }),
        ("a launch that doubles every ten minutes", true, |rng| {
            let mut traffic = Traffic::default();
            for (step, users) in [10, 20, 40, 80, 160, 320].into_iter().enumerate() {
                let from = 2 * HOUR + step as u64 * 10 * MINUTE;
                traffic.add(from..from + 10 * MINUTE, users, rng, |rng| session(rng, 1..=8, 30));
            }
            traffic
        }),
        ("a restart beneath users who each call once in an hour", true, |rng| {
            Traffic::regulars(0..4 * HOUR, 3000, HOUR, rng)
        }),
        ("a restart beneath users who each call once in ten minutes", true, |rng| {
            Traffic::regulars(0..2 * HOUR, 1000, 10 * MINUTE, rng)
        }),
        ("users who meet their own limit, wait and go on; one in five leaves", true, |rng| {
            Traffic::of(0..2 * HOUR, 20, rng, |rng| {
                let mut calls = until_used_up(10)(rng);
                if rng.u64(0..5) > 0 {
                    calls.extend([(70, Room), (75, Room), (90, Room)]);
                }
                calls
            })
        }),
        ("a limit for all that is overrun: one in five tries again, the others leave", true, |rng| {
            Traffic::of(0..HOUR, 120, rng, |rng| {
                let tries = if rng.u64(0..5) == 0 { 4 } else { 1 };
                (0..tries).map(|retry| (retry * 20, SharedLimit)).collect()
            })
        }),
        ("users of one call, where users have no limits", false, |rng| {
            Traffic::of(2 * HOUR..4 * HOUR, 120, rng, once(Room))
        }),
        ("three users of one call a minute", true, |rng| Traffic::of(2 * HOUR..4 * HOUR, 3, rng, once(Room))),
    ];
    for (what, users_are_limited, traffic) in cases {
        for seed in SEEDS {
            let suspected_at = traffic(&mut Rng::with_seed(seed)).suspected_at(users_are_limited);
            assert_eq!(suspected_at, None, "{what}, seed {seed}");
        }
    }
}

#[test]
fn a_key_that_throws_its_users_away_is_suspected_from_its_first_call_on() {
    type Case = (&'static str, bool, u64, u64, fn(&mut Rng, u64) -> Traffic);
    // When it begins, and within how many minutes it has to be found.
    let cases: [Case; 9] = [
        ("each call another user", true, 2 * HOUR, 7, |rng, from| Traffic::of(from..from + HOUR, 60, rng, once(Room))),
        ("the same from the start of the gateway: once that is an hour ago", true, 0, 75, |rng, from| {
            Traffic::of(from..from + 2 * HOUR, 60, rng, once(Room))
        }),
        ("thirty a second, far more than are looked at", true, 2 * HOUR, 7, |rng, from| {
            Traffic::of(from..from + 10 * MINUTE, 1800, rng, once(Room))
        }),
        ("eight a minute, beside ten users who always come", true, 2 * HOUR, 40, |rng, from| {
            let mut traffic = Traffic::regulars(from..from + HOUR, 10, 30, rng);
            traffic.add(from..from + HOUR, 8, rng, once(Room));
            traffic
        }),
        ("two calls each", true, 2 * HOUR, 7, |rng, from| {
            Traffic::of(from..from + HOUR, 60, rng, |rng| session(rng, 2..=2, 2))
        }),
        ("each until its own limit is used up, from the start of the gateway", true, 0, 20, |rng, from| {
            Traffic::of(from..from + HOUR, 8, rng, until_used_up(60))
        }),
        ("each until its own limit is used up", true, 2 * HOUR, 20, |rng, from| {
            Traffic::of(from..from + HOUR, 8, rng, until_used_up(5))
        }),
        ("another user after each refusal of a limit for all", true, 0, 7, |rng, from| {
            Traffic::of(from..from + HOUR, 60, rng, once(SharedLimit))
        }),
        ("the same where users have no limits", false, 0, 7, |rng, from| {
            Traffic::of(from..from + HOUR, 60, rng, once(SharedLimit))
        }),
    ];
    for (what, users_are_limited, from, minutes, traffic) in cases {
        for seed in SEEDS {
            let suspected_at = traffic(&mut Rng::with_seed(seed), from).suspected_at(users_are_limited);
            let found = suspected_at.is_some_and(|at| (from..from + minutes * MINUTE).contains(&at));
            assert!(found, "{what}, seed {seed}: {suspected_at:?}");
        }
    }
}
