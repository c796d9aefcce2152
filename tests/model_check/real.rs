//! The model's numbers as the types that stead's own code takes, and back.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;
use stead::desired::{Declaration, Desired, FileId, Origin, SourceName, SourceState};
use stead::host::{GuestState, HostFacts, Tap};
use stead::names::{Incarnation, VmName};
use stead::observed::{self, Fact, ObservedVm, Record};
use stead::plan::gates;
use stead::plan::{Absences, AllowPrune, Hold, Policy, VmPlan};
use stead::reconcile::agenda::{Agenda, Seen as RealSeen};
use stead::spec::{Vm as RealVm, VmmKind};
use stead::state::{self, Deletion, ExitRecord, ExitStatus, GateState, Stopping, StoredSpec};
use stead::time::{Deadline, Now};
use stead::wakeups::Reason;
use tokio::time::Instant;

use crate::model::{World, deadline_ms, handles_of, ledger_of, nothing, now_at, process, uid};
use crate::state::{Daemon, Decl, File, Folder, Guest, Handles, Ledger, Phase, Seen, State, Verdict, Vm, Vmm};

/// One tick of the model's clock.
pub const TICK: Duration = Duration::from_secs(5);
const TICK_MS: u64 = 5_000;
/// Now, always.
const NOW_MS: u64 = 1_000 * TICK_MS;
const DECLS: [Decl; 4] = [Decl::A, Decl::B, Decl::Paused, Decl::Stopped];

/// What never changes.
pub struct Fixed {
    pub names: [VmName; 2],
    pub now: Now,
    pub instant: Instant,
    pub facts: HostFacts,
    pub policy: Policy,
    vms: [[Arc<RealVm>; 4]; 2],
    origins: [Origin; 2],
}

pub fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let names: [VmName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let forever = Duration::from_secs(1 << 30);
        Fixed {
            vms: names.clone().map(|name| DECLS.map(|decl| Arc::new(real_vm(&name, decl)))),
            origins: names.clone().map(|name| Origin {
                source: SourceName("manifests".into()),
                path: format!("{name}.yaml").into(),
                line: 1,
            }),
            names,
            now: now_at(NOW_MS),
            instant: Instant::now(),
            facts: World::new(NOW_MS).facts,
            policy: Policy {
                start_timeout: TICK,
                backoff_initial: TICK,
                backoff_max: TICK,
                stable_time: forever,
                prune_delay: TICK,
                prune_window: forever,
                ..Policy::default()
            },
        }
    })
}

fn real_vm(name: &VmName, decl: Decl) -> RealVm {
    let power = match decl {
        Decl::A | Decl::B => "Running",
        Decl::Paused => "Paused",
        Decl::Stopped => "Stopped",
    };
    serde_json::from_value(json!({
        "name": name,
        "spec": {
            "powerState": power, "restartPolicy": "Always", "vmm": "firecracker", "cpus": 1,
            "memoryMib": crate::state::memory(decl), "boot": {"kernel": "/k", "initrd": null, "args": ""}, "disks": [],
            "networkInterfaces": [{"name": "eth0", "bridge": null, "macAddress": null}],
            "terminationGracePeriodSeconds": TICK.as_secs(), "updatePolicy": "Recreate", "deletionPolicy": "Retain",
        },
    }))
    .unwrap()
}

impl Fixed {
    pub fn vm(&self, index: usize, decl: Decl) -> &Arc<RealVm> {
        &self.vms[index][DECLS.iter().position(|other| *other == decl).unwrap()]
    }

    fn decl_of(&self, index: usize, is: impl Fn(&RealVm) -> bool) -> Decl {
        DECLS.into_iter().find(|decl| is(self.vm(index, *decl))).expect("it was declared like that once")
    }
}

fn ago(ticks: u8) -> Deadline {
    deadline_ms(NOW_MS - u64::from(ticks) * TICK_MS)
}

fn ahead(ticks: u8) -> Deadline {
    deadline_ms(NOW_MS + u64::from(ticks) * TICK_MS)
}

fn ticks_since(moment: &Deadline) -> u8 {
    u8::try_from((NOW_MS - moment.boot_ms) / TICK_MS).unwrap()
}

