//! The scenarios: what each upstream pretends, who calls it, and what a run of 20 s may not be worse than.

use std::ops::RangeInclusive;
use std::time::Duration;

use tidegate_core::config::Policy;

use crate::run::CALLERS;

/// One row.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Keys of the scenario, above its tables.
    pub(crate) top: &'static str,
    /// Where a 429 says how long to wait.
    pub(crate) waits: &'static str,
    /// The limit that holds calls back: `tokens`, `requests` or `requests_day`.
    pub(crate) binds: &'static str,
    /// Requests a minute that the model takes.
    pub(crate) rpm: u64,
    /// Keys of the model beside its minute limits.
    pub(crate) model: &'static str,
    /// Tables after it; `{n}` stands for a fraction of the run in seconds, as `{0.5}`.
    pub(crate) tables: &'static str,
    /// (share of the run, factor): the limit is so many times as large from then on.
    pub(crate) moves: &'static [(f64, f64)],
    /// From when until when, in shares of the run, no calls are made.
    pub(crate) idle: (f64, f64),
    /// How large calls are, from the smallest to the largest, in sentences of eleven tokens.
    pub(crate) sizes: RangeInclusive<usize>,
    /// Replies are asked for as streams.
    pub(crate) streams: bool,
    /// Another upstream stands by, of which nothing is wrong.
    pub(crate) falls_back: bool,
    /// High-priority callers beside the others, who are then `low`.
    pub(crate) interactive: usize,
    /// When the first of them calls, at the earliest.
    pub(crate) interactive_after: Duration,
    /// What the gateway is told, where that is anything.
    pub(crate) policy: fn(&mut Policy),
    /// What `check` holds it to, in a run of 20 s.
    pub(crate) held_to: Bounds,
}

/// What a row may not be worse than. Wide enough for a machine that does other things meanwhile: what no machine excuses is
/// asserted of each row (`Report::wrongs`).
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// The least of what was available that is used, in per cent.
    pub(crate) used: f64,
    /// The most 429s that the upstream sends.
    pub(crate) too_many: u64,
    /// The most that is held back, in per cent of what was available.
    pub(crate) held_back: f64,
    /// Of the calls that met a failure worth a retry, the least that ends well, in per cent.
    pub(crate) mended: f64,
    /// The most interactive calls that wait.
    pub(crate) waited: u64,
}

impl Bounds {
    const fn of(used: f64, too_many: u64) -> Self {
        Self { used, too_many, held_back: 0.5, mended: 95.0, waited: 0 }
    }

    const fn mended(self, mended: f64) -> Self {
        Self { mended, ..self }
    }

    const fn waited(self, waited: u64) -> Self {
        Self { waited, ..self }
    }

    const fn held_back(self, held_back: f64) -> Self {
        Self { held_back, ..self }
    }
}

/// A row of which nothing is special.
pub(crate) const PLAIN: Row = Row {
    name: "limit told by headers",
    top: "",
    waits: "both",
    binds: "tokens",
    rpm: 100_000,
    model: "",
    tables: "",
    moves: &[],
    idle: (0.0, 0.0),
    sizes: 9..=9,
    streams: false,
    falls_back: false,
    interactive: 0,
    interactive_after: Duration::ZERO,
    policy: |_| {},
    held_to: Bounds::of(84.0, 10),
};

/// No headers, and 429s that name neither the limit nor its numbers.
const NOTHING_TOLD: &str = "headers = false\nrefusal_message = 'nothing'";

/// For calls that would rather wait than fail: more attempts, no bound on retries, and a breaker that does not open, as it refuses
/// those who come meanwhile, and the second attempts of those who came before.
fn is_patient(policy: &mut Policy) {
    policy.retry.max_attempts = 40;
    (policy.retry.base_delay, policy.retry.max_delay) = (Duration::from_millis(250), Duration::from_secs(2));
    (policy.retry.budget.ratio, policy.retry.budget.min_per_second) = (40.0, 1000);
    (policy.breaker.failure_threshold, policy.breaker.minimum_calls) = (u32::MAX, u32::MAX);
}

