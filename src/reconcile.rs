//! The control loop and the one-shot pass: what should exist, what does, the difference, the actions.
//!
//! `run` and `once` are the same engine; they differ in when they stop. Its `agenda` holds what was seen last and which VMs
//! are to be looked at, and decides about both without IO; `worker` gives each VM its turn.

pub mod agenda;
mod collect;
mod engine;
mod host_name;
mod passes;
mod requests;
mod starts;
mod syncs;
mod telling;
mod upkeep;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::act::image_locks::ImageLocks;
use crate::act::{Actor, Wake};
use crate::audit;
use crate::config::{Settings, Source, SourceKind};
use crate::control::{self, Reply, Request};
use crate::desired::sources::{Content, Number, Sources};
use crate::desired::{Desired, Problem, SourceName};
use crate::host::{HostFacts, HostOps};
use crate::metrics::{self, Metrics, MetricsError, Pulse, VmTallies};
use crate::names::{Layout, VmName};
use crate::observed::handles::HandleCache;
use crate::observed::process::ProcessScan;
use crate::observed::snapshot::{Looker, Shared as SharedLook};
use crate::observed::{Observed, ObservedVm};
use crate::plan::{Absences, AllowPrune, Plan};
use crate::push::{self, PushError};
use crate::service_manager::ServiceManager;
use crate::state::{GateState, SyncState, parse_gates};
use crate::status::EventType;
use crate::sync::{GitSource, SyncError, Syncer};
use crate::wakeups::Reason;
use collect::Freeing;
use engine::Engine;
use syncs::Syncs;
use worker::lock;

/// How soon a full pass that could not be made is tried again.
const RESYNC_RETRY: Duration = Duration::from_secs(5);

/// How long turns that were begun are waited for when stead ends. Less than those who stop a service give it (systemd: 90 s).
const END_BOUND: Duration = Duration::from_secs(20);

/// What is said to those who wait for an answer when stead ends.
const STOPPING: &str = "stead is stopping; ask again when it is back";

/// One state on one host, and how to keep it.
#[derive(Clone)]
pub struct Stead {
    /// What the user set.
    pub settings: Settings,
    /// Where the state lies.
    pub layout: Layout,
    /// The host.
    pub host: Arc<dyn HostOps>,
}

/// How far a one-shot pass goes.
#[derive(Debug, Clone)]
pub struct OnceOptions {
    /// When it gives up waiting.
    pub timeout: Duration,
    /// Deletions let through beyond the prune cap.
    pub allow_prune: AllowPrune,
    /// Only this VM.
    pub only: Option<VmName>,
    /// Whether git sources are followed first.
    pub sync: bool,
}

/// What a pass is doing, for whoever looks on.
#[derive(Debug, Clone)]
pub enum Progress {
    /// An action begins.
    Acting {
        /// On this VM.
        vm: VmName,
        /// Which.
        action: String,
    },
    /// An action is done.
    Done {
        /// On this VM.
        vm: VmName,
        /// What changed.
        action: String,
    },
    /// An action failed.
    Failed {
        /// On this VM.
        vm: VmName,
        /// Everything that went wrong.
        error: String,
    },
    /// The pass waits.
    Waiting {
        /// For this many VMs.
        vms: usize,
        /// For what, of the first of them.
        why: String,
    },
}

/// What a one-shot pass came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What is left to do, and what is held.
    pub plan: Plan,
    /// Actions carried out.
    pub changes: usize,
    /// What failed, by VM.
    pub failures: BTreeMap<VmName, String>,
    /// What is wrong with manifests.
    pub problems: Vec<Problem>,
    /// Why git sources could not be followed: what was in force of them stays in force.
    pub unsynced: BTreeMap<SourceName, String>,
    /// Whether the time ran out.
    pub timed_out: bool,
}

/// What should exist, what does, and what would be done about it.
#[derive(Debug)]
pub struct Preview {
    /// What should exist.
    pub desired: Desired,
    /// What does.
    pub observed: Observed,
    /// The difference.
    pub plan: Plan,
}

