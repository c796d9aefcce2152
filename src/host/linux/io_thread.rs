//! One thread that waits: for pidfds and for netlink.
//!
//! Calls of [`super::LinuxHost`] are synchronous and may come from anywhere, also from a thread that already drives an
//! async runtime, where starting another one panics. So everything async runs on this thread's own small runtime, and
//! the caller waits on a channel.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// How much longer than its bound a future may take to say that it is over, on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// The thread, started at its first use, ended with its owner.
///
/// It lives in the network namespace of the thread that used it first (setns(2)), as netlink sockets do.
#[derive(Default)]
pub(super) struct IoThread(Mutex<Option<Running>>);

struct Running {
    handle: Handle,
    /// Dropped with the host, which ends the thread.
    _stop: oneshot::Sender<()>,
}

impl IoThread {
    /// Its runtime.
    pub(super) fn handle(&self) -> io::Result<Handle> {
        // Each use leaves the slot whole, so a panic elsewhere while it was locked did not break it.
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*slot {
            return Ok(running.handle.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("stead-io".to_owned()).spawn(move || runtime.block_on(stopped))?;
        *slot = Some(Running { handle: handle.clone(), _stop: stop });
        Ok(handle)
    }

    /// Runs `future` there and waits for it, but no longer than `bound`: then `TimedOut`.
    pub(super) fn run<T, F>(&self, bound: Duration, future: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.handle()?.spawn(async move {
            let result = tokio::time::timeout(bound, future).await;
            // Nobody waits any more if this is later than the slack.
            let _ = sender.send(result);
        });
        match receiver.recv_timeout(bound + SLACK) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) | Err(mpsc::RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::Error::other("the task ended without a result")),
        }
    }
}
