//! What is told of calls that were held or refused.

use std::time::Duration;

use tidegate_core::call::{Call, Priority};
use tidegate_core::event::{Event, Whose};
use tidegate_core::fault::{Fault, FaultKind};
use tidegate_core::gate::{Output, Ticket};
use tidegate_core::limit::{Dimension, Mode, Scope};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::refusal::Reason;

use crate::support::*;

const IN_FLIGHT: Dimension = Dimension::MaxInFlight;
const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

fn named(id: &str, made: Call) -> Call {
    Call { id: id.into(), ..made }
}

#[test]
fn a_refusal_is_explained_with_every_limit_as_it_stood() {
    let mut bench = Bench::with_limits(vec![
        bucket("account", &[Scope::Account], &[(RPM, 600), (TPM, 6000)]),
        limit("team", &[Scope::User], &[(RPM, 60)]),
    ]);
    bench.admit(call("ada", 5000));
    let hurried = Call { start_by: bench.now + Duration::from_secs(5), ..named("hurried", call("ada", 2000)) };
    bench.admit(hurried);
    let told = bench.gate.explain("hurried").expect("it was refused");
    assert_eq!((told.outcome, &*told.target, told.priority), ("limit", "openai/gpt-4o", "normal"));
    assert_eq!(told.retry_after_ms, Some(10_250.0), "1,000 and a margin of 25 are missing, at 100 a second");
    let stood: Vec<_> = told
        .limits
        .iter()
        .map(|then| (&*then.limit, then.dimension, then.remaining, then.requested, then.binds))
        .collect();
    assert_eq!(
        stood,
        [
            ("account", "requests_per_minute", 599, 1, false),
            ("account", "tokens_per_minute", 1000, 2000, true),
            ("team", "requests_per_minute", 59, 1, false),
        ]
    );
}

/// Two places in flight, both taken by bob, and requests of his that are left.
fn slots_taken() -> Bench {
    let mut bench =
        Bench::with_limits(vec![limit("team", &[Scope::User], &[(RPM, 50)]), limit("slots", &[], &[(IN_FLIGHT, 2)])]);
    for _ in 0..2 {
        bench.admit(call("bob", 1));
    }
    bench
}

fn limit_of(bench: &Bench, ticket: Ticket) -> String {
    let Reason::Limit(report) = &bench.refusal(ticket).expect("it was refused").reason else { panic!() };
    report.path()
}

fn binding(bench: &Bench, id: &str) -> Vec<String> {
    let told = bench.gate.explain(id).expect("it was refused");
    told.limits.iter().filter(|then| then.binds).map(|then| then.limit.to_string()).collect()
}

#[test]
fn a_call_that_may_not_wait_is_refused_by_the_limit_that_has_no_room() {
    for patience in [0, 300] {
        let mut bench = slots_taken();
        let start_by = bench.now + Duration::from_millis(patience);
        let ticket = bench.admit(Call { start_by, ..named("hurried", call("bob", 1)) });
        bench.run_for(Duration::from_secs(1));
        assert_eq!(limit_of(&bench, ticket), "slots/max_in_flight", "{patience} ms");
        assert_eq!(binding(&bench, "hurried"), ["slots"], "{patience} ms");
    }
}

#[test]
fn a_call_that_may_not_wait_is_not_refused_by_a_limit_that_would_be_scarce_by_its_turn() {
    let mut bench = slots_taken();
    for _ in 0..60 {
        bench.admit(call("bob", 1));
    }
    let ticket = bench.admit(Call { start_by: bench.now, ..named("hurried", call("bob", 1)) });
    assert_eq!(limit_of(&bench, ticket), "slots/max_in_flight");
    // One that may wait is held by it: it would go in time if there were places enough.
    let start_by = bench.now + Duration::from_secs(1);
    let patient = bench.admit(Call { start_by, ..named("patient", call("bob", 1)) });
    assert_eq!(limit_of(&bench, patient), "team/bob/requests_per_minute");
}

#[test]
fn nobody_is_told_when_a_place_in_flight_becomes_free() {
    for patience in [0, 300] {
        let mut bench = slots_taken();
        let start_by = bench.now + Duration::from_millis(patience);
        let ticket = bench.admit(Call { start_by, ..named("hurried", call("bob", 1)) });
        bench.run_for(Duration::from_secs(1));
        assert_eq!(bench.gate.explain("hurried").unwrap().retry_after_ms, None, "{patience} ms");
        let told = bench.refusal(ticket).unwrap().retry_after;
        assert_eq!(told, Some(Duration::from_secs(1)), "the least that can be told, {patience} ms");
    }
}

#[test]
fn a_refusal_is_explained_with_the_time_that_was_waited() {
    let mut bench = slots_taken();
    let start_by = bench.now + Duration::from_secs(2);
    let ticket = bench.admit(Call { start_by, ..named("patient", call("bob", 1)) });
    bench.run_for(Duration::from_secs(9));
    assert_eq!(bench.refusal(ticket).unwrap().waited, Duration::from_secs(2));
    assert_eq!(bench.gate.explain("patient").unwrap().waited_ms, 2000.0);
}

