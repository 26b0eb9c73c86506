//! Decides which upstreams may take a call, and in which order they are asked.
//!
//! First one of those that are no fallback, by weight; then the fallbacks, in the order in which they are configured. Where one
//! of these has a weight other than 1, it is weights that say which of them is asked first. What is kept at one upstream is
//! asked of that one alone.

use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::config::{ModelMap, UpstreamKind};

use crate::shared::Settings;
use crate::sticky::Pin;
use crate::upstream::Upstream;

/// What decides who may take a call.
#[derive(Debug)]
pub(crate) struct Wanted<'w> {
    /// By the caller's name. `None`: not named, or not read.
    pub(crate) model: Option<&'w str>,
    /// It speaks of something that one upstream keeps.
    pub(crate) pin: Option<Pin>,
    /// Its path is that of an Azure deployment, which means nothing elsewhere.
    pub(crate) is_deployment: bool,
    /// Another upstream would do as well.
    pub(crate) may_fall_back: bool,
}

/// Those who may take one call, by position, in the order in which they are to be asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    first: Option<usize>,
    fallbacks: Vec<usize>,
    is_drawn: bool,
}

/// Shares calls out by weight: smoothly, so that 3 to 1 is AABA and not AAAB, and the same from every start.
#[derive(Debug)]
pub(crate) struct Shares {
    weights: Vec<i64>,
    /// What each has not got yet, and below zero what it has got in advance. The sum is always zero.
    owed: Mutex<Vec<i64>>,
}

impl Shares {
    pub(crate) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let weights: Vec<i64> = weights.map(i64::from).collect();
        Self { owed: Mutex::new(vec![0; weights.len()]), weights }
    }

    /// Whose turn it is of those at the positions `among`; the first of them if it is nobody's.
    fn draw(&self, among: &[usize]) -> usize {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chosen = among.first().copied().unwrap_or(0);
        let mut total = 0;
        for &candidate in among {
            owed[candidate] += self.weights[candidate];
            total += self.weights[candidate];
            if owed[candidate] > owed[chosen] {
                chosen = candidate;
            }
        }
        if let Some(owed) = owed.get_mut(chosen) {
            *owed -= total;
        }
        chosen
    }
}

impl Candidates {
    const fn only(position: usize) -> Self {
        Self { first: Some(position), fallbacks: Vec::new(), is_drawn: false }
    }

    /// How many are still to be asked.
    pub(crate) fn left(&self) -> usize {
        usize::from(self.first.is_some()) + self.fallbacks.len()
    }

    /// Who is to be asked next.
    pub(crate) fn next(&mut self, settings: &Settings) -> Option<Arc<Upstream>> {
        let position = match self.first.take() {
            Some(first) => first,
            None => self.next_fallback(settings)?,
        };
        settings.upstreams.get(position).cloned()
    }

    fn next_fallback(&mut self, settings: &Settings) -> Option<usize> {
        let weighs = |position: &usize| settings.upstreams[*position].config.weight != 1;
        // Drawn only now, so that calls which never came so far take nobody's turn.
        if !self.is_drawn && self.fallbacks.iter().any(weighs) {
            let drawn = settings.shares.draw(&self.fallbacks);
            self.fallbacks.sort_by_key(|position| *position != drawn);
        }
        self.is_drawn = true;
        (!self.fallbacks.is_empty()).then(|| self.fallbacks.remove(0))
    }
}

