//! Who is to be looked at, and when: the last listing, what each VM looked like when its last turn ended, since when each
//! undeclared one is missing, and who waits for a turn.
//!
//! No IO and no clock: the engine brings what it read and the moment at which it did. The model check drives the same code.
//! An event about one VM costs the same however many there are: what is desired changes by what differs, and `sightings`
//! knows who else it concerns.

mod listing;
pub mod sightings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::desired::Desired;
use crate::names::VmName;
use crate::observed::glance::Known;
use crate::observed::{ObservedVm, Record};
use crate::plan::claims::Claims;
use crate::plan::{Absences, AllowPrune, Hold, Policy, VmPlan, gates};
use crate::state::GateState;
use crate::time::{Deadline, Now};
use crate::wakeups::{Reason, Standing, Wakeups};
pub use listing::News;
use sightings::{Sightings, has_unmet};

/// How soon a failed action is tried again, at first and at most; it doubles in between.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How soon a guest that should be running by now is asked for the first time, and how often later on: the wait is a
/// quarter of the time already waited, between these two.
const START_POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));
/// How soon a VM is looked at again whose identity could not be told.
pub const UNKNOWN_POLL: Duration = Duration::from_secs(5);

/// What the loop goes by between one event and the next. Lost with a crash, except what the gates wrote down.
#[derive(Debug)]
pub struct Agenda {
    /// Bounds and waits.
    pub policy: Policy,
    /// Deletions let through beyond the prune cap.
    pub allow: AllowPrune,
    /// Only this VM is looked at.
    pub only: Option<VmName>,
    /// What should exist, as it was read last.
    desired: Desired,
    /// When everything was listed last.
    pub listed_at: Deadline,
    /// VMs that it does not declare.
    pub absences: Absences,
    /// What each VM looked like at the end of its last turn.
    sightings: Sightings,
    /// VMs of which nothing is left but what outlives a deletion.
    pub forgotten: BTreeSet<VmName>,
    /// VMs on which something was begun that will be finished soon: what they wait for.
    pub under_way: BTreeMap<VmName, String>,
    /// VMs with records, of which this stead does not know yet what they hold.
    pub unseen: BTreeSet<VmName>,
    /// VMs whose turn began while there were such.
    pub ahead: BTreeSet<VmName>,
    /// VMs that have no turn now, since something of theirs is being freed by a call that hangs.
    pub out_of_reach: BTreeSet<VmName>,
    /// Who waits for a turn, and who has it.
    pub wakeups: Wakeups,
}

/// What a VM looked like at the end of its last turn.
#[derive(Debug)]
pub struct Seen {
    /// What existed of it.
    pub observed: Arc<ObservedVm>,
    /// What was left to do about it.
    pub plan: VmPlan,
    /// What failed.
    pub failure: Option<String>,
    /// Turns in a row in which something failed.
    pub failures: u32,
}

/// How one turn ended.
#[derive(Debug)]
pub struct Report {
    /// What existed of the VM at the last look.
    pub observed: ObservedVm,
    /// What is left to do about it.
    pub plan: VmPlan,
    /// Actions carried out.
    pub changes: usize,
    /// What failed.
    pub failure: Option<String>,
    /// Look again after this long, at the latest.
    pub wake: Option<Duration>,
    /// Whether something was begun that will be finished soon: a one-shot pass waits for it.
    pub under_way: Option<String>,
}

impl Agenda {
    /// That of a stead that has just begun, and has listed nothing yet. What an earlier one let through goes on, if it is
    /// still absent.
    pub fn new(policy: Policy, allow: AllowPrune, only: Option<VmName>, gates: &GateState, now: &Now) -> Self {
        let let_through = gates.let_through().map(|deletion| (deletion.name.clone(), deletion.at.clone()));
        Self {
            policy,
            allow,
            only,
            desired: Desired::default(),
            listed_at: now.deadline(Duration::ZERO),
            absences: Absences { since: let_through.collect() },
            sightings: Sightings::default(),
            forgotten: BTreeSet::new(),
            under_way: BTreeMap::new(),
            unseen: BTreeSet::new(),
            ahead: BTreeSet::new(),
            out_of_reach: BTreeSet::new(),
            wakeups: Wakeups::default(),
        }
    }

    /// What should exist, as it was read last.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What each VM looked like at the end of its last turn.
    pub fn sightings(&self) -> &Sightings {
        &self.sightings
    }

    /// Wakes every VM that is declared, `recorded` or was seen. Gives their names.
    pub fn wake_all(&mut self, recorded: BTreeSet<VmName>, reason: Reason) -> BTreeSet<VmName> {
        self.note_unseen(&recorded);
        let mut names = recorded;
        names.extend(self.desired.vms.keys().chain(self.sightings.iter().map(|(name, _)| name)).cloned());
        for name in &names {
            self.wake(name, reason);
        }
        names
    }

