//! State files: read only if they are stead's own, written so that a crash at any moment leaves the old or the new one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{Access, AtFlags, CWD, RenameFlags, accessat, renameat_with};
use rustix::process::geteuid;

use crate::desired::FileId;
use crate::host::{FileStamp, StateFileError};

/// No state file is longer; a longer one is not one that stead wrote.
const STATE_FILE_MAX: u64 = 16 << 20;

/// What a written file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of this process.
    Process,
    /// A power cut.
    PowerCut,
}

/// Reads a state file that only our own user can have written.
pub(super) fn read_state_file(path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
    let failed = |source: io::Error| StateFileError::Io { path: path.to_owned(), source };
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            let why = "is a symbolic link, and stead makes none: somebody replaced it";
            return Err(StateFileError::Untrusted(format!("{} {why}", path.display())));
        }
        // A socket cannot be opened at all.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {
            return Err(StateFileError::Untrusted(format!("{} is not a regular file", path.display())));
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if let Some(flaw) = distrust(&metadata) {
        return Err(StateFileError::Untrusted(format!("{} {flaw}", path.display())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(STATE_FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > STATE_FILE_MAX {
        let why = format!("{} is longer than {} MiB: stead did not write it", path.display(), STATE_FILE_MAX >> 20);
        return Err(StateFileError::Untrusted(why));
    }
    Ok(Some(bytes))
}

/// Why a file cannot be believed, if so.
fn distrust(metadata: &fs::Metadata) -> Option<String> {
    // Whose rights a process has it is told at its start: stead never changes them.
    static OWN: OnceLock<u32> = OnceLock::new();
    let own = *OWN.get_or_init(|| geteuid().as_raw());
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        Some("is not a regular file".to_owned())
    } else if metadata.uid() != own {
        let whose = metadata.uid();
        Some(format!("belongs to user {whose}, not to {own} as whom stead runs: if its content is right, chown it"))
    } else if mode & 0o022 != 0 {
        Some(format!("has mode {mode:04o}, so others can write it: if its content is right, chmod it to 0600"))
    } else {
        None
    }
}

/// The names in a folder, sorted; none when there is no such folder. A name that is not UTF-8 is none of stead's.
pub(super) fn list_folder(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Which file is at this path, and since when it is as it is.
pub(super) fn stamp(path: &Path) -> io::Result<Option<FileStamp>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(stamp_of(&metadata))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The stamp of the file that this was asked of.
pub(super) fn stamp_of(metadata: &fs::Metadata) -> FileStamp {
    FileStamp {
        id: FileId::of(metadata),
        bytes: metadata.len(),
        mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    }
}

/// Whether anything is at this path.
pub(super) fn exists(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Device and inode of what this path leads to.
pub(super) fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(FileId::of(&metadata))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether we may read a file, and write it if `write`.
pub(super) fn check_access(path: &Path, write: bool) -> io::Result<()> {
    let access = if write { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
    // As the user whose rights the VMM will have, which is the effective one.
    accessat(CWD, path, access, AtFlags::EACCESS)?;
    if fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(())
}

/// Makes a folder with its parents; true when it was not there.
pub(super) fn make_folder(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(false),
        // A link to a folder is the user's own arrangement; the kernel says whether it leads to one.
        Ok(_) if fs::metadata(path)?.is_dir() => return Ok(false),
        Ok(_) => {
            return Err(super::error(io::ErrorKind::NotADirectory, format!("{} is not a folder", path.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        // Somebody was faster; so it is there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    }
    // What is made durable in it is so only if the folder itself is.
    sync_folder_of(path)?;
    Ok(true)
}

/// Writes a file, all or nothing.
pub(super) fn write(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = temporary_path(path)?;
    let result = write_temporary(&temporary, bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = result {
        // On a full disk even this little is needed.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    if durability == Durability::PowerCut { sync_folder_of(path) } else { Ok(()) }
}

fn write_temporary(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path)?;
    file.write_all(bytes)?;
    // Before the rename: else a power cut may leave the new name with no content.
    if durability == Durability::PowerCut { file.sync_all() } else { Ok(()) }
}

/// Makes what was renamed, made or removed at `path` durable: names are content of their folder (fsync(2)).
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(parent)?.sync_all()
}

/// Where a file is written before it gets this name.
pub(super) fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(temporary_name(&name.to_string_lossy())))
}

/// `.NAME.tmp.PID-BIRTH-COUNT`: never in use twice, and told from everything else by its shape.
fn temporary_name(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(".{name}.tmp.{}-{}", writer(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// This process among all that ever wrote here: its pid and when it first wrote, since pids are recycled.
fn writer() -> &'static str {
    static WRITER: OnceLock<String> = OnceLock::new();
    WRITER.get_or_init(|| {
        let born = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        format!("{}-{:x}", std::process::id(), i128::from(born.tv_sec) * 1_000_000_000 + i128::from(born.tv_nsec))
    })
}

/// Whether a name is of the shape of [`temporary_name`], and of another process than this.
fn is_abandoned_temporary(name: &str) -> bool {
    let Some((stem, suffix)) = name.strip_prefix('.').and_then(|rest| rest.rsplit_once(".tmp.")) else { return false };
    let parts: Vec<&str> = suffix.split('-').collect();
    let [pid, born, count] = parts[..] else { return false };
    let is_number = |text: &str, radix: u32| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    !stem.is_empty()
        && is_number(pid, 10)
        && is_number(born, 16)
        && is_number(count, 10)
        && format!("{pid}-{born}") != writer()
}

/// Removes what crashed writers left in a folder; gives how many.
pub(super) fn sweep_temporaries(folder: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for name in list_folder(folder)?.iter().filter(|name| is_abandoned_temporary(name)) {
        swept += usize::from(remove(&folder.join(name), false)?);
    }
    Ok(swept)
}

/// Removes a file or socket; true when it was there.
pub(super) fn remove(path: &Path, durable: bool) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    if durable {
        sync_folder_of(path)?;
    }
    Ok(true)
}

/// Moves a file out of the way under a name that says so; nothing is ever overwritten.
pub(super) fn set_aside(path: &Path, now: jiff::Timestamp) -> io::Result<Option<PathBuf>> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    for count in 1_u32.. {
        let aside = path.with_file_name(format!("{name}.corrupt-{stamp}-{count}"));
        match rename_to_free(path, &aside) {
            Ok(()) => {
                sync_folder_of(path)?;
                return Ok(Some(aside));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Renames unless the new name is taken (renameat2(2)).
pub(super) fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A filesystem that cannot: a hard link never replaces either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stead_gives_its_temporaries_are_swept() {
        assert!(is_abandoned_temporary(".handles.json.tmp.12-17f3a-0"));
        for other in [
            "handles.json",
            "handles.json.tmp.12-17f3a-0",
            ".handles.json.tmp.12",
            ".handles.json.tmp.12-x-0",
            ".handles.json.tmp.12-1-",
            ".tmp.1-1-1",
            ".handles.json.swp",
            &temporary_name("handles.json"),
        ] {
            assert!(!is_abandoned_temporary(other), "{other}");
        }
    }
}
