//! Decides how what is not as it was written is named.

use std::fmt;

/// Something that is not as it was written.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The database is not there any more, or is another one.
    DatabaseGone {
        /// What is in its place.
        found: &'static str,
        /// How many records the head beside it tells of. `None`: that cannot be read.
        told: Option<u64>,
    },
    /// A table or an index is not there.
    LayoutMissing {
        /// Which.
        what: String,
    },
    /// A table or an index is another one than is made here, and may hide records.
    LayoutChanged {
        /// Which.
        what: String,
    },
    /// There is something in the database that is not made here: a trigger or a view, say.
    LayoutAdded {
        /// What.
        what: String,
    },
    /// An index does not agree with the records, or a page with another: records may be hidden.
    Disagreement {
        /// What SQLite says of it.
        found: String,
    },
    /// Records cannot be read, as pages are damaged or cut off.
    Unreadable {
        /// From this one on …
        first: u64,
        /// … to this one, which the head beside the database tells of. `None`: nobody can tell.
        last: Option<u64>,
        /// What SQLite says of it.
        why: String,
    },
    /// Records are not there.
    Missing {
        /// From this one on …
        first: u64,
        /// … to this one.
        last: u64,
    },
    /// A record does not follow from the one before it.
    Altered {
        /// Which.
        sequence: u64,
    },
    /// A record stands where another one belongs.
    Misplaced {
        /// Where it stands.
        sequence: u64,
        /// It was written right after what stands there now.
        after: u64,
    },
    /// What is looked for in a record's place is not what its text says.
    Relabelled {
        /// Which.
        sequence: u64,
    },
    /// A record stands where none can: before the chain's beginning.
    Stray {
        /// Which.
        sequence: i64,
        /// The chain begins after this one; 0: with the first.
        after: u64,
    },
    /// There is no head beside the database.
    HeadAbsent,
    /// The head beside the database cannot be read.
    HeadUnreadable,
    /// The head beside the database is that of another chain.
    HeadElsewhere {
        /// The record that it names.
        sequence: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DatabaseGone { found, told: Some(told) } => {
                write!(f, "{found}; the head beside it tells of {told} records")
            }
            Self::DatabaseGone { found, told: None } => f.write_str(found),
            Self::LayoutMissing { what } => write!(f, "{what} is missing from the database"),
            Self::LayoutChanged { what } => {
                write!(f, "{what} is not the one that tidegate makes: it may hide records from who looks for them")
            }
            Self::LayoutAdded { what } => write!(f, "{what} was put into the database"),
            Self::Disagreement { found } => {
                write!(f, "the database contradicts itself, and may hide records from who looks for them: {found}")
            }
            Self::Unreadable { first, last: Some(last), why } => {
                write!(f, "records {first} to {last} cannot be read: {why}")
            }
            Self::Unreadable { first, last: None, why } => write!(f, "no record from {first} on can be read: {why}"),
            Self::Missing { first, last } if first == last => write!(f, "record {first} is missing"),
            Self::Missing { first, last } => write!(f, "records {first} to {last} are missing"),
            Self::Altered { sequence } => {
                let before = sequence.saturating_sub(1);
                write!(
                    f,
                    "record {sequence} is not what was written after record {before}: it was edited, or record {before} was \
                     and got a new hash"
                )
            }
            Self::Misplaced { sequence, after } => {
                write!(f, "record {sequence} is out of order: it was written right after what is now record {after}")
            }
            Self::Relabelled { sequence } => {
                write!(f, "record {sequence} is filed under another time, kind, user or call than its text says")
            }
            Self::Stray { sequence, after } => {
                write!(f, "record {sequence} was put there: the chain begins after record {after}")
            }
            Self::HeadAbsent => f.write_str("the head beside the database is missing: records at the end may be too"),
            Self::HeadUnreadable => {
                f.write_str("the head beside the database cannot be read: records at the end may be missing")
            }
            Self::HeadElsewhere { sequence } => {
                write!(
                    f,
                    "the head beside the database vouches for another record {sequence}: one of them was replaced"
                )
            }
        }
    }
}
