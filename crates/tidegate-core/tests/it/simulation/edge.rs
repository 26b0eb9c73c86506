//! At the edge: limits that are wrong, shared, changing or unknown, and upstreams that fail. One row of the table each.

use tidegate_core::call::{Priority, WhenOpen};
use tidegate_core::config::{Policy, QueueConfig, TokenCharge};
use tidegate_core::limit::Dimension;
use tidegate_core::time::Time;

use super::upstream::{Charges, Rules, Tells, Waits};
use super::world::{Report, Scenario, World};
use super::{learning, print, run, run_with};

/// Of what flows in, this share may be held back from calls that the upstream would have taken.
const HELD_BACK_MAX: f64 = 0.005;

/// Runs it, and holds it to a floor of use and a ceiling of 429s.
fn holds(name: &str, scenario: Scenario, use_min: f64, met_429s_max: u64) -> Report {
    let report = run(name, scenario);
    assert!(report.utilisation() >= use_min, "{name}: {} used", report.utilisation());
    assert!(report.met_429s <= met_429s_max, "{name}: {} 429s at {:?}", report.met_429s, report.met_at);
    assert_eq!((report.given_up, report.refused, report.too_early), (0, 0, 0), "{name}");
    // There are always calls that wait: what flows over is held back from them.
    assert!(report.lost <= HELD_BACK_MAX * report.available, "{name}: {} of {}", report.lost, report.available);
    report
}

/// The same of several seeds on average, where chance moves single runs.
fn holds_on_average(name: &str, scenario: &Scenario, use_min: f64, met_429s_max: f64) {
    const SEEDS: u64 = 8;
    let (mut used, mut met) = (0.0, 0);
    for seed in 1..=SEEDS {
        let report = run(&format!("{name}, seed {seed}"), Scenario { seed, ..scenario.clone() });
        assert_eq!((report.given_up, report.refused, report.too_early), (0, 0, 0), "{name}");
        (used, met) = (used + report.utilisation(), met + report.met_429s);
    }
    let (used, met) = (used / SEEDS as f64, met as f64 / SEEDS as f64);
    println!("{name}, on average: {:.2} % used, {met:.1} 429s", 100.0 * used);
    assert!(used >= use_min && met <= met_429s_max, "{name}: {used} used, {met} 429s");
}

fn with(rules: Rules) -> Scenario {
    Scenario { rules, ..Scenario::default() }
}

fn told(tells: Tells) -> Rules {
    Rules { tells, ..Rules::default() }
}

fn over(quantum: f64) -> Rules {
    Rules { quantum: Some(quantum), ..Rules::default() }
}

#[test]
fn a_limit_that_is_halved_and_doubled_is_followed() {
    let rules = Rules { moves: vec![(300.0, 0.5), (600.0, 1.0)], ..Rules::default() };
    holds("halved after 300 s, back after 600 s", Scenario { seconds: 900, ..with(rules) }, 0.99, 2);
    let rules = Rules { moves: vec![(300.0, 2.0), (600.0, 1.0)], ..Rules::default() };
    holds("doubled after 300 s, back after 600 s", Scenario { seconds: 900, demand: 4.0, ..with(rules) }, 0.99, 5);
}

#[test]
fn a_minute_that_is_enforced_by_the_second_is_found_out_and_paced() {
    let small = |rules| Scenario { tokens: 200, ..with(rules) };
    // Calls that hardly overtake one another on the way, as in one data centre.
    let near = |scenario| Scenario { way: (0.005, 0.03), ..scenario };
    holds_on_average("1 s quantum", &small(over(1.0)), 0.99, 10.0);
    holds_on_average("1 s quantum, no wait told", &small(Rules { waits: Waits::Untold, ..over(1.0) }), 0.99, 10.0);
    let mixed = small(Rules { waits: Waits::Mixed, ..over(1.0) });
    holds_on_average("1 s quantum, waits told now so, now so", &mixed, 0.99, 10.0);
    holds("10 s quantum", with(over(10.0)), 0.99, 5);
    holds("0.2 s quantum, even way", near(Scenario { tokens: 500, ..with(over(0.2)) }), 0.99, 6);
    // Few calls, each more than a second's worth: what one is late by nobody else can use.
    let large = || Scenario { tokens: 20_000, ..with(over(1.0)) };
    let report = run("1 s quantum, calls of 1.3 to 4 s' worth, even way", near(large()));
    assert!(report.utilisation() >= 0.99 && report.met_429s <= 9, "{} at {:?}", report.utilisation(), report.met_at);
    // Here one call may overtake another by 0.19 s where one goes each 2.7 s.
    let report = run("1 s quantum, calls of 1.3 to 4 s' worth", large());
    assert!(report.utilisation() >= 0.93 && report.met_429s <= 5, "{} at {:?}", report.utilisation(), report.met_at);
    let report = run("1 s quantum, others take 40 %", Scenario { others: 0.4, ..small(over(1.0)) });
    assert!(report.utilisation() >= 0.99 && report.met_429s as f64 <= 0.02 * report.done as f64);
}

