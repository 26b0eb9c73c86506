//! Decides how records hang together: each one's hash covers the hash before it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The hash of a record and, through the one before it, of all before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What stands before the first record: 32 zero bytes.
    pub const ORIGIN: Self = Self([0; 32]);

    /// The hash of `text` where this one stands before it: SHA-256 of these 32 bytes and the text.
    #[must_use]
    pub fn after(self, text: &str) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(text).finalize().into())
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no hash.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash has 64 hexadecimal digits")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(digits: &str) -> Result<Self, NotAHash> {
        let digits = digits.as_bytes();
        if digits.len() != 64 {
            return Err(NotAHash);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            let (high, low) = (value(pair[0]).ok_or(NotAHash)?, value(pair[1]).ok_or(NotAHash)?);
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which record is the last; they are counted from 1. 0: there is none yet.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// The end of a chain without records.
    pub const ORIGIN: Self = Self { sequence: 0, hash: Hash::ORIGIN };

    /// The end once `text` has been added.
    #[must_use]
    pub fn next(self, text: &str) -> Self {
        Self { sequence: self.sequence + 1, hash: self.hash.after(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_hash_before_and_the_text() {
        let first = Head::ORIGIN.next("{}");
        let mut input = vec![0; 32];
        input.extend_from_slice(b"{}");
        assert_eq!(first.hash.as_bytes().as_slice(), Sha256::digest(&input).as_slice());
        assert_eq!((first.sequence, first.next("{}").sequence), (1, 2));
        assert_ne!(first.hash, first.next("{}").hash);
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = Hash::ORIGIN.after("x");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for wrong in ["", "00", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(wrong.parse::<Hash>(), Err(NotAHash), "{wrong}");
        }
    }
}
