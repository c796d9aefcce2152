//! One VM's turn: look, plan, act, and look again, until there is nothing to do now.

use std::cell::{Cell, LazyCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::agenda::{Report, UNKNOWN_POLL, is_forgotten, wake_after};
use super::starts::StartLimit;
use super::telling::{Commits, Telling};
use super::{Memory, Progress, Stead, requests};
use crate::act::{Actor, Outcome, Wake};
use crate::control::{Reply, Request};
use crate::desired::Desired;
use crate::host::{HostFacts, HostOps, HostView, ProcessIdentity};
use crate::names::VmName;
use crate::observed::process::ProcessScan;
use crate::observed::snapshot::{Looker, Shared as SharedLook};
use crate::observed::{Fact, ObservedVm};
use crate::plan::claims::Claims;
use crate::plan::gates::Verdict;
use crate::plan::{Action, Context, Hold, VmPlan};
use crate::state::{GateState, Phase, encode};
use crate::status::{self, NewEvent, Status};
use crate::time::Now;
use crate::wakeups::Reason;

/// Looks in one turn, at most: a VM that still wants something then is queued again behind the others.
const MOST_ROUNDS: usize = 12;
/// What all turns share.
pub(super) struct Shared {
    pub(super) stead: Stead,
    pub(super) memory: Memory,
    pub(super) scan: ProcessScan,
    pub(super) gates: Mutex<GateState>,
    pub(super) starts: Mutex<StartLimit>,
    /// Whether it stays when all is done, and so wants to know of every VMM that ends. A pass alone only waits for those it does
    /// something about.
    stays: bool,
    /// The process of each VM whose end is watched.
    watched: Mutex<BTreeMap<VmName, ProcessIdentity>>,
    exits: mpsc::UnboundedSender<VmName>,
    looks: mpsc::UnboundedSender<Box<ObservedVm>>,
}

/// What one turn goes by.
pub(super) struct Turn {
    pub(super) name: VmName,
    pub(super) reasons: BTreeSet<Reason>,
    /// What should exist, as far as it is about this VM.
    pub(super) desired: Desired,
    /// What the gates say, if no manifest declares it.
    pub(super) verdict: Option<Verdict>,
    /// Whether nothing is known of it yet: the gates speak of what was seen.
    pub(super) is_first: bool,
    /// Who uses which image.
    pub(super) claims: Claims,
    /// Whether others wait to hear what it holds: told before anything is done or written, which may take long.
    pub(super) tells_first_look: bool,
    pub(super) requests: Vec<(Request, oneshot::Sender<Reply>)>,
    /// Which commit of each git source it goes by.
    pub(super) commits: Commits,
    pub(super) progress: mpsc::UnboundedSender<Progress>,
}

/// How the actions of one round ended.
enum Round {
    /// All were carried out: look again.
    Done,
    /// One goes on later.
    Later(String, Duration),
    /// One failed; the flag says that the next look may know what to do about it.
    Failed(String, bool),
}

/// Begins what calls the host: where that may block, on a thread of its own.
pub(super) fn begin<T: Send + 'static>(
    jobs: &mut JoinSet<T>,
    host: &dyn HostOps,
    job: impl FnOnce() -> T + Send + 'static,
) {
    if host.may_block() {
        jobs.spawn_blocking(job);
    } else {
        jobs.spawn(async move { job() });
    }
}

impl Shared {
    pub(super) fn new(
        stead: Stead,
        gates: GateState,
        stays: bool,
        exits: mpsc::UnboundedSender<VmName>,
        looks: mpsc::UnboundedSender<Box<ObservedVm>>,
    ) -> Self {
        let ended = exits.clone();
        let wake: Wake = Arc::new(move |name| {
            // The loop may have ended before what the VM waited for did.
            let _ = ended.send(name.clone());
        });
        let starts = Mutex::new(StartLimit::new(stead.settings.starting));
        Self {
            stead,
            starts,
            stays,
            memory: Memory::new(wake),
            scan: ProcessScan::default(),
            gates: Mutex::new(gates),
            watched: Mutex::default(),
            exits,
            looks,
        }
    }

