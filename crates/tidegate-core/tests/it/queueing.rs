//! Who goes first.

use std::time::Duration;

use tidegate_core::call::{Call, Priority, WhenOpen};
use tidegate_core::config::Policy;
use tidegate_core::fault::FaultKind;
use tidegate_core::gate::Ticket;
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::refusal::Reason;
use tidegate_core::time::Time;

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

fn of_class(user: &str, tokens: u64, priority: Priority) -> Call {
    Call { priority, ..call(user, tokens) }
}

/// How many of `tickets` were granted.
fn granted(bench: &Bench, tickets: &[Ticket]) -> usize {
    tickets.iter().filter(|ticket| bench.is_granted(**ticket)).count()
}

fn many(bench: &mut Bench, count: usize, made: impl Fn() -> Call) -> Vec<Ticket> {
    (0..count).map(|_| bench.admit(made())).collect()
}

#[test]
fn waiters_of_one_lane_go_first_in_first_out() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 60)])]);
    let tickets = many(&mut bench, 120, || call("ada", 1));
    bench.run_for(Duration::from_secs(60));
    let order: Vec<_> = bench.granted.iter().map(|(_, ticket)| *ticket).collect();
    assert_eq!(order, tickets);
}

#[test]
fn classes_share_the_room_by_their_weights_while_they_contend() {
    let mut bench = Bench::new(Policy {
        queue: tidegate_core::config::QueueConfig::default().with_reserve(0.0),
        ..policy(vec![bucket("team", &[], &[(RPM, 600)])])
    });
    many(&mut bench, 600, || call("start", 1));
    let low = many(&mut bench, 1000, || of_class("l", 1, Priority::Low));
    let normal = many(&mut bench, 1000, || of_class("n", 1, Priority::Normal));
    let high = many(&mut bench, 1000, || of_class("h", 1, Priority::High));
    bench.run_for(Duration::from_secs(130));
    let shares = [granted(&bench, &low), granted(&bench, &normal), granted(&bench, &high)];
    let total: usize = shares.iter().sum();
    assert_eq!(total, 1300);
    for (share, expected) in shares.into_iter().zip([100, 400, 800]) {
        assert!(share.abs_diff(expected) <= 3, "{shares:?}");
    }
}

#[test]
fn tenants_of_one_class_share_alike_however_many_calls_each_has() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 600)])]);
    many(&mut bench, 600, || call("start", 1));
    let greedy = many(&mut bench, 2000, || call("greedy", 1));
    let modest = many(&mut bench, 100, || call("modest", 1));
    bench.run_for(Duration::from_secs(20));
    assert!(granted(&bench, &modest) >= 98, "{}", granted(&bench, &modest));
    assert!(granted(&bench, &greedy) >= 98);
}

#[test]
fn a_tenants_weight_is_its_share() {
    let mut queue = tidegate_core::config::QueueConfig::default();
    queue.weights.insert("acme".into(), 3);
    let mut bench = Bench::new(Policy { queue, ..policy(vec![bucket("team", &[], &[(RPM, 600)])]) });
    many(&mut bench, 600, || call("start", 1));
    let acme = many(&mut bench, 500, || call("acme", 1));
    let other = many(&mut bench, 500, || call("other", 1));
    bench.run_for(Duration::from_secs(40));
    let (acme, other) = (granted(&bench, &acme), granted(&bench, &other));
    assert!(acme.abs_diff(300) <= 3 && other.abs_diff(100) <= 3, "{acme} {other}");
}

#[test]
fn a_waiter_blocked_by_its_own_users_limit_holds_up_nobody_else() {
    let mut bench =
        Bench::with_limits(vec![bucket("all", &[], &[(RPM, 6000)]), bucket("each", &[Scope::User], &[(RPM, 1)])]);
    many(&mut bench, 50, || call("greedy", 1));
    let mut others = Vec::new();
    for user in 0..50 {
        others.push(bench.admit(call(&format!("user-{user}"), 1)));
    }
    assert_eq!(granted(&bench, &others), 50);
}

#[test]
fn a_large_request_keeps_its_place_while_small_ones_keep_coming() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 6000)])]);
    bench.admit(call("start", 6000));
    let large = bench.admit(call("whale", 5000));
    for _ in 0..100 {
        many(&mut bench, 20, || call("small", 50));
        bench.run_for(Duration::from_secs(1));
    }
    let at = bench.granted.iter().find(|(_, ticket)| *ticket == large).map(|(at, _)| *at);
    let waited = at.expect("the large one must go").since(Time::from_secs(1_000_000));
    assert!(waited <= Duration::from_secs(101), "{waited:?}");
}