impl Settings {
    /// Who may take a call. `None`: nobody serves its model.
    pub(crate) fn candidates(&self, wanted: &Wanted<'_>) -> Option<Candidates> {
        let Some(model) = wanted.model else { return Some(self.candidates_unnamed(wanted)) };
        let mut regular = self.positions(false, |upstream| upstream.serves(model));
        let mut fallbacks = self.positions(true, |upstream| upstream.serves(model));
        if let Some(Pin(keeper)) = &wanted.pin {
            let kept_at = self.keeper(keeper.as_deref()).filter(|position| self.upstreams[*position].serves(model));
            return kept_at.or_else(|| regular.next()).or_else(|| fallbacks.next()).map(Candidates::only);
        }
        let first = match (regular.next(), regular.next()) {
            (Some(one), Some(other)) => {
                let all: Vec<usize> = [one, other].into_iter().chain(regular).collect();
                Some(self.shares.draw(&all))
            }
            (one, _) => one,
        };
        if !wanted.may_fall_back {
            return first.or_else(|| fallbacks.next()).map(Candidates::only);
        }
        let is_another = |position: &usize| {
            let fallback = &self.upstreams[*position];
            let is_same = first.is_some_and(|first| self.upstreams[first].is_same_for(model, fallback));
            !is_same && (!wanted.is_deployment || fallback.config.kind == UpstreamKind::Azure)
        };
        let candidates = Candidates { first, fallbacks: fallbacks.filter(is_another).collect(), is_drawn: false };
        (candidates.left() > 0).then_some(candidates)
    }

    /// The same for a call that names no model: the first upstream, or who keeps what it is about.
    fn candidates_unnamed(&self, wanted: &Wanted<'_>) -> Candidates {
        if let Some(Pin(keeper)) = &wanted.pin {
            return Candidates::only(self.keeper(keeper.as_deref()).unwrap_or(0));
        }
        let mut candidates = Candidates::only(0);
        if wanted.may_fall_back {
            let others = self.positions(true, |upstream| upstream.serves_unnamed());
            candidates.fallbacks = others.filter(|position| *position != 0).collect();
        }
        candidates
    }

    fn keeper(&self, name: Option<&str>) -> Option<usize> {
        self.upstreams.iter().position(|upstream| Some(&*upstream.config.name) == name)
    }

    fn positions<'s>(
        &'s self,
        fallback: bool,
        serves: impl Fn(&Upstream) -> bool + 's,
    ) -> impl Iterator<Item = usize> + 's {
        let all = self.upstreams.iter().enumerate();
        all.filter(move |(_, upstream)| upstream.config.fallback == fallback && serves(upstream)).map(|(at, _)| at)
    }
}

impl Upstream {
    fn serves(&self, model: &str) -> bool {
        self.config.models.sent_name(model).is_some()
    }

    /// Whether it and `other` are one account, and `model` goes under one name to both.
    fn is_same_for(&self, model: &str, other: &Self) -> bool {
        self.is_same_account(other) && self.config.models.sent_name(model) == other.config.models.sent_name(model)
    }

    /// Whether it takes a call whose model is named where nobody reads it.
    fn serves_unnamed(&self) -> bool {
        let serves_all = match &self.config.models {
            ModelMap::Globs(globs) => globs.iter().any(|glob| glob == "*"),
            ModelMap::Renames(_) => false,
        };
        serves_all && !self.base.names_deployments()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate_core::config::{Config, UpstreamConfig};

    use super::*;

    fn upstream(name: &str, models: &[&str], fallback: bool, weight: u32) -> UpstreamConfig {
        let models = ModelMap::Globs(models.iter().map(|&model| model.to_owned()).collect());
        let base_url = "http://127.0.0.1:1/v1".to_owned();
        UpstreamConfig { name: name.into(), base_url, models, fallback, weight, ..UpstreamConfig::default() }
    }

    fn settings(upstreams: Vec<UpstreamConfig>) -> Settings {
        let mut config = Config::default();
        config.set_upstreams(upstreams);
        Settings::new(config, &Default::default(), None, false).unwrap()
    }

    fn wanted(model: &str) -> Wanted<'_> {
        Wanted { model: Some(model), pin: None, is_deployment: false, may_fall_back: true }
    }

    /// Names in the order in which they are asked, with spaces between.
    fn asked(settings: &Settings, wanted: &Wanted<'_>) -> Option<String> {
        let mut candidates = settings.candidates(wanted)?;
        let names: Vec<String> =
            std::iter::from_fn(|| candidates.next(settings)).map(|next| next.config.name.to_string()).collect();
        Some(names.join(" "))
    }

