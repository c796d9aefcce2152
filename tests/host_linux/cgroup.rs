//! Cgroups, in a folder of each test's own in the machine's cgroup v2 hierarchy.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};

use stead::host::devices::{CgroupLimits, DeviceOps, DeviceView};
use stead::host::linux::LinuxHost;

use crate::bed::{Vm, host, wait};

const LIMITS: CgroupLimits = CgroupLimits { cpu_quota_us: 150_000, memory_bytes: 64 << 20 };

/// A cgroup that goes with its test, with what is in it.
struct Own(std::sync::Arc<LinuxHost>, String);

impl Own {
    fn new(test: &str) -> Self {
        Self(host(), format!("stead-test-{}-{test}/state/web", std::process::id()))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill_cgroup(&self.1);
        for _ in 0..100 {
            if self.0.remove_cgroup(&self.1).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

struct Sleeper(Child);

impl Sleeper {
    fn in_cgroup(path: &Path) -> Self {
        let child = Self(Command::new("sleep").arg("1000").spawn().unwrap());
        fs::write(path.join("cgroup.procs"), child.0.id().to_string()).unwrap();
        child
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mounted() -> &'static Path {
    let known = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    known.into_iter().find(|path| path.join("cgroup.procs").exists()).expect("a cgroup v2 hierarchy")
}

#[test]
fn a_cgroup_is_made_with_its_parents_and_goes_with_them() {
    let own = Own::new("made");
    let (host, path) = (&own.0, &own.1);
    assert_eq!(host.cgroup(path).unwrap(), None);
    assert!(host.make_cgroup(path, &LIMITS).unwrap());
    assert!(!host.make_cgroup(path, &LIMITS).unwrap());
    let found = host.cgroup(path).unwrap().unwrap();
    assert_eq!((found.processes, found.populated), (vec![], false));
    let parent = path.rsplit_once('/').unwrap().0;
    assert_eq!(host.child_cgroups(parent).unwrap(), ["web"]);
    let sibling = format!("{parent}/api");
    host.make_cgroup(&sibling, &LIMITS).unwrap();
    assert!(host.remove_cgroup(path).unwrap());
    assert!(!host.remove_cgroup(path).unwrap());
    assert_eq!(host.child_cgroups(parent).unwrap(), ["api"], "a sibling's parent stays");
    assert!(host.remove_cgroup(&sibling).unwrap());
    assert!(!mounted().join(parent.split('/').next().unwrap()).exists(), "empty parents go too");
    assert_eq!(host.child_cgroups(parent).unwrap(), Vec::<String>::new());
}

#[test]
fn a_cgroup_with_a_process_in_it_is_busy_until_it_is_killed() {
    let own = Own::new("busy");
    let (host, path) = (&own.0, &own.1);
    host.make_cgroup(path, &LIMITS).unwrap();
    assert!(!host.kill_cgroup(path).unwrap(), "there was nobody to kill");
    let mut sleeper = Sleeper::in_cgroup(&mounted().join(path));
    let pid = sleeper.0.id();
    let found = host.cgroup(path).unwrap().unwrap();
    assert_eq!((found.processes, found.populated), (vec![i32::try_from(pid).unwrap()], true));
    let busy = host.remove_cgroup(path).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    assert!(busy.to_string().contains(&pid.to_string()), "{busy}");
    assert!(host.kill_cgroup(path).unwrap());
    wait("its end", || sleeper.0.try_wait().unwrap());
    wait("the cgroup is empty", || host.remove_cgroup(path).ok());
}

#[test]
fn a_vmm_begins_its_life_in_its_cgroup() {
    let own = Own::new("spawned");
    let (host, path) = (&own.0, &own.1);
    host.make_cgroup(path, &LIMITS).unwrap();
    let vm = Vm::firecracker("halt");
    let request = stead::host::SpawnRequest { cgroup: Some(path.clone()), ..vm.request(1) };
    let process = vm.try_spawn(&request).unwrap();
    assert_eq!(host.cgroup(path).unwrap().unwrap().processes, [process.identity.pid]);
    assert!(host.kill_cgroup(path).unwrap());
    wait("the VMM's end", || (!host.cgroup(path).unwrap().unwrap().populated).then_some(()));
}

#[test]
fn a_vmm_whose_cgroup_is_missing_is_not_started() {
    let vm = Vm::firecracker("halt");
    let request = stead::host::SpawnRequest { cgroup: Some("stead-test/none".into()), ..vm.request(1) };
    let error = stead::host::HostOps::spawn_vmm(&*vm.host, &request).unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("cgroup stead-test/none"), "{text}");
}
