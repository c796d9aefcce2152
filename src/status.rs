//! What a person or a scraper reads of a VM: status.json. Nothing decides from it.

mod compute;
mod conditions;
mod events;
#[cfg(test)]
pub(crate) mod samples;

pub use compute::{Live, StatusInput, compute, holds_of, is_listed, live};
pub use events::{EVENTS_MAX, NewEvent};

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{Incarnation, VmName, VmUid};
use crate::spec::VmmKind;

/// STATE/vms/NAME/status.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The VM.
    pub name: VmName,
    /// Its uid in this state.
    pub uid: VmUid,
    /// The generation of the declaration that this status was computed for; `None` for a VM that none declared.
    #[serde(default)]
    pub observed_generation: Option<u64>,
    /// Everything in one word.
    pub phase: VmPhase,
    /// What runs it, once settled.
    #[serde(default)]
    pub vmm: Option<VmmKind>,
    /// The VMM's pid, while it lives.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Its last life.
    pub incarnation: Incarnation,
    /// How often it was started again after its VMM had ended by itself.
    pub restarts: u32,
    /// Since when phase and life are what they are.
    pub since: Timestamp,
    /// Its conditions, by type.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What holds it back and should be known to people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<String>,
    /// What happened last, oldest first.
    #[serde(default)]
    pub events: Vec<Event>,
    /// When anything in here last changed.
    pub updated_at: Timestamp,
}

impl Status {
    /// The condition of this type.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Whether its guest runs.
    pub fn ready(&self) -> ConditionStatus {
        self.condition(ConditionType::Ready).map_or(ConditionStatus::Unknown, |ready| ready.status)
    }

    /// What a person should read first: what is wrong, or else what is going on; empty when all is well.
    pub fn message(&self) -> &str {
        let of = |kind| self.condition(kind).filter(|c| c.status == ConditionStatus::True);
        let told = of(ConditionType::Degraded)
            .or_else(|| of(ConditionType::Progressing))
            .or_else(|| of(ConditionType::Advisory))
            .or_else(|| self.condition(ConditionType::Ready).filter(|c| c.status != ConditionStatus::True));
        told.map_or("", |condition| condition.message.as_str())
    }
}

/// A VM's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VmPhase {
    /// Its guest runs.
    Running,
    /// Its guest's CPUs are halted.
    Paused,
    /// No VMM runs, as declared.
    Stopped,
    /// Its VMM is about to be spawned, or its guest not yet seen to run.
    Starting,
    /// It is being torn down.
    Stopping,
    /// It waits after failures.
    BackingOff,
    /// It ended, and its restartPolicy lets it rest.
    Finished,
    /// Its VMM lives and does not answer.
    Unhealthy,
    /// It cannot be told whether its VMM lives.
    Unknown,
    /// It lives and no manifest ever declared it.
    Unclaimed,
    /// Its manifest is gone, and something keeps it from being torn down.
    Held,
    /// Its manifest is broken or declared twice, and none was ever applied.
    Invalid,
    /// Something it needs is not there.
    Pending,
    /// Its VMM is dead, and nothing was done about it yet.
    Dead,
}

impl fmt::Display for VmPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names of the variants are the words that people read.
        f.pad(&format!("{self:?}"))
    }
}

/// One aspect of a VM's state, as the Kubernetes API conventions have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` last flipped.
    pub last_transition_time: Timestamp,
    /// The generation it was computed for.
    #[serde(default)]
    pub observed_generation: Option<u64>,
}

/// The aspects of a VM's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// Its guest runs.
    Ready,
    /// Something is being done, or will be.
    Progressing,
    /// Something is wrong that a person should look at.
    Degraded,
    /// There is something to know, though nothing is wrong yet: a known hole in this VMM's version, a change that waits.
    /// Only there while it holds.
    Advisory,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// It cannot be told.
    Unknown,
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// Something that happened to a VM, once or often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Whether it needs attention.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// What, in one CamelCase word for programs.
    pub reason: String,
    /// What, for people.
    pub message: String,
    /// When it first happened.
    pub first_seen: Timestamp,
    /// When it last happened.
    pub last_seen: Timestamp,
    /// How often.
    pub count: u32,
}

/// Whether an event needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    /// It is as it should be.
    Normal,
    /// It is not.
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}
