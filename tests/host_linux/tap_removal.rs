//! Taps removed in batches, each test in a network namespace of its own.

use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use stead::host::devices::{DeviceOps, DeviceView, TapRemoval};
use stead::host::linux::LinuxHost;
use stead::host::{HostOps, HostView};

use crate::bed::{BOUND, host, in_namespaces};

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn in_network(test: impl FnOnce() + Send + 'static) {
    in_namespaces(CloneFlags::CLONE_NEWNET, test);
}

fn removal(name: impl Into<String>, alias: &str) -> TapRemoval {
    TapRemoval { name: name.into(), alias: alias.into() }
}

fn make(host: &LinuxHost, count: u32) {
    for index in 0..count {
        host.create_tap(&format!("st{index}"), "tag", None).unwrap();
    }
}

/// Asks for each tap by itself, as each VM's worker does, and waits for all.
fn remove_each(host: &LinuxHost, taps: Vec<TapRemoval>) -> Vec<io::Result<bool>> {
    let (tell, told) = mpsc::channel();
    let count = taps.len();
    for (index, tap) in taps.into_iter().enumerate() {
        let tell = tell.clone();
        let done = move |mut results: Vec<io::Result<bool>>| {
            assert_eq!(results.len(), 1);
            tell.send((index, results.remove(0))).unwrap();
        };
        host.remove_taps(vec![tap], Box::new(done));
    }
    let mut results: Vec<_> = (0..count).map(|_| told.recv_timeout(BOUND).unwrap()).collect();
    results.sort_by_key(|(index, _)| *index);
    assert!(told.try_recv().is_err(), "told twice");
    results.into_iter().map(|(_, result)| result).collect()
}

/// A single removal takes 16 ms; this is why they are removed together.
#[test]
fn five_hundred_taps_go_in_at_most_twice_the_time_of_a_bare_group() {
    in_network(|| {
        let host = host();
        let mut best = f64::MAX;
        for _ in 0..3 {
            make(&host, 500);
            for index in 0..500 {
                ip(&format!("link set st{index} group 77"));
            }
            let start = Instant::now();
            ip("link del group 77");
            let bare = start.elapsed();

            make(&host, 500);
            let taps = (0..500).map(|index| removal(format!("st{index}"), "tag")).collect();
            let start = Instant::now();
            let results = remove_each(&host, taps);
            let ours = start.elapsed();
            assert!(results.into_iter().all(|result| result.unwrap()));
            assert_eq!(host.taps().unwrap(), []);
            let ratio = ours.as_secs_f64() / bare.as_secs_f64();
            println!("500 taps: {ours:?} by stead, {bare:?} as one bare group: {ratio:.2}");
            best = best.min(ratio);
        }
        assert!(best <= 2.0, "{best:.2} times a bare group deletion");
    });
}

#[test]
fn what_carries_another_tag_or_is_no_tap_stays() {
    in_network(|| {
        let host = host();
        make(&host, 3);
        host.create_tap("sta", "tag2", None).unwrap();
        host.create_tap("stb", "another's", None).unwrap();
        ip("tuntap add mode tap name stc");
        ip("link add std type veth peer name peer");
        ip("link set std alias tag");
        let names = ["st0", "sta", "st1", "stb", "stc", "std", "gone", "st2"];
        let results = remove_each(&host, names.map(|name| removal(name, "tag")).into());
        let kinds: Vec<_> = results.into_iter().map(|result| result.map_err(|error| error.kind())).collect();
        let refused = Err(io::ErrorKind::PermissionDenied);
        assert_eq!(kinds, [Ok(true), refused, Ok(true), refused, refused, refused, Ok(false), Ok(true)]);
        let mut left: Vec<String> = host.taps().unwrap().into_iter().map(|tap| tap.name).collect();
        left.sort();
        assert_eq!(left, ["sta", "stb", "stc"]);
        assert!(host.tap("std").unwrap().is_some());
    });
}

/// VMMs are dead by then; but whatever holds a tap, it goes.
#[test]
fn a_tap_that_a_process_has_open_goes_too_and_its_holder_is_known() {
    in_network(|| {
        let host = host();
        make(&host, 2);
        let attached = attach("st0");
        let holders = host.tap_holders().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(holders.iter().any(|(tap, holder)| tap == "st0" && holder.pid == own), "{holders:?}");
        assert!(!holders.iter().any(|(tap, _)| tap == "st1"), "{holders:?}");
        let results = remove_each(&host, vec![removal("st0", "tag"), removal("st1", "tag")]);
        assert!(results.into_iter().all(|result| result.unwrap()));
        drop(attached);
    });
}

/// Opens a tap as a VMM does.
#[allow(unsafe_code, reason = "an ioctl that no crate wraps")]
fn attach(tap: &str) -> File {
    nix::ioctl_write_ptr_bad!(tun_set_iff, nix::libc::TUNSETIFF, [u8; 40]);
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [0; 40];
    request[..tap.len()].copy_from_slice(tap.as_bytes());
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    request[16..18].copy_from_slice(&u16::try_from(flags).unwrap().to_ne_bytes());
    // SAFETY: the request is a whole ifreq with a terminated name, and lives through the call.
    unsafe { tun_set_iff(std::os::fd::AsRawFd::as_raw_fd(&file), &raw const request) }.unwrap();
    file
}

#[test]
fn one_alone_goes_within_its_own_time() {
    in_network(|| {
        let host = host();
        make(&host, 1);
        let start = Instant::now();
        assert!(remove_each(&host, vec![removal("st0", "tag")]).remove(0).unwrap());
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(!remove_each(&host, vec![removal("st0", "tag")]).remove(0).unwrap());
    });
}
