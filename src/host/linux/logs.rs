//! Keeping a log from growing without end while its writer goes on appending.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{FallocateFlags, fallocate};

/// Cuts a log that is longer than `limit` bytes down to its newest half; true when it was cut. What remains begins at the
/// start of a line. The writer must have opened the file for append.
pub(super) fn trim(path: &Path, limit: u64) -> io::Result<bool> {
    // Asked by its path first, which is all that is needed of nearly every log.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.len() > limit => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let open = OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() <= limit {
        return Ok(false);
    }
    let from = metadata.len() - limit / 2;
    if !collapse(&file, from)? {
        copy_tail(&file, from)?;
    }
    Ok(true)
}

/// Cuts blocks off the front, which loses nothing that is appended meanwhile (fallocate(2), FALLOC_FL_COLLAPSE_RANGE);
/// false where the filesystem cannot. Blocks know nothing of lines, so the rest of the line that is cut through becomes
/// blanks.
fn collapse(file: &File, from: u64) -> io::Result<bool> {
    let block = u64::try_from(rustix::fs::fstatfs(file)?.f_bsize).unwrap_or(0).max(4096);
    let cut = from - from % block;
    if cut == 0 {
        return Ok(false);
    }
    match fallocate(file, FallocateFlags::COLLAPSE_RANGE, 0, cut) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    blank_first_line(file)?;
    Ok(true)
}

/// Turns what is left of a line that was cut through into a note of the same length. A line too long for a block is no
/// line but binary, and left alone.
fn blank_first_line(file: &File) -> io::Result<()> {
    const NOTE: &[u8] = b"[earlier lines were cut off]";
    let mut start = [0; 4096];
    let count = file.read_at(&mut start, 0)?;
    if let Some(end) = start[..count].iter().position(|byte| *byte == b'\n') {
        let mut line = vec![b' '; end];
        if let Some(place) = line.get_mut(..NOTE.len()) {
            place.copy_from_slice(NOTE);
        }
        file.write_all_at(&line, 0)?;
    }
    Ok(())
}

/// Copies the tail to the front and cuts what follows. What is appended between the last read and the cut is lost: some
/// microseconds' worth.
fn copy_tail(file: &File, from: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut read_at = line_start(file, from)?;
    let mut write_at = 0;
    loop {
        let count = file.read_at(&mut buffer, read_at)?;
        if count == 0 {
            return file.set_len(write_at);
        }
        file.write_all_at(&buffer[..count], write_at)?;
        read_at += count as u64;
        write_at += count as u64;
    }
}

/// The start of the first line that begins after `from`; `from` itself where no line ends soon.
fn line_start(file: &File, from: u64) -> io::Result<u64> {
    let mut window = [0; 4096];
    // A line may begin at `from` exactly.
    let count = file.read_at(&mut window, from.saturating_sub(1))?;
    let end = window[..count].iter().position(|byte| *byte == b'\n');
    Ok(end.map_or(from, |end| from.saturating_sub(1) + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copied_tail_begins_at_a_line_and_ends_as_the_log_did() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let text = (0..20_000).fold(String::new(), |text, number| text + &format!("line {number}\n"));
        #[expect(clippy::disallowed_methods, reason = "a test's own file")]
        std::fs::write(&path, &text).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let from = text.len() as u64 - 1000;
        copy_tail(&file, from).unwrap();
        let left = std::fs::read_to_string(&path).unwrap();
        assert!(left.starts_with("line ") && text.ends_with(&left), "{left}");
        assert!((900..=1000).contains(&left.len()), "{}", left.len());
    }
}
