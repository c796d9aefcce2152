//! The gates before deletions: what may be deleted now because no manifest declares it, and what waits.
//!
//! Each refuses the deletions it is about and nothing else. The rules and their order are Flux's and the kubelet's: what was
//! not applied by us is not pruned, and an incomplete source prunes nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use uuid::Uuid;

use super::{Absences, AllowPrune, Hold, Policy};
use crate::desired::{Desired, Origin};
use crate::names::VmName;
use crate::observed::{ObservedVm, Record};
use crate::state::{Deletion, FORMAT_VERSION, GateState, Phase};
use crate::time::Now;

/// What the gates say of each VM that no manifest declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdicts {
    by_vm: BTreeMap<VmName, Verdict>,
    /// The digest of the deletions that the prune cap holds back: what `stead approve` takes.
    pub digest: Option<String>,
    /// What the gates must remember, durably, before the first of the deletions that they let through now begins; or that an
    /// approval is void.
    /// `None` when they remember it already.
    pub commit: Option<GateState>,
}

/// What the gates say of one VM that no manifest declares.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may be deleted.
    Delete,
    /// It waits.
    Hold(Hold),
    /// It was never applied by us: it is nobody's to delete but `stead delete`'s.
    Unclaimed,
}

impl Verdicts {
    /// The VMs whose deletion the prune cap holds back.
    pub fn held(&self) -> impl Iterator<Item = &VmName> {
        let is_held = |verdict: &Verdict| matches!(verdict, Verdict::Hold(Hold::PruneCap { .. }));
        self.by_vm.iter().filter(move |(_, verdict)| is_held(verdict)).map(|(name, _)| name)
    }

    /// What the gates say of this VM; `None` when they have not heard of it, which lets nothing through.
    pub fn of(&self, name: &VmName) -> Option<&Verdict> {
        self.by_vm.get(name)
    }
}

/// The VMs that the gates are asked about.
pub struct Population<I> {
    /// Those that no manifest declares.
    pub undeclared: I,
    /// How many of this state were applied, declared or not: the cap is a share of them.
    pub applied: usize,
    /// Those that were not looked at yet.
    pub unseen: Unseen,
}

/// VMs with records that were not looked at yet: each may have been applied, and be one of those that are gone from the
/// manifests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Whether some will be seen soon: until then nobody knows how many are gone at once.
    pub soon: bool,
    /// How many are not declared, and cannot be seen now, since a call to the host hangs.
    pub stuck: usize,
}

/// How soon the gates are asked again when they wait for VMs to be looked at; by whom they wait for they are asked before.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Asks the gates about every VM that no manifest declares.
pub fn decide<'a>(
    desired: &Desired,
    population: Population<impl Iterator<Item = (&'a VmName, &'a ObservedVm)>>,
    gates: &GateState,
    absences: &Absences,
    policy: &Policy,
    allow: AllowPrune,
    now: &Now,
) -> Verdicts {
    let mut verdicts = Verdicts::default();
    // Wanted now, or as soon as their wait is over: one change of the manifests is one batch, and is judged as one.
    let (mut wanted, mut waiting) = (Vec::new(), Vec::new());
    let begun = |name: &VmName| {
        let deletion = gates.let_through().find(|deletion| deletion.name == *name)?;
        let since = absences.since.get(name)?;
        // One that was declared again since was not deleted then, and is asked about anew.
        (deletion.at.boot_id == since.boot_id && deletion.at.boot_ms >= since.boot_ms).then_some(())
    };
    let Population { undeclared, applied, unseen } = population;
    for (name, vm) in undeclared {
        match judge(desired, name, vm, absences, policy, now) {
            // What was let through already goes on, whatever else is wanted since.
            None if begun(name).is_some() => {
                verdicts.by_vm.insert(name.clone(), Verdict::Delete);
            }
            None => wanted.push((name, vm)),
            Some(verdict) => {
                if matches!(verdict, Verdict::Hold(Hold::PruneDelay(_))) && begun(name).is_none() {
                    waiting.push((name, vm));
                }
                verdicts.by_vm.insert(name.clone(), verdict);
            }
        }
    }
    if wanted.is_empty() {
        return verdicts;
    }
    if unseen.soon {
        let wait = Hold::PruneDelay(now.deadline(ASK_AGAIN));
        verdicts.by_vm.extend(wanted.into_iter().map(|(name, _)| (name.clone(), Verdict::Hold(wait.clone()))));
        return verdicts;
    }
    let mut batch: Vec<(&VmName, &ObservedVm)> = wanted.iter().chain(&waiting).copied().collect();
    batch.sort_by_key(|(name, _)| *name);
    let in_window = |deletion: &&Deletion| now.since(&deletion.at).is_some_and(|age| age < policy.prune_window);
    let is_of_batch = |deletion: &Deletion| batch.iter().any(|(name, _)| **name == deletion.name);
    let recent: Vec<&Deletion> =
        gates.deletions.iter().filter(in_window).filter(|deletion| !is_of_batch(deletion)).collect();

    let deletions = recent.len() + batch.len() + unseen.stuck;
    let of = recent.iter().map(|deletion| deletion.of).chain([applied + unseen.stuck]).max().unwrap_or(0);
    let exceeds = deletions > policy.prune_free && deletions * 2 > of;
    let digest = digest(&batch);
    let approved = gates.approval.as_ref().is_some_and(|approval| approval.is_for(&digest, now));
    let is_held = exceeds && !approved && batch.len() > allow.0;
    for (name, _) in &wanted {
        let verdict = if is_held { Verdict::Hold(Hold::PruneCap { deletions, of }) } else { Verdict::Delete };
        verdicts.by_vm.insert((*name).clone(), verdict);
    }
    if is_held {
        verdicts.digest = Some(digest);
        // It was for another plan: should that be made again, it is asked about again. Not where one VM cannot be seen now, or
        // read: that makes another digest too.
        let is_seen = unseen.stuck == 0 && batch.iter().all(|(_, vm)| vm.unread.is_none());
        verdicts.commit = (is_seen && gates.approval.is_some()).then(|| GateState { approval: None, ..gates.clone() });
    } else {
        // The whole batch is let through at once: its first deletion must not make another batch of the rest. An approval is
        // for one plan, and is used up.
        let at = now.deadline(Duration::ZERO);
        let let_through =
            batch.iter().map(|(name, _)| Deletion { name: (*name).clone(), at: at.clone(), of, over: false });
        let deletions = recent.into_iter().cloned().chain(let_through).collect();
        verdicts.commit = Some(GateState { version: FORMAT_VERSION, deletions, approval: None });
    }
    verdicts
}

