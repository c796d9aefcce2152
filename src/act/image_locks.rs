//! One worker at a time on an image: who prepares, copies, attaches or frees one holds its lock.
//!
//! The locks are this process's own. Another stead works on another state (STATE/lock), and its loops over the same image
//! carry another tag, so that neither frees what the other uses.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::desired::FileId;

/// The images that are worked on.
#[derive(Debug, Default)]
pub struct ImageLocks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeSet<FileId>,
    is_closed: bool,
}

/// Why an image's lock was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageLockError {
    /// stead is stopping.
    #[error("stead is stopping")]
    Cancelled,
    /// Another VM's worker held it all the time.
    #[error("another VM's worker has been busy with this image for {0:?}")]
    TimedOut(Duration),
}

impl ImageLocks {
    /// Takes an image's lock, waiting for at most `bound`.
    pub fn lock(&self, image: FileId, bound: Duration) -> Result<ImageGuard<'_>, ImageLockError> {
        let deadline = Instant::now() + bound;
        let mut state = self.state();
        loop {
            if state.is_closed {
                return Err(ImageLockError::Cancelled);
            }
            if state.held.insert(image) {
                return Ok(ImageGuard { locks: self, image });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ImageLockError::TimedOut(bound));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends every wait, now and from now on: stead is stopping. Locks that are held stay so until they are let go.
    pub fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each use leaves the state whole, so a panic elsewhere while it was locked did not break it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image's lock; let go of when dropped.
#[derive(Debug)]
pub struct ImageGuard<'a> {
    locks: &'a ImageLocks,
    image: FileId,
}

impl Drop for ImageGuard<'_> {
    fn drop(&mut self) {
        self.locks.state().held.remove(&self.image);
        self.locks.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: FileId = FileId { device: 1, inode: 2 };
    const OTHER: FileId = FileId { device: 1, inode: 3 };
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_image_has_one_worker_and_another_image_another() {
        let locks = ImageLocks::default();
        let first = locks.lock(IMAGE, LONG).unwrap();
        assert!(locks.lock(OTHER, LONG).is_ok());
        let bound = Duration::from_millis(1);
        assert_eq!(locks.lock(IMAGE, bound).unwrap_err(), ImageLockError::TimedOut(bound));
        drop(first);
        assert!(locks.lock(IMAGE, bound).is_ok());
    }

    #[test]
    fn a_waiting_worker_goes_on_when_the_other_is_done() {
        let locks = ImageLocks::default();
        std::thread::scope(|scope| {
            let first = locks.lock(IMAGE, LONG).unwrap();
            let second = scope.spawn(|| locks.lock(IMAGE, LONG).map(drop));
            drop(first);
            assert_eq!(second.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn a_peer_that_waits_for_a_lock_can_be_cancelled() {
        let locks = ImageLocks::default();
        std::thread::scope(|scope| {
            let _held = locks.lock(IMAGE, LONG).unwrap();
            let waiter = scope.spawn(|| locks.lock(IMAGE, LONG).map(drop));
            locks.close();
            // Before the holder lets go.
            assert_eq!(waiter.join().unwrap(), Err(ImageLockError::Cancelled));
        });
        assert_eq!(locks.lock(OTHER, LONG).unwrap_err(), ImageLockError::Cancelled);
    }

    /// The holder lets go, the waiter begins to wait and stead stops in any order and at once: whoever waited has the lock or
    /// was told, and it is free when all are done.
    #[test]
    fn a_wait_that_is_cancelled_at_any_moment_leaves_no_lock_behind() {
        let mut ends = [0, 0];
        for round in 0..2_000_u32 {
            let locks = ImageLocks::default();
            let held = locks.lock(IMAGE, LONG).unwrap();
            let turns = |count: u32| (0..count).for_each(|_| std::hint::spin_loop());
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| locks.lock(IMAGE, LONG).map(drop));
                let closer = scope.spawn(|| {
                    turns(round % 37 * 50);
                    locks.close();
                });
                turns(round % 41 * 50);
                drop(held);
                match waiter.join().unwrap() {
                    Ok(()) => ends[0] += 1,
                    Err(error) => {
                        assert_eq!(error, ImageLockError::Cancelled);
                        ends[1] += 1;
                    }
                }
                closer.join().unwrap();
            });
            assert!(locks.state().held.is_empty(), "round {round}");
        }
        println!("{} went on, {} were cancelled", ends[0], ends[1]);
    }

    #[test]
    fn a_wait_that_times_out_leaves_the_lock_to_its_holder_and_then_to_the_next() {
        let locks = ImageLocks::default();
        let held = locks.lock(IMAGE, LONG).unwrap();
        for bound in [Duration::ZERO, Duration::from_millis(1)] {
            assert_eq!(locks.lock(IMAGE, bound).unwrap_err(), ImageLockError::TimedOut(bound));
            assert_eq!(locks.state().held.len(), 1);
        }
        drop(held);
        // It is free: also whoever may not wait at all gets it.
        assert!(locks.lock(IMAGE, Duration::ZERO).is_ok());
        assert!(locks.state().held.is_empty());
    }
}
