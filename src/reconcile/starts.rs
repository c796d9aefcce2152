//! How many VMs start at once, and who is next.
//!
//! A host that boots has all its VMs to start. Started all at once they fight for its CPUs, and the first of them runs when the
//! last does. So only so many are starting at any moment: from before the VMM is
//! spawned until its guest is seen to run. The others wait in the order in which they asked, and those whose last start took
//! too long behind all others: a hundred VMs that hang at every start keep no sound one waiting for more than one of them does.
//!
//! No clock and no IO: whoever asks says when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::names::VmName;

/// How long a VM that starts keeps others waiting, at least: one that hangs, or whose guest takes its time, holds up nobody.
const KEEPS_PLACE: Duration = Duration::from_secs(4);
/// As much longer at most, by a VM's name: a whole host of VMs that hang makes room one by one, and not all at once.
const JITTER: Duration = Duration::from_secs(2);

/// Those that start, and those that wait to.
#[derive(Debug)]
pub(super) struct StartLimit {
    limit: usize,
    /// Until when each keeps its place. Those whose time is over start on, and do not count.
    starting: BTreeMap<VmName, Instant>,
    /// Who waits, by their places in the line.
    waiting: BTreeMap<Place, Waiting>,
    places: BTreeMap<VmName, Place>,
    drawn: u64,
    /// Those who did not run when their time was over, when they were started last.
    slow: BTreeSet<VmName>,
}

/// A place in the line: who was slow stands behind who was not, otherwise whoever asked first is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_slow: bool,
    number: u64,
}

#[derive(Debug)]
struct Waiting {
    name: VmName,
    /// If it was called and has not asked since: until when it keeps its place at the head of the line. One that hangs before it
    /// asks keeps nobody waiting either; it asks when it can, and is the first then.
    called: Option<Instant>,
}

impl Waiting {
    fn is_missing(&self, now: Instant) -> bool {
        self.called.is_some_and(|until| until <= now)
    }
}

impl StartLimit {
    /// So many at once.
    pub(super) fn new(limit: usize) -> Self {
        let (starting, waiting, places) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { limit, starting, waiting, places, drawn: 0, slow: BTreeSet::new() }
    }

    /// Whether this VM may be started now. If not, [`StartLimit::call`] names it when its turn comes.
    ///
    /// # Errors
    /// How many may be starting at once, where it has to wait.
    pub(super) fn ask(&mut self, name: &VmName, now: Instant) -> Result<(), usize> {
        if self.starting.contains_key(name) {
            return Ok(());
        }
        let place = self.places.get(name).copied().unwrap_or_else(|| {
            self.drawn += 1;
            let place = Place { is_slow: self.slow.contains(name), number: self.drawn };
            self.places.insert(name.clone(), place);
            place
        });
        self.waiting.insert(place, Waiting { name: name.clone(), called: None });
        if !self.first(now).any(|(next, _)| next == place) {
            return Err(self.limit);
        }
        self.leave_line(name);
        self.starting.insert(name.clone(), now + keeps_place(name));
        Ok(())
    }

    /// A turn of this VM has ended: it is starting or not, and is to be started or not.
    pub(super) fn end_turn(&mut self, name: &VmName, is_starting: bool, is_to_start: bool, now: Instant) {
        if is_starting {
            // An earlier stead may have begun it.
            self.starting.entry(name.clone()).or_insert_with(|| now + keeps_place(name));
        } else if let Some(until) = self.starting.remove(name) {
            if until <= now {
                self.slow.insert(name.clone())
            } else {
                self.slow.remove(name)
            };
        }
        if !is_to_start {
            self.leave_line(name);
        }
    }

    fn leave_line(&mut self, name: &VmName) {
        if let Some(place) = self.places.remove(name) {
            self.waiting.remove(&place);
        }
    }

