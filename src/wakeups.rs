//! Reasons to look at VMs: one slot a VM, so that a burst of events leads to one look, and no two workers are ever on one
//! VM.
//!
//! Names are queued, not events: a wakeup carries no state, and what is to be done is found by looking. A wakeup during
//! work means exactly one more look after it (the dirty and processing sets of Kubernetes' client-go work queue). Of two
//! deadlines the earlier wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::names::VmName;

/// After so long a VM's worker counts as stuck: every call that it makes is bounded, but a kernel that hangs knows no bounds.
/// Longer than the longest wait for an image that another VM's worker is busy with.
pub const OVERDUE: Duration = Duration::from_secs(45);

/// A turn that takes longer waits for more than a CPU: one that finds nothing to do takes less than a millisecond.
const BRISK: Duration = Duration::from_millis(5);

/// Why a VM is looked at. For people and counters; nothing is decided from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// stead started.
    Startup,
    /// Its manifest, or the listing it is in, changed.
    Manifest,
    /// Its VMM ended.
    Exited,
    /// A moment came: back-off, grace, prune delay, a guest that should be running by now.
    Deadline,
    /// Everything is looked at again.
    Resync,
    /// Somebody asked.
    Request,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Startup, Self::Manifest, Self::Exited, Self::Deadline, Self::Resync, Self::Request];
}

/// The queue.
#[derive(Debug, Default)]
pub struct Wakeups {
    slots: BTreeMap<VmName, Slot>,
    ready: VecDeque<VmName>,
    deadlines: BTreeSet<(Instant, VmName)>,
    /// Who is worked on, and since when, without those that are overdue.
    working: BTreeSet<(Instant, VmName)>,
    overdue: BTreeSet<VmName>,
}

/// How one VM stands in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Somebody works on it.
    pub working: bool,
    /// There is a reason to look at it that no worker has taken up.
    pub woken: bool,
    /// When it is looked at, at the latest.
    pub deadline: Option<Instant>,
}

#[derive(Debug, Default)]
struct Slot {
    reasons: BTreeSet<Reason>,
    deadline: Option<Instant>,
    /// Since when it is worked on.
    working: Option<Instant>,
}

impl Wakeups {
    /// Has the VM looked at as soon as a worker is free.
    pub fn wake(&mut self, name: &VmName, reason: Reason) {
        let slot = self.slots.entry(name.clone()).or_default();
        // While it is worked on, the reason alone is kept: `finish` queues it again, once.
        if slot.reasons.is_empty() && slot.working.is_none() {
            self.ready.push_back(name.clone());
        }
        slot.reasons.insert(reason);
    }

    /// Has the VM looked at at this moment, or earlier if an earlier one was set.
    pub fn wake_at(&mut self, name: &VmName, when: Instant) {
        let slot = self.slots.entry(name.clone()).or_default();
        if slot.deadline.is_some_and(|earlier| earlier <= when) {
            return;
        }
        if let Some(later) = slot.deadline.replace(when) {
            self.deadlines.remove(&(later, name.clone()));
        }
        self.deadlines.insert((when, name.clone()));
    }

    /// Has every VM whose deadline has come wait for a worker.
    pub fn promote(&mut self, now: Instant) {
        while let Some((when, name)) = self.deadlines.first().cloned() {
            if when > now {
                break;
            }
            self.deadlines.remove(&(when, name.clone()));
            if let Some(slot) = self.slots.get_mut(&name) {
                slot.deadline = None;
            }
            self.wake(&name, Reason::Deadline);
        }
    }

    /// The next VM to work on, with every reason that came together; it is the caller's until [`Wakeups::finish`].
    pub fn take(&mut self, now: Instant) -> Option<(VmName, BTreeSet<Reason>)> {
        self.promote(now);
        let name = self.ready.pop_front()?;
        let slot = self.slots.entry(name.clone()).or_default();
        slot.working = Some(now);
        // The look that follows is the one the deadline would have led to, and sets a new one if it needs one.
        if let Some(deadline) = slot.deadline.take() {
            self.deadlines.remove(&(deadline, name.clone()));
        }
        let reasons = std::mem::take(&mut slot.reasons);
        self.working.insert((now, name.clone()));
        Some((name, reasons))
    }

