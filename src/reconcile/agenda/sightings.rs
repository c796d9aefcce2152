//! What each VM looked like when its last turn ended, and who among them is what: an event about one VM asks about that one
//! only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Seen;
use crate::desired::Desired;
use crate::desired::delta::Delta;
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::plan::claims::{Claimants, Claims, goes_by_last_good};
use crate::plan::{Hold, VmPlan, gates};

/// What was seen of all VMs.
#[derive(Debug, Default)]
pub struct Sightings {
    by_vm: BTreeMap<VmName, Seen>,
    /// Those that no manifest declares.
    undeclared: BTreeSet<VmName>,
    /// Those that cannot be started for now.
    unmet: BTreeSet<VmName>,
    /// How many were applied.
    applied: usize,
    /// Who uses which image, also of those that were not seen yet.
    claimants: Claimants,
}

impl Sightings {
    /// What was seen of this VM.
    pub fn get(&self, name: &VmName) -> Option<&Seen> {
        self.by_vm.get(name)
    }

    /// Whether it was seen.
    pub fn contains(&self, name: &VmName) -> bool {
        self.by_vm.contains_key(name)
    }

    /// How many were seen.
    pub fn count(&self) -> usize {
        self.by_vm.len()
    }

    /// All that were seen, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&VmName, &Seen)> {
        self.by_vm.iter()
    }

    /// Those that were seen and that no manifest declares.
    pub fn undeclared(&self) -> &BTreeSet<VmName> {
        &self.undeclared
    }

    /// Those that wait for what somebody else may give up.
    pub fn unmet(&self) -> &BTreeSet<VmName> {
        &self.unmet
    }

    /// How many were applied, declared or not.
    pub fn applied(&self) -> usize {
        self.applied
    }

    /// What existed of those that no manifest declares.
    pub fn observed_undeclared(&self) -> impl Iterator<Item = (&VmName, &ObservedVm)> {
        self.undeclared.iter().filter_map(|name| Some((name, &*self.by_vm.get(name)?.observed)))
    }

    /// What existed of each.
    pub fn observed(&self) -> impl Iterator<Item = (&VmName, &ObservedVm)> {
        self.by_vm.iter().map(|(name, seen)| (name, &*seen.observed))
    }

    /// Takes in what a VM looks like now.
    pub fn insert(&mut self, desired: &Desired, name: &VmName, seen: Seen) {
        self.uncount(name);
        self.applied += usize::from(gates::origin_of(&seen.observed).is_some());
        if has_unmet(&seen.plan) {
            self.unmet.insert(name.clone());
        }
        self.by_vm.insert(name.clone(), seen);
        self.redeclare(desired, name);
    }

    /// Forgets a VM.
    pub fn remove(&mut self, desired: &Desired, name: &VmName) {
        self.uncount(name);
        self.redeclare(desired, name);
    }

    fn uncount(&mut self, name: &VmName) {
        let before = self.by_vm.remove(name);
        self.applied -= usize::from(before.is_some_and(|seen| gates::origin_of(&seen.observed).is_some()));
        self.unmet.remove(name);
    }

    /// Takes in what a change of the manifests, which `desired` knows already, says of VMs.
    pub fn redeclare(&mut self, desired: &Desired, name: &VmName) {
        if self.by_vm.contains_key(name) && !desired.vms.contains_key(name) {
            self.undeclared.insert(name.clone());
        } else {
            self.undeclared.remove(name);
        }
        let seen = self.by_vm.get(name).map(|seen| Arc::clone(&seen.observed));
        self.claimants.set(desired, name, seen.as_deref());
    }

    /// Takes in which images are others than `before`.
    pub fn note_images(&mut self, before: &Desired, delta: &Delta) {
        for (path, id) in &delta.images {
            self.claimants.set_id(path, before.images.get(path).copied(), *id);
        }
    }

    /// Whether it may have disks.
    pub fn may_have_disks(&self, desired: &Desired, name: &VmName) -> bool {
        self.claimants.images(name).next().is_some() || goes_by_last_good(desired, name)
    }

    /// The part of what is desired that a turn of this VM goes by, and who else uses its images.
    pub fn about(&self, desired: &Desired, name: &VmName) -> (Desired, Claims) {
        // Which images its last good spec names is in its ledger, which was not read yet.
        if goes_by_last_good(desired, name) && !self.contains(name) {
            return (desired.about(name, desired.images.keys()), Claims::of(desired, self.observed()));
        }
        (desired.about(name, self.claimants.images(name)), self.claimants.about(desired, name))
    }
}

pub(super) fn has_unmet(plan: &VmPlan) -> bool {
    plan.holds.iter().any(|hold| matches!(hold, Hold::Unmet(_)))
}
