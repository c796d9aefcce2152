//! STATE/gates.json: the recent deletions that the prune cap counts, and approvals not yet used.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::VmName;
use crate::time::{Deadline, Now};

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

    /// The same once this VM is declared again: its deletion is over, and an approval of it is void. `None` if neither is there.
    pub fn declared_again(&self, name: &VmName) -> Option<Self> {
        let is_approved = |approval: &Approval| approval.vms.contains(name);
        if !self.let_through().any(|deletion| deletion.name == *name)
            && !self.approval.as_ref().is_some_and(is_approved)
        {
            return None;
        }
        let mut gates = self.clone();
        for deletion in gates.deletions.iter_mut().filter(|deletion| deletion.name == *name) {
            deletion.over = true;
        }
        gates.approval.take_if(|approval| is_approved(approval));
        Some(gates)
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
    /// The VMs that it deletes. It is void once a manifest declares one of them again.
    #[serde(default)]
    pub vms: BTreeSet<VmName>,
    /// When it was given. One without it, of an older stead, lets nothing through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Deadline>,
}

impl Approval {
    /// For how long it counts: until the next pass of any timer, and not until the same VMs are gone again some other day.
    const LASTS: Duration = Duration::from_secs(24 * 60 * 60);

    /// Whether it lets this plan through now.
    pub fn is_for(&self, digest: &str, now: &Now) -> bool {
        let age = self.at.as_ref().and_then(|at| now.since(at));
        self.digest == digest && age.is_some_and(|age| age < Self::LASTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::BootId;

    #[test]
    fn an_approval_is_for_one_plan_one_day_and_one_boot() {
        let at = |boot: &str, seconds: u64| Now {
            boot_id: BootId(boot.into()),
            boot_ms: seconds * 1000,
            wall: jiff::Timestamp::UNIX_EPOCH,
        };
        let given = Some(at("a", 10).deadline(Duration::ZERO));
        let approval = Approval { digest: "3f9a1c".to_owned(), vms: BTreeSet::new(), at: given };
        let day = 24 * 60 * 60;
        assert!(approval.is_for("3f9a1c", &at("a", 10)));
        assert!(approval.is_for("3f9a1c", &at("a", 9 + day)));
        for (digest, now) in [("3f9a1d", at("a", 10)), ("3f9a1c", at("a", 10 + day)), ("3f9a1c", at("b", 11))] {
            assert!(!approval.is_for(digest, &now), "{digest} {now:?}");
        }
        assert!(!Approval { at: None, ..approval }.is_for("3f9a1c", &at("a", 10)), "of an older stead");
    }
}
