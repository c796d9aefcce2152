//! `stead adopt DIR`: VMs that another manager left alive are recorded as they are, without touching them.
//!
//! What the other manager wrote is a hint. A VM is taken over only when the process it names is, by the kernel's word, the
//! one that listens on the API socket it names.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ActError, Actor};
use crate::host::{GuestState, ProcessHandle, SocketPeer};
use crate::names::{Incarnation, VmName};
use crate::observed::snapshot::Looker;
use crate::observed::{Fact, Record, VmmProcess};
use crate::spec::VmmKind;
use crate::state::{Handles, Ledger, Phase, TapHandle, own_fields};

/// A VM that was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its name here.
    pub name: VmName,
    /// Its VMM's pid.
    pub pid: i32,
    /// What a person should know: what was recorded and is not freed by stead.
    pub notes: Vec<String>,
}

/// The handles.json of another manager: a pid, an API socket, device names. Any further field is kept.
#[derive(Debug, Deserialize)]
struct ForeignHandles {
    #[serde(default, alias = "vm_name", alias = "vm_id", alias = "id")]
    name: Option<String>,
    pid: i32,
    #[serde(alias = "apiSocket", alias = "api_socket_path", alias = "socket_path", alias = "socket")]
    api_socket: PathBuf,
    #[serde(default)]
    vmm: Option<VmmKind>,
    #[serde(default, alias = "tapDevices", alias = "taps", alias = "tap_names", alias = "tap_device")]
    tap_devices: OneOrMany,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// Takes over every VM under `dir`: `dir/handles.json`, or `dir/NAME/handles.json` for each.
///
/// # Errors
/// One entry for each VM that could not be taken over; the others were.
pub fn adopt(actor: &Actor<'_>, looker: &Looker<'_>, dir: &Path) -> Vec<Result<Adopted, ActError>> {
    let entries = match actor.host.list_folder(dir) {
        Ok(entries) => entries,
        Err(error) => return vec![Err(ActError::one(format!("reading {}", dir.display()), error))],
    };
    let own_name = dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let mut files: Vec<(Option<String>, PathBuf)> = Vec::new();
    if entries.iter().any(|entry| entry == "handles.json") {
        files.push((own_name, dir.join("handles.json")));
    }
    for entry in entries {
        let file = dir.join(&entry).join("handles.json");
        if actor.host.exists(&file).unwrap_or(false) {
            files.push((Some(entry), file));
        }
    }
    if files.is_empty() {
        let why = "neither it nor a folder in it has a handles.json";
        return vec![Err(ActError::one(format!("adopting from {}", dir.display()), why))];
    }
    let take = |(folder, file): (Option<String>, PathBuf)| {
        adopt_one(actor, looker, folder, &file).map_err(|error| {
            let mut named = ActError::default();
            for (step, cause) in error.failures {
                named.push(format!("{}: {step}", file.display()), cause);
            }
            named
        })
    };
    files.into_iter().map(take).collect()
}

fn adopt_one(actor: &Actor<'_>, looker: &Looker<'_>, folder: Option<String>, file: &Path) -> Result<Adopted, ActError> {
    let foreign = read(actor, file)?;
    let name = foreign.name.clone().or(folder).unwrap_or_default();
    let name = VmName::new(name.clone()).map_err(|error| ActError::one(format!("the name {name:?}"), error))?;
    let process = prove(actor, &foreign)?;

    let vm = looker.look(&name, &crate::observed::snapshot::Shared::default());
    if let Some(why) = vm.unread {
        return Err(ActError::one(name.to_string(), format!("stead's own state of it cannot be read now: {why}")));
    }
    if vm.record != Record::Missing || !vm.process.is_absent() {
        let why = match &vm.process {
            Fact::Present(own) if own.process == process => "it is adopted already",
            _ => "stead has a VM of this name with handles of its own; rename one of the two",
        };
        return Err(ActError::one(name.to_string(), why));
    }
    let (vmm, guest) = identify(actor, &foreign, &process)?;
    let incarnation = vm.ledger.incarnation.next();
    let uid = actor.layout.uid(&name);
    let (tap_devices, mut notes) = tag_taps(actor, &name, &foreign)?;
    for key in foreign.rest.keys().filter(|key| key.contains("loop") || key.contains("dm")) {
        notes.push(format!("{key} is kept on record; freeing it stays with whoever made it"));
    }
    let now = actor.host.now();
    let handles = Handles {
        phase: Phase::Running,
        pid: Some(process.identity.pid),
        start_time: Some(process.identity.start_time),
        pidfd_inode: process.identity.pidfd_inode,
        tap_devices,
        adopted: true,
        extra: foreign.rest.into_iter().map(|(key, value)| (kept_key(key), value)).collect(),
        ..Handles::new(name.clone(), uid, incarnation, vmm, foreign.api_socket, now.boot_id)
    };
    if guest == GuestState::NotStarted {
        return Err(ActError::one(name.to_string(), "its guest was never started"));
    }
    actor.make_vm_folder(&name)?;
    actor.write_handles(&name, &handles)?;
    // The ledger counts this life, and knows which VMM `auto` means for this VM from now on.
    let ledger = Ledger { incarnation, vmm: Some(vmm), ..vm.ledger.clone() };
    actor.write_ledger(&vm, &ledger)?;
    let pid = process.identity.pid;
    actor.cache.set_process(&name, VmmProcess { process, incarnation: Incarnation(incarnation.0), vmm });
    Ok(Adopted { name, pid, notes })
}

fn read(actor: &Actor<'_>, file: &Path) -> Result<ForeignHandles, ActError> {
    let bytes = actor.host.read_state_file(file).map_err(|error| ActError::one("reading it", error))?;
    let bytes = bytes.ok_or_else(|| ActError::one("reading it", "it is gone"))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ActError::one("reading it", format!("expected an object with at least pid and api_socket: {error}"))
    })
}

