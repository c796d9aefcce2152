//! What the loop and the one-shot pass have in common: the agenda, and the workers that carry it out.

mod listing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::agenda::{Agenda, Report};
use super::passes::{Depth, Passes};
use super::telling::Commits;
use super::upkeep::{self, Glanced, Scope, Upkeep};
use super::worker::{self, Shared, Turn};
use super::{Outcome, Progress, ReconcileError, Stead, at, requests};
use crate::control::{Reply, Request};
use crate::desired::sources::Sources;
use crate::metrics::{Metrics, Queue};
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::observed::snapshot::Shared as SharedLook;
use crate::plan::{AllowPrune, Hold, Plan, gates};
use crate::state::{GateState, encode};
use crate::wakeups::{OVERDUE, Reason};

/// How soon a VM is looked at again of which something is being freed by a call that hangs.
const STUCK_POLL: Duration = Duration::from_secs(5);

/// How long the last lines of the audit log may take to be written.
const REST_BOUND: Duration = Duration::from_secs(5);

/// So many short turns at once keep a CPU busy: one waits for the disk while another computes.
const TURNS_A_CPU: usize = 2;
/// How many things that have happened are taken in before the loop turns, at most: each is a matter of microseconds.
const AT_ONCE: usize = 32;

pub(super) struct Engine {
    shared: Arc<Shared>,
    sources: Sources,
    commits: Commits,
    pub(super) agenda: Agenda,
    asked: BTreeMap<VmName, Vec<(Request, oneshot::Sender<Reply>)>>,
    adoptions: Vec<(PathBuf, oneshot::Sender<Reply>)>,
    turns: JoinSet<(VmName, Box<Report>)>,
    progress_in: mpsc::UnboundedSender<Progress>,
    changes: usize,
    passes: Passes,
    upkeep: Upkeep,
    exits: mpsc::UnboundedReceiver<VmName>,
    looks: mpsc::UnboundedReceiver<Box<ObservedVm>>,
    /// How many turns that are short still may be under way at once.
    busy: usize,
    /// When the next one may begin, if one waits for that.
    next_place: Option<Instant>,
}

/// Something that happened.
pub(super) enum Event {
    /// A worker has ended its turn.
    TurnEnded(Result<(VmName, Box<Report>), JoinError>),
    /// A VM was looked at for the first time.
    Looked(Box<ObservedVm>),
    /// Its VMM has ended.
    Exited(VmName),
    /// Something that is done for the host as a whole has ended.
    UpkeepEnded(Result<upkeep::Ended, JoinError>),
    /// Who asked for something about one VM, or for VMs to be adopted, has gone away.
    GaveUp,
    /// A moment came.
    Deadline,
}