#[test]
fn a_pace_is_given_up_when_nothing_is_refused_any_more() {
    let paced = |quantum_until| {
        let rules = Rules { quantum_until, ..over(1.0) };
        let scenario = Scenario { tokens: 200, seconds: 1500, demand: 0.95, ..with(rules) };
        let (report, mut gate) = World::new(scenario, learning(TokenCharge::Input)).run();
        print(&format!("1 s quantum until {quantum_until} s"), &report);
        assert!(report.met_429s <= 30, "{} at {:?}", report.met_429s, report.met_at);
        gate.status(Time::from_secs(2_000_000)).learned[0].paced.clone()
    };
    assert_eq!(paced(300.0).len(), 0);
    let still = paced(f64::INFINITY);
    assert!(still.iter().all(|pace| pace.burst <= 2 * 7500), "{still:?}");
}

#[test]
fn a_limit_that_nobody_tells_is_measured() {
    holds("no headers, numbers in 429s", with(told(Tells::In429s)), 0.99, 5);
    let nothing = |waits| Rules { waits, ..told(Tells::Nothing) };
    holds_on_average("no headers, 429s tell a wait", &with(nothing(Waits::Told)), 0.995, 12.0);
    holds_on_average("no headers, nothing told", &with(nothing(Waits::Untold)), 0.995, 12.0);
    holds_on_average("no headers, waits now so, now so", &with(nothing(Waits::Mixed)), 0.995, 12.0);
    holds_on_average("no headers, starts at 5 %", &with(Rules { fill: 0.05, ..nothing(Waits::Told) }), 0.995, 14.0);
    let rules = Rules { moves: vec![(300.0, 0.5), (600.0, 1.5)], ..nothing(Waits::Told) };
    let moves = Scenario { seconds: 1200, ..with(rules) };
    holds_on_average("no headers, halved after 300 s, tripled after 600 s", &moves, 0.985, 55.0);
    let others = Scenario { others: 0.4, ..with(nothing(Waits::Told)) };
    holds_on_average("no headers, others take 40 %", &others, 0.99, 45.0);
    let herd = Scenario { demand: 100.0, ..with(nothing(Waits::Told)) };
    holds_on_average("no headers, 100 times the demand at once", &herd, 0.99, 40.0);
    let quantum = Scenario { tokens: 200, ..with(Rules { quantum: Some(1.0), ..nothing(Waits::Told) }) };
    holds_on_average("no headers, 1 s quantum", &quantum, 0.945, 35.0);
}

#[test]
fn whether_requests_or_tokens_bind_is_found_out_where_nothing_says_so() {
    for (name, waits, fill) in
        [("429s tell a wait", Waits::Told, 1.0), ("nothing told, starts at 5 %", Waits::Untold, 0.05)]
    {
        let (mut served, mut met, mut offered) = (0, 0, 0.0);
        for seed in 1..=8 {
            let rules = Rules { rpm: 120.0, waits, fill, ..told(Tells::Nothing) };
            let report =
                run(&format!("no headers, requests bind, {name}"), Scenario { seed, demand: 4.0, ..with(rules) });
            (served, met, offered) = (served + report.done, met + report.met_429s, offered + 120.0 * (10.0 + fill));
        }
        let used = served as f64 / offered;
        println!("no headers, requests bind, {name}: {:.2} % of them used, {} 429s", 100.0 * used, met as f64 / 8.0);
        assert!(used >= 0.98 && met <= 8 * 30, "{name}: {used} used, {met} 429s");
    }
}

#[test]
fn a_limit_that_headers_leave_out_is_known_from_its_first_refusal() {
    let hides = |dimension| Rules { hides: Some(dimension), ..Rules::default() };
    holds("headers tell requests only", with(hides(Dimension::TokensPerMinute)), 0.99, 5);
    let rules = Rules { rpd: Some((10_000.0, 500.0)), ..hides(Dimension::RequestsPerDay) };
    let report = run("500 requests left of a day, not told", Scenario { seconds: 3600, ..with(rules) });
    assert!(report.met_429s <= 10 && report.done >= 499, "{} of {}", report.met_429s, report.done);
}

