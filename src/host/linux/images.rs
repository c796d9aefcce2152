//! Disk images: what they are, copies of them, files that take no space until they are written to.
//!
//! A file gets its name only when it is complete and durable, so that a crash leaves a whole one or none.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::files::{rename_to_free, stamp_of, sync_folder_of, temporary_path};
use crate::desired::FileId;
use crate::host::FileStamp;
use crate::host::devices::{Copied, ImageIdentity};

/// How much is copied before anybody looks at the clock.
const STEP: u64 = 4 << 20;

/// An image, links followed.
pub(super) fn identify(path: &Path) -> io::Result<Option<ImageIdentity>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(Some(identity_of(&metadata)));
    }
    if kind.is_block_device() {
        // The device itself, whichever of its nodes leads to it. Its content has no time of change.
        let id = FileId { device: metadata.rdev(), inode: 0 };
        let bytes = File::open(path)?.seek(SeekFrom::End(0))?;
        return Ok(Some(ImageIdentity { id, bytes, mtime_ns: 0 }));
    }
    let what = if kind.is_dir() { "a folder" } else { "neither a file nor a block device" };
    Err(super::error(io::ErrorKind::InvalidInput, format!("{} is {what}", path.display())))
}

fn identity_of(metadata: &fs::Metadata) -> ImageIdentity {
    let FileStamp { id, bytes, mtime_ns } = stamp_of(metadata);
    ImageIdentity { id, bytes, mtime_ns }
}

/// Makes a file of this length without any content, or grows one that is shorter.
pub(super) fn make_sparse(path: &Path, bytes: u64) -> io::Result<bool> {
    match open_own(path) {
        Ok(file) => {
            if file.metadata()?.len() >= bytes {
                return Ok(false);
            }
            file.set_len(bytes)?;
            file.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = temporary_path(path)?;
            let made = create(&temporary).and_then(|file| {
                file.set_len(bytes)?;
                file.sync_all()
            });
            finish(made, &temporary, path)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Gives a complete file its name, or removes what there is of it.
fn finish(made: io::Result<()>, temporary: &Path, path: &Path) -> io::Result<()> {
    if let Err(error) = made.and_then(|()| rename_to_free(temporary, path)) {
        // On a full disk even this little is needed.
        let _ = fs::remove_file(temporary);
        return Err(error);
    }
    sync_folder_of(path)
}

/// Opens a file of stead's own for writing.
fn open_own(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(super::error(io::ErrorKind::InvalidInput, format!("{} is no regular file", path.display())));
    }
    Ok(file)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path)
}

/// Writes over a part of a file that is there.
pub(super) fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = open_own(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

/// The copies that this process has begun and not finished, by the path of the part. What another process left is not among
/// them, and is begun anew: how much of it a crash let through to the disk is not known.
static BEGUN: Mutex<Option<HashMap<PathBuf, Begun>>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Begun {
    image: ImageIdentity,
    /// All before this is copied.
    offset: u64,
}

/// Copies an image for about `slice`, from where the last call left off.
pub(super) fn copy(
    image: &Path,
    expected: &ImageIdentity,
    copy: &Path,
    bytes: u64,
    slice: Duration,
) -> io::Result<Copied> {
    if fs::symlink_metadata(copy).is_ok() {
        drop(open_own(copy)?);
        return Ok(Copied::Done { shared: false });
    }
    let part = part_path(copy)?;
    let result = copy_part(image, expected, &part, bytes, slice);
    let copied = match result {
        Ok(Some(copied @ Copied::Part { .. })) => return Ok(copied),
        Ok(Some(copied)) => Ok(copied),
        Ok(None) => Ok(Copied::Done { shared: false }),
        Err(error) => Err(error),
    };
    begun(|all| all.remove(&part));
    let made = copied.and_then(|copied| {
        // Looked at once more, now that all of it has been read.
        unchanged(image, expected)?;
        Ok(copied)
    });
    match made {
        Ok(copied) => finish(Ok(()), &part, copy).map(|()| copied),
        Err(error) => {
            let _ = fs::remove_file(&part);
            Err(explain(error, image, expected))
        }
    }
}

/// `None` when it came to the end.
fn copy_part(
    image: &Path,
    expected: &ImageIdentity,
    part: &Path,
    bytes: u64,
    slice: Duration,
) -> io::Result<Option<Copied>> {
    let deadline = Instant::now() + slice;
    let mut from = File::open(image)?;
    unchanged(image, expected)?;
    let known = begun(|all| all.get(part).copied()).filter(|begun| begun.image == *expected);
    let (to, mut offset) = if let Some(begun) = known {
        (open_own(part)?, begun.offset)
    } else {
        let _ = fs::remove_file(part);
        let to = create(part)?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            to.set_len(bytes.max(expected.bytes))?;
            to.sync_all()?;
            return Ok(Some(Copied::Done { shared: true }));
        }
        (to, 0)
    };
    while let Some((start, end)) = next_data(&mut from, offset, expected.bytes)? {
        let until = end.min(start + STEP);
        copy_range(&mut from, &to, start, until)?;
        offset = until;
        if Instant::now() >= deadline {
            begun(|all| all.insert(part.to_owned(), Begun { image: *expected, offset }));
            return Ok(Some(Copied::Part { bytes: offset, of: expected.bytes }));
        }
    }
    to.set_len(bytes.max(expected.bytes))?;
    to.sync_all()?;
    Ok(None)
}

/// The next stretch of the image at or after `offset` that is not a hole (lseek(2), SEEK_DATA).
fn next_data(image: &mut File, offset: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom as Seek, seek};
    if offset >= end {
        return Ok(None);
    }
    let start = match seek(&*image, Seek::Data(offset)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A device has no holes that could be asked for.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((offset, end))),
        Err(errno) => return Err(errno.into()),
    };
    let hole = seek(&*image, Seek::Hole(start)).unwrap_or(end);
    Ok((start < end).then_some((start, hole.min(end))))
}

