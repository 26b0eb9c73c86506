//! What failures of the upstream mean for a call.

use std::time::Duration;

use tidegate_core::call::Call;
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::fault::{Fault, FaultKind, LimitNumbers};
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::outcome::{Ending, Outcome, ServerLimit, ServerLimits};
use tidegate_core::refusal::{GiveUpReason, Next, Reason};

use crate::support::*;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

fn give_up_reason(next: &Next) -> Option<GiveUpReason> {
    match next {
        Next::GiveUp(given_up) => Some(given_up.reason),
        _ => None,
    }
}

#[test]
fn rate_limit_then_server_error_then_success_takes_three_sends() {
    let mut bench = Bench::with_limits(Vec::new());
    let ticket = bench.admit(call("ada", 1));
    assert!(matches!(bench.settle(ticket, &failed(FaultKind::RateLimited, 429)), Next::Retry { .. }));
    bench.run_for(Duration::from_secs(10));
    assert_eq!(bench.granted.len(), 2);
    assert!(matches!(bench.settle(ticket, &failed(FaultKind::Server, 500)), Next::Retry { .. }));
    bench.run_for(Duration::from_secs(10));
    assert_eq!(bench.granted.len(), 3);
    assert_eq!(bench.settle(ticket, &success(1)), Next::Done);
}

#[test]
fn a_rate_limited_call_goes_no_sooner_than_the_server_said_and_keeps_its_age() {
    let mut bench = Bench::with_limits(vec![bucket("slots", &[], &[(Dimension::MaxInFlight, 1)])]);
    let first = bench.admit(call("ada", 1));
    let second = bench.admit(call("ada", 1));
    let third = bench.admit(call("ada", 1));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_secs(3));
    let started = bench.now;
    bench.settle(first, &Outcome::of(Ending::Failed(fault)));
    assert!(!bench.is_granted(second), "the wait is everybody's");
    bench.run_for(Duration::from_secs(10));
    assert!(bench.granted[1].0 >= started + Duration::from_secs(3));
    let order: Vec<_> = bench.granted.iter().map(|(_, ticket)| *ticket).collect();
    assert_eq!(order[0], first);
    bench.succeed(order[1], 1);
    bench.succeed(bench.granted[2].1, 1);
    let order: Vec<_> = bench.granted.iter().map(|(_, ticket)| *ticket).collect();
    assert!(order[1..] == [first, second, third] || order[1..] == [second, first, third], "{order:?}");
}

#[test]
fn who_cannot_wait_for_the_end_of_a_pause_is_told_it_at_once() {
    let mut bench = Bench::with_limits(Vec::new());
    let mut unlucky = call("ada", 1);
    unlucky.start_by = bench.now + Duration::from_secs(240);
    let ticket = bench.admit(unlucky);
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_secs(114 * 3600));
    let end = bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    assert_eq!(give_up_reason(&end), Some(GiveUpReason::DeadlineExceeded));
    bench.run_for(Duration::from_secs(20));
    let mut hurried = call("eve", 1);
    hurried.start_by = bench.now + Duration::from_secs(30);
    let hurried = bench.admit(hurried);
    let refusal = bench.refusal(hurried).expect("its deadline is before the end of the pause");
    assert!(matches!(refusal.reason, Reason::Limit(_)), "{refusal:?}");
    assert_eq!(
        refusal.retry_after,
        Some(Duration::from_secs(40)),
        "one caller's 114 hours are a minute for the others"
    );
}

#[test]
fn a_rate_limit_returns_the_tokens_and_keeps_the_request() {
    let mut bench =
        Bench::with_limits(vec![bucket("account", &[tidegate_core::limit::Scope::Account], &[(RPM, 60), (TPM, 6000)])]);
    let ticket = bench.admit(call("ada", 500));
    bench.settle(ticket, &failed(FaultKind::RateLimited, 429));
    assert_eq!((bench.remaining("account", RPM), bench.remaining("account", TPM)), (59, 6000));
    bench.gate.cancel(ticket, bench.now);
    bench.run_for(Duration::from_secs(2));
    let ticket = bench.admit(call("ada", 500));
    bench.settle(ticket, &failed(FaultKind::Invalid, 400));
    assert_eq!(bench.remaining("account", TPM), 5500, "the upstream counts what it refuses to do");
}