/// Why a pass could not be made at all.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The state folder cannot be listed.
    #[error("cannot list {}", path.display())]
    State {
        /// The folder.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The control socket cannot be made.
    #[error("cannot serve {}", path.display())]
    Control {
        /// The socket.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Nobody can tell of a push.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Nobody can scrape metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A turn of a VM ended in a bug of stead's.
    #[error("a worker ended unexpectedly")]
    Worker(#[source] tokio::task::JoinError),
}

/// What this stead keeps in memory for those who act.
struct Memory {
    cache: HandleCache,
    images: ImageLocks,
    freeing: Freeing,
    audit: audit::Writer,
    repeats: Mutex<audit::Repeats>,
    metrics: Arc<Metrics>,
    tallies: VmTallies,
    wake: Wake,
}

impl Memory {
    /// That of a stead that has just begun.
    fn new(wake: Wake) -> Self {
        let (cache, images, freeing) = (HandleCache::default(), ImageLocks::default(), Freeing::default());
        let (audit, metrics, tallies) = (audit::Writer::default(), Arc::default(), VmTallies::default());
        Self { cache, images, freeing, audit, repeats: Mutex::default(), metrics, tallies, wake }
    }

    /// Writes down what was done. What a person should look at is not written over and over.
    fn record(&self, stead: &Stead, entry: &audit::Entry) {
        if entry.kind == EventType::Warning {
            self.record_again(stead, entry);
        } else {
            self.write_down(stead, entry);
        }
    }

    /// Writes down what may be the same again, as all that is done to a VM that fails time after time.
    fn record_again(&self, stead: &Stead, entry: &audit::Entry) {
        // In a statement of its own: no lock is held while it is written.
        let due = lock(&self.repeats).take(entry);
        if let Some(entry) = due {
            self.write_down(stead, &entry);
        }
    }

    /// Writes down what was left out and has not happened again for a while.
    fn record_what_is_over(&self, stead: &Stead) {
        let over = lock(&self.repeats).over(stead.host.now().wall);
        for entry in &over {
            self.write_down(stead, entry);
        }
    }

    /// One write(2), without fsync: the loop may do it itself. A disk on which that hangs holds it all the same, by
    /// gates.json.
    fn write_down(&self, stead: &Stead, entry: &audit::Entry) {
        if !self.audit.write(&*stead.host, &stead.layout, entry) {
            self.metrics.audit_lost();
        }
    }
}

impl Stead {
    fn looker<'a>(&'a self, cache: &'a HandleCache, scan: &'a ProcessScan) -> Looker<'a> {
        Looker { view: &*self.host, layout: &self.layout, cache, scan, api_bound: self.settings.api_timeout }
    }

    fn actor<'a>(&'a self, memory: &'a Memory, facts: &'a dyn Deref<Target = HostFacts>) -> Actor<'a> {
        Actor {
            host: &*self.host,
            layout: &self.layout,
            cache: &memory.cache,
            images: &memory.images,
            wake: &memory.wake,
            facts,
            accel: self.settings.qemu_accel.into(),
            api_bound: self.settings.api_timeout,
        }
    }

    /// All sources; git sources with what is in force of them.
    fn sources(&self) -> Sources {
        let content = |(number, source): (Number, &Source)| match &source.kind {
            SourceKind::Folder(path) => Content::Folder(source.name.clone(), path.clone()),
            SourceKind::Git(_) => {
                Content::Fixed(self.syncer(number).map(|syncer| syncer.in_force()).unwrap_or_default())
            }
        };
        Sources::new(self.settings.sources.iter().enumerate().map(content), &self.settings.host)
    }

    fn git_source(&self, number: Number) -> Option<(&SourceName, &GitSource)> {
        match self.settings.sources.get(number)? {
            Source { name, kind: SourceKind::Git(git) } => Some((name, git)),
            Source { kind: SourceKind::Folder(_), .. } => None,
        }
    }

    fn syncer(&self, number: Number) -> Option<Syncer<'_>> {
        let (name, git) = self.git_source(number)?;
        Some(Syncer::new(&*self.host, name, git, &self.settings.host, self.layout.source(&name.0)))
    }

    /// Which commit of each git source is in force, where there is one.
    fn commits(&self) -> BTreeMap<SourceName, String> {
        let in_force = |number| {
            let (name, _) = self.git_source(number)?;
            Some((name.clone(), self.syncer(number)?.record().ok()?.applied?.commit))
        };
        (0..self.settings.sources.len()).filter_map(in_force).collect()
    }

    /// Who is listened to for pushes, if the configuration says where.
    fn pushes(&self) -> Result<Option<push::Server>, PushError> {
        let numbers = 0..self.settings.sources.len();
        let names = numbers.filter_map(|number| self.git_source(number)).map(|(name, _)| name.clone());
        self.settings.push.as_ref().map(|push| push::Server::start(push, names.collect())).transpose()
    }

    /// What the gates remember; nothing when it cannot be read, which lets no more through than an empty window does.
    fn gates(&self) -> GateState {
        let path = self.layout.gates();
        match self.host.read_state_file(&path) {
            Ok(None) => GateState::default(),
            Ok(Some(bytes)) => parse_gates(&bytes).unwrap_or_else(|flaw| {
                tracing::warn!("{}: {flaw}; deletions within its window are not known", path.display());
                GateState::default()
            }),
            Err(error) => {
                tracing::warn!("{error}");
                GateState::default()
            }
        }
    }
}

