//! Decides where results stand until there are enough of them to be packed: `OUT.gz.tail`, as plain lines.
//!
//! A result must be in a file at once, whole, and packed by itself it is hardly smaller. So it goes to the tail as it comes; now
//! and then all of the tail is packed as one member of the output, and only when that is on the disk the tail is emptied. Killed
//! in between, the results stand in both; they are known by their numbers, and go to the output once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::packing::Packing;

/// A tail that is longer is packed: beyond this a packed text shrinks no further.
const TAIL_BYTES: usize = 256 << 10;

fn path_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".tail");
    PathBuf::from(name)
}

/// The whole lines that a run left in the tail of `out`, one after another; those that are torn are not.
pub(crate) fn left(out: &Path) -> io::Result<Vec<String>> {
    if Packing::of(out) == Packing::Plain {
        return Ok(Vec::new());
    }
    match fs::read(path_of(out)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Packs `text`, which was left in the tail and is not in the output, at the end of `output`, and drops the tail.
pub(crate) fn pack_left(out: &Path, mut output: &File, text: &str) -> io::Result<()> {
    if Packing::of(out) == Packing::Plain {
        return Ok(());
    }
    if !text.is_empty() {
        output.write_all(&Packing::of(out).pack(text.as_bytes())?)?;
        output.sync_data()?;
    }
    match fs::remove_file(path_of(out)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A packed output and its tail.
#[derive(Debug)]
pub(crate) struct Tail {
    output: File,
    packing: Packing,
    /// Where the last whole member ends.
    whole_bytes: u64,
    path: PathBuf,
    file: File,
    /// What stands in `file`.
    text: Vec<u8>,
}

impl Tail {
    /// Goes on at the end of `output`, which is whole.
    pub(crate) fn new(output: File, out: &Path) -> io::Result<Self> {
        let path = path_of(out);
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        file.set_len(0)?;
        let whole_bytes = output.metadata()?.len();
        Ok(Self { output, packing: Packing::of(out), whole_bytes, path, file, text: Vec::new() })
    }

    /// Writes whole lines, or leaves none of them.
    pub(crate) fn append(&mut self, text: &[u8]) -> io::Result<()> {
        append_whole(&self.file, text, self.text.len() as u64)?;
        self.text.extend_from_slice(text);
        Ok(())
    }

    /// Packs what there is once it is long enough. An error leaves it in the tail.
    pub(crate) fn pack_if_long(&mut self) -> io::Result<()> {
        if self.text.len() < TAIL_BYTES { Ok(()) } else { self.pack() }
    }

    fn pack(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let member = self.packing.pack(&self.text)?;
        append_whole(&self.output, &member, self.whole_bytes)?;
        // Before the tail is emptied: a loss of power must find it in one of the two.
        self.output.sync_data()?;
        self.whole_bytes += member.len() as u64;
        self.text.clear();
        self.file.set_len(0)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Packs the rest; nothing more comes.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.pack()?;
        fs::remove_file(&self.path)
    }
}

/// Appends all of `bytes` to a file that is whole up to `whole_bytes`, or leaves none of them.
pub(crate) fn append_whole(mut file: &File, bytes: &[u8], whole_bytes: u64) -> io::Result<()> {
    file.write_all(bytes).inspect_err(|_| {
        // Where what was torn cannot be cut off the next run does it.
        let _ = file.set_len(whole_bytes);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> String {
        let mut text = String::new();
        io::Read::read_to_string(&mut crate::packing::open(path).unwrap(), &mut text).unwrap();
        text
    }

    #[test]
    fn what_comes_line_by_line_shrinks_as_if_it_had_come_at_once() {
        for name in ["out.gz", "out.zst"] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join(name);
            let mut tail = Tail::new(File::create(&out).unwrap(), &out).unwrap();
            let lines: Vec<String> =
                (0..5000).map(|number| format!("{{\"number\":{number},\"more\":\"of it\"}}\n")).collect();
            for line in &lines {
                tail.append(line.as_bytes()).unwrap();
                tail.pack_if_long().unwrap();
            }
            tail.close().unwrap();
            let all = lines.concat();
            assert_eq!(text(&out), all);
            let at_once = Packing::of(&out).pack(all.as_bytes()).unwrap().len() as u64;
            let bytes = fs::metadata(&out).unwrap().len();
            assert!(bytes < at_once + at_once / 10, "{name}: {bytes} bytes, {at_once} at once");
            assert!(!path_of(&out).exists());
        }
    }
}