#[test]
fn an_own_limit_charges_a_call_for_one_request_however_often_it_is_tried() {
    let mut bench = Bench::with_limits(vec![limit("own", &[], &[(RPM, 10)])]);
    let ticket = bench.admit(call("ada", 1));
    for _ in 0..2 {
        bench.settle(ticket, &failed(FaultKind::Server, 500));
        bench.run_for(Duration::from_secs(5));
    }
    assert_eq!(bench.granted.len(), 3);
    bench.succeed(ticket, 1);
    assert_eq!(bench.remaining("own", RPM), 9);
}

#[test]
fn attempts_deadline_and_kind_each_end_a_call() {
    let mut bench = Bench::with_limits(Vec::new());
    let ticket = bench.admit(call("ada", 1));
    assert_eq!(
        give_up_reason(&bench.settle(ticket, &failed(FaultKind::Invalid, 400))),
        Some(GiveUpReason::NotRetryable)
    );

    let ticket = bench.admit(call("ada", 1));
    bench.settle(ticket, &failed(FaultKind::Server, 500));
    bench.run_for(Duration::from_secs(60));
    bench.settle(ticket, &failed(FaultKind::Server, 500));
    bench.run_for(Duration::from_secs(60));
    let end = bench.settle(ticket, &failed(FaultKind::Server, 500));
    assert_eq!(give_up_reason(&end), Some(GiveUpReason::AttemptsExhausted));

    let mut hurried = call("eve", 1);
    hurried.start_by = bench.now + Duration::from_secs(2);
    let ticket = bench.admit(hurried);
    let mut fault = Fault::new(FaultKind::Server, "503").with_status(503);
    fault.wait = Some(Duration::from_secs(114 * 3600));
    let end = bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    assert_eq!(give_up_reason(&end), Some(GiveUpReason::DeadlineExceeded), "nobody sleeps 114 hours on a header");
}

#[test]
fn retries_are_bounded_as_a_share_of_calls() {
    let mut policy = policy(Vec::new());
    policy.retry.budget = tidegate_core::config::RetryBudgetConfig { ratio: 0.2, min_per_second: 0 };
    policy.breaker.failure_threshold = 1_000_000;
    policy.breaker.minimum_calls = 1_000_000;
    let mut bench = Bench::new(policy);
    let mut retried = 0;
    for _ in 0..1000 {
        let ticket = bench.admit(call("ada", 1));
        match bench.settle(ticket, &failed(FaultKind::Server, 500)) {
            Next::Retry { .. } => {
                retried += 1;
                bench.gate.cancel(ticket, bench.now);
            }
            other => assert_eq!(give_up_reason(&other), Some(GiveUpReason::BudgetExhausted)),
        }
    }
    assert_eq!(retried, 200);
}

#[test]
fn an_open_breaker_refuses_with_the_time_of_the_next_probe_and_no_probe_leaks() {
    let mut bench = Bench::with_limits(Vec::new());
    for _ in 0..5 {
        let ticket = bench.admit(call("ada", 1));
        bench.settle(ticket, &failed(FaultKind::Server, 503));
        bench.gate.cancel(ticket, bench.now);
    }
    let ticket = bench.admit(call("ada", 1));
    let refusal = bench.refusal(ticket).unwrap();
    let Reason::Breaker(report) = &refusal.reason else { panic!("{refusal:?}") };
    assert_eq!(&*report.cause, "5 failures in a row, last 503");
    assert_eq!(&*report.name, "openai/gpt-4o");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(60)));
    bench.run_for(Duration::from_secs(60));
    for _ in 0..20 {
        let ticket = bench.admit(call("ada", 1));
        assert!(bench.is_granted(ticket));
        bench.gate.cancel(ticket, bench.now);
    }
    for _ in 0..3 {
        let ticket = bench.admit(call("ada", 1));
        bench.succeed(ticket, 1);
    }
    assert_eq!(bench.gate.status(bench.now).breakers[0].state, "closed");
}