#[test]
fn a_large_request_that_needs_two_contended_levels_is_not_starved_between_them() {
    let mut bench = Bench::with_limits(vec![
        bucket("requests", &[Scope::User], &[(TPM, 6000)]),
        bucket("shared", &[], &[(TPM, 12_000)]),
    ]);
    let start = bench.now;
    bench.admit(call("whale", 6000));
    bench.admit(call("start", 6000));
    let large = bench.admit(call("whale", 5900));
    for _ in 0..180 {
        for user in 0..20 {
            many(&mut bench, 2, || call(&format!("small-{user}"), 100));
        }
        bench.run_for(Duration::from_secs(1));
    }
    let at = bench.granted.iter().find(|(_, ticket)| *ticket == large).map(|(at, _)| at.since(start));
    assert!(at.is_some_and(|at| at < Duration::from_secs(150)), "{at:?}");
}

#[test]
fn interactive_calls_within_the_reserve_do_not_wait_beside_a_batch_job() {
    let mut bench = Bench::with_limits(vec![bucket("account", &[Scope::Account], &[(RPM, 600), (TPM, 600_000)])]);
    // Somebody interactive was here lately: that is what arms the reserve.
    bench.admit(call("person", 100));
    let batch = many(&mut bench, 5000, || of_class("batch", 1000, Priority::Low));
    let mut waited = 0;
    for _ in 0..300 {
        bench.run_for(Duration::from_secs(1));
        let tickets = many(&mut bench, 3, || call("person", 1000));
        waited += tickets.iter().filter(|ticket| !bench.is_granted(**ticket)).count();
    }
    assert_eq!(waited, 0);
    let done = granted(&bench, &batch);
    // 600 a minute for 5 minutes, less 3 a second of the person's, and half of the first bucket.
    assert!(done >= 2000, "the batch job gets what is left: {done}");
}

fn may_not_wait(bench: &Bench, tokens: u64, priority: Priority) -> Call {
    Call { start_by: bench.now, ..of_class("person", tokens, priority) }
}

#[test]
fn who_has_no_place_to_wait_in_goes_at_once_where_lower_classes_wait_at_the_reserve() {
    let mut policy = policy(vec![bucket("team", &[], &[(RPM, 600)])]);
    policy.queue.max_waiting = 1000;
    let mut bench = Bench::new(policy);
    bench.admit(call("person", 1));
    let batch = many(&mut bench, 1300, || of_class("batch", 1, Priority::Low));
    assert_eq!((granted(&bench, &batch), bench.gate.waiting()), (299, 1000), "half is kept, and the queue is full");
    for (made, goes) in [
        (call("person", 1), true),
        (may_not_wait(&bench, 1, Priority::Normal), true),
        (may_not_wait(&bench, 1, Priority::High), true),
        (may_not_wait(&bench, 1, Priority::Low), false),
        (of_class("person", 1, Priority::Low), false),
        // What is kept for the high is not for it.
        (may_not_wait(&bench, 1, Priority::Normal), false),
    ] {
        let told = bench.gate.check(&made, bench.now);
        let ticket = bench.admit(made);
        assert_eq!((bench.is_granted(ticket), bench.refusal(ticket).is_some()), (goes, !goes));
        assert_eq!(told.allowed, goes);
    }
    // 297 are left. Half of what is kept is theirs who wait, in their turn.
    let rest = many(&mut bench, 297, || of_class("person", 1, Priority::High));
    assert_eq!(granted(&bench, &rest), 147);
}

#[test]
fn who_may_not_wait_finds_room_once_those_before_were_refused() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 600)])]);
    many(&mut bench, 9000, || of_class("batch", 1, Priority::Low));
    let mut went = 0;
    for _ in 0..60 {
        bench.run_for(Duration::from_secs(1));
        let made = may_not_wait(&bench, 1, Priority::High);
        let ticket = bench.admit(made);
        went += usize::from(bench.is_granted(ticket));
    }
    // The level was empty; an eighth of what flows in is for the low ones while half of the reserve fills: 17 s.
    assert!((40..=44).contains(&went), "{went}");
}