impl Engine {
    /// An engine, and what its turns tell of their progress. One that stays watches every VM, another only those that something
    /// is done about or waited for.
    pub(super) fn new(
        stead: Stead,
        stays: bool,
        allow: AllowPrune,
        only: Option<VmName>,
        sources: Sources,
    ) -> (Self, mpsc::UnboundedReceiver<Progress>) {
        let (exits_in, exits) = mpsc::unbounded_channel();
        let (looks_in, looks) = mpsc::unbounded_channel();
        let (progress_in, progress) = mpsc::unbounded_channel();
        if let Err(error) = stead.host.sweep_temporaries(&stead.layout.state_dir) {
            tracing::warn!("sweeping temporary files: {error}");
        }
        let gates = stead.gates();
        let agenda = Agenda::new(stead.settings.policy.clone(), allow, only, &gates, &stead.host.now());
        let busy = match std::thread::available_parallelism() {
            // On a host in memory no turn takes any time.
            _ if !stead.host.may_block() => usize::MAX,
            cpus => TURNS_A_CPU * cpus.map_or(1, usize::from),
        };
        let commits = Arc::new(stead.commits());
        let engine = Self {
            commits,
            shared: Arc::new(Shared::new(stead, gates, stays, exits_in, looks_in)),
            sources,
            agenda,
            asked: BTreeMap::new(),
            adoptions: Vec::new(),
            turns: JoinSet::new(),
            progress_in,
            changes: 0,
            passes: Passes::default(),
            upkeep: Upkeep::default(),
            exits,
            looks,
            busy,
            next_place: None,
        };
        (engine, progress)
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.memory.metrics)
    }

    /// Notes who waits for what now.
    pub(super) fn measure(&self) {
        let (starting, waiting) = worker::lock(&self.shared.starts).counts(Instant::now());
        let wakeups = &self.agenda.wakeups;
        let (ready, working, overdue) = (wakeups.depth(), wakeups.working(), wakeups.overdue().count());
        self.shared.memory.metrics.queue(Queue { ready, working, overdue, starting, waiting });
    }

    fn stead(&self) -> &Stead {
        &self.shared.stead
    }

    /// A number that differs between hosts and moments, for jitter.
    pub(super) fn seed(&self) -> u64 {
        let id = self.stead().layout.state_id.to_string();
        id.bytes().fold(self.stead().host.now().boot_ms, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
    }

    /// Wakes every VM that is declared, recorded or was seen: the pass that a stead begins with.
    pub(super) fn wake_all(&mut self, reason: Reason) -> Result<(), ReconcileError> {
        let only = self.agenda.only.clone();
        if only.is_none() {
            self.passes.begin(reason, Depth::Thorough, self.stead().host.looks());
        }
        let recorded = self.recorded()?;
        let woken = self.agenda.wake_all(recorded, reason);
        let Some(only) = only else {
            self.passes.listed(woken.len(), woken);
            return Ok(());
        };
        // The others get no turn, but they may hold its images.
        for name in self.agenda.unseen.clone().into_iter().filter(|name| *name != only) {
            let observed = self.shared.looker().look(&name, &SharedLook::default());
            self.agenda.first_look(observed);
        }
        Ok(())
    }

    /// The net under all events, when the clock says so: everything is listed and looked at again, more or less closely.
    pub(super) fn resync(&mut self) -> Result<(), ReconcileError> {
        let depth = self.passes.next_depth();
        self.pass(depth)
    }

    /// The same when a person says so, who may know that something is wrong.
    pub(super) fn resync_thoroughly(&mut self) -> Result<(), ReconcileError> {
        self.pass(Depth::Thorough)
    }

    fn pass(&mut self, depth: Depth) -> Result<(), ReconcileError> {
        self.passes.begin(Reason::Resync, depth, self.stead().host.looks());
        match depth {
            Depth::Thorough => self.sources.cover(),
            Depth::Quick => self.sources.rearm_if_replaced(),
        }
        // A quick pass's needs nothing that is listed, and is made meanwhile.
        self.glance_in_time();
        self.list_again();
        // The pass that could not be made is under way until the next one begins: nobody takes it for one that was.
        let recorded = self.recorded()?;
        let (woken, vms) = match depth {
            Depth::Thorough => {
                let woken = self.agenda.wake_all(recorded, Reason::Resync);
                let vms = woken.len();
                (woken, vms)
            }
            Depth::Quick => (self.agenda.wake_restless(&recorded, Reason::Resync), self.agenda.sightings().count()),
        };
        self.passes.listed(vms, woken);
        Ok(())
    }

    /// Begins the glance of the pass that is under way, if it is time for it.
    fn glance_in_time(&mut self) {
        if let Some(depth) = self.passes.begin_glance() {
            // A thorough pass has just looked at each VM itself: what is left to be found is what no record names.
            let known = self.agenda.known(depth == Depth::Quick);
            let glanced = self.upkeep.survey(&self.shared, Scope::Glance(known));
            self.take_in_glance(glanced);
        }
    }

    /// Whether every VM was looked at since the last full pass began, but those that hang.
    pub(super) fn has_made_its_pass(&self) -> bool {
        !self.passes.waits_for_turns()
    }

    /// In one line, how the VMs are; if it may differ from the last one.
    pub(super) fn news(&self) -> Option<String> {
        self.shared.memory.metrics.take_line()
    }

    fn recorded(&self) -> Result<BTreeSet<VmName>, ReconcileError> {
        super::known_vms(self.stead(), &self.shared.looker())
    }

    /// Gives as many waiting VMs their turn as may be worked on at once.
    pub(super) fn dispatch(&mut self) {
        self.next_place = None;
        // Also while nobody is free: a deadline that stayed past would wake the loop again and again.
        self.agenda.wakeups.promote(Instant::now());
        let glanced = self.upkeep.promote(&self.shared);
        self.take_in_glance(glanced);
        self.see_who_is_stuck();
        if let Some((depth, pass)) = self.passes.tell(self.shared.stead.host.looks()) {
            self.shared.memory.metrics.pass(depth.word(), &pass, self.stead().host.now().wall);
            if depth == Depth::Thorough {
                // It looked at every VM, and let go of nearly all that it learnt: as much as is kept.
                self.stead().host.give_back_memory();
            }
        }
        self.glance_in_time();
        if !self.upkeep.lets_turns_begin(self.agenda.wakeups.working(), &self.shared) {
            return;
        }
        if !self.adoptions.is_empty() {
            // Adoption may name any VM: it waits until nobody works, and nobody begins until it is done.
            if self.agenda.wakeups.working() > 0 {
                return;
            }
            self.adopt_now();
        }
        let most = self.stead().settings.parallel;
        while self.agenda.wakeups.lets_begin(Instant::now(), self.busy, most) {
            let Some((name, reasons)) = self.agenda.wakeups.take(Instant::now()) else { return };
            if self.is_being_freed(&name) {
                self.agenda.wakeups.finish(&name);
                self.agenda.wakeups.wake_at(&name, Instant::now() + STUCK_POLL);
                // Turns begin beside it only when it is overdue: nobody waits for this VM either.
                self.passes.end_turn(&name, 0);
                self.agenda.out_of_reach.insert(name);
                continue;
            }
            self.agenda.out_of_reach.remove(&name);
            self.shared.memory.metrics.wakeup(&reasons);
            let verdict = self.verdict_for(&name);
            self.look_at_images(&name);
            let (desired, claims) = self.agenda.turn_of(&name);
            let turn = Turn {
                verdict,
                is_first: !self.agenda.sightings().contains(&name),
                tells_first_look: self.agenda.unseen.contains(&name),
                claims,
                reasons,
                desired,
                requests: self.asked.remove(&name).unwrap_or_default(),
                commits: Arc::clone(&self.commits),
                progress: self.progress_in.clone(),
                name: name.clone(),
            };
            let shared = Arc::clone(&self.shared);
            let host = &*self.shared.stead.host;
            worker::begin(&mut self.turns, host, move || (name, Box::new(shared.work(turn))));
        }
        self.next_place = self.agenda.wakeups.next_place(self.busy, most);
    }

    /// A worker that is overdue is left to itself: who waits for it is told, and others have their turns.
    fn see_who_is_stuck(&mut self) {
        for name in self.agenda.wakeups.find_overdue(Instant::now()) {
            tracing::warn!(vm = %name, "a call to the host has hung for {OVERDUE:?}; the other VMs go on without it");
            self.passes.end_turn(&name, 0);
        }
        let Some(stuck) = self.agenda.wakeups.overdue().next() else { return };
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
        let now = self.stead().host.now();
        if self.agenda.wants_listing(name, &now) {
            self.list_again();
        }
        if self.agenda.desired().vms.contains_key(name) {
            self.end_deletion(name);
            return None;
        }
        let verdicts = self.verdicts();
        if let Some(commit) = &verdicts.commit
            && let Err(error) = self.commit(commit)
        {
            let path = self.stead().layout.gates();
            if verdicts.digest.is_none() {
                // What cannot be counted is not done: the next look tries again.
                tracing::warn!("no deletion begins: writing {}: {error}", path.display());
                return None;
            }
            tracing::warn!("an approval that is void stays on record: writing {}: {error}", path.display());
            worker::lock(&self.shared.gates).approval = None;
        }
        verdicts.of(name).cloned()
    }

    /// A VM that is declared again is no longer one whose deletion was let through, or approved. Known before it has its turn:
    /// else the next stead, which has seen nothing of this, would go on with that deletion once its manifest is gone again.
    fn end_deletion(&self, name: &VmName) {
        // In a statement of its own: the lock is not held when it is taken again.
        let gates = worker::lock(&self.shared.gates).declared_again(name);
        if let Some(gates) = gates
            && let Err(error) = self.commit(&gates)
        {
            // Its next turn tries again.
            tracing::warn!(vm = %name, "writing {}: {error}", self.stead().layout.gates().display());
        }
    }

    /// Makes durable what the gates let through, before any of it begins: a crash after it counts a deletion that was not
    /// done, and never forgets one that was.
    fn commit(&self, gates: &GateState) -> std::io::Result<()> {
        let path = self.stead().layout.gates();
        self.stead().host.write_durable(&path, &encode(gates))?;
        worker::lock(&self.shared.gates).clone_from(gates);
        Ok(())
    }

    fn gates(&self) -> GateState {
        worker::lock(&self.shared.gates).clone()
    }

    fn verdicts(&self) -> gates::Verdicts {
        self.agenda.verdicts(&self.gates(), &self.stead().host.now())
    }

    /// The next thing that happens to a VM. May be dropped and called again without losing anything.
    pub(super) async fn event(&mut self) -> Event {
        let deadlines = [
            self.agenda.wakeups.next_deadline(),
            self.agenda.wakeups.next_overdue(),
            self.next_place,
            self.upkeep.next_deadline(),
            worker::lock(&self.shared.starts).next_call(Instant::now()),
        ];
        let deadline = at(deadlines.into_iter().flatten().min());
        let one_vm = self.asked.values_mut().flatten().map(|(_, reply)| reply);
        let adoptions = self.adoptions.iter_mut().map(|(_, reply)| reply);
        tokio::select! {
            biased;
            // An empty set of turns gives `None` at once, which disables its branch.
            Some(ended) = self.turns.join_next() => Event::TurnEnded(ended),
            ended = self.upkeep.ended() => Event::UpkeepEnded(ended),
            Some(observed) = self.looks.recv() => Event::Looked(observed),
            Some(name) = self.exits.recv() => Event::Exited(name),
            () = upkeep::one_gives_up(one_vm.chain(adoptions)) => Event::GaveUp,
            () = deadline => Event::Deadline,
        }
    }

    /// Takes in what happened, and what else has happened to VMs by now: the loop's turn is as long as many of these are.
    pub(super) fn take_in(&mut self, event: Event) -> Result<(), ReconcileError> {
        self.take_in_one(event)?;
        for _ in 0..AT_ONCE {
            let Some(event) = self.happened() else { break };
            self.take_in_one(event)?;
        }
        Ok(())
    }

    fn happened(&mut self) -> Option<Event> {
        if let Some(ended) = self.turns.try_join_next() {
            return Some(Event::TurnEnded(ended));
        }
        let looked = self.looks.try_recv().ok().map(Event::Looked);
        looked.or_else(|| self.exits.try_recv().ok().map(Event::Exited))
    }

    fn take_in_one(&mut self, event: Event) -> Result<(), ReconcileError> {
        match event {
            Event::TurnEnded(ended) => {
                let (name, report) = ended.map_err(ReconcileError::Worker)?;
                self.changes += report.changes;
                self.passes.end_turn(&name, report.changes);
                let now = Instant::now();
                let is_starting = report.plan.holds.contains(&Hold::Starting);
                let is_to_start = worker::is_to_start(&report.plan);
                worker::lock(&self.shared.starts).end_turn(&name, is_starting, is_to_start, now);
                self.agenda.end_turn(name, *report, now);
                self.wake_those_who_may_start(now);
            }
            Event::Looked(observed) => self.agenda.first_look(*observed),
            Event::Exited(name) => self.agenda.wakeups.wake(&name, Reason::Exited),
            Event::UpkeepEnded(ended) => {
                let ended = ended.map_err(ReconcileError::Worker)?;
                let upkeep::News { freed, glance } = self.upkeep.take_in(ended, &self.shared);
                self.changes += freed;
                self.take_in_glance(glance);
            }
            // Nobody waits for a moment on behalf of who has gone away, and no turn waits for that.
            Event::GaveUp => self.forget_gone(),
            // `dispatch` finds whose it is, as long as turns begin. That somebody is stuck is seen also when none does any
            // more: a deadline that stayed past would wake the loop again and again.
            Event::Deadline => {
                self.see_who_is_stuck();
                self.wake_those_who_may_start(Instant::now());
            }
        }
        Ok(())
    }

    /// Those that a glance found changed are looked at.
    fn take_in_glance(&mut self, glanced: Option<Glanced>) {
        let Some((took, changed)) = glanced else { return };
        for name in &changed {
            self.agenda.wake(name, Reason::Resync);
        }
        self.passes.end_glance(took, changed);
    }

    /// Those who wait to be started, as far as there is a place for them.
    fn wake_those_who_may_start(&mut self, now: Instant) {
        for name in worker::lock(&self.shared.starts).call(now) {
            self.agenda.wakeups.wake(&name, Reason::Deadline);
        }
    }

    /// Takes in what somebody asked for; the answer follows when it is on record.
    pub(super) fn ask(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        match request {
            Request::Restart { ref name } | Request::Delete { ref name } => {
                let name = name.clone();
                self.asked.entry(name.clone()).or_default().push((request, reply));
                self.agenda.wakeups.wake(&name, Reason::Request);
            }
            Request::Approve { digest } => {
                let verdicts = self.verdicts();
                let held = verdicts.digest.as_deref().map(|digest| (digest, verdicts.held().cloned().collect()));
                let mut gates = worker::lock(&self.shared.gates);
                let answer = requests::approve(&self.shared.stead, &mut gates, held, &digest);
                drop(gates);
                requests::note(&self.shared.stead, &self.shared.memory, &Request::Approve { digest }, &answer);
                let undeclared: Vec<VmName> = self.agenda.absences.since.keys().cloned().collect();
                for name in undeclared {
                    self.agenda.wake(&name, Reason::Request);
                }
                let _ = reply.send(answer);
            }
            Request::Adopt { dir } => self.adoptions.push((dir, reply)),
            Request::Gc => self.upkeep.ask(reply),
            // The loop hands these to those who follow the sources.
            Request::Sync { .. } | Request::RollBack { .. } => {
                let _ = reply.send(requests::refused("this request is about no VM"));
            }
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
                self.agenda.wake(&name, Reason::Request);
            }
            let _ = reply.send(answer);
        }
    }

    /// How many VMs something was begun on that will be finished soon, and what the first waits for.
    pub(super) fn waiting_for(&self) -> Option<(usize, String)> {
        let (name, why) = self.agenda.under_way.first_key_value()?;
        Some((self.agenda.under_way.len(), format!("{name}: {why}")))
    }

    /// Whether a one-shot pass is through.
    pub(super) fn is_through(&self) -> bool {
        self.agenda.under_way.is_empty() && self.agenda.wakeups.is_idle() && !self.upkeep.is_busy()
    }

    /// Lets go of what is still under way: the time ran out.
    pub(super) fn stop_waiting(&mut self) {
        self.shared.memory.images.close();
        self.upkeep.stop();
        self.passes.stop();
        self.agenda.under_way.clear();
        self.agenda.wakeups.clear();
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
        for (name, since) in self.agenda.wakeups.at_work() {
            let time = since.elapsed();
            tracing::warn!(vm = %name, "left as it is: a call to the host has hung for {time:.0?}; the next stead goes on");
        }
    }

    /// Writes down what was left out as the same again: nobody will know of it later. A disk that hangs keeps no stead from
    /// ending.
    pub(super) async fn record_the_rest(&self) {
        let rest = worker::lock(&self.shared.memory.repeats).rest();
        if rest.is_empty() {
            return;
        }
        let (shared, mut jobs) = (Arc::clone(&self.shared), JoinSet::new());
        worker::begin(&mut jobs, self.stead().host.as_ref(), move || {
            for entry in &rest {
                shared.memory.write_down(&shared.stead, entry);
            }
        });
        let _ = tokio::time::timeout(REST_BOUND, jobs.join_next()).await;
    }

    /// What the pass came to.
    pub(super) fn outcome(self, timed_out: bool) -> Outcome {
        let digest = self.verdicts().digest;
        let sightings = self.agenda.sightings();
        let failures = sightings.iter().filter_map(|(name, seen)| Some((name.clone(), seen.failure.clone()?)));
        let stuck = self.agenda.wakeups.at_work().map(|(name, since)| {
            (name.clone(), format!("a call to the host has hung for {:.0?}; the next pass goes on", since.elapsed()))
        });
        let failures = failures.chain(stuck).collect();
        let vms = sightings.iter().map(|(name, seen)| (name.clone(), seen.plan.clone())).collect();
        let problems = self.agenda.desired().problems.clone();
        let unsynced = BTreeMap::new();
        Outcome { plan: Plan { vms, digest }, changes: self.changes, failures, problems, unsynced, timed_out }
    }
}