#[test]
fn after_an_outage_calls_come_back_as_a_ramp_and_not_as_a_herd() {
    let mut bench = Bench::with_limits(Vec::new());
    let under_way: Vec<_> = (0..40).map(|_| bench.admit(call("ada", 1))).collect();
    for ticket in under_way {
        bench.settle(ticket, &failed(FaultKind::Server, 503));
        bench.gate.cancel(ticket, bench.now);
    }
    bench.run_for(Duration::from_secs(60));
    let probes: Vec<_> = (0..3).map(|_| bench.admit(call("ada", 1))).collect();
    for ticket in probes {
        bench.succeed(ticket, 1);
    }
    let before = bench.granted.len();
    for _ in 0..40 {
        bench.admit(call("ada", 1));
    }
    let at_once = bench.granted.len() - before;
    assert!((1..=5).contains(&at_once), "{at_once}");
    bench.run_for(Duration::from_secs(30));
    let halfway = bench.granted.len() - before;
    assert!((15..=25).contains(&halfway), "{halfway}");
    bench.run_for(Duration::from_secs(31));
    assert_eq!(bench.granted.len() - before, 40);
}

fn learning() -> Policy {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: true, token_charge: TokenCharge::Learned };
    Policy { upstreams: vec![upstream], ..Policy::default() }
}