    pub(super) fn looker(&self) -> Looker<'_> {
        self.stead.looker(&self.memory.cache, &self.scan)
    }

    /// The VM's turn. Runs on a thread of its own: every call in it is bounded, but may block.
    pub(super) fn work(&self, turn: Turn) -> Report {
        let Turn { name, reasons, desired, verdict, is_first, claims, tells_first_look, requests, commits, progress } =
            turn;
        // Who gave up before now gets nothing done behind their back.
        for (request, reply) in requests.into_iter().filter(|(_, reply)| !reply.is_closed()) {
            let answer = requests::record(&self.stead, &self.looker(), &desired, &request);
            requests::note(&self.stead, &self.memory, &request, &answer);
            // Whoever asked may have gone away; what was asked for is on record all the same.
            let _ = reply.send(answer);
        }
        if reasons.contains(&Reason::Startup) || reasons.contains(&Reason::Resync) {
            self.tidy(&name);
        }
        // Of the programs and devices of a host, only a start and a VMM's version are asked.
        let facts = LazyCell::new(|| self.stead.host.host_facts());
        let actor = self.stead.actor(&self.memory, &facts);
        let mut telling = Telling::new(self, &name, &desired, commits);
        let claims = Box::new(claims);
        let is_unannounced = Cell::new(tells_first_look);
        // Of a VM about which nothing is done, told or written the report follows at once, and tells it as well.
        let announce = |observed: &ObservedVm| {
            if is_unannounced.take() {
                // The loop may have ended.
                let _ = self.looks.send(Box::new(observed.clone()));
            }
        };
        let plan_by = |observed: &ObservedVm| {
            let now = self.stead.host.now();
            let policy = &self.stead.settings.policy;
            let context = Context { desired: &desired, claims: &claims, facts: &facts, policy, now: &now };
            let plan = context.plan_vm(&name, observed, verdict.as_ref());
            if !plan.actions.is_empty() {
                announce(observed);
            }
            (plan, now)
        };
        let mut report = self.rounds(&name, &plan_by, &actor, &progress, &mut telling);
        let waits_for_gates = is_first && report.plan.holds.iter().any(|hold| matches!(hold, Hold::PruneDelay(_)));
        if waits_for_gates {
            // They hear of it by this report. A turn that follows at once has their word, and tells it: by this one a VM that
            // a gate holds would be told of anew by each pass of cron.
            report.wake = Some(Duration::ZERO);
            if telling.is_silent() {
                return report;
            }
        }
        let previous = self.previous_status(&name);
        // Said again only when it changes, also by the next of the passes that cron makes.
        let held_before = previous.as_ref().map_or(&[][..], |status| &status.holds);
        let held = status::holds_of(&report.plan);
        if held != held_before {
            announce(&report.observed);
            tell_holds(&held, held_before, report.changes, &mut telling);
        }
        self.publish(&report, &facts, previous.as_ref(), telling.into_events(), &announce);
        report
    }

    fn rounds(
        &self,
        name: &VmName,
        plan_by: &dyn Fn(&ObservedVm) -> (VmPlan, Now),
        actor: &Actor<'_>,
        progress: &mpsc::UnboundedSender<Progress>,
        telling: &mut Telling<'_>,
    ) -> Report {
        let mut changes = 0;
        let mut failure = None;
        for _ in 0..MOST_ROUNDS {
            let observed = self.looker().look(name, &SharedLook::default());
            let (plan, now) = plan_by(&observed);
            let wake = wake_after(&plan, &observed, &now);
            let is_settled = plan.actions.is_empty() && wake.is_none();
            self.watch(&observed, self.stays || !is_settled);
            if plan.actions.is_empty() {
                let under_way = under_way(&plan);
                return Report { observed, plan, changes, failure, wake, under_way };
            }
            if let Some(why) = self.has_to_wait(name, &plan) {
                return Report { observed, plan, changes, failure, wake, under_way: Some(why) };
            }
            match self.carry_out(&observed, &plan, actor, progress, telling, &mut changes) {
                Round::Done => {}
                Round::Later(why, wake) => {
                    return Report { observed, plan, changes, failure, wake: Some(wake), under_way: Some(why) };
                }
                Round::Failed(text, look_again) => {
                    let _ = progress.send(Progress::Failed { vm: name.clone(), error: text.clone() });
                    failure = Some(text);
                    if !look_again {
                        return Report { observed, plan, changes, failure, wake: None, under_way: None };
                    }
                }
            }
        }
        let observed = self.looker().look(name, &SharedLook::default());
        let plan = VmPlan { actions: Vec::new(), holds: Vec::new(), notes: Vec::new(), wake: None };
        let under_way = Some("it changes faster than it can be settled".to_owned());
        Report { observed, plan, changes, failure, wake: Some(UNKNOWN_POLL), under_way }
    }

    /// Why the VM is not started yet, though nothing else is to be done first: others are starting.
    fn has_to_wait(&self, name: &VmName, plan: &VmPlan) -> Option<String> {
        if !is_to_start(plan) {
            return None;
        }
        let limit = lock(&self.starts).ask(name, Instant::now()).err()?;
        Some(format!("waits for its turn to start: no more than {limit} VMs start at once"))
    }

    fn carry_out(
        &self,
        observed: &ObservedVm,
        plan: &VmPlan,
        actor: &Actor<'_>,
        progress: &mpsc::UnboundedSender<Progress>,
        telling: &mut Telling<'_>,
        changes: &mut usize,
    ) -> Round {
        // One action a round: the next one is planned by what can be seen after it.
        let (name, Some(action)) = (&observed.name, plan.actions.first()) else { return Round::Done };
        let _ = progress.send(Progress::Acting { vm: name.clone(), action: action.to_string() });
        let step = telling.step(observed, plan, action);
        match actor.act(observed, action) {
            Ok(Outcome::Done(what)) => {
                *changes += 1;
                telling.done(&step, &what);
                let _ = progress.send(Progress::Done { vm: name.clone(), action: what });
                Round::Done
            }
            Ok(Outcome::Later(what, deadline)) => {
                // Told once: the same step is taken again each time the VM is looked at until it is done.
                let is_stop = observed.process.present().is_some() && matches!(action, Action::Teardown { .. });
                let is_new = observed.record.handles().is_none_or(|handles| handles.phase != Phase::Stopping);
                if is_stop && is_new {
                    *changes += 1;
                    telling.begun(&step, &format!("{action}: {what}"));
                }
                let _ = progress.send(Progress::Acting { vm: name.clone(), action: what.clone() });
                let now = self.stead.host.now();
                Round::Later(what, now.until(&deadline).unwrap_or_default())
            }
            // A failed start is on record: the next look frees what it made and counts it.
            Err(error) => {
                let text = error.to_string();
                telling.failed(&step, &text);
                Round::Failed(text, matches!(action, Action::Start { .. }))
            }
        }
    }

    /// Remembers the VM's process and, if its end is of interest, has the kernel tell of that.
    fn watch(&self, observed: &ObservedVm, is_of_interest: bool) {
        let Fact::Present(vmm) = &observed.process else {
            if observed.process.is_absent() {
                lock(&self.watched).remove(&observed.name);
            }
            return;
        };
        self.memory.cache.set_process(&observed.name, vmm.clone());
        let identity = vmm.process.identity;
        if !is_of_interest || lock(&self.watched).insert(observed.name.clone(), identity) == Some(identity) {
            return;
        }
        let (exits, name) = (self.exits.clone(), observed.name.clone());
        let tell = move || {
            // The loop may have ended before the VM did.
            let _ = exits.send(name);
        };
        if let Err(error) = self.stead.host.watch_exit(&vmm.process, Box::new(tell)) {
            tracing::warn!(vm = %observed.name, "its end will be noticed late, at the next full pass: {error}");
            lock(&self.watched).remove(&observed.name);
        }
    }

    /// Sweeps up after crashed writes and keeps the logs within their bound.
    fn tidy(&self, name: &VmName) {
        let layout = &self.stead.layout;
        for folder in [layout.vm_dir(name), layout.disks(name)] {
            if let Err(error) = self.stead.host.sweep_temporaries(&folder) {
                tracing::warn!(vm = %name, "sweeping temporary files: {error}");
            }
        }
        for log in [layout.console_log(name), layout.vmm_log(name)] {
            if let Err(error) = self.stead.host.trim_log(&log, self.stead.settings.log_limit) {
                tracing::warn!(vm = %name, "trimming {}: {error}", log.display());
            }
        }
    }

    /// The status as it was told last, by this stead or by the one before. Read each time: a thousand of them take megabytes.
    fn previous_status(&self, name: &VmName) -> Option<Status> {
        let bytes = self.stead.host.read_state_file(&self.stead.layout.status(name)).ok().flatten()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes status.json, when it says anything new, once whoever waits to hear what the VM holds was told.
    fn publish(
        &self,
        report: &Report,
        facts: &dyn Deref<Target = HostFacts>,
        previous: Option<&Status>,
        events: Vec<NewEvent>,
        announce: &dyn Fn(&ObservedVm),
    ) {
        let observed = &report.observed;
        let name = &observed.name;
        let path = self.stead.layout.status(name);
        let metrics = &self.memory.metrics;
        if is_forgotten(observed, &report.plan) {
            metrics.forget(&self.memory.tallies, name);
            // One is left where the last step of a deletion was done and yet failed.
            if previous.is_some()
                && let Err(error) = self.stead.host.remove_file(&path, false)
            {
                tracing::warn!(vm = %name, "removing status.json: {error}");
            }
            return;
        }
        let advisories = advisories(&*self.stead.host, observed, facts);
        let input = status::StatusInput {
            observed,
            plan: &report.plan,
            generation: observed.ledger.accepted.as_ref().map(|accepted| accepted.generation),
            last_error: report.failure.as_deref(),
            under_way: report.under_way.as_deref(),
            advisories: &advisories,
        };
        let now = self.stead.host.now();
        let status = status::compute(previous, &input, events, &now);
        metrics.vm(&self.memory.tallies, &status, &report.plan);
        if previous != Some(&status) {
            announce(observed);
            let folder = self.stead.layout.vm_dir(name);
            let write = || {
                self.stead.host.make_folder(&folder)?;
                self.stead.host.write_file(&path, &encode(&status))
            };
            if let Err(error) = write() {
                tracing::warn!(vm = %name, "writing status.json: {error}");
            }
        }
    }
}

