//! Is a VM's VMM alive, and is it ours? Each candidate process is judged, never the VM.
//!
//! The order (design section 6): who listens on the API socket, the recorded pid, the holder of `vmm.lock`, who is in the
//! VM's cgroup, one scan of `/proc`. A candidate that is not proven ours is a stranger: dropped, and the next one is tried. Absence is proven too:
//! by a lock that nobody holds or by a reboot. Held, but nobody found, is Unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Fact, VmmProcess};
use crate::host::{HostView, LockProbe, ProcessHandle, SocketPeer};
use crate::names::{Incarnation, Layout, ShortUid, VmUid};
use crate::spec::VmmKind;
use crate::state::Handles;
use crate::time::BootId;

/// What earlier steads left running, for VMs whose records do not lead to it. Looked for once a stead process, when it is asked
/// for: what is spawned later is on record before it is there, and what is found is proven anew.
#[derive(Debug, Default)]
pub struct ProcessScan {
    processes: OnceLock<Result<Vec<(i32, String)>, String>>,
    sockets: OnceLock<BTreeMap<ShortUid, Vec<String>>>,
}

impl ProcessScan {
    /// Every process that carries an id argument of the shape stead writes.
    fn processes(&self, view: &dyn HostView) -> Result<&[(i32, String)], &str> {
        let scan = self.processes.get_or_init(|| view.scan_processes().map_err(|error| format!("/proc: {error}")));
        scan.as_deref().map_err(String::as_str)
    }

    /// The names of the sockets in RUN that this VM's name leads to. Of a folder that cannot be listed now there are none now.
    pub(super) fn sockets(&self, view: &dyn HostView, run_dir: &Path, vm: &ShortUid) -> &[String] {
        let by_vm = self.sockets.get().or_else(|| {
            let mut by_vm: BTreeMap<ShortUid, Vec<String>> = BTreeMap::new();
            for name in view.list_folder(run_dir).ok()? {
                if let Some(owner) = Layout::read_socket_owner(&name) {
                    by_vm.entry(owner).or_default().push(name);
                }
            }
            Some(self.sockets.get_or_init(|| by_vm))
        });
        by_vm.and_then(|by_vm| by_vm.get(vm)).map_or(&[], Vec::as_slice)
    }
}

/// What is known of a VM before its process is looked for.
pub struct Search<'a> {
    /// Whose process it should be.
    pub uid: VmUid,
    /// This boot of the host.
    pub boot_id: &'a BootId,
    /// A process proven to be this VM's earlier in this stead's life: its pidfd is proof enough for as long as it lives.
    pub known: Option<&'a VmmProcess>,
    /// Its sound record, if there is one.
    pub record: Option<&'a Handles>,
    /// Sockets that tell who listens: the recorded one first, else those with this VM's name in RUN.
    pub sockets: Vec<PathBuf>,
    /// The processes in its cgroup.
    pub members: &'a [i32],
    /// Its `vmm.lock`.
    pub lock: &'a Path,
    /// The scan of last resort.
    pub scan: &'a ProcessScan,
}

/// Looks for the VM's VMM.
pub fn find(view: &dyn HostView, search: &Search<'_>) -> Fact<VmmProcess> {
    let mut doubts = Vec::new();
    if let Some(known) = search.known.filter(|known| view.is_alive(&known.process)) {
        return Fact::Present(known.clone());
    }
    for socket in &search.sockets {
        match view.socket_peer(socket) {
            SocketPeer::Listener(process) => match judge(view, search, process) {
                Verdict::Ours(ours) => return Fact::Present(ours),
                Verdict::Stranger => {}
                Verdict::Doubt(doubt) => doubts.push(doubt),
            },
            SocketPeer::NoSocket | SocketPeer::NobodyListens => {}
            SocketPeer::Unknown(why) => doubts.push(format!("{}: {why}", socket.display())),
        }
    }
    // A recorded pid of an earlier boot names whoever got the number since.
    let recorded = search.record.filter(|record| record.boot_id == *search.boot_id).and_then(|record| record.pid);
    let probe = view.probe_lock(search.lock);
    let holder = if let LockProbe::Held(holder) = probe { holder } else { None };
    for pid in recorded.into_iter().chain(holder).chain(search.members.iter().copied()) {
        match judge_pid(view, search, pid) {
            Verdict::Ours(ours) => return Fact::Present(ours),
            Verdict::Stranger => {}
            Verdict::Doubt(doubt) => doubts.push(doubt),
        }
    }
    let unproven = |doubts: Vec<String>, why: &str| {
        Fact::Unknown(if doubts.is_empty() { why.to_owned() } else { format!("{why} ({})", doubts.join("; ")) })
    };
    match probe {
        LockProbe::Held(_) => unproven(doubts, "its vmm.lock is held by a process that is not proven to be its VMM"),
        LockProbe::Unknown(why) => unproven(doubts, &format!("its vmm.lock: {why}")),
        LockProbe::Free | LockProbe::NoFile => match &search.record {
            // Nobody but this process can be an adopted VM's VMM, and it is not there any more.
            Some(record) if record.adopted || record.boot_id != *search.boot_id => absent_unless(&doubts),
            // Every VMM that stead starts holds its lock from before exec until it ends.
            _ if probe == LockProbe::Free => absent_unless(&doubts),
            // A lost STATE takes the locks with it; what it started lives on and carries its id.
            _ => find_by_scan(view, search, doubts),
        },
    }
}

