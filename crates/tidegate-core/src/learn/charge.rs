//! Decides by which rule an upstream charges tokens when it admits.
//!
//! One shadow level per rule runs beside the real one. The rule whose shadow is right about the replies' `remaining` on balance
//! over 16 replies is in force, ties to the dearer. Until then the charge is cautious. Errors are summed with their signs: that
//! calls overtake one another cancels out, while a wrong rule is wrong in one direction each time.

use crate::config::TokenCharge;
use crate::cost::{Cost, Usage};
use crate::time::Time;

/// Replies after which a rule is confirmed, and again judged.
const REPLIES: u32 = 16;
/// The rules, dearest first, so that a tie goes to the dearer.
const RULES: [TokenCharge; 4] = [TokenCharge::InputPlusMax, TokenCharge::Max, TokenCharge::Usage, TokenCharge::Input];
/// A rule in force gives way to one whose error is less than one part in so many of its own.
const CLEARLY: u64 = 2;
/// Of the errors so far, one part in so many is forgotten each time.
const FORGETS_PART: i64 = 8;
/// Output that OpenAI assumed where no ceiling is given (measured in 2024).
const DEFAULT_MAX_OUTPUT: u64 = 16;

/// What each shadow level stood at when a call was sent: level and sum of corrections.
pub(crate) type Predictions = [(i64, i64); 4];

#[derive(Clone, Copy, Debug, Default)]
struct Shadow {
    level: i64,
    fix: i64,
    /// Sum of the errors, with their signs.
    error: i64,
}

/// Finds out the rule of one account and model group.
#[derive(Clone, Debug)]
pub(crate) struct ChargeRule {
    configured: TokenCharge,
    confirmed: Option<TokenCharge>,
    /// As a refusal's message suggests, until one is confirmed.
    hinted: Option<TokenCharge>,
    shadows: [Shadow; 4],
    /// Of the level that the shadows run beside; 0 while none is known.
    limit: u64,
    refilled_at: Time,
    replies: u32,
}

impl ChargeRule {
    pub(crate) fn new(configured: TokenCharge) -> Self {
        Self {
            configured,
            confirmed: None,
            hinted: None,
            shadows: [Shadow::default(); 4],
            limit: 0,
            refilled_at: Time::ZERO,
            replies: 0,
        }
    }

    /// The rule in force. `None`: still being found out.
    pub(crate) fn rule(&self) -> Option<TokenCharge> {
        if self.configured == TokenCharge::Learned { self.confirmed.or(self.hinted) } else { Some(self.configured) }
    }

    /// Takes over another configured rule; what was found out stays known.
    pub(crate) fn reconfigure(&mut self, configured: TokenCharge) {
        self.configured = configured;
    }

    /// The rule in force is only what a refusal suggests: replies may say otherwise.
    pub(crate) fn is_hint(&self) -> bool {
        self.configured == TokenCharge::Learned && self.confirmed.is_none() && self.hinted.is_some()
    }

    /// A rule that was found out before a restart, or, `hint`, only suggested.
    pub(crate) fn restore(&mut self, rule: TokenCharge, hint: bool) {
        match rule {
            TokenCharge::Learned => {}
            _ if hint => self.hinted = Some(rule),
            _ => self.confirmed = Some(rule),
        }
    }

    /// What to charge a mirror that holds at most `capacity`, and the tokens by which `too_large` is judged.
    pub(crate) fn charge(&self, cost: &Cost, capacity: u64) -> (u64, u64) {
        match self.rule() {
            Some(TokenCharge::Usage) => {
                let input = by_rule(TokenCharge::Input, cost);
                (input, input)
            }
            Some(rule) => {
                let tokens = by_rule(rule, cost);
                (tokens, tokens)
            }
            None => {
                let cautious = by_rule(TokenCharge::InputPlusMax, cost).min(capacity / 2);
                (cautious.max(cost.input_tokens), cost.input_tokens)
            }
        }
    }

    fn learns(&self) -> bool {
        self.configured == TokenCharge::Learned
    }

    fn refill(&mut self, now: Time) {
        let elapsed = now.micros_since(self.refilled_at);
        self.refilled_at = self.refilled_at.max(now);
        let flow = i64::try_from(u128::from(elapsed) * u128::from(self.limit) / 60_000_000).unwrap_or(i64::MAX);
        for shadow in &mut self.shadows {
            shadow.level = shadow.level.saturating_add(flow).min(crate::bucket::as_level(self.limit));
        }
    }

    /// A call was sent: charges each shadow by its rule. `None` while there is nothing to compare with.
    pub(crate) fn sent(&mut self, cost: &Cost, now: Time) -> Option<Predictions> {
        if !self.learns() || self.limit == 0 {
            return None;
        }
        self.refill(now);
        let mut predictions = [(0, 0); 4];
        for ((rule, shadow), noted) in RULES.into_iter().zip(&mut self.shadows).zip(&mut predictions) {
            shadow.level = shadow.level.saturating_sub(crate::bucket::as_level(by_rule(rule, cost)));
            *noted = (shadow.level, shadow.fix);
        }
        Some(predictions)
    }

