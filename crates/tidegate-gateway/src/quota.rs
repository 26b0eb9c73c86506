//! Decides whether an account that had no quota left is asked again: after a while by one call, not by every one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// An account that said it has no quota left is passed over for so long; then one call tries it, and the others wait as long again
/// for what that one finds. A bill that is paid shows within this time, and one call in each of these is spent on asking.
const PASSED_OVER_FOR: Duration = Duration::from_secs(60);
/// Accounts remembered; where there are more, those that are due are forgotten, and if there are none, all.
const ACCOUNTS_MAX: usize = 4096;

/// Accounts that had no quota left when they were last asked.
#[derive(Debug, Default)]
pub(crate) struct OutOfQuota {
    until: Mutex<HashMap<Arc<str>, Instant>>,
    /// There are any: most of the time nobody has to look.
    any: AtomicBool,
}

impl OutOfQuota {
    /// `account` said that it has none.
    pub(crate) fn ran_out(&self, account: &Arc<str>) {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= ACCOUNTS_MAX {
            until.retain(|_, due| *due > now);
            if until.len() >= ACCOUNTS_MAX {
                until.clear();
            }
        }
        until.insert(account.clone(), now + PASSED_OVER_FOR);
        self.any.store(true, Ordering::Relaxed);
    }

    /// `account` did what was asked of it.
    pub(crate) fn has_some(&self, account: &str) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.remove(account);
        self.any.store(!until.is_empty(), Ordering::Relaxed);
    }

    /// Whether a call that could go elsewhere should pass `account` over. Where not, and it had none, this call is the one that tries.
    pub(crate) fn is_passed_over(&self, account: &str) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        match until.get_mut(account) {
            Some(due) if *due <= now => {
                *due = now + PASSED_OVER_FOR;
                false
            }
            found => found.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_account_without_quota_is_tried_by_one_call_a_minute_until_it_has_some() {
        let quota = OutOfQuota::default();
        let (account, other) = (Arc::from("openai#1"), "openai#2");
        assert!(!quota.is_passed_over(&account));
        quota.ran_out(&account);
        assert!(quota.is_passed_over(&account) && !quota.is_passed_over(other));
        tokio::time::advance(PASSED_OVER_FOR).await;
        assert!(!quota.is_passed_over(&account));
        assert!(quota.is_passed_over(&account));
        quota.has_some(&account);
        assert!(!quota.is_passed_over(&account));
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let quota = OutOfQuota::default();
        for number in 0..2 * ACCOUNTS_MAX {
            quota.ran_out(&Arc::from(format!("openai#{number}")));
        }
        assert!(quota.until.lock().unwrap().len() <= ACCOUNTS_MAX);
    }
}
