//! What `stead top` looks at, on a thread of its own: a VMM that hangs delays no key.
//!
//! A VM is looked at again when its files change or its VMM ends, and one that is on its way at each tick; all of them once in a
//! while, as a net. In between, a tick reads one file for each VM on the screen and asks each pidfd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::UnboundedSender;

use super::state::{Daemon, Event, Sample};
use crate::cli::error::in_full;
use crate::cli::view::{Looker, View, Views};
use crate::cli::{CliError, Context};
use crate::control::{Reply, Request, ask};
use crate::host::ProcessHandle;
use crate::names::VmName;
use crate::status::VmPhase;

/// How often it is read what VMMs take of the host.
const TICK: Duration = Duration::from_secs(2);
/// How often every VM is looked at without a sign of change.
const NET: Duration = Duration::from_secs(60);
/// How often the running stead is asked whether it is there.
const PING: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PING_BOUND: Duration = Duration::from_millis(500);
/// The shortest time between two looks at what changed: a host full of starting VMs changes all the time.
const PAUSE: Duration = Duration::from_millis(500);
/// After a look of some length nothing is looked at for so many times that length: `top` is not what keeps the host busy.
const REST: u32 = 4;
/// With more changes than this, one look at all costs less than one at each.
const SINGLY_MAX: usize = 50;
/// How many VMs that are on their way are looked at again in one tick.
const MOVING_MAX: usize = 16;

/// What the thread is told.
enum Order {
    /// Of these VMs it is to be known what they take of the host.
    Watch(Vec<VmName>),
    /// Look at this one now.
    Look(VmName),
    /// Files changed.
    Changed,
}

/// What changed since it was last looked at.
#[derive(Debug, Default)]
struct Changed {
    vms: BTreeSet<VmName>,
    /// Something of which the kernel does not say what.
    anything: bool,
}

/// The thread, for those who ask it something. It ends with the last of them.
pub(super) struct Feed {
    orders: Sender<Order>,
}

impl Feed {
    /// Begins to look.
    pub(super) fn start(context: &Context, events: UnboundedSender<Event>) -> Result<Self, CliError> {
        let looker = Looker::new(context)?;
        let (orders, received) = channel();
        let changed = Arc::new(Mutex::new(Changed::default()));
        let watcher = watcher(looker.layout.vms(), Arc::clone(&changed), orders.clone())?;
        let thread = Thread {
            looker,
            watcher,
            watches: false,
            watch_again: Instant::now(),
            changed,
            events,
            vms: BTreeMap::new(),
            watched: Vec::new(),
        };
        std::thread::Builder::new()
            .name("look".to_owned())
            .spawn(move || thread.run(&received))
            .map_err(|source| CliError::io("start a thread", source))?;
        Ok(Self { orders })
    }

    /// Of these VMs it is to be known what they take of the host.
    pub(super) fn watch(&self, vms: Vec<VmName>) {
        let _ = self.orders.send(Order::Watch(vms));
    }

    /// Looks at this VM now.
    pub(super) fn look(&self, vm: VmName) {
        let _ = self.orders.send(Order::Look(vm));
    }
}

/// Notes which VM's record or status changed, and tells once of many.
fn watcher(vms: PathBuf, changed: Arc<Mutex<Changed>>, orders: Sender<Order>) -> Result<RecommendedWatcher, CliError> {
    Ok(notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let (names, anything) = match &event {
            // Our own reading raises Access events.
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
            // An error or an overflow has no path and may hide anything.
            Ok(event) if !event.need_rescan() && !event.paths.is_empty() => {
                (event.paths.iter().filter_map(|path| vm_of(&vms, path)).collect::<Vec<_>>(), false)
            }
            _ => (Vec::new(), true),
        };
        if names.is_empty() && !anything {
            return;
        }
        let mut changed = changed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = changed.vms.is_empty() && !changed.anything;
        changed.vms.extend(names);
        changed.anything |= anything;
        if is_first {
            let _ = orders.send(Order::Changed);
        }
    })?)
}

/// The VM whose folder, record or status this is.
fn vm_of(vms: &Path, path: &Path) -> Option<VmName> {
    let mut inside = path.strip_prefix(vms).ok()?.iter();
    let name = inside.next()?.to_str()?.parse().ok()?;
    let counts = inside.next().is_none_or(|file| file == "status.json" || file == "handles.json");
    counts.then_some(name)
}

struct Thread {
    looker: Looker,
    watcher: RecommendedWatcher,
    /// Whether the state was there to be watched.
    watches: bool,
    /// Not before this moment after that failed: a limit that is met stays so for a while, and the net holds meanwhile.
    watch_again: Instant,
    changed: Arc<Mutex<Changed>>,
    events: UnboundedSender<Event>,
    /// What was seen last of each VM that is not at rest, or whose VMM lives.
    vms: BTreeMap<VmName, Seen>,
    watched: Vec<VmName>,
}

struct Seen {
    /// Whether it is on its way from one phase to another.
    moves: bool,
    process: Option<ProcessHandle>,
}

