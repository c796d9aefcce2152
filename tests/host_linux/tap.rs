//! Taps, each test in a network namespace of its own.

use std::io;
use std::process::Command;

use nix::sched::CloneFlags;
use stead::host::{HostOps, HostView, Tap};
use stead::state::TapHandle;

use crate::bed::{Vm, host, in_namespaces, text};

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip link show` says, since sysfs shows another network namespace here.
fn mtu(link: &str) -> u32 {
    let output = Command::new("ip").args(["link", "show", link]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "mtu").unwrap();
    words[at + 1].parse().unwrap()
}

fn in_network(test: impl FnOnce() + Send + 'static) {
    in_namespaces(CloneFlags::CLONE_NEWNET, test);
}

fn tap(name: &str, bridge: Option<&str>) -> Tap {
    Tap { name: name.into(), alias: Some("stead:x:y:eth0".into()), bridge: bridge.map(Into::into), up: true }
}

#[test]
fn a_tap_is_made_tagged_up_and_on_its_bridge_and_goes_again() {
    in_network(|| {
        let host = host();
        ip("link add br0 type bridge");
        assert_eq!(host.taps().unwrap(), []);
        assert_eq!(host.tap("st1").unwrap(), None);
        host.create_tap("st1", "stead:x:y:eth0", Some("br0")).unwrap();
        host.create_tap("st2", "stead:x:y:eth0", None).unwrap();
        assert_eq!(host.tap("st1").unwrap(), Some(tap("st1", Some("br0"))));
        assert_eq!(host.taps().unwrap(), [tap("st1", Some("br0")), tap("st2", None)]);

        host.set_tap_bridge("st1", None).unwrap();
        assert_eq!(host.tap("st1").unwrap(), Some(tap("st1", None)));
        host.set_tap_bridge("st2", Some("br0")).unwrap();
        host.set_tap_bridge("st2", Some("br0")).unwrap();
        assert_eq!(host.tap("st2").unwrap(), Some(tap("st2", Some("br0"))));

        assert!(host.delete_tap("st1", "stead:x:y:eth0").unwrap());
        assert!(!host.delete_tap("st1", "stead:x:y:eth0").unwrap());
        assert_eq!(host.taps().unwrap().len(), 1);
    });
}

#[test]
fn a_tap_has_the_mtu_of_its_bridge() {
    in_network(|| {
        let host = host();
        ip("link add jumbo type bridge");
        ip("link set jumbo mtu 9000");
        ip("link add br0 type bridge");
        host.create_tap("st1", "stead:x:y:eth0", Some("jumbo")).unwrap();
        assert_eq!((mtu("st1"), mtu("jumbo")), (9000, 9000));
        host.create_tap("st2", "stead:x:y:eth0", None).unwrap();
        assert_eq!(mtu("st2"), 1500);
        host.set_tap_bridge("st2", Some("jumbo")).unwrap();
        assert_eq!((mtu("st2"), mtu("jumbo")), (9000, 9000));
        host.set_tap_bridge("st1", Some("br0")).unwrap();
        assert_eq!((mtu("st1"), mtu("br0")), (1500, 1500));
    });
}

#[test]
fn a_taken_name_is_told_and_its_owner_left_alone() {
    in_network(|| {
        let host = host();
        ip("link add st1 type veth peer name other");
        ip("tuntap add mode tap name st2");
        for name in ["st1", "st2", "lo"] {
            let error = host.create_tap(name, "a", None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
            assert_eq!(host.tap(name).unwrap().unwrap().alias, None, "{name}");
        }
    });
}

#[test]
fn a_missing_bridge_is_named_and_no_tap_is_left() {
    in_network(|| {
        let host = host();
        ip("link add notabridge type veth peer name other");
        let error = host.create_tap("st1", "a", Some("br7")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(text(&error).contains("br7"), "{error}");
        let error = host.create_tap("st1", "a", Some("notabridge")).unwrap_err();
        assert!(text(&error).contains("notabridge"), "{error}");
        assert_eq!(host.tap("st1").unwrap(), None);
        for name in ["", "a-name-that-is-too-long", "a/b", "st%d"] {
            assert_eq!(host.create_tap(name, "a", None).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(host.taps().unwrap(), []);
    });
}

#[test]
fn what_carries_no_tag_or_anothers_is_never_deleted_nor_tagged_anew() {
    in_network(|| {
        let host = host();
        host.create_tap("st1", "someone-else", None).unwrap();
        ip("tuntap add mode tap name st2");
        ip("link add st3 type veth peer name other");
        for name in ["st1", "st2", "st3"] {
            let error = host.delete_tap(name, "mine").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
            assert!(host.tap(name).unwrap().is_some());
        }
        assert!(host.tag_tap("st1", "mine").is_err());
        assert!(host.tag_tap("st3", "mine").is_err(), "not a tap");
        assert!(host.tag_tap("st4", "mine").is_err(), "not there");
        host.tag_tap("st2", "mine").unwrap();
        host.tag_tap("st2", "mine").unwrap();
        assert!(host.delete_tap("st2", "mine").unwrap());
    });
}

#[test]
fn whoever_lacks_the_right_is_told_so() {
    in_network(|| {
        let host = host();
        let without = || {
            let host = host.clone();
            std::thread::spawn(move || {
                let none = rustix::thread::CapabilitySet::empty();
                let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
                rustix::thread::set_capabilities(None, sets).unwrap();
                host.create_tap("st1", "a", None)
            })
            .join()
            .unwrap()
        };
        let error = without().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(text(&error).contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn both_vmms_attach_to_a_tap_of_ours() {
    for make in [|| Vm::firecracker("halt"), Vm::qemu] {
        in_network(move || {
            let mut vm = make();
            let interface: stead::names::VmName = "eth0".parse().unwrap();
            let name = vm.layout.uid(&vm.name).tap(&interface);
            let alias = vm.layout.uid(&vm.name).tap_alias(&vm.layout.state_id, &interface);
            ip("link add br0 type bridge");
            vm.host.create_tap(&name, &alias, Some("br0")).unwrap();
            vm.spec.network_interfaces = vec![stead::spec::NetworkInterface {
                name: interface.clone(),
                bridge: Some("br0".into()),
                mac_address: Some("06:00:00:00:00:09".parse().unwrap()),
            }];
            vm.taps = vec![TapHandle { interface, tap: name.clone(), bridge: Some("br0".into()) }];
            let process = vm.start();
            if vm.kind == stead::spec::VmmKind::Qemu {
                vm.console_shows("GUEST NIC eth0 06:00:00:00:00:09");
            }
            let found = vm.host.tap(&name).unwrap().unwrap();
            assert_eq!(found.alias, Some(alias.clone()));
            vm.host.kill(&process).unwrap();
            crate::bed::ended(&*vm.host, &process);
            assert!(vm.host.delete_tap(&name, &alias).unwrap());
        });
    }
}
