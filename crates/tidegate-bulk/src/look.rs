//! Decides what is said of a run while it goes: how far it is, how fast beside its limits, what holds it up, how long it will
//! take.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use tidegate_core::gate::Gate;

use crate::call::Shared;
use crate::known::Known;
use crate::summary::Spoken;

/// What goes by in a minute is measured over this.
const RATE_OVER: Duration = Duration::from_secs(30);
/// A run begins slowly: so long what it does says nothing of what it will do.
const BEGINS_FOR: Duration = Duration::from_secs(8);

/// What there is to do in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    /// Good results and failures that there were before.
    pub(crate) before: (u64, u64),
    /// Lines, those with results before included.
    pub(crate) lines: u64,
    /// Input tokens that are to be sent now, as estimated.
    pub(crate) input_tokens: u64,
}

/// One look at a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Look {
    done: u64,
    failed: u64,
    total: u64,
    in_flight: u64,
    requests_per_minute: u64,
    requests_per_minute_limit: Option<u64>,
    tokens_per_minute: u64,
    tokens_per_minute_limit: Option<u64>,
    rate_limited: u64,
    eta_seconds: Option<u64>,
    /// `open` where a breaker is, `no_quota` in a pause for want of it.
    upstream: &'static str,
    /// What an open breaker last heard, or did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fault: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    attempts: u64,
    tokens: u64,
    ended: u64,
}

/// Looks again and again.
#[derive(Debug)]
pub(crate) struct Looks {
    whole: Whole,
    past: VecDeque<Moment>,
}

impl Looks {
    pub(crate) fn new(whole: Whole) -> Self {
        let now = Moment { at: Instant::now(), attempts: 0, tokens: 0, ended: 0 };
        Self { whole, past: VecDeque::from([now]) }
    }

    pub(crate) fn look(&mut self, shared: &Shared) -> Look {
        let counts = &shared.counts;
        let (done, failed) = (counts.done.load(Relaxed), counts.failed.load(Relaxed));
        let now = Moment {
            at: Instant::now(),
            attempts: counts.attempts.load(Relaxed),
            tokens: counts.sent_tokens.load(Relaxed),
            ended: done + failed,
        };
        self.past.push_back(now);
        while self.past.len() > 2 && self.past.front().is_some_and(|then| now.at - then.at > RATE_OVER) {
            self.past.pop_front();
        }
        let then = self.past.front().copied().unwrap_or(now);
        let passed = now.at - then.at;
        let per_second = |units: u64| units as f64 / passed.as_secs_f64().max(0.001);
        let per_minute = |now: u64, then: u64| (60.0 * per_second(now.saturating_sub(then))).round() as u64;
        let status = shared.driver.with(Gate::status);
        let [requests, tokens] =
            ["requests_per_minute", "tokens_per_minute"].map(|dimension| Known::of(&status, dimension));
        let is_open = status.breakers.iter().any(|breaker| !matches!(breaker.state, "closed" | "forced_closed"));
        let in_flight = counts.in_flight.load(Relaxed);
        let Whole { before, lines, input_tokens } = self.whole;
        let rest = lines.saturating_sub(now.ended + before.0 + before.1);
        let left = Left {
            lines: rest,
            unsent: [rest.saturating_sub(in_flight), input_tokens.saturating_sub(now.tokens)],
            limits: [requests, tokens],
            lines_per_second: (passed >= BEGINS_FOR).then(|| per_second(now.ended - then.ended)),
        };
        let is_held_up = is_open || shared.quota.is_out();
        if is_held_up {
            // What did not go by meanwhile says nothing of how fast the rest will.
            self.past = VecDeque::from([now]);
        }
        let fault = || counts.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Look {
            done: done + before.0,
            failed: failed + before.1,
            total: lines,
            in_flight,
            requests_per_minute: per_minute(now.attempts, then.attempts),
            requests_per_minute_limit: requests.map(|known| known.limit),
            tokens_per_minute: per_minute(now.tokens, then.tokens),
            tokens_per_minute_limit: tokens.map(|known| known.limit),
            rate_limited: counts.met_429.load(Relaxed),
            eta_seconds: if is_held_up { None } else { left.seconds().map(|seconds| seconds.ceil() as u64) },
            upstream: match (shared.quota.is_out(), is_open) {
                (true, _) => "no_quota",
                (false, true) => "open",
                (false, false) => "closed",
            },
            last_fault: if is_open { fault() } else { None },
        }
    }
}

/// What is left to be done, and what bounds how fast it goes.
#[derive(Debug)]
struct Left {
    /// Without a result.
    lines: u64,
    /// Requests and tokens that were not sent yet.
    unsent: [u64; 2],
    /// Their limits, where they are known.
    limits: [Option<Known>; 2],
    /// Results that came lately. `None`: it is too early to say.
    lines_per_second: Option<f64>,
}

