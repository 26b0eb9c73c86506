//! Decides whether a secret that somebody shows is the one that is known: by its hash, in constant time.

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// SHA-256 of `parts`, each preceded by its length so that no two lists look alike.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// SHA-256 of a secret as it was shown.
pub(crate) fn secret_digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// The position of `shown` among `known`; takes as long wherever it is, and where it is not.
pub(crate) fn position<'k>(shown: &[u8; 32], known: impl Iterator<Item = &'k [u8; 32]>) -> Option<usize> {
    let mut found = u32::MAX;
    for (position, candidate) in (0_u32..).zip(known) {
        found.conditional_assign(&position, candidate.ct_eq(shown));
    }
    usize::try_from(found).ok().filter(|_| found != u32::MAX)
}

/// The first 12 hexadecimal digits: enough to tell callers apart, too few to be of use to anybody.
pub(crate) fn fingerprint(digest: &[u8; 32]) -> String {
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// So many bytes that nobody can guess, as hexadecimal digits. `None`: the system has no randomness.
pub(crate) fn random_digits(bytes: usize) -> Option<String> {
    let mut random = vec![0; bytes];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut random).ok()?;
    Some(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The hash that 64 hexadecimal digits stand for.
pub(crate) fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (position, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * position..2 * position + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_by_its_hash_and_others_are_not() {
        let known = [secret_digest(b"tg-a"), secret_digest(b"tg-b")];
        assert_eq!(position(&secret_digest(b"tg-b"), known.iter()), Some(1));
        assert_eq!(position(&secret_digest(b"tg-c"), known.iter()), None);
        assert_eq!(position(&secret_digest(b"tg-c"), [].iter()), None);
    }

    #[test]
    fn lists_that_join_to_the_same_text_differ() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[0xab; 32]), "abababababab");
    }
}