/// Hands what clients ask to the loop, and its answer back.
struct ToEngine(mpsc::Sender<(Request, oneshot::Sender<Reply>)>);

impl control::Handler for ToEngine {
    async fn handle(&self, request: Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        if self.0.send((request, reply)).await.is_err() {
            return requests::refused(STOPPING);
        }
        answer
            .await
            .unwrap_or_else(|_| requests::refused("stead stopped before it was done; ask again when it is back"))
    }
}

/// Keeps the host as declared until `shutdown` resolves. Takes for granted that the caller holds STATE/lock.
///
/// Its end ends no VM: they are recorded, and the next stead adopts them.
pub async fn run(stead: Stead, shutdown: impl Future<Output = ()>) -> Result<(), ReconcileError> {
    let (requests, mut asked) = mpsc::channel(16);
    let socket = stead.layout.control_socket();
    let unserved = |source| ReconcileError::Control { path: socket.clone(), source };
    stead.host.make_folder(&stead.layout.run_dir).map_err(unserved)?;
    let pushes = stead.pushes()?;
    // Whatever is wrong with where it is to be heard is said before anybody hears of it.
    let scraped = stead.settings.metrics.as_ref().map(metrics::Listener::bind).transpose()?;
    let listener = control::bind(&stead.layout).map_err(unserved)?;
    let server = tokio::spawn(control::serve(listener, Arc::new(ToEngine(requests))));
    let host = Arc::clone(&stead.host);

    let mut sources = stead.sources();
    let watches = sources.watch();
    let mut hangup = signal(tokio::signal::unix::SignalKind::hangup());
    let resync = stead.settings.resync;
    tell_of_cgroups(&*stead.host);
    tell_of_open_sources(&stead);
    let pulse = Arc::new(Pulse::default());
    // Nobody looks on: what its turns tell of their progress is in the log.
    let (mut engine, _) = Engine::new(stead.clone(), true, AllowPrune::default(), None, sources);
    let mut syncs = Syncs::new(&stead, engine.metrics());
    let serve = |scraped: metrics::Listener| scraped.serve(engine.metrics(), Arc::clone(&pulse));
    let _metrics = scraped.map(serve).transpose()?;
    pulse.during(engine.settle()).await;
    engine.wake_all(Reason::Startup)?;
    let mut next_resync = tokio::time::Instant::now() + jittered(resync, engine.seed());
    let mut manager = ServiceManager::of_this_process();
    let mut next_ping = manager.ping_every().map(|_| tokio::time::Instant::now());

    tokio::pin!(shutdown);
    loop {
        pulse.beat();
        engine.dispatch();
        engine.measure();
        syncs.begin_due();
        let next_sync = syncs.next_due();
        if let Some(status) = engine.news() {
            manager.status(status);
        }
        if engine.has_made_its_pass() {
            manager.ready();
        }
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            // From here, so that a loop that hangs is noticed; and before all that may come without end.
            () = at(next_ping) => {
                manager.ping();
                next_ping = manager.ping_every().map(|wait| tokio::time::Instant::now() + wait);
            }
            event = engine.event() => engine.take_in(event)?,
            (source, change) = watches.next() => engine.take_up(source, &change),
            Some(ended) = syncs.ended() => {
                let mut ended = ended.map_err(ReconcileError::Worker)?;
                syncs.take_in(&mut ended, engine.seed());
                if let Some(desired) = ended.desired {
                    engine.put_in_force(ended.source, ended.commit, desired);
                }
            }
            Some((request, reply)) = asked.recv() => match request {
                Request::Sync { .. } | Request::RollBack { .. } => syncs.ask(request, reply),
                _ => engine.ask(request, reply),
            },
            names = pushed(pushes.as_ref()) => syncs.hasten_named(&names),
            () = at(next_sync) => {}
            () = pulse.asked() => {}
            () = tokio::time::sleep_until(next_resync) => {
                next_resync = full_pass(&mut engine, resync, Engine::resync);
            }
            Some(()) = hangup.recv() => {
                manager.reloading();
                syncs.hurry();
                next_resync = full_pass(&mut engine, resync, Engine::resync_thoroughly);
            }
        }
    }
    pulse.end();
    manager.stopping();
    // Who waits for an answer waits no longer than this: nothing more is begun.
    engine.refuse_all(STOPPING);
    drop(asked);
    if let Some(pushes) = &pushes {
        pushes.refuse();
    }
    // A turn that was begun is finished: each is bounded, and its records are whole then. One whose call hangs is left, as a
    // crash would leave it.
    let leave_at = tokio::time::Instant::now() + END_BOUND;
    while engine.agenda.wakeups.working() > 0 {
        engine.stop_waiting();
        tokio::select! {
            biased;
            event = engine.event() => engine.take_in(event)?,
            () = tokio::time::sleep_until(leave_at) => {
                engine.leave();
                break;
            }
        }
    }
    engine.record_the_rest().await;
    server.abort();
    if let Err(error) = host.remove_file(&socket, false) {
        tracing::warn!("removing {}: {error}", socket.display());
    }
    Ok(())
}

