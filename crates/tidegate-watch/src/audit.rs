//! Decides what is kept of what happened, so that an auditor can rely on it: an SQLite file whose records form a chain.
//!
//! [`Trail`] writes: off the request path, many records to one commit. [`Reader`] reads while it does. Each record's hash covers the
//! one before it, and the chain's end is kept in a file beside the database: what was edited, removed, reordered or cut off is found
//! by [`verify`]. Prompts, completions and credentials never get here.

mod beside;
mod chain;
mod export;
mod fault;
mod feed;
mod gap;
mod head;
mod late;
mod layout;
mod lock;
mod pseudonyms;
mod read;
mod record;
mod reserve;
mod store;
mod time;
mod trail;
mod verify;
mod writer;

pub use chain::{Hash, Head};
pub use export::CSV_HEADER;
pub use fault::Fault;
pub use feed::Feed;
pub use lock::is_being_written;
pub use pseudonyms::Pseudonyms;
pub use read::{Entry, Filter, PAGE, Place, Reader};
pub use record::{Kind, Record, UnknownKind};
pub use store::StoreError;
pub use time::{NotATime, since};
pub use trail::{Trail, TrailDown, TrailOptions, TrailStatus};
pub use verify::{Verified, verify};
