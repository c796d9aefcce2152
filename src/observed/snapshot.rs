//! The join of all facts about one VM, and about all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::handles::HandleCache;
use super::process::{self, ProcessScan};
use super::{Fact, Guest, ObservedVm, Record, VmmProcess};
use crate::host::devices::LoopDevice;
use crate::host::{HostView, StateFileError, Tap};
use crate::names::{Incarnation, Layout, VmName};
use crate::state::{ExitStatus, Handles, Ledger, Phase, parse_handles, parse_ledger};
use crate::time::BootId;

/// What every look at a VM needs.
#[derive(Clone, Copy)]
pub struct Looker<'a> {
    /// The host.
    pub view: &'a dyn HostView,
    /// Where the state lies.
    pub layout: &'a Layout,
    /// What this stead knows in memory.
    pub cache: &'a HandleCache,
    /// The scan shared by all VMs.
    pub scan: &'a ProcessScan,
    /// How long a VMM's API may take to answer.
    pub api_bound: Duration,
}

/// What one look at many VMs needs only once: each is looked up when the first VM asks for it.
#[derive(Default)]
pub struct Shared {
    /// Whether so many VMs are looked at that listing all of the host's taps costs less than asking for each.
    many: bool,
    taps: OnceLock<Result<HashMap<String, Tap>, String>>,
    loops: OnceLock<Result<Vec<LoopDevice>, String>>,
    trash: OnceLock<Result<Vec<String>, String>>,
}

impl Shared {
    /// For a look at every VM.
    pub fn many() -> Self {
        Self { many: true, ..Self::default() }
    }

    /// The tap of this name.
    pub(super) fn tap(&self, view: &dyn HostView, name: &str) -> Result<Option<Tap>, String> {
        if !self.many {
            return view.tap(name).map_err(|error| error.to_string());
        }
        let by_name = |taps: Vec<Tap>| taps.into_iter().map(|tap| (tap.name.clone(), tap)).collect();
        let all = self.taps.get_or_init(|| view.taps().map(by_name).map_err(|error| error.to_string())).as_ref();
        Ok(all?.get(name).cloned())
    }

    /// Every loop device.
    pub(super) fn loops(&self, view: &dyn HostView) -> &Result<Vec<LoopDevice>, String> {
        self.loops.get_or_init(|| view.loop_devices().map_err(|error| error.to_string()))
    }

    /// What lies in the trash.
    pub(super) fn trash(&self, view: &dyn HostView, folder: &Path) -> Result<&[String], String> {
        let list = || view.list_folder(folder).map_err(|error| format!("{}: {error}", folder.display()));
        self.trash.get_or_init(list).as_deref().map_err(Clone::clone)
    }
}

