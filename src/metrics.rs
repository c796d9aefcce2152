//! What a running stead counts, for Prometheus and for who watches over it: `/metrics`, `/healthz` and `/readyz`.
//!
//! What happens is counted when it happens, by whoever it happens to, and a scrape copies some two hundred numbers: it asks
//! neither the loop nor the host, costs the same however many VMs there are, and between scrapes nothing wakes up. No label
//! names a VM: their number has no bound, nor has that of the names that a host sees in its life. What it is about a VM is in
//! `stead get`, `describe` and `events`.

mod line;
mod pulse;
mod serve;
pub mod table;
mod text;

pub use pulse::Pulse;
pub use serve::{CONTENT_TYPE, Listener, MetricsError, Server};

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use line::Word;

use crate::audit::Outcome;
use crate::desired::SourceName;
use crate::names::VmName;
use crate::plan::{Action, Hold, VmPlan};
use crate::status::{ConditionStatus, ConditionType, Status, VmPhase};
use crate::wakeups::Reason;

/// How closely a full pass looked, as labels have it.
pub const DEPTHS: [&str; 2] = ["quick", "thorough"];
/// What a full pass spends its time on beside the turns of VMs, as labels have it: see [`Pass`].
pub const STAGES: [&str; 2] = ["listing", "glance"];
/// Upper bounds of the buckets of how long a full pass takes, in seconds. One VM takes a thousandth, a thousand that start half
/// a minute.
const PASS_BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

/// The numbers.
#[derive(Debug, Clone, Default)]
struct Counts {
    vms: VmCounts,
    actions: BTreeMap<(&'static str, Outcome), u64>,
    wakeups: BTreeMap<Reason, u64>,
    passes: BTreeMap<&'static str, Passes>,
    passes_put_off: u64,
    queue: Queue,
    orphans: u64,
    orphans_freed: u64,
    orphans_unfreed: u64,
    sources: BTreeMap<SourceName, SourceCounts>,
    problems: u64,
    audit_lost: u64,
}

/// VMs, by what they are.
#[derive(Debug, Clone, Default)]
struct VmCounts {
    phases: BTreeMap<VmPhase, u64>,
    conditions: BTreeMap<(ConditionType, ConditionStatus), u64>,
    holds: BTreeMap<&'static str, u64>,
    restarts: u64,
    words: BTreeMap<Word, u64>,
    /// Whether the words differ from those that were told last.
    is_news: bool,
}

/// What of one VM is in [`VmCounts`].
#[derive(Debug)]
struct Tally {
    phase: VmPhase,
    conditions: [(ConditionType, ConditionStatus); ConditionType::ALL.len()],
    holds: Vec<&'static str>,
    restarts: u32,
    word: Word,
}

/// Full passes of one depth.
#[derive(Debug, Clone, Default)]
struct Passes {
    took: Histogram,
    last: Option<Timestamp>,
    /// In the order of [`STAGES`].
    stages: [Duration; STAGES.len()],
    vms: u64,
    turns: u64,
    looks: u64,
}

/// What one full pass came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// From its beginning until its last turn and its glance had ended.
    pub took: Duration,
    /// Of that, until the manifests and the state were listed. The first pass of a stead lists its manifests before it begins.
    pub listing: Duration,
    /// How long it glanced at the host, which a quick pass does while it lists.
    pub glance: Duration,
    /// VMs that it was about.
    pub vms: usize,
    /// Turns of VMs that ended, or are not waited for any more: about so many were looked at closely.
    pub turns: usize,
    /// Questions that the host was asked meanwhile, each of which is one system call or a few.
    pub looks: u64,
}

/// How many took up to how long.
#[derive(Debug, Clone, Default)]
struct Histogram {
    buckets: [u64; PASS_BOUNDS.len()],
    count: u64,
    sum: f64,
}

/// Who waits for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// VMs that wait for a worker.
    pub ready: usize,
    /// VMs that have one.
    pub working: usize,
    /// Those of them whose worker hangs in a call to the host.
    pub overdue: usize,
    /// VMs that are starting and keep a place.
    pub starting: usize,
    /// VMs that wait for such a place.
    pub waiting: usize,
}

/// What is known of a source.
#[derive(Debug, Clone, Default)]
struct SourceCounts {
    is_complete: Option<bool>,
    /// Of a git source, once it was asked: how that went.
    is_synced: Option<bool>,
    synced: u64,
    failed: u64,
    last_success: Option<Timestamp>,
}

