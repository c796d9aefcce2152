//! What the loop and the one-shot pass have in common: the queue, what was listed and seen last, and the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::upkeep::{self, Upkeep};
use super::worker::{self, Report, Shared, Turn};
use super::{Outcome, Progress, ReconcileError, Stead, requests};
use crate::control::{Reply, Request};
use crate::desired::Desired;
use crate::desired::load::Loader;
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::plan::claims::Claims;
use crate::plan::{Absences, AllowPrune, Hold, Plan, VmPlan, gates};
use crate::state::{GateState, encode};
use crate::wakeups::{OVERDUE, Reason, Wakeups};

/// How soon a failed action is tried again, at first and at most; it doubles in between.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How soon a VM is looked at again of which something is being freed by a call that hangs.
const STUCK_POLL: Duration = Duration::from_secs(5);

pub(super) struct Engine {
    shared: Arc<Shared>,
    loader: Loader,
    allow: AllowPrune,
    only: Option<VmName>,
    desired: Arc<Desired>,
    listed_at: Instant,
    absences: Absences,
    /// What each VM looked like at the end of its last turn.
    seen: BTreeMap<VmName, Seen>,
    asked: BTreeMap<VmName, Vec<(Request, oneshot::Sender<Reply>)>>,
    adoptions: Vec<(PathBuf, oneshot::Sender<Reply>)>,
    turns: JoinSet<(VmName, Box<Report>)>,
    progress_in: mpsc::UnboundedSender<Progress>,
    changes: usize,
    pub(super) wakeups: Wakeups,
    upkeep: Upkeep,
    exits: mpsc::UnboundedReceiver<VmName>,
}

/// Something that happened.
pub(super) enum Event {
    /// A worker has ended its turn.
    TurnEnded(Result<(VmName, Box<Report>), JoinError>),
    /// Its VMM has ended.
    Exited(VmName),
    /// Something that is done for the host as a whole has ended.
    UpkeepEnded(Result<upkeep::Ended, JoinError>),
    /// Who asked for something about one VM, or for VMs to be adopted, has gone away.
    GaveUp,
    /// A moment came.
    Deadline,
}

struct Seen {
    observed: ObservedVm,
    plan: VmPlan,
    failure: Option<String>,
    failures: u32,
    under_way: Option<String>,
}

impl Engine {
    /// An engine, and what its turns tell of their progress.
    pub(super) fn new(
        stead: Stead,
        allow: AllowPrune,
        only: Option<VmName>,
    ) -> (Self, mpsc::UnboundedReceiver<Progress>) {
        let (exits_in, exits) = mpsc::unbounded_channel();
        let (progress_in, progress) = mpsc::unbounded_channel();
        if let Err(error) = stead.host.sweep_temporaries(&stead.layout.state_dir) {
            tracing::warn!("sweeping temporary files: {error}");
        }
        let loader = stead.loader();
        let gates = stead.gates();
        // What an earlier stead let through goes on, if it is still absent.
        let let_through = gates.deletions.iter().map(|deletion| (deletion.name.clone(), deletion.at.clone()));
        let absences = Absences { since: let_through.collect() };
        let engine = Self {
            shared: Arc::new(Shared::new(stead, gates, exits_in)),
            loader,
            allow,
            only,
            desired: Arc::new(Desired::default()),
            listed_at: Instant::now(),
            absences,
            seen: BTreeMap::new(),
            asked: BTreeMap::new(),
            adoptions: Vec::new(),
            turns: JoinSet::new(),
            progress_in,
            changes: 0,
            wakeups: Wakeups::default(),
            upkeep: Upkeep::default(),
            exits,
        };
        (engine, progress)
    }

    fn stead(&self) -> &Stead {
        &self.shared.stead
    }

