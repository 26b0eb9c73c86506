//! What is most worth seeing of how everything stands: levels, breakers, who waits at what, and who waits after a failure.

use std::time::Duration;

use tidegate_core::breaker::BreakerState;
use tidegate_core::call::{Call, Priority, WhenOpen};
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::gate::{BackingOffStatus, Overrides, Ticket, WaitingStatus};
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::outcome::{Ending, Outcome};

use crate::support::*;

const IN_FLIGHT: Dimension = Dimension::MaxInFlight;
const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

fn named(id: &str, made: Call) -> Call {
    Call { id: id.into(), ..made }
}

/// A call of `user` within `tenant`.
fn within(tenant: &str, user: &str) -> Call {
    let mut call = call(user, 1);
    call.subject.tenant = tenant.into();
    call
}

/// The upstream does not serve a call that was granted, and says to wait for 12 s.
fn turn_away(bench: &mut Bench, ticket: Ticket, kind: FaultKind) {
    let mut fault = Fault::new(kind, "no");
    fault.wait = Some(Duration::from_secs(12));
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
}

#[test]
fn of_many_levels_those_that_hold_calls_up_are_seen_and_then_the_fullest() {
    let mut bench = Bench::with_limits(vec![limit("each", &[Scope::User], &[(TPM, 1000)])]);
    for user in 0..300 {
        bench.admit(call(&format!("user-{user}"), 1 + user));
    }
    for id in ["a", "b"] {
        bench.admit(named(id, call("user-7", 999)));
    }
    bench.drain();
    let seen = bench.gate.overview(bench.now, 3);
    let keys: Vec<_> = seen.status.limits.iter().map(|level| level.key.as_str()).collect();
    assert_eq!(keys, ["user-7", "user-299", "user-298"]);
    assert_eq!((seen.levels, seen.levels_binding), (300, 1));
    let waits = &seen.waiting[0];
    assert_eq!((waits.calls, waits.limit.as_deref()), (2, Some("each/user-7/tokens_per_minute")));
    assert_eq!((waits.user.as_deref(), waits.users), (Some("user-7"), 1));
    assert_eq!((seen.waiting.len(), seen.waiting_in_all), (1, 1));
}

#[test]
fn of_many_accounts_those_whose_breakers_stand_alike_are_seen_as_one() {
    let mut bench = Bench::with_limits(vec![]);
    let at = |account: &str, model: &str| {
        let mut call = call("ada", 1);
        call.subject.account = account.into();
        call.subject.model = model.into();
        call
    };
    for account in 0..60 {
        bench.admit(at(&format!("openai#{account}"), "gpt-4o"));
    }
    bench.admit(at("openai#0", "o3"));
    let breakers = vec![("openai/gpt-4o".into(), BreakerState::ForcedOpen)];
    assert!(bench.gate.override_with(Overrides { version: 1, breakers, ..Overrides::default() }, bench.now));
    let seen = bench.gate.overview(bench.now, 3);
    let shown: Vec<_> = seen.status.breakers.iter().map(|one| (&*one.name, one.state, one.accounts)).collect();
    assert_eq!(shown, [("openai/gpt-4o", "forced_open", 60), ("openai/o3", "closed", 1)]);
    assert_eq!(seen.breakers_in_all, 2);
}