#[test]
fn who_is_held_for_higher_classes_is_told_what_is_kept_and_when_its_part_is_due() {
    // Of a window nothing comes back for a minute: a part of what flows in is due before that.
    for team in [bucket("team", &[], &[(RPM, 60)]), limit("team", &[], &[(RPM, 60)])] {
        let mut bench = Bench::with_limits(vec![team]);
        let shown = |bench: &mut Bench| bench.gate.status(bench.now).limits[0].meters[0].clone();
        bench.admit(of_class("person", 1, Priority::High));
        many(&mut bench, 29, || of_class("batch", 1, Priority::Low));
        let made = Call { start_by: bench.now, ..of_class("batch", 1, Priority::Low) };
        let told = bench.admit(made.clone());
        let refusal = bench.refusal(told).unwrap();
        let Reason::Limit(held) = &refusal.reason else { panic!("{refusal:?}") };
        assert_eq!((held.used, held.kept), (30, 30));
        let first = refusal.retry_after.unwrap();
        assert_eq!((shown(&mut bench).binds, shown(&mut bench).kept), (false, 0), "nobody waits for it");
        assert!((1..=8).contains(&first.as_secs()), "{first:?}");
        many(&mut bench, 3, || of_class("batch", 1, Priority::Low));
        assert_eq!((shown(&mut bench).binds, shown(&mut bench).kept), (true, 30));
        let behind = bench.admit(made);
        let later = bench.refusal(behind).unwrap().retry_after.unwrap();
        assert!(later > first, "{first:?} {later:?}");
    }
}

#[test]
fn calls_that_may_not_wait_leave_a_large_one_that_waits_its_part() {
    for every in [50, 90, 100] {
        let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 6000)])]);
        bench.admit(of_class("person", 10, Priority::High));
        let first = many(&mut bench, 29, || of_class("batch", 100, Priority::Low))[0];
        // It used far more than it had said: 90 are left.
        bench.succeed(first, 3100);
        assert_eq!(bench.remaining("team", TPM), 90);
        let large = bench.admit(of_class("batch", 500, Priority::Low));
        let mut went = 0;
        for _ in 0..120_000 / every {
            bench.run_for(Duration::from_millis(every));
            let made = may_not_wait(&bench, 10, Priority::High);
            let ticket = bench.admit(made);
            went += usize::from(bench.is_granted(ticket));
        }
        assert!(bench.is_granted(large), "every {every} ms");
        assert!(went > 400, "every {every} ms: {went}");
    }
}

#[test]
fn high_goes_before_low_when_both_wait() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 60)])]);
    many(&mut bench, 60, || call("start", 1));
    let low = many(&mut bench, 60, || of_class("batch", 1, Priority::Low));
    let high = many(&mut bench, 8, || of_class("person", 1, Priority::High));
    bench.run_for(Duration::from_secs(10));
    assert_eq!(granted(&bench, &high), 8);
    assert!(granted(&bench, &low) >= 1);
}

#[test]
fn a_predicted_wait_is_near_the_real_one() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 600)])]);
    many(&mut bench, 600, || call("start", 1));
    many(&mut bench, 100, || call("ada", 1));
    many(&mut bench, 300, || call("bob", 1));
    let refused = |bench: &mut Bench, user: &str, seconds: u64| {
        let mut hurried = call(user, 1);
        hurried.start_by = bench.now + Duration::from_secs(seconds);
        let ticket = bench.admit(hurried);
        bench.refusal(ticket).map(|refusal| refusal.retry_after.unwrap().as_secs_f64())
    };
    // A newcomer shares alike with the two that wait: its turn is almost at once.
    assert_eq!(refused(&mut bench, "eve", 2), None);
    // Behind ada's hundred, with bob and eve in turn: about 20 s.
    let ada = refused(&mut bench, "ada", 5).expect("five seconds are too few");
    assert!((15.0..=25.0).contains(&ada), "{ada}");
    let bob = refused(&mut bench, "bob", 5).expect("five seconds are too few");
    assert!((35.0..=45.0).contains(&bob), "{bob}");
}

#[test]
fn a_full_queue_refuses_and_says_how_many_wait() {
    let mut policy = policy(vec![bucket("team", &[], &[(RPM, 60)])]);
    policy.queue.max_waiting = 10;
    let mut bench = Bench::new(policy);
    many(&mut bench, 70, || call("ada", 1));
    let ticket = bench.admit(call("ada", 1));
    let refusal = bench.refusal(ticket).unwrap();
    assert_eq!(refusal.reason, Reason::QueueFull { waiting: 10 });
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(11)));
}

