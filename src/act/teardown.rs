//! Teardown: a graph whose steps run as soon as their own prerequisites are confirmed. It never returns early: what
//! cannot be freed is kept on record with the reason, everything else is freed, and the next pass goes on from there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ActError, Actor, Outcome};
use crate::host::{GuestState, VmmCommand};
use crate::names::Incarnation;
use crate::observed::{Fact, Guest, ObservedVm, Record, VmmProcess};
use crate::plan::TeardownReason;
use crate::state::{Blocked, Handles, Ledger, Phase, Stopping, TapHandle};

/// How often a guest is asked to stop.
const ASK_AGAIN: Duration = Duration::from_secs(1);
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

    /// Frees everything of a VM whose VMM is proven gone.
    fn free(&self, vm: &ObservedVm) -> Result<Outcome, ActError> {
        let mut failed = ActError::default();
        let mut blocked: Vec<(String, String)> = Vec::new();
        let mut block = |step: String, error: std::io::Error| {
            blocked.push((step.clone(), error.to_string()));
            failed.push(step, error);
        };
        let uid = self.layout.uid(&vm.name);
        let taps = match &vm.record {
            Record::Valid(handles) => handles.tap_devices.clone(),
            Record::Missing | Record::Flawed(_) => self.tagged_taps(vm),
        };
        // One that is not there, or that carries another's tag, is none of ours: a start may have failed on it.
        let is_ours = |tap: &&TapHandle| !vm.taps.get(&tap.tap).is_some_and(Fact::is_absent);
        for tap in taps.iter().filter(is_ours) {
            let alias = uid.tap_alias(&self.layout.state_id, &tap.interface);
            if let Err(error) = self.host.delete_tap(&tap.tap, &alias) {
                block(format!("tap {}", tap.tap), error);
            }
        }
        for file in self.files_of_life(vm) {
            if let Err(error) = self.host.remove_file(&file, false) {
                block(format!("{}", file.display()), error);
            }
        }
        if !failed.failures.is_empty() {
            // The record keeps what is left, and is all that leads back to it. What it says of the failures is for
            // people; if even that cannot be written, the record as it was still names everything.
            if let Some(handles) = vm.record.handles() {
                let mut handles = handles.clone();
                note_blocked(&mut handles, blocked);
                if let Err(error) = self.write_handles(&vm.name, &handles) {
                    failed.failures.extend(error.failures);
                }
            }
            return Err(failed);
        }
        self.forget_handles(vm)?;
        Ok(Outcome::Done("freed all it held".to_owned()))
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
    pub(super) fn forget(&self, vm: &ObservedVm) -> Result<Outcome, ActError> {
        if !vm.process.is_absent() || vm.record != Record::Missing {
            return Err(ActError::one("forgetting it", "it is not torn down"));
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
