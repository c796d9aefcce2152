//! What to do: one pure function from what should exist and what does to the actions that make them equal.
//!
//! No IO, no clock, no randomness: whatever a decision needs is in its arguments.

mod action;
pub mod claims;
mod diff;
pub mod disks;
mod drift;
pub mod fields;
pub mod gates;
pub mod orphans;
mod remember;
pub mod retry;
pub mod show;
mod words;

pub use action::{Action, AllowPrune, Hold, PersistReason, Plan, Preparation, TeardownReason, VmPlan};
pub use diff::{Context, LAST_GOOD};

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::desired::Desired;
use crate::names::VmName;
use crate::observed::Observed;
use crate::time::{Deadline, Now};
use claims::Claims;

/// The bounds and waits that decisions use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long a VMM may take from spawn until its guest was seen to run.
    pub start_timeout: Duration,
    /// The wait after a VM's first failure; it doubles with each further one.
    pub backoff_initial: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// A life of this length forgets the failures before it (the kubelet uses ten minutes as well).
    pub stable_time: Duration,
    /// How long a VM must be missing from every listing before it counts as absent.
    pub prune_delay: Duration,
    /// The window over which the prune cap counts deletions.
    pub prune_window: Duration,
    /// Deletions that are let through whatever their share.
    pub prune_free: usize,
    /// How long a kernel object must have been seen with nothing to account for it before it is freed.
    pub orphan_min_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(30),
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            stable_time: Duration::from_secs(600),
            prune_delay: Duration::from_secs(3),
            prune_window: Duration::from_secs(600),
            prune_free: 2,
            orphan_min_age: Duration::from_secs(300),
        }
    }
}

/// What the loop remembers of VMs missing from the listings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absences {
    /// Since when each VM is missing from every listing, restarted by each event in its folder.
    pub since: BTreeMap<VmName, Deadline>,
}

impl Absences {
    /// Of VMs whose absence nobody has watched: they are taken to be missing for ever.
    pub fn long_past<'a>(names: impl Iterator<Item = &'a VmName>, now: &Now) -> Self {
        let began = Deadline { boot_id: now.boot_id.clone(), boot_ms: 0 };
        Self { since: names.map(|name| (name.clone(), began.clone())).collect() }
    }
}

/// What would make observed equal desired, for every VM. `observed` has every VM of this state and every one declared.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    absences: &Absences,
    policy: &Policy,
    allow: AllowPrune,
    now: &Now,
) -> Plan {
    let undeclared = observed.vms.iter().filter(|(name, _)| !desired.vms.contains_key(*name));
    let applied = observed.vms.values().filter(|vm| gates::origin_of(vm).is_some()).count();
    let population = gates::Population { undeclared, applied, unseen: gates::Unseen::default() };
    let verdicts = gates::decide(desired, population, &observed.gates, absences, policy, allow, now);
    let claims = LazyCell::new(|| Claims::of(desired, observed.vms.iter()));
    let context = Context { desired, claims: &claims, facts: &&observed.facts, policy, now };
    let vms = observed.vms.iter().map(|(name, vm)| (name.clone(), context.plan_vm(name, vm, verdicts.of(name))));
    Plan { vms: vms.collect(), digest: verdicts.digest }
}
