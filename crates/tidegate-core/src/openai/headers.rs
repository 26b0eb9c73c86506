//! Decides what a reply's headers say: of the server's limits, of how long to wait, of whether to try again.
//!
//! Headers are other people's words: what is negative, absurd or contradicts itself is ignored, one dimension at a time.

use std::time::{Duration, SystemTime};

use super::durations::{from_nanos, parse_duration, scaled};
use crate::limit::Dimension;
use crate::outcome::{ServerLimit, ServerLimits};
use crate::time::micros_up;

/// Header values by name; what the HTTP library at hand is asked through.
pub trait HeaderLookup {
    /// The value of the header `name` (given in lower case) as text.
    ///
    /// Where it came more than once: the first one that is text. `None`: absent, or none of them is text.
    fn header(&self, name: &str) -> Option<&str>;
}

impl HeaderLookup for [(&str, &str)] {
    fn header(&self, name: &str) -> Option<&str> {
        self.iter().find(|(candidate, _)| candidate.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

impl<const N: usize> HeaderLookup for [(&str, &str); N] {
    fn header(&self, name: &str) -> Option<&str> {
        self.as_slice().header(name)
    }
}

impl<H: HeaderLookup + ?Sized> HeaderLookup for &H {
    fn header(&self, name: &str) -> Option<&str> {
        (**self).header(name)
    }
}

/// The longest wait that is believed: 7 days. A wait of 114 hours was seen in the wild and is kept, so that the caller is
/// told it; above this it is more likely a mistake of units. How long anything really sleeps, the retry policy decides.
pub const MAX_WAIT: Duration = Duration::from_secs(7 * 86_400);

/// A limit, or what is left of one, above this is no number of requests or tokens.
const MAX_UNITS: u64 = 1_000_000_000_000;

const DAY_MICROS: u128 = 86_400_000_000;
/// Between a minute and a day, as far (by factor) from the one as from the other.
const BETWEEN_MICROS: u128 = 2_276_839_915;

/// What a family of headers counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Requests,
    Tokens,
    Images,
}

/// The period that a family of headers speaks of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Period {
    Minute,
    Day,
    /// To be found out from the reset time.
    Unsaid,
}

struct Family {
    unit: Unit,
    period: Period,
    limit: &'static str,
    remaining: &'static str,
    reset: &'static str,
    /// Azure's own: the period in seconds.
    renewal: &'static str,
}

macro_rules! families {
    ($($unit:ident $period:ident $name:literal)*) => {
        [$(Family {
            unit: Unit::$unit,
            period: Period::$period,
            limit: concat!("x-ratelimit-limit-", $name),
            remaining: concat!("x-ratelimit-remaining-", $name),
            reset: concat!("x-ratelimit-reset-", $name),
            renewal: concat!("x-ratelimit-renewalperiod-", $name),
        }),*]
    };
}

/// OpenAI's own, Azure's and Groq's.
static USUAL: [Family; 7] = families! {
    Requests Unsaid "requests"
    Requests Unsaid "project-requests"
    Tokens Unsaid "tokens"
    Tokens Unsaid "project-tokens"
    Tokens Unsaid "tokens_usage_based"
    Images Minute "input-images"
    Images Minute "images"
};

/// Cerebras and Mistral, which name the period.
static PERIOD_NAMED: [Family; 4] = families! {
    Requests Minute "requests-minute"
    Requests Day "requests-day"
    Tokens Minute "tokens-minute"
    Tokens Day "tokens-day"
};

macro_rules! anthropic {
    ($($unit:ident $name:literal)*) => {
        [$(Family {
            unit: Unit::$unit,
            period: Period::Minute,
            limit: concat!("anthropic-ratelimit-", $name, "-limit"),
            remaining: concat!("anthropic-ratelimit-", $name, "-remaining"),
            reset: "",
            renewal: "",
        }),*]
    };
}

static ANTHROPIC: [Family; 3] = anthropic! {
    Requests "requests"
    Tokens "tokens"
    Tokens "input-tokens"
};

/// What the headers tell of the server's limiter; empty where they tell nothing.
///
/// Minute and day are told apart by reset × limit ÷ (limit − remaining), as `-requests` may be either: the reset time is
/// when the bucket is *full* again. Of several families that count the same (organization, project, usage-based tokens)
/// the tighter: the lower limit, and the lower remaining. A remaining above its limit, a negative, absurd or unreadable
/// number: the family is ignored.
/// Source: rate-limits guide; Azure, Groq, Cerebras, Mistral and Anthropic as they were seen to answer.
#[must_use]
pub fn server_limits<H: HeaderLookup + ?Sized>(headers: &H) -> ServerLimits {
    let mut limits = ServerLimits::default();
    for families in [&USUAL[..], &PERIOD_NAMED[..], &ANTHROPIC[..]] {
        for family in families {
            if let Some(limit) = read_family(headers, family) {
                add(&mut limits, limit);
            }
        }
        if !limits.0.is_empty() {
            break;
        }
    }
    limits
}

fn read_family<H: HeaderLookup + ?Sized>(headers: &H, family: &Family) -> Option<ServerLimit> {
    let limit = units(headers.header(family.limit)?).filter(|limit| *limit > 0)?;
    let remaining = match headers.header(family.remaining) {
        Some(text) => Some(units(text).filter(|remaining| *remaining <= limit)?),
        None => None,
    };
    let is_day = match family.period {
        Period::Minute => false,
        Period::Day => true,
        Period::Unsaid => {
            let renewal = headers.header(family.renewal).and_then(|text| scaled(text.trim(), 1_000_000));
            match (renewal, remaining) {
                (Some(micros), _) => micros > BETWEEN_MICROS,
                (None, Some(remaining)) => {
                    let reset = headers.header(family.reset).unwrap_or("").trim();
                    is_per_day(family.unit, limit, remaining, reset)
                }
                (None, None) => false,
            }
        }
    };
    let dimension = match (family.unit, is_day) {
        (Unit::Requests, false) => Dimension::RequestsPerMinute,
        (Unit::Requests, true) => Dimension::RequestsPerDay,
        (Unit::Tokens, false) => Dimension::TokensPerMinute,
        (Unit::Tokens, true) => Dimension::TokensPerDay,
        (Unit::Images, _) => Dimension::ImagesPerMinute,
    };
    Some(ServerLimit { dimension, limit, remaining })
}

/// Whether a bucket that will be full after `reset` refills over a day. A minute where nothing can be said.
fn is_per_day(unit: Unit, limit: u64, remaining: u64, reset: &str) -> bool {
    let Some(reset_micros) = parse_duration(reset).map(|reset| u128::from(micros_up(reset))) else { return false };
    // Less than one unit in use still shows in the reset time.
    let used = u128::from((limit - remaining).max(1));
    let Some(period) = reset_micros.checked_mul(u128::from(limit)).map(|product| product / used) else { return false };
    let close_to_day = (DAY_MICROS * 3 / 4..DAY_MICROS * 4 / 3).contains(&period);
    if reset.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        // A bare number may be seconds, milliseconds (a minute then looks like 60,000 s) or an instant: only what fits a day is one.
        return close_to_day;
    }
    match unit {
        // Of requests so few are in use that whole numbers blur the result: whichever is nearer.
        Unit::Requests => period > BETWEEN_MICROS,
        // Of tokens many are: it must fit, as Groq's documented example fits neither.
        Unit::Tokens => close_to_day,
        Unit::Images => false,
    }
}