    /// Gives the VM back. If it was woken meanwhile it is queued once more.
    pub fn finish(&mut self, name: &VmName) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(since) = slot.working.take() else { return };
        if !self.overdue.remove(name) {
            self.working.remove(&(since, name.clone()));
        }
        if !slot.reasons.is_empty() {
            self.ready.push_back(name.clone());
        } else if slot.deadline.is_none() {
            self.slots.remove(name);
        }
    }

    /// Forgets everyone who waits; who is being worked on stays so.
    pub fn clear(&mut self) {
        self.ready.clear();
        self.deadlines.clear();
        self.slots.retain(|_, slot| {
            slot.reasons.clear();
            slot.deadline = None;
            slot.working.is_some()
        });
    }

    /// When the next deadline comes.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(when, _)| *when)
    }

    /// How this VM stands.
    pub fn standing(&self, name: &VmName) -> Standing {
        self.slots.get(name).map_or_else(Standing::default, |slot| Standing {
            working: slot.working.is_some(),
            woken: !slot.reasons.is_empty(),
            deadline: slot.deadline,
        })
    }

    /// Who waits for a worker, the next one first.
    pub fn ready(&self) -> impl Iterator<Item = &VmName> {
        self.ready.iter()
    }

    /// Whether nobody works and nobody waits for a worker. Deadlines may be set.
    pub fn is_idle(&self) -> bool {
        self.working() == 0 && self.ready.is_empty()
    }

    /// How many VMs are being worked on.
    pub fn working(&self) -> usize {
        self.working.len() + self.overdue.len()
    }

    /// How many workers are taken. One that is overdue keeps its own VM from being worked on, and no other.
    pub fn taken(&self) -> usize {
        self.working.len()
    }

    /// Whether another turn may begin by now, of at most `most` at once. Turns that are short only wait for each other's CPUs
    /// if there are more than `busy` of them, and each that does has a thread, with a memory of its own: only those that have
    /// lasted longer than [`BRISK`], and so wait for something else, let others begin beside them.
    pub fn lets_begin(&self, now: Instant, busy: usize, most: usize) -> bool {
        self.taken() < most && self.working.iter().rev().take_while(|(since, _)| *since + BRISK > now).count() < busy
    }

    /// When another turn may begin beside those that are under way, if one waits for nothing but that.
    pub fn next_place(&self, busy: usize, most: usize) -> Option<Instant> {
        let waits = !self.ready.is_empty() && self.taken() < most;
        let (since, _) = self.working.iter().rev().nth(busy.saturating_sub(1)).filter(|_| waits)?;
        Some(*since + BRISK)
    }

    /// Finds out whose work has become overdue by now.
    pub fn find_overdue(&mut self, now: Instant) -> Vec<VmName> {
        let mut found = Vec::new();
        while let Some((since, name)) = self.working.first().cloned().filter(|(since, _)| *since + OVERDUE <= now) {
            self.working.remove(&(since, name.clone()));
            self.overdue.insert(name.clone());
            found.push(name);
        }
        found
    }

    /// When the next worker will be overdue.
    pub fn next_overdue(&self) -> Option<Instant> {
        self.working.first().map(|(since, _)| *since + OVERDUE)
    }

    /// Whether this VM's work is overdue.
    pub fn is_overdue(&self, name: &VmName) -> bool {
        self.overdue.contains(name)
    }

    /// Whose work is overdue.
    pub fn overdue(&self) -> impl Iterator<Item = &VmName> {
        self.overdue.iter()
    }

    /// Who is being worked on, and since when.
    pub fn at_work(&self) -> impl Iterator<Item = (&VmName, Instant)> {
        self.slots.iter().filter_map(|(name, slot)| Some((name, slot.working?)))
    }

    /// How many VMs wait for a worker.
    pub fn depth(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn vm(name: &str) -> VmName {
        name.parse().unwrap()
    }

    #[test]
    fn a_burst_of_wakeups_is_one_look() {
        let mut wakeups = Wakeups::default();
        for _ in 0..1_000 {
            wakeups.wake(&vm("a"), Reason::Manifest);
            wakeups.wake(&vm("a"), Reason::Exited);
        }
        let (name, reasons) = wakeups.take(Instant::now()).unwrap();
        assert_eq!((name, reasons), (vm("a"), BTreeSet::from([Reason::Manifest, Reason::Exited])));
        assert_eq!(wakeups.take(Instant::now()), None);
    }

    #[test]
    fn turns_that_last_make_room_for_others_and_short_ones_do_not() {
        let mut wakeups = Wakeups::default();
        for name in ["a", "b", "c", "d"] {
            wakeups.wake(&vm(name), Reason::Startup);
        }
        let start = Instant::now();
        assert_eq!(wakeups.next_place(2, 3), None, "nobody works");
        for _ in 0..2 {
            assert!(wakeups.lets_begin(start, 2, 3));
            wakeups.take(start).unwrap();
        }
        assert!(!wakeups.lets_begin(start, 2, 3));
        assert_eq!(wakeups.next_place(2, 3), Some(start + BRISK));
        assert!(wakeups.lets_begin(start + BRISK, 2, 3));
        wakeups.take(start + BRISK).unwrap();
        assert!(!wakeups.lets_begin(start + 2 * BRISK, 2, 3), "three are as many as may be");
        assert_eq!(wakeups.next_place(2, 3), None, "time alone makes no room");
        wakeups.finish(&vm("a"));
        assert!(wakeups.lets_begin(start + 2 * BRISK, 2, 3));
        wakeups.take(start + BRISK).unwrap();
        assert_eq!(wakeups.next_place(2, 9), None, "nobody waits");
    }

    #[test]
    fn a_wakeup_during_work_is_exactly_one_more_look_and_never_a_second_worker() {
        let mut wakeups = Wakeups::default();
        wakeups.wake(&vm("a"), Reason::Startup);
        wakeups.take(Instant::now()).unwrap();
        wakeups.wake(&vm("a"), Reason::Manifest);
        wakeups.wake(&vm("a"), Reason::Manifest);
        assert_eq!(wakeups.take(Instant::now()), None);
        wakeups.finish(&vm("a"));
        assert!(wakeups.take(Instant::now()).is_some());
        wakeups.finish(&vm("a"));
        assert_eq!(wakeups.take(Instant::now()), None);
        assert!(wakeups.is_idle());
        assert!(wakeups.slots.is_empty(), "a VM with nothing to wait for takes no room");
    }

    #[test]
    fn the_earlier_of_two_deadlines_wins_and_fires_once() {
        let mut wakeups = Wakeups::default();
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        wakeups.wake_at(&vm("a"), later);
        wakeups.wake_at(&vm("a"), soon);
        wakeups.wake_at(&vm("a"), later);
        assert_eq!(wakeups.next_deadline(), Some(soon));
        assert_eq!(wakeups.take(now), None);
        assert!(wakeups.take(soon).is_some());
        wakeups.finish(&vm("a"));
        assert_eq!(wakeups.take(later), None);
        assert_eq!(wakeups.next_deadline(), None);
    }

    #[test]
    fn one_vm_at_work_delays_no_other() {
        let mut wakeups = Wakeups::default();
        wakeups.wake(&vm("stuck"), Reason::Startup);
        wakeups.take(Instant::now()).unwrap();
        wakeups.wake(&vm("b"), Reason::Startup);
        assert_eq!(wakeups.take(Instant::now()).unwrap().0, vm("b"));
    }

    #[test]
    fn work_that_is_overdue_takes_no_worker_from_others_and_its_vm_still_has_only_one() {
        let mut wakeups = Wakeups::default();
        let now = Instant::now();
        wakeups.wake(&vm("stuck"), Reason::Startup);
        wakeups.take(now).unwrap();
        assert_eq!(wakeups.next_overdue(), Some(now + OVERDUE));
        assert_eq!(wakeups.find_overdue(now + OVERDUE / 2), Vec::new());
        assert_eq!(wakeups.find_overdue(now + OVERDUE), [vm("stuck")]);
        assert_eq!((wakeups.taken(), wakeups.working(), wakeups.next_overdue()), (0, 1, None));
        wakeups.wake(&vm("stuck"), Reason::Manifest);
        assert_eq!(wakeups.take(now + OVERDUE), None);
        wakeups.finish(&vm("stuck"));
        assert_eq!((wakeups.taken(), wakeups.working(), wakeups.overdue().count()), (0, 0, 0));
        assert!(wakeups.take(now + OVERDUE).is_some(), "the wakeup is not lost");
    }

    #[test]
    fn a_deadline_that_comes_during_work_is_not_lost() {
        let mut wakeups = Wakeups::default();
        let now = Instant::now();
        wakeups.wake(&vm("a"), Reason::Startup);
        wakeups.take(now).unwrap();
        wakeups.wake_at(&vm("a"), now);
        assert_eq!(wakeups.take(now), None);
        wakeups.finish(&vm("a"));
        assert!(wakeups.take(now).is_some());
    }

    /// Stopping clears the queue, at whatever point of a VM's way through it: who works ends as ever, no slot stays taken, and
    /// what comes later has its turn.
    #[test]
    fn a_wait_for_a_slot_that_is_cancelled_at_any_point_leaves_the_slot_free() {
        let now = Instant::now();
        let steps: &[fn(&mut Wakeups, Instant)] = &[
            |wakeups, now| wakeups.wake_at(&vm("a"), now + OVERDUE),
            |wakeups, _| wakeups.wake(&vm("a"), Reason::Startup),
            |wakeups, now| drop(wakeups.take(now)),
            |wakeups, _| wakeups.wake(&vm("a"), Reason::Request),
            |wakeups, now| wakeups.wake_at(&vm("a"), now + OVERDUE),
            |wakeups, now| drop(wakeups.find_overdue(now + OVERDUE)),
            |wakeups, _| wakeups.finish(&vm("a")),
            |wakeups, now| drop(wakeups.take(now)),
            |wakeups, _| wakeups.finish(&vm("a")),
        ];
        for cut in 0..=steps.len() {
            let mut wakeups = Wakeups::default();
            steps[..cut].iter().for_each(|step| step(&mut wakeups, now));
            let at_work = wakeups.working();
            wakeups.clear();
            assert_eq!(wakeups.working(), at_work, "cleared after step {cut}: who works goes on");
            assert_eq!((wakeups.take(now), wakeups.next_deadline()), (None, None), "nobody waits any more");
            wakeups.finish(&vm("a"));
            assert!(wakeups.is_idle() && wakeups.slots.is_empty(), "cleared after step {cut}: {wakeups:?}");
            assert_eq!((wakeups.working(), wakeups.taken(), wakeups.next_overdue()), (0, 0, None));
            wakeups.wake(&vm("a"), Reason::Startup);
            assert!(wakeups.take(now).is_some(), "cleared after step {cut}: a later wakeup is not lost");
        }
    }
}
