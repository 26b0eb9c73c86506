//! Decides where the events of a stream begin and end, however its bytes are cut into pieces.
//!
//! Looks on; never holds anything back and changes nothing. Source: WHATWG HTML, "Server-sent events".

use memchr::memchr2;

/// A larger event is passed over, so that a stream without an end of line cannot fill the memory.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// A whole event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'e> {
    /// As in `event: NAME`; empty where it has none.
    pub name: &'e [u8],
    /// Its data; several lines are joined by a line feed.
    pub data: &'e [u8],
    /// Bytes of the piece that was fed last up to the end of the event, its blank line included.
    pub end: usize,
}

/// Finds events in pieces of a stream.
#[derive(Debug)]
pub struct SseScanner {
    event_bytes_max: usize,
    /// The line that the last piece broke off in.
    line: Vec<u8>,
    /// Of the event under way, as far as earlier pieces or several lines made it.
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// Bytes of the lines of the event under way, to hold against the bound.
    event_bytes: usize,
    is_skipping: bool,
    skipped: u64,
    /// The last piece ended in a carriage return: a line feed now is of the same end of line.
    after_return: bool,
    at_start: bool,
}

impl Default for SseScanner {
    fn default() -> Self {
        Self::with_event_bytes_max(EVENT_BYTES_MAX)
    }
}

/// Data of the event under way: in the piece itself as long as that is possible.
#[derive(Clone, Copy)]
enum Data<'p> {
    None,
    InPiece(&'p [u8]),
    Kept,
}

impl SseScanner {
    /// A scanner at the beginning of a stream, with a bound of its own.
    #[must_use]
    pub const fn with_event_bytes_max(event_bytes_max: usize) -> Self {
        Self {
            event_bytes_max,
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            event_bytes: 0,
            is_skipping: false,
            skipped: 0,
            after_return: false,
            at_start: true,
        }
    }

    /// How many events were too large to be looked at.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Takes the next piece and hands each event that ends in it to `found`. No copy is made of an event that lies in one
    /// piece with its data on one line.
    pub fn feed(&mut self, piece: &[u8], mut found: impl FnMut(SseEvent<'_>)) {
        let mut at = 0;
        if self.after_return && !piece.is_empty() {
            self.after_return = false;
            at = usize::from(piece[0] == b'\n');
        }
        let mut data = if self.has_data { Data::Kept } else { Data::None };
        while let Some(length) = memchr2(b'\n', b'\r', &piece[at..]) {
            let line_end = at + length;
            let mut next = line_end + 1;
            if piece[line_end] == b'\r' {
                match piece.get(next) {
                    Some(b'\n') => next += 1,
                    Some(_) => {}
                    None => self.after_return = true,
                }
            }
            let in_piece = &piece[at..line_end];
            at = next;
            if self.line.is_empty() {
                data = self.take_line(in_piece, data, at, &mut found);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(self.within_bound(in_piece, line.len()));
                data = match self.take_line(&line, data, at, &mut found) {
                    // The line goes back to be used again: what it says of the event is kept.
                    Data::InPiece(value) => {
                        self.data.clear();
                        self.data.extend_from_slice(value);
                        Data::Kept
                    }
                    Data::None => Data::None,
                    Data::Kept => Data::Kept,
                };
                line.clear();
                self.line = line;
            }
        }
        let rest = &piece[at..];
        let room = self.within_bound(rest, self.line.len());
        self.line.extend_from_slice(room);
        self.keep(data);
    }

    /// Takes the end of the stream: an event that only lacks its blank line is handed out too, as some servers send none.
    pub fn finish(&mut self, mut found: impl FnMut(SseEvent<'_>)) {
        let line = std::mem::take(&mut self.line);
        let mut data = if self.has_data { Data::Kept } else { Data::None };
        if !line.is_empty() {
            data = self.take_line(&line, data, 0, &mut found);
        }
        self.take_line(b"", data, 0, &mut found);
        self.has_data = false;
    }

    /// As much of `bytes` as shows that the bound is passed, given `before` bytes of the same line.
    fn within_bound<'p>(&self, bytes: &'p [u8], before: usize) -> &'p [u8] {
        let room = (self.event_bytes_max + 1).saturating_sub(before);
        &bytes[..bytes.len().min(room)]
    }

