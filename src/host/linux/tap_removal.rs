//! Taps are removed in batches.

use super::io_thread::IoThread;
use crate::host::devices::{TapRemoval, TapsRemoved};

/// Collects the taps that are asked to be removed.
#[derive(Debug, Default)]
pub(super) struct TapRemover {}

#[allow(clippy::unused_self)]
impl TapRemover {
    pub(super) fn remove(&self, _io: &IoThread, _taps: Vec<TapRemoval>, _done: TapsRemoved) {}
}
