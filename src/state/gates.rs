//! STATE/gates.json: the recent deletions that the prune cap counts, and approvals not yet used.

use serde::{Deserialize, Serialize};

use crate::names::VmName;
use crate::time::Deadline;

/// What the gates remember between passes and across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateState {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// Deletions by absence that were begun within the window.
    #[serde(default)]
    pub deletions: Vec<Deletion>,
    /// The plan that was approved, until it is carried out or changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

impl GateState {
    /// The deletions that go on for as long as their VMs are absent.
    pub fn let_through(&self) -> impl Iterator<Item = &Deletion> {
        self.deletions.iter().filter(|deletion| !deletion.over)
    }
}

/// One deletion by absence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// The VM deleted.
    pub name: VmName,
    /// When it was let through.
    pub at: Deadline,
    /// How many VMs there were before it.
    pub of: usize,
    /// Whether it was declared again since. The cap counts it still, and to delete it again is another deletion.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
}

/// `stead approve DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The digest of the plan that was shown.
    pub digest: String,
}