    #[tokio::test]
    async fn a_model_goes_to_one_that_serves_it_and_to_fallbacks_after_it_in_their_order() {
        let renames = ModelMap::Renames(BTreeMap::from([("gpt-4o".to_owned(), "prod".to_owned())]));
        let settings = settings(vec![
            upstream("any", &["*"], true, 1),
            UpstreamConfig { models: renames, ..upstream("azure", &[], false, 1) },
            upstream("minis", &["*-mini"], false, 1),
            upstream("last", &["gpt-*"], true, 1),
        ]);
        for _ in 0..3 {
            assert_eq!(asked(&settings, &wanted("gpt-4o")).unwrap(), "azure any last");
            assert_eq!(asked(&settings, &wanted("gpt-4o-mini")).unwrap(), "minis any last");
            assert_eq!(asked(&settings, &wanted("o3")).unwrap(), "any");
        }
        let deployment = Wanted { is_deployment: true, ..wanted("gpt-4o") };
        assert_eq!(asked(&settings, &deployment).unwrap(), "azure");
    }

    #[tokio::test]
    async fn nobody_is_asked_for_a_model_that_nobody_serves() {
        let settings = settings(vec![upstream("one", &["gpt-*"], false, 1), upstream("two", &["o3"], true, 1)]);
        assert_eq!(asked(&settings, &wanted("whisper-1")), None);
    }

    #[tokio::test]
    async fn weights_share_calls_between_those_that_are_no_fallback() {
        let settings = settings(vec![
            upstream("a", &["*"], false, 3),
            upstream("b", &["gpt-*"], false, 1),
            upstream("f", &["*"], true, 1),
        ]);
        let firsts: Vec<String> = (0..8).map(|_| asked(&settings, &wanted("gpt-4o")).unwrap()).collect();
        assert_eq!(firsts.iter().filter(|asked| *asked == "a f").count(), 6);
        assert_eq!(firsts.iter().filter(|asked| *asked == "b f").count(), 2);
        assert_eq!(firsts[..4], firsts[4..]);
        // Who alone serves a model gets all of it, and no other model's share moves by that.
        assert_eq!(asked(&settings, &wanted("o3")).unwrap(), "a f");
    }

    #[tokio::test]
    async fn fallbacks_with_weights_take_turns_at_being_asked_first() {
        let settings = settings(vec![
            upstream("a", &["*"], false, 1),
            upstream("f", &["*"], true, 2),
            upstream("g", &["*"], true, 1),
        ]);
        let orders: Vec<String> = (0..3).map(|_| asked(&settings, &wanted("o3")).unwrap()).collect();
        assert_eq!(orders, ["a f g", "a g f", "a f g"]);
    }

    #[tokio::test]
    async fn what_is_kept_somewhere_is_asked_of_nobody_else() {
        let settings = settings(vec![
            upstream("a", &["gpt-*"], false, 1),
            upstream("b", &["*"], false, 9),
            upstream("f", &["gpt-*"], true, 1),
        ]);
        for (model, keeper, expected) in
            [("gpt-4o", Some("f"), "f"), ("gpt-4o", None, "a"), ("o3", Some("f"), "b"), ("gpt-4o", Some("gone"), "a")]
        {
            let pinned = Wanted { pin: Some(Pin(keeper.map(Arc::from))), ..wanted(model) };
            assert_eq!(asked(&settings, &pinned).unwrap(), expected, "{model} at {keeper:?}");
        }
        let unnamed = Wanted { model: None, may_fall_back: false, ..wanted("") };
        assert_eq!(asked(&settings, &unnamed).unwrap(), "a");
        let kept = Wanted { pin: Some(Pin(Some("f".into()))), ..unnamed };
        assert_eq!(asked(&settings, &kept).unwrap(), "f");
    }

    #[tokio::test]
    async fn a_model_that_nobody_reads_falls_back_only_to_those_that_serve_all() {
        let settings = settings(vec![
            upstream("a", &["gpt-*"], false, 1),
            upstream("f", &["gpt-*"], true, 1),
            upstream("g", &["*"], true, 1),
        ]);
        assert_eq!(asked(&settings, &Wanted { model: None, ..wanted("") }).unwrap(), "a g");
    }
}
