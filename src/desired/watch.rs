//! The manifest folder, watched: when to list it again, and which files somebody is still writing.
//!
//! Events are hints; content decides. A file that was closed after writing, or renamed, is taken at once. One that is only
//! being written, or was just made, is left alone until it is closed or quiet, since half a manifest may be a sound one. An
//! overflow, an error or a replaced folder leads to a full listing, so that no lost event stays lost.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::FileId;
use super::load::QUIET;

/// How long a file that is open for writing may be silent. Its close is told; this is for when that is lost.
const WRITING: Duration = Duration::from_secs(10);
/// How often a folder that cannot be watched, since it is missing, is looked for.
const LOOK_FOR_ROOT: Duration = Duration::from_secs(1);
/// Files being written at once that are told apart; beyond, everything is listed when all is quiet.
const UNSETTLED_MAX: usize = 4096;

/// A watch on one folder.
pub struct Watch {
    root: PathBuf,
    armed: Option<(RecommendedWatcher, FileId)>,
    pending: Arc<Pending>,
}

/// A listing is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Relist {
    /// Files that somebody is writing, by full path.
    pub unsettled: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Pending {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// A listing is due now.
    now: bool,
    /// The folder itself may be another one.
    check_root: bool,
    /// Until when each file that somebody may be writing is left alone, if nothing more is heard of it.
    unsettled: BTreeMap<PathBuf, Instant>,
}

impl Watch {
    /// Watches `root`; if it cannot be watched yet, it is looked for until it can.
    pub fn start(root: PathBuf) -> Self {
        let mut watch = Self { root, armed: None, pending: Arc::default() };
        watch.arm();
        watch
    }

    fn arm(&mut self) {
        self.armed = None;
        let Some(id) = folder_id(&self.root) else { return };
        let pending = Arc::clone(&self.pending);
        let root = self.root.clone();
        let handler = move |event: notify::Result<Event>| pending.take_in(&root, event);
        let watcher = RecommendedWatcher::new(handler, notify::Config::default()).and_then(|mut watcher| {
            watcher.watch(&self.root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.armed = Some((watcher, id)),
            Err(error) => {
                tracing::warn!(folder = %self.root.display(), "cannot watch it, so it is listed every second: {error}");
            }
        }
    }

    /// Makes the watch anew if the folder at its path is another one. An unmount or a mount over it raises no event, so
    /// this is asked at each full pass too. True when it was another one.
    pub fn rearm_if_replaced(&mut self) -> bool {
        let watched = self.armed.as_ref().map(|(_, id)| *id);
        if watched == folder_id(&self.root) {
            return false;
        }
        self.arm();
        true
    }

    /// Resolves when a listing is due. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Relist {
        loop {
            let due = {
                let mut state = self.pending.lock();
                let check_root = std::mem::take(&mut state.check_root);
                drop(state);
                let replaced = (check_root || self.armed.is_none()) && self.rearm_if_replaced();
                let mut state = self.pending.lock();
                state.now |= replaced;
                state.take_due(Instant::now())
            };
            match due {
                Ok(relist) => return relist,
                Err(wait) => {
                    let wait = if self.armed.is_none() {
                        Some(wait.unwrap_or(LOOK_FOR_ROOT).min(LOOK_FOR_ROOT))
                    } else {
                        wait
                    };
                    let changed = self.pending.changed.notified();
                    match wait {
                        Some(wait) => {
                            let _ = tokio::time::timeout(wait, changed).await;
                        }
                        None => changed.await,
                    }
                }
            }
        }
    }
}

impl State {
    /// The listing that is due, or how long until one may be.
    fn take_due(&mut self, now: Instant) -> Result<Relist, Option<Duration>> {
        let before = self.unsettled.len();
        self.unsettled.retain(|_, until| *until > now);
        if self.now || self.unsettled.len() < before {
            self.now = false;
            return Ok(Relist { unsettled: self.unsettled.keys().cloned().collect() });
        }
        Err(self.unsettled.values().min().map(|until| until.saturating_duration_since(now)))
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, root: &Path, event: notify::Result<Event>) {
        let mut state = self.lock();
        if absorb(&mut state, root, event, Instant::now()) {
            drop(state);
            self.changed.notify_one();
        }
    }
}

/// Takes in one event; true when it means anything.
fn absorb(state: &mut State, root: &Path, event: notify::Result<Event>, now: Instant) -> bool {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        // An overflow or an error: anything may have happened.
        Ok(_) | Err(_) => {
            state.unsettled.clear();
            state.now = true;
            state.check_root = true;
            return true;
        }
    };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
            if !event.paths.iter().any(|path| matters(path)) {
                return false;
            }
            for path in &event.paths {
                state.unsettled.remove(path);
            }
            state.now = true;
        }
        // Our own reads raise these.
        EventKind::Access(_) => return false,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => {
            for path in &event.paths {
                state.unsettled.remove(path);
            }
            state.now = true;
            state.check_root |= event.paths.iter().any(|path| path == root);
        }
        // Being written, or just made: a new folder is listed again when it is quiet, since what was put into it before it was
        // watched raised no event.
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {
            // Whoever writes will close it, which is told; whoever linked it in will not.
            let is_write = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any));
            let until = now + if is_write { WRITING } else { QUIET };
            let paths = event.paths.into_iter().filter(|path| matters(path) || path.extension().is_none());
            let before = state.unsettled.len();
            let mut any = false;
            for path in paths {
                any = true;
                if state.unsettled.len() < UNSETTLED_MAX || state.unsettled.contains_key(&path) {
                    let known = state.unsettled.entry(path).or_insert(until);
                    *known = until.max(*known);
                }
            }
            // Somebody waits already for the first of them to become quiet.
            return any && state.unsettled.len() > before;
        }
    }
    true
}

/// Whether a file of this name is a manifest.
fn matters(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

fn folder_id(path: &Path) -> Option<FileId> {
    let meta = path.metadata().ok().filter(std::fs::Metadata::is_dir)?;
    Some(FileId { device: meta.dev(), inode: meta.ino() })
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn an_overflow_of_the_kernels_queue_leads_to_a_full_listing() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(folder.path().to_owned());
        let queue: usize =
            std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        let pending = Arc::clone(&watch.pending);
        {
            // Whoever reads the events waits for this, and the kernel's queue fills up (inotify(7)).
            let _state = pending.lock();
            for number in 0..queue {
                // No manifests: no event of theirs leads to a listing.
                let file = folder.path().join(format!("{}.txt", number % 2));
                OpenOptions::new().create(true).append(true).open(file).unwrap();
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let relist = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), watch.next()).await });
        assert_eq!(relist.unwrap(), Relist { unsettled: BTreeSet::new() });
    }
}
