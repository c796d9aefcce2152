//! What VMs need of the host: the kernel's parts, VMMs, programs.

use std::collections::BTreeMap;

use super::{Check, Finding, GitLook, Manifests, Needs, State, Trouble};
use crate::host::checkup::{Bridge, Checkup, Device, Opened, Owner};
use crate::names::VmName;
use crate::spec::{VmmChoice, VmmKind};
use crate::vmm::advisories;

/// The oldest kernel that stead is for, and the oldest that says without a race who listens on a socket (`SO_PEERPIDFD`).
const KERNEL_MIN: (u32, u32) = (6, 1);
const KERNEL_RACE_FREE: (u32, u32) = (6, 5);
/// Ports of a bridge: `BR_MAX_PORTS` of net/bridge/br_private.h, of which `find_portno` gives all but the first.
const PORTS_MAX: u64 = (1 << 10) - 1;
/// What a tap carries: stead makes them with the kernel's default (`ETH_DATA_LEN` of linux/if_ether.h).
const TAP_MTU: u64 = 1500;
/// The oldest git that checks signatures made by SSH keys (its release notes for 2.34).
const GIT_SSH_SIGNATURES: (u32, u32) = (2, 34);

pub(super) fn kernel(release: &str) -> Finding {
    let check = Check::Kernel;
    let Some(version) = two_numbers(release) else {
        return Finding::warning(
            check,
            format!("Linux {release}, of which the version cannot be read"),
            "use Linux 6.1 or later",
        );
    };
    if version < KERNEL_MIN {
        return Finding::failure(check, format!("Linux {release}"), "update it to 6.1 or later, best to 6.5 or later");
    }
    if version < KERNEL_RACE_FREE {
        return Finding::warning(
            check,
            format!("Linux {release}: who listens on a VMM's socket is told by a fallback"),
            "update it to 6.5 or later",
        );
    }
    Finding::ok(check, format!("Linux {release}"))
}

/// The first two numbers of a version.
fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// `root and group kvm may open it (0660)`.
fn who_may(owner: &Owner) -> String {
    let name = |user: &crate::host::checkup::User| user.name.clone().unwrap_or_else(|| user.id.to_string());
    let all = if owner.mode & 0o006 == 0o006 { ", and everybody" } else { "" };
    let group = if owner.mode & 0o060 == 0o060 { format!(" and group {}", name(&owner.group)) } else { String::new() };
    format!("user {}{group}{all} may open it ({:04o})", name(&owner.user), owner.mode)
}

fn may(device: &Device) -> String {
    device.owner.as_ref().map_or_else(String::new, |owner| format!("; {}", who_may(owner)))
}

pub(super) fn kvm(host: &Checkup, needs: &Manifests) -> Finding {
    let check = Check::Kvm;
    let device = &host.kvm;
    let shown = device.path.display();
    match &host.facts.kvm {
        Ok(()) => Finding::ok(check, format!("{shown} works{}", may(device))),
        Err(why) => {
            let (found, mend) = why.split_once(": ").unwrap_or((why, "see what the kernel logs (dmesg)"));
            let has_other = host.facts.qemu.is_ok() && needs.firecracker.is_none();
            let state = if has_other { State::Warning } else { State::Failure };
            let asks = needs.firecracker.as_ref().map_or_else(String::new, |vm| format!("; VM {vm} needs it"));
            Finding::bad(check, state, format!("{found}{}{asks}", may(device)), mend)
        }
    }
}

pub(super) fn firecracker(host: &Checkup, needs: &Manifests) -> Finding {
    let other = (&needs.either, host.facts.qemu.is_ok());
    program(Check::Firecracker, VmmKind::Firecracker, host, &host.facts.firecracker, needs.firecracker.as_ref(), other)
}

pub(super) fn qemu(host: &Checkup, needs: &Manifests) -> Finding {
    let other = (&needs.either, host.facts.firecracker.is_ok() && host.facts.kvm.is_ok());
    program(Check::Qemu, VmmKind::Qemu, host, &host.facts.qemu, needs.qemu.as_ref(), other)
}