/// The git sources that a push is told of; never comes where nobody can tell.
async fn pushed(pushes: Option<&push::Server>) -> BTreeSet<SourceName> {
    match pushes {
        Some(pushes) => pushes.next().await,
        None => std::future::pending().await,
    }
}

/// Resolves at this moment; never, if there is none.
async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Follows every git source once. Gives why some could not be.
async fn follow_all(stead: &Stead) -> Result<BTreeMap<SourceName, String>, ReconcileError> {
    let mut syncs = Syncs::new(stead, Arc::default());
    let mut unsynced = BTreeMap::new();
    syncs.begin_due();
    while let Some(ended) = syncs.ended().await {
        let mut ended = ended.map_err(ReconcileError::Worker)?;
        let failure = syncs.take_in(&mut ended, 0);
        unsynced.extend(stead.git_source(ended.source).and_then(|(name, _)| Some((name.clone(), failure?))));
    }
    Ok(unsynced)
}

/// Says once, at the beginning, what VMs must do without.
fn tell_of_cgroups(host: &dyn HostOps) {
    match host.cgroup_facts() {
        Err(why) => tracing::warn!("VMs get no cgroup of their own, and no limits: {why}"),
        Ok(facts) => {
            if let Some(why) = facts.no_limits {
                tracing::warn!("VMs get no limits of CPU and memory: {why}");
            }
        }
    }
}

/// Says once, at the beginning, which repositories others than those who are meant to could change.
fn tell_of_open_sources(stead: &Stead) {
    for (name, git) in (0..stead.settings.sources.len()).filter_map(|number| stead.git_source(number)) {
        if let Some(warning) = git.warning() {
            tracing::warn!(source = %name, "{warning}");
        }
    }
}

/// Lists and wakes everything; when to do so again. That it cannot be done now is no reason to leave the VMs alone.
fn full_pass(
    engine: &mut Engine,
    resync: Duration,
    pass: fn(&mut Engine) -> Result<(), ReconcileError>,
) -> tokio::time::Instant {
    let wait = match pass(engine) {
        Ok(()) => jittered(resync, engine.seed()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("the full pass is put off: {error}{cause}");
            engine.metrics().pass_put_off();
            RESYNC_RETRY.min(resync)
        }
    };
    tokio::time::Instant::now() + wait
}