    /// A number that differs between hosts and moments, for jitter.
    pub(super) fn seed(&self) -> u64 {
        let id = self.stead().layout.state_id.to_string();
        id.bytes().fold(self.stead().host.now().boot_ms, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
    }

    /// Lists the manifests again and wakes every VM whose declarations changed, or that came or went.
    pub(super) fn relist(&mut self, unsettled: &BTreeSet<PathBuf>) {
        let listed = Arc::new(self.loader.load(unsettled));
        self.listed_at = Instant::now();
        let before = std::mem::replace(&mut self.desired, listed);
        let desired = Arc::clone(&self.desired);
        for problem in desired.problems.iter().filter(|problem| !before.problems.contains(problem)) {
            tracing::warn!("{}", problem.one_line());
        }
        for (source, state) in &desired.sources {
            let known = before.sources.get(source).map(|state| state.incomplete.as_slice()).unwrap_or_default();
            for why in state.incomplete.iter().filter(|why| !known.contains(why)) {
                tracing::warn!(source = %source, "not complete, so nothing of it is pruned: {why}");
            }
        }
        let names: BTreeSet<&VmName> = before.vms.keys().chain(desired.vms.keys()).collect();
        for name in names {
            if before.vms.get(name) != desired.vms.get(name) {
                self.wake(name, Reason::Manifest);
            }
        }
        // A source that became complete, or another folder in its place, decides about VMs that it does not declare.
        let undeclared: Vec<VmName> =
            self.seen.keys().filter(|name| !desired.vms.contains_key(*name)).cloned().collect();
        let sources_changed = before.sources != desired.sources;
        self.note_absences(&undeclared);
        for name in undeclared.iter().filter(|_| sources_changed) {
            self.wake(name, Reason::Manifest);
        }
        // Which of several VMs may use an image depends on all of them.
        if before.images != desired.images {
            self.wake_unmet();
        }
    }

    fn wake_unmet(&mut self) {
        let held: Vec<VmName> =
            self.seen.iter().filter(|(_, seen)| has_unmet(&seen.plan)).map(|(name, _)| name.clone()).collect();
        for name in held {
            self.wake(&name, Reason::Manifest);
        }
    }

    /// An event in the folder restarts the wait of every VM that it does not declare.
    fn note_absences(&mut self, undeclared: &[VmName]) {
        let now = self.stead().host.now().deadline(Duration::ZERO);
        self.absences.since.retain(|name, _| !self.desired.vms.contains_key(name));
        // One whose deletion was let through waits no more.
        let let_through: BTreeSet<VmName> =
            worker::lock(&self.shared.gates).deletions.iter().map(|deletion| deletion.name.clone()).collect();
        for name in undeclared {
            let since = self.absences.since.entry(name.clone()).or_insert_with(|| now.clone());
            if !let_through.contains(name) {
                since.clone_from(&now);
            }
        }
    }

    /// Wakes every VM that is declared, recorded or was seen.
    pub(super) fn wake_all(&mut self, reason: Reason) -> Result<(), ReconcileError> {
        let known = super::known_vms(self.stead(), &self.shared.looker())?;
        let names: BTreeSet<VmName> =
            known.into_iter().chain(self.desired.vms.keys().cloned()).chain(self.seen.keys().cloned()).collect();
        for name in &names {
            self.wake(name, reason);
        }
        if self.only.is_none() {
            self.upkeep.survey(&self.shared);
        }
        Ok(())
    }

    /// The net under all events: everything is listed and looked at again.
    pub(super) fn resync(&mut self, reason: Reason) -> Result<(), ReconcileError> {
        let since = self.absences.clone();
        self.relist(&BTreeSet::new());
        // A resync is no event in the folder: it restarts no wait.
        self.absences.since.extend(since.since.into_iter().filter(|(name, _)| !self.desired.vms.contains_key(name)));
        self.wake_all(reason)
    }

    fn wake(&mut self, name: &VmName, reason: Reason) {
        if self.only.as_ref().is_none_or(|only| only == name) {
            self.wakeups.wake(name, reason);
        }
    }

    /// Gives as many waiting VMs their turn as may be worked on at once.
    pub(super) fn dispatch(&mut self) {
        // Also while nobody is free: a deadline that stayed past would wake the loop again and again.
        self.wakeups.promote(Instant::now());
        self.upkeep.promote(&self.shared);
        self.see_who_is_stuck();
        if !self.upkeep.lets_turns_begin(self.wakeups.working(), &self.shared) {
            return;
        }
        if !self.adoptions.is_empty() {
            // Adoption may name any VM: it waits until nobody works, and nobody begins until it is done.
            if self.wakeups.working() > 0 {
                return;
            }
            self.adopt_now();
        }
        while self.wakeups.taken() < self.stead().settings.parallel {
            let Some((name, reasons)) = self.wakeups.take(Instant::now()) else { return };
            if self.is_being_freed(&name) {
                self.wakeups.finish(&name);
                self.wakeups.wake_at(&name, Instant::now() + STUCK_POLL);
                continue;
            }
            let verdict = self.verdict_for(&name);
            let turn = Turn {
                verdict,
                claims: self.claims_for(&name),
                reasons,
                desired: Arc::clone(&self.desired),
                requests: self.asked.remove(&name).unwrap_or_default(),
                progress: self.progress_in.clone(),
                name: name.clone(),
            };
            let shared = Arc::clone(&self.shared);
            self.turns.spawn_blocking(move || (name, Box::new(shared.work(turn))));
        }
    }

    /// A worker that is overdue is left to itself: who waits for it is told, and others have their turns.
    fn see_who_is_stuck(&mut self) {
        for name in self.wakeups.find_overdue(Instant::now()) {
            tracing::warn!(vm = %name, "a call to the host has hung for {OVERDUE:?}; the other VMs go on without it");
        }
        let Some(stuck) = self.wakeups.overdue().next() else { return };
        // Both wait for a moment in which nobody works, and such a moment may never come.
        let why = format!("VM {stuck} is stuck in a call to the host that hangs; ask again when that is over");
        for (_, reply) in self.adoptions.drain(..) {
            let _ = reply.send(requests::refused(why.clone()));
        }
        self.upkeep.refuse(&why);
    }

    /// Whether something of this VM's is being freed as an orphan by a call that hangs.
    fn is_being_freed(&self, name: &VmName) -> bool {
        let uid = self.stead().layout.uid(name).short();
        self.shared.memory.freeing.concerns(&uid)
    }

    /// What the gates say of a VM that no manifest declares; they are asked only about such.
    fn verdict_for(&mut self, name: &VmName) -> Option<gates::Verdict> {
        if self.desired.vms.contains_key(name) {
            return None;
        }
        let now = self.stead().host.now();
        if let Some(since) = self.absences.since.get(name).cloned() {
            let delay = self.stead().settings.policy.prune_delay;
            let waited = now.since(&since).unwrap_or_default();
            // Absence must outlast a second full listing, made after the delay.
            if waited >= delay && self.listed_at.elapsed() + delay > waited {
                let absences = self.absences.clone();
                self.relist(&BTreeSet::new());
                let desired = Arc::clone(&self.desired);
                self.absences
                    .since
                    .extend(absences.since.into_iter().filter(|(name, _)| !desired.vms.contains_key(name)));
            }
        } else {
            self.absences.since.insert(name.clone(), now.deadline(Duration::ZERO));
        }
        let verdicts = self.verdicts();
        if let Some(commit) = &verdicts.commit
            && let Err(error) = self.commit(commit)
        {
            // What cannot be counted is not done: the next look tries again.
            tracing::warn!("no deletion begins: writing {}: {error}", self.stead().layout.gates().display());
            return None;
        }
        verdicts.of(name).cloned()
    }

    /// Makes durable what the gates let through, before any of it begins: a crash after it counts a deletion that was not
    /// done, and never forgets one that was.
    fn commit(&self, gates: &GateState) -> std::io::Result<()> {
        let path = self.stead().layout.gates();
        self.stead().host.write_durable(&path, &encode(gates))?;
        worker::lock(&self.shared.gates).clone_from(gates);
        Ok(())
    }

    /// Who uses which image; only a VM with disks asks.
    fn claims_for(&self, name: &VmName) -> Claims {
        let declarations = self.desired.vms.get(name).into_iter().flatten();
        let has_disks =
            declarations.filter_map(|declaration| declaration.vm.as_ref().ok()).any(|vm| !vm.spec.disks.is_empty());
        if has_disks { Claims::of(&self.desired, self.seen()) } else { Claims::default() }
    }

    fn seen(&self) -> impl Iterator<Item = (&VmName, &ObservedVm)> {
        self.seen.iter().map(|(name, seen)| (name, &seen.observed))
    }

    fn verdicts(&self) -> gates::Verdicts {
        let now = self.stead().host.now();
        let gates = worker::lock(&self.shared.gates).clone();
        gates::decide(
            &self.desired,
            self.seen(),
            &gates,
            &self.absences,
            &self.stead().settings.policy,
            self.allow,
            &now,
        )
    }

    /// The next thing that happens to a VM. May be dropped and called again without losing anything.
    pub(super) async fn event(&mut self) -> Event {
        let deadlines = [self.wakeups.next_deadline(), self.wakeups.next_overdue(), self.upkeep.next_deadline()];
        let deadline = deadlines.into_iter().flatten().min();
        let deadline = async move {
            match deadline {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        let one_vm = self.asked.values_mut().flatten().map(|(_, reply)| reply);
        let adoptions = self.adoptions.iter_mut().map(|(_, reply)| reply);
        tokio::select! {
            biased;
            // An empty set of turns gives `None` at once, which disables its branch.
            Some(ended) = self.turns.join_next() => Event::TurnEnded(ended),
            ended = self.upkeep.ended() => Event::UpkeepEnded(ended),
            Some(name) = self.exits.recv() => Event::Exited(name),
            () = upkeep::one_gives_up(one_vm.chain(adoptions)) => Event::GaveUp,
            () = deadline => Event::Deadline,
        }
    }

    /// Takes in what happened.
    pub(super) fn take_in(&mut self, event: Event) -> Result<(), ReconcileError> {
        match event {
            Event::TurnEnded(ended) => {
                let (name, report) = ended.map_err(ReconcileError::Worker)?;
                self.absorb(name, *report);
            }
            Event::Exited(name) => self.wakeups.wake(&name, Reason::Exited),
            Event::UpkeepEnded(ended) => {
                let ended = ended.map_err(ReconcileError::Worker)?;
                self.changes += self.upkeep.take_in(ended, &self.shared);
            }
            // Nobody waits for a moment on behalf of who has gone away, and no turn waits for that.
            Event::GaveUp => self.forget_gone(),
            // `dispatch` finds whose it is, as long as turns begin. That somebody is stuck is seen also when none does any
            // more: a deadline that stayed past would wake the loop again and again.
            Event::Deadline => self.see_who_is_stuck(),
        }
        Ok(())
    }

    /// Takes in how a turn ended, and when the VM is to be looked at again.
    fn absorb(&mut self, name: VmName, report: Report) {
        self.wakeups.finish(&name);
        self.changes += report.changes;
        let failures = match &report.failure {
            Some(_) => self.seen.get(&name).map_or(0, |seen| seen.failures) + 1,
            None => 0,
        };
        let retry = (failures > 0).then(|| RETRY.0.saturating_mul(1 << (failures - 1).min(16)).min(RETRY.1));
        if let Some(wait) = [report.wake, retry].into_iter().flatten().min() {
            self.wakeups.wake_at(&name, Instant::now() + wait);
        }
        let is_gone = report.observed.process.is_absent() && report.observed.record.handles().is_none();
        let held_before = self.seen.get(&name).is_some_and(|seen| !seen.observed.process.is_absent());
        if is_gone && held_before {
            // What it held may be what another VM waits for.
            self.wake_unmet();
        }
        if worker::is_forgotten(&report.observed, &report.plan) && !self.desired.vms.contains_key(&name) {
            self.absences.since.remove(&name);
            self.seen.remove(&name);
            return;
        }
        let Report { observed, plan, failure, under_way, .. } = report;
        self.seen.insert(name, Seen { observed, plan, failure, failures, under_way });
    }

    /// Takes in what somebody asked for; the answer follows when it is on record.
    pub(super) fn ask(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        match request {
            Request::Restart { ref name } | Request::Delete { ref name } => {
                let name = name.clone();
                self.asked.entry(name.clone()).or_default().push((request, reply));
                self.wakeups.wake(&name, Reason::Request);
            }
            Request::Approve { digest } => {
                let held = self.verdicts().digest;
                let mut gates = worker::lock(&self.shared.gates);
                let answer = requests::approve(&self.shared.stead, &mut gates, held.as_deref(), &digest);
                drop(gates);
                let undeclared: Vec<VmName> = self.absences.since.keys().cloned().collect();
                for name in undeclared {
                    self.wake(&name, Reason::Request);
                }
                let _ = reply.send(answer);
            }
            Request::Adopt { dir } => self.adoptions.push((dir, reply)),
            Request::Gc => self.upkeep.ask(reply),
            Request::Ping => {
                let _ = reply.send(requests::pong());
            }
        }
    }

    /// Who gave up before it was begun gets nothing done later, when nobody expects it any more; and those who ask about a VM
    /// that hangs, again and again, are not kept.
    fn forget_gone(&mut self) {
        self.adoptions.retain(|(_, reply)| !reply.is_closed());
        self.asked.retain(|_, requests| {
            requests.retain(|(_, reply)| !reply.is_closed());
            !requests.is_empty()
        });
    }

    fn adopt_now(&mut self) {
        for (dir, reply) in std::mem::take(&mut self.adoptions) {
            let (answer, names) = requests::adopt(&self.shared.stead, &self.shared.memory, &self.shared.scan, &dir);
            for name in names {
                self.wake(&name, Reason::Request);
            }
            let _ = reply.send(answer);
        }
    }

    /// Waits until no manifest was written within the last moments, and lists them: half a file may be a sound manifest of
    /// another VM, and a one-shot pass sees no events that would tell.
    pub(super) async fn settle(&mut self) {
        const MOST_TRIES: usize = 20;
        self.relist(&BTreeSet::new());
        for _ in 0..MOST_TRIES {
            let Some(wait) = self.loader.settle_for() else { return };
            tokio::time::sleep(wait).await;
            self.relist(&BTreeSet::new());
        }
    }

    /// How many VMs something was begun on that will be finished soon, and what the first waits for.
    pub(super) fn waiting_for(&self) -> Option<(usize, String)> {
        let mut waiting = self.seen.iter().filter_map(|(name, seen)| Some((name, seen.under_way.as_ref()?)));
        let (name, why) = waiting.next()?;
        Some((1 + waiting.count(), format!("{name}: {why}")))
    }

    /// Whether a one-shot pass is through.
    pub(super) fn is_through(&self) -> bool {
        self.waiting_for().is_none() && self.wakeups.is_idle() && !self.upkeep.is_busy()
    }

    /// Lets go of what is still under way: the time ran out.
    pub(super) fn stop_waiting(&mut self) {
        self.shared.memory.images.close();
        self.upkeep.stop();
        for seen in self.seen.values_mut() {
            seen.under_way = None;
        }
        self.wakeups.clear();
    }

    /// Tells everybody who waits for an answer why there will be none.
    pub(super) fn refuse_all(&mut self, why: &str) {
        let one_vm = std::mem::take(&mut self.asked).into_values().flatten().map(|(_, reply)| reply);
        for reply in one_vm.chain(std::mem::take(&mut self.adoptions).into_iter().map(|(_, reply)| reply)) {
            let _ = reply.send(requests::refused(why));
        }
        self.upkeep.refuse(why);
    }

    /// Says who is left to themselves: they did not end in the time that they were given.
    pub(super) fn leave(&self) {
        for (name, since) in self.wakeups.at_work() {
            let time = since.elapsed();
            tracing::warn!(vm = %name, "left as it is: a call to the host has hung for {time:.0?}; the next stead goes on");
        }
    }

    /// What the pass came to.
    pub(super) fn outcome(self, timed_out: bool) -> Outcome {
        let digest = self.verdicts().digest;
        let failures = self.seen.iter().filter_map(|(name, seen)| Some((name.clone(), seen.failure.clone()?)));
        let stuck = self.wakeups.at_work().map(|(name, since)| {
            (name.clone(), format!("a call to the host has hung for {:.0?}; the next pass goes on", since.elapsed()))
        });
        let failures = failures.chain(stuck).collect();
        let vms = self.seen.into_iter().map(|(name, seen)| (name, seen.plan)).collect();
        let problems = self.desired.problems.clone();
        Outcome { plan: Plan { vms, digest }, changes: self.changes, failures, problems, timed_out }
    }
}

fn has_unmet(plan: &VmPlan) -> bool {
    plan.holds.iter().any(|hold| matches!(hold, Hold::Unmet(_)))
}
