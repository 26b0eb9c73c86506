//! What a refusal says of time is everybody's, and traffic returns as a ramp.

use std::time::Duration;

use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::fault::{Fault, FaultKind, LimitNumbers};
use tidegate_core::gate::Ticket;
use tidegate_core::limit::Dimension;
use tidegate_core::outcome::{Ending, Outcome, ServerLimit, ServerLimits};

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;

fn learning() -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: TokenCharge::Learned };
    Policy { upstreams: vec![upstream], ..Policy::default() }
}

fn tell(bench: &mut Bench, ticket: Ticket, limit: u64, remaining: u64) {
    let told = ServerLimit { dimension: RPM, limit, remaining: Some(remaining) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 1);
}

fn refuse(bench: &mut Bench, ticket: Ticket, kind: FaultKind, wait: Duration) {
    let mut fault = Fault::new(kind, "429").with_status(429);
    fault.wait = Some(wait);
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
}

#[test]
fn after_a_wait_that_is_longer_than_the_limit_accounts_for_calls_come_back_as_a_ramp() {
    let mut bench = Bench::new(learning());
    let tell = |bench: &mut Bench, remaining| {
        let ticket = bench.admit(call("ada", 1));
        let told = ServerLimit { dimension: RPM, limit: 600, remaining: Some(remaining) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
    };
    tell(&mut bench, 599);
    bench.run_for(Duration::from_secs(30));
    tell(&mut bench, 599);
    let ticket = bench.admit(call("ada", 1));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_secs(30));
    fault.numbers = Some(LimitNumbers { dimension: Some(RPM), limit: 600, used: Some(600), requested: Some(1) });
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    let before = bench.granted.len();
    for _ in 0..400 {
        bench.admit(call("ada", 1));
    }
    let gone = |bench: &Bench| bench.granted.len() - before;
    bench.run_for(Duration::from_millis(29_990));
    assert_eq!(gone(&bench), 0, "the wait is everybody's");
    bench.run_for(Duration::from_millis(20));
    assert!((1..=8).contains(&gone(&bench)), "three hundred have flowed in, and do not go at once: {}", gone(&bench));
    bench.run_for(Duration::from_secs(5));
    assert!((60..=90).contains(&gone(&bench)), "half as many again as flow in: {}", gone(&bench));
    bench.run_for(Duration::from_secs(6));
    assert!(gone(&bench) > 300, "{}", gone(&bench));
}

