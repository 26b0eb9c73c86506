//! Decides how files are packed: by the end of their names, or for what is read by their first bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::path::Path;

use flate2::Compression;

/// Read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// By the end of a name.
    pub(crate) fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst" | "zstd") => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// A piece of text as a member of its own, so that a file which breaks off is whole up to its last member.
    pub(crate) fn pack(self, text: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(text.to_vec()),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(text)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(text, 3),
        }
    }

    /// Reads what whole members hold, up to where one breaks off. Returns how many bytes of the file are whole.
    pub(crate) fn read_members(self, file: File, mut text: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        let mut reader = Counted { inner: BufReader::with_capacity(BUFFER_BYTES, file), taken: 0 };
        loop {
            if reader.fill_buf()?.is_empty() {
                return Ok(reader.taken);
            }
            let begins_at = reader.taken;
            let mut member = Vec::new();
            let read = match self {
                Self::Plain => reader.read_to_end(&mut member).map(drop),
                Self::Gzip => flate2::bufread::GzDecoder::new(&mut reader).read_to_end(&mut member).map(drop),
                Self::Zstd => zstd::stream::read::Decoder::with_buffer(&mut reader)
                    .and_then(|decoder| decoder.single_frame().read_to_end(&mut member))
                    .map(drop),
            };
            if let Err(error) = read {
                return if is_of_packing(&error) { Ok(begins_at) } else { Err(error) };
            }
            text(&member)?;
        }
    }
}

/// What a decoder says of bytes that are not whole, in contrast to a disk that cannot be read.
fn is_of_packing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other
    )
}

/// Opens a file to be read as text, unpacked if it begins as a packed one does.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    let begins = reader.fill_buf()?;
    if begins.starts_with(&[0x1f, 0x8b]) {
        let unpacked = flate2::bufread::MultiGzDecoder::new(reader);
        return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked)));
    }
    if begins.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let unpacked = zstd::stream::read::Decoder::with_buffer(reader)?;
        return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked)));
    }
    Ok(Box::new(reader))
}

struct Counted<R> {
    inner: R,
    taken: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.taken += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount as u64;
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_file_that_breaks_off_anywhere_is_whole_up_to_its_last_member() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        for packing in [Packing::Gzip, Packing::Zstd] {
            let members = [packing.pack(b"one\n").unwrap(), packing.pack(b"two\nthree\n").unwrap()];
            let whole = members.concat();
            for cut in 0..=whole.len() {
                std::fs::write(&path, &whole[..cut]).unwrap();
                let mut text = Vec::new();
                let read = packing.read_members(File::open(&path).unwrap(), |member| {
                    text.extend_from_slice(member);
                    Ok(())
                });
                let (expected, bytes) = if cut < members[0].len() {
                    (&b""[..], 0)
                } else if cut < whole.len() {
                    (&b"one\n"[..], members[0].len())
                } else {
                    (&b"one\ntwo\nthree\n"[..], cut)
                };
                assert_eq!((text.as_slice(), read.unwrap()), (expected, bytes as u64), "{packing:?} cut at {cut}");
            }
            std::fs::write(&path, &whole).unwrap();
            let mut read = String::new();
            open(&path).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, "one\ntwo\nthree\n");
        }
    }
}
