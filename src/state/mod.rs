//! What stead keeps on disk about a VM: formats, and what can be wrong with a file of its own.
//!
//! Unknown fields survive a rewrite, so that an older stead does not lose what a newer one wrote.

mod disks;
mod fields;
mod files;
mod gates;
mod handles;
mod host;
mod ledger;
mod orphans;
mod sync;

pub use disks::DiskRecord;
pub use fields::own_fields;
pub use files::{
    Flaw, encode, parse_disk_record, parse_gates, parse_handles, parse_host, parse_ledger, parse_orphans, parse_sync,
};
pub use gates::{Approval, Deletion, GateState};
pub use handles::{Blocked, DmHandle, Handles, LoopHandle, Phase, Stopping, TapHandle};
pub use host::HostState;
pub use ledger::{Accepted, Backoff, Booted, ExitRecord, ExitStatus, Ledger};
pub use orphans::OrphanState;
pub use sync::{AppliedCommit, SyncFailure, SyncState};

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::spec::VmSpec;

/// The version of every format in this module. A file of a higher one is set aside, not guessed at.
pub const FORMAT_VERSION: u32 = 1;

/// The version of a file that this stead knows: of another one, no field is worth reading.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    if version > FORMAT_VERSION {
        return Err(D::Error::custom(format_args!("format version {version} is newer than {FORMAT_VERSION}")));
    }
    Ok(version)
}

/// A spec as it was stored, by this or another version of stead: nothing of it is lost when it is written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSpec(Stored);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    /// Exactly what this stead would write: by far the most usual, and read without any work.
    Exact(Arc<VmSpec>),
    /// It lacks fields, or has others.
    Other(Value),
}

impl From<&Arc<VmSpec>> for StoredSpec {
    fn from(spec: &Arc<VmSpec>) -> Self {
        Self(Stored::Exact(Arc::clone(spec)))
    }
}

impl Serialize for StoredSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Stored::Exact(spec) => spec.serialize(serializer),
            Stored::Other(value) => value.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StoredSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Nearly every spec is one of this stead's: told from its text, it never becomes a value.
        let json = Box::<RawValue>::deserialize(deserializer)?;
        if let Ok(spec) = serde_json::from_str(json.get())
            && is_written_as(&spec, json.get())
        {
            return Ok(Self(Stored::Exact(Arc::new(spec))));
        }
        let value: Value = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        let exact = VmSpec::deserialize(&value).ok().filter(|spec| as_json(spec) == value);
        Ok(Self(exact.map_or(Stored::Other(value), |spec| Stored::Exact(Arc::new(spec)))))
    }
}

/// Whether this is, letter by letter, how stead writes the spec, however deep in a file: a text within JSON has no line's end,
/// so what a line begins with is nothing but its indentation.
fn is_written_as(spec: &VmSpec, json: &str) -> bool {
    let written = serde_json::to_string_pretty(spec).expect("a spec has only text keys");
    written.lines().map(str::trim_start).eq(json.lines().map(str::trim_start))
}

impl StoredSpec {
    /// This spec with every field that its writer did not know taken from `current`, so that a new field of a newer stead
    /// counts as equal until the VM's next start.
    ///
    /// # Errors
    /// When what was stored is not a spec, even so.
    pub fn completed_from(&self, current: &VmSpec) -> Result<Cow<'_, VmSpec>, serde_json::Error> {
        match &self.0 {
            Stored::Exact(spec) => Ok(Cow::Borrowed(spec)),
            Stored::Other(value) => {
                let mut merged = as_json(current);
                overlay(&mut merged, value);
                serde_json::from_value(merged).map(Cow::Owned)
            }
        }
    }

    /// Keeps this copy of the same spec instead of its own.
    pub fn share(&mut self, same: &Arc<VmSpec>) {
        if let Stored::Exact(spec) = &mut self.0
            && spec == same
        {
            spec.clone_from(same);
        }
    }

    /// The spec by itself, with no other to take missing fields from.
    ///
    /// # Errors
    /// When it lacks a field, or is not a spec.
    pub fn read(&self) -> Result<Arc<VmSpec>, serde_json::Error> {
        match &self.0 {
            Stored::Exact(spec) => Ok(Arc::clone(spec)),
            Stored::Other(value) => VmSpec::deserialize(value).map(Arc::new),
        }
    }
}

fn as_json(spec: &VmSpec) -> Value {
    serde_json::to_value(spec).expect("a spec has only text keys")
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
