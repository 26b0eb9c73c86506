//! Decides what a record says, and how it is written down: the text that is hashed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::time::{now_micros, shown_time};

/// No text in a record is longer, in bytes: some of them come from callers.
const TEXT_BYTES_MAX: usize = 512;

/// What a record is about.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A call waited for more than a second, or was refused.
    Throttle,
    /// Another attempt was made, or could not be.
    Retry,
    /// A breaker changed its state.
    Breaker,
    /// An operator decided otherwise.
    Override,
    /// Another configuration is in force, or was turned down.
    Config,
    /// A key was made, or revoked.
    Key,
    /// Something works worse than it should: a store out of reach, a retry budget used up.
    Degradation,
    /// A caller seems to go round its limits.
    Anomaly,
    /// An alert fired, or is over.
    Alert,
    /// Records could not be written; how many.
    Gap,
    /// Records had their time and were removed.
    Retention,
    /// A call was let through, where each is to be kept.
    Call,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Throttle,
        Self::Retry,
        Self::Breaker,
        Self::Override,
        Self::Config,
        Self::Key,
        Self::Degradation,
        Self::Anomaly,
        Self::Alert,
        Self::Gap,
        Self::Retention,
        Self::Call,
    ];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Retry => "retry",
            Self::Breaker => "breaker",
            Self::Override => "override",
            Self::Config => "config",
            Self::Key => "key",
            Self::Degradation => "degradation",
            Self::Anomaly => "anomaly",
            Self::Alert => "alert",
            Self::Gap => "gap",
            Self::Retention => "retention",
            Self::Call => "call",
        }
    }

    /// Whether calls make records of this kind, so that there may be very many.
    pub(super) const fn is_frequent(self) -> bool {
        matches!(self, Self::Throttle | Self::Retry | Self::Call)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no kind of record; write one of {list}", list = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == word).ok_or_else(|| UnknownKind(word.to_owned()))
    }
}

/// One thing that happened. What is absent is left out of its text.
///
/// Make one with [`Record::new`] and fill in what is known:
/// ```
/// # use tidegate_watch::audit::{Kind, Record};
/// let record = Record { call: Some("c-1".into()), ..Record::new(Kind::Throttle, "refused") };
/// ```
// The order of the fields is that of the text, which is hashed: new ones are optional, and go to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, in microseconds since 1970.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub at: u64,
    /// What it is about.
    pub kind: Kind,
    /// What happened, in a word or two: `waited`, `refused`, `open`.
    pub what: Cow<'static, str>,
    /// The call's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Arc<str>>,
    /// Whose call it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Arc<str>>,
    /// Which user of theirs; a hash where users are hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Arc<str>>,
    /// Which limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Arc<str>>,
    /// `upstream/model group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Arc<str>>,
    /// The numbers that belong to it, units last in their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<Cow<'static, str>, u64>,
    /// The operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Arc<str>>,
    /// The reason that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Arc<str>>,
    /// How it stood before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Arc<str>>,
    /// How it stands now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Arc<str>>,
    /// Of a removal: the hash of the last record that was removed, from which the chain goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Arc<str>>,
}

impl Record {
    /// Something of this kind, now.
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            at: now_micros(),
            kind,
            what: what.into(),
            call: None,
            tenant: None,
            user: None,
            limit: None,
            target: None,
            numbers: BTreeMap::new(),
            who: None,
            why: None,
            before: None,
            after: None,
            anchor: None,
        }
    }

    /// The same with a number more.
    #[must_use]
    pub fn with(mut self, name: &'static str, number: u64) -> Self {
        self.numbers.insert(Cow::Borrowed(name), number);
        self
    }

    /// The same with no text that is too long.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let texts = [&mut self.call, &mut self.tenant, &mut self.user, &mut self.limit, &mut self.target];
        let said = [&mut self.who, &mut self.why, &mut self.before, &mut self.after];
        for text in texts.into_iter().chain(said).flatten() {
            if text.len() > TEXT_BYTES_MAX {
                let longest = TEXT_BYTES_MAX - "…".len();
                let kept = (0..=longest).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                *text = format!("{}…", &text[..kept]).into();
            }
        }
        self
    }

    /// Whether it tells of something that was decided, of which there is little, and which is kept where calls' records find no room.
    /// Of those who may not decide there could be any number.
    pub(super) fn is_change(&self) -> bool {
        matches!(self.kind, Kind::Override | Kind::Config | Kind::Key) && self.what != "denied"
    }

    /// The text that is kept and hashed.
    pub(super) fn text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// What a text says.
    pub(super) fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn write_time<S: Serializer>(micros: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown_time(*micros))
}

fn read_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    let at = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).map_err(serde::de::Error::custom)?;
    u64::try_from(since.as_micros()).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_record_never_changes_since_it_is_hashed() {
        let record = Record {
            at: 1_796_000_000_123_456,
            call: Some("c-1".into()),
            tenant: Some("acme".into()),
            limit: Some("team/acme".into()),
            ..Record::new(Kind::Throttle, "waited")
        };
        let text = record.with("waited_us", 2_500_000).with("attempt", 1).text().unwrap();
        assert_eq!(
            text,
            r#"{"at":"2026-11-30T00:53:20.123456Z","kind":"throttle","what":"waited","call":"c-1","tenant":"acme","limit":"team/acme","numbers":{"attempt":1,"waited_us":2500000}}"#
        );
    }

    #[test]
    fn a_text_says_what_the_record_said() {
        let record = Record {
            user: Some("\"ü\"\n".into()),
            who: Some("anna".into()),
            why: Some("too slow".into()),
            before: Some("closed".into()),
            after: Some("forced_open".into()),
            anchor: Some("00".into()),
            ..Record::new(Kind::Override, "force-open").with("n", u64::MAX)
        };
        assert_eq!(Record::from_text(&record.text().unwrap()).unwrap(), record);
    }

    #[test]
    fn what_a_caller_writes_takes_no_more_room_than_it_may() {
        let record = Record { user: Some("é".repeat(10_000).into()), ..Record::new(Kind::Throttle, "refused") };
        let user = record.bounded().user.unwrap();
        assert!(user.len() <= TEXT_BYTES_MAX && user.ends_with("é…"), "{user}");
    }

    #[test]
    fn a_kind_is_known_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
        let unknown = "throttles".parse::<Kind>().unwrap_err().to_string();
        assert!(unknown.starts_with("\"throttles\" is no kind of record; write one of throttle, retry"), "{unknown}");
    }
}