/// What waits for a part of a tick waits for the whole.
fn ticks_until(moment: &Deadline) -> u8 {
    u8::try_from(moment.boot_ms.saturating_sub(NOW_MS).div_ceil(TICK_MS)).unwrap()
}

const ROOT: FileId = FileId { device: 1, inode: 1 };

/// What stead lists when these are the manifests.
pub fn desired(manifests: [Option<Decl>; 2], folder: Folder, hides_gaps: bool) -> Desired {
    let fixed = fixed();
    let mut desired = Desired::default();
    for (index, decl) in manifests.into_iter().enumerate().filter(|_| folder == Folder::Sound) {
        let Some(decl) = decl else { continue };
        let vm = Ok(Arc::clone(fixed.vm(index, decl)));
        let declaration = Declaration { origin: fixed.origins[index].clone(), vm };
        desired.vms.insert(fixed.names[index].clone(), vec![declaration]);
    }
    let cannot_be_read = folder == Folder::Unreadable && !hides_gaps;
    let incomplete = if cannot_be_read { vec!["it cannot be read".to_owned()] } else { Vec::new() };
    let root = match folder {
        Folder::Foreign => FileId { inode: 2, ..ROOT },
        Folder::Sound | Folder::Unreadable => ROOT,
    };
    let state = SourceState {
        incomplete,
        root: Some(root),
        empty: desired.vms.is_empty(),
        elsewhere: std::sync::Arc::default(),
    };
    desired.sources = BTreeMap::from([(SourceName("manifests".into()), state)]);
    desired
}

fn real_handles(index: usize, handles: &Handles) -> state::Handles {
    let fixed = fixed();
    let vm = fixed.vm(index, handles.spec.unwrap_or(Decl::A));
    let incarnation = Incarnation(handles.incarnation.into());
    let full = handles_of(&vm.name, Some((vm, &fixed.origins[index])), incarnation, VmmKind::Firecracker);
    let phase = match handles.phase {
        Phase::Starting => state::Phase::Starting,
        Phase::Running => state::Phase::Running,
        Phase::Stopping => state::Phase::Stopping,
    };
    let deadline = ahead(handles.grace);
    state::Handles {
        phase,
        pid: full.pid.filter(|_| handles.has_pid),
        start_time: full.start_time.filter(|_| handles.has_pid),
        pidfd_inode: full.pidfd_inode.filter(|_| handles.has_pid),
        spec: full.spec.clone().filter(|_| handles.spec.is_some()),
        origin: full.origin.clone().filter(|_| handles.has_origin),
        began: Some(ago(handles.began)),
        stopping: (phase == state::Phase::Stopping).then(|| Stopping { reason: String::new(), deadline }),
        ..full
    }
}

fn real_ledger(index: usize, ledger: &Ledger) -> state::Ledger {
    let fixed = fixed();
    let name = &fixed.names[index];
    let incarnation = Incarnation(ledger.incarnation.into());
    let full = ledger.accepted.map(|decl| {
        ledger_of(fixed.vm(index, decl), &fixed.origins[index], incarnation, VmmKind::Firecracker).accepted.unwrap()
    });
    let booted = ledger.booted.map(|(life, decl)| state::Booted {
        incarnation: Incarnation(life.into()),
        spec: StoredSpec::from(&fixed.vm(index, decl).spec),
        generation: 1,
    });
    let exit = ledger.exit.map(|(life, requested)| ExitRecord {
        incarnation: Incarnation(life.into()),
        status: ExitStatus::Unknown,
        requested,
        message: None,
        at: fixed.now.wall,
    });
    let backoff = (ledger.backoff > 0).then(|| state::Backoff { failures: 1, until: ahead(ledger.backoff) });
    state::Ledger {
        incarnation,
        accepted: full,
        booted,
        vmm: ledger.booted.map(|_| VmmKind::Firecracker),
        last_exit: exit,
        backoff,
        ..state::Ledger::new(name.clone(), uid(name))
    }
}