fn recovers_soon(policy: &mut Policy) {
    policy.breaker.recovery_timeout = Duration::from_secs(2);
}

pub(crate) fn rows() -> Vec<Row> {
    let others = "[[tenant]]\nmodel = 'm'\nshare = 0.4\ntokens_per_call = 100\n";
    let others_alike = "[[tenant]]\nmodel = 'm'\nshare = 0.4\n";
    let outage = "[[fault]]\nkind = 'outage'\nclosed = true\nfrom = '{0.375}'\nuntil = '{0.5}'\n";
    let flapping = "[[fault]]\nkind = 'outage'\nfrom = '{0.2}'\nuntil = '{0.225}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.4}'\nuntil = '{0.425}'\n\
                    [[fault]]\nkind = 'outage'\nfrom = '{0.6}'\nuntil = '{0.625}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.8}'\nuntil = '{0.825}'\n";
    vec![
        PLAIN,
        Row {
            name: "halved after 1/3, back after 2/3",
            moves: &[(0.333, 0.5), (0.667, 1.0)],
            held_to: Bounds::of(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "doubled after 1/3, back after 2/3",
            moves: &[(0.333, 2.0), (0.667, 1.0)],
            held_to: Bounds::of(84.0, 60),
            ..PLAIN
        },
        Row { name: "unseen tenants take 40 %", tables: others, held_to: Bounds::of(84.0, 60), ..PLAIN },
        Row {
            name: "enforced by the second",
            model: "quantum = '1s'",
            held_to: Bounds::of(76.0, 90).held_back(24.0),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, wait in the message",
            model: "quantum = '1s'",
            waits: "none",
            held_to: Bounds::of(76.0, 90).held_back(24.0),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, others 40 %",
            model: "quantum = '1s'",
            tables: others,
            held_to: Bounds::of(76.0, 120).held_back(24.0),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, no wait told",
            top: "refusal_message = 'numbers'",
            waits: "none",
            model: "quantum = '1s'",
            held_to: Bounds::of(76.0, 90).held_back(24.0),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, waits now so, now so",
            top: "refusal_message = 'numbers'",
            waits: "mixed",
            model: "quantum = '1s'",
            held_to: Bounds::of(76.0, 90).held_back(24.0),
            ..PLAIN
        },
        Row { name: "no headers, numbers in 429s", top: "headers = false", held_to: Bounds::of(84.0, 150), ..PLAIN },
        Row {
            name: "no headers, waits now so, now so",
            top: NOTHING_TOLD,
            waits: "mixed",
            held_to: Bounds::of(84.0, 150),
            ..PLAIN
        },
        Row { name: "nothing told at all", top: NOTHING_TOLD, waits: "none", held_to: Bounds::of(84.0, 150), ..PLAIN },
        Row {
            name: "the same, 120 requests bind, sizes differ",
            top: NOTHING_TOLD,
            waits: "none",
            binds: "requests",
            rpm: 120,
            sizes: 4..=14,
            held_to: Bounds::of(60.0, 150),
            ..PLAIN
        },
        Row {
            name: "unreadable headers",
            tables: "[[fault]]\nkind = 'garbage_headers'\n",
            held_to: Bounds::of(84.0, 150),
            ..PLAIN
        },
        Row {
            name: "random headers",
            tables: "[[fault]]\nkind = 'random_headers'\n",
            held_to: Bounds::of(84.0, 180),
            ..PLAIN
        },
        Row { name: "headers tell twice the truth", top: "told_factor = 2.0", held_to: Bounds::of(84.0, 180), ..PLAIN },
        Row { name: "headers tell half the truth", top: "told_factor = 0.5", held_to: Bounds::of(34.0, 10), ..PLAIN },
        Row { name: "charges input + max", model: "charge = 'input_plus_max'", held_to: Bounds::of(82.0, 60), ..PLAIN },
        Row {
            name: "charges the larger of input and max",
            model: "charge = 'max'",
            held_to: Bounds::of(79.0, 60),
            ..PLAIN
        },
        Row { name: "charges real use", model: "charge = 'usage'", held_to: Bounds::of(82.0, 60), ..PLAIN },
        Row {
            name: "300 requests bind, others 40 %",
            binds: "requests",
            rpm: 300,
            tables: others_alike,
            held_to: Bounds::of(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "the same, refused calls not counted",
            top: "refused_count = false",
            binds: "requests",
            rpm: 300,
            tables: others_alike,
            held_to: Bounds::of(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "300 requests left of the day",
            binds: "requests_day",
            model: "rpd = 300\nrpd_in_headers = true",
            held_to: Bounds::of(95.0, 10),
            ..PLAIN
        },
        Row {
            name: "the same, headers silent of the day",
            binds: "requests_day",
            model: "rpd = 300",
            held_to: Bounds::of(95.0, 90).mended(0.0),
            ..PLAIN
        },
        Row { name: "all at once after an idle time", idle: (0.2, 0.5), held_to: Bounds::of(79.0, 10), ..PLAIN },
        Row {
            // It begins when the first of them has been there.
            name: "50 interactive callers beside a batch job",
            idle: (0.0, 0.05),
            interactive: 50,
            held_to: Bounds::of(48.0, 10).held_back(3.0).waited(2),
            ..PLAIN
        },
        Row {
            // By then it has emptied the level, as nobody had been there to keep half of it for.
            name: "the same, from 10 s after it began",
            interactive: 50,
            interactive_after: Duration::from_secs(10),
            held_to: Bounds::of(69.0, 10).held_back(3.0).waited(5),
            ..PLAIN
        },
        Row {
            name: "outage of an eighth of the time",
            tables: outage,
            policy: recovers_soon,
            held_to: Bounds::of(60.0, 10).held_back(5.0).mended(0.0),
            ..PLAIN
        },
        Row {
            name: "the same, waited out",
            tables: outage,
            policy: is_patient,
            held_to: Bounds::of(40.0, 10).held_back(5.0),
            ..PLAIN
        },
        Row {
            name: "the same outage, another upstream stands by",
            tables: outage,
            falls_back: true,
            policy: recovers_soon,
            held_to: Bounds::of(60.0, 10).held_back(5.0),
            ..PLAIN
        },
        Row {
            name: "flapping: 503, four times a fortieth",
            tables: flapping,
            policy: recovers_soon,
            held_to: Bounds::of(20.0, 10).held_back(5.0).mended(0.0),
            ..PLAIN
        },
        Row {
            name: "the same flapping, waited out",
            tables: flapping,
            policy: is_patient,
            held_to: Bounds::of(40.0, 10).held_back(5.0),
            ..PLAIN
        },
        Row {
            name: "one call in 20 fails",
            // By chance: every 20th would be the same tenant's each time, and so its retries too.
            tables: "[[fault]]\nkind = 'error_500'\nprobability = 0.05\n",
            held_to: Bounds::of(79.0, 10).mended(80.0),
            ..PLAIN
        },
        Row {
            name: "one stream in 20 begins with an error",
            streams: true,
            tables: "[[fault]]\nkind = 'mid_stream_error'\nafter = 0\nprobability = 0.05\n",
            held_to: Bounds::of(79.0, 10).mended(80.0),
            ..PLAIN
        },
        Row {
            // A slow machine has not emptied the bucket by then: it goes on at half the rate that it had come to, and every caller
            // may have a call on its way before the first refusal is heard.
            name: "slow_down for a fortieth",
            tables: "[[fault]]\nkind = 'slow_down'\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds::of(8.0, CALLERS as u64).held_back(15.0),
            ..PLAIN
        },
        Row {
            name: "the same, as a 503",
            tables: "[[fault]]\nkind = 'slow_down'\nstatus = 503\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds::of(8.0, CALLERS as u64).held_back(15.0),
            ..PLAIN
        },
        Row {
            name: "quota ends halfway",
            tables: "[[fault]]\nkind = 'insufficient_quota'\nfrom = '{0.5}'\n",
            held_to: Bounds::of(64.0, u64::MAX).held_back(10.0),
            ..PLAIN
        },
    ]
}