    /// The same, but for VMs for which a glance will do: those at rest, which [`Agenda::known`] has compared.
    pub fn wake_restless(&mut self, recorded: &BTreeSet<VmName>, reason: Reason) -> BTreeSet<VmName> {
        self.note_unseen(recorded);
        let restless = self.sightings.iter().filter(|(name, seen)| !self.is_at_rest(name, seen)).map(|(name, _)| name);
        let undone = self.desired.vms.keys().filter(|name| !self.sightings.contains(name));
        let names: BTreeSet<VmName> = restless.chain(undone).chain(&self.unseen).cloned().collect();
        for name in &names {
            self.wake(name, reason);
        }
        names
    }

    fn note_unseen(&mut self, recorded: &BTreeSet<VmName>) {
        let is_unseen = |name: &&VmName| !self.sightings.contains(name) && !self.forgotten.contains(*name);
        self.unseen = recorded.iter().filter(is_unseen).cloned().collect();
    }

    /// What is known of every VM that was seen, for a glance that compares those at rest, or none.
    pub fn known(&self, compares: bool) -> Vec<Known> {
        let known = |(name, seen): (&VmName, &Seen)| Known {
            name: name.clone(),
            observed: Arc::clone(&seen.observed),
            is_compared: compares && self.is_at_rest(name, seen),
        };
        self.sightings.iter().map(known).collect()
    }

    /// Whether its last look found it running as declared, and nothing has happened since that it would be looked at for.
    fn is_at_rest(&self, name: &VmName, seen: &Seen) -> bool {
        let VmPlan { actions, holds, notes: _, wake } = &seen.plan;
        self.desired.vms.contains_key(name)
            && seen.observed.process.present().is_some()
            && (actions.is_empty() && holds.is_empty() && wake.is_none())
            && (seen.failure.is_none() && !self.under_way.contains_key(name))
            && self.wakeups.standing(name) == Standing::default()
    }

    /// Wakes one VM, if it is one to be looked at.
    pub fn wake(&mut self, name: &VmName, reason: Reason) {
        if self.only.as_ref().is_none_or(|only| only == name) {
            self.wakeups.wake(name, reason);
        }
    }

    /// What a turn of this VM, which begins, goes by: the part of what is desired that it is about, and who uses its images.
    pub fn turn_of(&mut self, name: &VmName) -> (Desired, Claims) {
        let (desired, claims) = self.sightings.about(&self.desired, name);
        // What a VM without disks goes by is known. Any other goes without knowing what these hold.
        if self.unseen.is_empty() || !self.sightings.may_have_disks(&self.desired, name) {
            return (desired, claims);
        }
        self.ahead.insert(name.clone());
        let unseen = self.unseen.iter().find(|unseen| *unseen != name).cloned();
        (desired, claims.with_unseen(unseen))
    }

    /// Takes in what a VM looked like when its first turn began: from then on it is known what it holds.
    pub fn first_look(&mut self, observed: ObservedVm) {
        if !self.unseen.remove(&observed.name) {
            return;
        }
        let name = observed.name.clone();
        let observed = Arc::new(observed);
        let seen = Seen { observed, plan: VmPlan::default(), failure: None, failures: 0 };
        if !self.sightings.contains(&name) {
            self.sightings.insert(&self.desired, &name, seen);
        }
        if self.unseen.is_empty() {
            self.wake_those_who_waited_for_all();
        }
    }

    /// What every VM holds, and which are gone from the manifests, is known by now.
    fn wake_those_who_waited_for_all(&mut self) {
        self.wake_unmet();
        for name in self.sightings.undeclared().clone() {
            self.wake(&name, Reason::Manifest);
        }
    }

    fn wake_unmet(&mut self) {
        for name in self.sightings.unmet().clone() {
            self.wake(&name, Reason::Manifest);
        }
    }

    /// Whether the folder is to be listed again before the gates are asked about this VM, whose turn begins: absence must
    /// outlast a second full listing, made after the delay. Both are told by the boot clock: one that stood still while the
    /// host was suspended would take the listing from before for one made since.
    pub fn wants_listing(&mut self, name: &VmName, now: &Now) -> bool {
        if self.desired.vms.contains_key(name) {
            return false;
        }
        let Some(since) = self.absences.since.get(name) else {
            self.absences.since.insert(name.clone(), now.deadline(Duration::ZERO));
            return false;
        };
        let delay = self.policy.prune_delay;
        let waited = now.since(since).unwrap_or_default();
        let listed = now.since(&self.listed_at).unwrap_or_default();
        waited >= delay && listed + delay > waited
    }