#[test]
fn while_nothing_is_known_eight_go_at_once_and_a_told_limit_lifts_that_in_ten_seconds() {
    let mut bench = Bench::new(learning());
    let tickets: Vec<_> = (0..50).map(|_| bench.admit(call("ada", 1))).collect();
    assert_eq!(bench.granted.len(), 8);
    let told = ServerLimit { dimension: RPM, limit: 600, remaining: Some(599) };
    bench.gate.observe(tickets[0], &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.drain();
    assert_eq!(bench.granted.len(), 8, "it may be enforced over a second: no herd");
    // One takes the place of each that has ended, half as many again go as the limit lets flow; ten seconds later all go.
    bench.succeed(tickets[0], 1);
    assert_eq!(bench.granted.len(), 9);
    bench.run_for(Duration::from_secs(1));
    assert_eq!(bench.granted.len(), 24);
    bench.run_for(Duration::from_secs(9));
    let more: Vec<_> = (0..200).map(|_| bench.admit(call("ada", 1))).collect();
    assert!(more.iter().all(|ticket| bench.is_granted(*ticket)));
}

#[test]
fn an_upstream_that_tells_nothing_is_tried_with_more_and_more() {
    let mut bench = Bench::new(learning());
    let mut waiting: Vec<_> = (0..2000).map(|_| bench.admit(call("ada", 1))).collect();
    let mut ended = 0;
    for _ in 0..12 {
        let granted: Vec<_> = bench.granted[ended..].iter().map(|(_, ticket)| *ticket).collect();
        ended = bench.granted.len();
        for ticket in granted {
            bench.succeed(ticket, 1);
        }
        bench.run_for(Duration::from_millis(10));
    }
    waiting.retain(|ticket| !bench.is_granted(*ticket));
    assert!(waiting.is_empty(), "{} still wait", waiting.len());
}

#[test]
fn a_limit_that_moves_is_followed_at_once() {
    let mut bench = Bench::new(learning());
    let tell = |bench: &mut Bench, limit, remaining| {
        let ticket = bench.admit(call("ada", 1));
        let told = ServerLimit { dimension: RPM, limit, remaining: Some(remaining) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
        let learned = bench.gate.status(bench.now).learned[0].limits[0].clone();
        (learned.limit, learned.remaining)
    };
    assert_eq!(tell(&mut bench, 600, 599), (600, 599));
    assert_eq!(tell(&mut bench, 300, 250), (300, 250));
    assert_eq!(tell(&mut bench, 1200, 900), (1200, 900));
}

#[test]
fn the_numbers_of_a_429_correct_the_level_that_they_name() {
    let mut bench = Bench::new(learning());
    let ticket = bench.admit(call("ada", 100));
    let told = ServerLimit { dimension: TPM, limit: 30_000, remaining: Some(29_900) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 100);
    bench.run_for(Duration::from_secs(5));
    let ticket = bench.admit(call("ada", 385));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_millis(644));
    fault.numbers =
        Some(LimitNumbers { dimension: Some(TPM), limit: 30_000, used: Some(29_937), requested: Some(385) });
    assert!(matches!(bench.settle(ticket, &Outcome::of(Ending::Failed(fault))), Next::Retry { .. }));
    let remaining = bench.gate.status(bench.now).learned[0].limits[0].remaining;
    // 63 are left there, and the refused call's own 385 come back.
    assert!((0..=63 + 385).contains(&remaining), "{remaining}");
}

#[test]
fn what_is_learned_never_lifts_what_is_configured() {
    let mirror = limit("account", &[Scope::Account, Scope::Model], &[(RPM, 20)]);
    let mut bench = Bench::new(Policy { limits: vec![mirror], ..learning() });
    let first = bench.admit(call("ada", 1));
    let told = ServerLimit { dimension: RPM, limit: 6000, remaining: Some(5999) };
    bench.gate.observe(first, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(first, 1);
    for _ in 0..100 {
        bench.admit(call("ada", 1));
    }
    assert_eq!(bench.granted.len(), 20, "the configured limit's bucket");
    bench.run_for(Duration::from_secs(60));
    assert!((39..=40).contains(&bench.granted.len()), "and its refill: {}", bench.granted.len());
}

#[test]
fn who_is_told_not_to_learn_any_more_forgets_paces_too() {
    let mut bench = Bench::new(learning());
    let ticket = bench.admit(call("ada", 1));
    let told = ServerLimit { dimension: RPM, limit: 6000, remaining: Some(5999) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 1);
    let ticket = bench.admit(call("ada", 1));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.numbers = Some(LimitNumbers { dimension: Some(RPM), limit: 6000, used: Some(1), requested: Some(1) });
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    assert_eq!(bench.gate.status(bench.now).learned[0].paced.len(), 1);
    let mut policy = learning();
    policy.upstreams[0].learn_limits = false;
    bench.gate.reload(policy, bench.now);
    assert!(bench.gate.status(bench.now).learned[0].paced.is_empty());
    bench.run_for(Duration::from_secs(2));
    let calls: Vec<_> = (0..500).map(|_| bench.admit(call("ada", 1))).collect();
    assert!(calls.iter().all(|call| bench.is_granted(*call)));
}

#[test]
fn where_limits_are_told_in_ever_other_ways_a_told_wait_holds_everybody() {
    let mut bench = Bench::new(learning());
    for limit in [600, 1200] {
        let ticket = bench.admit(call("ada", 1));
        let told = ServerLimit { dimension: RPM, limit, remaining: Some(0) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
        bench.run_for(Duration::from_secs(30));
    }
    let ticket = bench.admit(call("ada", 1));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_secs(3));
    fault.numbers = Some(LimitNumbers { dimension: Some(RPM), limit: 1200, used: Some(1200), requested: Some(1) });
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    let next = bench.admit(call("bob", 1));
    bench.run_for(Duration::from_millis(2_990));
    assert!(!bench.is_granted(next));
    bench.run_for(Duration::from_secs(1));
    assert!(bench.is_granted(next));
}

#[test]
fn too_large_for_a_learned_limit_is_judged_on_the_input_alone() {
    let mut bench = Bench::new(learning());
    let ticket = bench.admit(call("ada", 10));
    let told = ServerLimit { dimension: TPM, limit: 1000, remaining: Some(990) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 10);
    let mut wordy: Call = call("ada", 100);
    wordy.cost.max_output_tokens = Some(100_000);
    let ticket = bench.admit(wordy);
    assert!(bench.is_granted(ticket), "{:?}", bench.refusal(ticket));
    let ticket = bench.admit(call("ada", 1001));
    assert!(matches!(bench.refusal(ticket).unwrap().reason, Reason::TooLarge(_)));
}

#[test]
fn a_nonsense_limit_in_one_reply_does_not_refuse_calls_for_ever() {
    let mut bench = Bench::new(learning());
    let ticket = bench.admit(call("ada", 10));
    let told = ServerLimit { dimension: TPM, limit: 1, remaining: Some(1) };
    bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
    bench.succeed(ticket, 10);
    bench.run_for(Duration::from_secs(180));
    let ticket = bench.admit(call("ada", 100));
    bench.run_for(Duration::from_secs(120));
    assert!(bench.is_granted(ticket), "{:?}", bench.refusal(ticket));
}

#[test]
fn a_limit_that_replies_no_longer_mention_binds_no_more() {
    let mut bench = Bench::new(learning());
    let tell = |bench: &mut Bench, dimension, limit| {
        let ticket = bench.admit(call("ada", 1));
        assert!(bench.is_granted(ticket));
        let told = ServerLimit { dimension, limit, remaining: Some(limit - 1) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
    };
    tell(&mut bench, Dimension::RequestsPerDay, 1000);
    for _ in 0..16 {
        tell(&mut bench, RPM, 1000);
    }
    let learned = bench.gate.status(bench.now).learned[0].limits.clone();
    assert_eq!(learned.iter().map(|limit| limit.dimension).collect::<Vec<_>>(), ["requests_per_minute"]);
}

#[test]
fn a_limit_that_only_refusals_tell_is_kept_for_an_hour_after_the_last_of_them() {
    let mut bench = Bench::new(learning());
    let refused = bench.admit(call("ada", 1));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.numbers = Some(LimitNumbers { dimension: Some(TPM), limit: 6000, used: Some(6000), requested: Some(1) });
    bench.settle(refused, &Outcome::of(Ending::Failed(fault)));
    let reply = |bench: &mut Bench| {
        bench.run_for(Duration::from_secs(60));
        let ticket = bench.admit(call("ada", 1));
        let told = ServerLimit { dimension: RPM, limit: 1000, remaining: Some(999) };
        bench.gate.observe(ticket, &ServerLimits(smallvec::smallvec![told]), bench.now);
        bench.succeed(ticket, 1);
        let learned = bench.gate.status(bench.now).learned[0].limits.clone();
        learned.iter().map(|limit| (limit.dimension, limit.source)).collect::<Vec<_>>()
    };
    let both = [("tokens_per_minute", "refusals"), ("requests_per_minute", "headers")];
    assert!((0..59).all(|_| reply(&mut bench) == both));
    assert_eq!((reply(&mut bench), reply(&mut bench)).1, both[1..]);
}

#[test]
fn a_strategy_for_rate_limits_is_obeyed_and_bounded() {
    let mut policy = policy(Vec::new());
    let strategy = tidegate_core::config::RetryStrategyConfig::default().with_max_attempts(2);
    policy.retry.strategies.insert("rate_limit_exceeded".into(), strategy);
    let mut bench = Bench::new(policy);
    let ticket = bench.admit(call("ada", 1));
    assert!(matches!(bench.settle(ticket, &failed(FaultKind::RateLimited, 429)), Next::Retry { .. }));
    bench.run_for(Duration::from_secs(60));
    let end = bench.settle(ticket, &failed(FaultKind::RateLimited, 429));
    assert_eq!(give_up_reason(&end), Some(GiveUpReason::AttemptsExhausted));
}

#[test]
fn a_delay_by_chance_is_one_that_ends_before_the_deadline() {
    let mut bench = Bench::with_limits(Vec::new());
    // Full jitter of up to 10 s, three times: with 2 s left most draws are too long.
    for _ in 0..20 {
        let ticket = bench.admit(Call { start_by: bench.now + Duration::from_secs(2), ..call("ada", 1) });
        let Next::Retry { not_before } = bench.settle(ticket, &failed(FaultKind::Overloaded, 503)) else {
            panic!("given up with 2 s left");
        };
        assert!(not_before <= bench.now + Duration::from_secs(2));
        bench.gate.cancel(ticket, bench.now);
        bench.run_for(Duration::from_secs(400));
    }
    // What the server asks for is no chance.
    let ticket = bench.admit(Call { start_by: bench.now + Duration::from_secs(2), ..call("ada", 1) });
    let mut fault = Fault::new(FaultKind::Overloaded, "503").with_status(503);
    fault.wait = Some(Duration::from_secs(3));
    let next = bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    assert_eq!(give_up_reason(&next), Some(GiveUpReason::DeadlineExceeded));
}
