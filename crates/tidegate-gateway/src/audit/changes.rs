//! Decides what is said of one configuration beside another: which sections are others, which keys came, went or changed.
//!
//! Never what they say: secrets are among it.

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tidegate_core::config::Config;

/// Tells configurations apart without telling what they say.
pub(super) fn fingerprint(config: &Config) -> String {
    let hash = Sha256::digest(format!("{config:?}"));
    hash.iter().take(8).fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

pub(super) fn changed_sections(before: &Config, after: &Config) -> Vec<&'static str> {
    let (old, new) = (&before.policy, &after.policy);
    let sections = [
        ("[server]", before.server != after.server),
        ("[[upstream]]", before.upstreams != after.upstreams),
        ("[[key]]", before.keys != after.keys),
        ("[limit]", old.limits != new.limits),
        ("[model_groups]", before.model_groups != after.model_groups),
        ("[queue]", old.queue != new.queue),
        ("[retry]", old.retry != new.retry),
        ("[breaker]", old.breaker != new.breaker),
        ("[audit]", before.audit != after.audit),
        ("[[admin]]", before.admins != after.admins),
        ("[store]", before.store != after.store),
        ("[[alert]]", before.alerts != after.alerts),
        ("[telemetry]", before.telemetry != after.telemetry),
    ];
    sections.into_iter().filter(|(_, is_other)| *is_other).map(|(section, _)| section).collect()
}

/// Keys that came, went or changed, and which of these.
pub(super) fn key_changes<'c>(before: &'c Config, after: &'c Config) -> Vec<(&'static str, &'c Arc<str>)> {
    let find = |config: &'c Config, name: &str| config.keys.iter().find(|key| &*key.name == name);
    let here = after.keys.iter().filter_map(|key| match find(before, &key.name) {
        None => Some(("added", &key.name)),
        Some(same) if same == key => None,
        Some(_) => Some(("changed", &key.name)),
    });
    let gone = before.keys.iter().filter(|key| find(after, &key.name).is_none()).map(|key| ("removed", &key.name));
    here.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use tidegate_core::config::KeyConfig;

    use super::*;

    fn with_keys(keys: &[(&str, &str)]) -> Config {
        let key = |(name, user): &(&str, &str)| KeyConfig {
            name: (*name).into(),
            user: Some((*user).into()),
            ..KeyConfig::default()
        };
        Config { keys: keys.iter().map(key).collect(), ..Config::default() }
    }

    #[test]
    fn keys_that_came_went_or_changed_are_named() {
        let (before, after) =
            (with_keys(&[("a", "x"), ("b", "x"), ("c", "x")]), with_keys(&[("a", "x"), ("b", "y"), ("d", "x")]));
        let changes = key_changes(&before, &after);
        let told: Vec<(&str, &str)> = changes.iter().map(|(what, name)| (*what, &***name)).collect();
        assert_eq!(told, [("changed", "b"), ("added", "d"), ("removed", "c")]);
        assert_eq!(changed_sections(&before, &after), ["[[key]]"]);
        assert_ne!(fingerprint(&before), fingerprint(&after));
        assert_eq!(fingerprint(&before), fingerprint(&before.clone()));
    }
}
