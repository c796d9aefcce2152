//! Appending to a log of stead's own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, TryLockError};

use nix::libc::{O_APPEND, O_NOFOLLOW, O_NONBLOCK};

/// Held by who gives a log its other name. Nobody waits for it: a disk that hangs would keep all who act waiting.
static ROTATING: Mutex<()> = Mutex::new(());

/// Appends a line. It goes in by one write(2): with `O_APPEND` no other writer's bytes get in between.
pub(super) fn append(path: &Path, before: &Path, line: &[u8], limit: u64) -> io::Result<()> {
    let (mut file, mut length) = open(path)?;
    if length > 0 && length + line.len() as u64 > limit && rotate(path, before, &file)? {
        (file, length) = open(path)?;
    }
    // A full disk or a power cut leaves half a line, which is not to spoil the next one. It may also be another writer's, of which
    // the kernel shows the part on one page before that on the next: then there is an empty line, which means nothing.
    let is_torn = length > 0 && {
        let mut last = [0];
        file.read_at(&mut last, length - 1)? == 1 && last != *b"\n"
    };
    let torn_off;
    let bytes = if is_torn {
        torn_off = [b"\n", line].concat();
        &torn_off
    } else {
        line
    };
    loop {
        match io::Write::write(&mut file, bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(written) => {
                let text = format!("only {written} of {} bytes of a line went in", bytes.len());
                return Err(io::Error::new(io::ErrorKind::StorageFull, text));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the log, and says how long it is.
fn open(path: &Path) -> io::Result<(File, u64)> {
    // Never through a link, and never waiting for who reads a FIFO.
    let flags = O_APPEND | O_NOFOLLOW | O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file: move it away"))
    }
}

/// Gives the log its other name, if it still is this file; false when somebody else does or did, or is about to.
fn rotate(path: &Path, before: &Path, full: &File) -> io::Result<bool> {
    let _rotating = match ROTATING.try_lock() {
        Ok(guard) => guard,
        // Nothing is kept under it, so nothing is broken.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Ok(false),
    };
    let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(now) if id(&now) == id(&full.metadata()?) => {}
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    }
    fs::rename(path, before)?;
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]
mod tests {
    use super::*;

    const LIMIT: u64 = 40_000;

    #[test]
    fn many_append_at_once_and_no_line_is_lost_or_cut_also_when_the_log_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join("log"), folder.path().join("log.1"));
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (path, before) = (&path, &before);
                scope.spawn(move || {
                    for number in 0..400 {
                        append(path, before, format!("{writer} {number:>30}\n").as_bytes(), LIMIT).unwrap();
                    }
                });
            }
        });
        // 1,600 lines of 33 bytes: one file and a part of another.
        let text = [&before, &path].map(|file| fs::read_to_string(file).unwrap()).concat();
        let lines = || text.lines().filter(|line| !line.is_empty());
        assert_eq!(lines().collect::<std::collections::BTreeSet<_>>().len(), 1600);
        assert!(lines().all(|line| line.len() == 32), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    /// Of several at once, those who come while it gets its other name go past it by their lines.
    #[test]
    fn one_writer_never_goes_past_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join("log"), folder.path().join("log.1"));
        for number in 0..1600 {
            append(&path, &before, format!("{number:>32}\n").as_bytes(), LIMIT).unwrap();
        }
        let length = fs::metadata(&before).unwrap().len();
        assert!(length <= LIMIT && length + 33 > LIMIT, "{length}");
    }

    #[test]
    fn half_a_line_spoils_no_other_and_what_is_no_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join("log"), folder.path().join("log.1"));
        fs::write(&path, "one\n{\"ti").unwrap();
        append(&path, &before, b"two\n", 1000).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n{\"ti\ntwo\n");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(append(&link, &before, b"three\n", 1000).is_err());
        assert!(append(folder.path(), &before, b"three\n", 1000).is_err());
    }
}
