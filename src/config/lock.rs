//! STATE/lock: one actor on a state at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::names::Layout;

/// How long a held lock is tried for: a `--once` that is just ending should not fail the next one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// The most that is read of who holds it.
const HOLDER_MAX: u64 = 200;

/// Holds the flock of STATE/lock until it is dropped or the process ends, whatever way it ends.
///
/// A `std::fs::File` and no wrapper that unlocks on drop: closing the file is what frees it.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another stead acts on this state.
    #[error("{} works on {} already", holder.as_deref().unwrap_or("another stead"), state_dir.display())]
    Held {
        /// Who, if it said so: its command and pid.
        holder: Option<String>,
        /// The state.
        state_dir: PathBuf,
    },
    /// The file could not be opened, locked or written.
    #[error("could not lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl StateLock {
    /// Takes the lock for `what` (a command's name), trying for a second.
    pub fn take(layout: &Layout, what: &str) -> Result<Self, LockError> {
        Self::take_within(layout, what, PATIENCE)
    }

    /// Takes the lock for `what`, trying for so long; once at least.
    pub fn take_within(layout: &Layout, what: &str, patience: Duration) -> Result<Self, LockError> {
        let path = layout.lock();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed)?;
        let end = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        holder: read_holder(&mut file),
                        state_dir: layout.state_dir.clone(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        // Only for the message that the next one gets: a full disk is a reason to act, not to give up.
        if let Err(error) = write_holder(&mut file, what) {
            tracing::debug!("{} does not say who holds it: {error}", path.display());
        }
        Ok(Self { _file: file })
    }
}

fn write_holder(file: &mut File, what: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{} {what}", std::process::id())
}

/// `stead run (pid 123)` from a line `123 run`; `None` if the holder has not written it yet.
fn read_holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(HOLDER_MAX).read_to_string(&mut text).ok()?;
    let (pid, what) = text.lines().next()?.split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    what.chars().all(|c| !c.is_control()).then(|| format!("stead {what} (pid {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::StateId;
    use std::path::Path;

    fn layout(state: &Path) -> Layout {
        Layout::new(StateId::derive("m", state), state.to_owned(), Path::new("/run/stead")).unwrap()
    }

    #[test]
    fn a_second_actor_is_told_who_the_first_is() {
        let state = tempfile::tempdir().unwrap();
        let layout = layout(state.path());
        let _first = StateLock::take(&layout, "run").unwrap();
        let error = StateLock::take_within(&layout, "reconcile", Duration::ZERO).unwrap_err();
        let expected = format!("stead run (pid {}) works on {} already", std::process::id(), state.path().display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_lock_that_was_dropped_can_be_taken_again() {
        let state = tempfile::tempdir().unwrap();
        let layout = layout(state.path());
        drop(StateLock::take(&layout, "run").unwrap());
        StateLock::take_within(&layout, "reconcile", Duration::ZERO).unwrap();
        assert_eq!(std::fs::read_to_string(layout.lock()).unwrap(), format!("{} reconcile\n", std::process::id()));
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let state = tempfile::tempdir().unwrap();
        let layout = layout(state.path());
        std::os::unix::fs::symlink("/tmp/elsewhere", layout.lock()).unwrap();
        assert!(matches!(StateLock::take(&layout, "run"), Err(LockError::Io { .. })));
    }

    #[test]
    fn a_wait_for_the_lock_ends_when_it_is_free_or_its_time_is_over() {
        let state = tempfile::tempdir().unwrap();
        let layout = layout(state.path());
        let first = StateLock::take(&layout, "run").unwrap();
        let began = Instant::now();
        assert!(matches!(StateLock::take(&layout, "restart"), Err(LockError::Held { .. })));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE * 10);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| StateLock::take_within(&layout, "restart", Duration::from_secs(60)));
            drop(first);
            waiter.join().unwrap().unwrap();
        });
        // Neither of those who waited keeps anything.
        StateLock::take_within(&layout, "reconcile", Duration::ZERO).unwrap();
    }
}
