//! Many VMs come and go at once, and how long stead's own part of it takes.

use std::time::Instant;

use stead::host::HostOps;
use stead::host::devices::{DeviceOps, DeviceView, DmRequest, DmTarget, LoopRequest};
use stead::host::linux::{LinuxHost, LinuxHostConfig};

use crate::inside::arguments;
use crate::inside::bed::{Stead, base_image, ends, fingerprint, vm};

const VMS: u64 = 50;

/// Numbers that look random and come again: xorshift64 (Marsaglia, 2003).
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn one(index: u64) -> String {
    // Two bases, some disks longer than their base.
    let size = if index.is_multiple_of(3) { ", size: 16Mi" } else { "" };
    let image = if index.is_multiple_of(2) { "base" } else { "other" };
    let spec = format!(
        "  disks: [{{name: root, image: /state/images/{image}.img, mode: snapshot{size}}}]\n  networkInterfaces: [{{name: \
         eth0}}]\n"
    );
    vm(&format!("vm{index}"), &spec)
}

/// Each round toggles some of fifty VMs at random, in one pass that works on sixteen at once.
pub fn vms_come_and_go() {
    let [rounds] = arguments().try_into().unwrap();
    let rounds: usize = rounds.parse().unwrap();
    base_image();
    std::fs::copy("/state/images/base.img", "/state/images/other.img").unwrap();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    let mut chance = Chance(0x5EED);
    let mut there = vec![false; usize::try_from(VMS).unwrap()];
    let start = Instant::now();
    let (mut starts, mut ends_) = (0, 0);
    for round in 0..rounds {
        for (index, there) in (0..VMS).zip(&mut there) {
            let last = round + 1 == rounds;
            if if last { *there } else { chance.next().is_multiple_of(3) } {
                *there = !*there;
                let file = format!("vm{index}.yaml");
                if *there {
                    stead.apply(&file, &one(index));
                    starts += 1;
                } else {
                    stead.remove(&file);
                    ends_ += 1;
                }
            }
        }
        let args = ["reconcile", "--once", "--allow-prune", "50", "--timeout", "170s"];
        let ended = ends(&mut stead.command(&args));
        assert_eq!(ended.status.code(), Some(0), "round {round}: {}{}", ended.stdout, ended.stderr);
        let alive = there.iter().filter(|there| **there).count();
        let found = fingerprint().changes_since(&before);
        for (what, each) in [("process ", 1), ("link st", 1)] {
            assert_eq!(found.matches(&format!("+ {what}")).count(), alive * each, "round {round}: {what}\n{found}");
        }
        println!("round {round}: {alive} alive, {} s", start.elapsed().as_secs());
    }
    println!("{starts} starts and {ends_} teardowns in {:.0} s", start.elapsed().as_secs_f32());
    before.comes_back();
}

/// What stead itself has the kernel do for a VM with a snapshot disk and a tap: two loops, a snapshot, a tap.
pub fn the_objects_of_a_start_are_timed() {
    base_image();
    let host = LinuxHost::new(LinuxHostConfig::default()).unwrap();
    let image = host.image("/state/images/base.img".as_ref()).unwrap().unwrap();
    let mut times = Vec::new();
    for round in 0..31 {
        let cow = format!("/state/images/{round}.cow");
        host.make_sparse_file(cow.as_ref(), 16 << 20).unwrap();
        let own = host.image(cow.as_ref()).unwrap().unwrap();
        let attach = |file: &str, backing, tag: &str, read_only| {
            let request = LoopRequest { file: file.into(), backing, tag: tag.to_owned(), read_only };
            host.attach_loop(&request).unwrap().device
        };
        let start = Instant::now();
        let base = attach("/state/images/base.img", image.id, "measured:base", true);
        let over = attach(&cow, own.id, "measured:cow", false);
        let parameters = format!("/dev/{base} /dev/{over} P 8");
        let target = DmTarget { start: 0, length: image.bytes / 512, kind: "snapshot", parameters };
        let (name, uuid) = ("measured".to_owned(), "measured".to_owned());
        host.create_dm(&DmRequest { name, uuid, table: vec![target], read_only: false }).unwrap();
        host.create_tap("measured", "measured", None).unwrap();
        times.push(start.elapsed());

        host.remove_dm("measured", "measured").unwrap();
        host.detach_loop(&over, "measured:cow").unwrap();
        host.detach_loop(&base, "measured:base").unwrap();
        host.delete_tap("measured", "measured").unwrap();
    }
    times.sort();
    let median = times[times.len() / 2];
    println!(
        "TIME {} microseconds for two loops, a snapshot and a tap (median of {}, from {:?} to {:?})",
        median.as_micros(),
        times.len(),
        times[0],
        times[times.len() - 1]
    );
}