/// A candidate that could not be judged stands between us and the proof, unless nothing was in doubt.
fn absent_unless(doubts: &[String]) -> Fact<VmmProcess> {
    if doubts.is_empty() { Fact::Absent } else { Fact::Unknown(doubts.join("; ")) }
}

fn find_by_scan(view: &dyn HostView, search: &Search<'_>, mut doubts: Vec<String>) -> Fact<VmmProcess> {
    let found = match search.scan.processes(view) {
        Ok(found) => found,
        Err(why) => return Fact::Unknown(why.to_owned()),
    };
    for (pid, _) in found.iter().filter(|(_, argument)| search.uid.incarnation_in(argument).is_some()) {
        match judge_pid(view, search, *pid) {
            Verdict::Ours(ours) => return Fact::Present(ours),
            Verdict::Stranger => {}
            Verdict::Doubt(doubt) => doubts.push(doubt),
        }
    }
    absent_unless(&doubts)
}

enum Verdict {
    Ours(VmmProcess),
    Stranger,
    Doubt(String),
}

fn judge_pid(view: &dyn HostView, search: &Search<'_>, pid: i32) -> Verdict {
    // 0 and negative numbers name process groups to kill(2), and 1 is the host's own: a record that says so is wrong.
    if pid <= 1 {
        return Verdict::Stranger;
    }
    match view.open_process(pid) {
        Ok(Some(process)) => judge(view, search, process),
        Ok(None) => Verdict::Stranger,
        Err(error) => Verdict::Doubt(format!("pid {pid}: {error}")),
    }
}

fn judge(view: &dyn HostView, search: &Search<'_>, process: ProcessHandle) -> Verdict {
    let pid = process.identity.pid;
    let recorded = search.record.filter(|record| record.is_of(&process.identity, search.boot_id));
    let info = match view.inspect(&process) {
        Ok(Some(info)) => info,
        Ok(None) => return Verdict::Stranger,
        Err(error) => return Verdict::Doubt(format!("pid {pid}: {error}")),
    };
    if let Some((vmm, incarnation)) = read_id(&info.argv, search.uid) {
        return Verdict::Ours(VmmProcess { process, incarnation, vmm });
    }
    // An adopted VMM has no id of ours. One that is just dying has no arguments any more, but holds its devices still.
    match recorded {
        Some(record) if record.adopted || info.argv.is_empty() => {
            Verdict::Ours(VmmProcess { process, incarnation: record.incarnation, vmm: record.vmm })
        }
        _ => Verdict::Stranger,
    }
}

/// The id that stead gave a VMM: Firecracker's `--id`, QEMU's `-name`. The option stands before it, so that an editor or a
/// grep that was given the id as its argument is no VMM.
fn read_id(argv: &[Vec<u8>], uid: VmUid) -> Option<(VmmKind, Incarnation)> {
    argv.windows(2).find_map(|pair| {
        let vmm = match pair[0].as_slice() {
            b"--id" => VmmKind::Firecracker,
            b"-name" => VmmKind::Qemu,
            _ => return None,
        };
        let incarnation = uid.incarnation_in(std::str::from_utf8(&pair[1]).ok()?)?;
        Some((vmm, incarnation))
    })
}
