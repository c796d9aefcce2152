//! Many runs that know nothing of each other, on all cores.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Does the work for each item, on as many threads as there are cores. When one panics the others stop after the item they
/// are at, and its panic goes on here. The results are in no order.
pub fn for_each<T: Send, R: Send>(
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let items = Mutex::new(items.into_iter());
    let is_over = AtomicBool::new(false);
    let take = || if is_over.load(Ordering::Relaxed) { None } else { items.lock().unwrap().next() };
    let until_empty = || {
        let mut results = Vec::new();
        while let Some(item) = take() {
            match catch_unwind(AssertUnwindSafe(|| work(item))) {
                Ok(result) => results.push(result),
                Err(panic) => {
                    is_over.store(true, Ordering::Relaxed);
                    return Err(panic);
                }
            }
        }
        Ok(results)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(until_empty)).collect();
        threads.into_iter().map(|thread| thread.join().expect("its panics are caught")).collect()
    });
    results.into_iter().flat_map(|result| result.unwrap_or_else(|panic| resume_unwind(panic))).collect()
}
