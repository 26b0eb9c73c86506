//! The scenarios: what each upstream pretends, who calls it, and what a run of 20 s may not be worse than.

use std::time::Duration;

/// One row.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Keys of the scenario, above its tables.
    pub(crate) top: &'static str,
    /// Where a 429 says how long to wait.
    pub(crate) waits: &'static str,
    /// Keys of the model.
    pub(crate) model: &'static str,
    /// Tables after it; `{n}` stands for a fraction of the run in seconds, as `{0.5}`.
    pub(crate) tables: &'static str,
    /// (share of the run, factor): the limit is so many times as large from then on.
    pub(crate) moves: &'static [(f64, f64)],
    /// From when until when, in shares of the run, no calls are made.
    pub(crate) idle: (f64, f64),
    /// High-priority callers beside the others, who are then `low`.
    pub(crate) interactive: usize,
    pub(crate) recovery: Duration,
    /// What `check` holds it to, in a run of 20 s.
    pub(crate) held_to: Bounds,
}

/// The least of what was available that is used, in per cent; the most 429s that the upstream sends. Wide enough for a machine that
/// does other things meanwhile: what no machine excuses is asserted of each row.
#[derive(Clone, Copy)]
pub(crate) struct Bounds(pub(crate) f64, pub(crate) u64);

const PLAIN: Row = Row {
    name: "limit told by headers",
    top: "",
    waits: "both",
    model: "",
    tables: "",
    moves: &[],
    idle: (0.0, 0.0),
    interactive: 0,
    recovery: Duration::from_secs(60),
    held_to: Bounds(84.0, 10),
};

pub(crate) fn rows() -> Vec<Row> {
    let others = "[[tenant]]\nmodel = 'm'\nshare = 0.4\ntokens_per_call = 100\n";
    let soon = Duration::from_secs(2);
    vec![
        PLAIN,
        Row {
            name: "halved after 1/3, back after 2/3",
            moves: &[(0.333, 0.5), (0.667, 1.0)],
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "doubled after 1/3, back after 2/3",
            moves: &[(0.333, 2.0), (0.667, 1.0)],
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row { name: "unseen tenants take 40 %", tables: others, held_to: Bounds(84.0, 60), ..PLAIN },
        Row { name: "enforced by the second", model: "quantum = '1s'", held_to: Bounds(76.0, 90), ..PLAIN },
        Row {
            name: "enforced by the second, wait in the message",
            model: "quantum = '1s'",
            waits: "none",
            held_to: Bounds(76.0, 90),
            ..PLAIN
        },
        Row {
            name: "enforced by the second, others 40 %",
            model: "quantum = '1s'",
            tables: others,
            held_to: Bounds(76.0, 120),
            ..PLAIN
        },
        Row { name: "no headers", top: "headers = false", held_to: Bounds(84.0, 150), ..PLAIN },
        Row {
            name: "unreadable headers",
            tables: "[[fault]]\nkind = 'garbage_headers'\n",
            held_to: Bounds(84.0, 150),
            ..PLAIN
        },
        Row {
            name: "random headers",
            tables: "[[fault]]\nkind = 'random_headers'\n",
            held_to: Bounds(84.0, 180),
            ..PLAIN
        },
        Row { name: "headers tell twice the truth", top: "told_factor = 2.0", held_to: Bounds(84.0, 180), ..PLAIN },
        Row { name: "headers tell half the truth", top: "told_factor = 0.5", held_to: Bounds(34.0, 10), ..PLAIN },
        Row { name: "charges input + max", model: "charge = 'input_plus_max'", held_to: Bounds(82.0, 60), ..PLAIN },
        Row {
            name: "charges the larger of input and max",
            model: "charge = 'max'",
            held_to: Bounds(79.0, 60),
            ..PLAIN
        },
        Row { name: "charges real use", model: "charge = 'usage'", held_to: Bounds(82.0, 60), ..PLAIN },
        Row {
            name: "refused calls not counted, others 40 %",
            top: "refused_count = false",
            tables: others,
            held_to: Bounds(84.0, 60),
            ..PLAIN
        },
        Row {
            name: "300 requests left of the day",
            model: "rpd = 300\nrpd_in_headers = true",
            held_to: Bounds(38.0, 10),
            ..PLAIN
        },
        Row { name: "the same, headers silent of the day", model: "rpd = 300", held_to: Bounds(38.0, 90), ..PLAIN },
        Row { name: "all at once after an idle time", idle: (0.2, 0.5), held_to: Bounds(79.0, 10), ..PLAIN },
        Row { name: "50 interactive callers beside a batch job", interactive: 50, held_to: Bounds(69.0, 10), ..PLAIN },
        Row {
            name: "outage of an eighth of the time",
            tables: "[[fault]]\nkind = 'outage'\nclosed = true\nfrom = '{0.375}'\nuntil = '{0.5}'\n",
            recovery: soon,
            held_to: Bounds(82.0, 10),
            ..PLAIN
        },
        Row {
            name: "flapping: 503 for 3 s, four times",
            tables: "[[fault]]\nkind = 'outage'\nfrom = '{0.2}'\nuntil = '{0.225}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.4}'\nuntil = '{0.425}'\n\
                     [[fault]]\nkind = 'outage'\nfrom = '{0.6}'\nuntil = '{0.625}'\n[[fault]]\nkind = 'outage'\nfrom = '{0.8}'\nuntil = '{0.825}'\n",
            recovery: soon,
            held_to: Bounds(76.0, 10),
            ..PLAIN
        },
        Row {
            name: "every 20th call fails",
            tables: "[[fault]]\nkind = 'error_500'\nevery = 20\n",
            held_to: Bounds(79.0, 10),
            ..PLAIN
        },
        Row {
            name: "slow_down for 3 s",
            tables: "[[fault]]\nkind = 'slow_down'\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds(64.0, 60),
            ..PLAIN
        },
        Row {
            name: "the same, as a 503",
            tables: "[[fault]]\nkind = 'slow_down'\nstatus = 503\nfrom = '{0.3}'\nuntil = '{0.325}'\n",
            held_to: Bounds(64.0, 60),
            ..PLAIN
        },
        Row {
            name: "quota ends halfway",
            tables: "[[fault]]\nkind = 'insufficient_quota'\nfrom = '{0.5}'\n",
            held_to: Bounds(64.0, u64::MAX),
            ..PLAIN
        },
    ]
}