#[test]
fn waiting_bodies_are_bounded_in_bytes() {
    let mut policy = policy(vec![bucket("team", &[], &[(RPM, 60)])]);
    policy.queue.max_bytes = 1000;
    let mut bench = Bench::new(policy);
    many(&mut bench, 60, || call("ada", 1));
    let with_body = || Call { body_bytes: 400, ..call("ada", 1) };
    let tickets = many(&mut bench, 3, with_body);
    assert!(bench.refusal(tickets[2]).is_some());
    assert!(bench.refusal(tickets[1]).is_none());
}

#[test]
fn a_waiter_that_is_cancelled_at_any_place_leaves_no_trace() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 60)])]);
    many(&mut bench, 60, || call("start", 1));
    let waiting = many(&mut bench, 30, || call("ada", 1));
    for ticket in waiting.iter().step_by(2) {
        bench.gate.cancel(*ticket, bench.now);
    }
    bench.run_for(Duration::from_secs(15));
    assert_eq!(granted(&bench, &waiting), 15);
    assert_eq!(bench.gate.waiting(), 0);
    assert_eq!(bench.remaining("team", RPM), 0);
}

#[test]
fn who_waits_past_its_deadline_is_refused_with_the_limit_that_held_it() {
    let mut bench = Bench::with_limits(vec![bucket("slots", &[], &[(Dimension::MaxInFlight, 1)])]);
    bench.admit(call("ada", 1));
    let mut waiting = call("ada", 1);
    waiting.start_by = bench.now + Duration::from_secs(5);
    let ticket = bench.admit(waiting);
    bench.run_for(Duration::from_secs(5));
    let refusal = bench.refusal(ticket).unwrap();
    assert_eq!(refusal.waited, Duration::from_secs(5));
    let Reason::Limit(report) = &refusal.reason else { panic!("{refusal:?}") };
    assert_eq!(report.dimension, Dimension::MaxInFlight);
    assert_eq!(bench.gate.waiting(), 0);
}

#[test]
fn a_place_in_flight_that_is_given_back_goes_to_the_next_at_once() {
    let mut bench = Bench::with_limits(vec![bucket("slots", &[], &[(Dimension::MaxInFlight, 2)])]);
    let tickets = many(&mut bench, 5, || call("ada", 1));
    for number in 0..3 {
        assert_eq!(granted(&bench, &tickets), 2 + number);
        bench.succeed(tickets[number], 1);
    }
    assert_eq!(granted(&bench, &tickets), 5);
}

#[test]
fn those_who_will_not_wait_are_refused_when_the_breaker_opens_and_the_others_wait_for_it() {
    let mut bench = Bench::with_limits(vec![bucket("slots", &[], &[(Dimension::MaxInFlight, 5)])]);
    let under_way = many(&mut bench, 5, || call("ada", 1));
    let hurried = bench.admit(call("ada", 1));
    let patient = bench.admit(Call { when_open: WhenOpen::Wait, ..call("ada", 1) });
    for ticket in under_way {
        let outcome = failed(FaultKind::Server, 500);
        let _ = bench.settle(ticket, &outcome);
        bench.gate.cancel(ticket, bench.now);
    }
    let granted_before = bench.is_granted(hurried);
    if !granted_before {
        assert!(matches!(bench.refusal(hurried).unwrap().reason, Reason::Breaker(_)));
    }
    let opened = bench.gate.status(bench.now).breakers[0].state;
    assert_eq!(opened, "open");
    if !bench.is_granted(patient) {
        bench.run_for(Duration::from_secs(60));
        assert!(bench.is_granted(patient), "the probe goes when the breaker's time is over");
    }
}

#[test]
fn a_large_request_is_not_overtaken_without_end_by_calls_that_wait_for_limits_of_their_own() {
    let mut bench =
        Bench::with_limits(vec![bucket("shared", &[], &[(TPM, 60_000)]), bucket("each", &[Scope::User], &[(RPM, 6)])]);
    bench.admit(call("start", 60_000));
    for _ in 0..100 {
        for user in 0..9 {
            bench.admit(call(&format!("small-{user}"), 1000));
        }
    }
    let start = bench.now;
    let large = bench.admit(call("whale", 55_000));
    bench.run_for(Duration::from_secs(240));
    let at = bench.granted.iter().find(|(_, ticket)| *ticket == large).map(|(at, _)| at.since(start));
    assert!(at.is_some_and(|at| at < Duration::from_secs(120)), "{at:?}");
}