    /// Those for whom there is a place by now, each once: to be looked at, which leads to their asking again.
    pub(super) fn call(&mut self, now: Instant) -> Vec<VmName> {
        let first = self.first(now).filter(|(_, next)| next.called.is_none());
        let called: Vec<(Place, VmName)> = first.map(|(place, next)| (place, next.name.clone())).collect();
        for (place, name) in &called {
            let called = Some(now + keeps_place(name));
            self.waiting.insert(*place, Waiting { name: name.clone(), called });
        }
        called.into_iter().map(|(_, name)| name).collect()
    }

    /// When to call again at the latest, if anybody waits: a place becomes free by itself then.
    pub(super) fn next_call(&self, now: Instant) -> Option<Instant> {
        if self.first(now).any(|(_, next)| next.called.is_none()) {
            return Some(now);
        }
        if !self.present(now).any(|(_, next)| next.called.is_none()) {
            return None;
        }
        // Only who stands before all others keeps them waiting: this is asked at each event, and the line may be long.
        let called = self.first(now).filter_map(|(_, next)| next.called);
        self.starting.values().copied().filter(|until| *until > now).chain(called).min()
    }

    /// The line without those who were called and do not ask.
    fn present(&self, now: Instant) -> impl Iterator<Item = (Place, &Waiting)> {
        self.waiting.iter().filter(move |(_, next)| !next.is_missing(now)).map(|(place, next)| (*place, next))
    }

    /// As many from its head as there are places.
    fn first(&self, now: Instant) -> impl Iterator<Item = (Place, &Waiting)> {
        self.present(now).take(self.free(now))
    }

    /// How many start and keep a place, and how many wait for one.
    pub(super) fn counts(&self, now: Instant) -> (usize, usize) {
        (self.starting.values().filter(|until| **until > now).count(), self.waiting.len())
    }

    fn free(&self, now: Instant) -> usize {
        self.limit.saturating_sub(self.counts(now).0)
    }
}

