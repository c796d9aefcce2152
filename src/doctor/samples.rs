//! A host on which all is well, for tests to break.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Daemon, GitLook, Manifests, StateLook, Subject};
use crate::host::checkup::{
    Bridge, Checkup, Clock, Device, Folder, Inotify, Loops, Opened, Owner, Room, Threads, User,
};
use crate::host::devices::CgroupFacts;
use crate::host::{HostFacts, Program};
use crate::spec::VmmKind;

fn user(id: u32, name: &str) -> User {
    User { id, name: Some(name.to_owned()) }
}

fn device(path: &str) -> Device {
    let owner = Owner { user: user(0, "root"), group: user(106, "kvm"), mode: 0o660 };
    Device { path: path.into(), owner: Some(owner), opened: Opened::Yes }
}

pub(crate) fn host() -> Checkup {
    let program = |path: &str| Ok(Program { path: path.into() });
    Checkup {
        facts: HostFacts {
            firecracker: program("/usr/bin/firecracker"),
            qemu: program("/usr/bin/qemu-system-x86_64"),
            kvm: Ok(()),
            device_mapper: Ok(()),
            cgroups: Ok(CgroupFacts { no_limits: None }),
        },
        versions: [(VmmKind::Firecracker, "1.15.1".to_owned()), (VmmKind::Qemu, "7.2.0".to_owned())].into(),
        kernel: "6.12.1".to_owned(),
        user: user(0, "root"),
        net_admin: true,
        kvm: device("/dev/kvm"),
        tun: device("/dev/net/tun"),
        loop_control: device("/dev/loop-control"),
        dm_control: device("/dev/mapper/control"),
        loops: Loops { bound: 3, most: 1 << 20 },
        threads: Threads { used: 300, pid_max: 4_194_304, threads_max: 100_000 },
        open_files: Some(524_288),
        inotify: Inotify { one_more: Ok(()), instances: 4, instances_max: 128, watches: 90, watches_max: 8192 },
        clock: Clock {
            wall: Timestamp::from_second(1_800_000_000).expect("a moment"),
            boot_ms: 90_000,
            monotonic_ms: 90_000,
            synchronised: Ok(true),
        },
        confined: None,
    }
}

pub(crate) fn state() -> StateLook {
    let room = Room { bytes: 100 << 30, bytes_free: 50 << 30, inodes: 1 << 20, inodes_free: 1 << 19 };
    StateLook { folder: "/var/lib/stead".into(), exists: true, vms: 2, room: Some(Ok(room)), ..StateLook::default() }
}

pub(crate) fn subject() -> Subject {
    let owner = Some(Owner { user: user(0, "root"), group: user(0, "root"), mode: 0o755 });
    let bridge = Bridge { is_bridge: true, is_up: true, ports: 1, mtu: 1500 };
    Subject {
        version: "0.1.0",
        configuration: Ok(()),
        host: host(),
        state: Ok(state()),
        daemon: Daemon::Answers { version: "0.1.0".to_owned(), pid: 7, open_files: Some(524_288) },
        folders: vec![("/etc/stead/manifests".into(), Folder { owner, unreadable: None, folders: 1, below: vec![] })],
        unsynced: vec![],
        manifests: Some(Manifests { vms: 2, bridges: [("br0".to_owned(), 2)].into(), ..Manifests::default() }),
        bridges: BTreeMap::from([("br0".to_owned(), Some(bridge))]),
        git: Some(GitLook { version: Ok("git version 2.47.0".to_owned()), missing: vec![], ssh_signatures: true }),
    }
}
