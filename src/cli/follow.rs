//! A log read as it grows, through being trimmed, truncated or replaced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::OFlags;

/// How many of the last bytes told are kept to find the place again after a log was trimmed.
const MEMORY: usize = 4096;
/// How much is read at once.
const PIECE: usize = 64 << 10;
/// The most that is searched for the last lines, or for the place after a trim.
const SEARCH_MAX: u64 = 16 << 20;

/// Reads a log that others append to.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    /// How far it was read.
    position: u64,
    /// The last bytes that were read.
    memory: Vec<u8>,
}

impl Follower {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, position: 0, memory: Vec::new() }
    }

    /// Skips all but the last `lines` lines; true when there is a log.
    pub(super) fn skip_to_last(&mut self, lines: usize) -> io::Result<bool> {
        if !self.open()? {
            return Ok(false);
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let length = file.metadata()?.len();
        let start = length.saturating_sub(SEARCH_MAX);
        let tail = read_range(file, start, length - start)?;
        // A newline at the very end ends the last line, and begins none.
        let body = tail.strip_suffix(b"\n").unwrap_or(&tail);
        let mut newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let skip = match lines {
            0 => tail.len(),
            _ => newlines.nth(lines - 1).unwrap_or(0),
        };
        self.position = start + skip as u64;
        self.remember(&tail[..skip]);
        Ok(true)
    }

    /// Gives everything new to `take`, in pieces; true when there is a log.
    pub(super) fn read_new<E: From<io::Error>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        // What was appended before the log was replaced is read first.
        self.drain(&mut take)?;
        if !self.open()? {
            return Ok(false);
        }
        self.drain(&mut take)?;
        Ok(true)
    }

    /// Opens the log, anew if another one stands under its name.
    fn open(&mut self) -> io::Result<bool> {
        // Never through a link, and never waiting for a writer: the folder is stead's, but caution is cheap.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.file.is_some()),
            Err(error) => return Err(error),
        };
        let id = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let same = match &self.file {
            Some(old) => id(old)? == id(&file)?,
            None => false,
        };
        if !same {
            self.file = Some(file);
            self.position = 0;
            self.memory.clear();
        }
        Ok(true)
    }

    fn drain<E: From<io::Error>>(&mut self, take: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.find_place()?;
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let ended = (|| {
            file.seek(SeekFrom::Start(self.position))?;
            let mut piece = vec![0; PIECE];
            loop {
                let count = match file.read(&mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error.into()),
                };
                self.position += count as u64;
                self.remember(&piece[..count]);
                take(&piece[..count])?;
            }
        })();
        self.file = Some(file);
        ended
    }

    /// Finds the place again where the log no longer has what was read before it: it was trimmed to its newest part, or
    /// truncated. Without a trace of what was read, all that is there is new.
    fn find_place(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let length = file.metadata()?.len();
        let before = self.position.saturating_sub(self.memory.len() as u64);
        if self.position <= length && read_range(file, before, self.memory.len() as u64)? == self.memory {
            return Ok(());
        }
        let start = length.saturating_sub(SEARCH_MAX);
        let tail = read_range(file, start, length - start)?;
        self.position = match last_after(&tail, &self.memory) {
            Some(after) => start + after as u64,
            None => start,
        };
        if self.position == start {
            self.memory.clear();
        }
        Ok(())
    }

    fn remember(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(&bytes[bytes.len().saturating_sub(MEMORY)..]);
        let excess = self.memory.len().saturating_sub(MEMORY);
        self.memory.drain(..excess);
    }
}

/// Up to `length` bytes from `start` on; fewer where the file ends.
fn read_range(file: &mut File, start: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the last occurrence of `known` ends; of its second half, or a quarter, where the trim cut into it.
fn last_after(text: &[u8], known: &[u8]) -> Option<usize> {
    let mut known = known;
    while known.len() >= 16 || (!known.is_empty() && known.len() == known.len().min(text.len())) {
        if let Some(at) = text.windows(known.len()).rposition(|window| window == known) {
            return Some(at + known.len());
        }
        if known.len() < 16 {
            return None;
        }
        known = &known[known.len() / 2..];
    }
    None
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn new_text(follower: &mut Follower) -> String {
        let mut text = Vec::new();
        follower
            .read_new::<io::Error>(|piece| {
                text.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        String::from_utf8(text).unwrap()
    }

    fn append(path: &std::path::Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Lines from `range`, each with its number.
    fn numbered(range: std::ops::Range<u32>) -> String {
        range.flat_map(|n| ["line number ".to_owned(), n.to_string(), "\n".to_owned()]).collect()
    }

    #[test]
    fn a_log_is_read_as_it_grows_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut follower = Follower::new(path.clone());
        assert_eq!(new_text(&mut follower), "");
        append(&path, "one\n");
        assert_eq!(new_text(&mut follower), "one\n");
        append(&path, "two\n");
        assert_eq!(new_text(&mut follower), "two\n");
        assert_eq!(new_text(&mut follower), "");
    }

    #[test]
    fn a_log_trimmed_in_place_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        append(&path, &numbered(0..1000));
        let mut follower = Follower::new(path.clone());
        new_text(&mut follower);
        // Cut to its newest half, then some more lines: shorter than before, and also grown past where it was.
        fs::write(&path, numbered(500..1003)).unwrap();
        assert_eq!(new_text(&mut follower), numbered(1000..1003));
        fs::write(&path, numbered(800..3000)).unwrap();
        assert_eq!(new_text(&mut follower), numbered(1003..3000));
    }

    #[test]
    fn a_log_truncated_or_replaced_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        append(&path, "old life\n");
        let mut follower = Follower::new(path.clone());
        new_text(&mut follower);
        fs::write(&path, "fresh\n").unwrap();
        assert_eq!(new_text(&mut follower), "fresh\n");
        append(&path, "last words\n");
        fs::rename(&path, folder.path().join("console.log.1")).unwrap();
        append(&path, "new life\n");
        assert_eq!(new_text(&mut follower), "last words\nnew life\n");
    }

    #[test]
    fn the_last_lines_are_found_and_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        append(&path, &numbered(0..10));
        for (lines, from) in [(0, 10), (1, 9), (3, 7), (10, 0), (99, 0)] {
            let mut follower = Follower::new(path.clone());
            assert!(follower.skip_to_last(lines).unwrap());
            assert_eq!(new_text(&mut follower), numbered(from..10), "{lines} lines");
        }
        assert!(!Follower::new(folder.path().join("none")).skip_to_last(3).unwrap());
    }
}
