//! What the manifests say, taken in: whole, or what differs. Whom that concerns is woken, and absence is noted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Agenda, Seen};
use crate::desired::delta::Delta;
use crate::desired::{Desired, Problem, SourceName};
use crate::names::VmName;
use crate::state::GateState;
use crate::time::Now;
use crate::wakeups::Reason;

/// What is told of a reading of the manifests.
#[derive(Debug)]
pub struct News {
    /// What is wrong with them that was not before.
    pub problems: Vec<Problem>,
    /// Why sources are not complete, if that was not known.
    pub gaps: Vec<(SourceName, String)>,
}

impl Agenda {
    /// The same, with what was read and seen before: for whoever takes up in the middle.
    #[must_use]
    pub fn with(mut self, desired: Desired, seen: impl IntoIterator<Item = (VmName, Seen)>) -> Self {
        self.take_up(Delta::between(&self.desired, desired));
        for (name, seen) in seen {
            self.sightings.insert(&self.desired, &name, seen);
        }
        self
    }

    /// Takes in a listing that an event in the folder led to, and wakes every VM whose declarations changed, or that came
    /// or went.
    pub fn list(&mut self, listed: Desired, gates: &GateState, now: &Now) -> News {
        self.listed_at = now.deadline(Duration::ZERO);
        self.change(Delta::between(&self.desired, listed), gates, now)
    }

    /// Takes in a listing that was made for another reason: it is no event in the folder, and restarts no wait. Unless it
    /// shows that there was one which nobody told of, such as a mount that came back: what is missing from an incomplete
    /// listing is not yet missing.
    pub fn list_again(&mut self, listed: Desired, gates: &GateState, now: &Now) -> News {
        self.listed_at = now.deadline(Duration::ZERO);
        let delta = Delta::between(&self.desired, listed);
        let waits = if delta.sources.is_empty() { self.absences.since.clone() } else { BTreeMap::new() };
        let news = self.change(delta, gates, now);
        self.absences.since.extend(waits.into_iter().filter(|(name, _)| !self.desired.vms.contains_key(name)));
        news
    }

    /// Takes in what an event in the folder changed, as [`Agenda::list`] does. It is no full listing, which absence has to
    /// outlast.
    pub fn change(&mut self, delta: Delta, gates: &GateState, now: &Now) -> News {
        let news = News {
            problems: delta.problems.clone(),
            gaps: delta.new_gaps(&self.desired).map(|(source, why)| (source.clone(), why.to_owned())).collect(),
        };
        let is_other_source = !delta.sources.is_empty();
        let are_other_images = !delta.images.is_empty();
        for name in self.take_up(delta) {
            self.wake(&name, Reason::Manifest);
        }
        let undeclared: Vec<VmName> = self.sightings.undeclared().iter().cloned().collect();
        self.note_absences(&undeclared, gates, now);
        // A source that became complete, or another folder in its place, decides about VMs that it does not declare.
        for name in undeclared.iter().filter(|_| is_other_source) {
            self.wake(name, Reason::Manifest);
        }
        // Which of several VMs may use an image depends on all of them.
        if are_other_images {
            self.wake_unmet();
        }
        news
    }

    /// Takes in that images are others than they were when the manifests were read.
    pub fn note_images(&mut self, delta: Delta) {
        if !delta.images.is_empty() {
            self.take_up(delta);
            self.wake_unmet();
        }
    }

    /// Gives the VMs whose declarations changed.
    fn take_up(&mut self, delta: Delta) -> Vec<VmName> {
        let changed: Vec<VmName> = delta.vms.keys().cloned().collect();
        self.sightings.note_images(&self.desired, &delta);
        self.desired.apply(delta);
        for name in &changed {
            self.sightings.redeclare(&self.desired, name);
        }
        changed
    }

    /// An event in the folder restarts the wait of every VM that it does not declare.
    fn note_absences(&mut self, undeclared: &[VmName], gates: &GateState, now: &Now) {
        let now = now.deadline(Duration::ZERO);
        self.absences.since.retain(|name, _| !self.desired.vms.contains_key(name));
        // One whose deletion was let through waits no more.
        let let_through: BTreeSet<&VmName> = gates.let_through().map(|deletion| &deletion.name).collect();
        for name in undeclared {
            let since = self.absences.since.entry(name.clone()).or_insert_with(|| now.clone());
            if !let_through.contains(name) {
                since.clone_from(&now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::desired::{FileId, SourceState};
    use crate::names::StateId;
    use crate::observed::ObservedVm;
    use crate::plan::{AllowPrune, Hold, Policy, VmPlan};
    use crate::reconcile::agenda::{Report, tests::now};

    #[test]
    fn a_listing_from_before_the_host_was_suspended_is_not_taken_for_the_second_one() {
        let (web, gates): (VmName, _) = ("web".parse().unwrap(), GateState::default());
        let mut agenda = Agenda::new(Policy::default(), AllowPrune::default(), None, &gates, &now(0));
        agenda.list(Desired::default(), &gates, &now(10));
        assert!(!agenda.wants_listing(&web, &now(10)), "its absence is noted, and has to last");
        assert!(!agenda.wants_listing(&web, &now(12)));
        assert!(agenda.wants_listing(&web, &now(13)), "the delay is over");
        // An hour of sleep, in which no timer ran and nobody listed anything.
        assert!(agenda.wants_listing(&web, &now(3_610)));
        agenda.list_again(Desired::default(), &gates, &now(3_610));
        assert!(!agenda.wants_listing(&web, &now(3_610)));
    }

    /// A listing of a folder that declares nothing, read or not.
    fn listing(is_complete: bool) -> Desired {
        let incomplete = if is_complete { Vec::new() } else { vec!["it cannot be read".to_owned()] };
        let state = SourceState {
            incomplete,
            root: Some(FileId { device: 1, inode: 1 }),
            empty: true,
            elsewhere: std::sync::Arc::default(),
        };
        let sources = [(SourceName("manifests".to_owned()), state)].into();
        Desired { sources, ..Desired::default() }
    }

    #[test]
    fn what_is_missing_from_an_incomplete_listing_is_not_yet_missing() {
        let (web, gates): (VmName, _) = ("web".parse().unwrap(), GateState::default());
        let mut agenda = Agenda::new(Policy::default(), AllowPrune::default(), None, &gates, &now(0));
        agenda.list(listing(false), &gates, &now(10));
        agenda.wants_listing(&web, &now(10));
        let uid = StateId::derive("m", std::path::Path::new("/s")).uid(&web);
        let observed = ObservedVm::nothing(web.clone(), uid);
        let held = VmPlan { holds: vec![Hold::SourceIncomplete(Vec::new())], ..VmPlan::default() };
        let report = Report { observed, plan: held, changes: 0, failure: None, wake: None, under_way: None };
        agenda.end_turn(web.clone(), report, Instant::now());
        // It is read again, as after a mount that came back: nobody tells of that, and a full pass finds it.
        agenda.list_again(listing(true), &gates, &now(3_600));
        assert_eq!(agenda.absences.since.get(&web), Some(&now(3_600).deadline(Duration::ZERO)));
        // From then on a full pass restarts no wait.
        agenda.list_again(listing(true), &gates, &now(3_602));
        assert_eq!(agenda.absences.since.get(&web), Some(&now(3_600).deadline(Duration::ZERO)));
    }
}
