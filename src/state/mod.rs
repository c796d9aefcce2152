//! What stead keeps on disk about a VM: formats, and what can be wrong with a file of its own.
//!
//! Unknown fields survive a rewrite, so that an older stead does not lose what a newer one wrote.

mod files;
mod gates;
mod handles;
mod ledger;

pub use files::{Flaw, encode, parse_gates, parse_handles, parse_ledger};
pub use gates::{Approval, Deletion, GateState};
pub use handles::{Blocked, Handles, Phase, Stopping, TapHandle};
pub use ledger::{Accepted, Backoff, Booted, ExitRecord, ExitStatus, Ledger};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::VmSpec;

/// The version of every format in this module. A file of a higher one is set aside, not guessed at.
pub const FORMAT_VERSION: u32 = 1;

/// A spec as it was stored, by this or another version of stead: kept as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoredSpec(Value);

impl From<&VmSpec> for StoredSpec {
    fn from(spec: &VmSpec) -> Self {
        Self(serde_json::to_value(spec).expect("a spec has only text keys"))
    }
}

impl StoredSpec {
    /// This spec with every field that its writer did not know taken from `current`, so that a new field of a newer stead
    /// counts as equal until the VM's next start.
    ///
    /// # Errors
    /// When what was stored is not a spec, even so.
    pub fn completed_from(&self, current: &VmSpec) -> Result<VmSpec, serde_json::Error> {
        let mut merged = serde_json::to_value(current).expect("a spec has only text keys");
        // By far the most usual case, and the cheapest to see.
        if merged == self.0 {
            return Ok(current.clone());
        }
        overlay(&mut merged, &self.0);
        serde_json::from_value(merged)
    }

    /// The spec by itself, with no other to take missing fields from.
    pub fn read(&self) -> Result<VmSpec, serde_json::Error> {
        serde_json::from_value(self.0.clone())
    }
}

/// Lays `stored` over `base`: objects field by field, lists of named objects by name, all else as a whole.
fn overlay(base: &mut Value, stored: &Value) {
    match (base, stored) {
        (Value::Object(base), Value::Object(stored)) => {
            for (key, value) in stored {
                overlay(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(stored)) => {
            let merged = stored.iter().map(|element| {
                let twin = element.get("name").and_then(|name| base.iter().find(|b| b.get("name") == Some(name)));
                let mut merged = twin.cloned().unwrap_or(Value::Null);
                overlay(&mut merged, element);
                merged
            });
            *base = merged.collect();
        }
        (base, stored) => *base = stored.clone(),
    }
}