#[test]
fn what_is_told_wrongly_is_found_out() {
    holds_on_average("headers tell nonsense", &with(told(Tells::Nonsense)), 0.995, 12.0);
    holds("headers tell twice the truth", with(told(Tells::Headers(2.0))), 0.99, 10);
    holds_on_average("headers tell half the truth", &with(told(Tells::Headers(0.5))), 0.985, 0.0);
}

#[test]
fn the_rule_by_which_tokens_are_charged_is_found_out() {
    for (charges, name) in [
        (Charges::Input, "input"),
        (Charges::InputPlusMax, "input_plus_max"),
        (Charges::Max, "max"),
        (Charges::Usage, "usage"),
    ] {
        // A ceiling above the input: else the larger of both is the input.
        let scenario = Scenario { ceiling: 2.0, ..with(Rules { charges, ..Rules::default() }) };
        let (report, mut gate) = World::new(scenario, learning(TokenCharge::Learned)).run();
        print(&format!("tokens charged: {charges:?}"), &report);
        assert!(report.utilisation() >= 0.99 && report.met_429s <= 5, "{name}: {}", report.utilisation());
        let found = gate.status(Time::from_secs(2_000_000)).learned[0].token_charge;
        assert_eq!(found, Some(name));
    }
}

#[test]
fn refused_calls_that_do_not_count_make_no_difference() {
    // Requests bind, and refusals for tokens that others took use some of them up, or not.
    for refused_count in [true, false] {
        let rules = Rules { refused_count, rpm: 120.0, ..Rules::default() };
        let name = format!("others take 40 %, 120 requests a minute, refused calls counted: {refused_count}");
        let report = run(&name, Scenario { others: 0.4, demand: 4.0, ..with(rules) });
        assert!(report.met_429s as f64 <= 0.015 * report.done as f64, "{} of {}", report.met_429s, report.done);
        // The bucket and ten minutes of refill.
        assert!(report.done + report.met_429s >= 1300, "{}", report.done);
        // Only 429s tell, so that some come, of which each is one less where they count.
        let rules = Rules { refused_count, rpm: 120.0, ..told(Tells::In429s) };
        let name = format!("only 429s tell, 120 requests a minute, refused calls counted: {refused_count}");
        let report = run(&name, Scenario { demand: 4.0, ..with(rules) });
        assert!((1..=40).contains(&report.met_429s), "{}", report.met_429s);
        assert!(report.done >= 1290, "{}", report.done);
    }
}

#[test]
fn a_day_that_is_nearly_spent_is_used_up_and_never_overdrawn() {
    let rules = Rules { rpd: Some((10_000.0, 500.0)), ..Rules::default() };
    let report = run("500 requests left of the day", with(rules));
    // 500, and 10,000 a day for ten minutes.
    assert!((560..=569).contains(&report.done), "{}", report.done);
    assert_eq!(report.met_429s, 0);
}

#[test]
fn a_burst_ten_times_the_limit_after_an_idle_time_meets_no_429() {
    // What is offered in the first seconds has been served long before the burst.
    let offered = vec![(0.0, 6.0), (300.0, 360.0)];
    let burst = |rules| Scenario { demand: 10.0, seconds: 1500, offered: offered.clone(), ..with(rules) };
    for (name, rules, met_max) in [
        ("idle from 6 to 300 s, then a minute of 10 × the limit", Rules::default(), 0),
        ("the same, no headers", told(Tells::Nothing), 30),
        ("the same, others take 40 %", Rules::default(), 15),
    ] {
        let others = if name.contains("others") { 0.4 } else { 0.0 };
        let report = run(name, Scenario { others, ..burst(rules) });
        assert!(report.met_429s <= met_max, "{name}: {} at {:?}", report.met_429s, report.met_at);
        assert_eq!((report.given_up, report.refused), (0, 0), "{name}");
        assert!(report.done > 1000, "{name}: {}", report.done);
    }
}