/// What of a ledger decisions go by.
pub fn small_ledger(index: usize, ledger: &state::Ledger) -> Ledger {
    let fixed = fixed();
    let life = |incarnation: Incarnation| u8::try_from(incarnation.0).unwrap();
    let booted_with = |booted: &state::Booted| fixed.decl_of(index, |vm| StoredSpec::from(&vm.spec) == booted.spec);
    Ledger {
        incarnation: life(ledger.incarnation),
        accepted: ledger.accepted.as_ref().map(|accepted| fixed.decl_of(index, |vm| *vm == *accepted.vm)),
        booted: ledger.booted.as_ref().map(|booted| (life(booted.incarnation), booted_with(booted))),
        exit: ledger.last_exit.as_ref().map(|exit| (life(exit.incarnation), exit.requested)),
        backoff: ledger.backoff.as_ref().map_or(0, |backoff| ticks_until(&backoff.until)),
    }
}

fn real_process(vmm: &Vmm) -> observed::VmmProcess {
    process(Incarnation(vmm.incarnation.into()), VmmKind::Firecracker)
}

/// What a look at the VM finds.
pub fn observe(index: usize, vm: &Vm) -> ObservedVm {
    let name = &fixed().names[index];
    let mut observed = nothing(name);
    observed.record = match &vm.handles {
        File::Missing => Record::Missing,
        File::Flawed => Record::Flawed("it is empty".to_owned()),
        File::Valid(handles) => Record::Valid(Box::new(real_handles(index, handles))),
    };
    match &vm.ledger {
        File::Missing => {}
        File::Flawed => observed.ledger_flaw = Some("it is empty".to_owned()),
        File::Valid(ledger) => observed.ledger = real_ledger(index, ledger),
    }
    if let Some(vmm) = &vm.vmm {
        observed.process = Fact::Present(real_process(vmm));
        observed.guest = observed::Guest::Is(match vmm.guest {
            Guest::Booting | Guest::Hung => GuestState::NotStarted,
            Guest::Running => GuestState::Running,
            Guest::Paused => GuestState::Paused,
        });
    }
    let never_ran = vm.handles.valid().is_some_and(|handles| !handles.has_pid && handles.phase == Phase::Starting);
    observed.exit = if never_ran { ExitStatus::NeverRan } else { ExitStatus::Unknown };
    let tap = uid(name).tap(&"eth0".parse().unwrap());
    let present = Tap { name: tap.clone(), alias: None, bridge: None, up: true };
    observed.taps.insert(tap, if vm.objects { Fact::Present(present) } else { Fact::Absent });
    observed
}

pub fn seen_of(observed: &ObservedVm) -> Seen {
    Seen {
        accepted: observed.ledger.accepted.is_some(),
        origin_in_record: observed.record.handles().is_some_and(|handles| handles.origin.is_some()),
        is_unknown: matches!(observed.process, Fact::Unknown(_)),
    }
}

/// Some VM that the gates judge as they would the one that was seen.
pub fn seen_vm(index: usize, seen: Seen) -> ObservedVm {
    let life = Handles {
        incarnation: 1,
        phase: Phase::Running,
        spec: None,
        has_origin: true,
        has_pid: true,
        began: 1,
        grace: 0,
    };
    let ledger = Ledger { accepted: seen.accepted.then_some(Decl::A), ..Ledger::default() };
    let vm = Vm {
        handles: if seen.origin_in_record { File::Valid(life) } else { File::Missing },
        ledger: File::Valid(ledger),
        ..Vm::default()
    };
    let mut observed = observe(index, &vm);
    if seen.is_unknown {
        observed.process = Fact::Unknown("nobody knows".to_owned());
    }
    observed
}

pub fn real_gates(vms: &[Vm; 2]) -> GateState {
    let deletion = |(name, vm): (&VmName, &Vm)| {
        Some(Deletion { name: name.clone(), at: ago(vm.let_through?), of: 2, over: false })
    };
    let deletions = fixed().names.iter().zip(vms).filter_map(deletion).collect();
    GateState { version: 1, deletions, approval: None }
}

pub fn take_gates(gates: &GateState, vms: &mut [Vm; 2]) {
    for (name, vm) in fixed().names.iter().zip(vms) {
        let deletion = gates.deletions.iter().find(|deletion| deletion.name == *name);
        vm.let_through = deletion.map(|deletion| ticks_since(&deletion.at));
    }
}

