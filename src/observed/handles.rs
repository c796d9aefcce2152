//! The handle cache: what this stead knows in memory of the VMMs it has proven or spawned.
//!
//! handles.json is written before anything is put here, so that a crash between leaves the disk ahead of memory: the
//! direction from which the next stead recovers.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::VmmProcess;
use crate::names::{Incarnation, VmName};

/// What is known in memory, VM by VM.
#[derive(Debug, Clone, Default)]
pub struct HandleCache(Arc<Mutex<BTreeMap<VmName, Cached>>>);

/// What is known in memory of one VM.
#[derive(Debug, Clone, Default)]
pub struct Cached {
    /// The process proven to be its VMM, or the last that was.
    pub process: Option<VmmProcess>,
    /// Why its last start failed, and which life that was.
    pub start_error: Option<(Incarnation, String)>,
    /// The removal of its taps, while it is under way or nobody has taken in how it ended.
    pub tap_removal: Option<TapRemoval>,
}

/// A removal of a VM's taps, which the host does in batches of many VMs' at its own pace.
#[derive(Debug, Clone)]
pub enum TapRemoval {
    /// It was asked for.
    UnderWay,
    /// It ended: the taps that are still there, and why.
    Ended(Vec<(String, Arc<io::Error>)>),
}

impl HandleCache {
    /// What is known of this VM.
    pub fn get(&self, name: &VmName) -> Cached {
        self.lock().get(name).cloned().unwrap_or_default()
    }

    /// Remembers a proven process.
    pub fn set_process(&self, name: &VmName, process: VmmProcess) {
        self.lock().entry(name.clone()).or_default().process = Some(process);
    }

    /// Remembers why a start failed, until the ledger says so.
    pub fn set_start_error(&self, name: &VmName, incarnation: Incarnation, error: String) {
        self.lock().entry(name.clone()).or_default().start_error = Some((incarnation, error));
    }

    /// Notes that the removal of a VM's taps was asked for.
    pub fn begin_tap_removal(&self, name: &VmName) {
        self.lock().entry(name.clone()).or_default().tap_removal = Some(TapRemoval::UnderWay);
    }

    /// Notes how it ended. A VM that was forgotten meanwhile stays so.
    pub fn end_tap_removal(&self, name: &VmName, failures: Vec<(String, Arc<io::Error>)>) {
        if let Some(cached) = self.lock().get_mut(name) {
            cached.tap_removal = Some(TapRemoval::Ended(failures));
        }
    }

    /// How far it has come. What is told of its end is told once.
    pub fn tap_removal(&self, name: &VmName) -> Option<TapRemoval> {
        let mut all = self.lock();
        let removal = &mut all.get_mut(name)?.tap_removal;
        match removal {
            // In one step with the look: its end may come at any moment.
            Some(TapRemoval::UnderWay) => Some(TapRemoval::UnderWay),
            Some(TapRemoval::Ended(_)) | None => removal.take(),
        }
    }

    /// Forgets a VM whose handles are gone.
    pub fn forget(&self, name: &VmName) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmName, Cached>> {
        // Each use leaves the map whole, so a panic elsewhere while it was locked did not break it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_tap_removal_is_told_once_and_never_lost() {
        let (cache, name): (HandleCache, VmName) = (HandleCache::default(), "web".parse().unwrap());
        assert!(cache.tap_removal(&name).is_none());
        cache.begin_tap_removal(&name);
        assert!(matches!(cache.tap_removal(&name), Some(TapRemoval::UnderWay)));
        cache.end_tap_removal(&name, Vec::new());
        assert!(matches!(cache.tap_removal(&name), Some(TapRemoval::Ended(failures)) if failures.is_empty()));
        assert!(cache.tap_removal(&name).is_none());

        cache.begin_tap_removal(&name);
        cache.forget(&name);
        cache.end_tap_removal(&name, Vec::new());
        assert!(cache.tap_removal(&name).is_none(), "a VM that is gone is not remembered for it");
    }
}