/// Of two families that count the same the tighter is kept.
fn add(limits: &mut ServerLimits, new: ServerLimit) {
    let Some(old) = limits.0.iter_mut().find(|old| old.dimension == new.dimension) else {
        limits.0.push(new);
        return;
    };
    old.limit = old.limit.min(new.limit);
    old.remaining = match (old.remaining, new.remaining) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
    .map(|remaining| remaining.min(old.limit));
}

/// A number of requests or tokens; fractions (some send floats) are dropped.
fn units(text: &str) -> Option<u64> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    whole.parse().ok().filter(|units| *units <= MAX_UNITS)
}

/// How long the server asks us to wait: `retry-after-ms` if it is above zero, else `retry-after`.
///
/// `unix_now` is the time since 1970, for the form of `retry-after` that is a date. Rounded up to whole microseconds: early
/// is a wasted attempt, late is not. At most [`MAX_WAIT`], never zero. `None` when neither header is present and readable,
/// says zero, or names an instant that has passed.
/// Source: RFC 9110 §10.2.3; the `-ms` form is what the official SDKs read first, and Azure sends it as 0 beside a
/// `retry-after` of 1, on which SDKs that believe it retry at once.
#[must_use]
pub fn requested_wait<H: HeaderLookup + ?Sized>(headers: &H, unix_now: Duration) -> Option<Duration> {
    let millis = headers.header("retry-after-ms").and_then(|text| scaled(text.trim(), 1_000_000)).and_then(from_nanos);
    if let Some(wait) = millis.and_then(believable) {
        return Some(wait);
    }
    let text = headers.header("retry-after")?.trim();
    let wait = match parse_duration(text) {
        Some(wait) => wait,
        None => {
            // No clock is read: the type is only what the parser of dates speaks.
            let now = SystemTime::UNIX_EPOCH.checked_add(unix_now)?;
            httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?
        }
    };
    believable(wait)
}

/// A wait in whole microseconds, at most the ceiling; `None` for none at all.
pub(super) fn believable(wait: Duration) -> Option<Duration> {
    let micros = micros_up(wait);
    (micros > 0).then(|| Duration::from_micros(micros).min(MAX_WAIT))
}

/// Whether the server says that trying again makes sense: `x-should-retry`. `None` where it says nothing readable.
///
/// Source: every official SDK obeys it before all other rules.
#[must_use]
pub fn should_retry<H: HeaderLookup + ?Sized>(headers: &H) -> Option<bool> {
    let text = headers.header("x-should-retry")?.trim();
    match text {
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
