//! stead dies between any two effects of a start and of a teardown of a VM with a snapshot disk, a tap and a cgroup; the
//! next stead must bring the host to the same end as an undisturbed one.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use stead::config::{Settings, Source};

use crate::inside::bed::{Fingerprint, Stead, base_image, fingerprint, firecracker, vm};
use crate::mortal;

/// Before one effect is after the one before it: that is each point there is between any two.
const BEFORE: &[bool] = &[false];

/// A host with a stead of its own, seen before that held anything.
struct World {
    stead: Stead,
    root: String,
    before: Fingerprint,
}

impl World {
    fn new() -> Self {
        thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
        let number = COUNT.replace(COUNT.get() + 1);
        let root = format!("/state/{number}");
        Self { before: fingerprint(), stead: Stead::at(&root), root }
    }

    fn settings(&self) -> Settings {
        Settings {
            sources: vec![Source::manifests(self.stead.manifests())],
            state_dir: self.stead.state(),
            run_dir: "/run/stead".into(),
            firecracker: firecracker(),
            ..mortal::settings()
        }
    }

    fn apply(&self) {
        let spec = "  disks: [{name: root, image: /state/images/base.img, mode: snapshot, size: 16Mi}]\n  networkInterfaces: \
                    [{name: eth0}]\n";
        self.stead.apply("web.yaml", &vm("web", spec));
    }

    /// One VMM with all it needs, and nothing else.
    fn runs(&self, when: &str) {
        let changes = fingerprint().changes_since(&self.before);
        for (what, count) in [("process ", 1), ("dm stead-", 2), ("loop loop", 2), ("link st", 1)] {
            let found = changes.matches(&format!("+ {what}")).count();
            assert_eq!(found, count, "{when}: {what}\n{changes}");
        }
        assert_eq!(changes.matches("+ cgroup ").count(), 3, "{when}: {changes}");
        assert!(!changes.lines().any(|line| line.starts_with('-')), "{when}: {changes}");
        self.goes(when);
    }

    /// Nothing is left; the VM's disk is.
    fn goes(&self, when: &str) {
        if self.stead.manifests().join("web.yaml").exists() {
            self.stead.remove("web.yaml");
            mortal::converge(&self.settings());
        }
        println!("{when}");
        self.before.comes_back();
        let mut left: Vec<PathBuf> =
            fs::read_dir(self.stead.vm_dir("web")).unwrap().flatten().map(|entry| entry.path()).collect();
        left.sort();
        let left: Vec<_> = left.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(left, ["disks", "ledger.json", "vmm.lock"], "{when}");
        fs::remove_dir_all(&self.root).unwrap();
    }
}

pub fn death_at_any_point_of_a_start_leads_to_one_vmm_on_its_disk() {
    base_image();
    let points =
        mortal::dies_everywhere("start", BEFORE, World::new, World::settings, |_| {}, World::apply, World::runs);
    println!("{points} effects of a start");
    assert!(points >= 14, "{points}");
}

pub fn death_at_any_point_of_a_teardown_leaves_nothing() {
    base_image();
    let remove = |world: &World| world.stead.remove("web.yaml");
    let points =
        mortal::dies_everywhere("teardown", BEFORE, World::new, World::settings, World::apply, remove, World::goes);
    println!("{points} effects of a teardown");
    assert!(points >= 12, "{points}");
}