impl Thread {
    /// Until nobody listens any more.
    fn run(mut self, orders: &Receiver<Order>) {
        let mut tick = Instant::now();
        let (mut net, mut ping, mut rested) = (tick, tick, tick);
        let mut pending = Changed { anything: true, ..Changed::default() };
        while !self.events.is_closed() {
            let now = Instant::now();
            if now >= rested && (pending.anything || !pending.vms.is_empty()) {
                net = if pending.anything { now + NET } else { net };
                self.look(std::mem::take(&mut pending));
                rested = Instant::now() + PAUSE.max(now.elapsed() * REST);
            }
            if now >= ping {
                let daemon = self.daemon();
                ping = now + if matches!(daemon, Daemon::Silent(_)) { TICK } else { PING };
                self.tell(Event::Daemon(daemon));
            }
            if now >= tick {
                pending.vms.extend(self.restless());
                pending.anything |= now >= net || self.begins_to_watch();
                self.measure();
                tick = now + TICK;
            }
            let is_pending = pending.anything || !pending.vms.is_empty();
            let wake_at = if is_pending { tick.min(rested) } else { tick };
            match orders.recv_timeout(wake_at.saturating_duration_since(Instant::now())) {
                Ok(Order::Watch(vms)) => {
                    let news = vms.iter().any(|vm| !self.watched.contains(vm));
                    self.watched = vms;
                    if news {
                        self.measure();
                    }
                }
                Ok(Order::Look(vm)) => self.look_at([vm]),
                Ok(Order::Changed) => {
                    let changed = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
                    pending.vms.extend(changed.vms);
                    pending.anything |= changed.anything;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Watches the state from the moment it is there; true when that is now.
    fn begins_to_watch(&mut self) -> bool {
        let vms = self.looker.layout.vms();
        if self.watches || Instant::now() < self.watch_again || !vms.is_dir() {
            return false;
        }
        match self.watcher.watch(&vms, RecursiveMode::Recursive) {
            Ok(()) => self.watches = true,
            Err(error) => {
                self.watch_again = Instant::now() + NET;
                self.tell(Event::LookFailed(in_full(&CliError::Watch(error))));
            }
        }
        self.watches
    }

    fn look(&mut self, changed: Changed) {
        if !changed.anything && changed.vms.len() <= SINGLY_MAX {
            return self.look_at(changed.vms);
        }
        match self.looker.look(None) {
            Ok(mut views) => {
                self.vms = views.vms.iter_mut().map(|view| (view.name.clone(), seen(view))).collect();
                self.tell(Event::All(views));
            }
            Err(error) => self.tell(Event::LookFailed(in_full(&error))),
        }
    }

    fn look_at(&mut self, vms: impl IntoIterator<Item = VmName>) {
        let mut looked = Vec::new();
        let mut moment = None;
        for vm in vms {
            match self.looker.look(Some(&vm)) {
                Ok(Views { vms: mut views, now }) => {
                    moment = now.or(moment);
                    let mut view = views.pop();
                    match &mut view {
                        Some(view) => drop(self.vms.insert(vm.clone(), seen(view))),
                        None => drop(self.vms.remove(&vm)),
                    }
                    looked.push((vm, view));
                }
                Err(error) => self.tell(Event::LookFailed(in_full(&error))),
            }
        }
        self.tell(Event::Some(looked, moment));
    }

    /// VMs whose VMM has ended, which no file tells while no stead runs to notice it, and some of those on their way.
    fn restless(&self) -> BTreeSet<VmName> {
        let Some(host) = self.looker.host() else { return BTreeSet::new() };
        let has_ended = |seen: &Seen| seen.process.as_ref().is_some_and(|process| !host.is_alive(process));
        let moving = self.vms.iter().filter(|(_, seen)| seen.moves).take(MOVING_MAX);
        let ended = self.vms.iter().filter(|(_, seen)| has_ended(seen));
        moving.chain(ended).map(|(vm, _)| vm.clone()).collect()
    }

    fn measure(&self) {
        let Some(host) = self.looker.host() else { return };
        let sample = |vm: &VmName| {
            let process = self.vms.get(vm)?.process.as_ref()?;
            // One that cannot be read is not known, and no reason to look at nothing.
            let usage = host.usage(process).ok()??;
            Some((vm.clone(), Sample { process: process.identity, usage, at: Instant::now() }))
        };
        let samples = self.watched.iter().filter_map(sample).collect();
        self.tell(Event::Usage(samples, host.now()));
    }

    fn daemon(&self) -> Daemon {
        match ask(&self.looker.layout, &Request::Ping, PING_BOUND) {
            Ok(Some(Reply::Pong { version, pid })) => Daemon::Runs { version, pid },
            Ok(None) => Daemon::None,
            Ok(Some(_)) => Daemon::Silent("its answer makes no sense".to_owned()),
            Err(error) => Daemon::Silent(error.to_string()),
        }
    }
}

/// What is to be remembered of a view. Its line to the VMM is given up: a VMM has room for a few.
pub(super) fn seen_process(view: &mut View) -> Option<ProcessHandle> {
    let crate::observed::Fact::Present(vmm) = &mut view.observed.process else { return None };
    vmm.process.line = None;
    Some(vmm.process.clone())
}

fn seen(view: &mut View) -> Seen {
    let moves = matches!(view.live.phase, VmPhase::Starting | VmPhase::Stopping | VmPhase::Dead | VmPhase::Unknown);
    Seen { moves, process: seen_process(view) }
}
