//! Decides which of what happens a reader asked for.

use tidegate_watch::audit::{Kind, Pseudonyms};

use super::notice::{LEARNED, Notice};
use crate::audit::page::decoded;

/// The kind of what tells how everything stands.
const STATUS: &str = "status";

/// What a reader asked for: all of it, unless something is named.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    kinds: Vec<String>,
    /// A name, and what stands for it where users are hashed.
    users: Vec<String>,
    call: Option<String>,
}

impl Wanted {
    /// What a query asks for: `kind` (may come several times), `user`, `call`.
    pub(super) fn asked(query: &str, pseudonyms: Option<&Pseudonyms>) -> Result<Self, String> {
        let mut wanted = Self::default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        for (name, value) in pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            let value = decoded(value)?.into_owned();
            match name {
                _ if value.is_empty() => {}
                "kind" => {
                    if value != LEARNED && value != STATUS {
                        value.parse::<Kind>().map_err(|error| format!("{error}, {LEARNED}, {STATUS}"))?;
                    }
                    wanted.kinds.push(value);
                }
                "user" => {
                    wanted.users.extend(pseudonyms.map(|pseudonyms| pseudonyms.pseudonym(&value)));
                    wanted.users.push(value);
                }
                "call" => wanted.call = Some(value),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    return Err(format!("no such parameter: {name}; there are kind, user and call"));
                }
            }
        }
        Ok(wanted)
    }

    /// Whether it is to be told how everything stands: if it asked for that, or for nothing in particular.
    pub(super) fn has_standing(&self) -> bool {
        let is_narrowed = !self.users.is_empty() || self.call.is_some();
        if self.kinds.is_empty() { !is_narrowed } else { self.kinds.iter().any(|wanted| wanted == STATUS) }
    }

    /// Whether it is among what was asked for. That something is missing concerns everybody.
    pub(super) fn has(&self, notice: &Notice) -> bool {
        let Some(kind) = notice.kind() else { return true };
        (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
            && (self.users.is_empty() || notice.user().is_some_and(|user| self.users.iter().any(|own| own == user)))
            && self.call.as_deref().is_none_or(|call| notice.call() == Some(call))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_watch::audit::Record;

    use super::*;

    #[test]
    fn what_was_not_asked_for_is_not_told_but_that_something_is_missing_is() {
        let of = |kind, call: &str| {
            let record = Record { call: Some(call.into()), user: Some("ada".into()), ..Record::new(kind, "x") };
            Notice::of_record(1, "x", &record)
        };
        let wanted = |query| Wanted::asked(query, None).unwrap();
        assert!(wanted("").has(&of(Kind::Retry, "c-1")));
        let retries = wanted("kind=retry&kind=breaker&call=c-1&user=ada");
        assert!(retries.has(&of(Kind::Retry, "c-1")));
        assert!(!retries.has(&of(Kind::Throttle, "c-1")) && !retries.has(&of(Kind::Retry, "c-2")));
        assert!(!wanted("user=grace").has(&of(Kind::Retry, "c-1")));
        assert!(retries.has(&Notice::lost(1, 5)));
        assert!(wanted("").has_standing() && wanted("kind=status&user=ada").has_standing());
        assert!(!wanted("kind=retry").has_standing() && !wanted("call=c-1").has_standing());
        for (wrong, why) in [("kind=x", "no kind of record"), ("since=1h", "there are kind, user and call")] {
            let said = Wanted::asked(wrong, None).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