/// A VMM's program. `other` is a VM that takes either VMM, and whether the other one can be used.
fn program(
    check: Check,
    vmm: VmmKind,
    host: &Checkup,
    found: &Result<crate::host::Program, String>,
    asked_by: Option<&VmName>,
    (either, has_other): (&Option<VmName>, bool),
) -> Finding {
    let program = match found {
        Ok(program) => program,
        Err(why) => {
            let (found, mend) = why.split_once(": ").unwrap_or((why, ""));
            return match (asked_by, either) {
                (Some(vm), _) => Finding::failure(check, format!("{found}; VM {vm} needs it"), mend),
                (None, _) if has_other => Finding::skipped(check, format!("{found}; no manifest asks for it")),
                (None, Some(vm)) => Finding::failure(
                    check,
                    format!("{found}, nor can the other VMM be used, and VM {vm} needs one"),
                    mend,
                ),
                (None, None) => Finding::warning(check, format!("{found}, nor can the other VMM be used"), mend),
            };
        }
    };
    let path = program.path.display();
    let Some(version) = host.versions.get(&vmm) else {
        return Finding::warning(
            check,
            format!("{path} does not tell its version"),
            format!("run `{path} --version` and see what it says; known holes of its version cannot be told"),
        );
    };
    let holes = advisories::of(vmm, || Some(version.clone()));
    if !holes.is_empty() {
        return Finding::warning(
            check,
            format!("{path}, version {version}: {}", holes.join("; ")),
            "update it, as said there",
        );
    }
    let unused = advisories::unused(vmm, version);
    let beside = if unused.is_empty() {
        "no known hole".to_owned()
    } else {
        format!("no known hole in what stead uses of it; elsewhere {}", unused.join(", "))
    };
    Finding::ok(check, format!("{path}, version {version}; {beside}"))
}

pub(super) fn tun(host: &Checkup, needs: &Manifests) -> Finding {
    let check = Check::Tun;
    let state = if needs.interface.is_some() { State::Failure } else { State::Warning };
    let asks = needs.interface.as_ref().map_or_else(String::new, |vm| format!("; VM {vm} has a network interface"));
    if !host.net_admin {
        return Finding::bad(
            check,
            state,
            format!("this user may not make network interfaces (CAP_NET_ADMIN){asks}"),
            "run stead as root, or leave `networkInterfaces` out",
        );
    }
    device(check, &host.tun, state, &asks, "tun")
}

pub(super) fn loops(host: &Checkup, needs: &Manifests, held: Needs) -> Finding {
    let check = Check::Loop;
    let state = if needs.snapshot.is_some() { State::Failure } else { State::Warning };
    let asks = needs.snapshot.as_ref().map_or_else(String::new, |(vm, _)| format!("; VM {vm} has a snapshot disk"));
    let finding = device(check, &host.loop_control, state, &asks, "loop");
    if finding.state != State::Ok {
        return finding;
    }
    let loops = host.loops;
    // Those of VMs that run are among the bound ones.
    if loops.most.saturating_sub(loops.bound) < needs.needs.loops.saturating_sub(held.loops) {
        return Finding::failure(
            check,
            format!(
                "{} of at most {} loop devices are in use, and disks may take {}",
                loops.bound, loops.most, needs.needs.loops
            ),
            "give each fewer partitions: load the module with `options loop max_part=0` in /etc/modprobe.d",
        );
    }
    Finding { found: format!("{}; {} of at most {} are in use", finding.found, loops.bound, loops.most), ..finding }
}

/// A device file that a driver serves.
fn device(check: Check, device: &Device, state: State, asks: &str, module: &str) -> Finding {
    let shown = device.path.display();
    match &device.opened {
        Opened::Yes => Finding::ok(check, format!("{shown} opens{}", may(device))),
        Opened::NoDriver => Finding::skipped(
            check,
            format!(
                "{shown} is there, and its driver is not loaded; the kernel loads it at its first use, `modprobe {module}` now"
            ),
        ),
        Opened::Missing => Finding::bad(
            check,
            state,
            format!("{shown} is missing{asks}"),
            format!("load the kernel module (modprobe {module}); in a container, give it the device"),
        ),
        Opened::No(why) => Finding::bad(
            check,
            state,
            format!("{shown} cannot be opened: {why}{}{asks}", may(device)),
            "run stead as a user who may open it; in a container, give it the device",
        ),
    }
}

