//! Decides of each record whether it follows from what stands before it, and what the end of the chain is. Walks no table itself.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::super::chain::{Hash, Head};
use super::super::fault::Fault;
use super::super::head::Vouched;
use super::super::layout;
use super::super::record::{Kind, Record};
use super::super::store::{number, stored};
use super::Verified;

/// No more faults are told one by one.
const FAULTS_MAX: usize = 1000;
/// So many records that do not fit are compared with one another.
const STRETCH_MAX: usize = 200;

/// What the file beside the database says.
#[derive(Clone, Copy)]
pub(super) enum Told {
    Head(Vouched),
    Absent,
    Unreadable,
}

impl Told {
    pub(super) const fn anchor(&self) -> Option<Head> {
        match self {
            Self::Head(Vouched { anchor, .. }) => *anchor,
            _ => None,
        }
    }
}

/// A record as it lies in the database.
pub(super) struct Stored {
    pub(super) sequence: u64,
    text: String,
    hash: Hash,
    /// `None`: its text is not what is written here, or is filed under something else.
    record: Option<Record>,
}

impl Stored {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let text = layout::text(row, 1)?;
        let (at, kind) = (row.get_ref(3)?.as_i64().ok(), layout::text(row, 4)?);
        let label = |column| {
            Ok::<_, rusqlite::Error>(match row.get_ref(column)? {
                ValueRef::Null => None,
                _ => Some(layout::text(row, column)?),
            })
        };
        let (user, call) = (label(5)?, label(6)?);
        let is_filed_so = |record: &Record| {
            (Some(stored(record.at)), record.kind.name()) == (at, kind.as_str())
                && (record.user.as_deref(), record.call.as_deref()) == (user.as_deref(), call.as_deref())
        };
        let record = Record::from_text(&text).ok().filter(is_filed_so);
        Ok(Self { sequence: number(row.get(0)?), text, hash: row.get(2)?, record })
    }

    fn follows(&self, before: Hash) -> bool {
        self.hash == before.after(&self.text)
    }
}

/// Goes from record to record.
pub(super) struct Walk {
    found: Verified,
    /// The last record that was looked at.
    pub(super) sequence: u64,
    /// Its hash; `None` where it cannot be told, after missing records.
    hash: Option<Hash>,
    /// Records that do not follow from what stands before them, until one does again; what stands before the first of them.
    stretch: Vec<Stored>,
    before_stretch: Hash,
}

impl Walk {
    pub(super) fn new(anchor: Head) -> Self {
        let found = Verified {
            records: 0,
            first: 0,
            end: anchor,
            uncovered: 0,
            lost: 0,
            breaks: Vec::new(),
            left: 0,
            left_lost: 0,
            faults: Vec::new(),
            fault_count: 0,
        };
        let (sequence, hash) = (anchor.sequence, Some(anchor.hash));
        Self { found, sequence, hash, stretch: Vec::new(), before_stretch: anchor.hash }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.found.fault_count += 1;
        if self.found.faults.len() < FAULTS_MAX {
            self.found.faults.push(fault);
        }
    }

    pub(super) fn step(&mut self, row: Stored) {
        if self.found.records == 0 {
            self.found.first = row.sequence;
        }
        self.found.records += 1;
        match &row.record {
            Some(record) if record.kind == Kind::Gap => {
                if record.what == "broken" && self.found.breaks.len() < FAULTS_MAX {
                    self.found.breaks.push((row.sequence, record.why.clone().unwrap_or_default()));
                }
                self.found.lost += record.numbers.get("lost").copied().unwrap_or(0);
            }
            Some(_) => {}
            None => self.fault(Fault::Relabelled { sequence: row.sequence }),
        }
        if row.sequence != self.sequence + 1 {
            self.judge();
            self.fault(Fault::Missing { first: self.sequence + 1, last: row.sequence - 1 });
            self.hash = None;
        }
        self.sequence = row.sequence;
        let follows = match (self.hash, self.stretch.last()) {
            (None, _) => true,
            (Some(before), None) => row.follows(before),
            // Also where only the hash that stands beside the one before was changed.
            (Some(before), Some(last)) => row.follows(before) || row.follows(self.before_stretch.after(&last.text)),
        };
        let hash = row.hash;
        if follows {
            self.judge();
        } else {
            if self.stretch.is_empty() {
                self.before_stretch = self.hash.unwrap_or(Hash::ORIGIN);
            }
            self.stretch.push(row);
        }
        self.hash = Some(hash);
        if self.stretch.len() == STRETCH_MAX {
            self.judge();
        }
    }

    /// Tells of records that did not follow from what stands before them: from what else they follow, if from anything.
    pub(super) fn judge(&mut self) {
        let stretch = std::mem::take(&mut self.stretch);
        let Some(first) = stretch.first() else { return };
        let before = (first.sequence - 1, self.before_stretch);
        let places: Vec<(u64, Hash)> =
            std::iter::once(before).chain(stretch.iter().map(|row| (row.sequence, row.hash))).collect();
        for row in &stretch {
            let sequence = row.sequence;
            self.fault(match places.iter().find(|(_, hash)| row.follows(*hash)) {
                Some(&(after, _)) => Fault::Misplaced { sequence, after },
                None => Fault::Altered { sequence },
            });
        }
    }

    /// `unread`: why there is no reading on from here.
    pub(super) fn end(mut self, told: Told, is_elsewhere: bool, unread: Option<String>) -> Verified {
        let is_readable = unread.is_none();
        if let Some(why) = unread {
            let last = match told {
                Told::Head(Vouched { head, .. }) => Some(head.sequence).filter(|last| *last > self.sequence),
                _ => None,
            };
            self.fault(Fault::Unreadable { first: self.sequence + 1, last, why });
        }
        match told {
            Told::Head(Vouched { head, .. }) if !is_readable && head.sequence > self.sequence => {}
            Told::Head(Vouched { head, .. }) if head.sequence > self.sequence => {
                self.fault(Fault::Missing { first: self.sequence + 1, last: head.sequence });
            }
            Told::Head(Vouched { head, .. }) if is_elsewhere => {
                self.fault(Fault::HeadElsewhere { sequence: head.sequence })
            }
            Told::Head(Vouched { head, .. }) => self.found.uncovered = self.sequence.saturating_sub(head.sequence),
            Told::Absent if self.sequence == 0 => {}
            Told::Absent => self.fault(Fault::HeadAbsent),
            Told::Unreadable => self.fault(Fault::HeadUnreadable),
        }
        self.found.end = Head { sequence: self.sequence, hash: self.hash.unwrap_or(Hash::ORIGIN) };
        self.found
    }
}