/// The process that listens on the socket, if it is the one on record.
fn prove(actor: &Actor<'_>, foreign: &ForeignHandles) -> Result<ProcessHandle, ActError> {
    let socket = foreign.api_socket.display();
    match actor.host.socket_peer(&foreign.api_socket) {
        SocketPeer::Listener(process) if process.identity.pid == foreign.pid => Ok(process.without_line()),
        SocketPeer::Listener(process) => Err(ActError::one(
            format!("{socket}"),
            format!("pid {} listens on it, not the recorded pid {}", process.identity.pid, foreign.pid),
        )),
        SocketPeer::NoSocket => Err(ActError::one(format!("{socket}"), "there is no such socket")),
        SocketPeer::NobodyListens => Err(ActError::one(format!("{socket}"), "nobody listens on it: the VM is dead")),
        SocketPeer::Unknown(why) => Err(ActError::one(format!("{socket}"), why)),
    }
}

/// What kind of VMM answers on the socket: the recorded kind, else the one whose language it speaks.
fn identify(
    actor: &Actor<'_>,
    foreign: &ForeignHandles,
    process: &ProcessHandle,
) -> Result<(VmmKind, GuestState), ActError> {
    let kinds = match foreign.vmm {
        Some(kind) => vec![kind],
        None => vec![VmmKind::Firecracker, VmmKind::Qemu],
    };
    let mut failed = ActError::default();
    for kind in kinds {
        match actor.host.query_vmm(kind, &foreign.api_socket, process, actor.api_bound) {
            Ok(guest) => return Ok((kind, guest)),
            Err(error) => failed.push(format!("as {kind}"), error),
        }
    }
    Err(failed)
}

/// Tags the VM's taps as its own, so that teardown can prove whose they are. One that carries another's tag stays theirs.
fn tag_taps(
    actor: &Actor<'_>,
    name: &VmName,
    foreign: &ForeignHandles,
) -> Result<(Vec<TapHandle>, Vec<String>), ActError> {
    let names = match &foreign.tap_devices {
        OneOrMany::None => Vec::new(),
        OneOrMany::One(name) => vec![name.clone()],
        OneOrMany::Many(names) => names.clone(),
    };
    let uid = actor.layout.uid(name);
    let mut taps = Vec::new();
    let mut notes = Vec::new();
    for (index, tap) in names.into_iter().enumerate() {
        let interface: VmName = format!("eth{index}").parse().expect("letters and digits");
        let alias = uid.tap_alias(&actor.layout.state_id, &interface);
        let Some(found) = actor.host.tap(&tap).map_err(|error| ActError::one(format!("tap {tap}"), error))? else {
            notes.push(format!("tap {tap} does not exist"));
            continue;
        };
        if found.alias.as_deref() != Some(&alias)
            && let Err(error) = actor.host.tag_tap(&tap, &alias)
        {
            notes.push(format!("tap {tap} stays with whoever made it: {error}"));
            continue;
        }
        taps.push(TapHandle { interface, tap, bridge: found.bridge });
    }
    Ok((taps, notes))
}

/// The name under which a field of another manager's record is kept: those that have the names of ours would be read as ours.
fn kept_key(key: String) -> String {
    if own_fields::<Handles>().contains(&key.as_str()) { format!("foreign_{key}") } else { key }
}