#[test]
fn after_a_wait_that_nothing_accounts_for_calls_come_back_as_a_ramp() {
    let tell = |bench: &mut Bench| {
        let ticket = bench.admit(call("ada", 1));
        let told = ServerLimit { dimension: RPM, limit: 600, remaining: Some(599) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
    };
    // Where a limit is told there is room; where none is nothing is known.
    for (is_told, at_most_then, at_most_later) in [(true, 10, 65), (false, 8, 53)] {
        let mut bench = Bench::new(learning());
        if is_told {
            tell(&mut bench);
            bench.run_for(Duration::from_secs(20));
            tell(&mut bench);
        }
        let ticket = bench.admit(call("ada", 1));
        let before = bench.granted.len();
        for _ in 0..400 {
            bench.admit(call("ada", 1));
        }
        let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
        fault.wait = Some(Duration::from_secs(10));
        let went_before_it_came = bench.granted.len() - before;
        bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
        let gone = |bench: &Bench| bench.granted.len() - before - went_before_it_came;
        bench.run_for(Duration::from_millis(9_990));
        assert_eq!(gone(&bench), 0, "the wait is everybody's: told {is_told}");
        bench.run_for(Duration::from_millis(20));
        assert!(gone(&bench) <= at_most_then, "no herd: {}, told {is_told}", gone(&bench));
        bench.run_for(Duration::from_secs(5));
        assert!((1..=at_most_later).contains(&gone(&bench)), "{}, told {is_told}", gone(&bench));
    }
}

#[test]
fn a_wait_that_comes_without_numbers_is_everybody_s_however_little_was_left() {
    for remaining in [0, 1, 2, 30] {
        let mut bench = Bench::new(learning());
        let first = bench.admit(call("ada", 1));
        tell(&mut bench, first, 60, remaining);
        bench.run_for(Duration::from_secs(1));
        let second = bench.admit(call("ada", 1));
        bench.run_for(Duration::from_secs(2));
        assert!(bench.is_granted(second));
        refuse(&mut bench, second, FaultKind::RateLimited, Duration::from_secs(20));
        let before = bench.granted.len();
        let other = bench.admit(call("bob", 1));
        bench.run_for(Duration::from_millis(19_900));
        assert_eq!(bench.granted.len(), before, "{remaining} left");
        bench.run_for(Duration::from_secs(4));
        assert!(bench.is_granted(other), "{remaining} left");
    }
}

/// Two calls a second went for five seconds, and the last is told to slow down, and to wait two seconds.
fn slowed_down() -> Bench {
    let mut bench = Bench::new(learning());
    for number in 0..10 {
        let ticket = bench.admit(call("ada", 100));
        tell(&mut bench, ticket, 600, 599 - number);
        bench.run_for(Duration::from_millis(500));
    }
    let ticket = bench.admit(call("ada", 100));
    refuse(&mut bench, ticket, FaultKind::SlowDown, Duration::from_secs(2));
    bench
}

#[test]
fn slow_down_halves_what_went_however_short_the_time_was() {
    let mut bench = slowed_down();
    for _ in 0..400 {
        bench.admit(call("ada", 100));
    }
    let before = bench.granted.len();
    bench.run_for(Duration::from_millis(1990));
    assert_eq!(bench.granted.len(), before, "the pause");
    let mut within = |seconds| {
        let before = bench.granted.len();
        bench.run_for(Duration::from_secs(seconds));
        bench.granted.len() - before
    };
    let at_first = within(20);
    assert!((15..=26).contains(&at_first), "two a second went, and one does: {at_first}");
    within(100);
    let in_the_end = within(20);
    assert!(in_the_end > 38, "and all of it two minutes later: {in_the_end}");
}

#[test]
fn slow_down_makes_a_large_call_wait_no_longer_than_a_small_one() {
    let mut bench = slowed_down();
    let large = bench.admit(call("bob", 4000));
    bench.run_for(Duration::from_secs(6));
    assert!(bench.is_granted(large));
}

#[test]
fn slow_down_to_the_first_call_of_all_is_a_pause_and_nothing_else() {
    let mut bench = Bench::new(learning());
    let first = bench.admit(call("ada", 100));
    refuse(&mut bench, first, FaultKind::SlowDown, Duration::from_secs(2));
    bench.run_for(Duration::from_millis(1990));
    let before = bench.granted.len();
    bench.run_for(Duration::from_secs(1));
    assert!(bench.granted.len() > before, "its second attempt goes when the wait is over");
    let next = bench.admit(call("ada", 100));
    bench.run_for(Duration::from_millis(100));
    assert!(bench.is_granted(next));
}

#[test]
fn what_slow_down_left_is_given_up_when_nothing_waits_for_it() {
    let mut bench = slowed_down();
    assert_eq!(bench.gate.status(bench.now).learned[0].paced.len(), 1);
    for number in 0..160 {
        bench.run_for(Duration::from_secs(1));
        let ticket = bench.admit(call("ada", 100));
        if bench.is_granted(ticket) {
            tell(&mut bench, ticket, 600, 590 - number % 2);
        }
    }
    assert!(bench.gate.status(bench.now).learned[0].paced.is_empty());
}

#[test]
fn an_upstream_that_refuses_one_call_after_another_is_asked_ever_less_often_whatever_wait_it_tells() {
    let mut bench = Bench::new(learning());
    let first = bench.admit(call("ada", 1));
    tell(&mut bench, first, 60_000, 59_000);
    bench.run_for(Duration::from_secs(20));
    let untrue = LimitNumbers { dimension: Some(RPM), limit: 60_000, used: Some(60_000), requested: Some(1) };
    let refuse_all_that_go = |bench: &mut Bench, seconds: u64| {
        let mut refused = 0;
        for _ in 0..seconds * 20 {
            let sent = std::mem::take(&mut bench.granted);
            bench.run_for(Duration::from_millis(50));
            for (_, ticket) in sent {
                let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
                (fault.wait, fault.numbers) = (Some(Duration::from_millis(1)), Some(untrue));
                bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
                refused += 1;
            }
        }
        refused
    };
    for _ in 0..500 {
        bench.admit(call("ada", 1));
    }
    let at_first = refuse_all_that_go(&mut bench, 6);
    assert!(at_first < 560, "those that were sent, and a few each time that it was tried: {at_first}");
    let later = refuse_all_that_go(&mut bench, 6);
    assert!(later < 40, "some every three seconds: {later}");
    // Well again: all of them go within a few seconds.
    let mut done = 0;
    for _ in 0..20 * 20 {
        for (_, ticket) in std::mem::take(&mut bench.granted) {
            bench.succeed(ticket, 1);
            done += 1;
        }
        bench.run_for(Duration::from_millis(50));
    }
    assert!(done >= 500, "{done}");
}
