//! Decides which models share one limit: configured groups first, then a dated snapshot's family.

use std::collections::BTreeMap;

use crate::limit::glob_matches;

/// A longer name is none of a model; what it is grouped under is cut to this, so that keys stay small.
pub const NAME_BYTES_MAX: usize = 128;

/// The family whose limit `model` shares.
///
/// - A date at the end goes: `gpt-4.1-2025-04-14` → `gpt-4.1`, and for `gpt-…` the short form too: `gpt-4-0613` → `gpt-4`,
///   `gpt-3.5-turbo-0125` → `gpt-3.5-turbo`. `-preview` stays: `o1-preview-2024-09-12` → `o1-preview`.
/// - The two dated previews of GPT-4 Turbo are `gpt-4-turbo-preview`, the name that pointed at them.
/// - A fine-tuned model draws on the limit of the model that it was made from:
///   `ft:gpt-4o-mini-2024-07-18:org::id` → `gpt-4o-mini` (where a project sets its limits otherwise, `[model_groups]` can
///   part them).
///
/// All else is its own family. Not meant for Azure's deployment names, which may end in anything:
/// see [`ModelGroups::group_of_deployment`].
#[must_use]
pub fn family(model: &str) -> &str {
    let base = model.strip_prefix("ft:").map_or(model, |tuned| tuned.split(':').next().unwrap_or(tuned));
    if base.is_empty() {
        return model;
    }
    match base {
        "gpt-4-0125-preview" | "gpt-4-1106-preview" => return "gpt-4-turbo-preview",
        "gpt-4-1106-vision-preview" => return "gpt-4-vision-preview",
        _ => {}
    }
    without_date(base).unwrap_or(base)
}

fn without_date(name: &str) -> Option<&str> {
    let dash_and = |digits: usize| {
        let at = name.len().checked_sub(digits + 1)?;
        let (family, date) = (name.get(..at)?, name.get(at..)?.strip_prefix('-')?);
        (!family.is_empty()).then_some((family, date))
    };
    if let Some((family, date)) = dash_and("2025-04-14".len())
        && is_long_date(date)
    {
        return Some(family);
    }
    let (family, date) = dash_and("0613".len())?;
    // Others write year and month in four digits (`mistral-large-2407`), or a version.
    (name.starts_with("gpt-") && is_month_and_day(date)).then_some(family)
}

/// `2025-04-14`.
fn is_long_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    parts.next().is_none()
        && number(year, 4).is_some_and(|year| (2020..2100).contains(&year))
        && is_month(month)
        && is_day(day)
}

/// `0613`.
fn is_month_and_day(text: &str) -> bool {
    text.is_char_boundary(2) && is_month(&text[..2]) && is_day(&text[2..])
}

fn is_month(text: &str) -> bool {
    number(text, 2).is_some_and(|month| (1..=12).contains(&month))
}

fn is_day(text: &str) -> bool {
    number(text, 2).is_some_and(|day| (1..=31).contains(&day))
}

fn number(text: &str, digits: usize) -> Option<u32> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// `[model_groups]`: names of models, or globs, that share one limit.
#[derive(Clone, Debug, Default)]
pub struct ModelGroups {
    exact: BTreeMap<Box<str>, Box<str>>,
    /// Longest first.
    globs: Vec<(Box<str>, Box<str>)>,
}

impl ModelGroups {
    /// From group → its members. A group's own name is a member too, unless another group names it. A member of several
    /// groups is in the first by name.
    #[must_use]
    pub fn new(groups: &BTreeMap<String, Vec<String>>) -> Self {
        let mut this = Self::default();
        for (group, members) in groups {
            for member in members {
                if member.contains('*') {
                    this.globs.push((member.as_str().into(), group.as_str().into()));
                } else {
                    this.exact.entry(member.as_str().into()).or_insert_with(|| group.as_str().into());
                }
            }
        }
        for group in groups.keys() {
            this.exact.entry(group.as_str().into()).or_insert_with(|| group.as_str().into());
        }
        this.globs.sort_by_key(|(glob, _)| std::cmp::Reverse(glob.len()));
        this
    }

    /// The group whose limit `model` shares: a configured name, else the longest configured glob, else the same for its
    /// [`family`], else the family itself.
    ///
    /// At most [`NAME_BYTES_MAX`] bytes of a name count: absurd names that begin alike share a group.
    #[must_use]
    pub fn group_of<'m>(&'m self, model: &'m str) -> &'m str {
        let model = bounded(model);
        if let Some(group) = self.configured(model) {
            return group;
        }
        let family = family(model);
        self.configured(family).unwrap_or(family)
    }