/// One pass until nothing is left to do now, or the time runs out. Takes for granted that the caller holds STATE/lock.
pub async fn once(
    stead: &Stead,
    options: &OnceOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Outcome, ReconcileError> {
    // Each has a time limit of its own: one that does not answer takes nothing from the pass.
    let unsynced = if options.sync { follow_all(stead).await? } else { BTreeMap::new() };
    let give_up = tokio::time::Instant::now() + options.timeout;
    let leave_at = give_up + END_BOUND;
    let (mut engine, mut steps) =
        Engine::new(stead.clone(), false, options.allow_prune, options.only.clone(), stead.sources());
    engine.settle().await;
    engine.wake_all(Reason::Startup)?;
    let mut timed_out = false;
    let mut said = None;
    loop {
        if timed_out {
            engine.stop_waiting();
        } else {
            engine.dispatch();
        }
        let waiting = engine.waiting_for();
        if engine.is_through() {
            break;
        }
        if waiting != said {
            said.clone_from(&waiting);
            if let Some((vms, why)) = waiting {
                progress(Progress::Waiting { vms, why });
            }
        }
        tokio::select! {
            biased;
            Some(step) = steps.recv() => progress(step),
            event = engine.event() => engine.take_in(event)?,
            () = tokio::time::sleep_until(give_up), if !timed_out => {
                timed_out = true;
            }
            // Whoever has not ended by now is in a call that hangs: the outcome says so.
            () = tokio::time::sleep_until(leave_at), if timed_out => break,
        }
    }
    while let Ok(step) = steps.try_recv() {
        progress(step);
    }
    engine.record_the_rest().await;
    Ok(Outcome { unsynced, ..engine.outcome(timed_out) })
}

/// What would be done, without doing any of it. Needs no lock: it changes nothing.
pub fn preview(stead: &Stead, allow: AllowPrune) -> Result<Preview, ReconcileError> {
    let desired = stead.sources().load();
    let mut observed = look(stead, None)?;
    let (cache, scan, shared) = (HandleCache::default(), ProcessScan::default(), SharedLook::many());
    let looker = stead.looker(&cache, &scan);
    for name in desired.vms.keys() {
        observed.vms.entry(name.clone()).or_insert_with(|| looker.look(name, &shared));
    }
    let now = stead.host.now();
    // A preview has watched nothing: it shows what would be done once a VM's absence has lasted.
    let absences = Absences::long_past(observed.vms.keys().filter(|name| !desired.vms.contains_key(*name)), &now);
    let plan = crate::plan::plan(&desired, &observed, &absences, &stead.settings.policy, allow, &now);
    Ok(Preview { desired, observed, plan })
}

/// What manifests declare for this host; of git sources what is in force.
pub fn declared(stead: &Stead) -> Desired {
    stead.sources().load()
}

/// What exists now, of all VMs or of one; each VM's liveness is proven anew.
pub fn look(stead: &Stead, only: Option<&VmName>) -> Result<Observed, ReconcileError> {
    let (cache, scan) = (HandleCache::default(), ProcessScan::default());
    let shared = if only.is_some() { SharedLook::default() } else { SharedLook::many() };
    let looker = stead.looker(&cache, &scan);
    let names = match only {
        Some(name) => std::iter::once(name.clone()).collect(),
        None => known_vms(stead, &looker)?,
    };
    let vms: BTreeMap<VmName, ObservedVm> =
        names.into_iter().map(|name| (name.clone(), looker.look(&name, &shared))).collect();
    Ok(Observed { vms, facts: stead.host.host_facts(), gates: stead.gates() })
}

/// Carries out what an acting command asks for, as far as it is to be written down; a pass does the rest. Takes for
/// granted that the caller holds STATE/lock.
pub fn request(stead: &Stead, request: &Request) -> Result<Reply, ReconcileError> {
    let (memory, scan) = (Memory::new(Arc::new(|_| ())), ProcessScan::default());
    let note = |reply: Reply| {
        requests::note(stead, &memory, request, &reply);
        reply
    };
    Ok(match request {
        Request::Restart { .. } | Request::Delete { .. } => {
            let desired = stead.sources().load();
            note(requests::record(stead, &stead.looker(&memory.cache, &scan), &desired, request))
        }
        Request::Approve { digest } => {
            let plan = preview(stead, AllowPrune::default())?.plan;
            let held = plan.digest.as_deref().map(|digest| (digest, plan.held().cloned().collect()));
            note(requests::approve(stead, &mut stead.gates(), held, digest))
        }
        Request::Adopt { dir } => requests::adopt(stead, &memory, &scan, dir).0,
        Request::Gc => match collect::collect(stead, &memory) {
            Ok(collected) => collect::reply(&collected, &stead.host.now()),
            Err(error) => requests::refused(format!("looking for orphans: {error}")),
        },
        Request::Sync { .. } | Request::RollBack { .. } => syncs::carry_out(stead, request),
        Request::Ping => requests::pong(),
    })
}

/// What is remembered of a git source.
///
/// # Errors
/// Where it cannot be read.
pub fn sync_state(stead: &Stead, name: &SourceName, git: &GitSource) -> Result<SyncState, SyncError> {
    Syncer::new(&*stead.host, name, git, &stead.settings.host, stead.layout.source(&name.0)).record()
}

/// The kernel objects that nothing accounts for, without freeing or noting any.
pub fn orphans(stead: &Stead) -> std::io::Result<Vec<crate::plan::orphans::Orphan>> {
    collect::preview(stead, &Memory::new(Arc::new(|_| ())))
}

fn known_vms(stead: &Stead, looker: &Looker<'_>) -> Result<BTreeSet<VmName>, ReconcileError> {
    looker.known_vms().map_err(|source| ReconcileError::State { path: stead.layout.vms(), source })
}

/// A wait between 90 % and 110 % of `wait`, so that many hosts started together do not stay in step.
fn jittered(wait: Duration, seed: u64) -> Duration {
    let share = u32::try_from(seed % 200).unwrap_or(0);
    wait * (900 + share) / 1000
}

fn signal(kind: tokio::signal::unix::SignalKind) -> tokio::signal::unix::Signal {
    tokio::signal::unix::signal(kind).expect("the runtime handles signals")
}
