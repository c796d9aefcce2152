//! Full passes: the net under all events. What each costs is told in the log.
//!
//! A thorough pass looks at every VM. A quick one looks at those that something is to be done about, and glances at all
//! others (`observed::glance`), which takes a hundredth of the time; a thorough one ends with a glance for what no record names.
//! The first pass is thorough, and so is each that a person asks for and every sixth of the others.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Pass as Told;
use crate::names::VmName;
use crate::wakeups::Reason;

/// Of so many passes that the clock asks for, one is thorough: with the default interval, one an hour.
const THOROUGH_EVERY: u32 = 6;

/// How closely a pass looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// At every VM.
    Thorough,
    /// At those with something to be done, and at those that a glance finds changed.
    Quick,
}

impl Depth {
    /// Its word, for logs and counters.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Thorough => "thorough",
            Self::Quick => "quick",
        }
    }
}

/// The passes of one stead.
#[derive(Debug, Default)]
pub(super) struct Passes {
    /// Quick ones since the last thorough one.
    quick: u32,
    under_way: Option<Pass>,
}

/// A pass that is under way.
#[derive(Debug)]
struct Pass {
    reason: Reason,
    depth: Depth,
    began: Instant,
    /// What listing the manifests took, once they are.
    listing: Option<Duration>,
    /// Whether the glance that belongs to it was begun.
    glances: bool,
    /// What the glance took, once it was made.
    glance: Option<Duration>,
    /// How many VMs it is about.
    vms: usize,
    /// Those whose turn is still to end.
    waiting: BTreeSet<VmName>,
    /// Turns that ended.
    turns: usize,
    /// Actions carried out in them.
    changes: usize,
    /// Questions that the host had been asked when it began.
    looks: u64,
}

impl Pass {
    fn has_had_its_turns(&self) -> bool {
        self.listing.is_some() && self.waiting.is_empty()
    }
}

impl Passes {
    /// How closely the next pass looks, if the clock asks for it.
    pub(super) fn next_depth(&mut self) -> Depth {
        self.quick = (self.quick + 1) % THOROUGH_EVERY;
        if self.quick == 0 { Depth::Thorough } else { Depth::Quick }
    }

    /// A pass begins, in place of one that is under way still, when the host has been asked so many questions.
    pub(super) fn begin(&mut self, reason: Reason, depth: Depth, looks: u64) {
        if depth == Depth::Thorough {
            self.quick = 0;
        }
        let (began, listing, waiting) = (Instant::now(), None, BTreeSet::new());
        let (glances, glance, vms, turns, changes) = (false, None, 0, 0, 0);
        self.under_way =
            Some(Pass { reason, depth, began, listing, glances, glance, vms, waiting, turns, changes, looks });
    }

    /// All is listed: it is about so many VMs, and the turns of these are part of it.
    pub(super) fn listed(&mut self, vms: usize, woken: BTreeSet<VmName>) {
        if let Some(pass) = &mut self.under_way {
            pass.listing = Some(pass.began.elapsed());
            pass.vms = vms;
            pass.waiting.extend(woken);
        }
    }

    /// The pass's depth if it is time for its glance at the host, which is told once: a quick pass begins with it, a thorough one
    /// ends with it, when it is known of each VM what it holds.
    pub(super) fn begin_glance(&mut self) -> Option<Depth> {
        let is_time = |pass: &&mut Pass| !pass.glances && (pass.depth == Depth::Quick || pass.has_had_its_turns());
        let pass = self.under_way.as_mut().filter(is_time)?;
        pass.glances = true;
        Some(pass.depth)
    }

    /// Whether a VM that one is about still waits for its turn, or has it. What comes after that looks for what nobody misses.
    pub(super) fn waits_for_turns(&self) -> bool {
        self.under_way.as_ref().is_some_and(|pass| !pass.has_had_its_turns())
    }

    /// Nothing more is expected of it: the time ran out.
    pub(super) fn stop(&mut self) {
        self.under_way = None;
    }

    /// Its glance has ended: these VMs get a turn too.
    pub(super) fn end_glance(&mut self, took: Duration, changed: BTreeSet<VmName>) {
        if let Some(pass) = self.under_way.as_mut().filter(|pass| pass.glances) {
            pass.glance = Some(took);
            pass.waiting.extend(changed);
        }
    }

    /// A VM's turn ended, or is not waited for any more.
    pub(super) fn end_turn(&mut self, name: &VmName, changes: usize) {
        if let Some(pass) = &mut self.under_way
            && pass.waiting.remove(name)
        {
            pass.turns += 1;
            pass.changes += changes;
        }
    }

    /// Tells of the pass once it is through, when the host has been asked so many questions: how closely it looked, and what it
    /// took.
    pub(super) fn tell(&mut self, looks: u64) -> Option<(Depth, Told)> {
        let is_through = |pass: &mut Pass| pass.has_had_its_turns() && pass.glance.is_some();
        let pass = self.under_way.take_if(is_through)?;
        let told = Told {
            took: pass.began.elapsed(),
            listing: pass.listing.unwrap_or_default(),
            glance: pass.glance.unwrap_or_default(),
            vms: pass.vms,
            turns: pass.turns,
            looks: looks.saturating_sub(pass.looks),
        };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(
            reason = ?pass.reason,
            depth = %pass.depth.word(),
            vms = told.vms,
            turns = told.turns,
            changes = pass.changes,
            looks = told.looks,
            listing_micros = micros(told.listing),
            glance_micros = micros(told.glance),
            micros = micros(told.took),
            "full pass"
        );
        Some((pass.depth, told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn woken(names: &[&str]) -> BTreeSet<VmName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_quick_pass_glances_while_it_lists_and_ends_after_both() {
        let mut passes = Passes::default();
        passes.begin(Reason::Resync, Depth::Quick, 40);
        assert_eq!((passes.begin_glance(), passes.begin_glance()), (Some(Depth::Quick), None), "told once");
        passes.end_glance(Duration::from_millis(3), woken(&["db"]));
        assert!(passes.tell(0).is_none() && passes.waits_for_turns(), "nothing is listed yet");
        passes.listed(2, woken(&["web"]));
        passes.end_turn(&"web".parse().unwrap(), 0);
        assert!(passes.tell(0).is_none(), "what the glance found has its turn too");
        passes.end_turn(&"db".parse().unwrap(), 1);
        let (depth, told) = passes.tell(52).unwrap();
        assert_eq!((depth, told.vms, told.turns, told.looks), (Depth::Quick, 2, 2, 12));
        assert_eq!(told.glance, Duration::from_millis(3));
        assert!(told.listing <= told.took);
        assert!(passes.tell(0).is_none() && !passes.waits_for_turns());
    }

    #[test]
    fn a_thorough_pass_glances_last_and_one_that_lists_nothing_is_none() {
        let mut passes = Passes::default();
        passes.begin(Reason::Startup, Depth::Thorough, 0);
        assert!(passes.begin_glance().is_none() && passes.waits_for_turns(), "as long as nothing is listed");
        passes.begin(Reason::Resync, Depth::Thorough, 0);
        passes.listed(1, woken(&["web"]));
        assert_eq!(passes.begin_glance(), None);
        passes.end_turn(&"web".parse().unwrap(), 0);
        assert!(passes.begin_glance() == Some(Depth::Thorough) && !passes.waits_for_turns());
        assert!(passes.tell(0).is_none());
        passes.end_glance(Duration::ZERO, BTreeSet::new());
        assert_eq!(passes.tell(0).map(|(depth, _)| depth), Some(Depth::Thorough));
    }
}
