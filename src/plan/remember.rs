//! What the ledger should say, from what it says and what is seen. The ledger follows the handles: the higher incarnation
//! wins.

use std::borrow::Cow;
use std::sync::Arc;

use crate::desired::{FileId, Origin};
use crate::observed::{Fact, Guest, ObservedVm};
use crate::plan::{Policy, retry};
use crate::spec::Vm;
use crate::state::{Accepted, Booted, ExitRecord, ExitStatus, Handles, Ledger, Phase};
use crate::time::Now;

/// The ledger as it should be, with the declaration in force, its place, and the root folder of its source; borrowed when it
/// is so already, as in every pass that finds nothing to do.
pub(super) fn next_ledger<'a>(
    observed: &'a ObservedVm,
    vm: &Arc<Vm>,
    origin: &Origin,
    root: Option<FileId>,
    policy: &Policy,
    now: &Now,
) -> Cow<'a, Ledger> {
    let mut ledger = Cow::Borrowed(&observed.ledger);
    if !is_accepted(&ledger, vm, origin, root) {
        accept(ledger.to_mut(), vm, origin, root);
    }
    let Some(handles) = observed.record.handles() else { return ledger };
    if handles.incarnation > ledger.incarnation {
        begin(ledger.to_mut(), handles, vm);
    }
    if let Some(status) = ended(observed)
        && ledger.last_exit.as_ref().is_none_or(|exit| exit.incarnation < handles.incarnation)
    {
        end(ledger.to_mut(), observed, handles, status, policy, now);
    }
    ledger
}

/// Whether this declaration is the one that was taken up last.
fn is_accepted(ledger: &Ledger, vm: &Arc<Vm>, origin: &Origin, root: Option<FileId>) -> bool {
    ledger.accepted.as_ref().is_some_and(|accepted| {
        accepted.vm == *vm && accepted.origin == *origin && (root.is_none() || accepted.root == root)
    }) && !ledger.delete_requested
}

/// Takes up a declaration.
fn accept(ledger: &mut Ledger, vm: &Arc<Vm>, origin: &Origin, root: Option<FileId>) {
    let generation = match &ledger.accepted {
        None => 1,
        Some(before) if before.vm.spec == vm.spec => before.generation,
        Some(before) => before.generation.saturating_add(1),
    };
    // What can be seen of a folder may be nothing for a moment; what it was stays known.
    let root = root.or_else(|| ledger.accepted.as_ref().and_then(|before| before.root));
    ledger.accepted = Some(Accepted { vm: Arc::clone(vm), origin: origin.clone(), root, generation });
    ledger.delete_requested = false;
}

/// A life began: the requests that led to it are done.
fn begin(ledger: &mut Ledger, handles: &Handles, vm: &Vm) {
    let ended_by_itself =
        ledger.last_exit.as_ref().is_some_and(|exit| !exit.requested && exit.status != ExitStatus::NeverRan);
    if ended_by_itself {
        ledger.restarts = ledger.restarts.saturating_add(1);
    }
    ledger.incarnation = handles.incarnation;
    ledger.vmm = Some(handles.vmm);
    let generation = ledger.accepted.as_ref().map_or(0, |accepted| accepted.generation);
    let spec = handles.spec.clone();
    ledger.booted = spec.map(|spec| Booted { incarnation: handles.incarnation, spec, generation });
    ledger.restart_requested = false;
    ledger.restarted_at = vm.restarted_at().map(str::to_owned);
}

/// How the recorded life ended, if it did.
fn ended(observed: &ObservedVm) -> Option<ExitStatus> {
    match (&observed.process, &observed.guest) {
        (Fact::Absent, _) => Some(observed.exit),
        (Fact::Present(_), Guest::Is(crate::host::GuestState::ShutDown)) => Some(ExitStatus::Code(0)),
        _ => None,
    }
}

/// A life ended: counted once a life.
fn end(ledger: &mut Ledger, observed: &ObservedVm, handles: &Handles, status: ExitStatus, policy: &Policy, now: &Now) {
    let requested = handles.phase == Phase::Stopping;
    let message = observed.exit_message.clone();
    ledger.last_exit = Some(ExitRecord { incarnation: handles.incarnation, status, requested, message, at: now.wall });
    let is_failure = !requested && status != ExitStatus::HostReboot;
    if is_failure {
        let lived = handles.began.as_ref().and_then(|began| now.since(began));
        let uid = handles.uid.to_string();
        let seed =
            uid.bytes().fold(handles.incarnation.0, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        ledger.backoff = Some(retry::after_failure(policy, ledger.backoff.as_ref(), lived, seed, now));
    }
}

/// Whether the annotation asks for a restart that was not done: its value is another than the one the VM started under.
pub(super) fn restart_annotated(vm: &Vm, ledger: &Ledger) -> bool {
    let asked = vm.restarted_at();
    asked.is_some() && ledger.booted.is_some() && asked != ledger.restarted_at.as_deref()
}

/// Whether nothing is remembered but what outlives a deletion.
pub(super) fn is_forgotten(ledger: &Ledger) -> bool {
    let kept = Ledger { incarnation: ledger.incarnation, ..Ledger::new(ledger.name.clone(), ledger.uid) };
    Ledger { extra: serde_json::Map::new(), ..ledger.clone() } == kept
}

/// What changed, in a few words.
pub(super) fn explain(before: &Ledger, after: &Ledger) -> String {
    let mut words = Vec::new();
    match (&before.accepted, &after.accepted) {
        (None, Some(accepted)) => words.push(format!("declared in {}", accepted.origin)),
        (Some(old), Some(new)) if old != new => words.push(if old.generation != new.generation {
            format!("its spec changed, generation {}", new.generation)
        } else if old.origin != new.origin {
            format!("its declaration moved to {}", new.origin)
        } else if old.vm != new.vm {
            "its labels or annotations changed".to_owned()
        } else {
            "its manifest folder was replaced".to_owned()
        }),
        _ => {}
    }
    if after.incarnation > before.incarnation {
        words.push(format!("incarnation {} began", after.incarnation));
    }
    if let Some(exit) = after.last_exit.as_ref().filter(|exit| Some(*exit) != before.last_exit.as_ref()) {
        let by = if exit.requested { "stopped" } else { "ended by itself" };
        words.push(format!("incarnation {} {by}: {}", exit.incarnation, exit.status));
        words.extend(exit.message.clone());
    }
    if words.is_empty() {
        words.push("brought up to date".to_owned());
    }
    words.join("; ")
}