/// Where the VM was applied from, if it was.
pub fn origin_of(vm: &ObservedVm) -> Option<&Origin> {
    let accepted = vm.ledger.accepted.as_ref().map(|accepted| &accepted.origin);
    accepted.or_else(|| vm.record.handles().and_then(|handles| handles.origin.as_ref()))
}

/// What every gate but the cap says; `None` when none objects.
fn judge(
    desired: &Desired,
    name: &VmName,
    vm: &ObservedVm,
    absences: &Absences,
    policy: &Policy,
    now: &Now,
) -> Option<Verdict> {
    if vm.ledger.delete_requested {
        return Some(Verdict::Delete);
    }
    let Some(origin) = origin_of(vm) else { return Some(Verdict::Unclaimed) };
    let accepted = vm.ledger.accepted.as_ref();
    let hold = match desired.sources.get(&origin.source) {
        None => Some(Hold::SourceIncomplete(vec![format!("its source {} is not read", origin.source)])),
        Some(source) if !source.is_complete() => Some(Hold::SourceIncomplete(source.incomplete.clone())),
        Some(source) => {
            // Without a ledger nobody knows which folder it was applied from: an empty one may be another.
            let is_it = accepted.is_some_and(|accepted| accepted.root == source.root);
            (source.empty && !is_it).then_some(Hold::FolderReplaced)
        }
    };
    let protection = accepted.and_then(|accepted| {
        let kept = if accepted.vm.prune_disabled() { Hold::Protected } else { Hold::Suspended };
        let is_kept = accepted.vm.prune_disabled() || accepted.vm.is_suspended();
        is_kept.then(|| if desired.is_elsewhere(&origin.source, name) { Hold::KeptHere } else { kept })
    });
    let hold = hold.or(protection);
    let hold = hold.or_else(|| {
        let until = match absences.since.get(name) {
            Some(since) => since.after(policy.prune_delay),
            None => now.deadline(policy.prune_delay),
        };
        (!now.is_past(&until)).then_some(Hold::PruneDelay(until))
    });
    hold.map(Verdict::Hold)
}

/// A digest of exactly these deletions: any change of the set, or of a VM in it, is another one.
fn digest(batch: &[(&VmName, &ObservedVm)]) -> String {
    let mut text = String::new();
    for (name, vm) in batch {
        let incarnation = match &vm.record {
            Record::Valid(handles) if handles.phase != Phase::Stopping => handles.incarnation,
            _ => vm.ledger.incarnation,
        };
        let generation = vm.ledger.accepted.as_ref().map_or(0, |accepted| accepted.generation);
        let _ = writeln!(text, "{name} {} {incarnation} {generation}", vm.ledger.uid);
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()[..12].to_owned()
}