impl Left {
    /// What the limits allow, or what went by lately where that is slower. `None`: nothing is known.
    fn seconds(&self) -> Option<f64> {
        let by_limit = |(units, known): (u64, Option<Known>)| {
            let Known { limit, remaining } = known?;
            Some(units.saturating_sub(remaining) as f64 * 60.0 / limit.max(1) as f64)
        };
        let by_limits = self.unsent.into_iter().zip(self.limits).filter_map(by_limit).reduce(f64::max);
        match self.lines_per_second {
            // Nothing comes: nobody knows when that will be over.
            Some(0.0) => None,
            Some(rate) => Some((self.lines as f64 / rate).max(by_limits.unwrap_or(0.0))),
            None => by_limits,
        }
    }
}

impl Look {
    pub(crate) fn ended(&self) -> u64 {
        self.done + self.failed
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        self.fitted(usize::MAX)
    }

    /// As much of it as has room in so many columns; what matters most stays.
    pub(crate) fn fitted(&self, columns: usize) -> String {
        let mut fields = self.fields();
        loop {
            let text = fields.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", ");
            let least = (0..fields.len()).max_by_key(|at| fields[*at].0);
            match least {
                Some(least) if fields.len() > 1 && text.chars().count() > columns => drop(fields.remove(least)),
                _ => return text,
            }
        }
    }

    /// In the order in which they stand; the lower its number, the longer one stays where there is little room.
    fn fields(&self) -> Vec<(u8, String)> {
        let rate = |units: u64, limit: Option<u64>, what: &str| match limit {
            // What was saved up goes at once: nothing is wrong with that.
            Some(limit) if units > limit + limit / 20 => format!("{units} {what}/min in a burst (limit {limit})"),
            Some(limit) => format!("{units} of {limit} {what}/min"),
            None => format!("{units} {what}/min"),
        };
        let mut fields = vec![
            (0, format!("{}/{} done", self.done, self.total)),
            (3, format!("{} failed", self.failed)),
            (5, format!("{} in flight", self.in_flight)),
            (6, rate(self.requests_per_minute, self.requests_per_minute_limit, "requests")),
            (7, rate(self.tokens_per_minute, self.tokens_per_minute_limit, "tokens")),
            (8, format!("{} 429s", self.rate_limited)),
        ];
        match self.upstream {
            "no_quota" => fields.push((1, "waiting for quota".to_owned())),
            "open" => fields.push((1, "waiting for the upstream".to_owned())),
            _ => {}
        }
        fields.extend(self.last_fault.clone().map(|fault| (4, fault)));
        fields.extend(self.eta_seconds.map(|eta| (2, format!("{} left", roughly(eta)))));
        fields
    }
}

/// Nobody knows tenths of what is still to come.
fn roughly(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { Spoken(Duration::from_secs(seconds)).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        Look {
            done: 123,
            failed: 4,
            total: 2000,
            in_flight: 12,
            requests_per_minute: 598,
            requests_per_minute_limit: Some(600),
            tokens_per_minute: 31_000,
            tokens_per_minute_limit: Some(90_000),
            eta_seconds: Some(187),
            upstream: "closed",
            ..Look::default()
        }
    }

    #[test]
    fn what_matters_most_stays_where_there_is_little_room() {
        assert_eq!(look().fitted(38), "123/2000 done, 4 failed, 3m07s left");
        assert_eq!(look().fitted(60), "123/2000 done, 4 failed, 12 in flight, 3m07s left");
        let all = "123/2000 done, 4 failed, 12 in flight, 598 of 600 requests/min, 31000 of 90000 tokens/min, 0 429s, \
                   3m07s left";
        assert_eq!(look().text(), all);
        let out = Look { upstream: "open", eta_seconds: None, last_fault: Some("no connection".into()), ..look() };
        assert_eq!(out.fitted(40), "123/2000 done, waiting for the upstream");
        assert_eq!(out.fitted(65), "123/2000 done, 4 failed, waiting for the upstream, no connection");
        for columns in 15..200 {
            assert!(look().fitted(columns).len() <= columns);
        }
    }

    #[test]
    fn a_burst_out_of_a_full_bucket_is_said_to_be_one() {
        let burst = Look { requests_per_minute: 2145, ..look() };
        assert!(burst.text().contains("2145 requests/min in a burst (limit 600)"), "{}", burst.text());
    }

    #[test]
    fn how_long_it_takes_is_what_the_limits_allow_however_fast_a_burst_was() {
        let left = |lines_per_second| Left {
            lines: 100,
            unsent: [90, 9_000],
            limits: [Some(Known { limit: 600, remaining: 10 }), Some(Known { limit: 6_000, remaining: 7_700 })],
            lines_per_second,
        };
        // 80 requests at 10 a second, 1300 tokens at 100 a second.
        assert_eq!(left(Some(50.0)).seconds(), Some(13.0));
        assert_eq!(left(None).seconds(), Some(13.0));
        assert_eq!(left(Some(4.0)).seconds(), Some(25.0));
        assert_eq!(left(Some(0.0)).seconds(), None);
        let unknown = Left { limits: [None, None], ..left(None) };
        assert_eq!(unknown.seconds(), None);
    }
}
