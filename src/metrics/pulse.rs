//! Whether the control loop still takes turns. It is asked only when somebody wants to know: at rest nothing beats.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// The pulse of one control loop.
#[derive(Debug)]
pub struct Pulse {
    /// Turns that it took while somebody asked.
    turns: watch::Sender<u64>,
    asking: AtomicUsize,
    asked: Notify,
    is_ending: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        let (asking, asked, is_ending) = (AtomicUsize::new(0), Notify::new(), AtomicBool::new(false));
        Self { turns: watch::Sender::new(0), asking, asked, is_ending }
    }
}

impl Pulse {
    /// The loop takes a turn.
    pub fn beat(&self) {
        if self.asking.load(Ordering::SeqCst) > 0 {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// Resolves when somebody asks: a reason for the loop to take a turn. May be dropped and called again.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Beats until `task` is done, which is no turn of the loop's and may take as long as it likes, as long as it only waits.
    pub async fn during<T>(&self, task: impl Future<Output = T>) -> T {
        tokio::pin!(task);
        loop {
            tokio::select! {
                biased;
                done = &mut task => return done,
                () = self.asked() => self.beat(),
            }
        }
    }

    /// The loop is about to end: it takes no more turns.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    /// Whether the loop is about to end.
    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }

    /// Whether the loop takes a turn within `bound` of being asked to. Which event it takes it for does not matter.
    pub async fn is_felt_within(&self, bound: Duration) -> bool {
        let mut turns = self.turns.subscribe();
        let _asking = Asking::begin(&self.asking);
        self.asked.notify_one();
        matches!(timeout(bound, turns.changed()).await, Ok(Ok(())))
    }
}

/// Somebody asks, until this is dropped.
struct Asking<'a>(&'a AtomicUsize);

impl<'a> Asking<'a> {
    fn begin(asking: &'a AtomicUsize) -> Self {
        asking.fetch_add(1, Ordering::SeqCst);
        Self(asking)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