/// Counts, and the VMs that are in them.
#[derive(Debug, Default)]
pub struct VmTallies(Mutex<BTreeMap<VmName, Tally>>);

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(PASS_BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

impl VmCounts {
    fn change(&mut self, tally: &Tally, by: i8) {
        let step = |count: &mut u64| *count = count.saturating_add_signed(by.into());
        step(self.phases.entry(tally.phase).or_default());
        tally.conditions.iter().for_each(|condition| step(self.conditions.entry(*condition).or_default()));
        tally.holds.iter().for_each(|reason| step(self.holds.entry(reason).or_default()));
        step(self.words.entry(tally.word).or_default());
    }
}

impl Tally {
    fn of(status: &Status, plan: &VmPlan) -> Self {
        // One that is only there while it holds does not hold while it is not there.
        let of = |kind| (kind, status.condition(kind).map_or(ConditionStatus::False, |condition| condition.status));
        let conditions = ConditionType::ALL.map(of);
        let holds = plan.holds.iter().filter(|hold| !matches!(hold, Hold::Starting)).map(Hold::reason).collect();
        Self { phase: status.phase, conditions, holds, restarts: status.restarts, word: Word::of(status) }
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Each use leaves the numbers whole, so a panic elsewhere while it was locked did not break them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM's turn has ended, and this is how it is.
    pub fn vm(&self, vms: &VmTallies, status: &Status, plan: &VmPlan) {
        let tally = Tally::of(status, plan);
        let mut vms = vms.lock();
        let mut counts = self.lock();
        counts.vms.is_news |= vms.get(&status.name).is_none_or(|before| before.word != tally.word);
        if let Some(before) = vms.get(&status.name) {
            counts.vms.change(before, -1);
            counts.vms.restarts += u64::from(tally.restarts.saturating_sub(before.restarts));
        }
        counts.vms.change(&tally, 1);
        vms.insert(status.name.clone(), tally);
    }

    /// Nothing is left of a VM.
    pub fn forget(&self, vms: &VmTallies, name: &VmName) {
        if let Some(before) = vms.lock().remove(name) {
            let mut counts = self.lock();
            counts.vms.change(&before, -1);
            counts.vms.is_news = true;
        }
    }

    /// In one line, how the VMs are; if it may differ from the one that was told last.
    pub fn take_line(&self) -> Option<String> {
        let mut counts = self.lock();
        std::mem::take(&mut counts.vms.is_news).then(|| line::line(&counts.vms.words))
    }

    /// An action ended so.
    pub fn action(&self, kind: &'static str, outcome: Outcome) {
        debug_assert!(Action::KINDS.contains(&kind), "{kind}");
        *self.lock().actions.entry((kind, outcome)).or_default() += 1;
    }

    /// A VM was given a turn for these reasons.
    pub fn wakeup<'a>(&self, reasons: impl IntoIterator<Item = &'a Reason>) {
        let mut counts = self.lock();
        reasons.into_iter().for_each(|reason| *counts.wakeups.entry(*reason).or_default() += 1);
    }

    /// A full pass of this depth is through.
    pub fn pass(&self, depth: &'static str, pass: &Pass, now: Timestamp) {
        let mut counts = self.lock();
        let passes = counts.passes.entry(depth).or_default();
        passes.took.observe(pass.took);
        passes.last = Some(now);
        for (sum, stage) in passes.stages.iter_mut().zip([pass.listing, pass.glance]) {
            *sum += stage;
        }
        passes.vms += pass.vms as u64;
        passes.turns += pass.turns as u64;
        passes.looks += pass.looks;
    }

    /// A full pass could not be made.
    pub fn pass_put_off(&self) {
        self.lock().passes_put_off += 1;
    }

    /// Whether a full pass was ever through.
    pub fn has_passed(&self) -> bool {
        !self.lock().passes.is_empty()
    }

    /// Who waits for what now.
    pub fn queue(&self, queue: Queue) {
        self.lock().queue = queue;
    }

    /// So many objects are known that nothing accounts for.
    pub fn orphans(&self, known: usize) {
        self.lock().orphans = known as u64;
    }

    /// So many of them were freed, and so many could not be.
    pub fn collected(&self, freed: usize, unfreed: usize) {
        let mut counts = self.lock();
        counts.orphans_freed += freed as u64;
        counts.orphans_unfreed += unfreed as u64;
    }

    /// What the manifests are: which sources could be read whole, and how much is wrong with them.
    pub fn manifests<'a>(&self, sources: impl IntoIterator<Item = (&'a SourceName, bool)>, problems: usize) {
        let mut counts = self.lock();
        for (name, is_complete) in sources {
            if let Some(source) = counts.sources.get_mut(name) {
                source.is_complete = Some(is_complete);
            } else {
                let source = SourceCounts { is_complete: Some(is_complete), ..SourceCounts::default() };
                counts.sources.insert(name.clone(), source);
            }
        }
        counts.problems = problems as u64;
    }

    /// A git source was asked.
    pub fn synced(&self, name: &SourceName, is_synced: bool, now: Timestamp) {
        let mut counts = self.lock();
        let source = counts.sources.entry(name.clone()).or_default();
        source.is_synced = Some(is_synced);
        if is_synced {
            source.synced += 1;
            source.last_success = Some(now);
        } else {
            source.failed += 1;
        }
    }

    /// A line of the audit log could not be written.
    pub fn audit_lost(&self) {
        self.lock().audit_lost += 1;
    }

    /// All of it in Prometheus' text format.
    pub fn page(&self) -> String {
        // A copy, so that who counts does not wait for the text.
        let counts = self.lock().clone();
        text::page(&counts)
    }
}

impl VmTallies {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmName, Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