    /// Takes one line without its end, and says where the event's data now is.
    fn take_line<'p>(
        &mut self,
        line: &'p [u8],
        data: Data<'p>,
        end: usize,
        found: &mut impl FnMut(SseEvent<'_>),
    ) -> Data<'p> {
        let line =
            if std::mem::take(&mut self.at_start) { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            if !self.is_skipping {
                match data {
                    Data::None => {}
                    Data::InPiece(data) => found(SseEvent { name: &self.name, data, end }),
                    Data::Kept => found(SseEvent { name: &self.name, data: &self.data, end }),
                }
            }
            self.name.clear();
            self.data.clear();
            self.event_bytes = 0;
            self.is_skipping = false;
            return Data::None;
        }
        self.event_bytes = self.event_bytes.saturating_add(line.len());
        if self.is_skipping {
            return Data::None;
        }
        if self.event_bytes > self.event_bytes_max {
            self.is_skipping = true;
            self.skipped += 1;
            self.data = Vec::new();
            return Data::None;
        }
        if let Some(value) = field(line, b"data") {
            return match data {
                Data::None => Data::InPiece(value),
                Data::InPiece(first) => {
                    self.data.clear();
                    self.data.extend_from_slice(first);
                    self.append(value)
                }
                Data::Kept => self.append(value),
            };
        }
        if let Some(value) = field(line, b"event") {
            self.name.clear();
            self.name.extend_from_slice(value);
        }
        data
    }

    fn append<'p>(&mut self, value: &[u8]) -> Data<'p> {
        self.data.push(b'\n');
        self.data.extend_from_slice(value);
        Data::Kept
    }

    fn keep(&mut self, data: Data<'_>) {
        if let Data::InPiece(value) = data {
            self.data.clear();
            self.data.extend_from_slice(value);
        }
        self.has_data = !matches!(data, Data::None);
    }
}