    /// The same for an Azure deployment, whose name is anybody's choice: no family is read into it.
    #[must_use]
    pub fn group_of_deployment<'m>(&'m self, deployment: &'m str) -> &'m str {
        let deployment = bounded(deployment);
        self.configured(deployment).unwrap_or(deployment)
    }

    fn configured(&self, model: &str) -> Option<&str> {
        if let Some(group) = self.exact.get(model) {
            return Some(group);
        }
        self.globs.iter().find(|(glob, _)| glob_matches(glob, model)).map(|(_, group)| &**group)
    }
}

fn bounded(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dated_snapshots_fold_into_their_family() {
        for (model, expected) in [
            ("gpt-4.1-2025-04-14", "gpt-4.1"),
            ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
            ("gpt-4-0613", "gpt-4"),
            ("gpt-4-32k-0314", "gpt-4-32k"),
            ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
            ("gpt-3.5-turbo-16k-0613", "gpt-3.5-turbo-16k"),
            ("gpt-3.5-turbo-instruct-0914", "gpt-3.5-turbo-instruct"),
            ("o1-preview-2024-09-12", "o1-preview"),
            ("gpt-4o-audio-preview-2024-12-17", "gpt-4o-audio-preview"),
            ("gpt-4-0125-preview", "gpt-4-turbo-preview"),
            ("gpt-4-1106-preview", "gpt-4-turbo-preview"),
            ("ft:gpt-4o-mini-2024-07-18:org::id", "gpt-4o-mini"),
            ("ft:gpt-4o-mini-2024-07-18:org:name:id:ckpt-step-90", "gpt-4o-mini"),
            ("ft:gpt-3.5-turbo-0613:org::id", "gpt-3.5-turbo"),
        ] {
            assert_eq!(family(model), expected, "{model}");
        }
    }

    #[test]
    fn what_has_no_date_is_its_own_family() {
        for model in [
            "gpt-4o",
            "gpt-5.5",
            "chatgpt-4o-latest",
            "o3",
            "gpt-4-turbo-preview",
            "text-embedding-3-small",
            "mistral-large-2407",
            "llama-1231",
            "gpt-4-9999",
            "gpt-4o-2024-13-01",
            "gpt-4o-1999-01-01",
            "-2024-07-18",
            "ft:",
            "",
            "é-é613",
        ] {
            assert_eq!(family(model), model, "{model}");
        }
    }

    fn groups() -> ModelGroups {
        let groups = [
            ("gpt-4o", vec!["gpt-4o", "chatgpt-4o-latest"]),
            ("small", vec!["gpt-4o-mini*", "gpt-4.1-*", "gpt-4o-mini-special-2024-07-18"]),
            ("apart", vec!["gpt-4o-2024-05-13", "gpt-4o-mini-audio*"]),
        ];
        let owned = groups.map(|(group, members)| (group.to_owned(), members.into_iter().map(str::to_owned).collect()));
        ModelGroups::new(&BTreeMap::from(owned))
    }

    #[test]
    fn a_name_beats_a_glob_and_a_glob_beats_the_family() {
        let groups = groups();
        for (model, expected) in [
            ("gpt-4o", "gpt-4o"),
            ("chatgpt-4o-latest", "gpt-4o"),
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("gpt-4o-2024-05-13", "apart"),
            ("gpt-4o-mini", "small"),
            ("gpt-4o-mini-audio-preview", "apart"),
            ("ft:gpt-4o-mini-2024-07-18:org::id", "small"),
            ("small", "small"),
            ("o3-2025-04-16", "o3"),
        ] {
            assert_eq!(groups.group_of(model), expected, "{model}");
        }
    }

    #[test]
    fn a_deployments_name_is_left_as_it_is() {
        assert_eq!(groups().group_of_deployment("gpt-4-0613"), "gpt-4-0613");
        assert_eq!(groups().group_of_deployment("chatgpt-4o-latest"), "gpt-4o");
    }

    #[test]
    fn absurd_names_are_cut() {
        let name = "é".repeat(10_000);
        assert!(groups().group_of(&name).len() <= NAME_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn a_family_is_never_longer_than_a_name_and_nothing_panics(model in "(ft:)?(gpt-4|o3|é)?(-[0-9]{2,4}){0,4}(:x)?|.*") {
            let once = family(&model);
            prop_assert!(once.len() <= model.len().max("gpt-4-turbo-preview".len()));
            let _ = ModelGroups::default().group_of(&model);
        }
    }
}