#[test]
fn a_lot_whose_waiters_all_left_wakes_the_next_one_all_the_same() {
    let mut bench = Bench::with_limits(vec![
        bucket("each", &[Scope::User], &[(RPM, 60)]),
        bucket("slots", &[Scope::Organization], &[(Dimension::MaxInFlight, 1)]),
    ]);
    let in_own_slot = |user: &str, number: usize| {
        let mut made = call(user, 1);
        made.subject.organization = Some(format!("{user}-{number}").into());
        made
    };
    let patient = |bench: &Bench, mut made: Call| {
        made.start_by = bench.now + Duration::from_secs(240);
        made
    };
    for number in 0..60 {
        bench.admit(in_own_slot("ada", number));
    }
    let first = patient(&bench, in_own_slot("ada", 60));
    let first = bench.admit(first);
    bench.gate.cancel(first, bench.now);
    bench.admit(in_own_slot("bob", 0));
    for _ in 0..3000 {
        let other = patient(&bench, in_own_slot("bob", 0));
        let other = bench.admit(other);
        bench.gate.cancel(other, bench.now);
    }
    bench.drain();
    let waiting = patient(&bench, in_own_slot("ada", 61));
    let waiting = bench.admit(waiting);
    bench.run_for(Duration::from_secs(2));
    assert!(bench.is_granted(waiting), "{:?}", bench.refusal(waiting));
}

#[test]
fn a_level_below_its_reserve_shuts_no_class_out_while_it_fills() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(TPM, 60_000)])]);
    // Somebody interactive takes all at once: the level is empty, and the reserve is armed.
    for _ in 0..10 {
        bench.admit(of_class("person", 6000, Priority::High));
    }
    let batch = many(&mut bench, 100, || of_class("batch", 100, Priority::Low));
    bench.run_for(Duration::from_secs(16));
    // An eighth of 1,000 a second.
    let done = granted(&bench, &batch);
    assert!((15..=21).contains(&done), "{done}");
    let level = bench.remaining("team", TPM);
    assert!(level >= 13_000, "the reserve fills meanwhile: {level}");
}

#[test]
fn a_burst_of_all_classes_that_is_larger_than_the_reserve_uses_all_of_the_limit() {
    let mut bench = Bench::with_limits(vec![bucket("account", &[Scope::Account], &[(RPM, 500)])]);
    let mut tickets: [Vec<Ticket>; 3] = Default::default();
    for number in 0..1500 {
        let class = Priority::ALL[number % 3];
        tickets[class.index()].push(bench.admit(of_class("team", 1, class)));
        bench.run_for(Duration::from_millis(20));
    }
    let started = Time::from_secs(1_000_000);
    bench.run_until(started + Duration::from_secs(600));
    let ended = |tickets: &[Ticket]| {
        let last = bench.granted.iter().filter(|(_, ticket)| tickets.contains(ticket)).map(|(at, _)| at.since(started));
        last.max().expect("all are served")
    };
    let [low, normal, high] = tickets.each_ref().map(|tickets| ended(tickets));
    assert_eq!(bench.granted.len(), 1500);
    assert!(high < normal && normal < low, "in the order of their priority: {high:?} {normal:?} {low:?}");
    // 500 at once and one each 120 ms: 120 s.
    assert!(low <= Duration::from_millis(121_200), "{low:?}");
}

#[test]
fn a_reserve_that_was_spent_is_put_aside_again_after_ten_minutes() {
    let mut bench = Bench::with_limits(vec![bucket("account", &[Scope::Account], &[(RPM, 600)])]);
    bench.admit(call("person", 1));
    let batch = many(&mut bench, 20_000, || of_class("batch", 1, Priority::Low));
    many(&mut bench, 400, || call("person", 1));
    // Somebody stays active; each call waits for no more than its turn.
    for _ in 0..700 {
        bench.run_for(Duration::from_secs(1));
        bench.admit(call("person", 1));
    }
    let level = bench.remaining("account", RPM);
    assert!(level >= 290, "half of the level is there again: {level}");
    assert!(granted(&bench, &batch) >= 4500, "meanwhile nothing was put aside: {}", granted(&bench, &batch));
}

#[test]
fn the_last_calls_of_a_job_leave_no_margin_to_those_that_never_come() {
    let go_at_once = |is_last: bool| {
        let mut bench = Bench::with_limits(vec![bucket("account", &[Scope::Account, Scope::Model], &[(RPM, 600)])]);
        many(&mut bench, 590, || call("ada", 1));
        if is_last {
            bench.gate.nothing_follows(bench.now);
        }
        many(&mut bench, 10, || call("ada", 1));
        bench.granted.len()
    };
    assert_eq!((go_at_once(false), go_at_once(true)), (598, 600));
}