pub(super) fn device_mapper(host: &Checkup, needs: &Manifests) -> Finding {
    let check = Check::DeviceMapper;
    let device = &host.dm_control;
    match &host.facts.device_mapper {
        Ok(()) => Finding::ok(check, format!("snapshots can be made{}", may(device))),
        Err(why) => {
            let (found, mend) = (why, "load the kernel module (modprobe dm-snapshot), or use a kernel that has it");
            match &needs.snapshot {
                Some((vm, VmmChoice::Firecracker)) => {
                    Finding::failure(check, format!("{found}; VM {vm} has a snapshot disk on Firecracker"), mend)
                }
                Some((vm, _)) => {
                    Finding::warning(check, format!("{found}; VM {vm} runs on QEMU, with a qcow2 overlay"), mend)
                }
                None => Finding::skipped(check, format!("{found}; no disk needs it")),
            }
        }
    }
}

pub(super) fn cgroups(host: &Checkup) -> Finding {
    let check = Check::Cgroups;
    match &host.facts.cgroups {
        Ok(facts) => match &facts.no_limits {
            None => Finding::ok(check, "cgroup v2 is mounted and may be written to; cpu and memory can be limited"),
            Some(why) => Finding::warning(
                check,
                format!("VMs have a cgroup each, without limits: {why}"),
                "boot with systemd.unified_cgroup_hierarchy=1 (or cgroup_no_v1=all), so that version 2 has all controllers",
            ),
        },
        Err(why) => Finding::warning(
            check,
            format!("VMs run without a cgroup and without limits: {why}"),
            "mount it (mount -t cgroup2 none /sys/fs/cgroup) and run stead as root; under systemd both are so by default",
        ),
    }
}

pub(super) fn bridges(found: &BTreeMap<String, Option<Bridge>>, needs: &Manifests) -> Finding {
    let mut troubles = Vec::new();
    for (name, wanted) in &needs.bridges {
        let Some(bridge) = found.get(name).copied().flatten() else {
            let mend = format!("make it: ip link add {name} type bridge && ip link set {name} up");
            troubles.push(Trouble::failure(format!("there is no bridge {name}"), mend));
            continue;
        };
        if !bridge.is_bridge {
            let mend = format!(
                "name a bridge in the manifests, or rename the interface {name} and make a bridge of that name"
            );
            troubles.push(Trouble::failure(format!("{name} is no bridge"), mend));
            continue;
        }
        if *wanted > PORTS_MAX {
            let found = format!("{wanted} interfaces are to join {name}, and a bridge has at most {PORTS_MAX} ports");
            troubles.push(Trouble::failure(found, "spread them over several bridges"));
        } else if bridge.ports >= PORTS_MAX {
            let found = format!("each of the {PORTS_MAX} ports of {name} is taken");
            troubles.push(Trouble::warning(found, format!("see who has them: bridge link show master {name}")));
        }
        if !bridge.is_up {
            let mend = format!("ip link set {name} up");
            troubles.push(Trouble::warning(format!("{name} is down: its VMs reach nobody"), mend));
        }
        if bridge.mtu != TAP_MTU {
            let mend = format!("ip link set {name} mtu {TAP_MTU}, and the same to its other ports");
            let found =
                format!("{name} has an MTU of {}, and taps have {TAP_MTU}: larger packets are lost", bridge.mtu);
            troubles.push(Trouble::warning(found, mend));
        }
    }
    if needs.bridges.is_empty() {
        return Finding::skipped(Check::Bridges, "no manifest names one");
    }
    let all: Vec<&str> = needs.bridges.keys().map(String::as_str).collect();
    Finding::of_troubles(Check::Bridges, troubles, format!("up, with room: {}", all.join(", ")))
}

pub(super) fn git(git: Option<&GitLook>) -> Finding {
    let check = Check::Git;
    let Some(git) = git else { return Finding::skipped(check, "no git source is configured") };
    let version = match &git.version {
        Ok(version) => version.trim(),
        Err(why) => {
            return Finding::failure(
                check,
                format!("git cannot be run: {why}"),
                "install it (Debian, Ubuntu: apt-get install git)",
            );
        }
    };
    let mut troubles: Vec<Trouble> = git
        .missing
        .iter()
        .map(|(program, what)| {
            Trouble::failure(format!("{program} is not in PATH, and {what}"), format!("install {program}"))
        })
        .collect();
    if git.ssh_signatures && two_numbers(version).is_some_and(|version| version < GIT_SSH_SIGNATURES) {
        let found = format!("{version} cannot check signatures by SSH keys");
        troubles.push(Trouble::failure(found, "update git to 2.34 or later"));
    }
    Finding::of_troubles(check, troubles, version)
}