/// How long this VM keeps others waiting.
fn keeps_place(name: &VmName) -> Duration {
    // FNV-1a: spreads names that differ in one digit.
    let hash =
        name.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    KEEPS_PLACE + JITTER * (hash >> 24) / 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(number: usize) -> VmName {
        format!("vm-{number}").parse().unwrap()
    }

    /// So many may start, and so many have asked.
    fn asked(limit: usize, count: usize, now: Instant) -> StartLimit {
        let mut starts = StartLimit::new(limit);
        (0..count).for_each(|number| assert_eq!(starts.ask(&vm(number), now).is_ok(), number < limit));
        starts
    }

    #[test]
    fn no_more_start_at_once_than_may_and_the_others_follow_in_their_order() {
        let now = Instant::now();
        let mut limit = asked(2, 5, now);
        assert_eq!(limit.call(now), []);
        limit.end_turn(&vm(0), true, false, now);
        assert_eq!(limit.call(now), [], "it is starting still");
        limit.end_turn(&vm(0), false, false, now);
        assert_eq!(limit.next_call(now), Some(now));
        assert_eq!(limit.call(now), [vm(2)]);
        assert_eq!((limit.call(now), limit.next_call(now) > Some(now)), (vec![], true), "nobody is called twice");
        assert_eq!(limit.ask(&vm(9), now), Err(2), "whoever comes later waits, even when there is a place");
        assert_eq!(limit.ask(&vm(3), now), Err(2), "whoever is not the first in line too");
        assert_eq!(limit.ask(&vm(2), now), Ok(()));
        assert_eq!(limit.ask(&vm(2), now), Ok(()), "it has its place until it runs");
        assert_eq!(limit.call(now), []);
    }

    #[test]
    fn who_is_not_to_be_started_any_more_keeps_nobody_waiting() {
        let now = Instant::now();
        let mut limit = asked(1, 3, now);
        limit.end_turn(&vm(1), false, false, now);
        limit.end_turn(&vm(2), false, true, now);
        limit.end_turn(&vm(0), false, false, now);
        assert_eq!(limit.call(now), [vm(2)]);
        assert_eq!(limit.ask(&vm(2), now), Ok(()));
        assert_eq!(limit.next_call(now), None, "nobody waits");
        limit.end_turn(&vm(2), false, false, now);
        assert!(limit.waiting.is_empty() && limit.places.is_empty() && limit.starting.is_empty());
    }

    #[test]
    fn who_was_called_in_vain_is_called_again() {
        let now = Instant::now();
        let mut limit = asked(1, 2, now);
        limit.end_turn(&vm(0), false, false, now);
        assert_eq!(limit.call(now), [vm(1)]);
        // One that an earlier stead began is found meanwhile.
        limit.end_turn(&vm(7), true, false, now);
        assert_eq!(limit.ask(&vm(1), now), Err(1));
        limit.end_turn(&vm(7), false, false, now);
        assert_eq!(limit.call(now), [vm(1)]);
    }

    #[test]
    fn who_was_called_and_never_asks_keeps_the_next_waiting_for_some_seconds_only() {
        let now = Instant::now();
        let mut limit = asked(1, 3, now);
        limit.end_turn(&vm(0), false, false, now);
        assert_eq!(limit.call(now), [vm(1)]);
        assert_eq!(limit.ask(&vm(2), now), Err(1));
        let later = limit.next_call(now).unwrap();
        assert!(later >= now + KEEPS_PLACE && later <= now + KEEPS_PLACE + JITTER);
        assert_eq!(limit.call(later), [vm(2)]);
        assert_eq!(limit.ask(&vm(2), later), Ok(()));
        limit.end_turn(&vm(2), false, false, later);
        assert_eq!(limit.ask(&vm(3), later), Ok(()), "who is missing keeps nobody who comes later waiting either");
        limit.end_turn(&vm(3), false, false, later);
        assert_eq!(limit.ask(&vm(1), later), Ok(()), "when it asks after all it is let through");
    }

    #[test]
    fn who_hangs_at_every_start_waits_behind_who_does_not() {
        let now = Instant::now();
        let mut limit = asked(1, 1, now);
        let later = now + KEEPS_PLACE + JITTER;
        limit.end_turn(&vm(0), false, false, later);
        assert_eq!(limit.ask(&vm(1), later), Ok(()));
        // They ask one after the other.
        for number in [0, 2, 3] {
            assert_eq!(limit.ask(&vm(number), later), Err(1));
        }
        for (before, number) in [(1, 2), (2, 3), (3, 0)] {
            limit.end_turn(&vm(before), false, false, later);
            assert_eq!(limit.call(later), [vm(number)]);
            assert_eq!(limit.ask(&vm(number), later), Ok(()));
        }
        limit.end_turn(&vm(0), false, false, later);
        assert!(limit.slow.is_empty(), "one start in time, and it is as good as any");
    }

    #[test]
    fn vms_that_hang_while_they_start_make_room_one_by_one() {
        let now = Instant::now();
        let mut limit = asked(50, 100, now);
        let (mut last, mut called, mut moments) = (now, 0, 0);
        while let Some(moment) = limit.next_call(last).filter(|_| moments < 200) {
            assert!(moment > last && moment >= now + KEEPS_PLACE && moment <= now + KEEPS_PLACE + JITTER);
            (last, moments) = (moment, moments + 1);
            let next = limit.call(moment);
            called += next.len();
            // They start, and go on to hang too.
            for name in next {
                limit.leave_line(&name);
                limit.starting.insert(name, now + 2 * KEEPS_PLACE);
            }
        }
        assert!(moments > 25, "{moments} moments for 50 VMs");
        assert_eq!(called, 50);
        let free = limit.free(last);
        limit.end_turn(&vm(0), true, false, last);
        assert_eq!(limit.free(last), free, "one that hangs on does not take its place again");
    }
}
