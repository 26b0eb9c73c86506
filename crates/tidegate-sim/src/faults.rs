//! Decides which faults strike a call.
//!
//! A call draws once for every fault of the scenario, struck or not, so that one fault's filters do not move another's
//! draws.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::scenario::{Fault, FaultKind};

/// What the filters look at.
pub(crate) struct Facts<'a> {
    pub(crate) at: Duration,
    pub(crate) model: &'a str,
    pub(crate) path: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) stream: bool,
}

/// What strikes one call.
#[derive(Default)]
pub(crate) struct Struck<'a> {
    /// The first fault that changes what happens.
    pub(crate) main: Option<&'a Fault>,
    pub(crate) missing_headers: bool,
    pub(crate) garbage_headers: bool,
    pub(crate) random_headers: bool,
    /// The size of the pieces that the reply is cut into.
    pub(crate) split: Option<usize>,
}

impl Struck<'_> {
    pub(crate) fn is(&self, kind: FaultKind) -> bool {
        self.main.is_some_and(|f| f.kind == kind)
    }
}

/// `matched` counts each fault's matching calls, in the order of `faults`.
pub(crate) fn strike<'a>(
    faults: &'a [Fault],
    matched: &[AtomicU64],
    facts: &Facts<'_>,
    rng: &mut fastrand::Rng,
) -> Struck<'a> {
    let mut struck = Struck::default();
    for (fault, matched) in faults.iter().zip(matched) {
        let draw = rng.f64();
        if !matches(fault, facts) {
            continue;
        }
        let nth = matched.fetch_add(1, Ordering::Relaxed) + 1;
        if fault.first.is_some_and(|first| nth > first)
            || fault.every.is_some_and(|every| nth % every != 0)
            || fault.probability.is_some_and(|p| draw >= p)
        {
            continue;
        }
        match fault.kind {
            FaultKind::MissingHeaders => struck.missing_headers = true,
            FaultKind::GarbageHeaders => struck.garbage_headers = true,
            FaultKind::RandomHeaders => struck.random_headers = true,
            FaultKind::Split => struck.split = Some(fault.bytes.unwrap_or(7) as usize),
            _ if struck.main.is_none() => struck.main = Some(fault),
            _ => {}
        }
    }
    struck
}

fn matches(fault: &Fault, facts: &Facts<'_>) -> bool {
    let model = fault.model.as_deref().is_none_or(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => facts.model.starts_with(beginning),
        None => facts.model == pattern,
    });
    facts.at >= fault.from
        && fault.until.is_none_or(|until| facts.at < until)
        && model
        && fault.path.as_deref().is_none_or(|part| facts.path.contains(part))
        && fault.user.as_deref().is_none_or(|user| facts.user == Some(user))
        && fault.stream.is_none_or(|stream| facts.stream == stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(second: u64) -> Facts<'static> {
        Facts {
            at: Duration::from_secs(second),
            model: "gpt-4o",
            path: "/v1/chat/completions",
            user: None,
            stream: false,
        }
    }

    fn count(fault: Fault, calls: u64) -> Vec<u64> {
        let (faults, matched) = ([fault], [AtomicU64::new(0)]);
        let struck = |&i: &u64| strike(&faults, &matched, &facts(i), &mut crate::draw::of_call(9, i)).main.is_some();
        (0..calls).filter(struck).collect()
    }

    #[test]
    fn a_timeline_begins_and_ends() {
        let fault = Fault {
            from: Duration::from_secs(3),
            until: Some(Duration::from_secs(5)),
            ..Fault::new(FaultKind::Error500)
        };
        assert_eq!(count(fault, 10), [3, 4]);
    }

    #[test]
    fn first_and_every_count_matching_calls() {
        assert_eq!(count(Fault { first: Some(2), ..Fault::new(FaultKind::Reset) }, 5), [0, 1]);
        assert_eq!(count(Fault { every: Some(3), ..Fault::new(FaultKind::Reset) }, 9), [2, 5, 8]);
    }

    #[test]
    fn a_probability_strikes_its_share_and_the_same_calls_again() {
        let fault = Fault { probability: Some(0.2), ..Fault::new(FaultKind::Error500) };
        let struck = count(fault.clone(), 5_000);
        assert!((900..1_100).contains(&struck.len()), "{}", struck.len());
        assert_eq!(struck, count(fault, 5_000));
    }

    #[test]
    fn filters_keep_other_calls_whole() {
        for fault in [
            Fault { model: Some("gpt-5*".into()), ..Fault::new(FaultKind::Error500) },
            Fault { path: Some("embeddings".into()), ..Fault::new(FaultKind::Error500) },
            Fault { user: Some("alice".into()), ..Fault::new(FaultKind::Error500) },
            Fault { stream: Some(true), ..Fault::new(FaultKind::Error500) },
        ] {
            assert!(count(fault, 3).is_empty());
        }
        assert_eq!(count(Fault { model: Some("gpt-4*".into()), ..Fault::new(FaultKind::Error500) }, 2), [0, 1]);
    }
}