pub fn small_verdict(verdict: Option<&gates::Verdict>) -> Verdict {
    match verdict {
        None => Verdict::Unheard,
        Some(gates::Verdict::Delete) => Verdict::Delete,
        Some(gates::Verdict::Unclaimed) => Verdict::Unclaimed,
        Some(gates::Verdict::Hold(Hold::PruneDelay(until))) => Verdict::PruneDelay(ticks_until(until)),
        Some(gates::Verdict::Hold(Hold::SourceIncomplete(_))) => Verdict::Incomplete,
        Some(gates::Verdict::Hold(Hold::FolderReplaced)) => Verdict::Replaced,
        Some(gates::Verdict::Hold(other)) => panic!("no gate of this model: {other:?}"),
    }
}

pub fn real_verdict(verdict: Verdict) -> Option<gates::Verdict> {
    Some(match verdict {
        Verdict::Unheard => return None,
        Verdict::Delete => gates::Verdict::Delete,
        Verdict::Unclaimed => gates::Verdict::Unclaimed,
        Verdict::PruneDelay(ticks) => gates::Verdict::Hold(Hold::PruneDelay(ahead(ticks))),
        Verdict::Incomplete => gates::Verdict::Hold(Hold::SourceIncomplete(vec!["it cannot be read".to_owned()])),
        Verdict::Replaced => gates::Verdict::Hold(Hold::FolderReplaced),
    })
}

/// The loop's own agenda as this stead has it. Of the VMs that wait for a worker, `first` is the next one.
pub fn agenda_of(daemon: &Daemon, first: usize, hides_gaps: bool) -> Agenda {
    let fixed = fixed();
    let seen = daemon.slots.iter().enumerate().filter_map(|(index, slot)| {
        let observed = Arc::new(seen_vm(index, slot.seen?));
        let seen = RealSeen { observed, plan: VmPlan::default(), failure: None, failures: 0 };
        Some((fixed.names[index].clone(), seen))
    });
    let agenda = Agenda::new(fixed.policy.clone(), AllowPrune::default(), None, &GateState::default(), &fixed.now);
    let mut agenda = agenda.with(desired(daemon.listing.0, daemon.listing.1, hides_gaps), seen);
    agenda.listed_at = ago(daemon.listed);
    agenda.absences = Absences::default();
    for index in [first, 1 - first] {
        let (slot, name) = (&daemon.slots[index], &fixed.names[index]);
        if let Some(ticks) = slot.missing_since {
            agenda.absences.since.insert(name.clone(), ago(ticks));
        }
        // Whoever works has been taken: before anybody else waits.
        if slot.is_working {
            agenda.wakeups.wake(name, Reason::Startup);
            while agenda.wakeups.take(fixed.instant).is_some_and(|(taken, _)| taken != *name) {}
        }
    }
    for index in [first, 1 - first] {
        let (slot, name) = (&daemon.slots[index], &fixed.names[index]);
        if slot.is_woken {
            agenda.wakeups.wake(name, Reason::Manifest);
        }
        if let Some(ticks) = slot.deadline {
            agenda.wakeups.wake_at(name, fixed.instant + TICK * u32::from(ticks));
        }
    }
    agenda
}

/// The small form of what the loop goes by now.
pub fn take_agenda(agenda: &Agenda, state: &mut State) {
    let fixed = fixed();
    let Some(daemon) = &mut state.daemon else { return };
    daemon.listed = ticks_since(&agenda.listed_at);
    for (slot, name) in daemon.slots.iter_mut().zip(&fixed.names) {
        let standing = agenda.wakeups.standing(name);
        slot.missing_since = agenda.absences.since.get(name).map(ticks_since);
        slot.seen = agenda.sightings().get(name).map(|seen| seen_of(&seen.observed));
        (slot.is_woken, slot.is_working) = (standing.woken, standing.working);
        slot.deadline = standing.deadline.map(|when| {
            let wait = when.saturating_duration_since(fixed.instant).as_millis();
            u8::try_from(wait.div_ceil(TICK.as_millis())).unwrap()
        });
    }
}
