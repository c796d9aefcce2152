//! Start: the record, the cgroup, the disks, the taps, the VMM's configuration, the spawn, the pid into the record.

use std::io;
use std::path::Path;

use super::devices::make_room_and;
use super::{ActError, Actor, Outcome, has_identity_socket};
use crate::desired::Origin;
use crate::host::{ProcessHandle, Program, SocketPeer, SpawnRequest};
use crate::names::Incarnation;
use crate::observed::{ObservedVm, VmmProcess};
use crate::spec::{DiskMode, Vm, VmSpec, VmmKind};
use crate::state::{Handles, StoredSpec};
use crate::vmm::{self, DiskSource};

impl Actor<'_> {
    /// Begins a life of a VM whose absence is proven. What a failure leaves is on record and freed by the next teardown.
    pub(super) fn start(
        &self,
        observed: &ObservedVm,
        vm: &Vm,
        origin: &Origin,
        incarnation: Incarnation,
        kind: VmmKind,
    ) -> Result<Outcome, ActError> {
        let result = self.try_start(observed, vm, origin, incarnation, kind);
        if let Err(error) = &result {
            self.cache.set_start_error(&vm.name, incarnation, error.to_string());
        }
        result
    }

    fn try_start(
        &self,
        observed: &ObservedVm,
        vm: &Vm,
        origin: &Origin,
        incarnation: Incarnation,
        kind: VmmKind,
    ) -> Result<Outcome, ActError> {
        let name = &vm.name;
        let folder = |error| ActError::one("its folders", error);
        self.host.make_folder(&self.layout.vm_dir(name)).map_err(folder)?;
        self.host.make_folder(&self.layout.run_dir).map_err(folder)?;

        let now = self.host.now();
        let (uid, socket) = (self.layout.uid(name), self.layout.api_socket(name, incarnation));
        let mut handles = Handles {
            identity_socket: has_identity_socket(kind).then(|| self.layout.identity_socket(name, incarnation)),
            tap_devices: self.tap_handles(name, &vm.spec),
            cgroup: self.facts.cgroups.is_ok().then(|| self.layout.cgroup(name)),
            spec: Some(StoredSpec::from(&vm.spec)),
            origin: Some(origin.clone()),
            began: Some(now.deadline(std::time::Duration::ZERO)),
            ..Handles::new(name.clone(), uid, incarnation, kind, socket, now.boot_id)
        };
        let disks = self.intend_disks(vm, observed, &mut handles)?;
        // Durable before anything exists: whatever happens from here on, the record names all that may be left.
        self.write_handles(name, &handles)?;

        let program = self.program(kind)?;
        self.check_files(&vm.spec)?;
        if let Some(cgroup) = &handles.cgroup {
            let limits = self.cgroup_limits(&vm.spec, kind);
            self.host.make_cgroup(cgroup, &limits).map_err(|error| ActError::one(format!("cgroup {cgroup}"), error))?;
        }
        let disks = self.attach_disks(disks, &mut handles)?;
        self.make_taps(&vm.spec, &handles)?;
        let process = self.spawn(vm, &handles, &disks, program)?;

        handles.pid = Some(process.identity.pid);
        handles.start_time = Some(process.identity.start_time);
        handles.pidfd_inode = process.identity.pidfd_inode;
        // Memory follows the file, also when writing fails: vmm.lock and the socket lead back to the process then.
        let written = self.write_handles(name, &handles);
        let pid = process.identity.pid;
        self.cache.set_process(name, VmmProcess { process, incarnation, vmm: kind });
        written?;
        Ok(Outcome::Done(format!("started {kind}, pid {pid}, incarnation {incarnation}")))
    }

    fn make_taps(&self, spec: &VmSpec, handles: &Handles) -> Result<(), ActError> {
        for (tap, interface) in handles.tap_devices.iter().zip(&spec.network_interfaces) {
            let alias = handles.uid.tap_alias(&self.layout.state_id, &interface.name);
            let made = make_room_and(
                || self.host.create_tap(&tap.tap, &alias, tap.bridge.as_deref()),
                // Under this VM's own tag, while no VMM of it lives: left by a life that nobody remembers.
                || self.host.delete_tap(&tap.tap, &alias),
            );
            made.map_err(|error| {
                let what = format!("tap {} for network interface {}", tap.tap, interface.name);
                match error.kind() {
                    io::ErrorKind::AlreadyExists => ActError::one(
                        what,
                        "an interface of this name exists and is not this VM's; see `ip -d link show` and remove or \
                         rename it",
                    ),
                    _ => ActError::one(what, error),
                }
            })?;
        }
        Ok(())
    }

    fn program(&self, kind: VmmKind) -> Result<&Program, ActError> {
        let program = match kind {
            VmmKind::Firecracker => {
                if let Err(why) = &self.facts.kvm {
                    return Err(ActError::one("/dev/kvm", why.clone()));
                }
                &self.facts.firecracker
            }
            VmmKind::Qemu => &self.facts.qemu,
        };
        program.as_ref().map_err(|why| ActError::one(kind.to_string(), why.clone()))
    }

    /// Looks at every file the VMM is about to open, since its own words about one it cannot open are often poor.
    fn check_files(&self, spec: &VmSpec) -> Result<(), ActError> {
        let mut failures = ActError::default();
        let mut check = |what: String, path: &Path, write: bool| {
            if let Err(error) = self.host.check_access(path, write) {
                let need = if write { "read and written" } else { "read" };
                failures.push(format!("{what} {} cannot be {need}", path.display()), error);
            }
        };
        check("boot.kernel".to_owned(), &spec.boot.kernel, false);
        if let Some(initrd) = &spec.boot.initrd {
            check("boot.initrd".to_owned(), initrd, false);
        }
        for disk in &spec.disks {
            // A copy needs its image no more, once it is made.
            if disk.mode != DiskMode::Copy {
                check(format!("the image of disk {}", disk.name), &disk.image, disk.writes_image());
            }
        }
        if failures.failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    fn spawn(
        &self,
        vm: &Vm,
        handles: &Handles,
        disks: &[DiskSource],
        program: &Program,
    ) -> Result<ProcessHandle, ActError> {
        let name = &vm.name;
        for socket in [Some(&handles.api_socket), handles.identity_socket.as_ref()].into_iter().flatten() {
            // Left by a life that a lost STATE forgot: nobody's, and in the way of bind(2).
            if self.host.socket_peer(socket) == SocketPeer::NobodyListens {
                self.host
                    .remove_file(socket, false)
                    .map_err(|error| ActError::one(format!("removing the stale socket {}", socket.display()), error))?;
            }
        }
        let launch = vmm::launch(&vmm::LaunchInput {
            spec: &vm.spec,
            kind: handles.vmm,
            id: handles.uid.process_id(handles.incarnation),
            api_socket: &handles.api_socket,
            identity_socket: handles.identity_socket.as_deref(),
            config_file: &self.layout.vmm_config(name),
            console_log: &self.layout.console_log(name),
            vmm_log: &self.layout.vmm_log(name),
            disks,
            taps: &handles.tap_devices,
            accel: self.accel,
            kvm_usable: self.facts.kvm.is_ok(),
        });
        if let Some(config) = &launch.config {
            self.host
                .write_file(&self.layout.vmm_config(name), config)
                .map_err(|error| ActError::one("writing the VMM's configuration", error))?;
        }
        let request = SpawnRequest {
            program: program.path.clone(),
            args: launch.args,
            lock: self.layout.vmm_lock(name),
            stdout: launch.stdout,
            stderr: self.layout.vmm_log(name),
            cgroup: handles.cgroup.clone(),
        };
        self.host.spawn_vmm(&request).map_err(|error| ActError::one("spawning the VMM", error))
    }
}
