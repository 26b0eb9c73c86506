//! What a run does when limits bind, upstreams fail and money ends.

use std::num::NonZeroU64;
use std::time::Duration;

use tidegate_bulk::{Ending, OnQuota, Stop};
use tidegate_core::limit::{Dimension, Rates};
use tidegate_sim::Scenario;

use crate::support::{Job, QUICK, line};

/// Requests that were refused by a limit.
fn refused(job: &Job) -> u64 {
    job.simulator.log().iter().filter(|entry| entry.refused.is_some()).count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_learned_are_met_without_a_429() {
    let job = Job::new("rpm = 3000\ntpm = 300000\ninitial_fill = 0.05", "").await;
    let summary = job.run((0..400).map(|number| if number % 5 == 0 { 2000 } else { 100 })).await;
    assert_eq!((summary.done, summary.failed, summary.ending.clone()), (400, 0, Ending::Complete));
    assert_eq!((refused(&job), summary.rate_limited), (0, 0), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_given_wrongly_are_corrected_by_the_upstreams_own() {
    let mut job = Job::new("rpm = 3000\ninitial_fill = 0.02", "").await;
    job.rates = Rates::default().with(Dimension::RequestsPerMinute, 60_000);
    let summary = job.run((0..300).map(|_| 40)).await;
    assert_eq!((summary.done, summary.failed), (300, 0));
    assert!(refused(&job) <= 2, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_that_is_enforced_by_the_second_fails_nothing() {
    let job = Job::new("rpm = 3000\nquantum = \"1s\"", "").await;
    let summary = job.run((0..250).map(|_| 40)).await;
    assert_eq!((summary.done, summary.failed), (250, 0), "{summary}");
    // The one that finds it out.
    assert!(refused(&job) <= 3, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_given_as_they_are_do_not_slow_a_minute_that_is_enforced_by_the_second() {
    let mut job = Job::new("rpm = 3000\nquantum = \"1s\"", "").await;
    job.rates = Rates::default().with(Dimension::RequestsPerMinute, 3000);
    let summary = job.run((0..250).map(|_| 40)).await;
    assert_eq!((summary.done, summary.failed), (250, 0), "{summary}");
    assert!(refused(&job) <= 3, "{summary}");
    let log = job.simulator.log();
    // 50 a second: by virtue of the simulator's clock, not of how fast the test runs.
    let last = log.iter().map(|entry| entry.received_s).fold(0.0, f64::max);
    let first = log.iter().map(|entry| entry.received_s).fold(f64::INFINITY, f64::min);
    assert!(last - first < 10.0, "{} s: {summary}", last - first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_fails_nothing_and_is_met_with_a_few_probes() {
    let outage = "[[fault]]\nkind = \"outage\"\nfrom = \"300ms\"\nuntil = \"8s\"\n";
    let job = Job::new("rpm = 6000\ninitial_fill = 0.02", outage).await;
    let summary = job.run((0..400).map(|_| 40)).await;
    assert_eq!((summary.done, summary.failed), (400, 0), "{summary}");
    let log = job.simulator.log();
    // What was in flight when it began, those that opened the breaker, and the probes.
    let during = log.iter().filter(|entry| entry.fault.is_some()).count();
    assert!((1..=15).contains(&during), "{during} sent into the outage");
    let after =
        log.iter().filter(|entry| entry.fault.is_none() && entry.received_s > 8.0).map(|entry| entry.received_s);
    let noticed = after.fold(f64::INFINITY, f64::min);
    // Within two seconds, at the breaker's longest rest.
    assert!(noticed <= 10.0, "noticed {noticed} s after the start");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_is_told_with_status_200_is_counted_as_one() {
    let job = Job::new("rpm = 6000", "[[fault]]\nkind = \"in_band\"\nfirst = 3\n").await;
    let summary = job.run((0..20).map(|_| 40)).await;
    assert_eq!((summary.done, summary.failed, summary.rate_limited), (20, 0, 3), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_is_ends_the_run_and_says_why() {
    let mut job = Job::new("rpm = 6000", "").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    job.base_url = Some(format!("http://{nobody}/v1"));
    job.give_up_unreached_after = Duration::from_millis(500);
    let summary = job.run((0..50).map(|_| 40)).await;
    assert_eq!((summary.failed, summary.left, summary.exit_code()), (0, 50, 1), "{summary}");
    assert!(summary.to_string().contains("no connection: Connection refused: 50 lines left"), "{summary}");
    job.base_url = None;
    let summary = job.run((0..50).map(|_| 40)).await;
    assert_eq!((summary.done, summary.cut_off, summary.ending), (50, 0, Ending::Complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_ends_ends_the_run_without_burning_requests() {
    let fault = "[[fault]]\nkind = \"insufficient_quota\"\nfrom = \"300ms\"\n";
    let mut job = Job::new("rpm = 6000\ninitial_fill = 0.01", fault).await;
    job.rates = Rates::default().with(Dimension::MaxInFlight, 8);
    let summary = job.run((0..500).map(|_| 40)).await;
    assert_eq!((summary.ending.clone(), summary.failed, summary.exit_code()), (Ending::Quota, 0, 3), "{summary}");
    assert_eq!(summary.done + summary.left, 500);
    let burnt = job.simulator.log().iter().filter(|entry| entry.fault.is_some()).count();
    assert!(burnt <= 9, "{burnt}");
    job.simulator.set_scenario(scenario("rpm = 100000\n"));
    let summary = job.run((0..500).map(|_| 40)).await;
    assert_eq!((summary.done, summary.ending), (500, Ending::Complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_for_want_of_quota_fails_nothing_and_one_call_at_a_time_finds_out_when_it_is_over() {
    const LOOK_EVERY: Duration = Duration::from_millis(400);
    let mut job = Job::new("rpm = 6000\ninitial_fill = 0.01", "").await;
    job.rates = Rates::default().with(Dimension::MaxInFlight, 8);
    job.on_quota = OnQuota::Pause(LOOK_EVERY);
    let ends_and_is_bought = async {
        until(|| job.simulator.stats().admitted >= 20).await;
        job.simulator.set_scenario(scenario("rpm = 6000\n[[fault]]\nkind = \"insufficient_quota\"\n"));
        until(|| looks_at_most(&burnt(&job), LOOK_EVERY) >= 2).await;
        job.simulator.set_scenario(scenario("rpm = 100000\n"));
    };
    let (summary, ()) = tokio::join!(job.run((0..500).map(|_| 40)), ends_and_is_bought);
    assert_eq!((summary.done, summary.failed, summary.ending.clone()), (500, 0, Ending::Complete), "{summary}");
    let burnt = burnt(&job);
    // Those in flight when it ended, and then one each time.
    assert!(burnt.len() <= 8 + looks_at_most(&burnt, LOOK_EVERY), "{burnt:?}");
}

/// When calls were sent without quota, in seconds.
fn burnt(job: &Job) -> Vec<f64> {
    job.simulator.log().iter().filter(|entry| entry.fault.is_some()).map(|entry| entry.received_s).collect()
}

/// How many times a pause can have looked by the last of these, on a clock that may differ a little.
fn looks_at_most(burnt: &[f64], every: Duration) -> usize {
    let (Some(first), Some(last)) = (burnt.first(), burnt.last()) else { return 0 };
    ((last - first) / (0.95 * every.as_secs_f64())) as usize
}

/// Asks now and then, since asking holds up the simulator.
async fn until(is_so: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !is_so() {
        ticks.tick().await;
    }
}

fn scenario(model: &str) -> Scenario {
    Scenario::from_toml(&format!("{QUICK}[model.m]\n{model}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_on_tokens_holds_over_all_runs() {
    let mut job = Job::new("rpm = 100000", "").await;
    job.max_total_tokens = NonZeroU64::new(3000);
    let text: String = (0..200).map(|number| if number % 2 == 0 { line(100, 40) } else { unbounded() }).collect();
    for _ in 0..2 {
        let summary = job.run_lines(&text, Stop::default()).await;
        assert_eq!((summary.ending.clone(), summary.exit_code()), (Ending::Ceiling, 3));
        let used: u64 = job.simulator.log().iter().map(|entry| entry.input_tokens + entry.output_tokens).sum();
        assert!((2000..=3000).contains(&used), "{used}: {summary}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_on_tokens_counts_answers_that_broke_off_over_all_runs_too() {
    let mut job = Job::new("rpm = 100000", "[[fault]]\nkind = \"truncated\"\nevery = 3\n").await;
    job.max_total_tokens = NonZeroU64::new(3000);
    let text: String = (0..200).map(|_| line(100, 40)).collect();
    for _ in 0..3 {
        let summary = job.run_lines(&text, Stop::default()).await;
        assert_eq!(summary.ending, Ending::Ceiling, "{summary}");
        let used: u64 = job.simulator.log().iter().map(|entry| entry.input_tokens + entry.output_tokens).sum();
        assert!(used <= 3000, "{used}: {summary}");
    }
}

fn unbounded() -> String {
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_fit_fails_by_itself_and_holds_up_nobody() {
    let job = Job::new("rpm = 60000\ntpm = 1000", "").await;
    let summary = job.run([40, 40, 8000, 40, 40, 40, 40].into_iter()).await;
    assert_eq!((summary.done, summary.failed, summary.exit_code()), (6, 1, 3), "{summary}");
}