#[test]
fn each_limit_that_holds_calls_of_a_tenant_is_told_and_the_user_whom_most_are_for() {
    let mut bench = Bench::with_limits(vec![
        bucket("each", &[Scope::User], &[(RPM, 1)]),
        bucket("slots", &[Scope::RequestType], &[(IN_FLIGHT, 4)]),
    ]);
    // The first call of each goes; the others of ada, bob and nobody in particular wait at levels of their own.
    for user in ["ada", "ada", "ada", "ada", "bob", "bob"] {
        bench.admit(within("acme", user));
    }
    for _ in 0..2 {
        let mut unnamed = within("acme", "");
        unnamed.subject.user = None;
        bench.admit(unnamed);
    }
    // No place is left for these.
    bench.admit(within("globex", "cleo"));
    for user in ["dora", "emil", "emil"] {
        bench.admit(within("acme", user));
    }
    bench.admit(Call { priority: Priority::Low, ..within("acme", "emil") });
    let row = |calls, priority, limit: &str, user: Option<&str>, users| WaitingStatus {
        tenant: "acme".into(),
        priority,
        calls,
        limit: Some(limit.into()),
        user: user.map(Into::into),
        users,
    };
    let seen = bench.gate.overview(bench.now, 9);
    assert_eq!(
        seen.waiting,
        [
            row(3, "normal", "each/ada/requests_per_minute", Some("ada"), 1),
            row(3, "normal", "slots/chat/max_in_flight", Some("emil"), 2),
            row(1, "low", "slots/chat/max_in_flight", Some("emil"), 1),
            row(1, "normal", "each/-/requests_per_minute", None, 0),
            row(1, "normal", "each/bob/requests_per_minute", Some("bob"), 1),
        ]
    );
    let few = bench.gate.overview(bench.now, 2);
    assert_eq!((few.waiting.len(), few.waiting_in_all), (2, 5));
}

#[test]
fn calls_that_wait_for_a_breaker_are_told_without_a_limit() {
    let mut bench = Bench::with_limits(vec![]);
    let breakers = vec![("openai/gpt-4o".into(), BreakerState::ForcedOpen)];
    assert!(bench.gate.override_with(Overrides { version: 1, breakers, ..Overrides::default() }, bench.now));
    bench.admit(Call { when_open: WhenOpen::Wait, ..call("ada", 1) });
    let seen = bench.gate.overview(bench.now, 9);
    assert_eq!((seen.waiting[0].limit.as_deref(), seen.waiting[0].calls), (None, 1));
}

#[test]
fn calls_that_wait_after_a_failed_attempt_are_counted_until_they_are_sent_or_queued() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 4)])]);
    let tickets = ["ada", "ada", "bob", "bob"].map(|user| bench.admit(call(user, 1)));
    turn_away(&mut bench, tickets[0], FaultKind::Overloaded);
    tickets[1..].iter().for_each(|ticket| turn_away(&mut bench, *ticket, FaultKind::RateLimited));
    bench.run_for(Duration::from_secs(11));
    let seen = bench.gate.overview(bench.now, 9);
    let queue = &seen.status.queue;
    assert_eq!((queue.backing_off, queue.depth, seen.status.in_flight), (4, 0, 0));
    let row = |tenant: &str, after, calls| BackingOffStatus {
        tenant: tenant.into(),
        target: "openai/gpt-4o".into(),
        after,
        calls,
    };
    let rows =
        [row("bob", "rate_limit_exceeded", 2), row("ada", "model_overloaded", 1), row("ada", "rate_limit_exceeded", 1)];
    assert_eq!(seen.backing_off, rows);
    assert_eq!(bench.gate.overview(bench.now, 1).backing_off, rows[..1]);
    // Others take what has come back meanwhile: their next attempts have to wait in the queue.
    bench.admit(named("other", call("cleo", 1)));
    bench.run_for(Duration::from_secs(3));
    let then = bench.gate.overview(bench.now, 9);
    let queue = &then.status.queue;
    assert_eq!((queue.backing_off, queue.depth + then.status.in_flight), (0, 5));
    assert!(then.backing_off.is_empty() && queue.depth > 0);
}

#[test]
fn the_oldest_wait_does_not_count_the_time_at_the_upstream() {
    let mut bench = Bench::with_limits(vec![bucket("slots", &[], &[(IN_FLIGHT, 1)])]);
    let ticket = bench.admit(call("ada", 1));
    bench.run_for(Duration::from_secs(30));
    turn_away(&mut bench, ticket, FaultKind::Overloaded);
    bench.admit(call("bob", 1));
    bench.run_for(Duration::from_secs(20));
    let queue = bench.gate.status(bench.now).queue;
    assert_eq!((queue.depth, queue.oldest_seconds), (1, 20.0));
}
