//! Time of one decision: reserve and settle over 3 limits × 3 dimensions, beside governor doing nine checks.
//!
//! `decision` prints nanoseconds for each. `decision gate N` and `decision governor N` do N of them and print nothing, so
//! that a tool which counts instructions can be told apart what one costs (see `bench/decision.sh`).

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Instant;

use governor::{Quota, RateLimiter};
use tidegate_core::call::{Call, Priority, RequestType, Subject, WhenOpen};
use tidegate_core::config::{Policy, TokenCharge, UpstreamPolicy};
use tidegate_core::cost::{Cost, Usage};
use tidegate_core::gate::{Gate, Output};
use tidegate_core::limit::{Algorithm, Dimension, Limit, Mode, Rates, Scope};
use tidegate_core::outcome::{Ending, Outcome};
use tidegate_core::time::Time;

const ROUNDS: usize = 15;
const PER_ROUND: u64 = 200_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next().and_then(|count| count.parse().ok())) {
        (Some("gate"), Some(count)) => gate(Algorithm::TokenBucket, count),
        (Some("windows"), Some(count)) => gate(Algorithm::SlidingWindow, count),
        (Some("governor"), Some(count)) => nine_checks(count),
        (None, _) => {
            println!("{:<58} {:>8} {:>8}", "", "best ns", "median");
            row("tidegate: reserve + settle, 3 limits x 3 dimensions, buckets", |count| {
                gate(Algorithm::TokenBucket, count)
            });
            row("tidegate: the same, sliding windows", |count| gate(Algorithm::SlidingWindow, count));
            row("governor: nine separate check_n (not atomic, no settle)", nine_checks);
        }
        _ => {
            eprintln!("usage: decision [gate|windows|governor COUNT]");
            std::process::exit(2);
        }
    }
}

fn row(name: &str, run: impl Fn(u64)) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            run(PER_ROUND);
            started.elapsed().as_secs_f64() * 1e9 / PER_ROUND as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<58} {:>8.0} {:>8.0}", times[0], times[ROUNDS / 2]);
}

fn limit(name: &str, per: &[Scope], algorithm: Algorithm) -> Limit {
    let base = Rates::default()
        .with(Dimension::RequestsPerMinute, 1_000_000_000)
        .with(Dimension::TokensPerMinute, 1_000_000_000_000)
        .with(Dimension::RequestsPerDay, 1_000_000_000_000);
    Limit {
        name: name.into(),
        per: per.to_vec(),
        base,
        overrides: Vec::new(),
        algorithm: Some(algorithm),
        mode: Mode::Enforce,
    }
}

fn gate(algorithm: Algorithm, count: u64) {
    let upstream = UpstreamPolicy { name: "openai".into(), learn_limits: false, token_charge: TokenCharge::Input };
    let limits = vec![
        limit("user", &[Scope::User], algorithm),
        limit("team", &[Scope::Organization], algorithm),
        limit("model", &[Scope::Model], algorithm),
    ];
    let mut gate = Gate::new(Policy { limits, upstreams: vec![upstream], ..Policy::default() }, 1);
    let call = Call {
        id: "call".into(),
        subject: Subject {
            account: "openai#0123456789abcdef".into(),
            model: "gpt-4o-mini".into(),
            key: Some("billing".into()),
            organization: Some("acme".into()),
            project: None,
            user: Some("user-1".into()),
            request_type: RequestType::Chat,
            tenant: "acme".into(),
        },
        cost: Cost { input_tokens: 250, max_output_tokens: Some(200), choices: 1, images: 0, declared_tokens: 0 },
        priority: Priority::Normal,
        start_by: Time::NEVER,
        end_by: Time::NEVER,
        when_open: WhenOpen::Refuse,
        body_bytes: 1000,
        own_charged: false,
    };
    let usage = Usage { input_tokens: 240, output_tokens: 90 };
    let outcome = Outcome { usage: Some(usage), ..Outcome::of(Ending::Success) };
    let mut now = 1_000_000_000_000;
    for _ in 0..count {
        now += 50;
        let ticket = gate.admit(black_box(&call), Time::from_micros(now));
        match gate.poll_output() {
            Some(Output::Granted { .. }) => {}
            other => unreachable!("there is room: {other:?}"),
        }
        gate.sent(ticket);
        black_box(gate.settle(ticket, &outcome, Time::from_micros(now + 20)));
    }
}

fn nine_checks(count: u64) {
    let most = NonZeroU32::MAX;
    let limiters: Vec<_> = (0..9).map(|_| RateLimiter::direct(Quota::per_second(most))).collect();
    let (one, tokens) = (NonZeroU32::MIN, NonZeroU32::new(450).unwrap_or(NonZeroU32::MIN));
    for _ in 0..count {
        for (number, limiter) in limiters.iter().enumerate() {
            let cost = if number % 3 == 1 { tokens } else { one };
            let _ = black_box(limiter.check_n(black_box(cost)));
        }
    }
}