    /// What the gates say of every VM that the last listing does not declare.
    pub fn verdicts(&self, gates: &GateState, now: &Now) -> gates::Verdicts {
        let is_stuck = |name: &VmName| self.wakeups.is_overdue(name) || self.out_of_reach.contains(name);
        let stuck = |name: &&VmName| is_stuck(name) && !self.desired.vms.contains_key(*name);
        let unseen = gates::Unseen {
            soon: self.unseen.iter().any(|name| !is_stuck(name)),
            stuck: self.unseen.iter().filter(stuck).count(),
        };
        let (undeclared, applied) = (self.sightings.observed_undeclared(), self.sightings.applied());
        let population = gates::Population { undeclared, applied, unseen };
        gates::decide(&self.desired, population, gates, &self.absences, &self.policy, self.allow, now)
    }

    /// Takes in how a turn ended at `at`, and when the VM is to be looked at again.
    pub fn end_turn(&mut self, name: VmName, report: Report, at: Instant) {
        self.wakeups.finish(&name);
        let was_last = self.unseen.remove(&name) && self.unseen.is_empty();
        if self.ahead.remove(&name) && self.unseen.is_empty() && has_unmet(&report.plan) {
            // What it did not know when it began is known now.
            self.wake(&name, Reason::Manifest);
        }
        let failures = match &report.failure {
            Some(_) => self.sightings.get(&name).map_or(0, |seen| seen.failures) + 1,
            None => 0,
        };
        let retry = (failures > 0).then(|| RETRY.0.saturating_mul(1 << (failures - 1).min(16)).min(RETRY.1));
        if let Some(wait) = [report.wake, retry].into_iter().flatten().min() {
            self.wakeups.wake_at(&name, at + wait);
        }
        let is_gone = report.observed.process.is_absent() && report.observed.record.handles().is_none();
        let held_before = self.sightings.get(&name).is_some_and(|seen| !seen.observed.process.is_absent());
        if was_last {
            self.wake_those_who_waited_for_all();
        } else if is_gone && held_before {
            // What it held may be what another VM waits for.
            self.wake_unmet();
        }
        if is_forgotten(&report.observed, &report.plan) && !self.desired.vms.contains_key(&name) {
            self.absences.since.remove(&name);
            self.sightings.remove(&self.desired, &name);
            self.under_way.remove(&name);
            self.forgotten.insert(name);
            return;
        }
        let Report { mut observed, plan, failure, under_way, .. } = report;
        observed.share(self.desired.valid(&name).next());
        self.forgotten.remove(&name);
        match under_way {
            Some(why) => self.under_way.insert(name.clone(), why),
            None => self.under_way.remove(&name),
        };
        let observed = Arc::new(observed);
        self.sightings.insert(&self.desired, &name, Seen { observed, plan, failure, failures });
    }
}

/// Whether nothing is left of the VM but what outlives its deletion.
pub fn is_forgotten(observed: &ObservedVm, plan: &VmPlan) -> bool {
    observed.ledger.accepted.is_none()
        && observed.record == Record::Missing
        && observed.process.is_absent()
        && plan.holds.is_empty()
        && plan.actions.is_empty()
}

