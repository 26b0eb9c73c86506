//! Decides how far bytes ÷ 4 is from the upstream's real count, learned from the `usage` of past calls.

/// The ratio of one, in millionths.
const ONE: u32 = 1_000_000;
/// Bounds of what is learned: no honest text is further off, and a wrong number must not spoil what follows.
const LEAST: u32 = ONE / 4;
const MOST: u32 = ONE * 4;
/// A text of at least so many tokens counts in full, an eighth of the difference; shorter ones less, as framing outweighs them.
const FULL_WEIGHT_TOKENS: u64 = 128;
const SHARE: u64 = 8;

/// Real input tokens per estimated one: a decaying average, between 0.25 and 4, at first 1. Integers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    millionths: u32,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { millionths: ONE }
    }
}

impl Calibration {
    /// One that was learned before; kept within the bounds.
    #[must_use]
    pub fn from_per_mille(per_mille: u32) -> Self {
        Self { millionths: per_mille.saturating_mul(1_000).clamp(LEAST, MOST) }
    }

    /// Real tokens per thousand estimated.
    #[must_use]
    pub const fn per_mille(self) -> u32 {
        self.millionths / 1_000
    }

    /// What `estimated` tokens really are, rounded up.
    #[must_use]
    pub fn apply(self, estimated: u64) -> u64 {
        let real = (u128::from(estimated) * u128::from(self.millionths)).div_ceil(u128::from(ONE));
        u64::try_from(real).unwrap_or(u64::MAX)
    }

    /// Learns from a call that was estimated at `estimated` input tokens *before* any ratio was applied
    /// ([`super::estimate::Request::teaches`]) and took `real` ones as its usage says. Nothing is learned where either is 0.
    pub fn learn(&mut self, estimated: u64, real: u64) {
        if estimated == 0 || real == 0 {
            return;
        }
        let seen = u128::from(real) * u128::from(ONE) / u128::from(estimated);
        let seen = i64::try_from(seen).unwrap_or(i64::MAX).clamp(i64::from(LEAST), i64::from(MOST));
        let weight = i64::try_from(estimated.min(FULL_WEIGHT_TOKENS)).unwrap_or(0);
        let whole = i64::try_from(FULL_WEIGHT_TOKENS * SHARE).unwrap_or(i64::MAX);
        let moved = i64::from(self.millionths) + (seen - i64::from(self.millionths)) * weight / whole;
        self.millionths = u32::try_from(moved).unwrap_or(ONE).clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_seen_again_and_again_becomes_the_ratio() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.apply(1_001), 1_001);
        for _ in 0..80 {
            calibration.learn(1_000, 1_300);
        }
        assert!((1_295..=1_300).contains(&calibration.apply(1_000)), "{calibration:?}");
    }

    #[test]
    fn a_short_text_teaches_less_than_a_long_one() {
        let (mut short, mut long) = (Calibration::default(), Calibration::default());
        short.learn(2, 9);
        long.learn(200, 900);
        assert!(short.per_mille() < 1_060 && long.per_mille() > 1_300, "{short:?} {long:?}");
    }

    #[test]
    fn no_numbers_drive_it_out_of_bounds() {
        let mut calibration = Calibration::default();
        for _ in 0..1_000 {
            calibration.learn(1_000, u64::MAX);
        }
        assert!((3_990..=4_000).contains(&calibration.per_mille()));
        for _ in 0..1_000 {
            calibration.learn(u64::MAX, 1);
        }
        assert!((250..=260).contains(&calibration.per_mille()));
        let before = calibration;
        calibration.learn(0, 5);
        calibration.learn(5, 0);
        assert_eq!(calibration, before);
        assert_eq!(
            (Calibration::from_per_mille(0).per_mille(), Calibration::from_per_mille(u32::MAX).per_mille()),
            (250, 4_000)
        );
    }

    proptest! {
        #[test]
        fn it_moves_towards_what_it_sees_and_stays_in_bounds(start in 250_u32..=4_000, estimated: u64, real: u64) {
            let before = Calibration::from_per_mille(start);
            let mut after = before;
            after.learn(estimated, real);
            prop_assert!((250..=4_000).contains(&after.per_mille()));
            if estimated > 0 && real > 0 {
                let towards = real > before.apply(estimated);
                prop_assert!(after == before || towards == (after.millionths > before.millionths));
            }
            let _ = after.apply(estimated);
        }
    }
}
