//! Decides what a call without a ceiling on its output is expected to write: what such calls wrote before.
//!
//! A decaying estimate of a high quantile, for each tenant and kind of work of one account and model group: a reservation
//! should be too small rarely, and not too large by much. A tenant that is new is expected to write what all do.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::call::RequestType;

/// Expected while none has been seen.
const FIRST_GUESS: u64 = 256;
/// So many of a hundred calls are to write no more than is expected.
const PERCENT: u64 = 80;
/// A step of the estimate is one part in so many of it, at first as many as calls were seen.
const STEP_PART: u64 = 16;
/// A tenant's own estimate counts after so many calls.
const OWN_AFTER: u32 = 8;
/// Tenants that have estimates of their own; beyond that all are forgotten, and estimated anew.
const TENANTS_MAX: usize = 512;

/// An estimate that follows the quantile: up by much when a call wrote more, down by little when it wrote less.
#[derive(Clone, Copy, Debug, Default)]
struct Quantile {
    value: u64,
    seen: u32,
}

impl Quantile {
    fn saw(&mut self, tokens: u64) {
        self.seen = self.seen.saturating_add(1);
        if self.seen == 1 {
            self.value = tokens;
            return;
        }
        let part = STEP_PART.min(u64::from(self.seen) / 2 + 1);
        let step = (self.value / part).max(4);
        if tokens > self.value {
            // Never beyond what was seen: one long answer among short ones is not what is typical.
            self.value = (self.value + step * PERCENT / 100).min(tokens);
        } else {
            self.value = self.value.saturating_sub(step * (100 - PERCENT) / 100).max(tokens);
        }
    }
}

/// Whose calls wrote: the name, and its hash, by which it is found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant<'t> {
    pub(crate) hash: u64,
    pub(crate) name: &'t Arc<str>,
}

#[derive(Clone, Debug)]
struct Own {
    tenant: Arc<str>,
    typical: Quantile,
}

/// What calls to one account and model group write.
#[derive(Clone, Debug, Default)]
pub(crate) struct TypicalOutput {
    all: [Quantile; 5],
    tenants: HashMap<(u64, RequestType), Own>,
}

/// An estimate as it is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Estimate<'t> {
    /// `None`: of all tenants' calls.
    pub(crate) tenant: Option<&'t str>,
    /// Name of the type of request.
    pub(crate) kind: &'t str,
    pub(crate) tokens: u64,
    /// How many calls it is made of.
    pub(crate) seen: u32,
}

impl TypicalOutput {
    /// Tokens that a call of this kind, of the tenant with this hash, is expected to write at most.
    pub(crate) fn expected(&self, tenant: u64, request_type: RequestType) -> u64 {
        let own = self.tenants.get(&(tenant, request_type)).map(|own| &own.typical);
        let known = own.filter(|own| own.seen >= OWN_AFTER);
        let known = known.or_else(|| Some(&self.all[request_type as usize]).filter(|all| all.seen > 0));
        known.map_or_else(|| first_guess(request_type), |known| known.value)
    }

    /// All that was seen.
    pub(crate) fn estimates(&self) -> impl Iterator<Item = Estimate<'_>> {
        let all = RequestType::ALL.into_iter().map(|kind| (None, kind, &self.all[kind as usize]));
        let own = self.tenants.iter().map(|((_, kind), own)| (Some(&*own.tenant), *kind, &own.typical));
        let seen = all.chain(own).filter(|(_, _, typical)| typical.seen > 0);
        seen.map(|(tenant, kind, typical)| Estimate {
            tenant,
            kind: kind.name(),
            tokens: typical.value,
            seen: typical.seen,
        })
    }

    /// Takes over what an earlier run had seen; `hash` as [`Tenant`] has it.
    pub(crate) fn restore(&mut self, kept: &Estimate<'_>, hash: impl Fn(&str) -> u64) {
        let Some(kind) = RequestType::ALL.into_iter().find(|kind| kind.name() == kept.kind) else { return };
        let typical = Quantile { value: kept.tokens, seen: kept.seen };
        match kept.tenant {
            None => self.all[kind as usize] = typical,
            Some(tenant) if self.tenants.len() < TENANTS_MAX => {
                self.tenants.insert((hash(tenant), kind), Own { tenant: tenant.into(), typical });
            }
            Some(_) => {}
        }
    }

    /// A call wrote so many.
    pub(crate) fn wrote(&mut self, tenant: Tenant<'_>, request_type: RequestType, tokens: u64) {
        self.all[request_type as usize].saw(tokens);
        let key = (tenant.hash, request_type);
        if self.tenants.len() >= TENANTS_MAX && !self.tenants.contains_key(&key) {
            self.tenants.clear();
        }
        let own = || Own { tenant: tenant.name.clone(), typical: Quantile::default() };
        self.tenants.entry(key).or_insert_with(own).typical.saw(tokens);
    }
}

fn first_guess(request_type: RequestType) -> u64 {
    match request_type {
        RequestType::Chat | RequestType::Completion => FIRST_GUESS,
        RequestType::Embedding | RequestType::Image | RequestType::Other => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(typical: &mut TypicalOutput, tenant: u64, tokens: u64) {
        let name = tenant.to_string().into();
        typical.wrote(Tenant { hash: tenant, name: &name }, RequestType::Chat, tokens);
    }

    #[test]
    fn what_was_seen_replaces_the_first_guess() {
        let mut typical = TypicalOutput::default();
        assert_eq!(typical.expected(1, RequestType::Chat), 256);
        assert_eq!(typical.expected(1, RequestType::Embedding), 0);
        wrote(&mut typical, 1, 1000);
        assert_eq!(typical.expected(2, RequestType::Chat), 1000, "a new tenant writes what all do");
    }

    #[test]
    fn a_tenant_is_expected_to_write_what_it_wrote_not_what_others_do() {
        let mut typical = TypicalOutput::default();
        for _ in 0..200 {
            wrote(&mut typical, 1, 2000);
            wrote(&mut typical, 2, 50);
        }
        assert_eq!(typical.expected(1, RequestType::Chat), 2000);
        assert_eq!(typical.expected(2, RequestType::Chat), 50);
    }

    #[test]
    fn four_of_five_calls_write_no_more_than_is_expected_and_a_change_is_followed() {
        let mut typical = TypicalOutput::default();
        let mut random = fastrand::Rng::with_seed(7);
        let mut share_below = |typical: &mut TypicalOutput, most: u64| {
            let mut below = 0;
            for number in 0..3000 {
                let tokens = random.u64(1..=most);
                if number >= 1000 {
                    below += u64::from(tokens <= typical.expected(1, RequestType::Chat));
                }
                wrote(typical, 1, tokens);
            }
            below * 100 / 2000
        };
        for most in [1000, 100, 4000] {
            let share = share_below(&mut typical, most);
            assert!((70..=90).contains(&share), "{share} % of calls up to {most}");
        }
    }
    #[test]
    fn what_tenants_write_is_known_after_a_restart_under_hashes_of_another_seed() {
        let mut typical = TypicalOutput::default();
        for _ in 0..200 {
            wrote(&mut typical, 1, 2000);
            wrote(&mut typical, 2, 50);
        }
        let mut restored = TypicalOutput::default();
        for kept in typical.estimates() {
            restored.restore(&kept, |tenant| 100 + tenant.parse::<u64>().unwrap());
        }
        assert_eq!(restored.expected(101, RequestType::Chat), 2000);
        assert_eq!(restored.expected(102, RequestType::Chat), 50);
        assert_eq!(restored.expected(103, RequestType::Chat), typical.expected(3, RequestType::Chat));
    }
}
