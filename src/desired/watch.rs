//! The manifest folder, watched: which files changed, and which somebody is still writing.
//!
//! Events are hints; content decides, and whoever reads a path that was named decides what it is. A file that was closed
//! after writing, or renamed, is named at once. One that is only being written, or was just made, is named when it is closed
//! or quiet, since half a manifest may be a sound one. An overflow, an error or a replaced folder names everything, so that
//! no lost event stays lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::FileId;
use super::load::QUIET;

/// How long a file that is open for writing may be silent. Its close is told; this is for when that is lost.
const WRITING: Duration = Duration::from_secs(10);
/// How often a folder that cannot be watched, since it is missing, is looked for.
const LOOK_FOR_ROOT: Duration = Duration::from_secs(1);
/// Files that changed at once that are told apart; beyond, everything may have.
const CHANGED_MAX: usize = 4096;
/// Files being written at once that are told apart: as many as a source may have.
const UNSETTLED_MAX: usize = 100_000;

/// A watch on one folder. Each clone is the same watch.
#[derive(Clone)]
pub struct Watch {
    root: PathBuf,
    armed: Arc<Mutex<Option<Armed>>>,
    pending: Arc<Pending>,
}

/// The kernel tells of what happens in this folder.
struct Armed {
    watcher: RecommendedWatcher,
    /// The folder by its real path.
    root: PathBuf,
    id: FileId,
}

/// What changed in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Anything may have changed.
    pub everything: bool,
    /// Files and folders that changed, by their paths below the folder.
    pub files: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Pending {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    change: Change,
    /// The folder itself may be another one.
    check_root: bool,
    /// How long each file that somebody may be writing is left alone, by its path below the folder.
    unsettled: BTreeMap<PathBuf, Silence>,
}

/// How long nothing more has to be heard of a file for it to be whole.
struct Silence {
    wait: Duration,
    /// When that is over. Set by whoever waits: event by event it would be moved without anybody waiting for it.
    until: Option<Instant>,
}

impl Watch {
    /// Watches `root`; if it cannot be watched yet, it is looked for until it can.
    pub fn start(root: PathBuf) -> Self {
        let watch = Self { root, armed: Arc::default(), pending: Arc::default() };
        watch.arm(&mut lock(&watch.armed));
        watch
    }