pub(super) fn confinement(confined: Option<&str>) -> Finding {
    match confined {
        None => Finding::ok(Check::Confinement, "none by AppArmor or SELinux"),
        Some(label) => Finding::warning(
            Check::Confinement,
            format!("this process runs as {label:?}"),
            "if VMs do not start, look for denials (dmesg, ausearch -m avc), and allow stead and its VMMs /dev/kvm, /dev/net/tun, \
             loop and device-mapper devices, and ptrace-level looks at /proc of its VMMs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::samples;
    use crate::host::devices::CgroupFacts;

    fn vm() -> VmName {
        "web".parse().unwrap()
    }

    #[test]
    fn a_kernel_is_judged_by_its_version() {
        for (release, state) in [
            ("5.15.0-91-generic", State::Failure),
            ("6.1.0-13-amd64", State::Warning),
            ("6.5.0", State::Ok),
            ("10.0-rc1", State::Ok),
            ("unknown", State::Warning),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn without_kvm_qemu_emulates_and_firecracker_fails() {
        let mut host = samples::host();
        host.facts.kvm = Err("/dev/kvm is missing: load kvm_intel".to_owned());
        let finding = kvm(&host, &Manifests::default());
        assert_eq!((finding.state, finding.mend.as_deref()), (State::Warning, Some("load kvm_intel")));
        let asked = Manifests { firecracker: Some(vm()), ..Manifests::default() };
        let finding = kvm(&host, &asked);
        assert!(finding.state == State::Failure && finding.found.contains("VM web needs it"), "{finding:?}");
        host.facts.qemu = Err("not in PATH: install it".to_owned());
        assert_eq!(kvm(&host, &Manifests::default()).state, State::Failure, "no VM at all can run");
        assert!(kvm(&samples::host(), &asked).found.contains("user root and group kvm may open it (0660)"));
    }

    #[test]
    fn a_missing_vmm_matters_as_much_as_manifests_ask_for_it() {
        let mut host = samples::host();
        host.facts.firecracker = Err("firecracker is not in PATH: install it".to_owned());
        assert_eq!(firecracker(&host, &Manifests::default()).state, State::Skipped);
        let either = Manifests { either: Some(vm()), ..Manifests::default() };
        assert_eq!(firecracker(&host, &either).state, State::Skipped, "QEMU takes it");
        let finding = firecracker(&host, &Manifests { firecracker: Some(vm()), ..Manifests::default() });
        assert_eq!((finding.state, finding.mend.as_deref()), (State::Failure, Some("install it")));
        host.facts.qemu = Err("no: install it too".to_owned());
        assert_eq!(firecracker(&host, &either).state, State::Failure);
        assert_eq!(qemu(&host, &either).state, State::Failure);
        assert_eq!(qemu(&host, &Manifests::default()).state, State::Warning);
    }

    #[test]
    fn a_program_is_told_with_its_version_and_holes() {
        let mut host = samples::host();
        host.versions.insert(VmmKind::Firecracker, "1.14.0".to_owned());
        let finding = firecracker(&host, &Manifests::default());
        assert!(finding.found.contains("version 1.14.0; no known hole in what stead uses"), "{finding:?}");
        assert!(finding.found.contains("CVE-2026-1386"), "{finding:?}");
        host.versions.clear();
        assert_eq!(firecracker(&host, &Manifests::default()).state, State::Warning);
    }

    #[test]
    fn a_device_that_cannot_be_used_is_as_bad_as_it_is_needed() {
        let needs = Manifests { interface: Some(vm()), ..Manifests::default() };
        for (opened, state) in [
            (Opened::Missing, State::Failure),
            (Opened::No("Permission denied".to_owned()), State::Failure),
            (Opened::NoDriver, State::Skipped),
            (Opened::Yes, State::Ok),
        ] {
            let mut host = samples::host();
            host.tun.opened = opened.clone();
            assert_eq!(tun(&host, &needs).state, state, "{opened:?}");
            let unneeded = tun(&host, &Manifests::default()).state;
            assert_eq!(unneeded, if state == State::Failure { State::Warning } else { state });
        }
        let host = Checkup { net_admin: false, ..samples::host() };
        assert!(tun(&host, &needs).found.contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn loop_devices_are_counted() {
        let mut host = samples::host();
        host.loops.bound = host.loops.most - 1;
        let needs = |loops| Manifests { needs: Needs { loops, threads: 0 }, ..Manifests::default() };
        let none = Needs::default();
        assert_eq!(loops(&host, &needs(1), none).state, State::Ok);
        assert_eq!(loops(&host, &needs(2), none).state, State::Failure);
        // One that runs has its own already.
        assert_eq!(loops(&host, &needs(2), Needs { loops: 1, threads: 0 }).state, State::Ok);
    }

    #[test]
    fn device_mapper_is_missed_by_firecracker_only() {
        let mut host = samples::host();
        host.facts.device_mapper = Err("it is not there: modprobe".to_owned());
        let with = |vmm| Manifests { snapshot: Some((vm(), vmm)), ..Manifests::default() };
        assert_eq!(device_mapper(&host, &Manifests::default()).state, State::Skipped);
        assert_eq!(device_mapper(&host, &with(VmmChoice::Auto)).state, State::Warning);
        assert_eq!(device_mapper(&host, &with(VmmChoice::Firecracker)).state, State::Failure);
    }

    #[test]
    fn cgroups_are_missed_for_their_limits() {
        let mut host = samples::host();
        host.facts.cgroups = Err("none is mounted".to_owned());
        assert!(cgroups(&host).found.contains("without a cgroup"));
        host.facts.cgroups = Ok(CgroupFacts { no_limits: Some("no memory controller".to_owned()) });
        let finding = cgroups(&host);
        assert!(finding.state == State::Warning && finding.found.contains("no memory controller"));
    }

    #[test]
    fn a_bridge_must_be_one_be_up_and_have_room() {
        let good = Bridge { is_bridge: true, is_up: true, ports: 3, mtu: 1500 };
        let needs = |interfaces| Manifests { bridges: [("br0".to_owned(), interfaces)].into(), ..Manifests::default() };
        let judge = |bridge, interfaces| bridges(&[("br0".to_owned(), bridge)].into(), &needs(interfaces));
        assert_eq!(judge(Some(good), 1023).state, State::Ok);
        for (bridge, interfaces, state, word) in [
            (None, 1, State::Failure, "ip link add br0 type bridge"),
            (Some(Bridge { is_bridge: false, ..good }), 1, State::Failure, "name a bridge"),
            (Some(good), 1025, State::Failure, "several bridges"),
            (Some(Bridge { ports: 1023, ..good }), 1, State::Warning, "bridge link"),
            (Some(Bridge { is_up: false, ..good }), 1, State::Warning, "ip link set br0 up"),
            (Some(Bridge { mtu: 1450, ..good }), 1, State::Warning, "mtu 1500"),
        ] {
            let finding = judge(bridge, interfaces);
            assert!(finding.state == state && finding.mend.as_ref().unwrap().contains(word), "{finding:?}");
        }
        assert_eq!(bridges(&BTreeMap::new(), &Manifests::default()).state, State::Skipped);
    }

    #[test]
    fn git_is_looked_for_with_what_it_runs() {
        let look = |version: &str| GitLook { version: Ok(version.to_owned()), missing: vec![], ssh_signatures: true };
        assert_eq!(git(Some(&look("git version 2.39.5\n"))).state, State::Ok);
        assert_eq!(git(Some(&look("git version 2.30.2"))).state, State::Failure);
        let missing = GitLook {
            missing: vec![("ssh", "source fleet is asked through it".to_owned())],
            ..look("git version 2.47.0")
        };
        let finding = git(Some(&missing));
        assert_eq!((finding.state, finding.mend.as_deref()), (State::Failure, Some("install ssh")));
        let none = GitLook { version: Err("not found".to_owned()), ..missing };
        assert!(git(Some(&none)).mend.unwrap().contains("apt-get install git"));
        assert_eq!(git(None).state, State::Skipped);
    }

    #[test]
    fn who_is_confined_is_warned() {
        assert_eq!(confinement(None).state, State::Ok);
        assert!(confinement(Some("docker-default (enforce)")).found.contains("docker-default"));
    }
}
