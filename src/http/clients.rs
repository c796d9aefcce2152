//! The clients that a server has at once.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{AbortHandle, JoinSet};

/// Clients served at once.
pub(super) const CLIENTS_MAX: usize = 16;

/// Those that are being served.
#[derive(Default)]
pub(super) struct Clients {
    tasks: JoinSet<()>,
    /// The first one came first.
    served: VecDeque<Served>,
}

struct Served {
    task: AbortHandle,
    /// Whether its whole request is here.
    is_heard: Arc<AtomicBool>,
}

impl Clients {
    /// Sees that one more can be served. For it the one is dropped that has been saying nothing for longest, so that idle ones
    /// shut nobody out; those whose request is here are waited for.
    pub(super) async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.served.retain(|served| !served.task.is_finished());
            if self.served.len() < CLIENTS_MAX {
                return;
            }
            match self.served.iter().position(|served| !served.is_heard.load(Ordering::Relaxed)) {
                Some(idle) => {
                    if let Some(served) = self.served.remove(idle) {
                        served.task.abort();
                    }
                }
                None => drop(self.tasks.join_next().await),
            }
        }
    }

    /// Serves one more.
    pub(super) fn add(&mut self, is_heard: Arc<AtomicBool>, serve: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(serve);
        self.served.push_back(Served { task, is_heard });
    }
}