    fn arm(&self, armed: &mut Option<Armed>) {
        *armed = None;
        let Some((root, id)) = real_folder(&self.root) else { return };
        let (pending, below) = (Arc::clone(&self.pending), root.clone());
        let handler = move |event: notify::Result<Event>| pending.take_in(&below, event);
        // Nothing is read below a link to a folder, and what is behind it may be a whole file system.
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(handler, config).and_then(|mut watcher| {
            watcher.watch(&root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => *armed = Some(Armed { watcher, root, id }),
            Err(error) => self.tell_of_failure(&error),
        }
    }

    fn tell_of_failure(&self, error: &notify::Error) {
        tracing::warn!(folder = %self.root.display(), "cannot watch it, so it is listed every second: {error}");
    }

    /// Makes the watch anew if the folder at its path is another one. An unmount or a mount over it raises no event, so
    /// this is asked at each full pass too. True when it was another one.
    pub fn rearm_if_replaced(&self) -> bool {
        let mut armed = lock(&self.armed);
        let watched = armed.as_ref().map(|armed| (&armed.root, armed.id));
        let found = real_folder(&self.root);
        if watched == found.as_ref().map(|(root, id)| (root, *id)) {
            return false;
        }
        self.arm(&mut armed);
        true
    }

    /// Sees to it that every sub-folder there is now is watched. To be called before everything is listed: a folder that was
    /// just made or moved is watched a moment after that was told, and what was put into it by then raised no event.
    pub fn cover(&self) {
        if self.rearm_if_replaced() {
            return;
        }
        let mut armed = lock(&self.armed);
        let Some(Armed { watcher, root, .. }) = armed.as_mut() else { return };
        if let Err(error) = watcher.watch(root, RecursiveMode::Recursive) {
            self.tell_of_failure(&error);
            *armed = None;
        }
    }

    /// Files that somebody may be writing, by their paths below the folder: whoever reads them reads half of them.
    pub fn unsettled(&self) -> BTreeSet<PathBuf> {
        self.pending.lock().unsettled.keys().cloned().collect()
    }

    /// Names these files when nothing was heard of them for a while: they may be being written.
    pub fn look_again(&self, files: &BTreeSet<PathBuf>) {
        let mut state = self.pending.lock();
        for file in files {
            state.leave_alone(file.clone(), QUIET);
        }
    }

    /// Resolves when something changed. May be dropped and called again without losing anything.
    pub async fn next(&self) -> Change {
        loop {
            let changed = self.pending.changed.notified();
            let check_root = std::mem::take(&mut self.pending.lock().check_root);
            let is_armed = || lock(&self.armed).is_some();
            let replaced = (check_root || !is_armed()) && self.rearm_if_replaced();
            let due = {
                let mut state = self.pending.lock();
                state.change.everything |= replaced;
                state.take_due(Instant::now())
            };
            let wait = match due {
                Ok(change) => return change,
                Err(wait) if is_armed() => wait,
                Err(wait) => Some(wait.unwrap_or(LOOK_FOR_ROOT).min(LOOK_FOR_ROOT)),
            };
            match wait {
                Some(wait) => drop(tokio::time::timeout(wait, changed).await),
                None => changed.await,
            }
        }
    }
}

impl State {
    /// What changed, or how long until something that is being written is whole.
    fn take_due(&mut self, now: Instant) -> Result<Change, Option<Duration>> {
        let mut next = None;
        let mut quiet = Vec::new();
        for (path, silence) in &mut self.unsettled {
            let until = *silence.until.get_or_insert_with(|| now + silence.wait);
            if until <= now {
                quiet.push(path.clone());
            } else {
                next = Some(next.map_or(until, |next: Instant| next.min(until)));
            }
        }
        for path in quiet {
            self.settle(path);
        }
        if self.change == Change::default() {
            return Err(next.map(|until| until.saturating_duration_since(now)));
        }
        Ok(std::mem::take(&mut self.change))
    }

    /// It is whole, or gone.
    fn settle(&mut self, path: PathBuf) {
        self.unsettled.remove(&path);
        if self.change.files.len() < CHANGED_MAX {
            self.change.files.insert(path);
        } else {
            self.change = Change { everything: true, files: BTreeSet::new() };
        }
    }

    /// Somebody may be writing it. True when that is news.
    fn leave_alone(&mut self, path: PathBuf, wait: Duration) -> bool {
        if let Some(known) = self.unsettled.get_mut(&path) {
            *known = Silence { wait: wait.max(known.wait), until: None };
            return false;
        }
        if self.unsettled.len() == UNSETTLED_MAX {
            self.change.everything = true;
            return true;
        }
        self.unsettled.insert(path, Silence { wait, until: None });
        true
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn take_in(&self, root: &Path, event: notify::Result<Event>) {
        let mut state = self.lock();
        if absorb(&mut state, root, event) {
            drop(state);
            self.changed.notify_one();
        }
    }
}

/// Takes in one event; true when somebody has to be told now.
fn absorb(state: &mut State, root: &Path, event: notify::Result<Event>) -> bool {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        // An overflow or an error: anything may have happened. Who was writing may be still, and if the end of that was lost,
        // it will be quiet.
        Ok(_) | Err(_) => {
            state.change.everything = true;
            state.check_root = true;
            return true;
        }
    };
    // Our own reads raise these.
    if matches!(event.kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write)) {
        return false;
    }
    let mut is_news = false;
    for path in event.paths {
        let below = match path.strip_prefix(root) {
            Ok(below) if below != Path::new("") => below.to_owned(),
            // The folder itself.
            _ => {
                state.change.everything = true;
                state.check_root = true;
                is_news = true;
                continue;
            }
        };
        is_news |= match event.kind {
            // Written, moved, gone, or a folder.
            EventKind::Access(_)
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_)
            | EventKind::Create(CreateKind::Folder) => {
                state.settle(below);
                true
            }
            // Whoever writes will close it, which is told.
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => state.leave_alone(below, WRITING),
            // Whoever linked it in, or changed who may read it, will not. Whoever made it may not have begun to write.
            EventKind::Create(_) | EventKind::Modify(_) => state.leave_alone(below, QUIET),
            EventKind::Any | EventKind::Other => {
                state.change.everything = true;
                true
            }
        };
    }
    is_news
}

fn real_folder(path: &Path) -> Option<(PathBuf, FileId)> {
    let real = path.canonicalize().ok()?;
    let meta = real.metadata().ok().filter(std::fs::Metadata::is_dir)?;
    Some((real, FileId::of(&meta)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_overflow_of_the_kernels_queue_leads_to_a_full_listing() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::start(folder.path().to_owned());
        let queue: usize =
            std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        {
            // Whoever reads the events waits for this, and the kernel's queue fills up (inotify(7)).
            let _state = watch.pending.lock();
            for number in 0..queue {
                let file = folder.path().join(format!("{}.txt", number % 2));
                OpenOptions::new().create(true).append(true).open(file).unwrap();
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let overflow = async { while !watch.next().await.everything {} };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), overflow).await }).unwrap();
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test does by hand what users do")]
    fn nothing_behind_a_link_is_watched() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(outside.path().join("deep")).unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        let watch = Watch::start(folder.path().to_owned());
        std::fs::write(outside.path().join("deep/web.yaml"), "").unwrap();
        std::fs::write(outside.path().join("web.yaml"), "").unwrap();
        // Events come in their order: when this one is there, those are, if there are any.
        std::fs::write(folder.path().join("last.yaml"), "").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut named = BTreeSet::new();
        let last = async {
            while !named.contains(Path::new("last.yaml")) {
                named.extend(watch.next().await.files);
            }
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), last).await }).unwrap();
        assert_eq!(named, BTreeSet::from([PathBuf::from("last.yaml")]));
    }
}
