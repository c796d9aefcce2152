//! Something happened to the files of a state: looked at again at most once a second, and without polling in between.

use std::path::Path;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::view::Looker;
use super::{CliError, Exit};

/// The shortest time between two looks: a host full of starting VMs changes all the time.
const PAUSE: Duration = Duration::from_secs(1);
/// How often to look without a sign of change: a VMM's death changes no file while no stead runs to notice it.
const NET: Duration = Duration::from_secs(10);

/// Wakes up for changes of files. A burst of them is one wakeup.
pub(super) struct Changes {
    watcher: RecommendedWatcher,
    signs: mpsc::Receiver<()>,
}

impl Changes {
    /// Watches nothing yet; only files that `wanted` lets through will count.
    pub(super) fn new(wanted: impl Fn(&Path) -> bool + Send + 'static) -> Result<Self, CliError> {
        let (sign, signs) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading raises Access events. An error or an overflow has no path and may hide anything.
            let counts = event.map_or(true, |event| {
                !matches!(event.kind, EventKind::Access(_))
                    && (event.paths.is_empty() || event.paths.iter().any(|path| wanted(path)))
            });
            if counts {
                // Full means that somebody will look soon anyway.
                let _ = sign.try_send(());
            }
        })?;
        Ok(Self { watcher, signs })
    }

    /// Watches one more folder.
    pub(super) fn add(&mut self, folder: &Path, mode: RecursiveMode) -> Result<(), CliError> {
        Ok(self.watcher.watch(folder, mode)?)
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) {
        // The sender lives in the watcher, which is here.
        let _ = self.signs.recv().await;
    }

    /// Waits for a change, but not longer than `bound`.
    pub(super) async fn wait(&mut self, bound: Duration) {
        let _ = timeout(bound, self.signs.recv()).await;
    }
}

/// Runs `task` until it ends, or until SIGINT or SIGTERM ends it in good order.
pub(super) fn until_interrupted(task: impl Future<Output = Result<(), CliError>>) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("start the runtime", source))?;
    runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(|source| CliError::io("listen to signals", source));
        let (mut interrupted, mut terminated) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        tokio::select! {
            ended = task => ended?,
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok(Exit::Converged)
    })
}

/// Calls `show` after each change of a VM's status, until interrupted.
pub(super) fn each_change(
    mut looker: Looker,
    mut show: impl FnMut(&mut Looker) -> Result<(), CliError>,
) -> Result<Exit, CliError> {
    until_interrupted(async move {
        let mut changes = Changes::new(|path| path.file_name().is_some_and(|name| name == "status.json"))?;
        let mut watched = false;
        loop {
            let vms = looker.layout.vms();
            // A state that is not there yet is looked for with every net.
            if !watched && vms.is_dir() {
                changes.add(&vms, RecursiveMode::Recursive)?;
                watched = true;
            }
            let next = Instant::now() + PAUSE;
            show(&mut looker)?;
            changes.wait(NET).await;
            sleep_until(next).await;
        }
    })
}
