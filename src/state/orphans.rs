//! STATE/orphans.json: since when each kernel object is known that nothing accounts for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Deadline;

/// What the collector remembers, so that an orphan ages across restarts and across runs by cron.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanState {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// When each was first seen, by kind and tag.
    #[serde(default)]
    pub seen: BTreeMap<String, Deadline>,
}
