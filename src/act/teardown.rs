//! Teardown: a graph whose steps run as soon as their own prerequisites are confirmed. It never returns early: what
//! cannot be freed is kept on record with the reason, everything else is freed, and the next pass goes on from there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{ActError, Actor, Outcome};
use crate::host::{GuestState, VmmCommand};
use crate::names::Incarnation;
use crate::observed::handles::TapRemoval;
use crate::observed::{Fact, Guest, ObservedVm, Record, VmmProcess};
use crate::plan::TeardownReason;
use crate::spec::DeletionPolicy;
use crate::state::{Blocked, Handles, Ledger, Phase, Stopping, TapHandle};

/// How often a guest is asked to stop.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long the removal of taps may take before somebody looks again; its end itself wakes the VM at once.
const AFTER_TAPS: Duration = Duration::from_secs(2);
/// How soon what was busy is tried again, doubling this many times; after that it is a failure, tried again ever more rarely.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const QUICK_RETRIES: u32 = 6;
/// How long a killed VMM may take to be gone before somebody looks again; its end itself wakes the VM at once.
const AFTER_KILL: Duration = Duration::from_secs(1);

impl Actor<'_> {
    /// Stops the VMM if it lives; once its end is confirmed, frees all the VM held.
    pub(super) fn teardown(
        &self,
        vm: &ObservedVm,
        reason: &TeardownReason,
        grace_seconds: u32,
    ) -> Result<Outcome, ActError> {
        match &vm.process {
            Fact::Present(process) => self.stop(vm, process, reason, grace_seconds),
            Fact::Absent => self.free(vm),
            Fact::Unknown(why) => Err(ActError::one("its VMM", format!("cannot tell whether it lives: {why}"))),
        }
    }

    fn stop(
        &self,
        vm: &ObservedVm,
        process: &VmmProcess,
        reason: &TeardownReason,
        grace_seconds: u32,
    ) -> Result<Outcome, ActError> {
        let now = self.host.now();
        let begun = vm.record.handles().filter(|handles| handles.incarnation == process.incarnation);
        let begun = begun.filter(|handles| handles.phase == Phase::Stopping && handles.stopping.is_some());
        let handles = if let Some(handles) = begun {
            handles.clone()
        } else {
            if let Record::Flawed(_) = vm.record {
                self.host
                    .set_aside(&self.layout.handles(&vm.name))
                    .map_err(|error| ActError::one("setting handles.json aside", error))?;
            }
            let mut handles = self.record_of(vm, process, Phase::Stopping);
            let deadline = now.deadline(Duration::from_secs(grace_seconds.into()));
            handles.stopping = Some(Stopping { reason: reason.to_string(), deadline });
            // Intent first: after a crash the VM's end is a stop that was wanted, not a crash of the VM.
            self.write_handles(&vm.name, &handles)?;
            handles
        };
        let Some(stopping) = handles.stopping.clone() else {
            return Err(ActError::one("handles.json", "phase stopping without a deadline"));
        };
        if now.is_past(&stopping.deadline) {
            self.host.kill(&process.process).map_err(|error| ActError::one("killing the VMM", error))?;
            return Ok(Outcome::Later("its VMM was killed".to_owned(), now.deadline(AFTER_KILL)));
        }
        // A guest whose CPUs are halted cannot hear.
        if vm.guest == Guest::Is(GuestState::Paused) {
            let _ = self.tell(vm, process, VmmCommand::Resume);
        }
        // Asked again and again: a guest that still boots hears neither Ctrl-Alt-Del nor a power button. One that cannot be
        // asked is killed at the deadline all the same.
        let _ = self.tell(vm, process, VmmCommand::Shutdown);
        let again = now.until(&stopping.deadline).map_or(Duration::ZERO, |left| left.min(ASK_AGAIN));
        Ok(Outcome::Later("its guest was asked to stop".to_owned(), now.deadline(again)))
    }

    /// Frees everything of a VM whose VMM is proven gone: disks from above, taps, sockets and files, the cgroup, and the
    /// record of them last.
    fn free(&self, vm: &ObservedVm) -> Result<Outcome, ActError> {
        let mut failed: Vec<(String, io::Error)> = Vec::new();
        let mut block = |step: String, error: io::Error| failed.push((step, error));
        // What still runs in its cgroup after its VMM has ended was begun by that VMM, and may hold the rest.
        let recorded = vm.record.handles().and_then(|handles| handles.cgroup.as_deref());
        let cgroup = self.layout.cgroup_of(&vm.name, recorded);
        if vm.cgroup.present().is_some_and(|found| found.populated)
            && let Err(error) = self.host.kill_cgroup(&cgroup)
        {
            block(format!("cgroup {cgroup}"), error);
        }
        self.free_disks(vm, &mut block);
        let taps_leave = self.free_taps(vm, &mut block);
        for file in self.files_of_life(vm) {
            if let Err(error) = self.host.remove_file(&file, false) {
                block(format!("{}", file.display()), error);
            }
        }
        if !vm.cgroup.is_absent()
            && let Err(error) = self.host.remove_cgroup(&cgroup)
        {
            block(format!("cgroup {cgroup}"), error);
        }
        if !failed.is_empty() {
            return self.keep_blocked(vm, failed);
        }
        if taps_leave {
            return Ok(Outcome::Later("its taps are being removed".to_owned(), self.host.now().deadline(AFTER_TAPS)));
        }
        self.forget_handles(vm)?;
        Ok(Outcome::Done("freed all it held".to_owned()))
    }

    /// Has the VM's taps removed; true while that is under way.
    fn free_taps(&self, vm: &ObservedVm, block: &mut dyn FnMut(String, io::Error)) -> bool {
        let taps = match &vm.record {
            Record::Valid(handles) => handles.tap_devices.clone(),
            Record::Missing | Record::Flawed(_) => self.tagged_taps(vm),
        };
        // One that is not there, or that carries another's tag, is none of ours: a start may have failed on it.
        let is_ours = |tap: &TapHandle| !vm.taps.get(&tap.tap).is_some_and(Fact::is_absent);
        let left: Vec<TapHandle> = taps.into_iter().filter(is_ours).collect();
        match self.cache.tap_removal(&vm.name) {
            Some(TapRemoval::UnderWay) => true,
            Some(TapRemoval::Ended(failures)) if !failures.is_empty() => {
                for (tap, error) in failures {
                    block(format!("tap {tap}"), io::Error::new(error.kind(), error.to_string()));
                }
                false
            }
            _ if left.is_empty() => false,
            _ => {
                self.remove_taps(vm, left);
                true
            }
        }
    }

    fn remove_taps(&self, vm: &ObservedVm, taps: Vec<TapHandle>) {
        let (uid, name) = (self.layout.uid(&vm.name), vm.name.clone());
        let removal = |tap: &TapHandle| crate::host::devices::TapRemoval {
            name: tap.tap.clone(),
            alias: uid.tap_alias(&self.layout.state_id, &tap.interface),
        };
        let removals = taps.iter().map(removal).collect();
        let (cache, wake) = (self.cache.clone(), Arc::clone(self.wake));
        self.cache.begin_tap_removal(&name);
        let done = move |results: Vec<io::Result<bool>>| {
            let failures = taps.into_iter().zip(results);
            let failures = failures.filter_map(|(tap, result)| Some((tap.tap, Arc::new(result.err()?)))).collect();
            cache.end_tap_removal(&name, failures);
            wake(&name);
        };
        self.host.remove_taps(removals, Box::new(done));
    }

    /// Puts on record what could not be freed. The record is all that leads back to it; what it says of the failures is for
    /// people. If even that cannot be written, the record as it was still names everything.
    fn keep_blocked(&self, vm: &ObservedVm, blocked: Vec<(String, io::Error)>) -> Result<Outcome, ActError> {
        let only_busy = blocked.iter().all(|(_, error)| error.kind() == io::ErrorKind::ResourceBusy);
        let told: Vec<String> = blocked.iter().map(|(step, error)| format!("{step}: {error}")).collect();
        let mut failed = ActError::default();
        let mut tries = None;
        if let Some(handles) = vm.record.handles() {
            let mut handles = handles.clone();
            note_blocked(&mut handles, blocked.iter().map(|(step, error)| (step.clone(), error.to_string())).collect());
            tries = handles.blocked.values().map(|blocked| blocked.failures).max();
            if let Err(error) = self.write_handles(&vm.name, &handles) {
                failed.failures.extend(error.failures);
            }
        }
        // Those who look at every new device, such as udev, hold it for a moment only.
        if let Some(tries) = tries.filter(|tries| only_busy && failed.failures.is_empty() && *tries <= QUICK_RETRIES) {
            let wait = FIRST_RETRY.saturating_mul(1 << (tries - 1));
            return Ok(Outcome::Later(told.join("; "), self.host.now().deadline(wait)));
        }
        for (step, error) in blocked {
            failed.push(step, error);
        }
        Err(failed)
    }

    /// The files that one life of a VMM leaves: sockets and configuration.
    fn files_of_life(&self, vm: &ObservedVm) -> Vec<PathBuf> {
        let mut files = vm.leftover_files.clone();
        if let Some(handles) = vm.record.handles() {
            // A record is JSON that somebody else may have written: only paths of our own RUN folder are unlinked,
            // and an adopted VM's own socket is its other manager's to remove.
            let sockets = [Some(&handles.api_socket), handles.identity_socket.as_ref()];
            let ours = sockets.into_iter().flatten().filter(|path| is_child(path, &self.layout.run_dir));
            files.extend(ours.cloned());
        }
        files.retain(|file| is_child(file, &self.layout.run_dir) || is_child(file, &self.layout.vm_dir(&vm.name)));
        files.sort();
        files.dedup();
        files
    }

    /// The handles go last, and not before the ledger knows how far the incarnations have counted.
    fn forget_handles(&self, vm: &ObservedVm) -> Result<(), ActError> {
        let lived = vm.record.handles().map_or(Incarnation::default(), |handles| handles.incarnation);
        if vm.ledger.incarnation < lived {
            let ledger = Ledger { incarnation: lived, ..vm.ledger.clone() };
            self.write_ledger(vm, &ledger)?;
        }
        let path = self.layout.handles(&vm.name);
        match vm.record {
            Record::Missing => {}
            Record::Flawed(_) => {
                self.host.set_aside(&path).map_err(|error| ActError::one("setting handles.json aside", error))?;
            }
            Record::Valid(_) => {
                self.host.remove_file(&path, true).map_err(|error| ActError::one("removing handles.json", error))?;
            }
        }
        self.cache.forget(&vm.name);
        Ok(())
    }

    /// Forgets a deleted VM: its logs and status go, and of its ledger only what must outlive it stays, since its
    /// incarnations count on if it is declared again.
    pub(super) fn forget(&self, vm: &ObservedVm, disks: Option<DeletionPolicy>) -> Result<Outcome, ActError> {
        if !vm.process.is_absent() || vm.record != Record::Missing {
            return Err(ActError::one("forgetting it", "it is not torn down"));
        }
        if disks == Some(DeletionPolicy::Delete) {
            self.trash_disks(vm)?;
        }
        let mut failed = ActError::default();
        let name = &vm.name;
        for file in [self.layout.console_log(name), self.layout.vmm_log(name), self.layout.status(name)] {
            if let Err(error) = self.host.remove_file(&file, false) {
                failed.push(format!("{}", file.display()), error);
            }
        }
        if !failed.failures.is_empty() {
            return Err(failed);
        }
        let ledger = Ledger { incarnation: vm.ledger.incarnation, ..Ledger::new(name.clone(), vm.ledger.uid) };
        self.write_ledger(vm, &ledger)?;
        self.cache.forget(name);
        Ok(Outcome::Done("deleted".to_owned()))
    }
}

impl Actor<'_> {
    /// Moves the VM's own disks to the trash, from where a manifest that comes back takes them again.
    fn trash_disks(&self, vm: &ObservedVm) -> Result<(), ActError> {
        let disks = self.layout.disks(&vm.name);
        let seconds = self.host.now().wall.as_second();
        let entry = self.layout.trash_entry(&vm.name, u64::try_from(seconds).unwrap_or_default());
        let moved = self.host.make_folder(&self.layout.trash()).and_then(|_| self.host.rename_durable(&disks, &entry));
        moved.map_err(|error| ActError::one(format!("moving {} to the trash", disks.display()), error))?;
        Ok(())
    }
}

fn note_blocked(handles: &mut Handles, blocked: Vec<(String, String)>) {
    let before = std::mem::take(&mut handles.blocked);
    handles.blocked = blocked
        .into_iter()
        .map(|(step, why)| {
            let failures = before.get(&step).map_or(0, |blocked| blocked.failures).saturating_add(1);
            (step, Blocked { why, failures })
        })
        .collect();
}

/// Whether `path` lies directly in `folder`, by its text: no link is followed and no `..` is possible.
fn is_child(path: &Path, folder: &Path) -> bool {
    path.parent() == Some(folder) && path.file_name().is_some()
}