/// When to look again at a VM for which there is nothing to do now.
pub fn wake_after(plan: &VmPlan, observed: &ObservedVm, now: &Now) -> Option<Duration> {
    let deadline = plan.wake.as_ref().map(|wake| now.until(wake).unwrap_or_default());
    let poll = plan.holds.iter().find_map(|hold| match hold {
        // Nobody tells when a VMM's API comes up; it does within milliseconds.
        Hold::Starting => {
            let began = observed.record.handles().and_then(|handles| handles.began.as_ref());
            let waited = began.and_then(|began| now.since(began)).unwrap_or_default();
            Some((waited / 4).clamp(START_POLL.0, START_POLL.1))
        }
        Hold::Unread(_) | Hold::IdentityUnknown(_) | Hold::Unhealthy(_) | Hold::Unmet(_) => Some(UNKNOWN_POLL),
        _ => None,
    });
    [deadline, poll].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Declaration, Origin, SourceName};
    use crate::spec::{Vm, VmSpec};
    use crate::time::BootId;
    use crate::vmm::tests::{disk, spec};

    pub(super) fn now(second: u64) -> Now {
        Now { boot_id: BootId("boot".into()), boot_ms: second * 1000, wall: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn only_a_vm_with_disks_begins_ahead_of_those_that_were_not_looked_at() {
        let gates = GateState::default();
        let mut agenda = Agenda::new(Policy::default(), AllowPrune::default(), None, &gates, &now(0));
        let mut listed = Desired::default();
        for (name, disks) in [("web", vec![disk("root", "/a.img", false)]), ("db", Vec::new())] {
            let name: VmName = name.parse().unwrap();
            let spec = Arc::new(VmSpec { disks, ..spec() });
            let vm = Arc::new(Vm { name: name.clone(), labels: BTreeMap::new(), annotations: BTreeMap::new(), spec });
            let origin = Origin { source: SourceName("m".into()), path: "m.yaml".into(), line: 1 };
            listed.vms.insert(name, vec![Declaration { origin, vm: Ok(vm) }]);
        }
        agenda.list(listed, &gates, &now(10));
        agenda.wake_all(["web", "db", "old"].map(|name| name.parse().unwrap()).into(), Reason::Startup);
        for (name, refuses) in [("web", true), ("db", false)] {
            let name = name.parse().unwrap();
            let (desired, claims) = agenda.turn_of(&name);
            assert_eq!(desired.vms.keys().collect::<Vec<_>>(), [&name], "a turn gets its part only");
            let declared = desired.vms[&name][0].vm.as_ref().unwrap();
            assert_eq!(claims.conflict(&desired, &name, &declared.spec, None).is_some(), refuses);
        }
        assert_eq!(agenda.ahead, BTreeSet::from(["web".parse().unwrap()]));
    }

    /// With a pass that looks at one VM after the other, slowly: those it saw first were deleted before it knew that most
    /// were gone.
    #[test]
    fn no_deletion_begins_before_it_is_known_how_many_are_gone() {
        let (gates, policy) = (GateState::default(), Policy::default());
        let names: BTreeSet<VmName> = (0..5).map(|number| format!("vm-{number}").parse().unwrap()).collect();
        let mut agenda = Agenda::new(policy, AllowPrune::default(), None, &gates, &now(0));
        let source = SourceName("m".into());
        let root = Some(crate::desired::FileId { device: 1, inode: 1 });
        let state = crate::desired::SourceState { incomplete: vec![], root, empty: true, elsewhere: Arc::default() };
        let mut listed = Desired::default();
        listed.sources.insert(source.clone(), state);
        agenda.list(listed, &gates, &now(10));
        agenda.wake_all(names.clone(), Reason::Startup);
        let origin = |name: &VmName| Origin { source: source.clone(), path: format!("{name}.yaml").into(), line: 1 };
        let uid = crate::names::StateId::derive("test", std::path::Path::new("/s"));
        let mut left = names.len();
        for name in &names {
            let mut observed = ObservedVm::nothing(name.clone(), uid.uid(name));
            let (labels, annotations, spec) = (BTreeMap::new(), BTreeMap::new(), Arc::new(spec()));
            let vm = Arc::new(Vm { name: name.clone(), labels, annotations, spec });
            observed.ledger.accepted = Some(crate::state::Accepted { vm, origin: origin(name), root, generation: 1 });
            assert!(!agenda.wants_listing(name, &now(20)));
            agenda.first_look(observed);
            left -= 1;
            // One that cannot be looked at counts as gone, and is not waited for.
            for out_of_reach in &names {
                agenda.out_of_reach.insert(out_of_reach.clone());
            }
            let verdict = agenda.verdicts(&gates, &now(100)).of(name).cloned().unwrap();
            assert!(matches!(verdict, gates::Verdict::Hold(Hold::PruneCap { deletions: 5, of: 5 })), "{verdict:?}");
            agenda.out_of_reach.clear();
            let verdicts = agenda.verdicts(&gates, &now(100));
            let verdict = verdicts.of(&names.iter().next().unwrap().clone()).unwrap();
            let is_right = match verdict {
                gates::Verdict::Hold(Hold::PruneDelay(_)) => left > 0,
                gates::Verdict::Hold(Hold::PruneCap { deletions: 5, of: 5 }) => left == 0,
                _ => false,
            };
            assert!(is_right, "with {left} unseen: {verdict:?}");
        }
        assert!(agenda.wakeups.ready().count() >= names.len(), "those who waited have their turn");

        // All are held. What was approved instead of them is void, and only once all of them were seen.
        assert_eq!(agenda.verdicts(&gates, &now(100)).commit, None, "there is nothing to remember");
        let approval = |digest: String| {
            let (vms, at) = (names.clone(), Some(now(90).deadline(Duration::ZERO)));
            GateState { approval: Some(crate::state::Approval { digest, vms, at }), ..GateState::default() }
        };
        let another = approval("another".to_owned());
        let held = agenda.verdicts(&another, &now(100));
        assert!(held.held().eq(&names) && held.commit.is_some_and(|gates| gates.approval.is_none()));
        let approved = approval(held.digest.unwrap());
        let let_through = agenda.verdicts(&approved, &now(100)).commit.unwrap();
        assert!(let_through.approval.is_none() && let_through.deletions.len() == names.len(), "it is used up");
        for name in &names {
            let again = approved.declared_again(name).expect("it names each");
            assert_eq!(again.approval, None);
        }
        assert_eq!(approved.declared_again(&"other".parse().unwrap()), None);
    }
}