/// The value if `line` is of the field `name`: what follows the colon, without one space.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let rest = line.strip_prefix(name)?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Found = Vec<(String, String, usize)>;

    /// Events, with where they end counted from the beginning of the stream.
    fn scan_with<'p>(mut scanner: SseScanner, pieces: impl IntoIterator<Item = &'p [u8]>) -> (Found, u64) {
        let mut found = Vec::new();
        let mut before = 0;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for piece in pieces {
            scanner.feed(piece, |event| found.push((text(event.name), text(event.data), before + event.end)));
            before += piece.len();
        }
        scanner.finish(|event| found.push((text(event.name), text(event.data), before + event.end)));
        (found, scanner.skipped())
    }

    fn scan(stream: &str) -> Vec<(String, String)> {
        let whole = scan_with(SseScanner::default(), [stream.as_bytes()]).0;
        let single = scan_with(SseScanner::default(), stream.as_bytes().chunks(1)).0;
        let words = |found: Found| found.into_iter().map(|(name, data, _)| (name, data)).collect::<Vec<_>>();
        let words_whole = words(whole);
        assert_eq!(words_whole, words(single), "byte for byte");
        words_whole
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, data)| ((*name).to_owned(), (*data).to_owned())).collect()
    }

    #[test]
    fn all_ends_of_line_and_spellings_of_fields_are_read() {
        for (stream, expected) in [
            ("data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")][..]),
            ("data:a\r\n\r\ndata:  b\r\n\r\n", &[("", "a"), ("", " b")]),
            ("data: a\r\rdata: b\r\r", &[("", "a"), ("", "b")]),
            ("event: x\ndata: a\n\ndata: b\n\n", &[("x", "a"), ("", "b")]),
            ("data: a\nevent:x\nid: 1\nretry: 5\n\n", &[("x", "a")]),
            ("data: one\ndata: two\ndata:\ndata: four\n\n", &[("", "one\ntwo\n\nfour")]),
            (": OPENROUTER PROCESSING\n\ndata: a\n: in between\n\n", &[("", "a")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[("", "a")]),
            ("event: lost\n\ndata: a\n\n", &[("", "a")]),
            ("\n\n\ndata\n\ndatabase: x\n\n", &[("", "")]),
            ("data: é中😀\n\n", &[("", "é中😀")]),
            ("data: [DONE]", &[("", "[DONE]")]),
            ("data: [DONE]\n", &[("", "[DONE]")]),
            ("", &[]),
        ] {
            assert_eq!(scan(stream), pairs(expected), "{stream:?}");
        }
    }

    #[test]
    fn an_event_ends_after_its_blank_line() {
        let stream = b"data: a\n\n: c\ndata: b\r\n\r\nrest";
        let (found, _) = scan_with(SseScanner::default(), [&stream[..]]);
        assert_eq!(found.iter().map(|event| event.2).collect::<Vec<_>>(), [9, 24]);
        let (found, _) = scan_with(SseScanner::default(), stream.chunks(5));
        assert_eq!(found.iter().map(|event| event.2).collect::<Vec<_>>(), [9, 24]);
    }

    #[test]
    fn an_event_too_large_is_passed_over_and_counted() {
        let stream = format!(
            "data: {}\n\ndata: b\n\ndata: {}\ndata: {}\n\ndata: c\n\n",
            "x".repeat(50),
            "y".repeat(9),
            "z".repeat(9)
        );
        for size in [1, 7, 1_000] {
            let (found, skipped) = scan_with(SseScanner::with_event_bytes_max(20), stream.as_bytes().chunks(size));
            assert_eq!(found.iter().map(|event| event.1.as_str()).collect::<Vec<_>>(), ["b", "c"], "{size}");
            assert_eq!(skipped, 2, "{size}");
        }
    }

    #[test]
    fn a_stream_without_lines_takes_no_more_memory_than_the_bound() {
        let mut scanner = SseScanner::with_event_bytes_max(1_000);
        for _ in 0..1_000 {
            scanner.feed(&[b'x'; 997], |_| panic!("no event"));
        }
        assert!(scanner.line.capacity() + scanner.data.capacity() <= 4_096);
        scanner.feed(b"\n\ndata: a\n\n", |event| assert_eq!(event.data, b"a"));
        assert_eq!(scanner.skipped(), 1);
    }

    proptest! {
        #[test]
        fn events_are_the_same_however_the_stream_is_cut(
            lines in proptest::collection::vec("(data|event|id)?: ?[a-zé:]{0,6}|", 0..30),
            ends in proptest::collection::vec(prop_oneof![Just("\n"), Just("\r\n"), Just("\r")], 30),
            cuts in proptest::collection::vec(1_usize..9, 1..40),
            bound in prop_oneof![Just(8_usize), Just(EVENT_BYTES_MAX)],
        ) {
            let stream: String = lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let mut pieces = Vec::new();
            let mut rest = stream.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let (whole, skipped) = scan_with(SseScanner::with_event_bytes_max(bound), [stream.as_bytes()]);
            let (cut, skipped_cut) = scan_with(SseScanner::with_event_bytes_max(bound), pieces);
            prop_assert_eq!(skipped, skipped_cut);
            let words = |found: &Found| found.iter().map(|(name, data, _)| (name.clone(), data.clone())).collect::<Vec<_>>();
            prop_assert_eq!(words(&whole), words(&cut));
            // A line feed that is cut off its carriage return is counted with what follows.
            prop_assert!(whole.iter().zip(&cut).all(|(a, b)| a.2.abs_diff(b.2) <= 1));
        }

        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
            let _ = scan_with(SseScanner::with_event_bytes_max(30), pieces.iter().map(Vec::as_slice));
        }
    }
}