/// Copies a stretch, in the kernel where it can.
fn copy_range(from: &mut File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(&*from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Between filesystems, or from a device.
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &mut File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    let mut buffer = vec![0; 1 << 20];
    let mut left = end - start;
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

fn unchanged(image: &Path, expected: &ImageIdentity) -> io::Result<()> {
    if identify(image)? == Some(*expected) {
        return Ok(());
    }
    let text = format!("{} changed while it was copied", image.display());
    Err(super::error(io::ErrorKind::StaleNetworkFileHandle, text))
}

fn explain(error: io::Error, image: &Path, expected: &ImageIdentity) -> io::Error {
    if error.kind() == io::ErrorKind::StorageFull {
        let text = format!("no room for a copy of {} ({} MiB): {error}", image.display(), expected.bytes >> 20);
        return super::error(error.kind(), text);
    }
    error
}

/// Where a copy grows until it is complete: a name that nobody takes for a disk.
fn part_path(copy: &Path) -> io::Result<PathBuf> {
    let name = copy.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    Ok(copy.with_file_name(format!(".{name}.part")))
}

fn begun<T>(with: impl FnOnce(&mut HashMap<PathBuf, Begun>) -> T) -> T {
    // Each use leaves the map whole, so a panic elsewhere while it was locked did not break it.
    let mut all = BEGUN.lock().unwrap_or_else(PoisonError::into_inner);
    with(all.get_or_insert_default())
}

/// Renames within one filesystem, and makes it durable; never replaces anything.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<bool> {
    match rename_to_free(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(from).is_err() => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    // The new name first: a crash between the two syncs leaves both names rather than none.
    sync_folder_of(to)?;
    sync_folder_of(from)?;
    Ok(true)
}

/// Removes a folder with all in it; links in it are removed and not followed (std does so by openat(2)).
pub(super) fn remove_folder(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            return Err(super::error(io::ErrorKind::NotADirectory, format!("{} is no folder", path.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind HostOps::remove_folder")]
    fs::remove_dir_all(path)?;
    sync_folder_of(path)?;
    Ok(true)
}