    /// A reply says what is left of `limit`: judges each rule by its error, and sets its shadow right.
    pub(crate) fn reply(&mut self, predictions: Option<Predictions>, remaining: u64, limit: u64, now: Time) {
        if !self.learns() {
            return;
        }
        let remaining = crate::bucket::as_level(remaining);
        if self.limit != limit {
            self.limit = limit;
            self.refilled_at = now;
            self.replies = 0;
            self.shadows = [Shadow { level: remaining, fix: 0, error: 0 }; 4];
            return;
        }
        let Some(predictions) = predictions else { return };
        // A full bucket tells nothing: every rule predicts it alike.
        self.refill(now);
        for (shadow, (seen, fix)) in self.shadows.iter_mut().zip(predictions) {
            let expect = seen.saturating_add(shadow.fix.saturating_sub(fix));
            let error = remaining.saturating_sub(expect);
            shadow.error = shadow.error.saturating_add(error);
            shadow.level = shadow.level.saturating_add(error);
            shadow.fix = shadow.fix.saturating_add(error);
        }
        self.replies += 1;
        if self.replies >= REPLIES {
            self.replies = 0;
            self.confirmed = self.best();
            for shadow in &mut self.shadows {
                shadow.error -= shadow.error / FORGETS_PART;
            }
        }
    }

    /// The rule with the smallest error; the one in force, unless another is clearly nearer.
    fn best(&self) -> Option<TokenCharge> {
        let error = |at: usize| self.shadows[at].error.unsigned_abs();
        let best = (0..RULES.len()).min_by_key(|at| error(*at))?;
        let in_force = RULES.iter().position(|rule| Some(*rule) == self.confirmed);
        Some(RULES[in_force.filter(|at| error(*at) / CLEARLY <= error(best)).unwrap_or(best)])
    }

    /// A refusal says what the upstream counted for a call: a rule to go by until replies confirm one. It cannot tell `usage`
    /// from `input`, of which the cheaper is taken: if that is too little, the next refusal says so.
    pub(crate) fn requested(&mut self, cost: &Cost, requested: u64) {
        if !self.learns() || self.confirmed.is_some() {
            return;
        }
        let error = |rule: &TokenCharge| by_rule(*rule, cost).abs_diff(requested);
        self.hinted = RULES.into_iter().rev().min_by_key(error);
    }

    /// A call ended: where the upstream charges real use, the output is taken now.
    pub(crate) fn used(&mut self, usage: Usage) {
        if let Some(at) = RULES.iter().position(|rule| *rule == TokenCharge::Usage) {
            let level = &mut self.shadows[at].level;
            *level = level.saturating_sub(crate::bucket::as_level(usage.output_tokens));
        }
    }
}

impl TokenCharge {
    /// The word used in `token_charge`, status and saved state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::InputPlusMax => "input_plus_max",
            Self::Max => "max",
            Self::Usage => "usage",
            Self::Learned => "learned",
        }
    }

    /// The rule that `word` names.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        RULES.into_iter().chain([Self::Learned]).find(|rule| rule.name() == word)
    }
}

fn by_rule(rule: TokenCharge, cost: &Cost) -> u64 {
    let input = cost.input_tokens;
    let max = cost.output_or(DEFAULT_MAX_OUTPUT);
    match rule {
        TokenCharge::InputPlusMax => input.saturating_add(max),
        TokenCharge::Max => input.max(max),
        TokenCharge::Input | TokenCharge::Usage | TokenCharge::Learned => input,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Cost =
        Cost { input_tokens: 100, max_output_tokens: Some(1000), choices: 1, images: 0, declared_tokens: 0 };

    fn learn(upstream: impl Fn(&Cost) -> i64) -> ChargeRule {
        let mut rule = ChargeRule::new(TokenCharge::Learned);
        let mut level = 50_000_i64;
        rule.reply(None, 50_000, 60_000, Time::ZERO);
        for number in 1..=16_u64 {
            let now = Time::from_micros(number * 100_000);
            level += 100;
            level -= upstream(&COST);
            let noted = rule.sent(&COST, now);
            rule.reply(noted, level.unsigned_abs(), 60_000, now.plus_micros(1));
        }
        rule
    }

    #[test]
    fn the_rule_that_predicts_the_replies_is_confirmed_after_sixteen() {
        assert_eq!(learn(|cost| cost.input_tokens.cast_signed()).rule(), Some(TokenCharge::Usage));
        assert_eq!(learn(|_| 1100).rule(), Some(TokenCharge::InputPlusMax));
        assert_eq!(learn(|_| 1000).rule(), Some(TokenCharge::Max));
    }

    #[test]
    fn until_a_rule_is_confirmed_the_charge_is_cautious_and_too_large_is_judged_on_the_input() {
        let rule = ChargeRule::new(TokenCharge::Learned);
        assert_eq!(rule.charge(&COST, 10_000), (1100, 100));
        assert_eq!(rule.charge(&COST, 1000), (500, 100));
        assert_eq!(rule.charge(&COST, 100), (100, 100));
    }

    #[test]
    fn a_configured_rule_needs_no_confirmation() {
        assert_eq!(ChargeRule::new(TokenCharge::Max).charge(&COST, 10_000), (1000, 1000));
        assert_eq!(ChargeRule::new(TokenCharge::Input).charge(&COST, 10_000), (100, 100));
    }

    #[test]
    fn a_ceiling_that_is_left_out_counts_for_each_answer_asked_for() {
        let cost = |choices| Cost { max_output_tokens: None, choices, ..COST };
        assert_eq!(by_rule(TokenCharge::InputPlusMax, &cost(3)), 100 + 3 * 16);
        assert_eq!(by_rule(TokenCharge::Max, &cost(10)), 160);
        assert_eq!(by_rule(TokenCharge::InputPlusMax, &cost(0)), 116);
    }
}
