//! Decides how a reply's bytes are read besides being passed on: as they are, or unpacked.
//!
//! Only a copy is unpacked; what goes to the caller stays as it came. What cannot be unpacked is not looked at, and its use
//! is then not known.

use std::collections::VecDeque;
use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::HeaderMap;
use http::header;
use tidegate_core::cost::Usage;
use tidegate_core::openai::usage;

/// Of a reply that goes by so much is kept to find its usage at the end; references, not copies.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// Of a larger one the end, where embeddings have their usage.
const TAIL_BYTES: usize = 4 << 10;
/// Nothing is unpacked to more.
const UNPACKED_BYTES_MAX: u64 = 8 << 20;
/// Packed bytes unpacked at once: bounds what one piece can grow to.
const STEP_BYTES: usize = 4 << 10;

/// How a reply is read, and what is kept of it.
#[derive(Debug)]
pub(crate) struct Plain {
    coding: Coding,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    is_whole: bool,
}

enum Coding {
    Identity,
    Gzip(Option<Box<flate2::write::MultiGzDecoder<Vec<u8>>>>),
    Unreadable,
}

impl std::fmt::Debug for Coding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Identity => "Identity",
            Self::Gzip(_) => "Gzip",
            Self::Unreadable => "Unreadable",
        })
    }
}

impl Plain {
    /// For a reply with these headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let coding = match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii()) {
            None | Some(b"identity" | b"") => Coding::Identity,
            Some(coding) if coding.eq_ignore_ascii_case(b"gzip") => Coding::Gzip(None),
            Some(_) => Coding::Unreadable,
        };
        Self { coding, kept: VecDeque::new(), kept_bytes: 0, is_whole: true }
    }

    /// What it says cannot be known.
    pub(crate) const fn is_unreadable(&self) -> bool {
        matches!(self.coding, Coding::Unreadable)
    }

    /// The next piece of a stream, unpacked; nothing where it cannot be.
    pub(crate) fn feed(&mut self, piece: &[u8], mut text: impl FnMut(&[u8])) {
        match &mut self.coding {
            Coding::Identity => text(piece),
            Coding::Unreadable => {}
            Coding::Gzip(decoder) => {
                let decoder = decoder.get_or_insert_with(|| Box::new(flate2::write::MultiGzDecoder::new(Vec::new())));
                for step in piece.chunks(STEP_BYTES) {
                    if decoder.write_all(step).and_then(|()| decoder.flush()).is_err() {
                        self.coding = Coding::Unreadable;
                        return;
                    }
                    let unpacked = std::mem::take(decoder.get_mut());
                    if !unpacked.is_empty() {
                        text(&unpacked);
                    }
                }
            }
        }
    }

    /// All of a reply, unpacked; empty where it cannot be.
    pub(crate) fn whole(&self, body: Bytes) -> Bytes {
        match self.coding {
            Coding::Identity => body,
            Coding::Unreadable => Bytes::new(),
            Coding::Gzip(_) => unpack(&body),
        }
    }

    /// Keeps a piece of a reply that goes by.
    pub(crate) fn keep(&mut self, piece: &Bytes) {
        if matches!(self.coding, Coding::Unreadable) {
            return;
        }
        self.kept_bytes += piece.len();
        self.kept.push_back(piece.clone());
        if self.kept_bytes <= KEPT_BYTES_MAX && self.is_whole {
            return;
        }
        self.is_whole = false;
        while let Some(first) = self.kept.front().filter(|first| self.kept_bytes - first.len() >= TAIL_BYTES) {
            self.kept_bytes -= first.len();
            self.kept.pop_front();
        }
    }

    /// The usage in what was kept.
    pub(crate) fn usage(&mut self) -> Option<Usage> {
        if let Coding::Identity = self.coding {
            let mut tail = VecDeque::new();
            let mut bytes = 0;
            while let Some(piece) = self.kept.get(self.kept.len().wrapping_sub(tail.len() + 1)) {
                tail.push_front(piece.clone());
                bytes += piece.len();
                if bytes >= TAIL_BYTES {
                    break;
                }
            }
            // Most have it at the end; then the rest need not be joined.
            if let Some(usage) = usage::from_json(&join(&tail, bytes)) {
                return Some(usage);
            }
        }
        if !self.is_whole {
            return None;
        }
        let whole = join(&self.kept, self.kept_bytes);
        match self.coding {
            Coding::Identity => usage::from_json(&whole),
            Coding::Gzip(_) => usage::from_json(&unpack(&whole)),
            Coding::Unreadable => None,
        }
    }
}

fn join(pieces: &VecDeque<Bytes>, bytes: usize) -> Bytes {
    let mut joined = BytesMut::with_capacity(bytes);
    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

fn unpack(packed: &[u8]) -> Bytes {
    let mut unpacked = Vec::new();
    match MultiGzDecoder::new(packed).take(UNPACKED_BYTES_MAX).read_to_end(&mut unpacked) {
        Ok(_) => unpacked.into(),
        Err(_) => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::HeaderValue;

    use super::*;

    fn gzip() -> Plain {
        Plain::of(&HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))]))
    }

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_packed_stream_is_read_however_it_is_cut() {
        let packed = packed(b"data: {\"a\":1}\n\ndata: [DONE]\n\n");
        for size in [1, 2, 7, packed.len()] {
            let (mut plain, mut read) = (gzip(), Vec::new());
            packed.chunks(size).for_each(|piece| plain.feed(piece, |text| read.extend_from_slice(text)));
            assert_eq!(read, b"data: {\"a\":1}\n\ndata: [DONE]\n\n");
        }
    }

    #[test]
    fn usage_is_found_at_the_end_of_what_is_too_large_to_keep() {
        let mut plain = Plain::of(&HeaderMap::new());
        plain.keep(&Bytes::from_static(b"{\"data\":\""));
        for _ in 0..300 {
            plain.keep(&Bytes::from(vec![b'x'; 8192]));
        }
        plain.keep(&Bytes::from_static(b"\",\"usage\":{\"prompt_"));
        plain.keep(&Bytes::from_static(b"tokens\":7,\"total_tokens\":7}}"));
        assert!(plain.kept_bytes < 2 * 8192 && !plain.is_whole);
        assert_eq!(plain.usage(), Some(Usage { input_tokens: 7, output_tokens: 0 }));
    }

    #[test]
    fn usage_in_the_middle_of_what_was_kept_is_found_too() {
        let mut plain = Plain::of(&HeaderMap::new());
        plain.keep(&Bytes::from_static(b"{\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2},\"x\":\""));
        plain.keep(&Bytes::from(vec![b'x'; 8192]));
        plain.keep(&Bytes::from_static(b"\"}"));
        assert_eq!(plain.usage(), Some(Usage { input_tokens: 7, output_tokens: 2 }));
        let mut plain = gzip();
        plain.keep(&Bytes::from(packed(b"{\"usage\":{\"prompt_tokens\":7}}")));
        assert_eq!(plain.usage(), Some(Usage { input_tokens: 7, output_tokens: 0 }));
    }

    #[test]
    fn what_cannot_be_read_is_not_kept() {
        let mut plain = Plain::of(&HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static("br"))]));
        plain.keep(&Bytes::from_static(b"{\"usage\":{\"prompt_tokens\":7}}"));
        plain.feed(b"data: x\n\n", |_| panic!("it was read"));
        assert_eq!((plain.kept_bytes, plain.usage()), (0, None));
        let mut plain = gzip();
        plain.feed(b"no gzip at all, long enough to be sure", |_| {});
        assert!(matches!(plain.coding, Coding::Unreadable));
    }
}