impl Looker<'_> {
    /// The VMs that have a folder in STATE/vms. Other entries are nobody's VM.
    pub fn known_vms(&self) -> std::io::Result<BTreeSet<VmName>> {
        let entries = self.view.list_folder(&self.layout.vms())?;
        Ok(entries.into_iter().filter_map(|entry| VmName::new(entry).ok()).collect())
    }

    /// Everything that exists of one VM.
    pub fn look(&self, name: &VmName, shared: &Shared) -> ObservedVm {
        let boot_id = self.view.now().boot_id;
        let uid = self.layout.uid(name);
        // Before it is read: a change after this moment is seen by the next glance.
        let record_stamp = self.view.file_stamp(&self.layout.handles(name)).ok().flatten();
        let (record, record_unread) = match self.read_record(name) {
            Ok(record) => (record, None),
            Err(why) => (Record::Flawed(why.clone()), Some(why)),
        };
        let (ledger, ledger_flaw, ledger_unread) = match self.read_ledger(name) {
            Ok((ledger, flaw)) => (ledger, flaw, None),
            Err(why) => (Ledger::new(name.clone(), uid), None, Some(why)),
        };
        let cached = self.cache.get(name);
        let sockets = self.sockets(name, record.handles(), ledger.incarnation);
        let cgroup = self.look_at_cgroup(name, &record);
        let members = cgroup.present().map_or(&[][..], |cgroup| &cgroup.processes);
        let mut process = process::find(
            self.view,
            &process::Search {
                uid,
                boot_id: &boot_id,
                known: cached.process.as_ref(),
                record: record.handles(),
                sockets: sockets.to_ask,
                members,
                lock: &self.layout.vmm_lock(name),
                scan: self.scan,
            },
        );
        let guest = match &process {
            Fact::Present(vmm) => self.ask_guest(name, record.handles(), vmm),
            Fact::Absent | Fact::Unknown(_) => Guest::NoVmm,
        };
        if let Fact::Present(vmm) = &mut process {
            // What was asked with it is answered, and what is observed is kept.
            vmm.process.line = None;
        }
        let exit = self.exit_of(record.handles(), cached.process.as_ref(), &process, &boot_id);
        let lived = record.handles().map(|handles| handles.incarnation);
        let exit_message = cached.start_error.filter(|(of, _)| Some(*of) == lived).map(|(_, message)| message);
        let leftover_files = if process.is_absent() {
            let mut files = sockets.all;
            files.push(self.layout.vmm_config(name));
            files.retain(|file| self.view.exists(file).unwrap_or(true));
            files.dedup();
            files
        } else {
            Vec::new()
        };
        let devices = self.look_at_devices(name, &record, &ledger, shared);
        ObservedVm {
            name: name.clone(),
            record,
            record_stamp,
            ledger,
            ledger_flaw,
            unread: record_unread.or(ledger_unread),
            process,
            guest,
            exit,
            exit_message,
            taps: devices.taps,
            dm_devices: devices.dm_devices,
            loops: devices.loops,
            base_loops: devices.base_loops,
            cgroup,
            disks: devices.disks,
            disks_unknown: devices.disks_unknown,
            trashed: devices.trashed,
            leftover_files,
        }
    }

    /// The VM's handles.json, as it is.
    ///
    /// # Errors
    /// Why it could not be read now, which says nothing about what is in it.
    pub fn read_record(&self, name: &VmName) -> Result<Record, String> {
        Ok(match self.view.read_state_file(&self.layout.handles(name)) {
            Ok(None) => Record::Missing,
            Ok(Some(bytes)) => match parse_handles(&bytes, name, self.layout.uid(name)) {
                Ok(handles) => Record::Valid(Box::new(handles)),
                Err(flaw) => Record::Flawed(flaw.to_string()),
            },
            Err(StateFileError::Untrusted(why)) => Record::Flawed(why),
            Err(error @ StateFileError::Io { .. }) => return Err(error.to_string()),
        })
    }

    /// The VM's ledger.json, or that of a new VM and why it is not the one on disk.
    ///
    /// # Errors
    /// Why it could not be read now, which says nothing about what is in it.
    pub fn read_ledger(&self, name: &VmName) -> Result<(Ledger, Option<String>), String> {
        let uid = self.layout.uid(name);
        let fresh = || Ledger::new(name.clone(), uid);
        match self.view.read_state_file(&self.layout.ledger(name)) {
            Ok(None) => Ok((fresh(), None)),
            Ok(Some(bytes)) => Ok(match parse_ledger(&bytes, name, uid) {
                Ok(ledger) => (ledger, None),
                Err(flaw) => (fresh(), Some(flaw.to_string())),
            }),
            Err(StateFileError::Untrusted(why)) => Ok((fresh(), Some(why))),
            Err(error @ StateFileError::Io { .. }) => Err(error.to_string()),
        }
    }

    /// The API socket of a life of this VM: the recorded one, else the one its names lead to.
    pub fn api_socket(&self, name: &VmName, record: Option<&Handles>, incarnation: Incarnation) -> PathBuf {
        match record {
            Some(handles) if handles.incarnation == incarnation => handles.api_socket.clone(),
            _ => self.layout.api_socket(name, incarnation),
        }
    }

    fn ask_guest(&self, name: &VmName, record: Option<&Handles>, vmm: &VmmProcess) -> Guest {
        let socket = self.api_socket(name, record, vmm.incarnation);
        match self.view.query_vmm(vmm.vmm, &socket, &vmm.process, self.api_bound) {
            Ok(state) => Guest::Is(state),
            Err(error) => Guest::Silent(error.to_string()),
        }
    }

    fn exit_of(
        &self,
        record: Option<&Handles>,
        known: Option<&VmmProcess>,
        process: &Fact<VmmProcess>,
        boot_id: &BootId,
    ) -> ExitStatus {
        let Some(record) = record.filter(|_| process.is_absent()) else { return ExitStatus::Unknown };
        if record.boot_id != *boot_id {
            return ExitStatus::HostReboot;
        }
        match known {
            Some(vmm) if vmm.incarnation == record.incarnation => self.view.exit_status(&vmm.process),
            _ if record.pid.is_none() && record.phase == Phase::Starting => ExitStatus::NeverRan,
            _ => ExitStatus::Unknown,
        }
    }

    /// The sockets of this VM: of the recorded life, or, without a record, those that its name leads to: each that was in RUN
    /// when this stead began, and those of the latest life that is known.
    fn sockets(&self, name: &VmName, record: Option<&Handles>, latest: Incarnation) -> Sockets {
        if let Some(handles) = record {
            let all = [Some(&handles.api_socket), handles.identity_socket.as_ref()];
            let all = all.into_iter().flatten().cloned().collect();
            // QEMU's API serves one client at a time, and a connection only to see who listens would take its turn.
            let to_ask = vec![handles.identity_socket.as_ref().unwrap_or(&handles.api_socket).clone()];
            return Sockets { all, to_ask };
        }
        // Of each life, whether it has an identity socket.
        let mut lives: BTreeMap<Incarnation, bool> = BTreeMap::new();
        let names = self.scan.sockets(self.view, &self.layout.run_dir, &self.layout.uid(name).short());
        for (incarnation, is_identity) in names.iter().filter_map(|entry| self.layout.read_socket_name(name, entry)) {
            *lives.entry(incarnation).or_default() |= is_identity;
        }
        if latest > Incarnation::default() {
            let exists = |path: &Path| self.view.exists(path).unwrap_or(true);
            let has_identity = exists(&self.layout.identity_socket(name, latest));
            if has_identity || exists(&self.layout.api_socket(name, latest)) {
                *lives.entry(latest).or_default() |= has_identity;
            }
        }
        let mut sockets = Sockets::default();
        for (incarnation, has_identity) in lives {
            let api = self.layout.api_socket(name, incarnation);
            let identity = has_identity.then(|| self.layout.identity_socket(name, incarnation));
            sockets.to_ask.push(identity.as_ref().unwrap_or(&api).clone());
            sockets.all.push(api);
            sockets.all.extend(identity);
        }
        sockets
    }
}

/// The sockets of one VM: those that may be left over, and those that tell who listens.
#[derive(Default)]
struct Sockets {
    all: Vec<PathBuf>,
    to_ask: Vec<PathBuf>,
}
