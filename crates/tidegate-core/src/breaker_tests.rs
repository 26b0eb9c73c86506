use super::*;
use crate::fault::FaultKind;

fn breaker() -> Breaker {
    Breaker::new(Arc::new(BreakerConfig::default()))
}

fn fault() -> Fault {
    Fault::new(FaultKind::Server, "500").with_status(500)
}

const GOOD: BreakerResult = BreakerResult::Good { first_byte_after: None };

fn end(breaker: &mut Breaker, tenant: u64, result: BreakerResult, now: Time) -> Option<BreakerState> {
    assert_eq!(breaker.says(now), BreakerSays::Go);
    let permit = breaker.permit(now);
    breaker.record(permit, tenant, result, Some(&fault()), now)
}

fn opened(at: Time) -> Breaker {
    let mut breaker = breaker();
    for _ in 0..5 {
        end(&mut breaker, 1, BreakerResult::Bad, at);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker
}

#[test]
fn five_failures_in_a_row_open_it_and_four_with_a_success_between_do_not() {
    let mut breaker = breaker();
    for _ in 0..4 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    end(&mut breaker, 1, GOOD, Time::ZERO);
    for _ in 0..4 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    assert_eq!(breaker.state(), BreakerState::Open);
    assert_eq!(breaker.says(Time::from_secs(59)), BreakerSays::NotBefore(Time::from_secs(60)));
}

#[test]
fn one_tenants_failures_do_not_open_it_while_another_was_active() {
    let mut breaker = breaker();
    end(&mut breaker, 2, GOOD, Time::ZERO);
    for _ in 0..20 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    end(&mut breaker, 2, BreakerResult::Bad, Time::ZERO);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn a_rate_counts_only_after_the_minimum_of_calls() {
    let mut breaker = breaker();
    for call in 0..9 {
        end(&mut breaker, 1, if call % 2 == 0 { BreakerResult::Bad } else { GOOD }, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn rate_limits_neither_open_nor_heal_it() {
    let mut breaker = breaker();
    for _ in 0..4 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    for _ in 0..50 {
        end(&mut breaker, 1, BreakerResult::Ignored, Time::ZERO);
    }
    end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn half_open_lets_three_probes_go_and_as_many_successes_close_it() {
    let mut breaker = opened(Time::ZERO);
    let now = Time::from_secs(60);
    let permits: Vec<_> = (0..3).map(|_| breaker.permit(now)).collect();
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert_eq!(breaker.says(now), BreakerSays::NotUntilChange);
    for (number, permit) in permits.into_iter().enumerate() {
        assert_eq!(breaker.state(), BreakerState::HalfOpen, "{number}");
        breaker.record(permit, 1, GOOD, None, now);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn a_probe_that_is_dropped_gives_its_slot_back_and_decides_nothing() {
    let mut breaker = opened(Time::ZERO);
    let now = Time::from_secs(60);
    for _ in 0..10 {
        let permit = breaker.permit(now);
        breaker.record(permit, 1, BreakerResult::Ignored, None, now);
    }
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert_eq!(breaker.says(now), BreakerSays::Go);
}

#[test]
fn a_failed_probe_reopens_it_for_twice_as_long_up_to_a_bound() {
    let mut breaker = opened(Time::ZERO);
    let mut now = Time::from_secs(60);
    for expected in [120, 240, 240, 240] {
        end(&mut breaker, 1, BreakerResult::Bad, now);
        let next = breaker.next_probe_at().unwrap();
        let open_for = next.since(now).as_secs();
        assert!((expected..=expected * 5 / 4).contains(&open_for), "{open_for} {expected}");
        now = next;
    }
}

#[test]
fn probes_do_not_fall_in_step_with_an_outage_that_comes_back_every_minute() {
    let mut breaker = opened(Time::ZERO);
    let mut missed = 0;
    while breaker.state() != BreakerState::Closed {
        let now = breaker.next_probe_at().expect("it is open");
        missed += 1;
        let is_out = now.as_micros() % 60_000_000 < 5_000_000;
        let probes = if is_out { 1 } else { 3 };
        for _ in 0..probes {
            end(&mut breaker, 1, if is_out { BreakerResult::Bad } else { GOOD }, now);
        }
        assert!(missed < 10, "it stays open for ever");
    }
}

#[test]
fn a_late_result_of_an_older_state_counts_for_nothing() {
    let mut breaker = breaker();
    let late = breaker.permit(Time::ZERO);
    for _ in 0..5 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    let now = Time::from_secs(60);
    let _probe = breaker.permit(now);
    assert_eq!(breaker.record(late, 1, BreakerResult::Bad, None, now), None);
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
}

#[test]
fn failures_that_end_sooner_than_good_calls_are_no_high_rate() {
    let mut breaker = breaker();
    let permits: Vec<_> = (0..100).map(|_| breaker.permit(Time::ZERO)).collect();
    // Twenty of a hundred fail, at once; never five in a row without a good one between.
    for (number, permit) in permits.iter().enumerate().take(40) {
        let result = if number % 2 == 0 { BreakerResult::Bad } else { GOOD };
        breaker.record(*permit, number as u64 % 3, result, None, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Closed, "20 of 100, whatever has ended by now");
    for permit in &permits[40..] {
        breaker.record(*permit, 1, GOOD, None, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn streams_that_have_been_open_for_long_do_not_hide_that_new_calls_fail() {
    for open_streams in [0, 20, 400] {
        let mut breaker = breaker();
        for _ in 0..open_streams {
            breaker.permit(Time::ZERO);
        }
        // Four of five fail, never five in a row.
        let ends = (1..).map(|number| if number % 5 == 0 { GOOD } else { BreakerResult::Bad });
        let calls = ends.take_while(|result| {
            end(&mut breaker, 1, *result, Time::from_secs(10));
            breaker.state() == BreakerState::Closed
        });
        assert!(calls.count() <= 12, "beside {open_streams} streams");
    }
}

#[test]
fn slow_calls_open_it_when_asked_to_count() {
    let config = BreakerConfig { slow_call_duration: Some(Duration::from_secs(1)), ..BreakerConfig::default() };
    let mut breaker = Breaker::new(Arc::new(config));
    for _ in 0..10 {
        let slow = BreakerResult::Good { first_byte_after: Some(Duration::from_secs(2)) };
        end(&mut breaker, 1, slow, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn forced_states_hold_whatever_happens() {
    let mut breaker = breaker();
    breaker.force(BreakerState::ForcedClosed, Time::ZERO);
    for _ in 0..20 {
        end(&mut breaker, 1, BreakerResult::Bad, Time::ZERO);
    }
    assert_eq!(breaker.state(), BreakerState::ForcedClosed);
    breaker.force(BreakerState::ForcedOpen, Time::ZERO);
    assert_eq!(breaker.says(Time::from_secs(1_000_000)), BreakerSays::NotUntilChange);
}

#[test]
fn after_closing_traffic_comes_back_as_a_ramp_no_longer_than_it_was_open() {
    let mut breaker = opened(Time::ZERO);
    let now = Time::from_secs(60);
    for _ in 0..3 {
        end(&mut breaker, 1, GOOD, now);
    }
    assert!(breaker.ramp_share(now) < 0.01);
    assert!((breaker.ramp_share(Time::from_secs(90)) - 0.5).abs() < 0.01);
    assert!(breaker.ramp_share(Time::from_secs(120)) >= 1.0);
}