/// Whether the next thing to be done is its start.
pub(super) fn is_to_start(plan: &VmPlan) -> bool {
    matches!(plan.actions.first(), Some(Action::Start { .. }))
}

/// Says what holds the VM back, which changed.
fn tell_holds(held: &[String], before: &[String], changes: usize, telling: &mut Telling<'_>) {
    for hold in held.iter().filter(|hold| !before.contains(hold)) {
        telling.held(hold);
    }
    if held.is_empty() && !before.is_empty() && changes == 0 {
        telling.released();
    }
}

fn under_way(plan: &VmPlan) -> Option<String> {
    let wait = |hold: &&Hold| matches!(hold, Hold::Starting | Hold::PruneDelay(_));
    plan.holds.iter().find(wait).map(ToString::to_string)
}

/// Known holes of the VMM that runs this VM.
fn advisories(host: &dyn HostView, observed: &ObservedVm, facts: &dyn Deref<Target = HostFacts>) -> Vec<String> {
    let Some(vmm) = observed.process.present() else { return Vec::new() };
    let program = match vmm.vmm {
        crate::spec::VmmKind::Firecracker => &facts.firecracker,
        crate::spec::VmmKind::Qemu => &facts.qemu,
    };
    let version = || host.program_version(vmm.vmm, program.as_ref().ok()?);
    crate::vmm::advisories::of(vmm.vmm, version)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each use leaves the value whole, so a panic elsewhere while it was locked did not break it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