#[test]
fn interactive_calls_beside_a_batch_job_do_not_wait() {
    // 50 people with a call a second in all, beside one who offers twice what the limit takes.
    let scenario = Scenario { interactive: 1.0, priorities: &[Priority::Low], ..Scenario::default() };
    let policy = Policy { queue: QueueConfig::default(), ..learning(TokenCharge::Learned) };
    let late = Scenario { interactive_from: 100.0, ..scenario.clone() };
    let report = run_with("50 interactive users beside a batch job", scenario, policy.clone());
    let waited = report.interactive_waits.iter().filter(|micros| **micros > 0).count();
    println!("    {waited} of {} interactive calls waited", report.interactive_waits.len());
    assert!(report.interactive_waits.len() > 500);
    assert_eq!((waited, report.met_429s), (0, 0));
    // Half of the first minute's worth stays free for them.
    assert!(report.utilisation() >= 0.95);
    // Who comes when the batch job has emptied the level finds room as soon as it has filled up a little.
    let report = run_with("the same, 100 s after the batch job", late, policy);
    let waited = report.interactive_waits.iter().skip(5).filter(|micros| **micros > 0).count();
    assert_eq!(waited, 0, "{:?}", report.interactive_waits);
}

/// Prints what a failing upstream cost, and holds it to the laws that hold for all of them.
fn survives(name: &str, scenario: Scenario) -> Report {
    let report = run(name, scenario);
    let Report { sent_while_open, too_early, failed_once, mended, .. } = report;
    println!(
        "    {mended} of {failed_once} calls that met a fault ended well; {sent_while_open} sent to an open breaker"
    );
    assert_eq!((sent_while_open, too_early), (0, 0), "{name}");
    report
}

#[test]
fn an_outage_is_waited_out_by_those_who_will_and_recovered_from() {
    let outage = |share| Rules { outages: vec![(200.0, 260.0, share)], ..Rules::default() };
    let patient = |rules| Scenario { demand: 0.8, when_open: WhenOpen::Wait, ..with(rules) };
    let report = survives("outage of 60 s, waited out", patient(outage(1.0)));
    assert_eq!((report.failed_once, report.given_up, report.refused), (report.mended, 0, 0));
    // Closed again within a few seconds of the first probe that went well, 60 s after it opened.
    assert!(report.order.iter().any(|at| (260_000_000..265_000_000).contains(at)));
    let report = survives("outage of 60 s, nobody waits", Scenario { demand: 0.8, ..with(outage(1.0)) });
    assert!(report.order.iter().any(|at| (260_000_000..265_000_000).contains(at)));
    let report = survives(
        "every tenth call gets a 503",
        patient(Rules { outages: vec![(0.0, 600.0, 0.1)], ..Rules::default() }),
    );
    assert!(report.failed_once > 100 && report.mended * 100 >= report.failed_once * 95);
}

#[test]
fn an_upstream_that_flaps_is_not_given_up() {
    let outages = (0..20).map(|number| (f64::from(number) * 30.0, f64::from(number) * 30.0 + 5.0, 1.0)).collect();
    let mut policy = learning(TokenCharge::Learned);
    policy.breaker.recovery_timeout = std::time::Duration::from_secs(5);
    let scenario = Scenario { demand: 0.5, when_open: WhenOpen::Wait, ..with(Rules { outages, ..Rules::default() }) };
    let report = run_with("down 5 s of every 30, recovery_timeout 5 s", scenario, policy);
    let Report { failed_once, mended, .. } = report;
    println!("    {mended} of {failed_once} calls that met a fault ended well");
    assert_eq!((report.sent_while_open, report.given_up), (0, 0));
    assert!(mended * 100 >= failed_once * 95, "{mended} of {failed_once}");
    assert!(report.done >= 800, "{}", report.done);
}

#[test]
fn slow_down_is_met_once_and_answered_with_half_the_rate_and_a_ramp() {
    let rules = Rules { slow_down: Some((200.0, 205.0)), ..Rules::default() };
    let report = run("slow_down for 5 s", with(rules));
    assert!(report.met_429s <= 3, "{} at {:?}", report.met_429s, report.met_at);
    let within = |from: u64, until: u64| {
        let span = from * 1_000_000..until * 1_000_000;
        report.order.iter().filter(|at| span.contains(at)).count() as f64 / (until - from) as f64
    };
    // A call is 2,000 tokens of 7,500 a second.
    assert!(within(210, 230) < 0.7 * 3.75, "half at first: {}", within(210, 230));
    assert!(within(400, 600) > 0.9 * 3.75, "all of it in the end: {}", within(400, 600));
}

#[test]
fn a_quota_that_ends_is_told_to_each_and_never_tried_again() {
    let rules = Rules { quota_ends: Some(300.0), ..Rules::default() };
    let report = run("quota ends after 300 s", with(rules));
    assert_eq!(report.met_quota, report.given_up, "no call is sent twice for it");
    assert!(report.given_up > 0);
}