#[test]
fn a_wait_is_explained_by_who_was_ahead_while_it_lasts_and_after() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 60)])]);
    for _ in 0..60 {
        bench.admit(call("start", 1));
    }
    for number in 0..5 {
        bench.admit(named(&format!("bulk-{number}"), Call { priority: Priority::Low, ..call("bulk", 1) }));
    }
    bench.admit(call("ada", 1));
    bench.admit(named("held", call("ada", 1)));
    let waiting = bench.gate.explain("held").expect("it waits");
    assert_eq!(waiting.outcome, "waiting");
    assert_eq!((waiting.ahead["low"], waiting.ahead["normal"], waiting.ahead["high"]), (5, 1, 0));
    assert_eq!(waiting.ahead_tenants, [("ada".into(), 1)]);
    assert_eq!((waiting.limits[0].remaining, waiting.limits[0].waiting, waiting.limits[0].binds), (0, 6, true));
    bench.run_for(Duration::from_secs(10));
    let after = bench.gate.explain("held").expect("it waited for more than a second");
    assert_eq!(after.outcome, "granted");
    assert!(after.waited_ms >= 1000.0, "{}", after.waited_ms);
    assert_eq!((after.ahead, after.limits), (waiting.ahead, waiting.limits));
}

#[test]
fn a_wait_after_a_refusal_of_the_upstream_is_explained_by_it() {
    let mut bench = Bench::with_limits(Vec::new());
    let ticket = bench.admit(named("refused-there", call("ada", 10)));
    let mut fault = Fault::new(FaultKind::RateLimited, "429").with_status(429);
    fault.wait = Some(Duration::from_secs(3));
    bench.settle(ticket, &Outcome::of(Ending::Failed(fault)));
    bench.run_for(Duration::from_secs(2));
    let now = bench.gate.explain("refused-there").unwrap();
    assert_eq!((now.outcome, now.after), ("waiting", Some("rate_limit_exceeded")));
    bench.run_for(Duration::from_secs(2));
    let then = bench.gate.explain("refused-there").unwrap();
    assert_eq!((then.outcome, then.after), ("granted", Some("rate_limit_exceeded")));
    assert!((3000.0..=3100.0).contains(&then.waited_ms), "{}", then.waited_ms);
}

#[test]
fn what_went_at_once_needs_no_explanation_and_what_is_kept_is_bounded() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[], &[(RPM, 5000)])]);
    bench.admit(named("quick", call("ada", 1)));
    assert_eq!(bench.gate.explain("quick"), None);
    bench.gate.pause("maintenance");
    for number in 0..3000 {
        bench.admit(named(&format!("refused-{number}"), call("ada", 1)));
    }
    assert_eq!(bench.gate.explain("refused-0"), None, "the oldest are forgotten");
    assert_eq!(bench.gate.explain("refused-2999").unwrap().outcome, "paused");
}

#[test]
fn a_shadow_limit_counts_what_it_would_have_held_and_says_so() {
    let mut shadow = limit("trial", &[], &[(RPM, 2)]);
    shadow.mode = Mode::Shadow;
    let mut bench = Bench::with_limits(vec![shadow, bucket("team", &[], &[(RPM, 5)])]);
    for number in 0..6 {
        bench.admit(named(&format!("call-{number}"), call("ada", 1)));
    }
    let status = bench.gate.status(bench.now);
    let trial = status.limits.iter().find(|level| level.limit == "trial").unwrap();
    assert_eq!((trial.mode, trial.meters[0].would_hold), ("shadow", 3));
    let held = bench.gate.explain("call-5").expect("the team's limit holds it");
    let shadows: Vec<_> = held.limits.iter().map(|then| (&*then.limit, then.shadow, then.binds)).collect();
    assert_eq!(shadows, [("trial", true, false), ("team", false, true)]);
}

#[test]
fn events_of_a_wait_and_a_refusal_say_whose_and_which_limit() {
    let mut bench = Bench::with_limits(vec![bucket("team", &[Scope::User], &[(RPM, 60)])]);
    for _ in 0..60 {
        bench.admit(call("ada", 1));
    }
    bench.gate.listen(tidegate_core::event::Interest::Everything);
    bench.gate.admit(&named("patient", call("ada", 1)), bench.now);
    bench.gate.admit(&Call { start_by: bench.now, ..named("hurried", call("ada", 1)) }, bench.now);
    bench.gate.advance(bench.now + Duration::from_secs(10));
    let mut told = Vec::new();
    while let Some(output) = bench.gate.poll_output() {
        let Output::Event(event) = output else { continue };
        match *event {
            Event::Granted { call, whose, limit, .. } => told.push((call, whose, limit.map(|limit| limit.to_string()))),
            Event::Refused { call, whose, limit, .. } => {
                told.push((call, whose, limit.map(|report| format!("{} {}", report.path(), report.allowed))));
            }
            _ => {}
        }
    }
    let whose = Whose { tenant: "ada".into(), user: Some("ada".into()), target: "openai/gpt-4o".into() };
    assert_eq!(
        told,
        [
            ("hurried".into(), whose.clone(), Some("team/ada/requests_per_minute 60".to_owned())),
            ("patient".into(), whose, Some("team/ada/requests_per_minute".to_owned())),
        ]
    );
}
